"""Everything a run is, on one page."""

from pathlib import Path

from pydantic import Field

from pretrain.checkpoint import CheckpointConfig
from pretrain.config import Config
from pretrain.data.loader import DataConfig
from pretrain.encoders.bundle import EncodersConfig
from pretrain.engine import EngineConfig, OptimizerConfig
from pretrain.models import ModelConfig
from pretrain.sample import Modality


class ValidationConfig(Config):
    """Every `every` steps and at the end: `samples` held-out proteins, losses by modality, retrieval at `k`."""

    every: int = Field(default=500, ge=1)
    samples: int = Field(default=1024, ge=1)
    batch: int = Field(default=32, ge=1)  # proteins per forward pass, over all ranks
    split: str = "valid"
    k: int = Field(default=10, ge=1)


class LogConfig(Config):
    """A line of `log.jsonl` every `every` steps, the same to TensorBoard."""

    every: int = Field(default=10, ge=1)
    tensorboard: bool = True


class RunConfig(Config):
    """One training run. `out` holds all that it writes: `config.json`, `log.jsonl`, `checkpoints/`, `tensorboard/`."""

    out: Path
    steps: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    encoders: EncodersConfig
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    log: LogConfig = LogConfig()

    @property
    def frozen(self) -> EncodersConfig:
        """The encoders of the model's modalities; others are not built, and their data is not read."""
        unused = {modality.value: None for modality in Modality if modality not in self.model.modalities}
        return self.encoders.model_copy(update=unused)

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"
