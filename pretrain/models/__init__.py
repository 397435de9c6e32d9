"""One file per model: features in, losses out."""

from collections.abc import Mapping

from pretrain.models.amma import Amma, AmmaConfig
from pretrain.sample import Modality

# Two of them become Annotated[AmmaConfig | AlignProConfig, Field(discriminator="kind")]; pydantic refuses one alone.
ModelConfig = AmmaConfig
Model = Amma


def build(config: ModelConfig, widths: Mapping[Modality, int]) -> Model:
    """The model that `config` describes, over frozen features of the given widths. ValueError where one is missing."""
    return Amma(config, widths)
