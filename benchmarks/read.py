"""Samples per second from shards to decoded samples, on one core: ours against webdataset.

python benchmarks/read.py [DATA] [--quick] [--json FILE]    DATA: a prepared data set; by default the package's sample

Ours reads by offset in random order and checks the sample's checksum and its contract. webdataset reads sequentially,
which is its best case, and decodes the safetensors member into arrays. Both read files that the page cache holds.
"""

import random
import tempfile
from pathlib import Path

import rows

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


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("data", nargs="?", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = chosen.data or Path(scratch) / "sample"
        if not chosen.data:
            prepare(load(PrepareConfig, "prepare/sample.toml", ["workers=0"]), path, quiet=True)
        rates = rows.race(lambda: ours(path), lambda: theirs(path), rounds=5)
    row = rows.faster("shards to decoded samples, shuffled and checked", rates, "webdataset in order", 2.5, "samples/s")
    rows.report([row], chosen.json)


if __name__ == "__main__":
    main()
