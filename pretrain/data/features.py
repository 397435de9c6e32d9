"""The format of stored features: what frozen encoders made of a data set, ahead of training. Imports numpy only.

Beside a data set's shards lie `features/<encoder>/features.json` and, for each shard with the encoder's modality,
`features/<encoder>/<split>/<modalities>/00042.safetensors`. `<encoder>` names everything that decides what the encoder
makes of a protein (`Encoders.identity`), and `features.json`, written last, the data set's manifest: what is of another
encoder or of other data is not read. An item is what is encoded by itself: the sequence, one structure, one text, one
image. Each is stored whole, as the encoder sees it; what a step draws and crops of it is decided when it is read.

A file is plain safetensors. Its tables address rows by arithmetic, so a reader holds none of them in memory:

    samples  int64 [n + 1]     sample i of the shard has the items [samples[i], samples[i + 1]), in the sample's order
    items    int64 [K + 1]     item k has the rows [items[k], items[k + 1])
    crc      uint32 [K]        CRC-32 of each item's place, mark and rows (see `checksum`)
    unread   uint16 [K]        1 for an item that could not be encoded (an image that is none); its rows are 0
    values   bfloat16 [N, D]   rows, one per residue, word piece or patch; positions are those of the sample's own data
"""

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any

import numpy as np

from pretrain.sample import Modality, canonical

FOLDER, SUMMARY, SUFFIX = "features", "features.json", ".safetensors"
FORMAT = 1
ABOUT = "features"  # the header's one metadata key
TABLES = {"samples": "I64", "items": "I64", "crc": "U32", "unread": "U16", "values": "BF16"}  # in the file's order
BYTES = {"I64": 8, "U32": 4, "U16": 2, "BF16": 2}
MAX_HEADER = 1 << 16
AGAIN = "remove it and encode again, or set data.features=live"


def path_of(encoder: str, shard: str) -> str:
    """Where the features of a shard lie, below the data set's folder."""
    return f"{FOLDER}/{encoder}/{shard.removesuffix('.tar')}{SUFFIX}"


@dataclass(frozen=True)
class Layout:
    """Where in a file its tables begin. n samples, K items, N rows of width D; about: what the file belongs to.

    starts: table → byte of the file. size: the whole file's bytes.
    """

    samples: int
    items: int
    rows: int
    width: int
    about: Mapping[str, Any]
    starts: Mapping[str, int]
    size: int
    header: bytes

    @staticmethod
    def of(samples: int, items: int, rows: int, width: int, about: Mapping[str, Any]) -> "Layout":
        shapes = {"samples": [samples + 1], "items": [items + 1], "crc": [items], "unread": [items]}
        shapes["values"] = [rows, width]
        header: dict[str, Any] = {"__metadata__": {ABOUT: canonical(about)}}
        starts, at = {}, 0
        for name, kind in TABLES.items():
            starts[name], end = at, at + BYTES[kind] * int(np.prod(shapes[name], dtype=np.int64))
            header[name] = {"dtype": kind, "shape": shapes[name], "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that tables are aligned
        head = struct.pack("<Q", len(text)) + text
        return Layout(
            samples, items, rows, width, dict(about), {name: len(head) + s for name, s in starts.items()},
            len(head) + at, head,
        )  # fmt: skip

    @staticmethod
    def parse(begin: bytes, where: str) -> "Layout":
        """From a file's first bytes, MAX_HEADER + 8 of them or all. Raises ValueError for anything but our own form."""
        try:
            (length,) = struct.unpack_from("<Q", begin)
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(begin[8 : 8 + length])
            (samples,), (items,), (rows, width) = (header[name]["shape"] for name in ("samples", "items", "values"))
            about = json.loads(header["__metadata__"][ABOUT])
            if min(samples, items) < 1:
                raise ValueError("a table without an entry")
            found = Layout.of(samples - 1, items - 1, rows, width, about)
            if found.header != begin[: len(found.header)]:
                raise ValueError("its header is not in the form in which it is written")
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{where} is no file of stored features ({type(error).__name__}: {error}); {AGAIN}"
            ) from error
        return found

    def place(self, table: str, first: int = 0) -> int:
        """The byte of the file where a table's entry (of values: a row) begins."""
        each = BYTES[TABLES[table]] * (self.width if table == "values" else 1)
        return self.starts[table] + first * each


def checksum(sample: int, item: int, unread: int, rows: bytes) -> int:
    """CRC-32 of an item's rows, begun with its place: rows of another item do not pass for it."""
    return zlib.crc32(rows, zlib.crc32(struct.pack("<qqH", sample, item, unread)))


def about(encoder: str, modality: Modality, shard: str, sha256: str) -> dict[str, Any]:
    """What a file says of itself: which encoder saw which shard (path and SHA-256)."""
    return {"format": FORMAT, "encoder": encoder, "modality": modality.value, "shard": shard, "sha256": sha256}


@dataclass(frozen=True)
class Content:
    """What a file that is whole holds. unread: (sample's number, item's) of those that could not be encoded."""

    layout: Layout
    sha256: str
    unread: tuple[tuple[int, int], ...]


def verify(file: IO[bytes], where: str, expected: Mapping[str, Any]) -> Content:
    """Read a file through. Raises ValueError unless it is of `expected` (see `about`) and every checksum holds."""
    digest = hashlib.sha256()
    total = file.seek(0, io.SEEK_END)
    file.seek(0)

    def read(size: int) -> bytes:
        data = file.read(size)
        digest.update(data)
        if len(data) != size:
            raise ValueError(f"{where} ends too soon")
        return data

    begin = read(8)
    layout = Layout.parse(begin + read(min(*struct.unpack("<Q", begin), MAX_HEADER)), where)
    if layout.about != expected:
        raise ValueError(f"{where} is of {dict(layout.about)}, expected was {dict(expected)}")
    if layout.size != total:
        raise ValueError(f"{where} has {total} bytes, {layout.size} by its header")
    samples = np.frombuffer(read(8 * (layout.samples + 1)), "<i8")
    items = np.frombuffer(read(8 * (layout.items + 1)), "<i8")
    crc = np.frombuffer(read(4 * layout.items), "<u4")
    unread = np.frombuffer(read(2 * layout.items), "<u2")
    for table, end in ((samples, layout.items), (items, layout.rows)):
        if table[0] != 0 or table[-1] != end or (np.diff(table) < 0).any():
            raise ValueError(f"{where}: its tables do not add up")
    owners = samples.searchsorted(np.arange(layout.items), side="right") - 1
    places = list(zip(owners.tolist(), (np.arange(layout.items) - samples[owners]).tolist(), strict=True))
    for k, (first, stop) in enumerate(pairwise(items.tolist())):
        if checksum(*places[k], int(unread[k]), read((stop - first) * 2 * layout.width)) != crc[k]:
            raise ValueError(f"{where}: the checksum of item {k} is wrong")
    return Content(layout, digest.hexdigest(), tuple(places[k] for k in np.flatnonzero(unread).tolist()))
