"""Descriptions: true to what is known, different from each other, and always the same for the same key."""

from collections import Counter

import pytest

from data_prep.describe import DescribeConfig, count, describe, describe_all
from data_prep.ontology import Ontology, OntologyTerm
from data_prep.words.facts import enzyme, named, organism, specific
from pretrain.sample import About, Function, Sample, Term, Text

TERMS = {
    "GO:0003674": OntologyTerm("molecular_function", "molecular_function"),
    "GO:0008150": OntologyTerm("biological_process", "biological_process"),
    "GO:0005488": OntologyTerm("binding", "molecular_function", is_a=("GO:0003674",)),
    "GO:0005515": OntologyTerm("protein binding", "molecular_function", is_a=("GO:0005488",)),
    "GO:0005524": OntologyTerm(
        "ATP binding",
        "molecular_function",
        "Binding to ATP. It is a coenzyme.",
        ("ATP-like binding", "ATP"),
        is_a=("GO:0005488",),
    ),
    "GO:0016301": OntologyTerm(
        "kinase activity",
        "molecular_function",
        "Catalysis of the transfer of a phosphate group.",
        part_of=("GO:0016310",),
    ),
    "GO:0016310": OntologyTerm(
        "phosphorylation", "biological_process", "The process of introducing a phosphate group."
    ),
    "GO:0006810": OntologyTerm("transport", "biological_process", "The movement of things."),
    "GO:0045787": OntologyTerm("positive regulation of cell cycle", "biological_process"),
    "GO:0005634": OntologyTerm("nucleus", "cellular_component", "A bounded organelle of the cell."),
    "GO:0000502": OntologyTerm("proteasome complex", "cellular_component"),
}
ONTOLOGY = Ontology("test", TERMS)
THREE = ("GO:0005524", "GO:0006810", "GO:0005634")


def sample(key: str, *ids: str, texts: tuple[Text, ...] = (), about: About | None = None) -> Sample:
    function = Function(tuple(Term(id, "IDA") for id in ids), texts)
    return Sample(key, "MKT", function=function if ids or texts else None, about=about or About())


def texts(key: str, *ids: str, ontology: Ontology = ONTOLOGY, **options) -> list[str]:
    config = DescribeConfig.model_validate(options)
    function = describe(sample(key, *ids), ontology, config).function
    return [text.text for text in function.texts] if function else []


def told(one: Sample, **options) -> list[str]:
    function = describe(one, ONTOLOGY, DescribeConfig.model_validate({"paraphrases": 12, **options})).function
    return [text.text for text in function.texts if text.origin.startswith("template:")] if function else []


def test_the_same_key_gives_the_same_text_and_another_key_other_words():
    assert texts("P1", *THREE) == texts("P1", *THREE)
    assert texts("P1", *THREE) != texts("P1", *THREE, seed=9)
    assert len({text for n in range(20) for text in texts(f"P{n}", *THREE, paraphrases=1)}) > 15


def test_a_text_is_what_it_was():
    """Texts are bytes of a data set: this one changes only with a decision to change descriptions."""
    assert texts("P12345", *THREE, "GO:0045787", paraphrases=2) == [
        "The protein binds ATP. The protein functions in transport and positive regulation of the cell cycle. It "
        "resides in the nucleus. Transport is the movement of things.",
        "The protein is found in the nucleus. The protein binds ATP. It has a role in transport. It positively "
        "regulates the cell cycle.",
    ]


def test_paraphrases_tell_of_every_aspect_in_sentences():
    for n in range(30):
        for text in texts(f"P{n}", *THREE, paraphrases=3):
            assert "ATP" in text
            assert "transport" in text.lower()
            assert "nucleus" in text
            assert text[0].isupper()
            assert text.endswith(".")
            assert not {"{", "}"} & set(text)
            assert all(part[0].isupper() for part in text.split(". "))


