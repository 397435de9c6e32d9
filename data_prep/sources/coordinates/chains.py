"""A file's chains, and what it says of them → one record for each protein that a chain is a part of.

A record's numbers are label numbers (places in the polymer's whole sequence) where they are known and increase, else
the author's, else 0..L-1. A chain of several proteins (a fusion) gives each the residues that are stated to be its own;
of a chain of one protein all residues are kept, and those of tags find no place when it is aligned.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.records import Rejection, StructureRecord
from data_prep.sources.coordinates.atoms import NONE, READ
from data_prep.sources.coordinates.references import Facts, Segment
from data_prep.sources.coordinates.residues import Chain
from data_prep.sources.files import SourceError
from data_prep.sources.uniprot import accession

MODEL = re.compile(r"AF-(?P<accession>[A-Z0-9]+(?:-\d+)?)-F(?P<fragment>\d+)")  # an isoform's: AF-P12345-2-F1
ENTRY = re.compile(r"(pdb_[0-9a-z]{8}|[0-9][A-Za-z0-9]{3})(?:_[A-Za-z0-9]+)?")
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Wanted:
    """accession: of every chain, whatever the file says. whole: whether chains of several proteins stay whole."""

    atoms: tuple[str, ...]
    min_residues: int
    states: bool
    whole: bool = False
    accession: str = ""


def records(name: str, found: list[Chain], facts: Facts, wanted: Wanted) -> Iterator[StructureRecord | Rejection]:
    """The records of a file's proteins, in the order of its chains. Raises SourceError where it has none."""
    kinds = [chain.kind for chain in found]
    if not any(kinds):
        problem = f"{name}: no polypeptide chain among {len(found)} polymers; leave the file out"
        raise SourceError("no_protein_chain", problem)
    model = MODEL.search(name) or MODEL.search(facts.entry)
    for chain, kind in zip(found, kinds, strict=True):
        if not kind:
            continue
        label = f"{_entry(name, facts.entry)}_{UNSAFE.sub('-', chain.name)}"
        if model:
            label = model[0] if len(found) == 1 else f"{model[0]}_{UNSAFE.sub('-', chain.name)}"
        proteins = _proteins(chain, facts, model, wanted)
        for key, segments in proteins.items():
            key, where = key or f"pdb_{label}", f"chain {chain.name}"
            if kind == "D":
                problem = f"{label}: of D-amino acids, whose backbone is the mirror image of a protein's"
                yield Rejection("d_peptide", key, name, problem, where)
                continue
            own = _own(chain, facts, segments) if len(proteins) > 1 else np.ones(len(chain.residues), dtype=bool)
            own &= chain.mask[:, [READ.index(atom) for atom in wanted.atoms]].any(1)
            if own.sum() < wanted.min_residues:
                problem = f"{label}: {own.sum()} residues, min_residues is {wanted.min_residues}"
                yield Rejection("short_chain", key, name, problem, where)
                continue
            record = _record(key, name, label, chain.take(own), facts, segments, wanted)
            yield _predicted(record, chain.temperature[own], model) if model or facts.predicted else record


def _proteins(chain: Chain, facts: Facts, model: re.Match | None, wanted: Wanted) -> dict[str, list[Segment]]:
    """The chain's segments by accession; none, under no accession, if it belongs to no known protein."""
    told = facts.of(chain.name, chain.entity)
    if model:  # DBREF in PDB files that others wrote anew loses the end of a long accession
        told = [each for each in told if each.accession == model["accession"]] or [Segment(model["accession"])]
    if told and (wanted.whole or wanted.accession):
        told = [max(told, key=lambda each: each.length)]
    if wanted.accession:
        told = [replace(each, accession=wanted.accession) for each in told] or [Segment(wanted.accession)]
    proteins: dict[str, list[Segment]] = {}
    for segment in told:
        proteins.setdefault(accession(segment.accession), []).append(segment)
    return proteins or {"": []}


