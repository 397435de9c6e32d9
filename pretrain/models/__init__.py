"""One file per model: features in, losses out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from pretrain.data.draw import InputSpec
from pretrain.data.labels import LabelKind
from pretrain.encoders.bundle import Encoder
from pretrain.models.align_pro import AlignPro, AlignProConfig
from pretrain.models.amma import Amma, AmmaConfig
from pretrain.models.bihierarchical import Bihierarchical, BihierarchicalConfig
from pretrain.models.unimodal import Unimodal, UnimodalConfig
from pretrain.sample import Modality

ModelConfig = Annotated[
    AmmaConfig | AlignProConfig | BihierarchicalConfig | UnimodalConfig, Field(discriminator="kind")
]
Model = Amma | AlignPro | Bihierarchical | Unimodal


def build(
    config: ModelConfig, widths: Mapping[Modality, int], trained: Mapping[Modality, Encoder] | None = None
) -> Model:
    """The model that `config` describes, over features of the given widths. ValueError where one is missing.

    trained: the encoders of `config.trains`, which become parts of the model. An exported model needs none, but for
    one whose own layers run between theirs.
    """
    match config:
        case AmmaConfig():
            return Amma(config, widths)
        case BihierarchicalConfig():
            return Bihierarchical(config, trained or {})
        case AlignProConfig():
            return AlignPro(config, widths, trained)
        case UnimodalConfig():
            return Unimodal(config, (trained or {}).get(config.modality))


def learns(config: ModelConfig) -> LabelKind | None:
    """The labels that a model learns from, if it does."""
    return config.labels if isinstance(config, BihierarchicalConfig) else None


def input_of(config: ModelConfig, spec: InputSpec) -> InputSpec:
    """What of its proteins a model is given in training. spec: what its encoders take."""
    return replace(spec, view=config.views) if isinstance(config, AlignProConfig) else spec
