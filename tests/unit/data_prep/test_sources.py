"""FASTA, tables that uniprot.org exports, and tables of texts: what is read, and what each kind of damage is called."""

import gzip
from pathlib import Path

import pytest
from Bio.SeqUtils.CheckSum import crc64

from data_prep.records import (
    AnnotationRecord,
    EntryRecord,
    FileSeen,
    Item,
    Record,
    Rejection,
    SequenceRecord,
    TextRecord,
)
from data_prep.sources.files import Files, Slice, SourceError, Stream
from data_prep.sources.texts import Texts
from data_prep.sources.uniprot import MAX_HEADER, Fasta, UniprotTable, accession
from pretrain.places import Place
from pretrain.sample import About
from tests import pack

PACK = pack.PACK / "uniprot"


def read(source: Files, folder: Path, data: bytes | str, name: str = "file") -> list[Item]:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    place = Place(str(folder))
    return list(source.read(place, Slice((name,)), place))


def kept(items: list[Item]) -> list[Item]:
    return [item for item in items if not isinstance(item, FileSeen)]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("sp|P12345|TEST_HUMAN Test protein OS=Homo sapiens", "P12345"),
        ("tr|A0A023GRW4|A0A023GRW4_9 x", "A0A023GRW4"),
        ("AF-O95477-F1 ALPHAFOLD MONOMER", "O95477"),
        ("AFDB:AF-A0A1W2PQ64-F1 Some protein", "A0A1W2PQ64"),
        ("P04710", "P04710"),
        ("sp|P12345-2|TEST_HUMAN Isoform 2", "P12345-2"),
        ("UniRef50_P12345 Cluster: x", "UniRef50_P12345"),
        ("", ""),
    ],
)
def test_accession_of_a_header(header: str, expected: str) -> None:
    assert accession(header) == expected


@pytest.mark.parametrize(
    "data",
    [">P1 x\nMKT\nayi*\n\n>P2\nGG\n", "\n\n>P1 x\r\nMKT\r\nayi*\r\n\r\n>P2\r\nGG", "\ufeff>P1\nMKTAYI\n>P2\nG G"],
)
def test_fasta(tmp_path: Path, data: str) -> None:
    first, second = kept(read(Fasta(files="file"), tmp_path, data))
    assert isinstance(first, SequenceRecord) and isinstance(second, SequenceRecord)
    assert [(item.key, item.sequence) for item in (first, second)] == [("P1", "MKTAYI"), ("P2", "GG")]
    assert second.position == f"byte {data.encode().index(b'>P2')}"
    assert first.position == ("byte 2" if data.startswith("\n\n") else "byte 0")


def test_a_header_of_uniprot_says_more(tmp_path: Path) -> None:
    coli = "Escherichia coli (strain K12)"
    headers = {
        f"sp|P12345-2|TEST_ECOLI Isoform 2 of X (Fragment) OS={coli} OX=83333 GN=tst PE=1 SV=2": About(
            "Isoform 2 of X", coli, 83333, fragment=True
        ),
        "tr|A0A0S1XBG1|A0A0S1XBG1_9EURY L-asparaginase OS=Thermococcus barophilus GN=T1 PE=4 SV=1": About(
            "L-asparaginase", "Thermococcus barophilus"
        ),
        "sp|P1|X_Y A name": About("A name"),
        "sp|P2|X_Y": About(),
    }
    data = "".join(f">{header}\nMKT\n" for header in headers)
    found = [item.about for item in read(Fasta(files="file"), tmp_path, data) if isinstance(item, EntryRecord)]
    assert found == [about for about in headers.values() if about]


@pytest.mark.skipif(not PACK.is_dir(), reason="no pack beside the checkout")
def test_real_fasta_files() -> None:
    place, found = Place(str(PACK)), {}
    for name in place.find("**/*.fasta*"):
        for item in Fasta(files=name).read(place, Slice((name,)), place):
            assert not isinstance(item, Rejection)
            if isinstance(item, EntryRecord):
                assert (item.about.name and item.about.organism and item.about.taxon) or "sample_20000" in name
            if isinstance(item, SequenceRecord):
                assert item.key and item.sequence.isalpha()
                found[name] = found.get(name, 0) + 1
    assert found["uniprot_sample_20000.fasta.gz"] == 20_000
    assert found["proteomes/saccharomyces_cerevisiae_UP000002311.fasta.gz"] == 6059


