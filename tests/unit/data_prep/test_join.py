"""Records of one protein become one sample; what does not get in says why."""

import numpy as np
import pytest

from data_prep.filters import FilterConfig, check
from data_prep.join import JoinConfig, join
from data_prep.ontology import Obsolete, Ontology, OntologyTerm
from data_prep.records import (
    AnnotationRecord,
    EntryRecord,
    ImageRecord,
    Rejection,
    SequenceRecord,
    StructureRecord,
    TextRecord,
)
from data_prep.split import SPLITS, SplitConfig, split
from pretrain.sample import About, Facet, Image, Sample, Term, Text

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRV"
ONTOLOGY = Ontology(
    "test",
    {
        "GO:0000001": OntologyTerm("one", "molecular_function", alt_ids=("GO:0000009",)),
        "GO:0000002": OntologyTerm("two", "biological_process"),
    },
    {
        "GO:0000003": Obsolete("obsolete three", ("GO:0000001", "GO:0000002")),
        "GO:0000005": Obsolete("obsolete five", ("GO:0000002",)),
    },
)


def structure(letters: str = SEQUENCE, id: str = "1abc_A", **fields) -> StructureRecord:
    generator = np.random.default_rng(0)
    return StructureRecord(
        key="P1",
        source="s.cif",
        id=id,
        letters=letters,
        atoms=("N", "CA", "C"),
        coordinates=(generator.normal(size=(len(letters), 3, 3)) * 10 + 50).astype(np.float32),
        mask=np.ones((len(letters), 3), dtype=bool),
        number=np.arange(5, 5 + len(letters), dtype=np.int32),
        **fields,
    )


def joined(*records, **options) -> tuple[Sample | None, list[Rejection]]:
    found = join("P1", records, ONTOLOGY, JoinConfig(**options))
    return found.sample, found.rejected


def test_every_modality():
    sample, rejected = joined(
        SequenceRecord("P1", "a", SEQUENCE),
        structure(SEQUENCE[3:33]),
        AnnotationRecord("P1", "g", (("GO:0000002", "IDA"),)),
        TextRecord("P1", "a", Text("Does things.", "uniprot:function")),
        ImageRecord("P1", "m", Image("i", b"png")),
    )
    assert sample is not None
    assert not rejected
    assert sample.facets == Facet.SEQUENCE | Facet.STRUCTURE | Facet.TERMS | Facet.TEXT | Facet.IMAGE
    (chain,) = sample.structures
    assert chain.residue.tolist() == list(range(3, 33))
    assert chain.identity == 1.0
    assert chain.coordinates.mean(axis=(0, 1)) == pytest.approx(np.zeros(3), abs=1e-3)


def test_the_first_sequence_wins_and_a_different_one_is_named():
    sample, (conflict,) = joined(
        SequenceRecord("P1", "a", SEQUENCE),
        SequenceRecord("P1", "b", SEQUENCE),
        SequenceRecord("P1", "c", "A" + SEQUENCE[1:]),
    )
    assert sample is not None
    assert sample.sequence == SEQUENCE
    assert (conflict.reason, conflict.source) == ("sequence_conflict", "c")
    assert "first difference at residue 1" in conflict.detail


def test_terms_are_resolved_and_obsolete_or_unknown_ones_refused():
    terms = (
        ("GO:0000009", "IDA"),
        ("GO:0000001", "NR"),
        ("GO:0000002", "NR"),
        ("GO:0000003", "IEA"),
        ("GO:0000004", "IEA"),
    )
    sample, rejected = joined(SequenceRecord("P1", "a", SEQUENCE), AnnotationRecord("P1", "g", terms))
    assert sample is not None
    assert sample.function is not None
    assert sample.function.terms == (Term("GO:0000001", "IDA"), Term("GO:0000002", "NR"))
    assert {(r.reason, r.detail) for r in rejected} == {
        ("obsolete_term", "GO:0000003 obsolete three, replaced by GO:0000001, GO:0000002"),
        ("unknown_term", "GO:0000004 is not in the ontology"),
    }


def test_without_an_ontology_terms_are_refused_as_a_whole():
    record = AnnotationRecord("P1", "g", (("GO:0000001", "IDA"), ("GO:0000002", "IDA")))
    found = join("P1", [SequenceRecord("P1", "a", SEQUENCE), record], Ontology(), JoinConfig())
    sample, (refused,) = found.sample, found.rejected
    assert sample is not None
    assert sample.function is None
    assert (refused.reason, refused.detail) == ("no_ontology", "2 terms")


