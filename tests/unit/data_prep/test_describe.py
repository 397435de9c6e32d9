"""Descriptions: true to the terms, different from each other, and always the same for the same key."""

import pytest

from data_prep.describe import DescribeConfig, describe, specific
from data_prep.ontology import Ontology, OntologyTerm, parse, read
from pretrain.sample import Function, Sample, Term, Text

TERMS = {
    "GO:0003674": OntologyTerm("molecular_function", "molecular_function"),
    "GO:0005488": OntologyTerm("binding", "molecular_function", is_a=("GO:0003674",)),
    "GO:0005515": OntologyTerm("protein binding", "molecular_function", is_a=("GO:0005488",)),
    "GO:0005524": OntologyTerm(
        "ATP binding",
        "molecular_function",
        "Binding to ATP. It is a coenzyme.",
        ("bonding to ATP",),
        is_a=("GO:0005488",),
    ),
    "GO:0006810": OntologyTerm("transport", "biological_process", "The movement of things."),
    "GO:0005634": OntologyTerm("nucleus", "cellular_component", "A bounded organelle."),
}
ONTOLOGY = Ontology("test", TERMS)
OBO = """format-version: 1.2
data-version: releases/2020-01-01
ontology: go

[Term]
id: GO:0000001
name: one
namespace: biological_process
alt_id: GO:0000011
def: "The first." [GOC:x]
synonym: "uno" EXACT []
synonym: "one of two" RELATED []

[Term]
id: GO:0000002
name: two
namespace: biological_process
is_a: GO:0000001 ! one
relationship: part_of GO:0000003 ! three

[Term]
id: GO:0000003
name: three
namespace: biological_process

[Term]
id: GO:0000004
name: obsolete four
namespace: biological_process
is_obsolete: true
replaced_by: GO:0000001

[Typedef]
id: part_of
name: part of
"""


def sample(key: str, *ids: str, texts: tuple[Text, ...] = ()) -> Sample:
    return Sample(key, function=Function(tuple(Term(id, "IDA") for id in ids), texts))


def texts(key: str, *ids: str, ontology: Ontology = ONTOLOGY, **options) -> list[str]:
    config = DescribeConfig.model_validate(options)
    function = describe(sample(key, *ids), ontology, config).function
    return [text.text for text in function.texts] if function else []


def test_the_same_key_gives_the_same_text_and_another_key_other_words():
    ids = ("GO:0005524", "GO:0006810", "GO:0005634")
    assert texts("P1", *ids) == texts("P1", *ids)
    assert len({text for n in range(20) for text in texts(f"P{n}", *ids, paraphrases=1)}) > 10


def test_paraphrases_name_every_term_by_name_or_synonym():
    for n in range(20):
        for text in texts(f"P{n}", "GO:0005524", "GO:0006810", "GO:0005634", paraphrases=3):
            assert "ATP binding" in text or "bonding to ATP" in text
            assert "transport" in text
            assert "nucleus" in text
            assert text[0].isupper()
            assert text.endswith(".")


def test_roots_and_what_other_terms_imply_are_not_said():
    assert specific(["GO:0003674", "GO:0005488", "GO:0005524"], ONTOLOGY) == ["GO:0005524"]
    assert specific(["GO:0005515", "GO:0006810"], ONTOLOGY) == ["GO:0006810"]
    assert specific(["GO:0005515"], ONTOLOGY) == ["GO:0005515"]
    assert texts("P1", "GO:0003674") == []


@pytest.mark.parametrize(
    ("name", "aspect", "spoken"),
    [
        ("nucleus", "cellular_component", "the nucleus"),
        ("integral component of membrane", "cellular_component", "the membrane as an integral component"),
        ("structural constituent of ribosome", "molecular_function", "being a structural constituent of ribosome"),
        ("ATP binding", "molecular_function", "ATP binding"),
        ("glycolytic process", "biological_process", "glycolytic processes"),
        ("response to heat", "biological_process", "the response to heat"),
        ("DNA repair", "biological_process", "DNA repair"),
    ],
)
def test_names_are_spoken_as_english(name, aspect, spoken):
    ontology = Ontology("test", {"GO:0000001": OntologyTerm(name, aspect)})
    for n in range(8):
        for text in texts(f"P{n}", "GO:0000001", ontology=ontology):
            assert spoken + "." in text
            assert "{" not in text


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ("A motor. It moves.", "MRNA thing: A motor."),
        ("Any thing (e.g. A or B). It moves.", "MRNA thing: Any thing (e.g. A or B)."),
        ("Golgi things of 50.5 kDa", "MRNA thing: Golgi things of 50.5 kDa."),
    ],
)
def test_a_definition_s_first_sentence_is_whole(definition, said):
    for name in ("MRNA thing", "mRNA thing", "siRNA thing"):  # the small letters stay
        ontology = Ontology("test", {"GO:0000001": OntologyTerm(name, "molecular_function", definition)})
        (text, *_) = texts("P1", "GO:0000001", ontology=ontology, definitions=1.0)
        assert text.endswith(said.replace("MRNA thing", name))


