"""One file per model: features in, losses out."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from pretrain.encoders.bundle import Encoder
from pretrain.models.amma import Amma, AmmaConfig
from pretrain.models.unimodal import Unimodal, UnimodalConfig
from pretrain.sample import Modality

ModelConfig = Annotated[AmmaConfig | UnimodalConfig, Field(discriminator="kind")]
Model = Amma | Unimodal


def build(
    config: ModelConfig, widths: Mapping[Modality, int], trained: Mapping[Modality, Encoder] | None = None
) -> Model:
    """The model that `config` describes, over features of the given widths. ValueError where one is missing.

    trained: the encoders of `config.trains`, which become parts of the model; none of them in an exported model.
    """
    match config:
        case AmmaConfig():
            return Amma(config, widths)
        case UnimodalConfig():
            return Unimodal(config, (trained or {}).get(config.modality))
