"""Tables of annotations, and evidence: codes, groups of them, and what a filter keeps."""

from pathlib import Path

import pytest

from data_prep.records import AnnotationRecord, Rejection
from data_prep.sources.evidence import CODES, ECO, GROUPS, expand, keeps, normal
from data_prep.sources.files import Files, Slice, SourceError
from data_prep.sources.gene_ontology import AnnotationColumns, Annotations, Gaf
from pretrain.places import Place


def read(source: Files, folder: Path, data: str, name: str = "file") -> list:
    (folder / name).write_text(data)
    return list(source.read(Place(str(folder)), Slice((name,)), Place(str(folder))))


def pairs(items: list) -> set[tuple[str, str, str]]:
    return {(item.key, *term) for item in items if isinstance(item, AnnotationRecord) for term in item.terms}


def test_tables(tmp_path):
    table = "uniprot\taspect\tgo_id\nP1\tC\tGO:1\nP1\tF\tGO:2\nP2\tF\tGO:2\n"
    items = read(Annotations(files="t.tsv"), tmp_path, table, "t.tsv")
    assert [item.terms for item in items[:-1]] == [(("GO:1", "NR"), ("GO:2", "NR")), (("GO:2", "NR"),)]
    assert items[0].position == "byte 21"
    items = read(Annotations(files="t.tsv", code="IEA"), tmp_path, table, "t.tsv")
    assert {code for _, _, code in pairs(items)} == {"IEA"}


@pytest.mark.parametrize(
    ("name", "positions"), [("t.tsv", ["byte 14", "byte 14", "byte 27"]), ("t.csv", ["line 2", "line 2", "line 3"])]
)
def test_every_term_has_its_line_s_position(tmp_path, name, positions):
    table = "uniprot\tgo_id\nP1\tGO:1;GO:2\nP1\tGO:3\n"
    record, _ = read(Annotations(files=name), tmp_path, table if name == "t.tsv" else table.replace("\t", ","), name)
    assert [record.at(number) for number in range(3)] == positions


@pytest.mark.parametrize(
    ("cell", "terms"),
    [
        ("GO:1;GO:2", ["GO:1", "GO:2"]),
        ("GO:1; GO:2 ;", ["GO:1", "GO:2"]),
        ("GO:1|GO:2", ["GO:1", "GO:2"]),
        ("GO:1, GO:2", ["GO:1", "GO:2"]),
        ("zinc ion binding, structural [GO:1]; nucleus [GO:2]", ["GO:1", "GO:2"]),
        ("GO:1; oops", ["GO:1", "oops"]),  # and the join says that it does not know it
    ],
)
def test_several_terms_in_a_cell(tmp_path, cell, terms):
    items = read(Annotations(files="t.tsv"), tmp_path, f"uniprot\tgo_id\nP1\t{cell}\n", "t.tsv")
    assert [term for term, _ in items[0].terms] == terms


def test_evidence_and_qualifiers_of_a_table(tmp_path):
    table = (
        "uniprot\tgo_id\tevidence\tqualifier\nP1\tGO:1;GO:2\tIDA;IEA\t\nP1\tGO:3;GO:4\tECO:0000314\t\n"
        "P1\tGO:5\tIDA\tNOT|enables\nP1\tGO:6\tIEA:InterPro\t\n"
    )
    items = read(Annotations(files="t.tsv", evidence=("experimental",)), tmp_path, table, "t.tsv")
    assert pairs(items) == {("P1", "GO:1", "IDA"), ("P1", "GO:3", "IDA"), ("P1", "GO:4", "IDA")}
    refused = [(item.reason, item.detail, item.count) for item in items if isinstance(item, Rejection)]
    assert refused == [("negated_annotation", "NOT|enables GO:5", 1), ("evidence_filtered", "2 lines of IEA", 2)]
    (denied,) = (item for item in items if isinstance(item, AnnotationRecord) and item.denied)
    assert (denied.denied, table[int(denied.position.removeprefix("byte ")) :][:7]) == (("GO:5",), "P1\tGO:5")
    with pytest.raises(SourceError, match="3 terms and 2 evidence codes in one line; which is whose"):
        read(Annotations(files="t.tsv"), tmp_path, "uniprot\tgo_id\tevidence\nP1\tGO:1;GO:2;GO:3\tIDA;IEA\n", "t.tsv")


def test_a_column_that_is_named_must_be_there(tmp_path):
    with pytest.raises(SourceError, match=r"no column \['go_id'\] in its header \['uniprot', 'term'\]"):
        read(Annotations(files="t.tsv"), tmp_path, "uniprot\tterm\nP1\tGO:1\n", "t.tsv")
    named = Annotations(files="t.tsv", columns=AnnotationColumns(evidence="code"))
    with pytest.raises(SourceError, match=r"no column \['code'\]"):
        read(named, tmp_path, "uniprot\tgo_id\tevidence\nP1\tGO:1\tIDA\n", "t.tsv")


def test_groups_of_evidence():
    assert expand(("experimental", "TAS")) == {*GROUPS["experimental"], "TAS"}
    assert keeps("anything", ())
    assert keeps("IDA", ("experimental",))
    assert not keeps("IEA", ("experimental",))
    assert not keeps("ECO:9999999", ("experimental",))
    assert keeps("ECO:9999999", ("experimental", "ECO:9999999"))
    assert sum(len(group) for group in GROUPS.values()) == len(CODES) - 1  # in one group each; NR in none
    assert set(ECO.values()) == CODES - {"NR"}


@pytest.mark.parametrize(
    ("wrong", "said"), [("experimantal", "'experimental'"), ("IDAA", "'IDA'"), ("?", "groups are")]
)
def test_a_misspelt_code_is_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        Gaf(files="file", evidence=(wrong,))


@pytest.mark.parametrize(
    ("written", "code"),
    [("IDA", "IDA"), ("IEA:UniProtKB-KW", "IEA"), ("ida", "IDA"), ("", "NR"), ("ECO:0000314", "IDA"), ("IMR", "IKR")],
)
def test_a_code_as_files_write_it(written, code):
    assert normal(written) == code
