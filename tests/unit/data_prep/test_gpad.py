"""GPAD in both its versions, and GPI: which protein a line is about, and how its evidence is known."""

from pathlib import Path

import pytest

from data_prep.records import AnnotationRecord, FileSeen, Rejection
from data_prep.sources.evidence import ECO
from data_prep.sources.files import Files, Slice, SourceError
from data_prep.sources.gene_ontology import Gaf, Gpad
from pretrain.places import Place
from tests import pack

PACK = pack.PACK / "go"
GPI_1 = """!gpi-version: 1.2
MGI\tMGI:101\tAbc1\tabc one\t\tgene\ttaxon:10090\t\tUniProtKB:Q9AAA1|UniProtKB:Q9AAA2|RefSeq:NM_1\t
MGI\tMGI:102\tAbc2\tno protein\t\tgene\ttaxon:10090\t\t\t
UniProtKB\tP12345-2\tAbc\tform\t\tprotein\ttaxon:10090\tUniProtKB:Q9BBB1\t\t
UniProtKB\tQ9BBB1\tAbc\tprotein\t\tprotein\ttaxon:10090\t\t\t
"""
GPI_2 = """!gpi-version: 2.0
MGI:MGI:101\tAbc1\tabc one\t\tSO:0001217\tNCBITaxon:10090\t\t\t\tUniProtKB:Q9AAA1|UniProtKB:Q9AAA2\t
PR:Q9AAA1-2\tAbc1-2\tform\t\tPR:000000001\tNCBITaxon:10090\tMGI:MGI:101\t\t\t\t
PR:000000009\tAbc1-9\tchain\t\tPR:000000001\tNCBITaxon:9606\tMGI:MGI:101\tPR:Q9AAA1-2\t\t\t
"""


GPAD_1 = (
    "!gpa-version: 1.1\n!Generated: 2016-06-07 11:04\n"
    "UniProtKB\tP12345\tenables\tGO:1\tPMID:1\tECO:0000314\t\t\t20200101\tX\t\t\n"
    "UniProtKB\tP12345\tNOT|enables\tGO:2\tPMID:1\tECO:0000314\t\t\t20200101\tX\t\t\n"
    "UniProtKB\tP12345\tpart_of\tGO:3\tGO_REF:1\tECO:9999999\t\t\t20200101\tX\t\tgo_evidence=IEA|id=1\n"
    "UniProtKB\tP12345\tpart_of\tGO:4\tGO_REF:1\tECO:9999999\t\t\t20200101\tX\n"
    "MGI\tMGI:101\tpart_of\tGO:5\tPMID:1\tECO:0000315\t\t\t20200101\tX\t\t\n"
)
GPAD_2 = (
    "!gpad-version: 2.0\n!date-generated: 2024-01-02\n"
    "UniProtKB:P12345\t\tRO:0002327\tGO:1\tPMID:1\tECO:0000314\t\t\t2020-01-01\tX\t\t\n"
    "UniProtKB:P12345\tNOT\tRO:0002327\tGO:2\tPMID:1\tECO:0000314\t\t\t2020-01-01\tX\t\t\n"
    "UniProtKB:P12345-2\t\tBFO:0000050\tGO:3\tGO_REF:1\tECO:0007669\t\t\t2020-01-01\tX\t\t\n"
    "UniProtKB:P12345:PRO_0000000001\t\tBFO:0000050\tGO:4\tPMID:1\tECO:9999999\t\t\t2020-01-01\tX\t\t\n"
    "MGI:MGI:101\t\tRO:0002331\tGO:5\tPMID:1\tECO:0000315\t\t\t2020-01-01\tX\t\t\n"
)
COMMON = {("P12345", "GO:1", "IDA"), ("P12345", "GO:3", "IEA"), ("P12345", "GO:4", "ECO:9999999")}


def read(source: Files, folder: Path, data: str, name: str = "file") -> list:
    (folder / name).write_text(data)
    return list(source.read(Place(str(folder)), Slice((name,)), Place(str(folder))))


def pairs(items: list) -> set[tuple[str, str, str]]:
    return {(item.key, *term) for item in items if isinstance(item, AnnotationRecord) for term in item.terms}


@pytest.mark.parametrize(("data", "release"), [(GPAD_1, "2016-06-07"), (GPAD_2, "2024-01-02")])
def test_both_versions_of_gpad_say_the_same(tmp_path, data, release):
    items = read(Gpad(files="file"), tmp_path, data)
    assert pairs(items) == COMMON
    assert items[-1].release == release
    refused = [(item.reason, item.key, item.detail) for item in items if isinstance(item, Rejection)]
    assert refused[0][:2] == ("negated_annotation", "P12345")
    assert refused[1] == ("other_database", "", "1 line of MGI")


@pytest.mark.parametrize(("data", "gpi"), [(GPAD_1, GPI_1), (GPAD_2, GPI_2)])
def test_a_gene_s_annotations_go_to_all_its_accessions(tmp_path, data, gpi):
    (tmp_path / "x.gpi").write_text(gpi)
    items = read(Gpad(files="file", gpi="x.gpi"), tmp_path, data)
    genes = {("Q9AAA1", "GO:5", "IMP"), ("Q9AAA2", "GO:5", "IMP")}
    assert pairs(items) == COMMON | genes
    assert [item.path for item in items if isinstance(item, FileSeen)] == ["x.gpi", "file"]
    assert items[0].release.startswith("GPI ")


