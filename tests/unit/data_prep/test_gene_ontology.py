"""GAF: what each version says, what is left out and how that is counted, in any cut of a file."""

import gzip
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_prep.records import AnnotationRecord, FileSeen, Rejection
from data_prep.sources import annotations
from data_prep.sources.files import Files, Slice, SourceError
from data_prep.sources.gene_ontology import Gaf, Gpad
from pretrain.places import Place
from tests import pack

PACK = pack.PACK / "go"
needs_pack = pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not here")


def gaf(
    key: str = "P12345", term: str = "GO:1", code: str = "IDA", qualifier: str = "", form: str = "", **other: str
) -> str:
    database, taxon = other.get("database", "UniProtKB"), other.get("taxon", "taxon:9606")
    return (
        f"{database}\t{key}\tTST\t{qualifier}\t{term}\tPMID:1\t{code}\t\tF\tTest\t\tprotein\t{taxon}\t20200101"
        f"\tX\t{other.get('extension', '')}\t{form}\n"
    )


def read(source: Files, folder: Path, data: bytes | str, name: str = "file") -> list:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return list(source.read(Place(str(folder)), Slice((name,)), Place(str(folder))))


def records(items: list) -> list:
    return [item for item in items if not isinstance(item, FileSeen)]


def pairs(items: list) -> set[tuple[str, str, str]]:
    return {(item.key, *term) for item in items if isinstance(item, AnnotationRecord) for term in item.terms}


def test_lines_of_one_protein_that_follow_each_other_are_one_record(tmp_path):
    lines = [gaf(term="GO:1"), gaf(term="GO:2", code="IEA"), gaf(term="GO:1"), gaf("Q1"), gaf(term="GO:3")]
    head = "!gaf-version: 2.2\n"
    assert records(read(Gaf(files="file"), tmp_path, head + "".join(lines))) == [
        AnnotationRecord(
            "P12345", "file", (("GO:1", "IDA"), ("GO:2", "IEA")), f"byte {len(head)}", steps=(0, len(lines[0]))
        ),
        AnnotationRecord("Q1", "file", (("GO:1", "IDA"),), f"byte {len(head) + 3 * len(lines[0])}"),
        AnnotationRecord("P12345", "file", (("GO:3", "IDA"),), f"byte {len(head + ''.join(lines[:4]))}"),
    ]


def test_a_record_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "MOST_TERMS", 3)
    items = records(read(Gaf(files="file"), tmp_path, "".join(gaf(term=f"GO:{n}") for n in range(8))))
    assert [len(item.terms) for item in items] == [3, 3, 2]


def test_a_denied_function_is_no_annotation(tmp_path):
    lines = "!gaf-version: 2.2\n" + "".join(
        gaf(qualifier=q, term=t)
        for q, t in [("enables", "GO:1"), ("NOT|enables", "GO:2"), ("contributes_to", "GO:3"), ("NOT", "GO:1")]
    )
    items = records(read(Gaf(files="file"), tmp_path, lines))
    kept = next(item for item in items if isinstance(item, AnnotationRecord) and item.terms)
    assert kept.terms == (("GO:1", "IDA"), ("GO:3", "IDA"))
    first, second = (item for item in items if isinstance(item, Rejection))
    assert (first.reason, first.key, first.detail, first.count) == (
        "negated_annotation",
        "P12345",
        "NOT|enables GO:2",
        1,
    )
    assert second.detail == "NOT GO:1"
    assert lines.encode()[int(first.position.removeprefix("byte ")) :].startswith(
        b"UniProtKB\tP12345\tTST\tNOT|enables"
    )


@pytest.mark.parametrize(
    ("options", "line", "denied"),
    [
        ({}, {}, "P12345"),
        ({}, {"code": "IEA"}, "P12345"),
        ({}, {"form": "UniProtKB:P12345"}, "P12345"),
        ({}, {"form": "UniProtKB:P12345-2"}, ""),
        ({"isoforms": "own"}, {"form": "UniProtKB:P12345-2"}, "P12345-2"),
        ({"isoforms": "own"}, {"form": "UniProtKB:P12345:PRO_1"}, ""),
        ({}, {"key": "P12345-2"}, ""),
        ({}, {"code": "IPI"}, ""),
        ({}, {"extension": "occurs_in(CL:0000540)"}, ""),
    ],
)
def test_a_denial_of_the_whole_protein_is_handed_on(tmp_path, options, line, denied):
    lines = gaf("Q1") + gaf(**{"qualifier": "NOT|located_in", "term": "GO:5", **line})
    source = Gaf(files="file", evidence=("IDA",), **options)
    items = [item for item in records(read(source, tmp_path, lines)) if not getattr(item, "terms", ())]
    listed, *handed = items
    assert (listed.reason, listed.detail) == ("negated_annotation", "NOT|located_in GO:5")
    said = AnnotationRecord(denied, "file", (), f"byte {len(gaf('Q1'))}", ("GO:5",))
    assert handed == ([said] if denied else [])


