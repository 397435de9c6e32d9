"""Names and comments as English: what is said of a term, what is taken from a comment, and what is left alone."""

import re

import pytest

from data_prep.ontology import Ontology, OntologyTerm, parse
from data_prep.words import phrases
from data_prep.words.comments import locations, statements
from data_prep.words.draws import Draw
from pretrain.places import Place
from tests import pack

PACK = pack.PACK / "go"


def draws() -> list[Draw]:
    return [Draw(str(n)) for n in range(20)]


def test_draws_are_made_of_what_python_promises():
    draw = Draw("a name")
    assert [draw.below(1000) for _ in range(6)] == [826, 767, 35, 715, 861, 914]
    assert Draw("a name").sample("abcdefgh", 3) == ["g", "f", "a"]
    assert sorted(Draw("x").sample("abc", 9)) == ["a", "b", "c"]
    counts = [0] * 5
    for n in range(5000):
        counts[Draw(str(n)).choice(range(5))] += 1
    assert all(900 < count < 1100 for count in counts)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("synaptic transmission, cholinergic", "cholinergic synaptic transmission"),
        ("mRNA splicing, via spliceosome", "mRNA splicing via spliceosome"),
        (
            "DNA-binding transcription activator activity, RNA polymerase II-specific",
            "RNA polymerase II-specific DNA-binding transcription activator activity",
        ),
        ("positive regulation of synaptic transmission, glycinergic", None),  # of what is open
        ("complement activation, classical pathway", None),
        ("carbohydrate derivative transport", None),
    ],
)
def test_inverted_names_are_put_straight(name, said):
    assert phrases.plain(name) == (said or name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("glycolytic process", {"glycolytic processes"}),
        ("response to heat", {"the response to heat"}),
        ("cell cycle", {"the cell cycle"}),
        ("G2/M transition of mitotic cell cycle", {"G2/M transition of mitotic cell cycle"}),
        ("regulation of cell cycle", {"regulation of the cell cycle"}),
        ("DNA repair", {"DNA repair"}),
        ("ATP biosynthetic process", {"ATP biosynthesis", "ATP biosynthetic processes"}),
        ("lipid catabolic process", {"lipid catabolism", "lipid breakdown", "lipid catabolic processes"}),
        (
            "L-threonine catabolic process to propionate",
            {f"L-threonine {word} to propionate" for word in phrases.WORDS["catabolic"]},
        ),
    ],
)
def test_processes_as_what_one_takes_part_in(name, said):
    assert {phrases.process(name, draw) for draw in draws()} == said


def test_regulation_as_a_verb():
    assert phrases.regulated("positive regulation of cell cycle", Draw("")) == (
        "positively regulates",
        "the cell cycle",
    )
    assert phrases.regulated("regulation of DNA repair", Draw("")) == ("regulates", "DNA repair")
    assert phrases.regulated("DNA repair", Draw("")) is None


@pytest.mark.parametrize(
    ("name", "definition", "what"),
    [
        ("zinc ion binding", "Binding to a zinc ion (Zn).", "a zinc ion"),
        ("magnesium ion binding", "Binding to a magnesium (Mg) ion.", "a magnesium ion"),
        ("ATP binding", "Binding to ATP, adenosine 5'-triphosphate, a coenzyme.", "ATP"),
        ("RNA binding", "Binding to an RNA molecule or a portion thereof.", "an RNA molecule"),
        ("actin binding", "Interacting selectively and non-covalently with actin. More.", "actin"),
        ("NAD(P) binding", "Binding to NAD(P).", "NAD(P)"),
        ("DNA binding", "", "DNA"),
        ("glycogen binding", "", ""),
        ("protein binding", "Binding to a protein.", "other proteins"),
        ("kinase activity", "Catalysis of a transfer.", ""),
        ("x binding", "Binding to " + "a very long description of what it is " * 3, ""),
    ],
)
def test_what_is_bound_stands_in_the_definition(name, definition, what):
    assert phrases.bound(OntologyTerm(name, "molecular_function", definition)) == what


def test_places_and_what_one_is_part_of():
    names = {
        "GO:1": "nucleus",
        "GO:2": "cell surface",
        "GO:3": "integral component of membrane",
        "GO:4": "extrinsic component of the cytoplasmic side of the plasma membrane",
        "GO:5": "external side of plasma membrane",
        "GO:6": "exocyst",
        "GO:7": "phagophore assembly site membrane",
        phrases.COMPLEX: "protein-containing complex",
    }
    terms = {id: OntologyTerm(name, "cellular_component") for id, name in names.items()}
    terms["GO:6"] = OntologyTerm("exocyst", "cellular_component", is_a=(phrases.COMPLEX,))
    ontology = Ontology("test", terms)
    assert [" ".join(phrases.place(id, ontology)) for id in names] == [
        "in the nucleus",
        "at the cell surface",
        "an integral component of the membrane",
        "an extrinsic component of the cytoplasmic side of the plasma membrane",
        "at the external side of the plasma membrane",
        "part of the exocyst",
        "in the phagophore assembly site membrane",
        "part of a protein complex",
    ]


def test_a_parent_is_named_only_if_it_tells_something():
    terms = {
        "GO:0003674": OntologyTerm("molecular_function", "m"),
        "GO:1": OntologyTerm("binding", "m", is_a=("GO:0003674",)),
        "GO:2": OntologyTerm("anion binding", "m", is_a=("GO:1",)),
        "GO:3": OntologyTerm("ATP binding", "m", is_a=("GO:2",)),
        "GO:4": OntologyTerm("small anion binding", "m", is_a=("GO:2",)),
    }
    ontology = Ontology("test", terms)
    assert [phrases.kind(id, ontology, Draw("")) for id in terms] == ["", "", "", "anion binding", ""]
    crowd = {f"GO:9{n}": OntologyTerm(f"x{n}", "m", is_a=("GO:2",)) for n in range(phrases.GENERAL)}
    assert phrases.kind("GO:3", Ontology("test", terms | crowd), Draw("")) == ""


