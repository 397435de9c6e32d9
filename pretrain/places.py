"""A folder, here or on any store that fsspec reaches: `Place("/data/mine")`, `Place("s3://bucket/prefix")`.

Files are named relative to it, with `/`. What is written appears under its name whole or not at all: locally by a
rename, on an object store because a put is atomic. Credentials and endpoints come from the environment, as the store's
own library reads them (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …; `FSSPEC_<PROTOCOL>_<OPTION>` for any option).
"""

import hashlib
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar
from uuid import uuid4

BLOCK = 8 << 20  # bytes read at once where a whole file passes through
MANY = 500  # files that are copied at a time
PATIENCE = 120.0  # seconds that a store may be away: a restart, a broken connection
PAUSE = 0.2  # seconds before the second try; each pause is twice the last
SETTINGS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError", "NoRegionError"}
FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)

T = TypeVar("T")


class Damaged(OSError):
    """What was read back after writing is not what was written."""


@dataclass(frozen=True)
class Stat:
    """bytes: the file's size. version: changes when its content may have (time of change, or the store's tag)."""

    bytes: int
    version: str


@dataclass(frozen=True)
class Place:
    """url: a path, or `protocol://…`. Small and picklable: connections are made where it is used.

    A relative path is made absolute here: a worker's current directory is another, and so may ours be later.
    """

    url: str

    def __post_init__(self) -> None:
        if "://" not in self.url and not os.path.isabs(self.url):
            object.__setattr__(self, "url", str(Path(self.url).absolute()))

    @cached_property
    def local(self) -> Path | None:
        """The folder's path, if it is on this machine's file system."""
        if self.url.startswith("file://"):
            return Path(self.url.removeprefix("file://"))
        return None if "://" in self.url else Path(self.url)

    @cached_property
    def _store(self) -> tuple[Any, str]:
        """fsspec's file system, and this folder's path in it. Raises ValueError for a protocol that is not there."""
        import fsspec

        protocol = self.url.partition("://")[0]
        try:
            store, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except TypeError:  # a store that lists nothing ahead does not know the option
            store, path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"{self.url}: {protocol!r} storage cannot be used here ({error}); s3 needs `pip install fourfold[s3]`"
            ) from error
        return store, path.rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.url.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._store[1]}/{name}" if name else self._store[1]

    def find(self, pattern: str) -> list[str]:
        """Names of the files that match, sorted; `**` descends."""
        if self.local is not None:
            return sorted(p.relative_to(self.local).as_posix() for p in self.local.glob(pattern) if p.is_file())
        return sorted(self.stats(pattern))

    def stats(self, pattern: str) -> dict[str, Stat]:
        """The files that match, with what a listing tells of each: on a store none is asked for by itself."""
        if self.local is not None:
            return {name: self.stat(name) for name in self.find(pattern)}
        store, base = self._store
        found = patiently(store.glob, self._path(pattern), detail=True)
        stats = {p[len(base) :].lstrip("/"): _stat(about) for p, about in found.items() if about["type"] == "file"}
        self._listed.update(stats)
        return stats

    @cached_property
    def _listed(self) -> dict[str, Stat]:
        return {}

    def listed(self, name: str) -> Stat:
        """What a listing by this object told of a file, and `stat` of one that none had. For the input of a job: a
        million files are a thousand requests by listings, and a million if each is asked for. Raises FileNotFoundError.
        """
        return self._listed.get(name) or self.stat(name)

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder has this name (asked of the store each time)."""
        if self.local is not None:
            return (self.local / name).exists()
        return bool(patiently(self._store[0].exists, self._path(name)))

    def stat(self, name: str) -> Stat:
        """Raises FileNotFoundError."""
        if self.local is not None:
            found = (self.local / name).stat()
            return Stat(found.st_size, str(found.st_mtime_ns))
        return _stat(patiently(self._store[0].info, self._path(name)))

    def open(self, name: str) -> IO[bytes]:
        """For reading; seekable."""
        if self.local is not None:
            return open(self.local / name, "rb")
        return _Patient(patiently(self._store[0].open, self._path(name), "rb", block_size=BLOCK))  # type: ignore

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        """The file's bytes, or `size` of them from `begin`; fewer where it ends."""
        if self.local is not None:
            with open(self.local / name, "rb") as file:
                file.seek(begin)
                return file.read() if size is None else file.read(size)
        end = None if size is None else begin + size
        return patiently(self._store[0].cat_file, self._path(name), start=begin or None, end=end)

    def write(self, name: str, data: bytes) -> None:
        """Put a small file there; replaces one that is there."""
        if self.local is None:
            patiently(self._store[0].pipe_file, self._path(name), data)
            return
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid4().hex}")
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def create(self, name: str, data: bytes) -> bool:
        """Put a small file there unless the name is taken, in which case False; of two at once, one succeeds."""
        if self.local is not None:
            (self.local / name).parent.mkdir(parents=True, exist_ok=True)
            part = self.local / f".{uuid4().hex}"
            part.write_bytes(data)
            try:
                os.link(part, self.local / name)
            except FileExistsError:
                return False
            finally:
                part.unlink()
            return True
        if self.exists(name):
            return False
        try:
            patiently(self._store[0].pipe_file, self._path(name), data, mode="create", final=OSError)
        except OSError:
            if self.exists(name):  # a refused conditional put is OSError(22) on S3
                return False
            raise
        return True

    def put(self, file: Path, name: str) -> str:
        """Move a local file there (on a store in parts, and read back); returns its SHA-256. Raises Damaged."""
        wanted = sha256(file.open("rb"))
        if self.local is not None:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.stat(file).st_dev == os.stat(target.parent).st_dev:
                file.replace(target)
                return wanted
            part = target.with_name(f".{target.name}.{uuid4().hex}")
            shutil.copyfile(file, part)
            part.replace(target)
            file.unlink()
            return wanted
        patiently(self._store[0].put_file, str(file), self._path(name))
        if (seen := sha256(self.open(name))) != wanted:
            raise Damaged(f"{self / name}: SHA-256 {seen} read back, {wanted} written; look at the store, then go on")
        file.unlink()
        return wanted

    def copy(self, names: Sequence[str], to: "Place") -> None:
        """Copy files to another folder of the same store, which does it by itself: none come here. Raises Damaged."""
        store = self._store[0]
        for begin in range(0, len(names), MANY):
            some = names[begin : begin + MANY]
            patiently(store.copy, [self._path(name) for name in some], [to._path(name) for name in some])
        wanted, seen = self.stats("**/*"), to.stats("**/*")
        if wrong := [name for name in names if name not in seen or seen[name].bytes != wanted[name].bytes]:
            raise Damaged(f"{to / wrong[0]}: not as large as {self / wrong[0]}; look at the store, then go on")

    def list(self, name: str = "") -> list[str]:
        """Names directly below a folder, sorted; none where there is no such folder."""
        if self.local is not None:
            folder = self.local / name
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        try:
            found = patiently(self._store[0].ls, self._path(name), detail=False)
        except FileNotFoundError:
            return []
        return sorted(Path(path.rstrip("/")).name for path in found if path.rstrip("/") != self._path(name))

    def remove(self, name: str = "") -> None:
        """A file, or a folder and everything below it; nothing where there is none."""
        if self.local is not None:
            target = self.local / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target, ignore_errors=True)
            else:
                target.unlink(missing_ok=True)
        elif self.exists(name):
            patiently(self._store[0].rm, self._path(name), recursive=True)