def test_forms_are_followed_to_their_parents(tmp_path):
    line = "{}\t\tRO:1\tGO:1\tPMID:1\tECO:0000314\t\t\t2020-01-01\tX\t\t\n"
    (tmp_path / "1.gpi").write_text(GPI_1)
    (tmp_path / "2.gpi").write_text(GPI_2)
    for gpi, id, keys in [
        ("1.gpi", "UniProtKB:P12345-2", {"Q9BBB1"}),  # GPI's word goes before what the name suggests
        ("1.gpi", "UniProtKB:Q9BBB1", {"Q9BBB1"}),
        ("1.gpi", "MGI:MGI:102", set()),
        ("2.gpi", "PR:Q9AAA1-2", {"Q9AAA1", "Q9AAA2"}),  # by the gene that encodes it
        ("2.gpi", "PR:000000009", {"Q9AAA1", "Q9AAA2"}),  # a chain of a form of a gene
        ("2.gpi", "SGD:S1", set()),
    ]:
        items = read(Gpad(files="file", gpi=gpi), tmp_path, line.format(id))
        assert {key for key, _, _ in pairs(items)} == keys, id
        assert [i.reason for i in items if isinstance(i, Rejection)] == ([] if keys else ["no_accession"])
    own = read(Gpad(files="file", gpi="1.gpi", isoforms="own"), tmp_path, line.format("UniProtKB:P12345-2"))
    assert pairs(own) == {("P12345-2", "GO:1", "IDA")}


def test_organisms_of_gpad_are_known_from_gpi(tmp_path):
    (tmp_path / "x.gpi").write_text(GPI_2)
    line = "{}\t\tRO:1\tGO:1\tPMID:1\tECO:0000314\t\t\t2020-01-01\tX\t\t\n"
    lines = "".join(line.format(id) for id in ("MGI:MGI:101", "PR:000000009", "UniProtKB:P1"))
    items = read(Gpad(files="file", gpi="x.gpi", taxa=(10090,)), tmp_path, lines)
    assert pairs(items) == {("Q9AAA1", "GO:1", "IDA"), ("Q9AAA2", "GO:1", "IDA")}
    assert [(i.reason, i.count) for i in items if isinstance(i, Rejection)] == [("other_taxon", 2)]
    with pytest.raises(ValueError, match="known from a GPI file only"):
        Gpad(files="file", taxa=(10090,))


def test_a_companion_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gpi: no file 'x\.gpi' under .*; correct the source's `gpi`"):
        read(Gpad(files="file", gpi="x.gpi"), tmp_path, GPAD_2)
    (tmp_path / "x.gpi").write_text("!gpi-version: 1.2\nMGI\tonly three\tcolumns\n")
    with pytest.raises(SourceError, match=r"x\.gpi, byte 18: not a line of GPI 1\.2 \(3 columns"):
        read(Gpad(files="file", gpi="x.gpi"), tmp_path, GPAD_2)
    (tmp_path / "x.gpi").write_text("!gpi-version: 9.9\nMGI:1\tx\n")
    with pytest.raises(SourceError, match=r"not a line of GPI 9\.9"):
        read(Gpad(files="file", gpi="x.gpi"), tmp_path, GPAD_2)


def test_gaf_of_an_organism_s_own_database(tmp_path):
    (tmp_path / "x.gpi").write_text(GPI_1)
    line = "MGI\t{}\tA\tenables\tGO:1\tPMID:1\tIDA\t\tF\t\t\tgene\ttaxon:10090\t20200101\tMGI\t\t\n"
    items = read(Gaf(files="file", gpi="x.gpi"), tmp_path, line.format("MGI:101") + line.format("MGI:9"))
    assert {key for key, _, _ in pairs(items)} == {"Q9AAA1", "Q9AAA2"}
    assert [(i.reason, i.detail) for i in items if isinstance(i, Rejection)] == [("no_accession", "1 line of MGI")]


def test_a_published_mapping_knows_more_evidence(tmp_path):
    (tmp_path / "eco.txt").write_text("# gaf-eco-mapping-derived\nECO:9999999\tIDA\t\nECO:0000269\tEXP\tDefault\n")
    items = read(Gpad(files="file", eco="eco.txt"), tmp_path, GPAD_2)
    assert ("P12345", "GO:4", "IDA") in pairs(items)
    assert ("P12345", "GO:3", "IEA") in pairs(items)
    assert items[0].path == "eco.txt"
    (tmp_path / "eco.txt").write_text("<html>not found</html>")
    with pytest.raises(SourceError, match="no ECO id beyond the common ones"):
        read(Gpad(files="file", eco="eco.txt"), tmp_path, GPAD_2)


@pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not here")
@pytest.mark.parametrize("gpi", ["", "gp_information.goa_yeast.28.gpi", "goa_human_sample.gpi"])
def test_real_gpad_as_biopython_reads_it(gpi):
    from Bio.UniProt import GOA

    name = "goa_yeast.gpa.59.gpa"
    with open(PACK / name) as file:
        theirs = {(r["DB_Object_ID"], r["GO_ID"], ECO[r["ECO_Evidence_code"]]) for r in GOA.gpa_iterator(file)}
    items = list(Gpad(files=name, gpi=gpi).read(Place(str(PACK)), Slice((name,)), Place(str(PACK))))
    assert pairs(items) == theirs
    assert [item.release for item in items if isinstance(item, FileSeen)][-1] == "2016-06-07, GO 2016-05-07"
