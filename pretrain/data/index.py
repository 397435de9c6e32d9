"""What lies where: the index beside each shard, and a split's samples as groups of addressed ones.

Layout of a data set: `<split>/<modalities>/00042.tar` with `00042.index.safetensors` beside it, `manifest.json`,
`rejected.jsonl` and `ontology.json` at the top. Position → bytes is arithmetic: no shard is opened to plan.

A data set of 10^8 samples has 5 GB of indices. So a group holds numbers per shard, and a shard's index is read when
something in it is asked for; those read last stay. Imports neither torch nor, for a local folder, fsspec.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pretrain.data.files import Files
from pretrain.sample import Facet, Modality

SUFFIX = ".index.safetensors"
MANIFEST = "manifest.json"
FORMAT = 1
OPEN = 384  # files held open per process: windows over the shards of every group, within the usual limit of 1,024
READ = 128 << 20  # bytes of indices held per process; the same windows' at 10^4 samples a shard
COMBINATIONS = 1 << len(Facet)
LONGEST = 1 << 16  # residues; longer sequences are counted as so long
SOME = 16  # shards of a group that stand for all where an average or an estimate will do


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """One row per sample of a shard, in the shard's order (keys sorted).

    offset, size: int64 [n], the byte span of the sample's members in the tar, headers and padding included.
    crc: uint32 [n], CRC-32 of that span. facets: uint8 [n], bits of `pretrain.sample.Facet`.
    residues: int32 [n], sequence length. structure: int32 [n], residues of its longest structure. text: int32 [n],
    characters of its longest text. images: int32 [n], number of images. 0 where absent.
    cluster: int32 [n], equal for proteins that the split kept together as relatives; None where it compared none.
    """

    keys: Sequence[str]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc: NDArray[np.uint32]
    facets: NDArray[np.uint8]
    residues: NDArray[np.int32]
    structure: NDArray[np.int32]
    text: NDArray[np.int32]
    images: NDArray[np.int32]
    cluster: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def to_bytes(self) -> bytes:
        """The index file: columns by name, the keys as one text with a line each. Equal indices give equal bytes."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "keys"}
        columns = {name: np.ascontiguousarray(each) for name, each in columns.items() if each is not None}
        return save({**columns, "keys": np.frombuffer("\n".join(self.keys).encode(), dtype=np.uint8)})

    @staticmethod
    def read(path: Path) -> "ShardIndex":
        """Raises ValueError for a file that is damaged or lacks a column."""
        return ShardIndex.parse(path.read_bytes(), str(path))

    @staticmethod
    def parse(data: bytes, path: str) -> "ShardIndex":
        """From the file's bytes; `path` is for messages. Raises ValueError as `read` does."""
        try:
            columns = load(data)
            index = ShardIndex(Keys(columns.pop("keys")), **columns)
        except Exception as error:  # the format's library raises a type of its own, and missing columns a TypeError
            raise ValueError(f"{path}: not a shard index: {error}") from error
        lengths = {f.name: len(each) for f in fields(index) if (each := getattr(index, f.name)) is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{path}: columns of unequal length: {lengths}")
        return index


class Keys(Sequence[str]):
    """Lines of ASCII, decoded when they are asked for. text: uint8, as the index file has it."""

    def __init__(self, text: NDArray[np.uint8]) -> None:
        self._text = text.tobytes()

    @cached_property
    def _ends(self) -> memoryview:
        text = np.frombuffer(self._text, np.uint8)
        return np.append(np.flatnonzero(text == ord("\n")), len(text)).astype(np.int32).data

    def __len__(self) -> int:
        return self._text.count(b"\n") + 1 if self._text else 0

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return tuple(self)[i]
        if not self._text:
            raise IndexError("there are no keys")
        end = self._ends[i]
        return self._text[self._text.rfind(b"\n", 0, end) + 1 : end].decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._text.decode().split("\n") if self._text else ())


class Row(NamedTuple):
    """Where a sample lies: bytes [offset, offset + size) of a shard, whose CRC-32 is `crc`."""

    shard: str
    key: str
    offset: int
    size: int
    crc: int