def test_structures_are_ranked_by_coverage_then_resolution_and_capped():
    sample, rejected = joined(
        SequenceRecord("P1", "a", SEQUENCE),
        structure(SEQUENCE[:30], "short", resolution=1.0),
        structure(id="model", confidence=np.full(40, 90.0, dtype=np.float32)),
        structure(id="coarse", resolution=3.0),
        structure(id="fine", resolution=1.5),
        structure(id="fine", resolution=2.5),
        max_structures=3,
    )
    assert sample is not None
    assert [s.id for s in sample.structures] == ["fine", "coarse", "model"]
    assert sorted((r.reason, r.detail.split()[0]) for r in rejected) == [
        ("beyond_max_structures", "short"),
        ("duplicate_structure", "fine"),
    ]


def test_a_chain_of_another_protein_is_rejected_with_identity_and_mismatch():
    sample, (refused,) = joined(SequenceRecord("P1", "a", SEQUENCE), structure("WCHW" * 10))
    assert sample is not None
    assert not sample.structures
    assert refused.reason == "low_identity"
    assert "identity 0." in refused.detail


def test_a_chain_mostly_of_something_else_is_rejected():
    _, (refused,) = joined(SequenceRecord("P1", "a", SEQUENCE), structure(SEQUENCE + "WCHW" * 10))
    assert refused.reason == "low_coverage"


def test_without_a_sequence_numbers_are_kept_with_their_gaps():
    record = structure()
    record.number[20:] += 7
    sample, _ = joined(record)
    assert sample is not None
    (chain,) = sample.structures
    assert chain.residue.tolist() == [*range(20), *range(27, 47)]
    assert chain.identity is None


def test_function_alone_is_kept_or_counted():
    record = AnnotationRecord("P1", "g", (("GO:0000002", "IDA"),))
    sample, _ = joined(record)
    assert sample is not None
    assert sample.facets == Facet.TERMS
    sample, (refused,) = joined(record, keep_unpaired_function=False)
    assert sample is None
    assert refused.reason == "function_only"


def test_an_entry_of_names_alone_is_rejected_by_name():
    sample, (refused,) = joined(EntryRecord("P1", "a.tsv", About(name="Titin"), position="byte 7"))
    assert sample is None
    assert (refused.reason, refused.source, refused.position) == ("nothing_but_names", "a.tsv", "byte 7")
    sample, (refused,) = joined(EntryRecord("P1", "a", About(name="Titin")), SequenceRecord("P1", "a", ""))
    assert sample is None and refused.reason == "empty_sequence"


def test_nothing_left_is_no_sample():
    sample, rejected = joined(SequenceRecord("P1", "a", ""), AnnotationRecord("P1", "g", (("GO:0000004", "IEA"),)))
    assert sample is None
    assert {r.reason for r in rejected} == {"empty_sequence", "unknown_term"}


def test_images_are_capped():
    images = [ImageRecord("P1", "m", Image(f"field{n // 10}_cell{n % 10}", b"png")) for n in range(40)]
    sample, rejected = joined(*images, *images, max_images=8)
    assert sample is not None
    ids = [image.id for image in sample.images]
    assert ids == sorted(ids) and len(ids) == 8
    assert len({id.partition("_")[0] for id in ids}) > 2  # not those of the first field alone
    assert sorted({r.reason for r in rejected}) == ["beyond_max_images", "duplicate_image"]
    again, _ = joined(*images[::-1], max_images=8)
    assert again and [image.id for image in again.images] == ids


@pytest.mark.parametrize(
    ("sequence", "reason", "said"),
    [
        ("MKT", "too_short", "3 residues, min_length is 20"),
        ("A" * 101, "too_long", "101 residues, max_length is 100"),
        ("A" * 30 + "?1", "bad_letters", "'1?' at residue 31"),
        ("A" * 10 + "X" * 20, "mostly_unknown", "0.67 of 30"),
    ],
)
def test_filters(sequence, reason, said):
    refused = check(
        Sample("P1", sequence), SequenceRecord("P1", "file", sequence, "byte 5"), FilterConfig(max_length=100)
    )
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.key, refused.source) == (reason, "P1", "file")
    assert said in refused.detail


def test_a_sample_within_the_limits_passes_as_it_is():
    sample = Sample("P1", SEQUENCE)
    assert check(sample, SequenceRecord("P1", "file", ""), FilterConfig()) is sample


def test_split_is_a_function_of_the_key_with_the_shares_asked_for():
    config = SplitConfig.model_validate({"valid": 0.1, "test": 0.2})
    drawn = [split(f"P{n}", config) for n in range(4000)]
    assert drawn == [split(f"P{n}", config) for n in range(4000)]
    assert [round(drawn.count(which) / 4000, 1) for which in SPLITS] == [0.7, 0.1, 0.2]
    assert drawn != [split(f"P{n}", config.model_copy(update={"seed": 1})) for n in range(4000)]


