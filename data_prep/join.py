"""Records of one protein → one `Sample`, whatever subset of modalities they make; what cannot be used is a `Rejection`.

Of two different sequences for one accession the first wins, in the configuration's order of sources. Structures are
aligned and ranked by coverage × identity, then resolution, then pLDDT.
"""

from collections.abc import Iterable

import numpy as np

from data_prep.align import Placement, place
from data_prep.ontology import Ontology
from data_prep.records import (
    AnnotationRecord,
    ImageRecord,
    Record,
    Rejection,
    SequenceRecord,
    StructureRecord,
    TextRecord,
)
from data_prep.sources.gene_ontology import UNRECORDED
from pretrain.config import Config
from pretrain.sample import Function, Image, Sample, Structure, Term


class JoinConfig(Config):
    """min_identity: of the aligned residues. min_aligned: share of a chain's residues that must find a place.

    max_structures, max_images: best per protein. keep_unpaired_function: keep proteins known by function alone.
    """

    min_identity: float = 0.95
    min_aligned: float = 0.8
    max_structures: int = 4
    max_images: int = 16
    keep_unpaired_function: bool = True


def join(
    key: str, records: Iterable[Record], ontology: Ontology, config: JoinConfig
) -> tuple[Sample | None, list[Rejection]]:
    """The protein's sample, or None if nothing of it is left, and everything that did not get in."""
    records = list(records)
    rejected: list[Rejection] = []
    sequence = _sequence([r for r in records if isinstance(r, SequenceRecord)], rejected)
    structures = _structures([r for r in records if isinstance(r, StructureRecord)], sequence, config, rejected)
    terms = _terms([r for r in records if isinstance(r, AnnotationRecord)], ontology, rejected)
    texts = tuple(dict.fromkeys(r.text for r in records if isinstance(r, TextRecord)))
    images = _images([r for r in records if isinstance(r, ImageRecord)], config, rejected)
    if not (sequence or structures or images):
        if not terms and not texts:
            return None, rejected
        if not config.keep_unpaired_function:
            return None, [
                *rejected,
                Rejection("function_only", key, records[0].source, f"{len(terms)} terms, {len(texts)} texts"),
            ]
    return Sample(key, sequence, structures, Function(terms, texts) if terms or texts else None, images), rejected


def _sequence(records: list[SequenceRecord], rejected: list[Rejection]) -> str | None:
    empty = [record for record in records if not record.sequence]
    rejected += [Rejection("empty_sequence", record.key, record.source) for record in empty]
    records = [record for record in records if record.sequence]
    if not records:
        return None
    first = records[0]
    for other in records[1:]:
        if other.sequence != first.sequence:
            at = next((i for i, (a, b) in enumerate(zip(first.sequence, other.sequence, strict=False)) if a != b), None)
            where = "one continues the other" if at is None else f"first difference at residue {at + 1}"
            detail = f"{len(other.sequence)} residues, {first.source} has {len(first.sequence)}; {where}"
            rejected.append(Rejection("sequence_conflict", other.key, other.source, detail))
    return first.sequence


def _terms(records: list[AnnotationRecord], ontology: Ontology, rejected: list[Rejection]) -> tuple[Term, ...]:
    """Direct terms by live id, each with its evidence codes; `NR` only where no other code is known."""
    if not ontology.terms:
        rejected += [Rejection("no_ontology", r.key, r.source, f"{len(r.terms)} terms") for r in records]
        return ()
    evidence: dict[str, set[str]] = {}
    refused: dict[tuple[str, str], Rejection] = {}
    for record in records:
        for id, code in record.terms:
            live = ontology.resolve(id)
            if live:
                evidence.setdefault(live, set()).add(code)
            elif id in ontology.obsolete:
                term = ontology.obsolete[id]
                instead = f", replaced by {', '.join(term.replaced_by)}" if term.replaced_by else ""
                refused[id, record.source] = Rejection(
                    "obsolete_term", record.key, record.source, f"{id} {term.name}{instead}"
                )
            else:
                refused[id, record.source] = Rejection(
                    "unknown_term", record.key, record.source, f"{id} is not in the ontology"
                )
    rejected += refused.values()
    return tuple(
        Term(id, code) for id, codes in sorted(evidence.items()) for code in sorted(codes - {UNRECORDED} or codes)
    )


