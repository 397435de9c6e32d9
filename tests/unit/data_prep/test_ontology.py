"""The ontology: what an OBO file says, what an id leads to, what is above a term, and what is refused."""

import gzip
from pathlib import Path

import pytest

from data_prep.ontology import KEPT, Obsolete, Ontology, OntologyTerm, Resolved, parse, read
from data_prep.sources.files import SourceError
from pretrain.places import Place
from pretrain.sample import Term
from tests.pack import PACK

OBO = """format-version: 1.2
data-version: releases/2020-01-01
ontology: go

[Term]
id: GO:0000001
name: one
namespace: biological_process
alt_id: GO:0000011
def: "The \\"first\\", and only." [GOC:x]
synonym: "uno" EXACT []
synonym: "one of two" RELATED []

[Term]
id: GO:0000002
name: two\\, too ! a comment
namespace: biological_process
is_a: GO:0000001 ! one
relationship: part_of GO:0000003 ! three
relationship: regulates GO:0000001 ! one

[Term]
id: GO:0000003
name: three
namespace: biological_process

[Term]
id: GO:0000005
name: five
namespace: molecular_function
relationship: BFO:0000050 GO:0000002 ! two

[Term]
id: GO:0000004
name: obsolete four
namespace: biological_process
is_obsolete: true
replaced_by: GO:0000011
consider: GO:0000003

[Term]
id: CHEBI:1
name: no term of this ontology
is_a: CHEBI:2

[Typedef]
id: part_of
name: part of
"""


def made(tmp_path: Path, content: str | bytes = OBO) -> Ontology:
    (tmp_path / "go.obo").write_bytes(content.encode() if isinstance(content, str) else content)
    return parse(Place(str(tmp_path)), "go.obo")[0]


def test_an_ontology_survives_its_file(tmp_path):
    parsed = made(tmp_path)
    assert parsed.release == "releases/2020-01-01"
    assert list(parsed.terms) == ["GO:0000001", "GO:0000002", "GO:0000003", "GO:0000005"]
    assert parsed.terms["GO:0000001"] == OntologyTerm(
        "one", "biological_process", 'The "first", and only.', ("uno",), alt_ids=("GO:0000011",)
    )
    assert parsed.terms["GO:0000002"] == OntologyTerm(
        "two, too", "biological_process", is_a=("GO:0000001",), part_of=("GO:0000003",)
    )
    assert parsed.obsolete == {"GO:0000004": Obsolete("obsolete four", ("GO:0000011",), ("GO:0000003",))}
    (tmp_path / "ontology.json").write_bytes(parsed.to_bytes())
    assert read(Place(str(tmp_path))) == parsed


def test_a_file_s_provenance_is_of_its_own_bytes(tmp_path):
    packed = gzip.compress(OBO.encode())
    (tmp_path / "go.obo.gz").write_bytes(packed)
    ontology, seen = parse(Place(str(tmp_path)), "go.obo.gz")
    assert ontology == made(tmp_path)
    assert (seen.path, seen.bytes) == ("go.obo.gz", len(packed))


def test_a_namespace_may_be_the_file_s_own(tmp_path):
    lines = OBO.replace("ontology: go", "ontology: go\ndefault-namespace: biological_process").splitlines(True)
    parsed = made(tmp_path, "".join(line for line in lines if line != "namespace: biological_process\n"))
    assert {term.namespace for term in parsed.terms.values()} == {"biological_process", "molecular_function"}


