"""Atoms → chains of residues, each with one conformer.

Decided here alone, so that a structure is the same from mmCIF, BinaryCIF and PDB:

- Atoms that lie nowhere (NaN, infinite, beyond 1e5 Å) are absent.
- A residue is what shares a chain, a number and an insertion code, wherever in the chain its atoms are listed.
- Of its alternate locations the one with the highest summed occupancy is taken whole, the first of equals. Atoms
  without a location's letter belong to every one. Residue names that share a number (microheterogeneity) compete in the
  same way. So an atom never comes from another conformer than its neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.coordinates.atoms import READ, Atoms, Text, Whole, changes, component
from data_prep.sources.files import SourceError

FAR = 1e5  # Å; no atom lies so far out: it is a filler, or damage
MAX_CHAINS = 5_000  # the largest entry of the PDB has 1,400
MAX_RESIDUES = 250_000  # runs of atoms in a chain; titin has 35,000 residues
MAX_LOCATIONS = 100  # alternatives of one residue; real ones have up to 20


@dataclass(frozen=True, eq=False)
class Chain:
    """L residues with at least one atom of READ: coordinates float32 [L, 5, 3], mask [L, 5]; the rest [L].

    residues: component names. place, number: as in `Atoms`. kind: "L", "D" (the mirror image), or "" of no protein.
    """

    name: str
    entity: str
    residues: list[bytes]
    coordinates: NDArray[np.float32]
    mask: NDArray[np.bool_]
    place: Whole
    number: Whole
    code: Text
    temperature: NDArray[np.float32]

    def take(self, rows: NDArray[np.bool_]) -> "Chain":
        """Some of its residues."""
        names = [name for name, taken in zip(self.residues, rows.tolist(), strict=True) if taken]
        columns = (getattr(self, column.name)[rows] for column in fields(self)[3:])
        return self if rows.all() else Chain(self.name, self.entity, names, *columns)

    @property
    def kind(self) -> str:
        """As gemmi tells it: most residues are amino acids; unknown ones count as such where they have a CA."""
        known = {name: component(name)[1] for name in set(self.residues)}
        kinds = [known[name] for name in self.residues]
        right, left, unknown = kinds.count("L"), kinds.count("D"), 0
        if "?" in kinds:
            unknown = sum(kind == "?" and bool(ca) for kind, ca in zip(kinds, self.mask[:, 1], strict=True))
        if 2 * (right + left + unknown) <= len(kinds):
            return ""
        return "D" if left > right else "L"

    @property
    def letters(self) -> str:
        known = {name: component(name)[0] for name in set(self.residues)}
        return "".join([known[name] for name in self.residues])


def chains(atoms: Atoms) -> Iterator[Chain]:
    """The polymers, in the order in which they begin. Raises SourceError for more than any real file has."""
    near = (np.abs(atoms.xyz) < FAR).all(1)  # false of NaN too
    if not near.all():
        atoms = atoms.take(near)
    if not len(atoms):
        return
    bounds = changes(atoms.part, atoms.chain)
    if len(bounds) > 1:
        names = list(zip(atoms.chain[bounds].tolist(), atoms.part[bounds].tolist(), strict=True))
        ranks = {name: rank for rank, name in enumerate(dict.fromkeys(names))}
        if len(ranks) > MAX_CHAINS:
            raise SourceError("too_many_chains", f"{len(ranks)} chains, more than any real structure has; look at it")
        if len(ranks) < len(names):  # chains that come in pieces
            rank = np.repeat([ranks[name] for name in names], np.diff(bounds, append=len(atoms)))
            order = np.argsort(rank, kind="stable")
            atoms = atoms.take(order)
            bounds = changes(rank[order])
    for begin, end in zip(bounds.tolist(), [*bounds[1:].tolist(), len(atoms)], strict=True):
        yield _chain(atoms.take(slice(begin, end)) if len(bounds) > 1 else atoms)


def _chain(atoms: Atoms) -> Chain:
    first = changes(atoms.place, atoms.number, atoms.code)
    if len(first) > MAX_RESIDUES:
        raise SourceError(
            "too_many_residues", f"{len(first)} residues in a chain, more than any real one has; look at it"
        )
    residue = np.repeat(np.arange(len(first)), np.diff(first, append=len(atoms)))
    if not ((np.diff(atoms.place[first]) > 0).all() or (np.diff(atoms.number[first]) > 0).all()):
        columns = (atoms.place[first], atoms.number[first], atoms.code[first])
        keys = list(zip(*(column.tolist() for column in columns), strict=True))
        lettered = np.logical_or.reduceat(atoms.alt != b"", first)
        residue = np.array(_joined(keys, lettered.tolist()))[residue]
        first = np.unique(residue, return_index=True)[1]
    count, width = len(first), len(READ)
    names = atoms.residue[first]
    cell = residue * width + atoms.slot
    several = np.bincount(cell, minlength=count * width)[cell] > 1
    unclear = several | (atoms.alt != b"") | (atoms.residue != names[residue])
    index = np.full(count * width, -1)
    index[cell] = np.arange(len(atoms))
    index = index.reshape(count, width)
    if unclear.any():
        _choose(atoms, residue, np.unique(residue[unclear]), index, names)
    mask = index >= 0
    coordinates = np.where(mask[..., None], atoms.xyz[index], 0.0).astype(np.float32)
    at = index[np.arange(count), np.where(mask[:, 1], 1, mask.argmax(1))]  # CA, or the first that is there
    return Chain(
        name=atoms.chain[0].decode("utf-8", "replace"),
        entity=atoms.entity[0].decode("utf-8", "replace"),
        residues=names.tolist(),
        coordinates=coordinates,
        mask=mask,
        place=atoms.place[first],
        number=atoms.number[first],
        code=atoms.code[first],
        temperature=atoms.temperature[at].astype(np.float32),
    )


def _joined(keys: list[tuple], lettered: list[bool]) -> list[int]:
    """The residue of each run of atoms. A run that repeats a number is another conformer if its atoms have letters;
    without letters it is another residue, of a chain that numbers its residues anew.
    """
    ranks: list[int] = []
    seen: dict[tuple, int] = {}
    count = 0
    for key, other in zip(keys, lettered, strict=True):
        if not (other and key in seen):
            seen[key] = count
            count += 1
        ranks.append(seen[key])
    return ranks


def _choose(atoms: Atoms, residue: NDArray, unclear: NDArray, index: NDArray, names: NDArray) -> None:
    """Set `index` and `names` of those residues whose atoms have alternatives."""
    order = np.argsort(residue, kind="stable")
    begins, ends = (np.searchsorted(residue[order], unclear, side) for side in ("left", "right"))
    for at, begin, end in zip(unclear.tolist(), begins.tolist(), ends.tolist(), strict=True):
        rows = order[begin:end]
        columns = (atoms.residue[rows], atoms.alt[rows], atoms.slot[rows], atoms.occupancy[rows], rows)
        name, chosen = _conformer(list(zip(*(column.tolist() for column in columns), strict=True)))
        index[at] = -1
        index[at, list(chosen)] = list(chosen.values())
        names[at] = name


def _conformer(rows: list[tuple[bytes, bytes, int, float, int]]) -> tuple[bytes, dict[int, int]]:
    """The best of the conformers of one residue, as its name and {slot: row}.

    rows: (name, location, slot, occupancy, row) in the file's order.
    """
    listed: dict[bytes, dict[bytes, dict[int, tuple[float, int]]]] = {}
    for name, location, slot, occupancy, row in rows:
        held = listed.setdefault(name, {}).setdefault(location, {})
        if slot not in held or occupancy > held[slot][0]:
            held[slot] = (occupancy, row)
    if max(sum(map(len, listed.values())), len(rows) // len(READ)) > MAX_LOCATIONS:
        raise SourceError("too_many_locations", f"{len(rows)} atoms in conformers of one residue; look at it")
    best: tuple[float, bytes, dict[int, tuple[float, int]]] = (-np.inf, b"", {})
    for name, locations in listed.items():
        shared = locations.pop(b"", {})
        for own in locations.values() or [shared]:
            atoms = shared | own
            total = round(sum(occupancy for occupancy, _ in atoms.values()), 3)
            if total > best[0] or not best[2]:
                best = (total, name, atoms)
    return best[1], {slot: row for slot, (_, row) in best[2].items()}