@dataclass(frozen=True, eq=False)
class Group:
    """A split's samples with exactly one subset of modalities, numbered 0..N−1 across their shards.

    shards: S paths below the data set's folder. starts: int64 [S + 1], the number of each shard's first sample.
    facets: int32 [S, 32], samples of each shard by combination of facets. lengths: int64 [LONGEST + 1], samples by
    length of their sequence; None where not all indices have been read.
    """

    name: str
    modalities: tuple[Modality, ...]
    shards: tuple[str, ...]
    starts: NDArray[np.int64]
    facets: NDArray[np.int32]
    lengths: NDArray[np.int64] | None
    _indices: "Indices" = field(repr=False)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def key(self, i: int) -> str:
        return self.row(i).key

    def shard(self, i: int) -> str:
        """The path, below the data set's folder, of the shard that holds sample i."""
        return self.place(i)[0]

    def place(self, i: int) -> tuple[str, int]:
        """(the shard that holds sample i, the sample's number in it)."""
        number = self._number(i)
        return self.shards[number], i - self._starts[number]

    def row(self, i: int) -> Row:
        """Sample i's address. Reads its shard's index, if that is not at hand."""
        number = self._number(i)
        index, at = self.index(number), i - self._starts[number]
        return Row(self.shards[number], index.keys[at], int(index.offset[at]), int(index.size[at]), int(index.crc[at]))

    def index(self, number: int) -> ShardIndex:
        """A shard's. Raises ValueError where it is not the one that was counted."""
        return self._indices.of(self.shards[number], self.facets[number])

    def with_any(self, facets: int) -> NDArray[np.int64]:
        """int64 [S]: samples of each shard that have any of these facets."""
        return self.facets[:, (np.arange(COMBINATIONS) & facets) != 0].sum(1, dtype=np.int64)

    def longer(self, residues: int) -> int:
        """Samples whose sequence is longer: counted, or where `lengths` is not there, estimated from some shards."""
        if self.lengths is not None:
            return int(self.lengths[residues + 1 :].sum())
        told = [(int((index.residues > residues).sum()), len(index)) for index in self.some()]
        found, of = map(sum, zip(*told, strict=True))
        return round(found / max(of, 1) * len(self))

    def some(self) -> Iterator[ShardIndex]:
        """The indices of up to SOME shards, evenly of all."""
        yield from (self.index(i) for i in range(0, len(self.shards), -(-len(self.shards) // SOME)))

    def _number(self, i: int) -> int:
        return bisect_right(self._starts, i) - 1

    @cached_property
    def _starts(self) -> list[int]:
        return self.starts.tolist()


class Indices:
    """Shards' indices, those read last: up to `limit` bytes of them. Copies for other processes begin with none."""

    def __init__(self, files: Files, limit: int) -> None:
        self._files, self._limit, self._bytes = files, limit, 0
        self._held: OrderedDict[str, tuple[ShardIndex, int]] = OrderedDict()

    def __reduce__(self) -> tuple[type["Indices"], tuple[Files, int]]:
        return Indices, (self._files, self._limit)

    def of(self, shard: str, facets: NDArray[np.int32]) -> ShardIndex:
        if shard in self._held:
            self._held.move_to_end(shard)
            return self._held[shard][0]
        path = index_path(shard)
        data = self._files.whole(path)
        index = ShardIndex.parse(data, str(self._files.place / path))
        if not np.array_equal(combinations(index), facets):
            raise ValueError(
                f"{self._files.place / path}: what its samples have is not what was counted; prepare it again"
            )
        self._held[shard] = index, len(data)
        self._bytes += len(data)
        while self._bytes > self._limit and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1][1]
        return index


def index_path(shard: str) -> str:
    return shard.removesuffix(".tar") + SUFFIX


def combinations(index: ShardIndex) -> NDArray[np.int32]:
    """int32 [32]: a shard's samples by combination of facets."""
    return np.bincount(index.facets, minlength=COMBINATIONS)[:COMBINATIONS].astype(np.int32)