def test_an_id_is_followed_where_that_is_safe(tmp_path):
    parsed = made(tmp_path)
    assert parsed.look_up("GO:0000002") == Resolved("GO:0000002", "live")
    assert parsed.look_up("GO:0000011") == Resolved("GO:0000001", "alternative")
    assert parsed.look_up("GO:0000004") == Resolved("GO:0000001", "replaced")  # whose successor was merged since
    assert parsed.look_up("GO:0000009") == Resolved(None, "unknown")
    assert parsed.resolve("GO:0000004") == "GO:0000001"
    several = made(tmp_path, OBO.replace("replaced_by: GO:0000011", "replaced_by: GO:0000001\nreplaced_by: GO:0000003"))
    assert several.look_up("GO:0000004") == Resolved(None, "obsolete")
    only = made(tmp_path, OBO.replace("replaced_by: GO:0000011\n", ""))
    assert only.look_up("GO:0000004") == Resolved(None, "obsolete")
    assert only.why_not("GO:0000004") == "GO:0000004 obsolete four, consider GO:0000003"
    assert only.why_not("GO:0000009") == "GO:0000009 is not in the ontology"


def test_obsolete_terms_replace_each_other_or_lead_nowhere():
    terms = {"GO:1": OntologyTerm("one", "x")}
    gone = {
        "GO:2": Obsolete("two", ("GO:3",)),
        "GO:3": Obsolete("three", ("GO:1",)),
        "GO:4": Obsolete("four", ("GO:5",)),
        "GO:5": Obsolete("five", ("GO:4",)),
        "GO:6": Obsolete("six", ("GO:99",)),
    }
    ontology = Ontology("test", terms, gone)
    assert ontology.replacement == {"GO:2": "GO:1", "GO:3": "GO:1"}
    assert [ontology.look_up(id).how for id in gone] == ["replaced", "replaced", "obsolete", "obsolete", "obsolete"]


def test_ancestors_across_and_within_namespaces(tmp_path):
    parsed = made(tmp_path)
    assert parsed.ancestors("GO:0000002") == {"GO:0000001", "GO:0000003"}
    assert parsed.ancestors("GO:0000005") == {"GO:0000001", "GO:0000002", "GO:0000003"}
    assert parsed.ancestors("GO:0000005", within_namespace=True) == frozenset()
    assert parsed.ancestors("GO:0000002", within_namespace=True) == {"GO:0000001", "GO:0000003"}
    assert parsed.below == {"GO:0000001": 1, "GO:0000003": 1}


def test_what_is_remembered_is_bounded():
    terms = {f"GO:{n}": OntologyTerm(str(n), "x", is_a=("GO:0",) if n else ()) for n in range(KEPT + 10)}
    ontology = Ontology("test", terms)
    assert all(ontology.ancestors(id) == ({"GO:0"} if id != "GO:0" else set()) for id in terms)
    assert len(ontology._across) == 10
    assert not ontology._within


def test_annotations_are_counted_by_evidence_and_namespace(tmp_path):
    terms = [Term("GO:0000001", "IDA"), Term("GO:0000001", "IEA"), Term("GO:0000005", "IDA")]
    assert made(tmp_path).counts(terms) == {
        "evidence/IDA": 2,
        "evidence/IEA": 1,
        "namespace/biological_process": 2,
        "namespace/molecular_function": 1,
    }


def test_a_subset_s_relations_to_the_rest_are_kept_but_lead_nowhere(tmp_path):
    parsed = made(tmp_path, OBO.replace("part_of GO:0000003 ! three", "part_of GO:0000099"))
    assert parsed.terms["GO:0000002"].part_of == ("GO:0000099",)
    assert parsed.ancestors("GO:0000002") == {"GO:0000001"}
    with pytest.raises(SourceError, match="GO:0000002 names a parent that it does not have: 'GO:0000099'"):
        made(tmp_path, OBO.replace("is_a: GO:0000001", "is_a: GO:0000099"))


@pytest.mark.parametrize(
    ("old", "new", "cycle"),
    [
        ("alt_id: GO:0000011", "is_a: GO:0000002", "GO:0000001 → GO:0000002 → GO:0000001"),
        ("alt_id: GO:0000011", "relationship: part_of GO:0000005", "GO:0000001 → GO:0000005 → GO:0000002 → GO:0000001"),
        ("alt_id: GO:0000011", "is_a: GO:0000001", "GO:0000001 → GO:0000001"),
    ],
)
def test_a_term_above_itself_is_refused_by_name(tmp_path, old, new, cycle):
    with pytest.raises(SourceError, match=rf"go\.obo: {cycle}: a term above itself") as error:
        made(tmp_path, OBO.replace(old, new).replace("replaced_by: GO:0000011\n", ""))
    assert error.value.reason == "cyclic_ontology"


