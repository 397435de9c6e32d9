"""UniProt flat files: every field as Biopython has it, what becomes of an entry, isoforms, and every kind of damage."""

import gzip
import io
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from Bio import SwissProt
from Bio.SeqFeature import Position
from Bio.SeqUtils.CheckSum import crc64 as slow_crc64

from data_prep.records import (
    AnnotationRecord,
    EntryRecord,
    FileSeen,
    Item,
    Rejection,
    SequenceRecord,
    TextRecord,
)
from data_prep.sources.files import Files, Slice, SourceError, Stream
from data_prep.sources.uniprot import Uniprot
from data_prep.sources.uniprotkb import flat
from data_prep.sources.uniprotkb.entry import Entry, Feature, crc64
from pretrain.places import Place
from pretrain.sample import About
from tests import pack
from tests.unit.data_prep.entries import BROKEN, ENTRY, OTHER, SEQUENCE

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "data_prep" / "sample" / "uniprot"
PACK = pack.PACK / "uniprot"
FILES = [
    SAMPLE / "entries.dat",
    pytest.param(
        PACK / "uniprot_entries.dat", marks=pytest.mark.skipif(not PACK.is_dir(), reason="no pack beside the checkout")
    ),
]


def read(source: Files, folder: Path, data: bytes | str, name: str = "file") -> list[Item]:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    place = Place(str(folder))
    return list(source.read(place, Slice((name,)), place))


def kept(items: list[Item]) -> list[Item]:
    return [item for item in items if not isinstance(item, FileSeen)]


def entries(path: Path) -> Iterator[Entry]:
    with Stream.open(Place(str(path.parent)), path.name) as stream:
        for _, piece in flat.pieces(stream):
            yield flat.parse(piece)


def as_biopython(entry: Entry) -> dict:
    """Our entry in the types of Biopython's record."""
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(entry).items()}
    for name in ("created", "sequence_update", "annotation_update", "seqinfo"):
        found[name] = getattr(entry, name)
    found["references"] = [
        (r.number, r.evidence.split("|") if r.evidence else [], *map(list, r[2:5]), *r[5:]) for r in entry.references
    ]
    found["features"] = [
        (f.type, repr(Position.fromstring(str(f.begin), -1)), repr(Position.fromstring(str(f.end))), *f[3:])
        for f in entry.features
    ]
    return found


def of_biopython(record: SwissProt.Record) -> dict:
    found = dict(vars(record))
    parts = ("positions", "comments", "references", "authors", "title", "location")
    found["references"] = [
        (r.number, getattr(r, "evidence", []), *(getattr(r, part) for part in parts)) for r in record.references
    ]
    found["features"] = [
        (f.type, repr(f.location.start), repr(f.location.end), f.location.ref, f.id, f.qualifiers)
        for f in record.features
    ]
    return found


@pytest.mark.parametrize("path", FILES, ids=["sample", "pack"])
def test_every_field_of_every_entry_is_biopythons(path: Path) -> None:
    """But for one entry: where a keyword's evidence goes on to the next line, Biopython takes it for keywords."""
    with open(path, encoding="utf-8") as file:
        records = list(SwissProt.parse(file))
    assert len(records) >= 10
    for record, entry in zip(records, entries(path), strict=True):
        ours, theirs = as_biopython(entry), of_biopython(record)
        if any("{" in keyword for keyword in record.keywords):
            assert record.accessions == ["A0A023GRW4"]
            theirs["keywords"] = [word.partition(" {")[0] for word in record.keywords if not word.startswith("ECO:")]
        assert ours == theirs


def test_the_checksum_is_biopythons() -> None:
    for sequence in ("", "A", SEQUENCE, SEQUENCE * 99, "XBZUOJ"):
        assert f"CRC-{crc64(sequence.encode())}" == slow_crc64(sequence)


def test_an_entry_gives_all_that_it_says(tmp_path: Path) -> None:
    *items, seen = read(Uniprot(files="file"), tmp_path, ENTRY)
    assert isinstance(seen, FileSeen) and seen.bytes == len(ENTRY)
    secondary = ("Q99999", "Q88888")
    about = About(
        name="Test protein",
        organism="Homo sapiens",
        taxon=9606,
        fragment=True,
        precursor=True,
        ec=("2.7.11.1",),
        genes=("ENSG00000157764",),
        ensembl=("ENST00000000001.1", "ENSP00000000001.1"),
        pdb=("1ABC",),
        secondary=secondary,
    )
    assert items[:3] == [
        SequenceRecord("P12345", "file", SEQUENCE, "byte 0"),
        EntryRecord("P12345", "file", about, secondary, "byte 0"),
        AnnotationRecord("P12345", "file", (("GO:0005524", "IEA"), ("GO:0005886", "IDA")), "byte 0"),
    ]
    texts = [item.text for item in items[3:] if isinstance(item, TextRecord) and item.position == "byte 0"]
    assert [(text.origin, text.text) for text in texts] == [
        ("uniprot:function", "Binds ATP. An ATP-dependent motor."),
        ("uniprot:catalytic_activity", "Catalyzes the reaction ATP + H2O = ADP + phosphate + H(+)."),
        (
            "uniprot:subcellular_location",
            "Subcellular location of isoform 2: Cell membrane, multi-pass membrane protein; Nucleus. Moves.",
        ),
    ]
    assert len(items) == 6


