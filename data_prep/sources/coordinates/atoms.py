"""Atoms as any of the formats has them, in columns: those of polymers in a file's first model, of the backbone's kinds.

mmCIF and BinaryCIF differ in how their `_atom_site` table is written, not in what is in it: what is taken from it is
decided here, once. PDB files come to the same columns through gemmi.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Protocol

import gemmi
import numpy as np
from numpy.typing import NDArray

from data_prep.sources.files import SourceError
from pretrain.sample import BACKBONE

READ = (*BACKBONE, "CB")  # CB is never stored: 3Di states are exact with it
NONE = int(np.iinfo(np.int32).min)  # a residue number that is not given
MAX_VALUE = 64  # characters of a value that is used
NAMES = [name.encode() for name in READ]
Text, Real, Whole = NDArray[np.bytes_], NDArray[np.float64], NDArray[np.int64]
DOT, QUERY = b".?"
UNCERTAIN = re.compile(r"(?P<value>[-+0-9.eE]+)\(\d+\)")  # 1.234(5)


class Site(Protocol):
    """The `_atom_site` table of an mmCIF file, in whichever way it is written."""

    def take(self, rows: NDArray[np.intp]) -> "Site":
        """Some of its rows."""
        ...

    def text(self, name: str) -> NDArray | None:
        """A column as numbers, or as byte strings; None: the table lacks it. `.` and `?` or NaN: no value."""
        ...


@dataclass(frozen=True, eq=False)
class Atoms:
    """N atoms of polymers in a file's first model, in the file's order, of the kinds in READ.

    chain: the author's name of the chain. part: the polymer's own name (label_asym_id), else the chain's. residue,
    code, alt: component, insertion code, alternate location. place: number in the polymer's whole sequence (label
    number). number: the author's. slot: index in READ. xyz: [N, 3], Å. temperature: B-factor, or pLDDT.
    """

    chain: Text
    part: Text
    entity: Text
    residue: Text
    code: Text
    alt: Text
    place: Whole
    number: Whole
    slot: NDArray[np.intp]
    xyz: Real
    occupancy: Real
    temperature: Real

    def __len__(self) -> int:
        return len(self.slot)

    def take(self, rows: Any) -> "Atoms":
        return Atoms(*(getattr(self, column.name)[rows] for column in fields(self)))


def polymers(site: Site) -> Atoms:
    """The atoms of an `_atom_site` table's first model that belong to polymers. Raises SourceError for no atoms."""
    names = _first(site, "label_atom_id", "auth_atom_id")
    if names is None or not len(names):
        raise SourceError("no_atoms", "the file has no atoms; fetch it again, or leave it out")
    slot, taken = slots(names), np.ones(len(names), dtype=bool)
    model = site.text("pdbx_PDB_model_num")
    if model is not None:
        taken = model == model[0]
    rows = np.flatnonzero((slot >= 0) & taken)
    site, slot = site.take(rows), slot[rows]
    place = _runs(_wholes, site.text("label_seq_id"))
    if place is None or (place == NONE).all():
        place, inside = np.full(len(rows), NONE), _looks_polymer(site)
    else:
        inside = place != NONE
    if not inside.all():
        site, slot, place = site.take(np.flatnonzero(inside)), slot[inside], place[inside]

    def text(*names: str) -> Text:
        column = _first(site, *names)
        return np.zeros(len(slot), dtype="S1") if column is None else bare(column)

    number = _runs(_wholes, site.text("auth_seq_id"))
    axes = [_reals(site.text(f"Cartn_{axis}")) for axis in "xyz"]
    occupancy, temperature = _runs(_reals, site.text("occupancy")), _runs(_reals, site.text("B_iso_or_equiv"))
    if any(axis is None for axis in axes):
        raise SourceError("unparsable_structure", "its atoms have no Cartn_x, Cartn_y and Cartn_z")
    return Atoms(
        chain=text("auth_asym_id", "label_asym_id"),
        part=text("label_asym_id", "auth_asym_id"),
        entity=text("label_entity_id"),
        residue=text("label_comp_id", "auth_comp_id"),
        code=text("pdbx_PDB_ins_code"),
        alt=text("label_alt_id"),
        place=place,
        number=place if number is None else np.where(number == NONE, place, number),
        slot=slot,
        xyz=np.stack([axis for axis in axes if axis is not None], axis=1),
        occupancy=np.ones(len(slot)) if occupancy is None else np.where(np.isnan(occupancy), 1.0, occupancy),
        temperature=np.full(len(slot), np.nan) if temperature is None else temperature,
    )