def test_byte_ranges_of_fasta_give_every_entry_once(tmp_path: Path) -> None:
    data = "".join(f">P{i}\n{'MKTAYIAKQR' * (i % 5)}\n" for i in range(300)).encode()
    whole = kept(read(Fasta(files="file"), tmp_path, data))
    place = Place(str(tmp_path))
    for step in (1000, 997, 61):
        slices = [Slice(("file",), at, min(at + step, len(data))) for at in range(0, len(data), step)]
        assert kept([item for part in slices for item in Fasta(files="file").read(place, part, place)]) == whole


def test_an_overlong_header_is_refused(tmp_path: Path) -> None:
    long = f">P1 {'x' * MAX_HEADER}\nMKT\n"
    with pytest.raises(SourceError, match="a header of 65539 bytes") as error:
        read(Fasta(files="file"), tmp_path, ">P0\nMK\n" + long)
    assert (error.value.reason, error.value.position) == ("overlong_header", "byte 7")
    first, refused, last = kept(
        read(Fasta(files="file", on_error="reject"), tmp_path, ">P0\nMK\n" + long + ">P2\nMK\n")
    )
    assert isinstance(first, SequenceRecord) and isinstance(last, SequenceRecord)
    assert refused == Rejection("overlong_header", "P1", "file", refused.detail, "byte 7")  # type: ignore[union-attr]
    with pytest.raises(SourceError, match="no end after") as error:
        read(Fasta(files="file"), tmp_path, gzip.compress(b">" + b"x" * (40 << 20)))
    assert error.value.reason == "overlong_entry"


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"", "empty_file", "the file is empty"),
        (b"\n \n", "empty_file", "the file is empty"),
        (gzip.compress(b"", mtime=0), "empty_file", "the file is empty"),
        (gzip.compress(b">P1\n" + b"MKT" * 500, mtime=0)[:-20], "truncated_gzip", "is damaged"),
        (b"\x1f\x8bgarbage", "truncated_gzip", "is damaged"),
        (b"no fasta", "unparsable_entry", "FASTA begins with '>'"),
        (b"\x80\x04\x95pickle", "unparsable_entry", "FASTA begins with '>'"),
        (b"<!DOCTYPE html>\n<html>", "html_reply", "a web page"),
    ],
)
def test_a_damaged_file_stops_or_is_rejected(tmp_path: Path, data: bytes, reason: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as error:
        read(Fasta(files="file"), tmp_path, data)
    assert error.value.reason == reason
    *_, refused = read(Fasta(files="file", on_error="reject"), tmp_path, data)
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.source) == (reason, "file")


SEQUENCE = "MKTAYIAKQRQISFVKSHFS"
COLUMNS = (
    "Entry", "Reviewed", "Entry Name", "Protein names", "Gene Names", "Organism", "Organism (ID)", "Length", "Mass",
    "Sequence", "Gene Ontology IDs", "Function [CC]", "Subcellular location [CC]", "Catalytic activity", "EC number",
    "PDB", "Ensembl", "Fragment",
)  # fmt: skip
ROW = (
    "P12345",
    "reviewed",
    "TEST_HUMAN",
    "Test protein (TP) (EC 2.7.11.1) (EC 3.6.4.13) (Other (name)) [Cleaved into: Part 1; Part 2] (Fragment)",
    "TST T1",
    "Escherichia coli (strain K12)",
    "83333",
    "20",
    "2,300",
    SEQUENCE,
    "GO:0005524; GO:0005886",
    "FUNCTION: Binds ATP (PubMed:1). {ECO:0000269|PubMed:1}.; FUNCTION: [Isoform 2]: Does not. {ECO:0000305}.",
    "SUBCELLULAR LOCATION: Cell membrane {ECO:0000305}; Multi-pass membrane protein {ECO:0000305}.",
    "CATALYTIC ACTIVITY: Reaction=A + B = C; Xref=Rhea:RHEA:1; Evidence={ECO:0000305}; ",
    "2.7.11.1; 3.6.4.13",
    "1ABC;2DEF;",
    "ENST00000269305.9 [P12345-1];ENSG00000141510.18;",
    "fragment",
)


