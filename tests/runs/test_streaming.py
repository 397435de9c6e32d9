"""Training from an S3 server that is really there: the batches and losses are those of a disk."""

import contextlib
import copy
import fcntl
import hashlib
import json
import multiprocessing
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.batch import Batch
from pretrain.data.cache import Cache
from pretrain.data.dataset import Dataset
from pretrain.data.draw import InputSpec
from pretrain.data.draw import size as size_of
from pretrain.data.features import Layout, about, checksum, path_of
from pretrain.data.loader import Loader, _each
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.data.stored import choose
from pretrain.places import Place
from pretrain.sample import Modality, Sample
from tests.runs.store import Server
from tests.runs.training import finish, losses, start, train
from tests.unit.datasets import mixed, write

SPEC = InputSpec(64, None, None, 16, 8, 4, 30, 2, (Modality.SEQUENCE, Modality.STRUCTURE, Modality.IMAGE))
PARTITIONS = 12
STEPS = 12  # of 15 of 90 samples: two cycles of every group
ROOMY = 1 << 30
ENCODER, WIDTH = "gearnet-0123456789abcdef", 3


def upload(folder: Path, url: str) -> str:
    place = Place(url)
    for path in folder.rglob("*"):
        if path.is_file():
            place.write(path.relative_to(folder).as_posix(), path.read_bytes())
    return url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits: dict[str, Iterable[Sample]] = {"train": mixed(90), "valid": mixed(20, "V")}
    return write(tmp_path_factory.mktemp("streamed"), splits, PARTITIONS)


@pytest.fixture
def url(server: Server, folder: Path, request: pytest.FixtureRequest) -> str:
    return upload(folder, f"s3://bucket/{request.node.name.replace('[', '-').rstrip(']')}")


def load(dataset: Dataset, rank: int = 0, world: int = 1, workers: int = 0, caches: int = 1) -> Loader:
    plan = Plan(dataset, "train", PlanConfig(samples=15, lanes=3, window=1), 0, SPEC)
    return Loader(dataset, plan, SPEC, rank, world, 2, workers, caches=caches)


def steps(loader: Loader, count: int = STEPS, position: Position | None = None) -> Iterator[list[torch.Tensor]]:
    """What each step's batches are made of."""
    for step in islice(loader.steps(position or Position()), count):
        assert not step.skipped
        yield [tensor for batch in step.batches for tensor in tensors(batch)]


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _each(batch, lambda value: found.append(value) if isinstance(value, torch.Tensor) else None)
    return found


def same(got: list[list[torch.Tensor]], want: list[list[torch.Tensor]]) -> bool:
    return len(got) == len(want) and all(
        torch.equal(a, b) for some, others in zip(got, want, strict=True) for a, b in zip(some, others, strict=True)
    )


