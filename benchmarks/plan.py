"""Planning a run over 10^8 samples: opening the data set, resuming anywhere, memory, balance.

python benchmarks/plan.py [--quick] [--json FILE]    --quick: 10^7 samples, fewer places

The data set is simulated: 10^4 shards of 10^4 proteins, whose indices are links to one real index and whose shards are
empty files of the right size, as planning opens none. Lengths are lognormal about Swiss-Prot's mean of 360 residues.
Balance is the busiest rank's tokens in a step over the ranks' mean, averaged over steps of 512 × ranks' worth samples.
"""

import copy
import hashlib
import json
import os
import resource
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import rows

from pretrain.data.dataset import Dataset
from pretrain.data.draw import InputSpec
from pretrain.data.index import MANIFEST, SUFFIX, ShardIndex
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.sample import Modality

EACH = 10_000  # samples of a shard
HOSTS, RANKS = 8, 8
SPEC = InputSpec(1024, None, None, 64, 64, 16, 512, 4, (Modality.SEQUENCE, Modality.STRUCTURE))
LONG = InputSpec(1 << 16, None, None, 64, 64, 16, 1 << 16, 4, (Modality.SEQUENCE,))


def simulate(folder: Path, shards: int) -> Path:
    """A data set of `shards` × EACH samples with one index and one shard, linked."""
    random = np.random.default_rng(0)
    residues = np.exp(random.normal(np.log(360) - 0.32, 0.8, EACH)).clip(30, 5000).astype(np.int32)
    none = np.zeros(EACH, np.int32)
    keys = tuple(f"A0A{i:07d}" for i in range(EACH))
    offset = np.arange(EACH, dtype=np.int64) * 4096
    crc, facets = np.zeros(EACH, np.uint32), np.full(EACH, 3, np.uint8)
    index = ShardIndex(keys, offset, np.full(EACH, 4096), crc, facets, residues, residues, none, none).to_bytes()
    group = folder / "train" / "sequence_structure"
    group.mkdir(parents=True)
    (folder / "shard").touch()
    os.truncate(folder / "shard", EACH * 4096)
    (folder / "index").write_bytes(index)
    entries, digest = [], hashlib.sha256(index).hexdigest()
    for i in range(shards):
        os.link(folder / "shard", group / f"{i:05d}.tar")
        os.link(folder / "index", group / f"{i:05d}{SUFFIX}")
        about = {"samples": EACH, "bytes": EACH * 4096, "sha256": "", "index_sha256": digest, "facets": {"3": EACH}}
        entries.append({"path": f"train/sequence_structure/{i:05d}.tar", **about})
    table = {"samples": shards * EACH, "shards": entries}
    manifest = {"format": 1, "name": "simulated", "splits": {"train": {"sequence_structure": table}}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def claims(shards: int, places: int) -> list[rows.Row]:
    with tempfile.TemporaryDirectory() as scratch:
        path = simulate(Path(scratch), shards)
        began = time.perf_counter()
        dataset = Dataset.open(path)
        opening = time.perf_counter() - began
        config = PlanConfig(samples=256)
        resumed = []
        for place in np.random.default_rng(1).integers(0, 5 * shards * EACH, places).tolist():
            plan = Plan(copy.deepcopy(dataset), "train", config, 0, SPEC)  # a copy has read no index
            began = time.perf_counter()
            plan.next(Position(place, {"sequence_structure": place}))
            resumed.append(time.perf_counter() - began)
        tracemalloc.start()
        plan, position = Plan(Dataset.open(path), "train", config, 0, SPEC), Position()
        for _ in range(20):
            position = plan.next(position)[1]
        held = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        return [
            rows.within(f"opening a local data set of {shards * EACH:.0e} samples", opening, 60, "s"),
            rows.within("resuming at any place, cold", 1000 * max(resumed), 100, "ms, slowest"),
            rows.within("resuming at any place, cold", 1000 * statistics.median(resumed), 100, "ms, median"),
            rows.within("memory to open and plan it, at most", held, 500, "MB"),
            *_balance(dataset),
        ]


def _balance(dataset: Dataset) -> list[rows.Row]:
    world = HOSTS * RANKS
    found = []
    for each in (8, 32):
        plan, position = Plan(dataset, "train", PlanConfig(samples=each * world), 0, LONG), Position()
        loads: dict[int, list[float]] = {1: [], HOSTS: []}
        for _ in range(30):
            step, position = plan.next(position)
            for caches, worst in loads.items():
                tokens = [sum(e.cost for part in parts for e in part) for parts in step.cut(world, 1, caches)]
                worst.append(max(tokens) / statistics.mean(tokens))
        means = {caches: statistics.mean(worst) for caches, worst in loads.items()}
        what = f"busiest of {world} ranks, {each} proteins each"
        found.append(
            rows.Row(
                f"{what}, {HOSTS} caches", means[HOSTS], means[1], "one cache", means[1] / means[HOSTS], 0.5, "× mean"
            )
        )
    return found


def main() -> None:
    chosen = rows.options(__doc__).parse_args()
    rows.report(claims(1000, 5) if chosen.quick else claims(10_000, 20), chosen.json)
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB")


if __name__ == "__main__":
    main()
