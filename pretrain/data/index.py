"""What lies where: the index beside each shard, and a data set's folder seen as groups of addressed samples.

Layout of a data set: `<split>/<modalities>/00042.tar` with `00042.index.safetensors` beside it, `manifest.json`,
`rejected.jsonl` and `ontology.json` at the top. Position → bytes is arithmetic: no shard is opened to plan.
Imports numpy, isal and safetensors only.
"""

import hashlib
import json
import os
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32  # zlib's, seven times as fast
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pretrain.sample import CorruptSample, Modality, Sample, decode, group_name

SUFFIX = ".index.safetensors"
MANIFEST = "manifest.json"
FORMAT = 1
BLOCK = 512  # bytes of a tar header, and what members are padded to
OPEN = 128  # shards held open per process; a window over the shards of every group fits, and so do common limits


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """One row per sample of a shard, in the shard's order (keys sorted).

    offset, size: int64 [n], the byte span of the sample's members in the tar, headers and padding included.
    crc: uint32 [n], CRC-32 of that span. facets: uint8 [n], bits of `pretrain.sample.Facet`.
    residues: int32 [n], sequence length. structure: int32 [n], residues of its longest structure. text: int32 [n],
    characters of its longest text. images: int32 [n], number of images. 0 where absent.
    """

    keys: tuple[str, ...]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc: NDArray[np.uint32]
    facets: NDArray[np.uint8]
    residues: NDArray[np.int32]
    structure: NDArray[np.int32]
    text: NDArray[np.int32]
    images: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)

    def to_bytes(self) -> bytes:
        """The index file: columns by name, the keys as one text with a line each. Equal indices give equal bytes."""
        columns = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self) if f.name != "keys"}
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
            keys = columns.pop("keys").tobytes().decode()
            index = ShardIndex(tuple(keys.split("\n")) if keys else (), **columns)
        except Exception as error:  # the format's library raises a type of its own, and missing columns a TypeError
            raise ValueError(f"{path}: not a shard index: {error}") from error
        lengths = {f.name: len(getattr(index, f.name)) for f in fields(index)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{path}: columns of unequal length: {lengths}")
        return index


@dataclass(frozen=True, eq=False)
class Group:
    """A split's samples with exactly one subset of modalities, numbered 0..N−1 across their shards.

    shards: S paths below the data set's folder. starts: int64 [S + 1], the number of each shard's first sample.
    keys: bytes [N]. The other columns are those of `ShardIndex`, laid end to end.
    """

    name: str
    modalities: tuple[Modality, ...]
    shards: tuple[str, ...]
    starts: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc: NDArray[np.uint32]
    facets: NDArray[np.uint8]
    residues: NDArray[np.int32]
    structure: NDArray[np.int32]
    text: NDArray[np.int32]
    images: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, i: int) -> str:
        return self.keys[i].decode()

    def shard(self, i: int) -> str:
        """The path, below the data set's folder, of the shard that holds sample i."""
        return self.place(i)[0]

    def place(self, i: int) -> tuple[str, int]:
        """(the shard that holds sample i, the sample's number in it)."""
        number = int(self.starts.searchsorted(i, side="right")) - 1
        return self.shards[number], i - int(self.starts[number])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared folder: its manifest, and every sample's address by split and group.

    sha256: of the manifest, which itself holds the hash of every file; it names the data set's content. Copies for
    other processes (by fork or pickle) open their own files.
    """

    path: Path
    manifest: dict[str, Any]
    sha256: str
    splits: dict[str, dict[str, Group]]
    _files: "Files" = field(repr=False)

    @staticmethod
    def open(path: str | Path) -> "Dataset":
        """Read manifest and indices; no shard is opened. ValueError for a folder that is not a whole data set."""
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"no data set at {path}: there is no such folder; `fourfold prepare` writes one")
        if not (path / MANIFEST).is_file():
            raise ValueError(
                f"{path} has no {MANIFEST}: its preparation was interrupted, or this is no data set; prepare it again"
            )
        text = (path / MANIFEST).read_bytes()
        try:
            manifest = json.loads(text)
            if manifest["format"] != FORMAT:
                raise ValueError(
                    f"{path / MANIFEST}: format {manifest['format']!r}; this version of Fourfold reads {FORMAT}"
                )
            splits = {split: _groups(path, split, manifest["splits"][split]) for split in manifest["splits"]}
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path / MANIFEST} is damaged ({type(error).__name__}: {error}); prepare the data set again"
            ) from error
        return Dataset(path, manifest, hashlib.sha256(text).hexdigest(), splits, Files(path, OPEN))

    def groups(self, split: str) -> dict[str, Group]:
        """A split's groups by name, sorted. Raises ValueError for a split without samples."""
        found = self.splits.get(split)
        if not found:
            sizes = {name: sum(map(len, groups.values())) for name, groups in self.splits.items()}
            raise ValueError(f"{self.path}: split {split!r} holds no samples; the data set has {sizes}")
        return found

    def read(self, split: str, group: str, i: int) -> Sample:
        """Sample i of a group. Raises CorruptSample, naming shard and key, where its bytes are not those prepared."""
        table = self.splits[split][group]
        shard, key, size = table.shard(i), table.key(i), int(table.size[i])
        span = self._files.read(shard, int(table.offset[i]), size)
        try:
            if len(span) != size or crc32(span) != table.crc[i]:
                raise CorruptSample(
                    f"{len(span)} of {size} bytes read, checksum {'is wrong' if len(span) == size else 'not taken'}"
                )
            sample = decode(members(span))
            if sample.key != key:
                raise CorruptSample(f"the shard holds {sample.key} here")
        except CorruptSample as error:
            raise CorruptSample(f"{shard}: {key}: {error}") from error
        return sample