def test_what_is_left_out_by_the_line_is_counted_by_kind(tmp_path):
    lines = [
        gaf(code="IEA"),
        gaf("URS1", database="RNAcentral"),
        gaf("CPX-1", database="ComplexPortal"),
        gaf(code="IEA", term="GO:2"),
        gaf("URS2", database="RNAcentral"),
        gaf(code="ISS"),
        gaf(code="EXP"),
        gaf("URS3", database="RNAcentral", qualifier="NOT"),
    ]
    items = records(read(Gaf(files="file", evidence=("experimental",)), tmp_path, "".join(lines)))
    second = f"byte {len(lines[0])}"
    assert [item for item in items if isinstance(item, Rejection)] == [
        Rejection("evidence_filtered", "", "file", "2 lines of IEA", "byte 0", 2),
        Rejection("evidence_filtered", "", "file", "1 line of ISS", f"byte {len(''.join(lines[:5]))}", 1),
        Rejection("other_database", "", "file", "1 line of ComplexPortal", f"byte {len(''.join(lines[:2]))}", 1),
        Rejection("other_database", "", "file", "3 lines of RNAcentral", second, 3),
    ]
    assert pairs(items) == {("P12345", "GO:1", "EXP")}


def test_kinds_that_are_counted_apart_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "MOST_KINDS", 3)
    items = read(Gaf(files="file"), tmp_path, "".join(gaf(database=f"D{n}" * 99) for n in range(10)))
    refused = [item for item in items if isinstance(item, Rejection)]
    assert len(refused) == 4
    assert sum(item.count for item in refused) == 10
    assert "7 lines of other kinds" in [item.detail for item in refused]


@pytest.mark.parametrize(("isoforms", "keys"), [("protein", {"P12345"}), ("own", {"P12345", "P12345-2", "P12345-3"})])
def test_forms_are_their_protein_s_or_their_own(tmp_path, isoforms, keys):
    lines = [
        gaf(),
        gaf(form="UniProtKB:P12345-2"),
        gaf(form="UniProtKB:P12345:PRO_0000000001"),
        gaf("Q1", database="x"),
        gaf("P12345-3:PRO_0000000002", term="GO:2"),
    ]
    items = read(Gaf(files="file", isoforms=isoforms), tmp_path, "".join(lines))
    assert {item.key for item in items if isinstance(item, AnnotationRecord)} == keys


def test_organisms_can_be_chosen(tmp_path):
    lines = gaf("P1", taxon="taxon:9606") + gaf("P2", taxon="taxon:10090|taxon:9606") + gaf("P3", taxon="taxon:4932")
    items = records(read(Gaf(files="file", taxa=(9606,)), tmp_path, lines))
    assert [item.key for item in items] == ["P1", ""]
    assert (items[1].reason, items[1].count) == ("other_taxon", 2)


@pytest.mark.parametrize(
    ("header", "release"),
    [
        (
            "!gaf-version: 2.2\n!date-generated: 2024-04-03T17:21\n!go-version: 2024-03-28\n",
            "2024-04-03, GO 2024-03-28",
        ),
        (
            "!gaf-version: 2.1\n!\n!Generated: 2016-10-03 09:46\n"
            "!GO-version: http://purl.obolibrary.org/obo/go/releases/2016-10-01/go.owl\n",
            "2016-10-03, GO 2016-10-01",
        ),
        ("!gaf-version: 2.0\n! a remark: with a colon\n", ""),
    ],
)
def test_a_file_s_release_is_read_from_its_header(tmp_path, header, release):
    items = read(Gaf(files="file"), tmp_path, header + gaf())
    assert items[-1].release == release


@pytest.mark.parametrize(
    ("source", "header", "said"),
    [
        (Gaf, "!gpa-version: 1.1", "file: a GPAD file; its kind is 'gpad'"),
        (Gaf, "!gpad-version: 2.0", "file: a GPAD file"),
        (Gpad, "!gaf-version: 2.2", "file: a GAF file; its kind is 'gaf'"),
        (Gaf, "!gpi-version: 2.0", "file: a GPI file"),
        (Gaf, "!gaf-version: 3.0", "file: GAF 3.0; versions 1 and 2 can be read"),
    ],
)
def test_another_format_is_called_by_its_name(tmp_path, source, header, said):
    with pytest.raises(SourceError, match=said):
        read(source(files="file"), tmp_path, header + "\n" + gaf())


def test_an_unparsable_line_stops_or_is_rejected(tmp_path, monkeypatch):
    lines = "!gaf-version: 2.2\nUniProtKB\tP1\tnot enough\n" + gaf() + gaf(term="5524")
    with pytest.raises(SourceError, match=r"file, byte 18: not an annotation of GAF \(3 columns") as error:
        read(Gaf(files="file"), tmp_path, lines)
    assert (error.value.reason, error.value.position) == ("unparsable_line", "byte 18")
    refused, term, kept = sorted(
        records(read(Gaf(files="file", on_error="reject"), tmp_path, lines)), key=lambda i: (i.key, i.position)
    )
    assert (refused.reason, term.reason, kept.key) == ("unparsable_line", "unparsable_line", "P12345")
    monkeypatch.setattr(annotations, "MOST_LISTED", 2)
    items = read(Gaf(files="file", on_error="reject"), tmp_path, "rubbish\n" * 10)
    assert [item.count for item in items if isinstance(item, Rejection)] == [1, 1, 8]