def test_a_cycle_in_memory_ends():
    terms = {"GO:1": OntologyTerm("a", "x", is_a=("GO:2",)), "GO:2": OntologyTerm("b", "x", is_a=("GO:1",))}
    assert Ontology("test", terms).ancestors("GO:1") == {"GO:1", "GO:2"}


def test_a_deep_ontology_needs_no_deep_stack(tmp_path):
    stanza = "\n[Term]\nid: GO:{0}\nname: {0}\nnamespace: x\nis_a: GO:{1}\n"
    deep = "format-version: 1.2\n" + "".join(stanza.format(n, n + 1) for n in range(5000))
    parsed = made(tmp_path, deep + "\n[Term]\nid: GO:5000\nname: top\nnamespace: x\n")
    assert len(parsed.ancestors("GO:0")) == 5000


def test_another_ontology_at_the_same_place_is_read_anew(tmp_path):
    for release in ("one", "another"):
        (tmp_path / "ontology.json").write_bytes(Ontology(release).to_bytes())
        assert read(Place(str(tmp_path))).release == release


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not an ontology", "not a readable OBO file: expected HeaderClause"),
        (OBO.replace("id: GO:0000003", "id GO:0000003"), "not a readable OBO file"),
        (OBO + "\n[Term]\nid: GO:0000003\nname: again\n", "GO:0000003 is there twice"),
        ("format-version: 1.2\nontology: x\n\n[Term]\nid: X:1\nname: x\n", "no GO term in it"),
        ("", "the file is empty"),
        (gzip.compress(OBO.encode(), mtime=0)[:-50], "damaged"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.", "not a readable OBO file"),
    ],
)
def test_what_is_not_the_gene_ontology_is_refused(tmp_path, content, said):
    with pytest.raises(SourceError, match=rf"go\.obo: .*{said}"):
        made(tmp_path, content)


def test_encodings_that_old_files_are_in(tmp_path):
    for data in (OBO.encode("utf-8-sig"), OBO.replace("The ", "Thé ").encode("latin-1")):
        assert made(tmp_path, data).terms["GO:0000001"].definition[0] == "T"


def test_a_file_that_goes_on_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.ontology.LARGEST", 2 << 20)
    with pytest.raises(SourceError, match="over 2 MiB") as error:
        made(tmp_path, gzip.compress(OBO.encode() + b"! more\n" * 1_000_000))
    assert error.value.reason == "too_large"


def test_no_import_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("an ontology file made us call someone"))
    assert made(tmp_path, OBO.replace("ontology: go", "ontology: go\nimport: http://localhost:1/x.obo")).terms


@pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not here")
def test_the_whole_of_go_and_a_slim():
    whole, _ = parse(Place(str(PACK / "go")), "go_2022-07-01_from_GO.db.obo.gz")
    assert (len(whole.terms), len(whole.obsolete), len(whole.primary)) == (43558, 3910, 3450)
    assert whole.release == "releases/2022-07-01"
    assert whole.look_up("GO:0000002").how == "live"
    assert whole.look_up("GO:0019952") == Resolved("GO:0000003", "alternative")
    assert whole.ancestors("GO:0000001") >= {"GO:0048308", "GO:0048311", "GO:0008150"}
    slim, _ = parse(Place(str(PACK / "go")), "goslim_generic.obo")
    assert (len(slim.terms), len(slim.primary)) == (149, 58)
    across = {id for id in slim.terms if slim.ancestors(id) != slim.ancestors(id, within_namespace=True)}
    assert across  # functions that are part of processes: the slim has them, GO.db's edges do not
    assert all(
        slim.terms[parent].namespace == slim.terms[id].namespace
        for id in slim.terms
        for parent in slim.ancestors(id, within_namespace=True)
    )
