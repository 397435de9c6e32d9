"""Samples per second from shards to decoded samples, on one core: ours against webdataset.

python benchmarks/read.py [DATA] [--quick]    DATA is a prepared data set; by default the package's sample is prepared

Ours reads by offset in random order and checks the sample's checksum and its contract. webdataset reads sequentially,
which is its best case, and decodes the safetensors member into arrays. Both read files that the page cache holds.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.prepare import PrepareConfig, prepare
from pretrain.config import load
from pretrain.data.index import Dataset


def ours(path: Path) -> int:
    dataset = Dataset.open(path)
    places = [
        (split, name, i)
        for split, groups in dataset.splits.items()
        for name in groups
        for i in range(len(groups[name]))
    ]
    random.Random(0).shuffle(places)
    for place in places:
        dataset.read(*place)
    return len(places)


def theirs(path: Path) -> int:
    import safetensors.numpy
    from webdataset.compat import WebDataset

    shards = [str(shard) for shard in sorted(path.rglob("*.tar"))]
    stream = WebDataset(shards, shardshuffle=False, empty_check=False)
    return sum(1 for sample in stream if safetensors.numpy.load(sample["safetensors"]) is not None)


def timed(read: Callable[[Path], int], path: Path, seconds: float) -> float:
    """Samples per second over at least `seconds`, after one pass that warms the caches."""
    read(path)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += read(path)
    return done / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true", help="a second each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = options.data or Path(scratch) / "sample"
        if not options.data:
            prepare(load(PrepareConfig, "prepare/sample.toml", ["workers=0"]), path, quiet=True)
        seconds = 1.0 if options.quick else 10.0
        mine, peer = timed(ours, path, seconds), timed(theirs, path, seconds)
        size = sum(shard.stat().st_size for shard in path.rglob("*.tar"))
    print(f"{path.name}: {size / 1e6:.1f} MB of shards")
    print(f"ours       {mine:10,.0f} samples/s, in random order")
    print(f"webdataset {peer:10,.0f} samples/s, in file order")
    print(f"ratio      {mine / peer:10.2f}")


if __name__ == "__main__":
    main()
