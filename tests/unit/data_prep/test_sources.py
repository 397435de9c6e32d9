"""UniProt, FASTA, GAF and tables: what is read, and what each kind of damage is called."""

import gzip
from pathlib import Path

import pytest

from data_prep.records import AnnotationRecord, FileSeen, Rejection, SequenceRecord, TextRecord
from data_prep.sources.files import Files, SourceError, find, resolve
from data_prep.sources.texts import Texts
from data_prep.sources.uniprot import Fasta, Uniprot, accession, clean

ENTRY = """ID   TEST_HUMAN              Reviewed;          30 AA.
AC   P12345; Q99999;
DT   21-JUL-1986, integrated into UniProtKB/Swiss-Prot.
DT   21-JUL-1986, sequence version 1.
DT   29-MAY-2024, entry version 200.
DE   RecName: Full=Test protein;
OS   Homo sapiens (Human).
OC   Eukaryota.
OX   NCBI_TaxID=9606;
RN   [1]
RP   NUCLEOTIDE SEQUENCE.
RX   PubMed=1;
RA   Doe J.;
RL   Nature 1:1-2(1986).
CC   -!- FUNCTION: Binds {what} (PubMed:123, PubMed:456). Moves things.
CC       {{ECO:0000269|PubMed:123}}.
CC   -!- SUBUNIT: Monomer.
DR   GO; GO:0005524; F:ATP binding; IEA:UniProtKB-KW.
PE   1: Evidence at protein level;
SQ   SEQUENCE   30 AA;  3000 MW;  0000000000000000 CRC64;
     MKTAYIAKQR QISFVKSHFS RQLEERLGLI
//
"""


def read(source: Files, tmp_path: Path, data: bytes | str, name: str = "file") -> list:
    (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return list(source.read(tmp_path, (name,)))


def records(items: list) -> list:
    return [item for item in items if not isinstance(item, FileSeen)]


def test_an_entry_gives_sequence_text_and_terms(tmp_path):
    sequence, text, terms, seen = read(Uniprot(files="file"), tmp_path, ENTRY.format(what="ATP"))
    assert sequence == SequenceRecord("P12345", "file", "MKTAYIAKQRQISFVKSHFSRQLEERLGLI")
    assert (text.key, text.text.text, text.text.origin) == ("P12345", "Binds ATP. Moves things.", "uniprot:function")
    assert terms == AnnotationRecord("P12345", "file", (("GO:0005524", "IEA"),))
    assert seen.bytes == len(ENTRY.format(what="ATP"))


def test_gzip_is_opened_by_its_bytes_not_its_name(tmp_path):
    packed = gzip.compress(ENTRY.format(what="ATP").encode())
    assert len(records(read(Uniprot(files="file"), tmp_path, packed))) == 3


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("Cleaves X (By similarity). {ECO:0000250}.", "Cleaves X."),
        ("Binds Y (PubMed:1, PubMed:2, Ref.3).", "Binds Y."),
        (
            "[Isoform 2]: Inhibits Z (in vitro) {ECO:0000269|PubMed:9, ECO:0000305}.",
            "[Isoform 2]: Inhibits Z (in vitro).",
        ),
    ],
)
def test_comments_lose_evidence_and_citations(raw, said):
    assert clean(raw) == said


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("sp|P12345|TEST_HUMAN Test protein OS=Homo sapiens", "P12345"),
        ("tr|A0A023GRW4|A0A023GRW4_9 x", "A0A023GRW4"),
        ("AF-O95477-F1 ALPHAFOLD MONOMER", "O95477"),
        ("AFDB:AF-A0A1W2PQ64-F1 Some protein", "A0A1W2PQ64"),
        ("P04710", "P04710"),
        ("sp|P12345-2|TEST_HUMAN Isoform 2", "P12345-2"),
    ],
)
def test_accession_of_a_header(header, expected):
    assert accession(header) == expected


def test_fasta(tmp_path):
    items = records(read(Fasta(files="file"), tmp_path, ">P1 x\nMKT\nayi*\n\n>P2\nGG\n"))
    assert items == [SequenceRecord("P1", "file", "MKTAYI"), SequenceRecord("P2", "file", "GG")]


def test_tables(tmp_path):
    texts = records(read(Texts(files="t.csv", name="sgd"), tmp_path, 'uniprot,description\nP1,"A, B"\nP2,\n', "t.csv"))
    assert [(t.key, t.text.text, t.text.origin) for t in texts if isinstance(t, TextRecord)] == [("P1", "A, B", "sgd")]


def test_tables_as_editors_leave_them(tmp_path):
    table = b'\xef\xbb\xbfuniprot\tdescription\r\nP1\t"unpaired quote\r\n\r\nP2\tthe "NTC" complex\r\nP3\t\r\n\r\n'
    items = read(Texts(files="x.*"), tmp_path, table, "x.tsv")
    kept = [item.text.text for item in items if isinstance(item, TextRecord)]
    assert kept == ['"unpaired quote', 'the "NTC" complex']
    (empty,) = [item for item in items if isinstance(item, Rejection)]
    assert (empty.reason, empty.key, empty.detail) == ("empty_text", "P3", "line 5")
    long = "long " * 40_000
    (record, _) = read(Texts(files="x.*"), tmp_path, f"uniprot\tdescription\nP1\t{long}\n".encode(), "x.tsv")
    assert record.text.text == long.strip()
    with pytest.raises(SourceError, match=r"x\.csv, line 3: unexpected end of data"):
        read(Texts(files="x.*"), tmp_path, b'uniprot,description\nP1,"not closed\nP2,x\n', "x.csv")


def test_a_table_without_its_column_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no column \['description'\] in its header \['uniprot', 'text'\]"):
        read(Texts(files="t.tsv"), tmp_path, "uniprot\ttext\nP1\tx\n", "t.tsv")


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"", "empty_file", "the file is empty"),
        (gzip.compress(b">P1\n" + b"MKT" * 500)[:-20], "truncated_gzip", "is damaged"),
        (b"\x1f\x8bgarbage", "truncated_gzip", "is damaged"),
        (b"no fasta", "unparsable_entry", "FASTA begins with '>'"),
    ],
)
def test_a_damaged_file_stops_or_is_rejected(tmp_path, data, reason, said):
    with pytest.raises(SourceError, match=said) as error:
        read(Fasta(files="file"), tmp_path, data)
    assert error.value.reason == reason
    (refused,) = read(Fasta(files="file", on_error="reject"), tmp_path, data)
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.source) == (reason, "file")


@pytest.mark.parametrize("data", ["ID   broken\nXX\n", ENTRY.format(what="ATP")[:-400]])
def test_a_broken_flat_file_names_the_entry(tmp_path, data):
    with pytest.raises(ValueError, match="file: entry 1 is not a UniProt flat-file entry"):
        read(Uniprot(files="file"), tmp_path, data)


def test_missing_files_and_folders_say_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="the folder does not exist"):
        find(tmp_path, ("nowhere/*.cif",))
    with pytest.raises(ValueError, match="nothing there matches"):
        find(tmp_path, ("*.cif",))


def test_roots(tmp_path, monkeypatch):
    monkeypatch.setenv("A_ROOT", str(tmp_path))
    monkeypatch.delenv("NO_ROOT", raising=False)
    assert resolve("$A_ROOT") == tmp_path
    assert (resolve("package:data_prep/sample") / "README.md").is_file()
    with pytest.raises(ValueError, match="the environment has no NO_ROOT"):
        resolve("$NO_ROOT")
    with pytest.raises(ValueError, match="no folder at"):
        resolve(str(tmp_path / "nowhere"))