def test_what_was_counted_before_damage_is_told(tmp_path):
    packed = gzip.compress("".join(gaf(f"P{n}", code="IEA" if n % 2 else "IDA") for n in range(40_000)).encode())
    items = read(Gaf(files="file", on_error="reject", evidence=("IDA",)), tmp_path, packed[:-1000])
    assert [item.reason for item in items if isinstance(item, Rejection)] == ["evidence_filtered", "truncated_gzip"]
    assert len(pairs(items)) > 100


def test_a_byte_order_mark_and_carriage_returns(tmp_path):
    lines = "﻿!gaf-version: 2.2\r\n" + gaf(form="UniProtKB:P12345-2").replace("\n", "\r\n") + "\r\n"
    assert pairs(read(Gaf(files="file", isoforms="own"), tmp_path, lines)) == {("P12345-2", "GO:1", "IDA")}


@pytest.mark.parametrize("step", [97, 1000, 10_000])
def test_any_cut_of_a_file_gives_the_same_annotations(tmp_path, step):
    data = "!gaf-version: 2.2\n" + "".join(
        gaf(f"P{n // 7}", f"GO:{n}", code=("IDA", "IEA")[n % 2], qualifier="NOT" if n % 50 == 0 else "")
        for n in range(400)
    )
    source = Gaf(files="file", evidence=("experimental",))
    whole = read(source, tmp_path, data)
    place = Place(str(tmp_path))
    parts = [Slice(("file",), at, min(at + step, len(data))) for at in range(0, len(data), step)]
    cut = [item for part in parts for item in source.read(place, part, place)]
    assert pairs(cut) == pairs(whole)
    assert counted(cut) == counted(whole)
    assert [item for item in cut if isinstance(item, FileSeen)] == [whole[-1]]


def counted(items: list) -> Counter:
    found: Counter = Counter()
    for item in items:
        if isinstance(item, Rejection):
            found[item.reason, item.detail.partition(" of ")[2] or item.detail] += item.count
    return found


def test_a_big_plain_file_is_cut(tmp_path):
    (tmp_path / "file").write_text("!gaf-version: 2.2\n" + "".join(gaf(f"P{n}") for n in range(20_000)))
    source = Gaf(files="file", chunk=1)
    place = Place(str(tmp_path))
    parts = source.slices(place)
    assert len(parts) == 2
    assert len(pairs([item for part in parts for item in source.read(place, part, place)])) == 20_000


def test_memory_does_not_grow_with_the_file(tmp_path):
    with gzip.open(tmp_path / "big.gaf.gz", "wt", compresslevel=1) as file:
        for n in range(4000):
            file.write("".join(gaf(f"P{n}", f"GO:{i}", ("IEA", "IDA")[i % 5 == 0]) for i in range(150)))
    code = (
        "import resource; from pretrain.places import Place; from data_prep.sources.gene_ontology import Gaf\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3\n"
        f"place = Place({str(tmp_path)!r}); source = Gaf(files='big.gaf.gz', evidence=('experimental',))\n"
        "before = peak(); items = sum(1 for part in source.slices(place) for _ in source.read(place, part, place))\n"
        "print(items, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    items, grown = done.stdout.split()
    assert int(items) == 4002  # a record of each protein, the file, and one rejection for 480,000 lines
    assert float(grown) < 24  # MB, of 46 MB that the file has unpacked


# --- the pack's real files


@needs_pack
@pytest.mark.parametrize("name", ["goa_yeast.gaf", "gene_association.goa_yeast.1.gaf"])
def test_real_gaf_as_biopython_reads_it(name):
    from Bio.UniProt import GOA

    with open(PACK / name) as file:
        theirs = {(r["DB_Object_ID"], r["GO_ID"], r["Evidence"]) for r in GOA.gafiterator(file)}
    assert len(theirs) > 200
    assert pairs(list(Gaf(files=name).read(Place(str(PACK)), Slice((name,)), Place(str(PACK))))) == theirs


@needs_pack
def test_the_pack_s_human_annotations():
    place, name = Place(str(PACK)), "human_gene2go_from_org.Hs.eg.db.gaf.gz"
    items = list(Gaf(files=name, evidence=("experimental",)).read(place, Slice((name,)), place))
    kept = [item for item in items if isinstance(item, AnnotationRecord)]
    assert (len(kept), sum(len(item.terms) for item in kept)) == (27_279, 232_476)
    refused = {item.detail.rpartition(" ")[2]: item.count for item in items if isinstance(item, Rejection)}
    assert refused == {
        "IBA": 119_692, "IC": 11_428, "IEA": 134_080, "ISA": 2_428, "ISM": 8, "ISO": 49, "ISS": 51_717,
        "NAS": 12_275, "ND": 2_504, "RCA": 296, "TAS": 55_669,
    }  # fmt: skip