def test_a_parent_is_named_only_if_it_tells_something():
    ontology = Ontology("test", {**TERMS, "GO:0000001": OntologyTerm("x", "molecular_function", is_a=("GO:0005524",))})
    said = [text for n in range(40) for text in texts(f"P{n}", "GO:0005524")]
    assert not any("binding)" in text for text in said)  # `a kind of binding`
    told = [text for n in range(40) for text in texts(f"P{n}", "GO:0000001", ontology=ontology)]
    assert any("of ATP binding)" in text for text in told)


def test_written_texts_come_first_and_origins_say_who_wrote():
    known = Text("Does things.", "uniprot:function")
    described = describe(
        sample("P1", "GO:0005524", texts=(known,)), ONTOLOGY, DescribeConfig.model_validate({"seed": 3})
    )
    assert described.function is not None
    assert [text.origin for text in described.function.texts] == ["uniprot:function", "template:3", "template:4"]


def test_an_ontology_survives_its_file(tmp_path):
    (tmp_path / "go.obo").write_text(OBO)
    parsed, seen = parse(tmp_path, "go.obo")
    assert seen.path == "go.obo"
    assert parsed.release == "releases/2020-01-01"
    assert parsed.terms["GO:0000002"] == OntologyTerm(
        "two", "biological_process", is_a=("GO:0000001",), part_of=("GO:0000003",)
    )
    assert parsed.terms["GO:0000001"].definition == "The first."
    assert parsed.terms["GO:0000001"].synonyms == ("uno",)
    assert parsed.obsolete["GO:0000004"].replaced_by == ("GO:0000001",)
    assert parsed.resolve("GO:0000011") == "GO:0000001"
    assert parsed.resolve("GO:0000004") is None
    assert parsed.ancestors("GO:0000002") == {"GO:0000001", "GO:0000003"}
    (tmp_path / "ontology.json").write_bytes(parsed.to_bytes())
    assert read(tmp_path / "ontology.json") == parsed


def test_a_subset_s_relations_to_the_rest_are_kept_but_lead_nowhere(tmp_path):
    (tmp_path / "go.obo").write_text(OBO.replace("part_of GO:0000003 ! three", "part_of GO:0000099"))
    parsed, _ = parse(tmp_path, "go.obo")
    assert parsed.terms["GO:0000002"].part_of == ("GO:0000099",)
    assert parsed.ancestors("GO:0000002") == {"GO:0000001"}
    (tmp_path / "go.obo").write_text(OBO.replace("is_a: GO:0000001", "is_a: GO:0000099"))
    with pytest.raises(ValueError, match="parent that it does not have: 'GO:0000099'"):
        parse(tmp_path, "go.obo")


def test_terms_that_are_each_other_s_parents_end(tmp_path):
    (tmp_path / "go.obo").write_text(OBO.replace("alt_id: GO:0000011", "is_a: GO:0000002"))
    parsed, _ = parse(tmp_path, "go.obo")
    assert parsed.ancestors("GO:0000001") == {"GO:0000001", "GO:0000002", "GO:0000003"}
    assert describe(sample("P1", "GO:0000001"), parsed, DescribeConfig.model_validate({})).function is not None


def test_another_ontology_at_the_same_place_is_read_anew(tmp_path):
    for release in ("one", "another"):
        (tmp_path / "ontology.json").write_bytes(Ontology(release, TERMS).to_bytes())
        assert read(tmp_path / "ontology.json").release == release


@pytest.mark.parametrize(
    "content", ["not an ontology", "format-version: 1.2\nontology: x\n\n[Term]\nid: X:1\nname: x\n"]
)
def test_what_is_not_the_gene_ontology_is_refused(tmp_path, content):
    (tmp_path / "go.obo").write_text(content)
    with pytest.raises(ValueError, match=r"go\.obo: (not a readable OBO file|no GO term)"):
        parse(tmp_path, "go.obo")
