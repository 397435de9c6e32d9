"""One rank fails, the others must not wait for it: each learns of it, and says what happened."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrain import checkpoint, distributed
from pretrain.checkpoint import disk
from pretrain.config import load
from pretrain.data.loader import Loader
from pretrain.run import RunConfig
from pretrain.train import train
from tests.ranks.processes import run
from tests.runs.conftest import sample_data as sample_data
from tests.runs.training import SMALL, log
from tests.unit.pretrain.conftest import Trained


def _save(folder: str) -> list[str]:
    """What each of three attempts says: rank 1's disk is full, rank 1 has a bug, all is well."""
    dist.init_process_group("gloo")
    real, said = disk.write, []
    engine: Any = Trained(torch.nn.Linear(3, 2))
    for step, failure in enumerate((OSError(28, "No space left"), ZeroDivisionError("a bug"), None)):

        def write(*arguments: Any, failure: Exception | None = failure) -> None:
            if failure and distributed.rank() == 1:
                raise failure
            real(*arguments)

        disk.write = write
        try:
            checkpoint.save(Path(folder), engine, step, {}, checkpoint.CheckpointConfig())
            said.append("saved")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()
    return said


@pytest.mark.timeout(60)
def test_a_checkpoint_that_one_rank_cannot_write_fails_on_all(tmp_path: Path) -> None:
    zero, one = run(_save, 2, str(tmp_path))
    assert zero[0] == one[0] and "step 0 could not be written: rank 1 of 2: " in zero[0] and "No space left" in zero[0]
    assert zero[1].startswith("Everywhere: ") and "rank 1 of 2: ZeroDivisionError: a bug" in zero[1]
    assert one[1] == "ZeroDivisionError: a bug"
    assert zero[2] == one[2] == "saved"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def _trained(data: str, folder: str) -> list[str]:
    """What ends each of three runs: rank 1 cannot read, in training and in validation; or it reads for very long."""
    real, said = (Loader.steps, Loader.once), []

    def failing(given: Iterator, error: Exception | None) -> Iterator:
        yield next(given)
        if distributed.rank() == 1:
            if error is not None:
                raise error
            time.sleep(6)
        yield from given

    for name, error in (("steps", OSError(5, "the disk is gone")), ("once", ValueError("a bad shard")), ("once", None)):
        Loader.steps, Loader.once = real  # type: ignore[method-assign]
        inner = getattr(Loader, name)
        setattr(Loader, name, lambda self, *given, inner=inner, error=error: failing(inner(self, *given), error))
        settings = [*SMALL, f"data.path={data}", f"out={folder}/{name}-{error is None}", "steps=4", "watch.stuck=2"]
        try:
            train(load(RunConfig, "amma/tiny.toml", [*settings, "validation.every=2", "validation.samples=64"]))
            said.append("")
        except distributed.Everywhere as everywhere:
            said.append(str(everywhere))
    dist.destroy_process_group()
    return said


@pytest.mark.timeout(120)
def test_data_that_one_rank_cannot_read_or_waits_for(sample_data: Path, tmp_path: Path) -> None:
    zero, one = run(_trained, 2, str(sample_data), str(tmp_path))
    assert zero == one
    assert zero[0].startswith("rank 1 of 2: ") and "the disk is gone" in zero[0]
    assert zero[1] == "rank 1 of 2: a bad shard" and zero[2] == ""
    named = [record for record in log(tmp_path / "once-True") if record["event"] == "alarm"]
    assert named and "rank 1 " in named[0]["text"] and "for its data" in named[0]["text"], log(tmp_path / "once-True")
