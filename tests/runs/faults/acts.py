"""Every act of the checkpoint writer on a disk, counted, and ended or refused at the one that is chosen.

Processes end as `kill -9` ends them, between two acts or within one, and as a power cut does: then all that was not
fsynced is gone, too, files' contents, names in folders and renames alike.
"""

import contextlib
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from pretrain.checkpoint import disk

ACTS = ("create", "write", "sync", "make_folder", "sync_folder", "rename", "remove")
CRASHED = 77  # exit code of a process that ended at its act

Where = Literal["before", "within", "after", "power"]
WHERE: tuple[Where, ...] = ("before", "within", "after", "power")


def points(acts: int, count: int | None) -> list[tuple[int, Where]]:
    """Where to end a process: at each of so many acts in every way, or `count` of these (or all), drawn at random."""
    every: list[tuple[int, Where]] = [(at, where) for at in range(acts) for where in WHERE]
    return every if count is None or count >= len(every) else random.Random(count).sample(every, count)


class Cache:
    """What a power cut takes: what was done and not yet fsynced."""

    def __init__(self) -> None:
        self.files: dict[int, int] = {}  # inode → a descriptor of our own
        self.names: dict[tuple[int, str], int] = {}  # (folder's inode, name) → a descriptor of the folder
        self.renames: list[tuple[Path, Path]] = []

    def note(self, act: str, arguments: tuple[Any, ...], result: Any) -> None:
        match act, arguments:
            case "create", (path,):
                folder = os.open(path.parent, os.O_RDONLY)
                self.files[os.fstat(result.fileno()).st_ino] = os.dup(result.fileno())
                self.names[os.fstat(folder).st_ino, path.name] = folder
            case "sync", (file,):
                self.files.pop(os.fstat(file.fileno()).st_ino, None)
            case "sync_folder", (path,):
                folder = path.stat().st_ino
                self.names = {key: each for key, each in self.names.items() if key[0] != folder}
                self.renames = [each for each in self.renames if each[1].parent != path]
            case "rename", (path, to):
                self.renames.append((path, to))

    def lose(self) -> None:
        for descriptor in self.files.values():
            os.ftruncate(descriptor, 0)
        for (_, name), folder in self.names.items():
            with contextlib.suppress(OSError):  # it was removed, or its folder was
                os.unlink(name, dir_fd=folder)
        for path, to in reversed(self.renames):
            with contextlib.suppress(OSError):  # what was renamed was then removed
                os.rename(to, path)


class Fault:
    """Patches `pretrain.checkpoint.disk` in this process. `count` is the number of acts so far.

    at: the act (from 0) at which it happens. what: where to end the process, or the error that the act raises instead.
    """

    def __init__(self, at: int = -1, what: Where | OSError = "before") -> None:
        self.at, self.what, self.count = at, what, 0
        self._lock, self._cache = threading.RLock(), Cache()
        self._real: dict[str, Callable[..., Any]] = {name: getattr(disk, name) for name in ACTS}

    def __enter__(self) -> "Fault":
        for name in ACTS:
            setattr(disk, name, lambda *arguments, name=name: self._act(name, arguments))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(disk, name, real)

    def _act(self, name: str, arguments: tuple[Any, ...]) -> Any:
        with self._lock:  # threads take turns, so that an act's number is its own
            due, self.count = self.count == self.at, self.count + 1
            if due and isinstance(self.what, OSError):
                raise self.what
            if due and self.what in ("before", "within"):
                if self.what == "within":
                    _half(name, arguments)
                os._exit(CRASHED)
            result = self._real[name](*arguments)
            if self.what == "power":
                self._cache.note(name, arguments, result)
            if due:
                if self.what == "power":
                    self._cache.lose()
                os._exit(CRASHED)
            return result


def _half(name: str, arguments: tuple[Any, ...]) -> None:
    """What can be half done: half of the bytes are written, half of a folder's files are removed."""
    if name == "write":
        file: IO[bytes] = arguments[0]
        file.write(arguments[1][: len(arguments[1]) // 2])
    elif name == "remove" and arguments[0].is_dir():
        files = sorted(arguments[0].iterdir())
        for path in files[: (len(files) + 1) // 2]:
            path.unlink()