@pytest.mark.parametrize(
    ("name", "definition", "said"),
    [
        ("motor", "A motor that moves. It moves.", "A motor that moves"),
        ("thing", "Any thing (e.g. A or B). It moves.", "Any thing (e.g. A or B)"),
        ("x", "Golgi things of 50.5  kDa", "Golgi things of 50.5 kDa"),
        ("zinc ion binding", "Binding to a zinc ion (Zn).", ""),  # the name again
        ("germinal center formation", "The process in which germinal centers form.", ""),
        ("regulation of growth", "Any process that modulates the frequency, rate or extent of growth.", ""),
        ("integral component of membrane", "The component of a membrane consisting of gene products.", ""),
        ("x", "word " * 80, ""),
        ("x", "", ""),
    ],
)
def test_a_definition_is_told_where_it_says_more(name, definition, said):
    assert phrases.definition(OntologyTerm(name, "molecular_function", definition)) == said


def test_series_and_articles_and_sentences():
    assert phrases.series(["a"]) == "a"
    assert phrases.series(["a", "b", "c"]) == "a, b and c"
    assert phrases.series(["a and b", "c"]) == "a and b as well as c"
    assert phrases.series(["a, b", "c", "3,4-d"]) == "a, b; c; and 3,4-d"
    words = ("enzyme", "ubiquitin ligase", "RNA", "DNA", "E3 ligase", "hydrolase", "mRNA", "U2 snRNP", "integral part")
    assert [phrases.article(word) for word in words] == ["an", "a", "an", "a", "an", "a", "an", "a", "an"]
    assert phrases.sentence("mRNA it is.") == "mRNA it is."
    assert phrases.sentence("it is") == "It is."


# --- UniProt's comments


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("Binds ATP. Moves things.", []),  # too short to be worth telling
        ("Binds ATP and other nucleotides.", ["binds ATP and other nucleotides"]),
        ("Involved in DNA repair.", ["is involved in DNA repair"]),
        ("Component of the exocyst complex.", ["is a component of the exocyst complex"]),
        ("E3 ubiquitin-protein ligase that acts on X.", ["is an E3 ubiquitin-protein ligase that acts on X"]),
        ("Probable transcription factor.", ["is a probable transcription factor"]),
        ("May play a role in growth.", ["may play a role in growth"]),
        ("This protein is an activator of B.", ["This protein is an activator of B"]),
        ("Catalyzes A of PRKDC. The latter is not said.", ["catalyzes A of PRKDC"]),
        ("GTP-binding protein that functions as a switch.", ["is a GTP-binding protein that functions as a switch"]),
        ("[Isoform 2]: Inhibits the other isoforms.", []),
        ("Surface protein gp120: Attaches the virus to cells.", []),
        ("Actins are highly conserved proteins.", []),
        ("NifF is the electron donor to nitrogenase.", []),
        ("Catalyzes the reaction ATP + H2O = ADP + phosphate.", ["catalyzes the reaction ATP + H2O = ADP + phosphate"]),
        ("Binds things (of which the bracket never ends.", []),
        ("Catalyzes " + "a very long story " * 40, []),
    ],
)
def test_statements_of_a_comment(comment, said):
    assert statements(comment) == said


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("Subcellular location: Nucleus; Chromosome, centromere.", ["the nucleus", "the centromere"]),
        ("Subcellular location: Secreted.", ["secreted"]),
        (
            "Subcellular location: Cell membrane, multi-pass membrane protein.",
            ["the cell membrane as a multi-pass membrane protein"],
        ),
        ("Subcellular location: Golgi apparatus. Also found elsewhere.", ["the Golgi apparatus"]),
        ("Subcellular location: Cytoplasm, perinuclear region.", ["the perinuclear region of the cytoplasm"]),
        ("Subcellular location: Cytoplasm, P-body; Host membrane.", ["the P-body", "host membrane"]),
        (
            "Subcellular location: Cell membrane, lipid-anchor, Cytoplasmic side.",
            ["the cell membrane (lipid-anchor, cytoplasmic side)"],
        ),
        ("Subcellular location of isoform 2: Secreted.", []),
        ("Subcellular location: Nucleus; Isoform 2: Secreted.", ["the nucleus"]),
        ("Nucleus.", []),
        ("", []),
    ],
)
def test_places_of_a_location(text, places):
    assert locations(text) == places


@pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not here")
def test_every_term_of_go_can_be_said():
    ontology, _ = parse(Place(str(PACK)), "go_2022-07-01_from_GO.db.obo.gz")
    draw = Draw("all")
    bound = 0
    for id, term in ontology.terms.items():
        said = [phrases.plain(term.name), phrases.kind(id, ontology, draw), phrases.bound(term)]
        bound += bool(said[-1])
        if term.namespace == "biological_process":
            said.append(phrases.process(term.name, draw))
        elif term.namespace == "cellular_component":
            said.append(" ".join(phrases.place(id, ontology)))
        else:
            said.append(phrases.function(term.name))
        for text in said:
            assert not re.search(r"  |\bthe the\b|\bof of\b|^ | $", text), (id, said)
        if told := phrases.definition(term):
            assert len(told) <= phrases.LONGEST
            assert told in " ".join(term.definition.split())
    assert bound > 1300