def members(span: bytes) -> dict[str, bytes]:
    """Name → bytes of the plain USTAR members in `span`. Raises CorruptSample where a header or a length is not right.

    Only what our shards contain: regular files with short names. The span's own checksum covers the headers, so their
    checksums are not added up again.
    """
    found, at = {}, 0
    while at < len(span):
        body = at + BLOCK
        if body > len(span) or not span.startswith(b"ustar", at + 257) or span[at + 156] not in b"0\0":
            raise CorruptSample(f"no tar member at byte {at} of the sample's {len(span)}")
        try:
            name = span[at : at + 100].rstrip(b"\0").decode("ascii")
            size = int(span[at + 124 : at + 136].rstrip(b"\0 "), 8)
        except ValueError as error:
            raise CorruptSample(f"tar header at byte {at}: {error}") from error
        if not 0 <= size <= len(span) - body:
            raise CorruptSample(f"member {name} of {size} bytes, {len(span) - body} left")
        found[name] = span[body : body + size]
        at = body + -(-size // BLOCK) * BLOCK
    return found


def _groups(root: Path, split: str, table: dict[str, Any]) -> dict[str, Group]:
    return {name: _group(root, split, name, table[name]["shards"]) for name in sorted(table) if table[name]["shards"]}


def _group(root: Path, split: str, name: str, shards: list[dict[str, Any]]) -> Group:
    """Check a group's files against the manifest and join their indices."""
    subset = tuple(modality for modality in Modality if modality in name.split("_"))
    if not subset or group_name(subset) != name:
        raise ValueError(
            f"{root / MANIFEST}: {split}/{name} is not a set of modalities, of {', '.join(Modality)} in order"
        )
    indices = [_shard(root, split, name, shard) for shard in shards]
    columns = {
        f.name: np.concatenate([getattr(index, f.name) for index in indices])
        for f in fields(ShardIndex)
        if f.name != "keys"
    }
    keys = np.array([key for index in indices for key in index.keys], dtype=np.bytes_)
    starts = np.cumsum([0, *map(len, indices)], dtype=np.int64)
    return Group(name, subset, tuple(shard["path"] for shard in shards), starts, keys, **columns)


def _shard(root: Path, split: str, name: str, shard: dict[str, Any]) -> ShardIndex:
    """The index of one shard of the manifest, after checking that both files are those that were prepared."""
    relative = Path(shard["path"])
    tar, path = root / relative, root / relative.with_suffix(SUFFIX)
    if relative.parts[:-1] != (split, name) or relative.suffix != ".tar":
        raise ValueError(f"{root / MANIFEST}: shard {shard['path']!r} does not lie in {split}/{name}")
    for file in (tar, path):
        if not file.is_file():
            raise ValueError(
                f"{file} is in the manifest but not in the folder; copy it again, or prepare the data set again"
            )
    if tar.stat().st_size != shard["bytes"]:
        raise ValueError(
            f"{tar}: {tar.stat().st_size} bytes, {shard['bytes']} in the manifest; copy it or prepare it again"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != shard["index_sha256"]:
        raise ValueError(f"{path}: not the file of the manifest (its SHA-256 differs); copy it or prepare it again")
    index = ShardIndex.read(path)
    if len(index) != shard["samples"]:
        raise ValueError(f"{path}: {len(index)} samples, {shard['samples']} in the manifest; prepare it again")
    if len(index) and (
        index.offset.min() < 0 or index.size.min() < 0 or (index.offset + index.size).max() > shard["bytes"]
    ):
        raise ValueError(f"{path}: samples at bytes beyond the shard's {shard['bytes']}; prepare it again")
    return index


class Files:
    """The files below `root` that a process has open, the most recently read `limit`. Reads share no file position."""

    def __init__(self, root: Path, limit: int) -> None:
        self._root, self._limit = root, limit
        self._open: OrderedDict[str, _File] = OrderedDict()

    def __reduce__(self) -> tuple[type["Files"], tuple[Path, int]]:
        return Files, (self._root, self._limit)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer where the file ends. Raises ValueError where the file cannot be opened any more."""
        file = self._open.get(path)
        if file is None:
            try:
                file = self._open[path] = _File(self._root / path)
            except OSError as error:
                raise ValueError(
                    f"{self._root / path} was there when the data set was opened, and cannot be read now: {error}"
                ) from error
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(path)
        return os.pread(file.descriptor, size, offset)


class _File:
    """A descriptor that closes with its last reference."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
