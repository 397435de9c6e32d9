"""Every model goes on to the bit where a checkpoint left it, in other processes: losses, weights, moments, buffers."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain import checkpoint, distributed
from pretrain.engine import Engine, EngineConfig, OptimizerConfig, start
from tests.models import EACH, batch_of, build, sample
from tests.ranks.processes import run

PROTEINS, HALF, LAST = 4, 2, 4
pytestmark = pytest.mark.timeout(600)  # one fixture runs all models


def _course(folder: Path, name: str, first: int, last: int) -> dict:
    """Steps `first` to `last` from what the folder holds, and saved; what each told, and all that is saved."""
    config = EngineConfig.model_validate({"stage": 2, "precision": "fp32"})
    device, (model, encoders), saved = start(config), build(name), checkpoint.latest(folder)
    if saved:
        saved.load_model(model)
    engine = Engine(model, config, OptimizerConfig(), device)
    if saved:
        saved.load_engine(engine)
    rank, world = distributed.rank(), distributed.world()
    mine, told = list(range(PROTEINS * rank // world, PROTEINS * (rank + 1) // world)), []
    for step in range(first, last):
        batch = batch_of([sample(i, *model.modalities) for i in mine], encoders, step, mine)
        result = engine.step([batch], encoders, 1e-3)
        told.append(result.losses | {"norm": result.gradient_norm})
    path = checkpoint.save(folder, engine, last, {}, checkpoint.CheckpointConfig(every=1, keep=2))
    engine.close()
    state = checkpoint.Checkpoint.read(path)
    held = {
        f"{parameter}.{kind}": state.slice(checkpoint.Fragment(parameter, 0, torch.Size(entry["shape"]).numel()), kind)
        for parameter, entry in state.parameters.items()
        for kind in checkpoint.STATES
    }
    return {"told": told, "held": held | state.buffers()}


def _whole_and_half(folder: str) -> dict[str, dict]:
    found = {name: _course(Path(folder) / name / "whole", name, 0, LAST) for name in sorted(EACH)}
    for name in sorted(EACH):
        _course(Path(folder) / name / "parts", name, 0, HALF)
    dist.destroy_process_group()
    return found


def _rest(folder: str) -> dict[str, dict]:
    found = {name: _course(Path(folder) / name / "parts", name, HALF, LAST) for name in sorted(EACH)}
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], list[dict]]:
    """By rank: every model's whole course, and the second half of one that other processes began."""
    folder = str(tmp_path_factory.mktemp("resume"))
    return run(_whole_and_half, 2, folder), run(_rest, 2, folder)


@pytest.mark.parametrize("name", sorted(EACH))
def test_what_resumes_is_what_was_never_stopped(found: tuple[list[dict], list[dict]], name: str) -> None:
    for whole, rest in zip(*found, strict=True):
        want, got = whole[name], rest[name]
        assert got["told"] == want["told"][HALF:] and len(got["told"]) == LAST - HALF
        assert any(len(step) > 1 for step in got["told"])
        assert want["held"].keys() == got["held"].keys() and len(want["held"]) > 3
        for what, value in want["held"].items():
            assert torch.equal(value, got["held"][what]), what