def test_roots_and_what_other_terms_imply_are_not_said():
    assert specific(["GO:0003674", "GO:0005488", "GO:0005524"], ONTOLOGY) == ["GO:0005524"]
    assert specific(["GO:0005515", "GO:0005524"], ONTOLOGY) == ["GO:0005524"]
    assert specific(["GO:0005515", "GO:0006810"], ONTOLOGY) == ["GO:0005515", "GO:0006810"]  # all that its aspect has
    assert specific(["GO:0016301", "GO:0016310"], ONTOLOGY) == ["GO:0016301", "GO:0016310"]  # of two namespaces
    assert specific(["GO:9999999"], ONTOLOGY) == []
    assert texts("P1", "GO:0003674") == []
    assert all("binds" in text or "binding" in text for text in texts("P1", "GO:0005515", paraphrases=9))


def test_many_terms_are_drawn_from():
    terms = {f"GO:{n:07}": OntologyTerm(f"process{n}", "biological_process") for n in range(20)}
    found = texts("P1", *terms, ontology=Ontology("test", terms), max_terms=3, paraphrases=9)
    assert all(text.count("process") == 3 for text in found)
    assert len({word for text in found for word in text.split() if word.startswith("process")}) > 10


def test_definitions_are_told_as_often_as_asked():
    ids = ("GO:0016301",)
    assert not any("phosphate" in text for n in range(9) for text in texts(f"P{n}", *ids, definitions=0.0))
    every = [text for n in range(9) for text in texts(f"P{n}", *ids, definitions=1.0)]
    assert all(text.endswith("It catalyzes the transfer of a phosphate group.") or "protein catalyzes" in text
               or "product catalyzes" in text for text in every)  # fmt: skip
    places = [text for n in range(9) for text in texts(f"P{n}", "GO:0005634", definitions=1.0)]
    assert any(text.endswith("The nucleus is a bounded organelle of the cell.") for text in places)
    assert any(text.endswith("Nucleus: A bounded organelle of the cell.") for text in places)


def test_complexes_are_what_a_protein_is_part_of():
    assert all("is part of the proteasome complex." in text for text in texts("P1", "GO:0000502", paraphrases=5))


def test_a_name_with_braces_is_a_name():
    ontology = Ontology(
        "test", {"GO:0000001": OntologyTerm("x{y} activity", "molecular_function", "Catalysis of {z} to x.")}
    )
    found = texts("P1", "GO:0000001", ontology=ontology, paraphrases=8, definitions=1.0)
    assert all("x{y} activity" in text and "{z}" in text for text in found)


# --- what else is told


def test_sentences_of_comments_are_told_where_terms_are():
    comment = Text("Binds calcium with high affinity. Required for growth of bones.", "uniprot:function")
    found = told(sample("P1", "GO:0006810", texts=(comment,)))
    assert all(
        "binds calcium with high affinity" in text or "is required for growth of bones" in text for text in found
    )
    assert not any("calcium" in text for text in told(sample("P1", "GO:0006810", texts=(comment,)), facts=["terms"]))
    alone = told(sample("P1", texts=(comment,)))
    assert "This protein binds calcium with high affinity." in alone
    assert told(sample("P1", texts=(Text("Low-complexity.", "uniprot:function"),))) == []


def test_name_organism_and_enzyme_are_told_if_asked():
    about = About("Titin kinase", "Homo sapiens (Human).", 9606, True, True, ("2.7.11.1",))
    one = sample("P1", "GO:0006810", about=about)
    assert not any("Titin" in text for text in told(one))
    found = told(one, facts=["terms", "about"])
    assert all("itin kinase" in text and "Homo sapiens" in text and "Human" not in text for text in found)
    assert all("is a transferase of class EC 2.7.11.1." in text and "fragment" in text for text in found)
    assert any("precursor" in text for text in found)
    assert "transport" in found[0].lower()


def test_a_name_alone_is_no_function():
    asked = {"facts": ["terms", "comments", "about", "locations"]}
    assert told(sample("P1", about=About("Titin", "Homo sapiens")), **asked) == []
    assert len(told(sample("P1", about=About("Titin", "Homo sapiens", ec=("2.7.11.1",))), **asked)) > 3