def test_evidence_is_filtered_and_what_became_of_ids_is_counted():
    terms = (("GO:0000002", "IDA"), ("GO:0000009", "IEA"), ("GO:0000005", "EXP"), ("GO:0000001", "IEA"))
    record = AnnotationRecord("P1", "g", terms, "byte 12")
    found = join("P1", [record], ONTOLOGY, JoinConfig(evidence=("experimental",)))
    assert found.sample and found.sample.function
    assert found.sample.function.terms == (Term("GO:0000002", "EXP"), Term("GO:0000002", "IDA"))
    assert [(r.reason, r.detail, r.position, r.count) for r in found.rejected] == [
        ("evidence_filtered", "2 terms by IEA", "byte 12", 2)
    ]
    assert found.counts["terms/live"] == found.counts["terms/replaced"] == 1
    assert found.counts["namespace/biological_process"] == 2


def test_what_one_source_denies_no_other_may_say():
    """Itself, and what is below it by is_a and part_of; not what is above it, and not another protein's."""
    layers = Ontology(
        "test",
        {
            "GO:0000001": OntologyTerm("cell", "cellular_component"),
            "GO:0000002": OntologyTerm("inside", "cellular_component", is_a=("GO:0000001",), alt_ids=("GO:0000009",)),
            "GO:0000003": OntologyTerm("cytosol", "cellular_component", part_of=("GO:0000002",)),
            "GO:0000004": OntologyTerm("nucleus", "cellular_component", is_a=("GO:0000001",)),
        },
    )
    said = tuple((f"GO:000000{n}", "IDA") for n in (1, 2, 3, 4))
    records = [
        AnnotationRecord("P1", "a.tsv", said, "byte 100", steps=(0, 10, 20, 30)),
        AnnotationRecord("P1", "b.gaf", (("GO:0000009", "IEA"),), "byte 5"),
        AnnotationRecord("P1", "b.gaf", (), "byte 70", denied=("GO:0000009", "GO:7777777")),
    ]
    found = join("P1", records, layers, JoinConfig())
    assert found.sample and found.sample.function
    assert found.sample.function.terms == (Term("GO:0000001", "IDA"), Term("GO:0000004", "IDA"))
    why = "b.gaf, byte 70, says NOT GO:0000009"
    assert [(r.reason, r.source, r.detail, r.position) for r in found.rejected] == [
        ("contradicted_annotation", "a.tsv", f"GO:0000002 by IDA; {why}", "byte 110"),
        ("contradicted_annotation", "a.tsv", f"GO:0000003 by IDA; {why}", "byte 120"),
        ("contradicted_annotation", "b.gaf", f"GO:0000002 by IEA; {why}", "byte 5"),
    ]
    assert (found.counts["terms/live"], found.counts["terms/contradicted"]) == (2, 3)
    alone = join("P1", records[2:], layers, JoinConfig())
    assert (alone.sample, alone.rejected) == (None, [])
    assert not join("P1", records[2:], Ontology(), JoinConfig()).rejected


def test_a_refused_term_has_its_own_position():
    record = AnnotationRecord("P1", "g", (("GO:0000001", "IDA"), ("GO:0000003", "IDA")), "byte 2982", steps=(0, 131))
    _, (refused,) = joined(SequenceRecord("P1", "a", SEQUENCE), record)
    assert (refused.reason, refused.position) == ("obsolete_term", "byte 3113")


def test_what_entries_say_is_taken_from_the_first_that_says_it():
    entries = (
        EntryRecord("P1", "a", About(name="Titin", taxon=0), secondary=("Q1",)),
        EntryRecord("P1", "b", About(name="Other", taxon=9606, ec=("1.1.1.1",)), secondary=("Q2",)),
    )
    found = join("P1", [SequenceRecord("P1", "a", SEQUENCE), *entries], ONTOLOGY, JoinConfig())
    assert found.sample
    assert found.sample.about == About(name="Titin", taxon=9606, ec=("1.1.1.1",), secondary=("Q1",))
    assert found.counts["further_entries"] == 1


def test_an_equal_sequence_is_counted_and_a_different_one_rejected():
    records = [SequenceRecord("P1", name, text) for name, text in (("a", SEQUENCE), ("b", SEQUENCE), ("c", "MKT"))]
    found = join("P1", records, ONTOLOGY, JoinConfig())
    assert found.counts["same_sequence"] == 1
    assert [(r.reason, r.source) for r in found.rejected] == [("sequence_conflict", "c")]


def test_states_and_aligned_errors_follow_the_residues_that_are_kept():
    size = len(SEQUENCE) + 3
    pae = np.arange(size * size, dtype=np.uint8).reshape(size, size)
    record = structure("GSH" + SEQUENCE, states="AAA" + "D" * len(SEQUENCE), pae=pae)  # a tag that aligns to nothing
    sample, _ = joined(SequenceRecord("P1", "a", SEQUENCE), record)
    assert sample
    (chain,) = sample.structures
    assert chain.letters == SEQUENCE
    assert chain.states == "D" * len(SEQUENCE)
    assert chain.pae is not None and np.array_equal(chain.pae, pae[3:, 3:])
