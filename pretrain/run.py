"""Everything a run is, on one page, and what of it must stay when it goes on."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import Field

from pretrain.checkpoint import Checkpoint, CheckpointConfig
from pretrain.config import Config, dump
from pretrain.data.dataset import Dataset
from pretrain.data.loader import DataConfig
from pretrain.data.ontology import Vocabulary
from pretrain.encoders.bundle import Encoders, EncodersConfig, as_asked
from pretrain.engine import EngineConfig, OptimizerConfig
from pretrain.guard import GuardConfig
from pretrain.models import ModelConfig
from pretrain.sample import Modality
from pretrain.trackers import MlflowConfig, WandbConfig
from pretrain.watch import WatchConfig


class ValidationConfig(Config):
    """Every `every` steps and at the end: `samples` held-out proteins, losses by modality, retrieval at `k`.

    min_rank: an alarm where a modality's embeddings use fewer directions (effective rank); 0 for none.
    """

    every: int = Field(default=500, ge=1)
    samples: int = Field(default=1024, ge=1)
    batch: int = Field(default=32, ge=1)  # proteins per forward pass, over all ranks
    split: str = "valid"
    k: int = Field(default=10, ge=1)
    min_rank: float = Field(default=2.0, ge=0)


class LogConfig(Config):
    """A line of `log.jsonl` every `every` steps, the same to TensorBoard, Weights & Biases, MLflow, as asked."""

    every: int = Field(default=10, ge=1)
    tensorboard: bool = True
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None


class RunConfig(Config):
    """One training run. `out` holds all that it writes: `config.json`, `log.jsonl`, `checkpoints/`, `tensorboard/`.

    start_from: the folder of another run, or of an exported model. Trained parameters that have a namesake there, also
    among the encoders that an exported model trained, begin with its values, all others as they would without; frozen
    encoders are the configured ones. It is read when the run begins, and not when it goes on.
    """

    out: Path
    steps: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    start_from: Path | None = None
    data: DataConfig
    encoders: EncodersConfig
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    watch: WatchConfig = WatchConfig()
    validation: ValidationConfig = ValidationConfig()
    log: LogConfig = LogConfig()

    @property
    def frozen(self) -> EncodersConfig:
        """The encoders of the model's modalities; others are not built, and their data is not read."""
        unused = {modality.value: None for modality in Modality if modality not in self.model.modalities}
        return self.encoders.model_copy(update=unused)

    @property
    def checkpoints(self) -> Path | str:
        """The folder or URL where checkpoints lie."""
        return self.checkpoint.folder or self.out / "checkpoints"


def record_of(run: RunConfig) -> dict[str, Any]:
    """Plain, JSON-ready tables for a run's folder and its checkpoints, which validate to the same run again."""
    return dump(run) | {"encoders": as_asked(run.encoders)}


def identity_of(
    run: RunConfig, dataset: Dataset, encoders: Encoders, terms: Vocabulary | None = None
) -> dict[str, Any]:
    """What must not change between two sittings of one run: data, frozen encoders and their limits, model, seed, and of
    a model that reads GO terms which these are."""
    tree, spec = dump(run), encoders.spec()
    plan, model = tree["data"]["plan"], tree["model"]
    if plan["relatives"] == 1:  # as in runs begun before there was a choice
        del plan["relatives"]
    if model.get("same_residues") is False:
        del model["same_residues"]
    known = {} if terms is None else {"terms": {"count": len(terms), "sha256": terms.sha256}}
    return {
        **known,
        "data": {"name": dataset.manifest["name"], "manifest_sha256": dataset.sha256},
        "encoders": encoders.identity(),
        "limits": {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in ("tokenize", "terms")},
        "model": model,
        "plan": plan,
        "seed": run.seed,
    }


def check_identity(found: Checkpoint, identity: dict[str, Any]) -> None:
    """Raises ValueError, with every value that differs, where the checkpoint is of another run."""
    stored = found.state["identity"]
    was, now = ({name: _essence(name, tree.get(name)) for name in identity} for tree in (stored, identity))
    changes = [each for each in _changes(was, now) if each[1] is not None or not each[0].endswith(".features")]
    if changes:  # runs begun before encoders' settings had a name have none to compare
        names = dict.fromkeys(place.partition(".")[0] for place, _, _ in changes)
        raise ValueError(
            f"{found.path.parent.parent} was trained with another {', '.join(names)}: "
            + "; ".join(f"{place} was {_shown(was)}, is {_shown(now)}" for place, was, now in changes)
            + ". Give the original configuration, or another `out` for a new run."
        )


def _shown(value: Any) -> str:
    """Hashes by their first figures."""
    hashed = isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")
    return f"sha256 {value[:12]}…" if hashed else repr(value)


def _changes(was: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(place, was, is) of every value that differs between two trees."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted(was.keys() | now.keys()):
            yield from _changes(was.get(name), now.get(name), f"{place}.{name}" if place else name)
    elif was != now:
        yield place, was, now


def _essence(name: str, value: Any) -> Any:
    """What of an identity must be equal: of encoders the weights, wherever they lie now, and what else decides."""
    if name == "encoders" and isinstance(value, dict):
        compared = ("sha256", "features")
        return {modality: {key: one[key] for key in compared if key in one} for modality, one in value.items()}
    return json.loads(json.dumps(value))
