"""Which checkpoints stay, and what a failed one leaves. Sharding, resuming and verification: tests/ranks."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint import CheckpointConfig, Saved, Writer, committed, disk, folder_of, latest, save, verify
from pretrain.checkpoint.folders import Bucket
from pretrain.distributed import Everywhere
from pretrain.places import Place
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
        with pytest.raises(Everywhere, match=r"step 2 could not be written: .*No space left.*rank-00000"):
            save(tmp_path, engine, 2, {}, CheckpointConfig())
    found = latest(tmp_path)
    assert found is not None and found.step == 1
    save(tmp_path, engine, 3, {}, CheckpointConfig())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_files_are_as_open_as_their_folder(tmp_path: Path, engine: Any) -> None:
    path = save(tmp_path, engine, 1, {}, CheckpointConfig())
    assert {file.stat().st_mode & 0o666 for file in path.iterdir()} == {path.stat().st_mode & 0o666}


def test_the_best_stays_however_old(tmp_path: Path, engine: Any) -> None:
    writer = Writer(folder_of(tmp_path), CheckpointConfig(keep=1))
    for step in (1, 2, 3, 4):
        writer.save(engine, step, {}, best=2)
    writer.settle(final=True)
    writer.close()
    assert _steps(tmp_path) == [2, 4]
    told = [each for each in writer.news() if isinstance(each, Saved)]
    assert [each.step for each in told] == [1, 2, 3, 4] and all(each.blocked <= each.seconds for each in told)


def test_what_is_saved_is_the_state_of_its_step(tmp_path: Path, engine: Any) -> None:
    """Training goes on while a checkpoint is written, and must not reach into it."""
    writer = Writer(folder_of(tmp_path), CheckpointConfig())
    weight, state = engine.parameters["weight"], {"guard": {"bad": [7]}}
    with torch.no_grad():
        weight.fill_(1.0)
        writer.save(engine, 1, state)
        weight.fill_(2.0)
        state["guard"]["bad"].append(8)
    writer.settle(final=True)
    writer.close()
    found = latest(tmp_path)
    assert found is not None and found.state == {"guard": {"bad": [7]}}
    assert torch.equal(found.weights()["weight"], torch.ones_like(weight))


def test_some_failures_in_a_row_are_told_and_too_many_end_the_run(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(folder_of(tmp_path), CheckpointConfig(failures=3))
    real, full = disk.write, [False]

    def write(*arguments: Any) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(disk, "write", write)
    for step, fails in enumerate((False, True, True, False, True, True), 1):
        writer.settle()
        full[0] = fails
        writer.save(engine, step, {})
    writer.settle()  # the second failure after the one that was well
    told = writer.news()
    assert [(type(each).__name__, each.step) for each in told] == [
        ("Saved", 1), ("Failed", 2), ("Failed", 3), ("Saved", 4), ("Failed", 5), ("Failed", 6)
    ]  # fmt: skip
    writer.save(engine, 7, {})
    with pytest.raises(
        Everywhere, match=r"step 7 could not be written: .*No space left.*Earlier ones are as they were"
    ):
        writer.settle()
    writer.close()
    assert _steps(tmp_path) == [1, 4] and not list(tmp_path.glob(".step-*"))


class TestBucket:
    """Where there is no rename: fsspec's own memory stands for a store (a real one: tests/runs)."""

    @pytest.fixture
    def bucket(self, tmp_path: Path) -> Iterator[Bucket]:
        place = Place(f"memory://{tmp_path.name}")
        yield Bucket(place, tmp_path / "scratch")
        place.remove()

    def _save(self, bucket: Bucket, engine: Any, *steps: int, **config: Any) -> None:
        writer = Writer(bucket, CheckpointConfig(**config))
        for step in steps:
            writer.save(engine, step, {"step": step})
        writer.settle(final=True)
        writer.close()

    def test_it_comes_back_as_it_was(self, bucket: Bucket, engine: Any) -> None:
        self._save(bucket, engine, 1, 2, 3, keep=2)
        assert bucket.steps() == [2, 3]
        found = latest(bucket)
        assert found is not None and found.state == {"step": 3}
        assert all(torch.equal(value, engine.parameters[name]) for name, value in found.weights().items())
        shutil.rmtree(bucket.scratch)
        assert latest(bucket) is not None

    def test_what_was_not_committed_is_none_and_goes(self, bucket: Bucket, engine: Any) -> None:
        self._save(bucket, engine, 1)
        bucket.begin(2, "interrupted")
        bucket.write(2, "interrupted", "rank-00000.safetensors", [b"half"])
        found = latest(bucket)
        assert bucket.steps() == [1] and found is not None and found.step == 1
        self._save(bucket, engine, 3)
        assert not bucket.place.list("step-00000002")

    @pytest.mark.parametrize("damage", [b"", b"{", b'{"format": 1}', b'{"format": 9, "files": {}}'])
    def test_a_torn_commit_is_passed_over_and_replaced(self, bucket: Bucket, engine: Any, damage: bytes) -> None:
        self._save(bucket, engine, 1, 2)
        bucket.place.write("step-00000002/COMMIT.json", damage)
        found = latest(bucket)
        assert found is not None and found.step == 1
        self._save(bucket, engine, 2)
        found = latest(bucket)
        assert found is not None and found.step == 2

    def test_a_changed_file_is_found(self, bucket: Bucket, engine: Any, caplog: pytest.LogCaptureFixture) -> None:
        self._save(bucket, engine, 1, 2)
        (name,) = bucket.place.find("step-00000002/*/rank-00000.safetensors")
        data = bytearray(bucket.place.read(name))
        data[-1] ^= 1
        bucket.place.write(name, bytes(data))
        found = latest(bucket)
        assert found is not None and found.step == 1 and "does not match its committed SHA-256" in caplog.text

    def test_hosts_that_share_a_disk_fetch_into_one_folder(self, bucket: Bucket, engine: Any) -> None:
        self._save(bucket, engine, 1)
        other, seen = Bucket(bucket.place, bucket.scratch), list[list[str]]()

        class Slow(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                seen.append(verify(other.local(1)))  # what the other reads while this one's file is on its way
                return super().read(size)

        class Meanwhile(Place):
            def open(self, name: str) -> Any:
                other.fetch(1)
                return Slow(self.read(name))

        mine = Bucket(Meanwhile(bucket.place.url), bucket.scratch)
        mine.fetch(1)
        assert seen and not any(seen) and not verify(mine.local(1))
        assert [path.name for path in bucket.scratch.iterdir()] == ["step-00000001"]
