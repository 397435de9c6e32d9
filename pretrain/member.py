"""A member of a shard: a safetensors file with one metadata entry, written always alike and read without trust.

Several metadata entries come out in another order in every process, one does not; so everything that is no array is one
canonical JSON text. Written here, not by the format's library: its reader copies, and takes twice the time. A step
draws a part of each protein, so `parse` checks what a member says of its parts and makes none of them.
"""

import json
import math
import struct
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

ABSENT = msgspec.Raw()
MAX_HEADER = 16 << 20  # bytes; a longer header is damage, not data


class CorruptSample(ValueError):
    """A member that cannot be a sample: truncated, overlong, or not what its header says."""


_TYPES = {"uint8": "U8", "int16": "I16", "int32": "I32"}
_DTYPES = {"U8": np.dtype("u1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4")}
_SIZES = {name: kind.itemsize for name, kind in _DTYPES.items()}


class Term(NamedTuple):
    """A direct Gene Ontology annotation, `GO:0005524` with its evidence code. Ancestors are derived, never stored."""

    id: str
    evidence: str


class Text(NamedTuple):
    """A description of function. `origin` says who wrote it: `uniprot:function`, `template:<seed>`, a model's name."""

    text: str
    origin: str


@dataclass(frozen=True)
class About:
    """What is known of a protein besides what models see: for splits, tasks and people, never an input.

    taxon: NCBI's id, 0 where unknown. ec: EC numbers. genes: Ensembl's gene ids, of its divisions too. ensembl: its ids
    of transcripts and their proteins. pdb: entries. secondary: accessions that it has taken over.
    """

    name: str = ""
    organism: str = ""
    taxon: int = 0
    fragment: bool = False
    precursor: bool = False
    ec: tuple[str, ...] = ()
    genes: tuple[str, ...] = ()
    pdb: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()
    ensembl: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != About()


class Chain(msgspec.Struct, gc=False):
    """What of a structure is no array. runs: [start, count] of each unbroken stretch of residues."""

    id: str
    atoms: tuple[str, ...]
    runs: tuple[tuple[int, int], ...]
    resolution: float | None = None
    identity: float | None = None


class Caption(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """What of an image is not its bytes."""

    id: str
    present: tuple[str, ...]
    type: str
    antibody: str = ""
    gene: str = ""
    cell_line: str = ""


class Header(msgspec.Struct, gc=False):
    """The metadata entry: all of a sample that is no array. What is absent is not stored. terms, texts: JSON as it
    stands, for `terms_of` and `texts_of`."""

    format: int
    key: str
    structures: tuple[Chain, ...] = ()
    terms: msgspec.Raw = ABSENT
    texts: msgspec.Raw = ABSENT
    images: tuple[Caption, ...] = ()
    about: dict[str, str | int | bool | tuple[str, ...]] = {}


class Entry(msgspec.Struct, gc=False):
    """Of a safetensors header: an array's place, or (`sample`) the metadata."""

    sample: str = ""
    dtype: str = ""
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()
    data_offsets: tuple[int, int] = (0, 0)


_table = msgspec.json.Decoder(dict[str, Entry])
_header = msgspec.json.Decoder(Header)
_terms = msgspec.json.Decoder(tuple[Term, ...])
_texts = msgspec.json.Decoder(tuple[Text, ...])


class Tensors:
    """A member's arrays by name, whose places have been checked; each is made when it is asked for."""

    def __init__(self, data: bytes, body: int, table: dict[str, Entry]) -> None:
        self._data, self._body, self.table = data, body, table

    def array(self, name: str) -> NDArray | None:
        """A view of the member; None where there is no such array."""
        entry = self.table.get(name)
        if entry is None:
            return None
        return np.ndarray(entry.shape, _DTYPES[entry.dtype], self._data, self._body + entry.data_offsets[0])

    def text(self, name: str) -> str | None:
        """Letters that were stored as their ASCII codes; None where there are none."""
        entry = self.table.get(name)
        if entry is None:
            return None
        if entry.dtype != "U8":
            raise CorruptSample(f"{name}: letters of type {entry.dtype}")
        start, end = entry.data_offsets
        try:
            return self._data[self._body + start : self._body + end].decode("ascii")
        except UnicodeDecodeError as error:
            raise CorruptSample(f"{name}: {error}") from error


def serialize(tensors: dict[str, NDArray[np.generic]], about: dict[str, object]) -> bytes:
    """A safetensors file. Widest types first and names sorted, as the format's own writer lays them out."""
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"sample": canonical(about)}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _TYPES[tensors[name].dtype.name],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return (
        struct.pack("<Q", len(text)) + text + b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in order)
    )


def parse(data: bytes) -> tuple[Header, Tensors]:
    """(the `sample` metadata, the arrays). Every length is checked before it is believed."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise CorruptSample(f"header of {length} bytes in a member of {len(data)}")
    body = 8 + length
    table = _table.decode(data[8:body])
    header = _header.decode(table.pop("__metadata__").sample)
    rest = len(data) - body
    for name, entry in table.items():
        start, end = entry.data_offsets
        if not 0 <= start <= end <= rest or math.prod(entry.shape) * _SIZES[entry.dtype] != end - start:
            raise CorruptSample(f"tensor {name}, {entry.shape} of {entry.dtype}, at bytes {start}–{end} of {rest}")
    return header, Tensors(data, body, table)


def terms_of(raw: msgspec.Raw) -> tuple[Term, ...]:
    """Raises CorruptSample where it is no list of terms."""
    return _made(_terms, raw)


def texts_of(raw: msgspec.Raw) -> tuple[Text, ...]:
    """Raises CorruptSample where it is no list of texts."""
    return _made(_texts, raw)


def _made(decoder: msgspec.json.Decoder, raw: msgspec.Raw) -> Any:
    try:
        return decoder.decode(raw)
    except ValueError as error:
        raise CorruptSample(str(error)) from error


def canonical(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, UTF-8 as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
