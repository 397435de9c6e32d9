"""Every act on a disk that a checkpoint consists of, one small function each.

What can be interrupted or can fail is here and nowhere else, so that tests can do both before and after each act.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CHUNK = 8 << 20  # bytes written and hashed at once


@dataclass(frozen=True)
class Written:
    """A file as COMMIT.json names it."""

    bytes: int
    sha256: str


def write_file(path: Path, parts: Iterable[Any]) -> Written:
    """Write `parts` (bytes, or arrays' memory) end to end, through to the disk.

    The hash is of what was meant, taken on the way: a byte that the disk loses is then found when the file is read.
    """
    digest, size = hashlib.sha256(), 0
    file = create(path)
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), CHUNK):
                chunk = view[start : start + CHUNK]
                digest.update(chunk)
                write(file, chunk)
            size += len(view)
        sync(file)
    except OSError as error:  # the system does not say which file was being written
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        file.close()
    return Written(size, digest.hexdigest())


def hashed(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def create(path: Path) -> IO[bytes]:
    return open(path, "xb", buffering=0)


def write(file: IO[bytes], data: memoryview) -> None:
    while len(data):  # the system may take less than it is given
        data = data[file.write(data) or 0 :]


def sync(file: IO[bytes]) -> None:
    os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def sync_folder(path: Path) -> None:
    """Make names in a folder last: a rename is on the disk only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, to: Path) -> None:
    os.rename(path, to)


def remove_file(path: Path) -> None:
    """One that is not there is none to remove."""
    path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """A folder and all in it; one that is not there is none to remove."""
    shutil.rmtree(path, ignore_errors=True)