def size(cache: Cache) -> int:
    """Counted with the cache's lock held: else one file may go and another come between two looks."""
    total = 0
    cache.folder.mkdir(parents=True, exist_ok=True)
    with open(cache.folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in cache.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # a `.part` file that is given up
                total += path.stat().st_size
    return total


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_disk_in_a_bounded_cache(folder: Path, url: str, tmp_path: Path, workers: int) -> None:
    local = list(steps(load(Dataset.open(folder), workers=workers)))
    whole = sum(path.stat().st_size for path in folder.glob("train/*/*"))
    cache = Cache(tmp_path / "cache", whole * 7 // 10)
    remote, sizes = [], []
    for each in steps(load(Dataset.open(url, cache), workers=workers)):
        remote.append(each)
        sizes.append(size(cache))
    assert same(remote, local)
    assert max(sizes) <= cache.limit


def test_hosts_that_share_the_lanes_out_fetch_their_own_shards_only(folder: Path, url: str, tmp_path: Path) -> None:
    shards = {shard for group in load(Dataset.open(folder)).plan.groups.values() for shard in group.shards}
    fetched = []
    for rank in range(3):
        cache = Cache(tmp_path / str(rank), ROOMY)
        loader = load(Dataset.open(url, cache), rank, 3, caches=3)
        seen = list(islice(loader.steps(Position()), STEPS))
        mine = {loader.plan.groups[e.group].shard(e.index) for step in seen for e in step.plan.cut(3, 2, 3)[rank][0]}
        held = {name for name, item in loader.plan.dataset.files.items.items() if cache.holds(item)}
        assert mine <= held & shards
        fetched.append(held & shards)
    assert not fetched[0] & fetched[1] and not fetched[0] & fetched[2] and not fetched[1] & fetched[2]
    assert set.union(*fetched) == shards


@pytest.mark.parametrize("workers", [0, 1])
def test_an_object_that_changed_stops_the_run_and_is_named(url: str, tmp_path: Path, workers: int) -> None:
    dataset = Dataset.open(url, Cache(tmp_path / "cache", ROOMY))
    place = Place(url)
    names = place.find("train/*/*.tar")
    for name in names:
        turned = bytearray(place.read(name))
        turned[600] ^= 1
        place.write(name, bytes(turned))
    with pytest.raises(ValueError, match=rf"{url}/train/.*\.tar is not the file of the manifest \(its SHA-256 differs"):
        list(steps(load(dataset, workers=workers)))
    name = names[-1]
    data = place.read(name)
    place.write(name, data[:-512])
    with pytest.raises(ValueError, match=rf"{url}/{name}: {len(data) - 512} bytes, {len(data)} in the manifest"):
        Dataset.open(url, Cache(tmp_path / "cache", ROOMY))
    place.remove(name)
    with pytest.raises(ValueError, match=rf"{url}/{name} is in the manifest but not in the folder"):
        Dataset.open(url, Cache(tmp_path / "cache", ROOMY))


def test_what_is_no_data_set_on_a_store_is_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/nothing has no manifest.json"):
        Dataset.open("s3://bucket/nothing", Cache(tmp_path, ROOMY))


def test_a_cache_too_small_for_the_open_windows_says_so(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.data.cache.WAIT", 0.5)
    with pytest.raises(ValueError, match=r"no room: .* raise data.cache_gib"):
        list(steps(load(Dataset.open(url, Cache(tmp_path / "cache", 60_000)))))


def test_a_store_that_is_restarted_costs_time_only(server: Server, folder: Path, url: str, tmp_path: Path) -> None:
    local = list(steps(load(Dataset.open(folder))))
    dataset = Dataset.open(url, Cache(tmp_path / "cache", ROOMY))

    def restart() -> None:
        time.sleep(2)
        server.start()

    remote: list[list[torch.Tensor]] = []
    thread = threading.Thread(target=restart)
    for number, each in enumerate(steps(load(dataset, workers=1))):
        remote.append(each)
        if number == 0:
            for path in (tmp_path / "cache").glob("?" * 64):  # what was brought ahead: it has to be asked for again
                path.unlink(missing_ok=True)
            server.kill()
            thread.start()
    thread.join()
    server.ready()
    assert same(remote, local)


def consume(dataset: Dataset, rank: int, out: Path) -> None:
    torch.save(list(steps(load(dataset, rank, 2))), out)


def test_processes_of_a_host_share_a_cache(folder: Path, url: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", sum(path.stat().st_size for path in folder.glob("train/*/*")) * 7 // 10)
    dataset = Dataset.open(url, cache)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=consume, args=(copy.deepcopy(dataset), rank, tmp_path / str(rank))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert size(cache) <= cache.limit
        time.sleep(0.05)
    for rank, process in enumerate(processes):
        assert process.exitcode == 0
        local = list(steps(load(Dataset.open(folder), rank, 2)))
        assert same(torch.load(tmp_path / str(rank), weights_only=True), local)


def encode(folder: Path) -> Path:
    """Features of every structure, made up, in the format of stored ones."""
    dataset, shards, random = Dataset.open(folder), {}, np.random.default_rng(0)
    for split in dataset.splits:
        for group in dataset.groups(split).values():
            for number, shard in enumerate(group.shards if Modality.STRUCTURE in group.modalities else ()):
                first, stop = group.starts[number : number + 2].tolist()
                samples = [dataset.read(split, group.name, i) for i in range(first, stop)]
                counts = [len(sample.structures) for sample in samples]
                places = [(i, k) for i, count in enumerate(counts) for k in range(count)]
                sizes = [size_of(samples[i], Modality.STRUCTURE, k, SPEC) for i, k in places]
                rows = [random.integers(0, 1 << 14, (n, WIDTH), np.uint16).tobytes() for n in sizes]
                layout = Layout.of(
                    len(samples), len(places), sum(sizes), WIDTH, about(ENCODER, Modality.STRUCTURE, shard, "")
                )
                crc = [checksum(i, k, 0, each) for (i, k), each in zip(places, rows, strict=True)]
                starts = np.cumsum([0, *counts], dtype="<i8"), np.cumsum([0, *sizes], dtype="<i8")
                marks = np.array(crc, "<u4"), np.zeros(len(crc), "<u2")
                data = layout.header + b"".join(table.tobytes() for table in (*starts, *marks)) + b"".join(rows)
                (folder / path_of(ENCODER, shard)).parent.mkdir(parents=True, exist_ok=True)
                (folder / path_of(ENCODER, shard)).write_bytes(data)
                shards[shard] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    summary = {
        "format": 1, "encoder": {"features": ENCODER}, "width": WIDTH, "shards": shards,
        "dataset": {"manifest_sha256": dataset.sha256},
    }  # fmt: skip
    (folder / "features" / ENCODER / "features.json").write_text(json.dumps(summary))
    return folder


def test_stored_features_are_read_from_a_store_too(server: Server, folder: Path, tmp_path: Path) -> None:
    data = encode(Path(shutil.copytree(folder, tmp_path / "encoded")))
    url = upload(data, "s3://bucket/encoded")

    def run(dataset: Dataset, workers: int) -> list[list[torch.Tensor]]:
        stored = choose(dataset, {Modality.STRUCTURE: (ENCODER, WIDTH)}, ["train"], "stored")
        plan = Plan(dataset, "train", PlanConfig(samples=15, lanes=3, window=1), 0, SPEC)
        return list(steps(Loader(dataset, plan, SPEC, 0, 1, 2, workers, stored=stored), 6))

    local = run(Dataset.open(data), 0)
    assert any(tensor.dtype == torch.bfloat16 and len(tensor) for tensor in local[0])
    for workers in (0, 1):
        cache = Cache(tmp_path / f"cache{workers}", ROOMY)
        assert same(run(Dataset.open(url, cache), workers), local)
    place = Place(url)
    names = place.find(f"features/{ENCODER}/train/*/*")
    for name in names:
        place.write(name, place.read(name)[:-1] + b"?")
    with pytest.raises(ValueError, match=r"features/.*safetensors is not the file of the manifest"):
        run(Dataset.open(url, Cache(tmp_path / "other", ROOMY)), 0)
    place.remove(names[-1])
    with pytest.raises(ValueError, match=r"safetensors is missing, features.json names it"):
        run(Dataset.open(url, Cache(tmp_path / "other", ROOMY)), 0)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_on_a_store_has_the_losses_of_one_on_a_disk(
    server: Server, sample_data: Path, tmp_path: Path, ranks: int
) -> None:
    url = upload(sample_data, f"s3://bucket/trained{ranks}")
    settings = ("data.plan.lanes=4", "steps=8", "validation.every=8", "data.workers=1", f"data.cache={tmp_path}/cache")
    for name, data in (("local", str(sample_data)), ("remote", url)):
        train(sample_data, tmp_path / name, ranks, f"data.path={data}", *settings)
    assert len(losses(tmp_path / "local")) == 8 and losses(tmp_path / "remote") == losses(tmp_path / "local")
    place, out = Place(url), tmp_path / "changed"
    for name in place.find("*/*/*.tar"):
        place.write(name, bytes(place.stat(name).bytes))
    changed = (f"data.path={url}", *settings, f"data.cache={tmp_path}/other")
    finish(start(sample_data, out, ranks, *changed), out, expect=2)
    said = out.with_suffix(".txt").read_text()
    assert "is not the file of the manifest (its SHA-256 differs)" in said and "Traceback" not in said