def _stat(about: dict[str, Any]) -> Stat:
    tag = about.get("ETag") or about.get("etag") or about.get("mtime") or about.get("LastModified") or ""
    return Stat(int(about["size"]), str(tag).strip('"'))


def patiently(call: Callable[..., T], *args: Any, final: type[Exception] | tuple = FINAL, **named: Any) -> T:
    """The call's result, tried again for a while when the store fails; `final` errors are answers, no failures."""
    end, pause = time.monotonic() + PATIENCE, PAUSE
    while True:
        try:
            return call(*args, **named)
        except final:
            raise
        except Exception as error:
            if type(error).__name__ in SETTINGS or time.monotonic() + pause > end:
                raise OSError(
                    f"storage cannot be reached ({type(error).__name__}: {error}); are its address and keys set, "
                    "for S3 AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY?"
                ) from error
            if pause == PAUSE:
                print(f"waiting for storage: {type(error).__name__}: {error}", file=sys.stderr)
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


class _Patient(io.RawIOBase):
    """A store's open file, whose reads are tried again: a failed read does not move its position."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        return patiently(self._file.read, -1 if size is None else size)

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def sha256(file: IO[bytes]) -> str:
    """Of a file's whole content; closes it."""
    digest = hashlib.sha256()
    with file:
        for block in blocks(file):
            digest.update(block)
    return digest.hexdigest()


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block