def table(*rows: dict[str, str] | tuple[str, ...], columns: tuple[str, ...] = COLUMNS) -> str:
    told = [row if isinstance(row, tuple) else [row.get(name, "") for name in columns] for row in rows]
    return "".join("\t".join(cells) + "\n" for cells in (columns, *told))


def test_a_table_of_uniprot(tmp_path: Path) -> None:
    sequence, entry, terms, *texts, seen = read(UniprotTable(files="file"), tmp_path, table(ROW))
    position = f"byte {len(table())}"
    assert isinstance(seen, FileSeen) and sequence == SequenceRecord("P12345", "file", SEQUENCE, position)
    assert isinstance(entry, EntryRecord) and entry.about == About(
        name="Test protein",
        organism="Escherichia coli (strain K12)",
        taxon=83333,
        fragment=True,
        ec=("2.7.11.1", "3.6.4.13"),
        genes=("ENSG00000141510",),
        ensembl=("ENST00000269305.9",),
        pdb=("1ABC", "2DEF"),
    )
    assert terms == AnnotationRecord("P12345", "file", (("GO:0005524", "NR"), ("GO:0005886", "NR")), position)
    assert [(item.text.origin, item.text.text) for item in texts if isinstance(item, TextRecord)] == [
        ("uniprot:function", "Binds ATP."),
        ("uniprot:function", "[Isoform 2]: Does not."),
        ("uniprot:subcellular_location", "Subcellular location: Cell membrane, multi-pass membrane protein."),
        ("uniprot:catalytic_activity", "Catalyzes the reaction A + B = C."),
    ]


def test_a_table_s_references_to_ensembl_are_transcripts_and_are_kept(tmp_path: Path) -> None:
    columns = "Entry", "Ensembl", "EnsemblPlants"
    rows = (
        ("P04637", "ENST00000269305.9 [P04637-1];ENST00000359597.8 [P04637-9];ENST00000269305.9 [P04637-2];", ""),
        ("Q0WV96", "", "AT1G01010.1;"),
    )
    items = read(UniprotTable(files="file"), tmp_path, table(*rows, columns=columns))
    found = {item.key: (item.about.genes, item.about.ensembl) for item in items if isinstance(item, EntryRecord)}
    assert found == {"P04637": ((), ("ENST00000269305.9", "ENST00000359597.8")), "Q0WV96": ((), ("AT1G01010.1",))}


@pytest.mark.parametrize("columns", [("Entry", "Sequence"), ("Gene Ontology IDs", "Entry"), ("PDB", "Entry", "Mass")])
def test_any_of_the_columns_will_do(tmp_path: Path, columns: tuple[str, ...]) -> None:
    known: dict[str, str] = dict(zip(COLUMNS, ROW, strict=True))
    full, bare, _ = read(UniprotTable(files="file"), tmp_path, table(known, {"Entry": "P2"}, columns=columns))
    assert isinstance(full, Record) and full.key == "P12345"
    assert isinstance(bare, Rejection) and (bare.reason, bare.key) == ("empty_entry", "P2")