@pytest.mark.parametrize(
    ("ec", "said"),
    [
        (("2.7.11.1",), "a transferase of class EC 2.7.11.1"),
        (("3.4.21.-",), "a hydrolase of class EC 3.4.21"),
        (("1.1.1.1", "1.1.1.2"), "an oxidoreductase of classes EC 1.1.1.1 and EC 1.1.1.2"),
        (("1.1.1.1", "2.1.1.2", "3.-.-.-"), "an enzyme of classes EC 1.1.1.1, EC 2.1.1.2 and EC 3"),
        (("7.1.1.2",), "a translocase of class EC 7.1.1.2"),
        (("n1",), "an enzyme of class EC n1"),
        ((), ""),
    ],
)
def test_enzyme_classes(ec, said):
    assert enzyme(About(ec=ec)) == said


def test_names_and_organisms_without_what_says_nothing():
    names = ("Uncharacterized protein YAL019W", "Putative uncharacterized protein", "Titin", "UPF0495 protein", "")
    assert [named(About(name)) for name in names] == ["", "", "titin", "", ""]
    organisms = (
        "Homo sapiens (Human).",
        "Escherichia coli (strain K12)",
        "Saccharomyces cerevisiae (strain ATCC 204508 / S288c) (Baker's yeast)",
    )
    assert [organism(About(organism=text)) for text in organisms] == [
        "Homo sapiens",
        "Escherichia coli (strain K12)",
        "Saccharomyces cerevisiae (strain ATCC 204508 / S288c)",
    ]


def test_locations_are_told_if_asked():
    location = Text(
        "Subcellular location: Nucleus; Cell membrane, multi-pass membrane protein; Secreted.",
        "uniprot:subcellular_location",
    )
    one = sample("P1", "GO:0006810", texts=(location,))
    assert not any("secreted" in text for text in told(one))
    found = told(one, facts=["terms", "locations"])
    assert all("is secreted." in text for text in found)
    assert all("the nucleus and the cell membrane as a multi-pass membrane protein." in text for text in found)


# --- samples


def test_written_texts_come_first_and_origins_say_who_wrote():
    known = Text("Does things.", "sgd:description")
    described = describe(
        sample("P1", "GO:0005524", texts=(known,)), ONTOLOGY, DescribeConfig.model_validate({"seed": 3})
    )
    assert described.function is not None
    assert [text.origin for text in described.function.texts] == ["sgd:description", "template:3", "template:4"]
    assert count(described) == {"sgd:description": 1, "template": 2}


def test_a_sample_that_nothing_is_known_of_is_the_same_sample():
    for one in (Sample("P1", "MKT"), sample("P1", "GO:0003674")):
        assert describe(one, ONTOLOGY, DescribeConfig.model_validate({})) is one
        assert count(one) == Counter()
    one = sample("P1", "GO:0005524")
    assert describe(one, ONTOLOGY, DescribeConfig.model_validate({"paraphrases": 0})) is one


def test_equal_paraphrases_are_kept_once():
    found = texts("P1", "GO:0000502", paraphrases=40)
    assert len(found) == len(set(found)) < 40


def test_all_at_once_is_one_by_one():
    samples = [sample(f"P{n}", *THREE[: n % 4]) for n in range(20)]
    config = DescribeConfig.model_validate({})
    single = [describe(one, ONTOLOGY, config) for one in samples]
    both = zip(describe_all(iter(samples), ONTOLOGY, config), single, strict=True)
    assert all((a.key, a.function) == (b.key, b.function) for a, b in both)
    assert next(describe_all(iter(samples), ONTOLOGY, config)).key == "P0"  # nothing waits for the last


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"facts": ["names"]}, "facts"), ({"writer": {"kind": "poet"}}, "writer"), ({"max_terms": 0}, "max")],
)
def test_mistakes_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        DescribeConfig.model_validate(wrong)
