"""A prepared data set: what its folder holds, and every sample of it by split, group and number."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isal.isal_zlib import crc32  # zlib's, seven times as fast

from pretrain.codec import decode
from pretrain.data.cache import CACHE_GIB, GIB, Cache, default_folder
from pretrain.data.files import Files
from pretrain.data.index import Group
from pretrain.data.manifest import read
from pretrain.places import Place
from pretrain.sample import CorruptSample, Sample

BLOCK = 512  # bytes of a tar header, and what members are padded to
HEADER, NO_HEADER = struct.Struct("100s24x12s20xc100x5s"), (b"",) * 4  # of USTAR: name, size, type and magic


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared folder, here or on a store: its manifest, and every sample's address by split and group.

    sha256: of the manifest, which itself holds the hash of every file; it names the data set's content. Copies for
    other processes (by fork or pickle) open their own files.
    """

    place: Place
    manifest: dict[str, Any]
    sha256: str
    splits: dict[str, dict[str, Group]]
    files: Files = field(repr=False)

    @staticmethod
    def open(path: str | Path | Place, cache: Cache | None = None) -> "Dataset":
        """Read the manifest and look at every file, so that what is missing is told now; no shard is opened.

        Of a local folder each index is read once, and held against its hash; of a store the listing is compared, and
        what is read comes through `cache`, where each file is verified. Raises ValueError for what is no whole data
        set.
        """
        place = path if isinstance(path, Place) else Place(str(path))
        if place.local is None and cache is None:
            cache = Cache(default_folder(), int(CACHE_GIB * GIB))
        return Dataset(place, *read(place, cache))

    @property
    def path(self) -> Path:
        """The folder of a data set that is local."""
        assert self.place.local is not None, f"{self.place} is no local folder"
        return self.place.local

    def groups(self, split: str) -> dict[str, Group]:
        """A split's groups by name, sorted. Raises ValueError for a split without samples."""
        found = self.splits.get(split)
        if not found:
            sizes = {name: sum(map(len, groups.values())) for name, groups in self.splits.items()}
            raise ValueError(f"{self.place}: split {split!r} holds no samples; the data set has {sizes}")
        return found

    def read(self, split: str, group: str, i: int) -> Sample:
        """Sample i of a group. Raises CorruptSample, naming shard and key, where its bytes are not those prepared."""
        table = self.splits[split][group]
        shard, key, offset, size, crc = table.row(i)
        span = self.files.read(shard, offset, size)
        try:
            if len(span) != size or crc32(span) != crc:
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
        name, size, kind, magic = HEADER.unpack_from(span, at) if body <= len(span) else NO_HEADER
        if magic != b"ustar" or kind not in (b"0", b"\0"):
            raise CorruptSample(f"no tar member at byte {at} of the sample's {len(span)}")
        try:
            name, size = name.rstrip(b"\0").decode("ascii"), int(size.rstrip(b"\0 "), 8)
        except ValueError as error:
            raise CorruptSample(f"tar header at byte {at}: {error}") from error
        if not 0 <= size <= len(span) - body:
            raise CorruptSample(f"member {name} of {size} bytes, {len(span) - body} left")
        found[name] = span[body : body + size]
        at = body + -(-size // BLOCK) * BLOCK
    return found
