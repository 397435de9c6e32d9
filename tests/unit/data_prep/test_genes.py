"""Gene → accession: what a table's cells mean, which of several accessions is taken, on made and on real tables."""

import csv
import gzip
from pathlib import Path

import pytest

from data_prep.sources.files import SourceError
from data_prep.sources.genes import GeneMap, GeneTable, unversioned
from pretrain.places import Place
from tests.pack import PACK

HEADER = "uniprot\tensembl\tsymbol\tentrez\treviewed\n"
HUMAN = GeneTable(
    files="uniprot/human_uniprot_gene_map.tsv.gz", ensembl="ensembl_genes", symbol="symbol", entrez="entrez"
)


def read(tmp_path: Path, *rows: str, **options) -> GeneMap:
    (tmp_path / "genes.tsv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    columns = {"ensembl": "ensembl", "symbol": "symbol", "entrez": "entrez", **options}
    return GeneMap.read(Place(str(tmp_path)), GeneTable(files="genes.tsv", **columns))


@pytest.mark.parametrize(
    ("gene", "accession"),
    [
        ("ENSG00000141510", "P04637"),
        ("ENSG00000141510.18", "P04637"),
        ("ensg00000141510", "P04637"),
        ("7157", "P04637"),
        ("TP53", "P04637"),
        ("tp53", "P04637"),
        ("p53", "P04637"),
        ("YMR056C", "P04710"),
        ("ENSG00000000001;ENSG00000141510.1", "P04637"),
        ("ENSG00000000001", None),
        ("ENST00000269305", None),
        ("1", None),
        ("TP5", None),
        ("", None),
        (" ; ", None),
    ],
)
def test_a_gene_is_found_by_any_of_its_names(tmp_path, gene, accession):
    rows = [
        "P04637\tENST00000269305.9; ENSP00000269305.4; ENSG00000141510.18. [P04637-1]\tTP53 p53\t7157;\t",
        "P04710\tYMR056C\tAAC1\t855078\t",
    ]
    assert read(tmp_path, *rows).accession(gene) == accession


def test_capitals_count_only_where_they_tell_two_genes_apart(tmp_path):
    genes = read(tmp_path, "P1\t\tAbc1\t\t", "P2\t\tABC1\t\t", "P3\t\tXyz\t\t", "P4\t\tOne\t\t", "P5\t\toNe\t\t")
    assert [genes.accession(name) for name in ("Abc1", "ABC1", "abc1", "xYZ", "one", "ONE")] == [
        "P1", "P2", None, "P3", None, None,
    ]  # fmt: skip


def test_a_synonym_never_hides_a_gene_of_that_name(tmp_path):
    genes = read(tmp_path, "P1\t\tAAA BBB\t\t", "P2\t\tBBB\t\t", "P3\t\tCCC, DDD\t\t")
    assert [genes.accession(name) for name in ("BBB", "DDD")] == ["P2", "P3"]


def test_of_several_accessions_the_reviewed_is_first_then_the_oldest_form_then_the_first_row(tmp_path):
    rows = ["A0A024QZI9\tG\tS\t1\t", "B4E1E3\tG\tS\t1\t", "Q9NQ94\tG\tS\t1\t", "Q53GA5\tG\tS\t1\t", "H2EHT1\tG\tS\t1\t"]
    expected = ("Q9NQ94", "Q53GA5", "B4E1E3", "H2EHT1", "A0A024QZI9")
    assert read(tmp_path, *rows).accessions("S") == expected
    told = [row + ("unreviewed" if "H2EHT1" not in row else "reviewed") for row in rows]
    assert read(tmp_path, *told, reviewed="reviewed").accessions("1") == ("H2EHT1", *expected[:3], expected[4])


def test_preferred_files_decide_between_what_the_table_does_not(tmp_path):
    (tmp_path / "own.fasta").write_text(">sp|B4E1E3|X_HUMAN a\nMK\nVL\n>Q00000 other\nMM\n")
    (tmp_path / "packed.fasta.gz").write_bytes(gzip.compress(b">tr|A0A024QZI9|Y_HUMAN\nMK\n"))
    rows = ["Q9NQ94\tG\tS\t1\t", "A0A024QZI9\tG\tS\t1\t", "B4E1E3\tG\tS\t1\t"]
    assert read(tmp_path, *rows, prefer="own.fasta").accession("S") == "B4E1E3"
    both = read(tmp_path, *rows, prefer=("own.fasta", "packed.fasta.gz"))
    assert both.accessions("S") == ("B4E1E3", "A0A024QZI9", "Q9NQ94")
    assert [file.path for file in both.seen] == ["genes.tsv", "own.fasta", "packed.fasta.gz"]


def test_a_row_may_have_several_accessions_or_none(tmp_path):
    genes = read(tmp_path, "\tENSG00000000001\tRNA1\t1\t", "P1|P2\tENSG00000000002\tTWO\t2\t")
    assert genes.accessions("TWO") == ("P1", "P2")
    assert genes.accession("RNA1") is None


def test_a_table_without_header_has_columns_by_number(tmp_path):
    row = ["P04637", "P53_HUMAN", "7157"] + [""] * 15 + ["ENSG00000141510.18; ENSG00000000009.1"]
    (tmp_path / "idmapping_selected.tab.gz").write_bytes(gzip.compress("\t".join(row).encode() + b"\n"))
    config = GeneTable(files="*.tab.gz", accession="1", entrez="3", ensembl="19")
    genes = GeneMap.read(Place(str(tmp_path)), config)
    assert {genes.accession(name) for name in ("7157", "ENSG00000141510", "ENSG00000000009.3")} == {"P04637"}
    with pytest.raises(SourceError, match="19 columns, 20 are named"):
        GeneMap.read(Place(str(tmp_path)), config.model_copy(update={"ensembl": "20"}))


def test_a_table_that_changed_is_read_again(tmp_path):
    assert read(tmp_path, "P1\t\tS\t\t").accession("S") == "P1"
    assert read(tmp_path, "P2\t\tS\t\t", "P3\t\tT\t\t").accession("S") == "P2"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (HEADER, "empty_table"),
        ("", "empty_file"),
        ("<!DOCTYPE html>\n<html>\n", "html_reply"),
        ("accession\tensembl\tsymbol\tentrez\n", "unparsable_table"),
        (HEADER + "P1\tG\n", "unparsable_line"),
    ],
)
def test_what_is_no_such_table_stops(tmp_path, content, reason):
    (tmp_path / "genes.tsv").write_text(content)
    config = GeneTable(files="genes.tsv", ensembl="ensembl", symbol="symbol", entrez="entrez")
    with pytest.raises(SourceError) as stopped:
        GeneMap.read(Place(str(tmp_path)), config)
    assert stopped.value.reason == reason


