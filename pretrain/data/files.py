"""Files of a data set by name, here or on a store: what a process has open, read by offset."""

import os
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from threading import Event, Thread

from pretrain.data.cache import Cache, Full, Item
from pretrain.places import Place


class Files:
    """The files of a place that a process has open, the most recently read `limit`. Reads share no file position.

    cache: where those of a store are brought; items: what the manifest says of each, needed there and only there.
    """

    def __init__(
        self, place: Place, limit: int, cache: Cache | None = None, items: dict[str, Item] | None = None
    ) -> None:
        self.place, self.cache, self.items, self._limit = place, cache, items if items is not None else {}, limit
        self._open: OrderedDict[str, File] = OrderedDict()

    def __reduce__(self) -> tuple[type["Files"], tuple[Place, int, Cache | None, dict[str, Item]]]:
        return Files, (self.place, self._limit, self.cache, self.items)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer where the file ends. Raises ValueError where the file cannot be opened any more."""
        file = self._open.get(path)
        if file is None:
            file = self._open[path] = self.open(path)
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(path)
        return os.pread(file.descriptor, size, offset)

    def whole(self, path: str) -> bytes:
        """A small file's content; it does not stay open."""
        file = self.open(path)
        return os.pread(file.descriptor, os.fstat(file.descriptor).st_size, 0)

    def open(self, path: str) -> "File":
        """By itself, for whoever keeps it; of a store, the cache keeps the file as long. Raises as `read` does."""
        if self.cache is not None:
            return File(self.cache.open(_here(self.place), self.items[path]))
        assert self.place.local is not None, "what is not local has a cache"
        try:
            return File(os.open(self.place.local / path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise ValueError(
                f"{self.place / path} was there when the data set was opened, and cannot be read now: {error}"
            ) from error

    def holds(self, path: str) -> bool:
        """Whether the cache has the file now."""
        return self.cache is not None and self.cache.holds(self.items[path])

    def retain(self, paths: Collection[str]) -> None:
        """Close all others, so that a cache can let go of them."""
        for path in self._open.keys() - paths:
            del self._open[path]


class File:
    """A descriptor that closes with its last reference."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True)
class Ahead:
    """What a step's reader needs to know of the steps after it. open: shards of the open windows; next: those of the
    windows after them, the first to open first."""

    open: tuple[str, ...] = ()
    next: tuple[str, ...] = ()


@dataclass
class _Wish:
    """What a fetcher's thread shall do; ahead: None ends it."""

    ahead: Ahead | None = None
    changed: Event = field(default_factory=Event)


class Fetcher:
    """A thread that keeps the open windows' files in the cache and brings the next ones before they are needed.

    It lives where samples are read, in each worker, or in the training process where there are no workers: so nothing
    forks beside it. What another process is bringing it leaves alone, so that several bring different files. It is an
    optimisation: what it fails at is found again, and told, by whoever reads the file.
    """

    def __init__(self, files: Files) -> None:
        self._wish = _Wish()
        Thread(target=_fetch, args=(files, self._wish), name="fetcher", daemon=True).start()

    def want(self, ahead: Ahead | None) -> None:
        self._wish.ahead = ahead
        self._wish.changed.set()

    def __del__(self) -> None:
        self.want(None)


def _fetch(files: Files, wish: _Wish) -> None:
    held: dict[str, File] = {}
    while wish.changed.wait():
        wish.changed.clear()
        if (ahead := wish.ahead) is None:
            return
        for path in held.keys() - set(ahead.open):
            del held[path]
        wanted = [files.items[path] for path in (*ahead.open, *ahead.next)]
        for number, item in enumerate(wanted):
            if wish.changed.is_set():
                break
            try:
                _bring(files, item, wanted[:number])
                if number < len(ahead.open) and item.name not in held and files.holds(item.name):
                    held[item.name] = files.open(item.name)
            except Full:
                break
            except (ValueError, OSError):
                continue


def _bring(files: Files, item: Item, before: list[Item]) -> None:
    """Have a file in the cache, unless another process is bringing it or what comes `before` would have to go."""
    assert files.cache is not None
    if not files.holds(item.name):
        files.cache.fetch(_here(files.place), item, before)


_places: dict[tuple[int, str], Place] = {}


def _here(place: Place) -> Place:
    """The place with a connection of this process: one that a fork has brought along does not work."""
    return _places.setdefault((os.getpid(), place.url), Place(place.url))
