"""Disks that are full or read-only for real: a small tmpfs, where this user may mount one."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain import checkpoint
from pretrain.checkpoint import Failed, Saved, Writer, folder_of
from tests.runs.faults.crash import KEEP, Made, right


@contextmanager
def mounted(at: Path, size: str = "1m") -> Iterator[Path]:
    """A tmpfs. Raises PermissionError where this user may not mount one."""
    at.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], capture_output=True, text=True
    )
    if done.returncode:
        raise PermissionError(f"mount: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


class Trial:
    """Save on a disk as training does, and look after each save."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer, self.engine = Writer(folder_of(folder), KEEP), Made()

    def save(self) -> tuple[Saved | Failed, float]:
        """One save: what was told of it, and the seconds until it was."""
        self.engine.step += 1
        engine: Any = self.engine
        began = time.perf_counter()
        self.writer.save(engine, engine.step, {"step": engine.step})
        self.writer.settle()
        (told,) = self.writer.news()
        return told, time.perf_counter() - began

    def newest(self) -> int:
        """The step of the newest checkpoint, whose values were looked at."""
        found = checkpoint.latest(self.folder)
        assert found is None or right(found)
        return found.step if found else 0


def full(disk: Path) -> tuple[list[Saved | Failed], list[int], list[float]]:
    """Two saves, one on a full disk, one when there is room again: what was told, the newest after each, seconds."""

    def fill() -> None:
        with (disk / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    return _around(disk, fill, lambda: (disk / "filler").unlink())


def read_only(disk: Path) -> tuple[list[Saved | Failed], list[int], list[float]]:
    """The same with a disk that turns read-only, as a file system does that has found an error."""

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

    return _around(disk, lambda: remount("ro"), lambda: remount("rw"))


def _around(disk: Path, begin: Any, end: Any) -> tuple[list[Saved | Failed], list[int], list[float]]:
    trial, told, newest, seconds = Trial(disk / "checkpoints"), [], [], []
    for change in (None, None, begin, end):
        if change:
            change()
        said, took = trial.save()
        told.append(said)
        newest.append(trial.newest())
        seconds.append(took)
    trial.writer.close()
    return told, newest, seconds