def test_a_table_needs_a_column_of_names():
    with pytest.raises(ValueError, match="give `ensembl`, `symbol` or `entrez`"):
        GeneTable(files="genes.tsv")


def test_versions_go_and_nothing_else():
    assert unversioned("ENSG00000141510.12;ENSMUSG00000059552.8") == "ENSG00000141510;ENSMUSG00000059552"
    assert [unversioned(name) for name in ("H1-10", "AC012.1", "7157")] == ["H1-10", "AC012.1", "7157"]


@pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not beside this checkout")
def test_the_real_table_knows_the_atlas_genes_and_picks_what_swiss_prot_has():
    genes = GeneMap.read(Place(str(PACK)), HUMAN)
    assert [genes.accession(name) for name in ("TP53", "A1CF", "ENSG00000094914", "8086")] == [
        "P04637", "Q9NQ94", "Q9NRG9", "Q9NRG9",
    ]  # fmt: skip
    with open(PACK / "images" / "hpa_sample_metadata.csv") as file:
        named = {row["ensembl_ids"]: row["gene_names"] for row in csv.DictReader(file)}
    assert len(named) == 168 and all(genes.accession(gene) for gene in named)
    renamed = {symbol for gene, symbol in named.items() if genes.accession(symbol) != genes.accession(gene)}
    assert renamed == {"C12orf65"}  # MTRFR since 2021: symbols age, Ensembl ids do not

    with gzip.open(PACK / "structures" / "sequences" / "swissprot2014_structure_matched.fasta.gz", "rt") as file:
        reviewed = {line[1:].replace("sp|", "").split("|")[0].split()[0] for line in file if line.startswith(">")}
    by_form = by_row = count = 0
    with gzip.open(PACK / HUMAN.files, "rt") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    first = {row["symbol"]: row["uniprot"] for row in reversed(rows)}
    for symbol, one in first.items():
        among = reviewed & set(known := genes.accessions(symbol))
        if len(known) > 1 and len(among) == 1:
            count, by_form, by_row = count + 1, by_form + (known[0] in among), by_row + (one in among)
    assert count > 1000 and by_form / count > 0.9 > 0.2 > by_row / count

    preferred = HUMAN.model_copy(update={"prefer": "structures/sequences/*.fasta.gz"})
    better = GeneMap.read(Place(str(PACK)), preferred)
    assert all(better.accession(symbol) in reviewed for symbol in first if reviewed & set(genes.accessions(symbol)))