def test_fields_that_lines_break() -> None:
    entry = flat.parse(ENTRY.removesuffix("//\n").encode())
    assert entry.accessions == ("P12345", "Q99999", "Q88888")
    assert entry.keywords == ("ATP-binding", "Membrane")
    assert entry.taxonomy_id == ("9606",) and entry.created == ("21-JUL-1986", 0)
    assert entry.annotation_update == ("29-MAY-2024", 200)
    assert entry.features == (
        Feature("VAR_SEQ", 2, 4, None, "VSP_000001", {"note": "KTA -> WW (in isoform 2)"}),
        Feature("VAR_SEQ", 61, 70, None, "VSP_000002", {"note": "Missing (in isoform 2)"}),
    )


def test_old_lines() -> None:
    """As before release 7: molecule type, dates by release, names without fields, rows of features."""
    old = (
        ENTRY.replace("Reviewed;          70 AA.", "STANDARD;      PRT;    70 AA.")
        .replace("21-JUL-1986, integrated into UniProtKB/Swiss-Prot.", "21-JUL-1986 (Rel. 01, Created)")
        .replace("21-JUL-1986, sequence version 1.", "21-JUL-1986 (Rel. 2.3, Last sequence update)")
        .replace("29-MAY-2024, entry version 200.", "01-OCT-2000 (Rel. 40, Last annotation update)")
    )
    old = re.sub(r"(?:DE .*\n)+", "DE   TEST PROTEIN PRECURSOR (EC 2.7.11.1) (TP) (FRAGMENT).\n".title(), old, count=1)
    old = old.replace("De   ", "DE   ").replace("(Ec ", "(EC ")
    old = re.sub(r"FT .*\n", "", old).replace("GN   Name=TST {ECO:0000312|HGNC:HGNC:1}; Synonyms=T1, T2;\n", "")
    old = old.replace(
        "SQ ",
        "FT   SIGNAL       <1      ?\n"
        "FT   CHAIN        23    >30       Test protein that goes on-\n"
        "FT                                line.\n"
        "FT                                /FTId=PRO_0000028348.\nSQ ",
    )
    piece = old.removesuffix("//\n").encode()
    (record,) = SwissProt.parse(io.StringIO(old.replace("Precursor;", "")))
    entry = flat.parse(piece)
    assert (entry.data_class, entry.molecule_type, entry.created) == ("STANDARD", "PRT", ("21-JUL-1986", 1))
    assert entry.sequence_update == ("21-JUL-1986", "2.3") == record.sequence_update
    assert as_biopython(entry)["features"] == of_biopython(record)["features"]
    assert entry.features[1][:5] == ("CHAIN", 23, ">30", None, "PRO_0000028348")


REFERENCES = """RN   [1] {ECO:0000269|PubMed:1,
RN   ECO:0000269|PubMed:2}
RP   FUNCTION, AND
RP   INTERACTION.
RC   STRAIN=K12; TISSUE=Brain, and
RC   Liver;
RX   MEDLINE=84219729; PubMed=6328312;
RX   DOI=10.1002/(SICI)1::AID-1>3.0.CO;2-K;
RG   The consortium;
RG   The other one;
RA   Doe J., Roe A.,
RA   Poe E.A.;
RT   "On a "quoted" name and its alpha-
RT   helix.";
RL   Nature
RL   1:1-2(1986).
RN   [2] {ECO:0000269|PubMed:6328312}
RP   SEQUENCE.
RX   MEDLINE=84219729; PubMed=6328312;
RX   DOI=10.1002/(SICI)1::AID-1>3.0.CO;2-K;
RG   The consortium;
RA   Doe J., Roe A.,
RA   Poe E.A.;
RT   "On an alpha-
RT   helix in a protein
RT   of E.coli?";
RL   Nature
RL   1:1-2(1986).
RN   [3]
RP   SEQUENCE.
RX   AGRICOLA=IND1; PubMed=3;
RG   The consortium;
RL   Submitted (NOV-1994) to the PDB data bank.
"""
FEATURES = """FT   CHAIN           <1..>70
FT                   /note="A long name of a protein, and/or one that goes on-
FT                   line with
FT                   /slashes"
FT                   /evidence="ECO:0000269|PubMed:1,
FT                   ECO:0000269|PubMed:2, ECO:0000269|PubMed:3"
FT                   /id="PRO_1"
FT   BINDING         P12345-2:3
FT                   /ligand="ATP"
FT                   /ligand_id="ChEBI:CHEBI:1"
FT                   /evidence="ECO:0000250,
FT                   ECO:1"
FT   VAR_SEQ         2..9
FT                   /note="KTAYI AKQ
FT                   R -> WW
FT                   WWW (in isoform 2)"
FT   SITE            ?7
FT                   /evidence="ECO:0000250,
FT                   ECO:1"
FT   SITE            8
FT                   /note="Called "the site" by some"
FT   COILED          9..?
"""


