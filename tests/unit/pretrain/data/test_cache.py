"""The cache of a store's files: what comes is verified, what is read stays, and the rest goes when room is needed.

The store is a folder here, which is read by the same calls; `tests/runs/test_streaming.py` has a real one.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pretrain.data.cache
from pretrain.data.cache import PART, Cache, Full, Item, default_folder
from pretrain.data.files import Ahead, Fetcher, Files
from pretrain.places import Place

SIZE = 1000


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "store").mkdir()
    return Place(str(tmp_path / "store"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 3 * SIZE)


@pytest.fixture
def make(place: Place) -> Callable[[int], Item]:
    def put(number: int) -> Item:
        data = bytes([number]) * SIZE
        place.write(f"{number}.tar", data)
        return Item(f"{number}.tar", SIZE, hashlib.sha256(data).hexdigest())

    return put


def read(cache: Cache, place: Place, item: Item) -> bytes:
    descriptor = cache.open(place, item)
    try:
        return os.pread(descriptor, SIZE + 1, 0)
    finally:
        os.close(descriptor)


def held(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.glob("*")} - {"lock"}


def test_what_was_fetched_once_is_not_asked_for_again(cache, place, make):
    item = make(1)
    assert read(cache, place, item) == bytes([1]) * SIZE and held(cache) == {item.sha256}
    place.remove(item.name)
    assert read(cache, place, item) == bytes([1]) * SIZE
    assert read(cache, place, item._replace(bytes=None)) == bytes([1]) * SIZE


def test_what_was_read_least_recently_goes_and_what_is_open_never(cache, place, make):
    items = [make(i) for i in range(6)]
    kept = cache.open(place, items[0])
    for number, item in enumerate(items):
        read(cache, place, item)
        os.utime(cache.folder / item.sha256, ns=(number, number))
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 3 * SIZE
    assert held(cache) == {items[0].sha256, items[4].sha256, items[5].sha256}
    os.close(kept)
    read(cache, place, items[1])
    assert held(cache) == {item.sha256 for item in (items[1], items[4], items[5])}


def test_a_cache_that_is_all_in_use_says_so(cache, place, make, monkeypatch):
    monkeypatch.setattr(pretrain.data.cache, "WAIT", 0.3)
    open_ones = [cache.open(place, make(i)) for i in range(3)]
    with pytest.raises(Full, match=r"no room: 3,000 of its 3,000 bytes are being read.*raise data.cache_gib"):
        cache.open(place, make(3))
    os.close(open_ones.pop())
    os.close(cache.open(place, make(3)))
    for descriptor in open_ones:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("content", "says"), [(b"other" * 200, "its SHA-256 differs"), (b"short", "5 bytes, 1000 in the manifest")]
)
def test_an_object_that_is_not_the_manifests_is_an_error_that_names_it(cache, place, make, content, says):
    item = make(1)
    place.write(item.name, content)
    for _ in range(2):  # it is not taken for the right one the next time, either
        with pytest.raises(
            ValueError, match=rf"store/1.tar is not the file of the manifest \({says}\): it was changed"
        ):
            cache.open(place, item)
    make(1)
    assert read(cache, place, item) == bytes([1]) * SIZE
    place.remove("2.tar")
    with pytest.raises(ValueError, match=r"2.tar is in the manifest but not there"):
        cache.open(place, item._replace(name="2.tar", sha256="0" * 64))


def test_a_name_that_is_no_hash_is_refused(cache, place, make):
    with pytest.raises(ValueError, match="is no SHA-256"):
        cache.open(place, make(1)._replace(sha256="../../escape"))


def test_a_cut_file_is_fetched_again(cache, place, make):
    item = make(1)
    read(cache, place, item)
    os.truncate(cache.folder / item.sha256, 10)
    assert read(cache, place, item) == bytes([1]) * SIZE


def test_what_a_killed_process_left_is_taken_over_or_evicted(cache, place, make):
    items = [make(i) for i in range(4)]
    cache.folder.mkdir()
    for item in items[:2]:
        (cache.folder / (item.sha256 + PART)).write_bytes(b"x" * SIZE)
    assert read(cache, place, items[0]) == bytes([0]) * SIZE
    read(cache, place, items[2])
    read(cache, place, items[3])
    assert items[1].sha256 + PART not in held(cache) and len(held(cache)) <= 3


SHARE = """
import os, sys, time
from pretrain.data import cache
from pretrain.places import Place

count, slow = [0], cache.Place.read
def read(self, *arguments):
    count[0] += 1
    time.sleep(0.02)
    return slow(self, *arguments)

cache.Place.read = read
one, place = cache.Cache(cache.Path(sys.argv[1]), 10**9), Place(sys.argv[2])
for line in sys.argv[3:]:
    name, sha256 = line.split(":")
    descriptor = one.open(place, cache.Item(name, 1000, sha256))
    assert len(os.pread(descriptor, 2000, 0)) == 1000
    os.close(descriptor)
print(count[0])
"""


def test_processes_share_a_cache_and_each_file_is_fetched_by_one(cache, place, make):
    items = [make(i) for i in range(40)]
    told = [f"{item.name}:{item.sha256}" for item in items]
    command = [sys.executable, "-c", SHARE, str(cache.folder), str(place)]
    processes = [subprocess.Popen([*command, *told], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(process.communicate()[0]) for process in processes]
    assert sum(counts) == 40 and held(cache) == {item.sha256 for item in items}


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fetcher_brings_what_comes_next_and_keeps_what_is_open(cache, place, make):
    items = {item.name: item for item in (make(i) for i in range(6))}
    fetcher = Fetcher(Files(place, 9, cache, items))
    fetcher.want(Ahead(("0.tar", "1.tar"), ("2.tar", "3.tar")))
    until(lambda: len(held(cache)) == 3)
    assert held(cache) == {items[f"{i}.tar"].sha256 for i in (0, 1, 2)}  # there is no room for the fourth
    fetcher.want(Ahead(("2.tar",), ("3.tar", "4.tar")))
    until(lambda: items["4.tar"].sha256 in held(cache))
    assert items["2.tar"].sha256 in held(cache)
    place.remove("5.tar")
    fetcher.want(Ahead(("5.tar", "0.tar")))  # what fails is left to whoever reads it
    until(lambda: items["0.tar"].sha256 in held(cache))


def test_the_default_is_below_the_temporary_folder():
    assert str(os.getuid()) in default_folder().name
