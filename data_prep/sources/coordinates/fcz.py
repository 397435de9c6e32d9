"""One entry of a Foldcomp database: torsion angles → atoms (Kim, Mirdita & Steinegger 2023), by the package `foldcomp`.

An entry has no checksum, and the package believes it: told wrong counts it reads beyond the data, and on a residue that
it does not know it ends the process. So everything that it relies on is checked here first: the counts give the entry's
size to the byte, the anchors ascend from the first residue to the last, every residue is one of the twenty and has its
torsion angles, and every number is finite. Damage within the angles themselves cannot be seen.

`foldcomp.get_data` is asked, not `decompress`: that gives a PDB file's text, which would be parsed again, and which it
never frees (version 1.0.0: 0.65 kB per residue, 1 GB for 5,000 models).
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.coordinates.atoms import NONE, READ
from data_prep.sources.coordinates.residues import Chain
from data_prep.sources.files import SourceError

MAGIC = b"FCMP"
HEADER = struct.Struct("<4s4HBs2xIss2xI12f")  # the C++ structure CompressedFileHeader after the magic, padding included
RESIDUE = 8  # bytes of backbone angles
CODES = b"ARNDCQEGHILKMFPSTWYV"  # residues in the order of their numbers
NAMES = b"ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split()
OTHERS = np.array([2, 8, 5, 5, 3, 6, 6, 1, 7, 5, 5, 6, 5, 8, 4, 3, 4, 11, 9, 4])  # atoms besides N, CA and C: O, CB, …
FAR = 1e6  # Å or degrees; no number of a model is larger
GLYCINE = NAMES.index(b"GLY")


class Missing(ValueError):
    """The package that decompresses is not installed."""


@dataclass(frozen=True, eq=False)
class Header:
    """What an entry says before its angles. first: number of the first residue. codes: uint8 [L], places in CODES."""

    title: str
    chain: str
    first: int
    codes: NDArray[np.uint8]


def library() -> Any:
    """The package `foldcomp`. Raises Missing."""
    try:
        import foldcomp
    except ImportError as error:
        raise Missing("foldcomp databases need the package foldcomp: `pip install fourfold[foldcomp]`") from error
    return foldcomp


def chain(data: bytes) -> tuple[str, Chain]:
    """An entry's title and its chain; temperature is pLDDT. Raises SourceError (`damaged_foldcomp`), and Missing."""
    header = check(data)
    told = library().get_data(data)
    counts = 3 + OTHERS[header.codes]
    xyz = np.array(told["coordinates"], dtype=np.float32).reshape(-1, 3)
    length, total = len(header.codes), int(counts.sum())
    if not total <= len(xyz) <= total + 1 or len(told["b_factors"]) != length or not (np.abs(xyz) < FAR).all():
        raise SourceError("damaged_foldcomp", f"{header.title}: {len(xyz)} atoms for {length} residues with {total}")
    slots = np.arange(len(READ))
    mask = slots < np.where(header.codes == GLYCINE, 4, 5)[:, None]  # an entry has N, CA, C, O, CB first, in this order
    index = np.where(mask, (np.cumsum(counts) - counts)[:, None] + slots, 0)
    number = header.first + np.arange(length)
    return header.title, Chain(
        name=header.chain,
        entity="",
        residues=[NAMES[code] for code in header.codes],
        coordinates=np.where(mask[..., None], xyz[index], np.float32(0)),
        mask=mask,
        place=np.full(length, NONE),
        number=number,
        code=np.zeros(length, dtype="S1"),
        temperature=np.array(told["b_factors"], dtype=np.float32),
    )


def check(data: bytes) -> Header:
    """Hold an entry to its own header, before anything believes it. Raises SourceError."""

    def refuse(detail: str) -> SourceError:
        return SourceError("damaged_foldcomp", f"{detail}; fetch the database again")

    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise refuse(f"{len(data)} bytes that begin with {data[:4]!r}, an entry begins with {MAGIC!r}")
    (_, length, _, first, _, anchors, name, torsions, head, tail, title, *discretizers) = HEADER.unpack_from(data)
    atoms = HEADER.size + 4 * anchors + title  # three atoms of each anchor; then whether there is an OXT, and where
    body = atoms + 36 * anchors + 1 + 12
    end = body + RESIDUE * length + torsions
    size = end + 8 + length
    if len(data) != size and (len(data) != size + 1 or data[-1]):  # databases end each entry with a zero
        told = f"{length} residues, {anchors} anchors, {torsions} angles of side chains, a title of {title}"
        raise refuse(f"{len(data)} bytes, its header says {told}: {size}")
    if length < 2 or anchors < 2:
        raise refuse(f"{length} residues and {anchors} anchors, 2 at least are needed")
    anchor = np.frombuffer(data, "<i4", anchors, HEADER.size)
    if anchor[0] != 0 or anchor[-1] != length - 1 or (np.diff(anchor) <= 0).any():
        raise refuse(f"anchors at {anchor.tolist()!r:.60} do not ascend from 0 to {length - 1}")
    codes = np.frombuffer(data, np.uint8, RESIDUE * length, body)[::RESIDUE] >> np.uint8(3)
    if (codes >= len(CODES)).any():
        at = int(np.argmax(codes >= len(CODES)))
        raise refuse(f"residue {at + first} is of kind {codes[at]}, {len(CODES)} are known")
    if (head, tail) != (CODES[codes[0] : codes[0] + 1], CODES[codes[-1] : codes[-1] + 1]):
        raise refuse(f"its header says that it begins with {head!r} and ends with {tail!r}, its residues say otherwise")
    if torsions != OTHERS[codes].sum():
        raise refuse(f"{torsions} angles of side chains, its residues have {OTHERS[codes].sum()}")
    floats = [
        np.array(discretizers, dtype=np.float32),
        np.frombuffer(data, "<f4", 9 * anchors, atoms),
        np.frombuffer(data, "<f4", 3, body - 12),
        np.frombuffer(data, "<f4", 2, end),
    ]
    if not all((np.abs(some) < FAR).all() for some in floats):  # NaN neither
        raise refuse(f"numbers that are not finite, or beyond {FAR:.0e}")
    text = data[atoms - title : atoms].decode("utf-8", "replace")
    return Header(text, name.decode("ascii", "replace").strip() or "A", first, codes)
