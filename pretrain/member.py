"""A member of a shard: a safetensors file with one metadata entry, written always alike and read without trust.

Several metadata entries come out in another order in every process, one does not; so everything that is no array is one
canonical JSON text. Written here, not by the format's library: its reader copies, and takes twice the time.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

MAX_HEADER = 16 << 20  # bytes; a longer header is damage, not data


class CorruptSample(ValueError):
    """A member that cannot be a sample: truncated, overlong, or not what its header says."""


_TYPES = {"uint8": "U8", "int16": "I16", "int32": "I32"}
_DTYPES = {"U8": np.dtype("u1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4")}


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
    """The metadata entry: all of a sample that is no array. What is absent is not stored."""

    format: int
    key: str
    structures: tuple[Chain, ...] = ()
    terms: tuple[Term, ...] | None = None
    texts: tuple[Text, ...] | None = None
    images: tuple[Caption, ...] = ()
    about: dict[str, str | int | bool | tuple[str, ...]] = {}


_tensors = msgspec.json.Decoder(dict[str, Any])
_header = msgspec.json.Decoder(Header)


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


def parse(data: bytes) -> tuple[Header, dict[str, NDArray]]:
    """(the `sample` metadata, tensors as views of `data`). Every length is checked before it is believed."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise CorruptSample(f"header of {length} bytes in a member of {len(data)}")
    body = 8 + length
    table = _tensors.decode(data[8:body])
    header = _header.decode(table.pop("__metadata__")["sample"])
    tensors = {}
    for name, entry in table.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= len(data) - body:
            raise CorruptSample(f"tensor {name} at bytes {start}–{end} of {len(data) - body}")
        tensor = tensors[name] = np.ndarray(entry["shape"], _DTYPES[entry["dtype"]], data, body + start)
        if tensor.nbytes != end - start:
            raise CorruptSample(f"tensor {name} of {tensor.nbytes} bytes at bytes {start}–{end}")
    return header, tensors


def canonical(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, UTF-8 as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