def _first(site: Site, *names: str) -> NDArray | None:
    """The first of the columns that the table has."""
    return next((column for name in names if (column := site.text(name)) is not None), None)


def slots(names: Text) -> NDArray[np.intp]:
    """Index in READ of each atom's name, or -1. Four bytes are one number, and tell them from any longer name."""
    words = (names if names.itemsize == 4 else names.astype("S4")).view(np.uint32)
    slot = np.full(len(words), -1)
    for i, word in enumerate(np.array(NAMES, dtype="S4").view(np.uint32)):
        slot[words == word] = i
    return slot


def _looks_polymer(site: Site) -> NDArray[np.bool_]:
    """Of a file without label numbers (no archive writes it so): ATOM lines, and HETATM ones of amino acids."""
    group, names = site.text("group_PDB"), _first(site, "label_comp_id", "auth_comp_id")
    if group is None or names is None:
        raise SourceError("unparsable_structure", "its atoms have neither label_seq_id nor group_PDB and label_comp_id")
    known = {name: component(name)[1] in ("L", "D") for name in set(names.tolist())}
    return (group == b"ATOM") | np.array([known[name] for name in names.tolist()], dtype=bool)


def bare(column: NDArray, instead: bytes = b"") -> Text:
    """A column as byte strings, something else where the file has no value."""
    if column.dtype.kind != "S":  # names that happen to be numbers, in BinaryCIF
        return np.where(column == NONE, instead, column.astype("S24"))
    head = column.view(np.uint8)[:: column.itemsize]
    if not ((head == DOT) | (head == QUERY)).any():
        return column
    return np.where((column == b".") | (column == b"?"), instead, column)


def _reals(column: NDArray | None) -> Real | None:
    """NaN where there is no number."""
    if column is None:
        return None
    if column.dtype.kind == "S":
        column = bare(column, b"nan")
    try:
        return column.astype(np.float64)
    except ValueError:
        return np.array([_real(cell) for cell in column.tolist()], dtype=np.float64)


def _real(cell: bytes) -> float:
    text = cell.decode("ascii", "replace")
    match = UNCERTAIN.fullmatch(text)
    try:
        return float(match["value"] if match else text)
    except ValueError:
        return np.nan


def _wholes(column: NDArray | None) -> Whole | None:
    """NONE where there is no number that a residue could have."""
    if column is None:
        return None
    if column.dtype.kind == "S":
        column = bare(column, b"%d" % NONE)
        try:
            column = column.astype(np.int64)
        except (ValueError, OverflowError):
            cells = (int(cell) if re.fullmatch(rb"[-+]?\d{1,9}", cell) else NONE for cell in column.tolist())
            return np.fromiter(cells, dtype=np.int64, count=len(column))
    return np.where(np.abs(column) < -NONE, column, NONE).astype(np.int64)


def _runs(parse: Callable[[NDArray | None], Any], column: NDArray | None) -> Any:
    """Parsed once for each run of equal values: columns that are the same in all atoms of a residue."""
    if column is None or not len(column):
        return parse(column)
    begins = changes(column)
    return np.repeat(parse(column[begins]), np.diff(begins, append=len(column)))


def changes(*columns: NDArray) -> NDArray[np.intp]:
    """Where runs of equal rows begin."""
    new = np.ones(len(columns[0]), dtype=bool)
    new[1:] = columns[0][1:] != columns[0][:-1]
    for column in columns[1:]:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


@lru_cache(maxsize=4096)
def component(name: bytes) -> tuple[str, str]:
    """A component's one-letter code, a modified residue's that of its parent (`X`: none), and its kind.

    By gemmi's tables. kind: "L" or "D" of amino acids, "?" of what the tables do not have, "" of anything else.
    """
    known = gemmi.find_tabulated_residue(name.decode("utf-8", "replace"))
    if not known.found():
        return "X", "?"
    letter = known.one_letter_code.upper().strip() or "X"
    if not known.is_amino_acid():
        return letter, ""
    return letter, "D" if known.kind == gemmi.ResidueKind.AAD else "L"