def _own(chain: Chain, facts: Facts, segments: list[Segment]) -> NDArray[np.bool_]:
    """The residues that the segments cover; all, where one has no range."""
    counted = chain.place if facts.label else chain.number
    own = np.zeros(len(counted), dtype=bool)
    for segment in segments:
        if segment.first is None or segment.last is None:
            return np.ones(len(counted), dtype=bool)
        own |= (counted >= segment.first) & (counted <= segment.last)
    return own


def _record(
    key: str, source: str, label: str, chain: Chain, facts: Facts, segments: list[Segment], wanted: Wanted
) -> StructureRecord:
    slots = [READ.index(atom) for atom in wanted.atoms]
    number = _numbers(chain)
    begins = [segment.begin for segment in segments if segment.begin is not None]
    ends = [segment.end for segment in segments if segment.end is not None]
    states = None
    if wanted.states:
        from data_prep.sources.coordinates.states import states as encode  # the network is read when it is needed

        states = encode(chain.coordinates, chain.mask, READ)
    return StructureRecord(
        key=key,
        source=source,
        id=label,
        letters=chain.letters,
        atoms=wanted.atoms,
        coordinates=np.ascontiguousarray(chain.coordinates[:, slots]),
        mask=np.ascontiguousarray(chain.mask[:, slots]),
        number=number,
        resolution=facts.resolution,
        begin=min(begins) if len(begins) == len(segments) and begins else None,
        end=max(ends) if len(ends) == len(segments) and ends else None,
        shift=_shift(chain, facts, segments, number),
        states=states,
        position=f"chain {chain.name}",
    )


def _numbers(chain: Chain) -> NDArray[np.int32]:
    for numbers in (chain.place, chain.number):
        if numbers[0] != NONE and (np.diff(numbers) > 0).all():
            return numbers.astype(np.int32)
    return np.arange(len(chain.residues), dtype=np.int32)


def _shift(chain: Chain, facts: Facts, segments: list[Segment], number: NDArray[np.int32]) -> int | None:
    """Position in the protein minus number, in the middle of what the longest segment covers."""
    longest = max(segments, key=lambda each: each.length, default=Segment(""))
    if longest.begin is None or longest.first is None:
        return None
    counted = chain.place if facts.label else chain.number
    if facts.label and counted[0] == NONE:
        return None
    inside = np.flatnonzero((counted >= longest.first) & (counted <= (longest.last or NONE)))
    at = inside[len(inside) // 2] if len(inside) else len(counted) // 2
    return int(longest.begin - 1 + counted[at] - longest.first - number[at])


def _predicted(record: StructureRecord, confidence: NDArray[np.float32], model: re.Match | None) -> StructureRecord:
    """With pLDDT, where the file has it, and without a resolution, which only experiments have."""
    known = confidence if np.isfinite(confidence).all() else None
    return replace(record, confidence=known, resolution=None, fragment=int(model["fragment"]) if model else 0)


def taken(record: StructureRecord, residues: NDArray[np.bool_]) -> StructureRecord:
    """The record with some of its residues."""
    letters = np.array(list(record.letters))[residues]
    return replace(
        record,
        letters="".join(letters),
        coordinates=record.coordinates[residues],
        mask=record.mask[residues],
        number=record.number[residues],
        confidence=None if record.confidence is None else record.confidence[residues],
        states=None if record.states is None else "".join(np.array(list(record.states))[residues]),
        pae=None if record.pae is None else record.pae[np.ix_(residues, residues)],
    )


def _entry(name: str, entry: str) -> str:
    """`12as` of an entry 12AS, or of a file that is named by PDB id and chain; else the file's own name."""
    stem = Path(name).name.removesuffix(".gz").rsplit(".", 1)[0]
    for candidate in (entry, stem):
        if match := ENTRY.fullmatch(candidate):
            return match[1].lower()
    return UNSAFE.sub("-", stem).strip("-")
