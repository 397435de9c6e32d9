"""Records of one protein → one `Sample`, whatever subset of modalities they make; what cannot be used is a `Rejection`.

An accession that occurs several times: the first sequence wins, in the configuration's order of sources and then of
files; a different one is rejected, an equal one counted. What entries say besides is taken from the first that says it;
terms, texts, structures and images are gathered from all, each once; but a term that any source denies is dropped, with
all that is below it. Structures are aligned and ranked by coverage × identity, then resolution, then pLDDT.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b

import numpy as np

from data_prep.align import Placement, place
from data_prep.fragments import FragmentConfig, assemble
from data_prep.ontology import Ontology
from data_prep.records import (
    AnnotationRecord,
    EntryRecord,
    ImageRecord,
    Record,
    Rejection,
    SequenceRecord,
    StructureRecord,
    TextRecord,
)
from data_prep.sources.evidence import UNRECORDED, Evidence, keeps
from pretrain.config import Config
from pretrain.sample import About, Function, Image, Sample, Structure, Term


class JoinConfig(Config):
    """min_identity: of the aligned residues. min_aligned: share of a chain's residues that must find a place.

    max_structures, max_images: best per protein. keep_unpaired_function: keep proteins known by function alone.
    evidence: codes of annotations that are kept, or names of groups of codes (`experimental`); empty: all.
    fragments: how pieces of one long model are joined.
    """

    min_identity: float = 0.95
    min_aligned: float = 0.8
    max_structures: int = 4
    max_images: int = 16
    keep_unpaired_function: bool = True
    evidence: Evidence = ()
    fragments: FragmentConfig = FragmentConfig()


@dataclass
class Joined:
    """sample: None if nothing of the protein is left. rejected: everything that did not get in. counts: of the rest."""

    sample: Sample | None = None
    rejected: list[Rejection] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def join(key: str, records: Iterable[Record], ontology: Ontology, config: JoinConfig) -> Joined:
    """The protein's sample, and what became of every record."""
    records = list(records)
    joined = Joined()
    rejected = joined.rejected
    sequence = _sequence([r for r in records if isinstance(r, SequenceRecord)], joined)
    about = _about([r for r in records if isinstance(r, EntryRecord)], joined)
    structures = _structures([r for r in records if isinstance(r, StructureRecord)], sequence, config, rejected)
    terms = _terms([r for r in records if isinstance(r, AnnotationRecord)], ontology, config, joined)
    texts = tuple(dict.fromkeys(r.text for r in records if isinstance(r, TextRecord)))
    images = _images([r for r in records if isinstance(r, ImageRecord)], config, rejected)
    if not (sequence or structures or images):
        if not terms and not texts:
            named = any(isinstance(r, EntryRecord) for r in records)
            if named and not rejected:  # else what there was has been refused by name
                told = "an entry without sequence, structure, image, text or term"
                rejected.append(Rejection("nothing_but_names", key, records[0].source, told, records[0].position))
            return joined
        if not config.keep_unpaired_function:
            told = f"{len(terms)} terms, {len(texts)} texts"
            rejected.append(Rejection("function_only", key, records[0].source, told, records[0].position))
            return joined
    function = Function(terms, texts) if terms or texts else None
    joined.sample = Sample(key, sequence, structures, function, images, about)
    return joined


def _about(records: list[EntryRecord], joined: Joined) -> About:
    """Field by field, what the first entry says that says anything."""
    about = About()
    for record in records:
        given = replace(record.about, secondary=record.about.secondary or record.secondary)
        missing = {f.name: getattr(given, f.name) for f in fields(About) if not getattr(about, f.name)}
        about = replace(about, **missing)
    joined.counts["further_entries"] += max(len(records) - 1, 0)
    return about


def _sequence(records: list[SequenceRecord], joined: Joined) -> str | None:
    rejected = joined.rejected
    empty = [record for record in records if not record.sequence]
    rejected += [Rejection("empty_sequence", r.key, r.source, position=r.position) for r in empty]
    records = [record for record in records if record.sequence]
    if not records:
        return None
    first = records[0]
    for other in records[1:]:
        if other.sequence != first.sequence:
            at = next((i for i, (a, b) in enumerate(zip(first.sequence, other.sequence, strict=False)) if a != b), None)
            where = "one continues the other" if at is None else f"first difference at residue {at + 1}"
            detail = f"{len(other.sequence)} residues, {first.source} has {len(first.sequence)}; {where}"
            rejected.append(Rejection("sequence_conflict", other.key, other.source, detail, other.position))
        else:
            joined.counts["same_sequence"] += 1
    return first.sequence


