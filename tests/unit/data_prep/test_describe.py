"""Descriptions: true to the terms, different from each other, and always the same for the same key."""

import pytest

from data_prep.describe import DescribeConfig, describe, specific
from data_prep.ontology import Ontology, OntologyTerm
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