def test_references_and_features_of_rare_layouts_are_biopythons() -> None:
    text = re.sub(r"(?:RN .*\n)(?:R. .*\n)*", lambda _: REFERENCES, ENTRY)
    text = re.sub(r"(?:FT .*\n)+", lambda _: FEATURES, text)
    (record,) = SwissProt.parse(io.StringIO(text.replace(",\nRN   ", ", ")))
    ours = as_biopython(flat.parse(text.removesuffix("//\n").encode()))
    theirs = of_biopython(record)
    assert len(ours["references"]) == 3 and len(ours["features"]) == 6
    assert ours["references"] == theirs["references"]
    assert ours["features"] == theirs["features"]


@pytest.mark.parametrize(
    ("part", "before", "after"),
    [
        ("references", "RL   Nature 1", "RZ   Nature 1"),
        ("references", "RN   [1]", "RN   1"),
        ("references", "RA   Doe J.;\n", 'RA   Doe J.;\nRT   "Unended\nRT   title;\nRP   Late.\n'),
        ("features", "2..4", "2..four"),
        ("features", "VAR_SEQ         2..4", "VAR_SEQ"),
        ("features", 'isoform 2)"\nFT                   /id="VSP_000001"', 'isoform 2)\nFT                   /id=1"'),
        ("features", '/id="VSP_000001"', "/id=VSP_000001"),
    ],
)  # fmt: skip
def test_damaged_references_and_features_are_refused(part: str, before: str, after: str) -> None:
    assert before in ENTRY
    with pytest.raises(ValueError):
        len(getattr(flat.parse(ENTRY.replace(before, after, 1).removesuffix("//\n").encode()), part))


def test_lines_in_another_order_and_internal_ones_say_the_same() -> None:
    lines = ENTRY.removesuffix("//\n").split("\n")
    moved = [line for line in lines if line.startswith("DR")]
    others = [line for line in lines if not line.startswith("DR")]
    at = next(i for i, line in enumerate(others) if line.startswith("SQ"))
    first, last = moved[:2], moved[2:]
    shuffled = "\n".join([*others[:3], *first, "**   internal", "**HA more", *others[3:at], *last, *others[at:]])
    assert flat.parse(shuffled.encode()) == flat.parse("\n".join(lines).encode())


@pytest.mark.parametrize("path", FILES, ids=["sample", "pack"])
def test_the_scan_agrees_with_whole_entries(path: Path) -> None:
    place = Place(str(path.parent))
    whole = Uniprot(files=path.name).read(place, Slice((path.name,)), place)
    wanted = [item for item in whole if isinstance(item, SequenceRecord | AnnotationRecord | FileSeen)]
    assert list(Uniprot(files=path.name, scan=True).read(place, Slice((path.name,)), place)) == wanted


def test_evidence_is_filtered_and_counted(tmp_path: Path) -> None:
    items = read(Uniprot(files="file", evidence=("experimental",)), tmp_path, ENTRY + OTHER)
    assert {item.terms for item in items if isinstance(item, AnnotationRecord)} == {(("GO:0005886", "IDA"),)}
    (left_out,) = [item for item in items if isinstance(item, Rejection)]
    assert (left_out.reason, left_out.detail, left_out.count) == ("evidence_filtered", "2 lines of IEA", 2)


