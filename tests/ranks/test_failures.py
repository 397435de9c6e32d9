"""One rank fails, the others must not wait for it: each learns of it, and says what happened."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrain import checkpoint, distributed
from pretrain.checkpoint import disk
from tests.ranks.processes import run
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
