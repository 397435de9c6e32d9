"""Which checkpoints stay, and what a failed one leaves. Sharding, resuming and verification: tests/ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint import CheckpointConfig, committed, disk, latest, save
from pretrain.distributed import Everywhere
from tests.unit.pretrain.conftest import Trained


@pytest.fixture
def engine() -> Any:
    return Trained(torch.nn.Linear(3, 2))


def _steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in committed(folder)]


def test_the_newest_stay_and_the_milestones(tmp_path: Path, engine: Any) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, engine, step, {}, CheckpointConfig(keep=2, keep_every=20))
    assert _steps(tmp_path) == [20, 40, 50]


def test_a_broken_newer_one_does_not_displace_what_was_just_saved(tmp_path: Path, engine: Any) -> None:
    for step in (20, 40):
        save(tmp_path, engine, step, {}, CheckpointConfig(keep=2))
    (tmp_path / "step-00000040" / "COMMIT.json").unlink()
    save(tmp_path, engine, 30, {}, CheckpointConfig(keep=1))
    assert _steps(tmp_path) == [30, 40]
    found = latest(tmp_path)
    assert found is not None and found.step == 30


def test_what_cannot_be_written_is_said_and_leaves_the_older_one(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, engine, 1, {}, CheckpointConfig())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        with pytest.raises(Everywhere, match=r"step 2 could not be written: .*rank-00000.*No space left"):
            save(tmp_path, engine, 2, {}, CheckpointConfig())
    found = latest(tmp_path)
    assert found is not None and found.step == 1
    save(tmp_path, engine, 3, {}, CheckpointConfig())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_files_are_as_open_as_their_folder(tmp_path: Path, engine: Any) -> None:
    path = save(tmp_path, engine, 1, {}, CheckpointConfig())
    assert {file.stat().st_mode & 0o666 for file in path.iterdir()} == {path.stat().st_mode & 0o666}