def test_a_wrong_checksum_stops_or_is_rejected(tmp_path: Path) -> None:
    stated, seen = (slow_crc64(s).removeprefix("CRC-") for s in (SEQUENCE, SEQUENCE.replace("AKQRQ", "AKQQQ", 1)))
    said = f"checksum {stated} is stated, {seen} is that of the sequence"
    for scan in (False, True):
        with pytest.raises(SourceError, match=rf"file: entry P66666 at byte {len(ENTRY)}: {said}") as error:
            read(Uniprot(files="file", scan=scan), tmp_path, ENTRY + BROKEN)
        assert (error.value.reason, error.value.position) == ("checksum_mismatch", f"byte {len(ENTRY)}")
        items = read(Uniprot(files="file", on_error="reject", scan=scan), tmp_path, ENTRY + BROKEN + OTHER)
        (refused,) = [item for item in items if isinstance(item, Rejection)]
        assert refused == Rejection("checksum_mismatch", "P66666", "file", said, f"byte {len(ENTRY)}")
        assert {item.key for item in items if isinstance(item, SequenceRecord)} == {"P12345", "P54321"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("     ALPDAQFEVV\n", "", "70 residues are stated, 60 are there"),
        ("AC   P12345; Q99999;\nAC   Q88888;\n", "", "no .*AC line"),
        ("ID   TEST_HUMAN              Reviewed;          70 AA.", "ID   TEST_HUMAN", "no ID line"),
        ("DT   21-JUL-1986, seq", "DT   sometime, seq", ""),
        ("29-MAY-2024, entry version 200.", "29-MAY-2024", "names no known event"),
        ("SQ   SEQUENCE   70 AA;", "SQ   SEQUENCE   70 AA", ""),
        ("SQ   SEQUENCE   70 AA;  7800 MW;", "SQ   SEQUENCE   70 AA;", "no SQ line with length"),
        ("CC   -!- SUBUNIT", "\0\1\2\3", "begins with no known line code"),
        ("PE   1: Evidence", "PE   Evidence", "invalid literal"),
        ("OX   NCBI_TaxID", "OX   Other", "NCBI_TaxID is expected"),
        ("     ALPDAQFEVV", "     ALPDAQFE12", "letters alone"),
    ],
)
def test_what_is_no_entry_is_named_and_the_next_one_read(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in ENTRY
    damaged = ENTRY.replace("P12345", "P66666").replace(old.replace("P12345", "P66666"), new, 1)
    items = read(Uniprot(files="file", on_error="reject"), tmp_path, ENTRY + damaged + OTHER)
    if not said:  # harmless: it is read nevertheless
        assert len([item for item in items if isinstance(item, SequenceRecord)]) == 3
        return
    with pytest.raises(SourceError, match=rf"entry \S+ at byte {len(ENTRY)}: .*{said}"):
        read(Uniprot(files="file"), tmp_path, ENTRY + damaged + OTHER)
    (refused,) = [item for item in items if isinstance(item, Rejection)]
    assert re.search(said, refused.detail) and refused.position == f"byte {len(ENTRY)}"
    assert refused.key in ("P66666", "") and refused.reason in ("unparsable_entry", "checksum_mismatch")
    assert [item.key for item in items if isinstance(item, SequenceRecord)] == ["P12345", "P54321"]


@pytest.mark.parametrize(
    "line", ["FT   VAR_SEQ         2..x", 'FT   CHAIN           1..2\nFT                   /note="open']
)
def test_features_that_are_none_are_refused_when_asked_for(line: str) -> None:
    piece = ENTRY.removesuffix("//\n").replace("FT   VAR_SEQ         2..4", line, 1).encode()
    with pytest.raises(ValueError, match=r"position|quotes|qualifier"):
        len(flat.parse(piece).features)


def test_cut_at_any_byte_it_is_an_error_or_whole_entries(tmp_path: Path) -> None:
    data, first = (ENTRY + OTHER).encode(), len(ENTRY)
    for end in range(0, len(data), 7):
        if end in range(first - 1, first + 1) or end >= len(data) - 1:
            continue
        with pytest.raises(SourceError) as error:
            read(Uniprot(files="file"), tmp_path, data[:end])
        assert error.value.reason in ("empty_file", "unparsable_entry", "truncated_entry")
    for end in (first - 1, first, len(data) - 1):
        items = read(Uniprot(files="file"), tmp_path, data[:end])
        assert len([item for item in items if isinstance(item, SequenceRecord)]) == (2 if end > first else 1)
    with pytest.raises(SourceError, match=f"ends inside entry P54321 at byte {first}") as error:
        read(Uniprot(files="file", on_error="stop"), tmp_path, data[:-200])
    assert (error.value.reason, error.value.position) == ("truncated_entry", f"byte {first}")
    *found, refused = read(Uniprot(files="file", on_error="reject"), tmp_path, data[:-200])
    assert found and isinstance(refused, Rejection) and refused.reason == "truncated_entry"


@pytest.mark.parametrize("scan", [False, True])
def test_two_entries_without_an_end_between_are_none(tmp_path: Path, scan: bool) -> None:
    data = ENTRY.removesuffix("//\n") + OTHER + BROKEN.replace("AKQQ", "AKQR")
    with pytest.raises(SourceError, match="entry P12345 at byte 0"):
        read(Uniprot(files="file", scan=scan), tmp_path, data)
    items = read(Uniprot(files="file", scan=scan, on_error="reject"), tmp_path, data)
    assert [item.key for item in items if isinstance(item, SequenceRecord)] == ["P66666"]
    assert [item.key for item in items if isinstance(item, Rejection)] == ["P12345"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b" \n\n", "empty_file"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "html_reply"),
        (b"\n<HTML><head>", "html_reply"),
        (b"\x00\x01\x02\x03" * 99, "unparsable_entry"),
        (b"\x80\x04K\x01.", "unparsable_entry"),
        (b"{'messages': ['Resource not found']}", "unparsable_entry"),
        (b"ID   X" * 1_000_000 * 3, "overlong_entry"),
    ],
)
def test_what_is_no_file_of_entries(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(SourceError) as error:
        read(Uniprot(files="file"), tmp_path, data)
    assert error.value.reason == reason and "file" in str(error.value)


def test_line_ends_and_a_mark_of_order_make_no_difference(tmp_path: Path) -> None:
    plain = [item for item in read(Uniprot(files="file"), tmp_path, ENTRY + OTHER) if isinstance(item, SequenceRecord)]
    data = ENTRY + OTHER
    trailing = re.sub(r"(?m)(;|\.|\")$", r"\1  ", data)
    for other in (data.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + data.encode(), trailing.encode()):
        for scan in (False, True):
            items = kept(read(Uniprot(files="file", scan=scan), tmp_path, other))
            found = [item for item in items if isinstance(item, SequenceRecord)]
            assert [(item.key, item.sequence) for item in found] == [(item.key, item.sequence) for item in plain]
            if scan:
                codes = {code for item in items if isinstance(item, AnnotationRecord) for _, code in item.terms}
                assert codes == {"IEA", "IDA"}
            else:
                (entry, _) = entries(tmp_path / "file")
                assert entry == flat.parse(ENTRY.removesuffix("\n//\n").encode())


def test_byte_ranges_give_every_entry_once(tmp_path: Path) -> None:
    data = (SAMPLE / "entries.dat").read_bytes()
    whole = kept(read(Uniprot(files="file"), tmp_path, data))
    place = Place(str(tmp_path))
    for step in (len(data) // 3, 9_973):
        found: list[Item] = []
        for begin in range(0, len(data), step):
            part = Slice(("file",), begin, min(begin + step, len(data)))
            found += Uniprot(files="file").read(place, part, place)
        assert kept(found) == whole
        assert [item.bytes for item in found if isinstance(item, FileSeen)] == [len(data)]


def test_only_plain_flat_files_are_cut(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(ENTRY.encode() * 600)
    (tmp_path / "b.dat.gz").write_bytes(gzip.compress(b"".join(b"%d" % i for i in range(400_000)), 0))
    (tmp_path / "c.xml").write_bytes(b"<?xml version='1.0'?>" + b" " * (2 << 20))
    place = Place(str(tmp_path))
    cut = {part.names[0]: part.end for part in Uniprot(files="*", chunk=1).slices(place) if part.begin == 0}
    assert cut == {"a.dat": 1 << 20, "b.dat.gz": None, "c.xml": None}


def test_the_release_is_read_beside_the_file(tmp_path: Path) -> None:
    assert [item.release for item in read(Uniprot(files="file"), tmp_path, ENTRY) if isinstance(item, FileSeen)] == [""]
    (tmp_path / "reldate.txt").write_text(
        "UniProt Knowledgebase Release 2024_05 consists of:\nSwiss-Prot of 02-Oct-2024\n"
    )
    seen = [item for item in read(Uniprot(files="file"), tmp_path, ENTRY) if isinstance(item, FileSeen)]
    assert [item.release for item in seen] == ["2024_05"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "big.dat.gz").write_bytes(gzip.compress(ENTRY.encode() * 10_000, 1))
    place = Place(str(tmp_path))
    tracemalloc.start()
    try:
        count = sum(1 for _ in Uniprot(files="big.dat.gz", scan=True).read(place, Slice(("big.dat.gz",)), place))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_001 and len(ENTRY) * 10_000 > 20e6
    assert peak < 12e6