def _terms(records: list[AnnotationRecord], ontology: Ontology, config: JoinConfig, joined: Joined) -> tuple[Term, ...]:
    """Direct terms by live id, each with its evidence codes; `NR` only where no other code is known.

    What a source denies (NOT) is dropped, whichever source has it, and by whatever evidence; so is all that is below it
    by is_a and part_of, for what has the one has the other (GO's true-path rule, read backwards). Two that contradict
    each other are no ground to teach a model either.
    """
    if not ontology.terms:
        joined.rejected += [
            Rejection("no_ontology", r.key, r.source, f"{len(r.terms)} terms", r.position) for r in records if r.terms
        ]
        return ()
    denied = _denied(records, ontology)
    evidence: dict[str, set[str]] = {}
    refused: dict[tuple[str, str], Rejection] = {}
    for record in records:
        unwanted: dict[str, list[int]] = {}
        for number, (id, code) in enumerate(record.terms):
            if not keeps(code, config.evidence):
                unwanted.setdefault(code, []).append(number)
                continue
            found = ontology.look_up(id)
            told = _contradicted(found.id, code, denied, ontology) if found.id else ontology.why_not(id)
            joined.counts[f"terms/{'contradicted' if found.id and told else found.how}"] += 1
            if found.id and not told:
                evidence.setdefault(found.id, set()).add(code)
            else:
                reason = "contradicted_annotation" if found.id else f"{found.how}_term"
                rejection = Rejection(reason, record.key, record.source, told, record.at(number))
                refused.setdefault((id, record.source), rejection)
        for code, numbers in sorted(unwanted.items()):
            told, first = f"{len(numbers)} terms by {code}", record.at(numbers[0])
            rejection = Rejection("evidence_filtered", record.key, record.source, told, first, len(numbers))
            joined.rejected.append(rejection)
    joined.rejected += refused.values()
    terms = tuple(
        Term(id, code) for id, codes in sorted(evidence.items()) for code in sorted(codes - {UNRECORDED} or codes)
    )
    joined.counts.update(ontology.counts(terms))
    return terms


def _denied(records: list[AnnotationRecord], ontology: Ontology) -> dict[str, str]:
    """Live id of a term that the protein does not have → who says so. An id that leads to none denies nothing."""
    found: dict[str, str] = {}
    for record in records:
        for id in record.denied:
            if live := ontology.resolve(id):
                found.setdefault(live, f"{record.source}, {record.position}, says NOT {id}")
    return found


def _contradicted(id: str, code: str, denied: dict[str, str], ontology: Ontology) -> str:
    """What to tell of an annotation that is denied, of itself or of what is above it; empty where it is not."""
    if not denied:
        return ""
    first = next((each for each in (id, *sorted(ontology.ancestors(id))) if each in denied), None)
    return f"{id} by {code}; {denied[first]}" if first else ""


def _images(records: list[ImageRecord], config: JoinConfig, rejected: list[Rejection]) -> tuple[Image, ...]:
    """One of each id; of more than `max_images` those with the smallest hashes, so that they are of many fields."""
    images: dict[str, Image] = {}
    for record in sorted(records, key=lambda record: (blake2b(record.image.id.encode()).digest(), record.source)):
        if record.image.id in images:
            rejected.append(Rejection("duplicate_image", record.key, record.source, record.image.id, record.position))
        elif len(images) >= config.max_images:
            rejected.append(Rejection("beyond_max_images", record.key, record.source, record.image.id, record.position))
        else:
            images[record.image.id] = record.image
    return tuple(image for _, image in sorted(images.items()))


def _structures(
    records: list[StructureRecord], sequence: str | None, config: JoinConfig, rejected: list[Rejection]
) -> tuple[Structure, ...]:
    """Aligned, ranked, one of each id, and the best `max_structures` of them."""
    aligned: list[tuple[tuple, Structure, StructureRecord]] = []
    whole, refused = assemble(records, config.fragments)
    rejected += refused
    for record in whole:
        structure = _structure(record, sequence, config)
        if isinstance(structure, Rejection):
            rejected.append(structure)
        else:
            aligned.append((_rank(structure, sequence), structure, record))
    kept: dict[str, Structure] = {}
    for _, structure, record in sorted(aligned, key=lambda entry: (entry[0], entry[2].id)):
        if structure.id in kept:
            told = f"{structure.id} came from another file too"
            rejected.append(Rejection("duplicate_structure", record.key, record.source, told, record.position))
        elif len(kept) >= config.max_structures:
            told = f"{structure.id} ranks behind {config.max_structures} others"
            rejected.append(Rejection("beyond_max_structures", record.key, record.source, told, record.position))
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
        return Rejection(
            "low_identity", record.key, record.source, _misfit(record, placement, sequence), record.position
        )
    if placement.aligned < config.min_aligned:
        return Rejection(
            "low_coverage", record.key, record.source, _misfit(record, placement, sequence), record.position
        )
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
        states=None if record.states is None else "".join(record.states[i] for i in kept),
        pae=None if record.pae is None else record.pae[np.ix_(kept, kept)],
    )