def test_a_table_is_held_to_its_lengths_and_checksums(tmp_path: Path) -> None:
    columns, checksum = ("Entry", "Length", "Sequence", "Checksum"), crc64(SEQUENCE).removeprefix("CRC-")
    good = ("P1", "20", SEQUENCE, checksum)
    for bad, said in (
        (("P2", "21", SEQUENCE, checksum), "21 residues are stated, 20 are there"),
        (("P2", "20", SEQUENCE[::-1], checksum), f"checksum {checksum} is stated"),
    ):
        data = table(good, bad, ("P3", *good[1:]), columns=columns)
        with pytest.raises(SourceError, match=rf"file: entry P2 at byte \d+: {said}") as error:
            read(UniprotTable(files="file"), tmp_path, data)
        assert error.value.reason == "checksum_mismatch"
        first, refused, last = kept(read(UniprotTable(files="file", on_error="reject"), tmp_path, data))
        assert isinstance(refused, Rejection) and (refused.reason, refused.key) == ("checksum_mismatch", "P2")
        assert [item.key for item in (first, last) if isinstance(item, SequenceRecord)] == ["P1", "P3"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"Error messages\nInvalid query", "unparsable_table"),
        (b"<html><body>429</body></html>", "html_reply"),
        (table(ROW).encode()[:-100], "unparsable_line"),
        (table(ROW).replace("\t20\t", "\ttwenty\t").encode(), "unparsable_line"),
        (gzip.compress(table(ROW).encode(), mtime=0)[:-30], "truncated_gzip"),
    ],
)
def test_a_damaged_table_of_uniprot(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(SourceError) as error:
        read(UniprotTable(files="file"), tmp_path, data)
    assert error.value.reason == reason


def test_tables_of_texts(tmp_path: Path) -> None:
    texts = read(Texts(files="t.csv", name="sgd"), tmp_path, 'uniprot,description\nP1,"A, B"\nP2,\n', "t.csv")
    assert [(t.key, t.text.text, t.text.origin) for t in texts if isinstance(t, TextRecord)] == [("P1", "A, B", "sgd")]


def test_tables_as_editors_leave_them(tmp_path: Path) -> None:
    table = b'\xef\xbb\xbfuniprot\tdescription\r\nP1\t"unpaired quote\r\n\r\nP2\tthe "NTC" complex\r\nP3\t\r\n\r\n'
    items = read(Texts(files="x.*"), tmp_path, table, "x.tsv")
    assert [item.text.text for item in items if isinstance(item, TextRecord)] == [
        '"unpaired quote',
        'the "NTC" complex',
    ]
    (empty,) = [item for item in items if isinstance(item, Rejection)]
    assert (empty.reason, empty.key, empty.position) == ("empty_text", "P3", f"byte {table.index(b'P3')}")
    long = "long " * 40_000
    (record, _) = read(Texts(files="x.*"), tmp_path, f"uniprot\tdescription\nP1\t{long}\n".encode(), "x.tsv")
    assert isinstance(record, TextRecord) and record.text.text == long.strip()
    with pytest.raises(SourceError, match=r"x\.csv, line 3: unexpected end of data"):
        read(Texts(files="x.*"), tmp_path, b'uniprot,description\nP1,"not closed\nP2,x\n', "x.csv")


def test_a_table_without_its_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no column \['description'\] in its header \['uniprot', 'text'\]"):
        read(Texts(files="t.tsv"), tmp_path, "uniprot\ttext\nP1\tx\n", "t.tsv")


@pytest.mark.parametrize("kind", [Texts, UniprotTable])
def test_a_line_that_is_none_stops_or_is_rejected_and_the_next_one_read(tmp_path: Path, kind: type[Files]) -> None:
    header = "uniprot\tdescription\n" if kind is Texts else "Entry\tEC number\n"
    data = header + "P1\t1.1.1.1\nP2\nP3\t1.1.1.2\nP4\n"
    with pytest.raises(SourceError, match=r"file, byte \d+: 1 columns, the header has 2"):
        read(kind(files="file"), tmp_path, data)
    first, refused, last, cut, seen = read(kind(files="file", on_error="reject"), tmp_path, data)
    assert isinstance(first, Record) and isinstance(last, Record) and (first.key, last.key) == ("P1", "P3")
    for item, line in ((refused, "P2"), (cut, "P4")):
        assert isinstance(item, Rejection) and item.reason == "unparsable_line"
        assert (item.source, item.position) == ("file", f"byte {data.index(line)}")
    assert isinstance(seen, FileSeen)
    with pytest.raises(SourceError):  # a thousand such lines in a row are no table
        list(kind(files="file", on_error="reject").parse(stream_of(tmp_path, header + "P2\n" * 1_001)))


def stream_of(folder: Path, data: str) -> Stream:
    (folder / "file").write_text(data)
    return Stream.open(Place(str(folder)), "file")