def _images(records: list[ImageRecord], config: JoinConfig, rejected: list[Rejection]) -> tuple[Image, ...]:
    """The first `max_images` by id, one of each id."""
    records = sorted(records, key=lambda record: record.image.id)
    images: dict[str, Image] = {}
    for record in records:
        if record.image.id in images:
            rejected.append(Rejection("duplicate_image", record.key, record.source, record.image.id))
        elif len(images) >= config.max_images:
            rejected.append(Rejection("beyond_max_images", record.key, record.source, record.image.id))
        else:
            images[record.image.id] = record.image
    return tuple(images.values())


def _structures(
    records: list[StructureRecord], sequence: str | None, config: JoinConfig, rejected: list[Rejection]
) -> tuple[Structure, ...]:
    """Aligned, ranked, one of each id, and the best `max_structures` of them."""
    aligned: list[tuple[tuple, Structure, StructureRecord]] = []
    for record in records:
        structure = _structure(record, sequence, config)
        if isinstance(structure, Rejection):
            rejected.append(structure)
        else:
            aligned.append((_rank(structure, sequence), structure, record))
    kept: dict[str, Structure] = {}
    for _, structure, record in sorted(aligned, key=lambda entry: (entry[0], entry[2].id)):
        if structure.id in kept:
            rejected.append(
                Rejection(
                    "duplicate_structure", record.key, record.source, f"{structure.id} came from another file too"
                )
            )
        elif len(kept) >= config.max_structures:
            rejected.append(Rejection("beyond_max_structures", record.key, record.source, structure.id))
        else:
            kept[structure.id] = structure
    return tuple(kept.values())


def _rank(structure: Structure, sequence: str | None) -> tuple[float, float, float]:
    """Sorts best first. An experiment without a resolution comes after those with one; models are sorted by pLDDT."""
    covered = len(structure) / len(sequence) * (structure.identity or 0.0) if sequence else float(len(structure))
    confidence = 0.0 if structure.confidence is None else float(structure.confidence.mean())
    return -round(covered, 3), structure.resolution or float("inf"), -confidence


def _structure(record: StructureRecord, sequence: str | None, config: JoinConfig) -> Structure | Rejection:
    if sequence is None:
        return _build(record, np.arange(len(record.letters)), record.number - record.number[0], None)
    stated = record.begin, record.end, record.shift
    placement = place(record.letters, record.number, sequence, *stated, config.min_identity, config.min_aligned)
    if placement.identity < config.min_identity:
        return Rejection("low_identity", record.key, record.source, _misfit(record, placement, sequence))
    if placement.aligned < config.min_aligned:
        return Rejection("low_coverage", record.key, record.source, _misfit(record, placement, sequence))
    return _build(record, placement.kept, placement.residue, placement.identity)


def _misfit(record: StructureRecord, placement: Placement, sequence: str) -> str:
    """How a chain differs from its sequence: aligned residues, identity over these, and the first mismatch."""
    letters = record.letters
    pairs = zip(placement.kept, placement.residue, strict=True)
    first = next(
        (
            f", first mismatch {letters[i]}{i + 1} for {sequence[at]}{at + 1}"
            for i, at in pairs
            if letters[i] != sequence[at]
        ),
        "",
    )
    return (
        f"{record.id}: {len(placement.kept)} of {len(letters)} residues align, identity {placement.identity:.3f}{first}"
    )


def _build(record: StructureRecord, kept: np.ndarray, residue: np.ndarray, identity: float | None) -> Structure:
    """Coordinates about the centroid of the atoms that are there."""
    mask = record.mask[kept]
    present = np.where(mask[..., None], record.coordinates[kept], 0.0).astype(np.float64)
    centroid = present.sum(axis=(0, 1)) / max(mask.sum(), 1)
    return Structure(
        id=record.id,
        coordinates=np.where(mask[..., None], present - centroid, 0.0).astype(np.float32),
        mask=mask,
        residue=residue.astype(np.int32),
        letters="".join(record.letters[i] for i in kept),
        atoms=record.atoms,
        confidence=None if record.confidence is None else record.confidence[kept],
        resolution=record.resolution,
        identity=identity,
    )
