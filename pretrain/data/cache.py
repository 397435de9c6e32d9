"""A store's files on the local disk: fetched once for all processes of a host, verified, bounded.

A cached file's name is its SHA-256, which it is given once its content has been found to have it: that makes it
trusted afterwards, by name and size. Who fetches holds a lock (flock) on the `.part` file, and others that want the
same file wait for it; who reads holds a shared lock on the file itself, and what is locked is never evicted. The system
lets go of locks when a process dies, so nothing is left to clean up but `.part` files, which the next one takes over.
"""

import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pretrain.places import BLOCK, Place

PART = ".part"
SHA256 = re.compile("[0-9a-f]{64}")
GIB = 1 << 30
CACHE_GIB = 50.0  # by default
WAIT = 60.0  # seconds that a reader waits for room: others let go of a window's files when they get to the next one
PAUSE = 0.05


class Item(NamedTuple):
    """A file of a place as its manifest has it; bytes: None where only the hash is known."""

    name: str
    bytes: int | None
    sha256: str


class Full(ValueError):
    """There is no room: everything in the cache is being read."""


def default_folder() -> Path:
    """Below the system's temporary folder, which is local to a host where a home directory may not be."""
    return Path(tempfile.gettempdir()) / f"fourfold-cache-{os.getuid()}"


@dataclass(frozen=True)
class Cache:
    """folder: on a local disk, of this user alone; shared by whatever processes name it. limit: bytes in it."""

    folder: Path
    limit: int

    def open(self, place: Place, item: Item) -> int:
        """A descriptor of the file, fetched if it is not here, which keeps it from eviction until it is closed.

        Raises ValueError for an object that is gone or is not that of the manifest, and Full.
        """
        while True:
            try:
                descriptor = os.open(self._path(item), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self.fetch(place, item)
                continue
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            found = os.fstat(descriptor)
            if found.st_nlink and item.bytes in (None, found.st_size):
                os.utime(descriptor)
                return descriptor
            os.close(descriptor)  # evicted just now, or cut short by whatever else writes there
            if found.st_nlink:
                self._path(item).unlink(missing_ok=True)

    def holds(self, item: Item) -> bool:
        return self._path(item).exists()

    def fetch(self, place: Place, item: Item, spare: Collection[Item] | None = None) -> None:
        """Have the file here.

        spare: asks for it to be brought ahead: these files are not evicted for it, and nothing is waited for, another
        process that is fetching it neither. Who reads waits, also a while for room. A store that is away is waited for
        as places do. Raises as `open` does.
        """
        folder = self._path(item).parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid():
            raise ValueError(f"{folder} belongs to another user; set data.cache to a folder of your own")
        part = self._locked(item, wait=spare is None)
        if part is None:
            return
        try:
            if not self.holds(item):
                self._download(place, item, part, spare)
        except BaseException:
            self._path(item).with_suffix(PART).unlink(missing_ok=True)
            raise
        finally:
            os.close(part)

    def _path(self, item: Item) -> Path:
        if not SHA256.fullmatch(item.sha256):  # it becomes a path
            raise ValueError(f"{item.name}: {item.sha256[:80]!r} in the manifest is no SHA-256; prepare it again")
        return self.folder / item.sha256

    def _locked(self, item: Item, wait: bool) -> int | None:
        """The `.part` file of an item, locked; None where another process has it and is not waited for, or the item
        came meanwhile."""
        path = self._path(item).with_suffix(PART)
        while not self.holds(item):
            part = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if _try_lock(part):
                if (found := _stat(path)) and os.path.samestat(os.fstat(part), found):
                    return part
            elif not wait:
                os.close(part)
                return None
            else:  # no waiting inside flock: once it has its name, a reader may lock the file for as long as it likes
                time.sleep(PAUSE)
            os.close(part)
        return None

    def _download(self, place: Place, item: Item, part: int, spare: Collection[Item] | None) -> None:
        """Fill the `.part` file and give it its name."""
        where = place / item.name
        try:
            size = place.stat(item.name).bytes
        except FileNotFoundError:
            raise ValueError(f"{where} is in the manifest but not there; copy it again, or prepare it again") from None
        if item.bytes not in (None, size):
            raise ValueError(_changed(where, f"{size} bytes, {item.bytes} in the manifest"))
        self._room(size, part, spare)
        digest = hashlib.sha256()
        for begin in range(0, size, BLOCK):
            block = place.read(item.name, begin, min(BLOCK, size - begin))
            digest.update(block)
            os.pwrite(part, block, begin)
        if digest.hexdigest() != item.sha256:
            raise ValueError(_changed(where, "its SHA-256 differs"))
        with self._alone():  # else who counts the cache could see neither name
            self._path(item).with_suffix(PART).rename(self._path(item))

    def _room(self, size: int, part: int, spare: Collection[Item] | None) -> None:
        """Take `size` bytes for the `.part` file; what was read least recently goes, if it must."""
        deadline = time.monotonic() + (WAIT if spare is None else 0)
        spared = {each.sha256 for each in spare or ()}
        while (taken := self._take(size, part, spared)) + size > self.limit:
            if time.monotonic() >= deadline:
                raise Full(
                    f"the cache {self.folder} has no room: {taken:,} of its {self.limit:,} bytes are being read, and "
                    f"{size:,} more are needed; raise data.cache_gib, or lower data.plan.window or data.plan.lanes"
                )
            time.sleep(PAUSE)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process counts, takes or names files meanwhile."""
        with open(self.folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _take(self, size: int, part: int, spared: Collection[str]) -> int:
        """Evict until there is room, and take it; returns the bytes of what is left beside."""
        own = os.fstat(part).st_ino
        with self._alone():
            files = [(path, about) for path in self.folder.iterdir() if path.name != "lock" and (about := _stat(path))]
            total = sum(about.st_size for _, about in files if about.st_ino != own)
            for path, about in sorted(files, key=lambda pair: pair[1].st_mtime_ns):
                if total + size <= self.limit:
                    break
                if about.st_ino != own and path.name not in spared and _evict(path):
                    total -= about.st_size
            if total + size <= self.limit:
                os.ftruncate(part, size)
            return total


def _evict(path: Path) -> bool:
    """Remove a file unless a process holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if free := _try_lock(descriptor):
            path.unlink(missing_ok=True)
        return free
    finally:
        os.close(descriptor)


def _stat(path: Path) -> os.stat_result | None:
    """None for a `.part` file that another process has just removed."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _changed(where: Place, what: str) -> str:
    return (
        f"{where} is not the file of the manifest ({what}): it was changed after the data set was prepared; copy it "
        "again, or prepare the data set again"
    )
