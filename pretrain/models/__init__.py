"""One file per model: features in, losses out."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from pretrain.data.draw import InputSpec
from pretrain.data.labels import LabelKind
from pretrain.data.ontology import Vocabulary
from pretrain.encoders.bundle import Encoder
from pretrain.models.align_pro import AlignPro, AlignProConfig
from pretrain.models.amma import Amma, AmmaConfig
from pretrain.models.bihierarchical import Bihierarchical, BihierarchicalConfig
from pretrain.models.fourfold import Fourfold, FourfoldConfig
from pretrain.models.ssgi import Ssgi, SsgiConfig
from pretrain.models.two_tower import TwoTower, TwoTowerConfig
from pretrain.models.unimodal import Unimodal, UnimodalConfig
from pretrain.sample import Modality

ModelConfig = Annotated[
    AmmaConfig | AlignProConfig | BihierarchicalConfig | FourfoldConfig | SsgiConfig | TwoTowerConfig | UnimodalConfig,
    Field(discriminator="kind"),
]
Model = Amma | AlignPro | Bihierarchical | Fourfold | Ssgi | TwoTower | Unimodal


def build(
    config: ModelConfig,
    widths: Mapping[Modality, int],
    trained: Mapping[Modality, Encoder] | None = None,
    terms: Vocabulary | None = None,
) -> Model:
    """The model that `config` describes, over features of the given widths. ValueError where one is missing.

    trained: the encoders of `config.trains`, which become parts of the model. An exported model needs none, but for
    one whose own layers run between theirs.
    terms: the GO terms that the model has vectors of, where `reads_terms`.
    """
    match config:
        case AmmaConfig():
            return Amma(config, widths)
        case BihierarchicalConfig():
            return Bihierarchical(config, trained or {})
        case AlignProConfig():
            return AlignPro(config, widths, trained)
        case FourfoldConfig():
            return Fourfold(config, widths)
        case SsgiConfig():
            return Ssgi(config, widths, trained or {}, terms)
        case TwoTowerConfig():
            return TwoTower(config, widths, trained)
        case UnimodalConfig():
            return Unimodal(config, (trained or {}).get(config.modality))


def check_depths(config: ModelConfig, depths: Mapping[Modality, int]) -> None:
    """Raises ValueError where the model takes features apart by depth, and these are of other depths."""
    for modality, tiers in config.tiers.items() if isinstance(config, FourfoldConfig) else ():
        if (depth := depths.get(modality, tiers)) % tiers:
            raise ValueError(
                f"model.tiers.{modality} = {tiers}, but the encoder's features are of {depth} depths; give a divisor "
                "of these, or other encoders.sequence.tiers"
            )


def learns(config: ModelConfig) -> LabelKind | None:
    """The labels that a model learns from, if it does."""
    return config.labels if isinstance(config, BihierarchicalConfig) else None


def input_of(config: ModelConfig, spec: InputSpec) -> InputSpec:
    """What of its proteins a model is given in training. spec: what its encoders take."""
    return replace(spec, view=config.views) if isinstance(config, AlignProConfig) else spec


def teaches(config: ModelConfig, has: Collection[Modality]) -> bool:
    """Whether the model learns anything from a protein that has these modalities alone: who only compares modalities
    needs two of them."""
    read = {*config.modalities} & {*has}
    match config:
        case AmmaConfig(variant="contrastive") | AlignProConfig(intra=0):
            return len(read) > 1
        case TwoTowerConfig():
            return Modality.SEQUENCE in read
        case SsgiConfig():
            several = config.reads_terms and Modality.FUNCTION in read  # terms and text
            return bool(read - {Modality.FUNCTION, Modality.IMAGE}) or len(read) > 1 or several
    return bool(read)


def reads_terms(config: ModelConfig) -> bool:
    """Whether the model takes GO terms by their ids, beside texts."""
    return isinstance(config, SsgiConfig) and config.reads_terms


def reads_states(config: ModelConfig) -> bool:
    """Whether 3Di states of structures are what the model is to tell."""
    return isinstance(config, SsgiConfig) and Modality.STRUCTURE in config.modalities and config.structure == "states"


def terms_of(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Vocabulary | None:
    """The GO terms that a saved model (its buffers are enough) has vectors of; None where it reads none."""
    return Ssgi.terms_in(tensors) if reads_terms(config) else None


def known_terms(model: Model) -> Vocabulary | None:
    """The GO terms that the model has vectors of; None where it reads none."""
    return model.terms if isinstance(model, Ssgi) else None
