"""UniProt XML: the same records as from the flat file, and nothing that a hostile document could make of a parser."""

import gzip
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.records import AnnotationRecord, EntryRecord, FileSeen, Item, Record, Rejection, SequenceRecord
from data_prep.sources.files import BLOCK, Slice, SourceError, Stream
from data_prep.sources.uniprot import Uniprot
from data_prep.sources.uniprotkb import element, flat, xml
from data_prep.sources.uniprotkb.entry import Entry, crc64
from data_prep.sources.uniprotkb.records import isoforms, records
from pretrain.places import Place
from pretrain.sample import About
from tests import pack

PACK = pack.PACK / "uniprot"
pack = pytest.mark.skipif(not PACK.is_dir(), reason="no pack beside the checkout")
SEQUENCE = "MKTAYIAKQRQISFVKSHFS"
CHECKSUM = crc64(SEQUENCE.encode())
HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<uniprot xmlns="http://uniprot.org/uniprot" xmlns:x="y" x:z="w">\n'
TAIL = "<copyright>\nCopyrighted by the UniProt Consortium\n</copyright>\n</uniprot>\n"
ENTRY = f"""<entry dataset="Swiss-Prot" created="1986-07-21" modified="2024-05-29" version="200">
<accession>P12345</accession>
<accession>Q99999</accession>
<name>TEST_HUMAN</name>
<protein>
<recommendedName><fullName evidence="1">Test protein</fullName><ecNumber>2.7.11.1</ecNumber></recommendedName>
<component><recommendedName><fullName>Part &amp; piece</fullName></recommendedName></component>
</protein>
<organism><name type="scientific">Homo sapiens</name><name type="common">Human</name>
<dbReference type="NCBI Taxonomy" id="9606"/></organism>
<comment type="function"><molecule>Isoform 2</molecule><text evidence="1">Binds ATP.</text></comment>
<comment type="subcellular location"><subcellularLocation><location>Cytoplasm</location><location>Cytosol</location>
<topology>Peripheral membrane protein</topology></subcellularLocation>
<subcellularLocation><location>Nucleus</location></subcellularLocation><text>Moves.</text></comment>
<comment type="catalytic activity"><reaction><text>A = B</text><dbReference type="EC" id="2.7.11.1"/></reaction>
</comment>
<comment type="alternative products"><event type="alternative splicing"/>
<isoform><id>P12345-1</id><name>1</name><sequence type="displayed"/></isoform>
<isoform><id>P12345-2</id><name>2</name><sequence type="described" ref="VSP_000001"/></isoform></comment>
<dbReference type="GO" id="GO:0005524"><property type="term" value="F:ATP binding"/>
<property type="evidence" value="ECO:0007669"/><property type="project" value="UniProtKB-KW"/></dbReference>
<dbReference type="PDB" id="1ABC"><property type="method" value="X-ray"/><property type="resolution" value="2.00 A"/>
<property type="chains" value="A=1-20"/></dbReference>
<proteinExistence type="evidence at protein level"/>
<feature type="splice variant" id="VSP_000001" description="in isoform 2"><original>KTA</original>
<variation>WW</variation><location><begin position="2"/><end position="4"/></location></feature>
<sequence length="20" mass="2300" checksum="{CHECKSUM}" modified="1986-07-21" version="1" precursor="true" \
fragment="single">
MKTAYIAKQR
QISFVKSHFS
</sequence>
</entry>
"""
OTHER = ENTRY.replace("P12345", "P54321").replace("Q99999", "Q77777")


def read(folder: Path, data: bytes | str, name: str = "file", **settings: object) -> list[Item]:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    place = Place(str(folder))
    source = Uniprot.model_validate({"files": name, **settings})
    return list(source.read(place, Slice((name,)), place))


def entries(place: Place, name: str) -> list[Entry]:
    with Stream.open(place, name) as stream:
        return [element.parse(document) for _, document in xml.pieces(stream)]


def refused(folder: Path, data: bytes | str) -> str:
    """The reason, the same whether the run stops or goes on."""
    with pytest.raises(SourceError) as error:
        read(folder, data)
    *_, item = read(folder, data, on_error="reject")
    assert isinstance(item, Rejection) and item.reason == error.value.reason
    assert "file" in str(error.value)
    return item.reason


def test_an_entry_gives_all_that_it_says(tmp_path: Path) -> None:
    *items, seen = read(tmp_path, HEAD + ENTRY + OTHER + TAIL, isoforms=True)
    assert isinstance(seen, FileSeen)
    position = f"byte {len(HEAD)}"
    about = About("Test protein", "Homo sapiens", 9606, True, True, ("2.7.11.1",), pdb=("1ABC",), secondary=("Q99999",))
    assert items[:3] == [
        SequenceRecord("P12345", "file", SEQUENCE, position),
        EntryRecord("P12345", "file", about, ("Q99999",), position),
        AnnotationRecord("P12345", "file", (("GO:0005524", "IEA"),), position),
    ]
    assert [item.text.text for item in items[3:6]] == [  # type: ignore[union-attr]
        "[Isoform 2]: Binds ATP.",
        "Subcellular location: Cytoplasm, cytosol, peripheral membrane protein; Nucleus. Moves.",
        "Catalyzes the reaction A = B.",
    ]
    assert items[6] == SequenceRecord("P12345-2", "file", "MWW" + SEQUENCE[4:], position)
    assert [item.key for item in items[8:]] == ["P54321"] * 6 + ["P54321-2"] * 2  # type: ignore[union-attr]


@pack
def test_an_entry_is_the_same_from_both_forms() -> None:
    place = Place(str(PACK))
    with Stream.open(place, "uniprot_entries.dat") as stream:
        known = {entry.accessions[0]: entry for _, piece in flat.pieces(stream) for entry in [flat.parse(piece)]}
    found = [entry for name in place.find("xml/*.xml") for entry in entries(place, name)]
    assert len(found) == 20 and all(entry.sequence and entry.features is not None for entry in found)
    both = [(entry, known[entry.accessions[0]]) for entry in found if entry.accessions[0] in known]
    assert len(both) == 11
    equal = set(vars(found[0])) - {"gene_name", "references", "comments", "cross_references", "features", "keywords"}
    for one, other in both:
        described = re.sub(r" \{ECO:[^}]*\}", "", other.description)
        assert {n: getattr(one, n) for n in equal} == {
            n: getattr(replace(other, description=described), n) for n in equal
        }
        assert sorted(one.keywords) == sorted(other.keywords)
        assert [f[:5] for f in one.features] == [f[:5] for f in other.features]
        told = [(r.references, r.authors, r.title, r.location) for r in one.references]
        assert told == [(r.references, r.authors, r.title, r.location) for r in other.references]
        assert list(records(one, "x", "")) == list(records(other, "x", ""))
        assert list(isoforms(one, "x", "")) == list(isoforms(other, "x", ""))


@pack
def test_the_packs_files_are_read_by_what_they_are(tmp_path: Path) -> None:
    for path in sorted((PACK / "xml").glob("*.xml")):
        packed = read(tmp_path, gzip.compress(path.read_bytes()), "entries.dat.gz")
        named = [item for item in read(tmp_path, path.read_bytes(), path.name) if not isinstance(item, FileSeen)]
        found = [item for item in packed if isinstance(item, Record)]
        assert found == [replace(item, source="entries.dat.gz") for item in named if isinstance(item, Record)]
        assert any(isinstance(item, SequenceRecord) for item in found)


ENTITIES = '<!DOCTYPE uniprot [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE uniprot [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
DECLARATION, ROOT = HEAD.split("\n")[:2]
XML: dict[str, str] = {
    "plain": f"{DECLARATION}\n<!DOCTYPE uniprot>\n{ROOT}\n",
    "bomb": f"{DECLARATION}{ENTITIES}{ROOT}",
    "external": f"{DECLARATION}{EXTERNAL}{ROOT}",
    "parameter": f'{DECLARATION}<!DOCTYPE u [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]>{ROOT}',
    "system": f'{DECLARATION}<!DOCTYPE uniprot SYSTEM "http://127.0.0.1:9/uniprot.dtd">{ROOT}',
    "no declaration": f"{ENTITIES}{ROOT}",
    "after a comment": f"{DECLARATION}<!-- {'-' * 7}x <entry > -->{ENTITIES}{ROOT}".replace("-x", " x"),
    "after many comments": f"{DECLARATION}{'<!-- c -->' * 5000}{ENTITIES}{ROOT}",
    "after an instruction": f"{DECLARATION}<?x <!-- ?>{ENTITIES}<?y --> ?>{ROOT}",
    "in lower case": f"{DECLARATION}<!doctype uniprot>{ROOT}",
    "inside the root": f"{HEAD}{ENTITIES}",
    "as an element": f"{HEAD}<!ELEMENT uniprot ANY>",
    "as an attribute list": f'{HEAD}<!ATTLIST entry x CDATA "y">',
    "as a conditional section": f"{HEAD}<![INCLUDE[<!ENTITY a 'b'>]]>",
}


@pytest.mark.parametrize("name", XML)
def test_document_types_are_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, XML[name] + ENTRY + TAIL) == "xml_doctype"
    packed = gzip.compress((XML[name] + ENTRY + TAIL).encode())
    assert refused(tmp_path, packed) == "xml_doctype"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "cp500"])
@pytest.mark.parametrize("types", ["bomb", "external", "after a comment"])
def test_document_types_in_other_encodings_are_refused(tmp_path: Path, types: str, encoding: str) -> None:
    declaration = DECLARATION.replace("UTF-8", encoding)
    rest = (XML[types] + ENTRY + TAIL).removeprefix(DECLARATION)
    if encoding == "utf-7":  # whose declaration is ASCII, and whose `<!` is not
        data = declaration.encode() + rest.encode(encoding).replace(b"<!", b"+ADwAIQ-")
        assert b"<!" not in data
    else:
        data = (declaration + rest).encode(encoding)
    assert refused(tmp_path, data) == ("unparsable_entry" if encoding == "cp500" else "xml_doctype")
    plain = (HEAD + ENTRY + TAIL).replace("UTF-8", encoding).encode(encoding)
    if encoding.startswith("utf-16") or encoding == "utf-32":
        assert refused(tmp_path, plain) == "xml_encoding"


def test_document_types_across_blocks_are_refused(tmp_path: Path) -> None:
    for shift in range(0, len("<!DOCTYPE") + 1, 2):
        padding = "<!-- " + " " * 1000 + " -->"
        begin = HEAD + ENTRY * (BLOCK // len(ENTRY))
        short = BLOCK - len(begin) - shift
        assert short > 0
        gap = " " * short if short < len(padding) else "<!--" + " " * (short - 7) + "-->"
        data = begin + gap + ENTITIES + OTHER + TAIL
        assert data.encode().index(b"<!DOCTYPE") == BLOCK - shift
        with pytest.raises(SourceError) as error:
            read(tmp_path, data)
        assert error.value.reason == "xml_doctype"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda entry: entry.replace("Test protein", "&lol;"), "Entity 'lol' not defined"),
        (lambda entry: entry.replace("Test protein", "Test <b>protein"), "mismatch"),
        (lambda entry: entry.replace("Test protein", "<a>" * 300 + "</a>" * 300), "depth"),
        (lambda entry: entry.replace("Test protein", "\0"), "invalid|PCDATA|null|Char"),
        (lambda entry: entry.replace("<name>TEST_HUMAN</name>", "", 1), "index out of range"),
        (lambda entry: entry.replace("<accession>P12345</accession>\n<accession>Q99999</accession>", ""), "index"),
        (lambda entry: re.sub("(?s)<sequence length.*</sequence>", "", entry), "unpack"),
        (lambda entry: entry.replace('length="20"', 'length="x"'), "invalid literal"),
        (lambda entry: entry.replace('length="20"', 'length="21"'), "21 residues are stated, 20 are there"),
        (lambda entry: entry.replace("MKTAYIAKQR", "MKTAYIAKQQ"), f"checksum {CHECKSUM} is stated"),
        (lambda entry: entry.replace("<name>TEST", "<name>" + "<i a=''/>" * 900_000 + "TEST"), "tags and attributes"),
    ],
)  # fmt: skip
def test_what_is_no_entry_is_named_and_the_next_one_read(
    tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    damaged = change(ENTRY)
    assert damaged != ENTRY
    data = HEAD + OTHER + damaged + OTHER.replace("P54321", "P66666") + TAIL
    with pytest.raises(SourceError, match=rf"entry (P12345|Q99999|\?) at byte {len(HEAD + OTHER)}: .*({said})"):
        read(tmp_path, data)
    items = read(tmp_path, data, on_error="reject")
    (refusal,) = [item for item in items if isinstance(item, Rejection)]
    assert re.search(said, refusal.detail) and refusal.position == f"byte {len(HEAD + OTHER)}"
    assert [item.key for item in items if isinstance(item, SequenceRecord)] == ["P54321", "P66666"]


def test_features_that_are_none_are_refused_when_asked_for() -> None:
    document = f"<uniprot>{ENTRY}</uniprot>".replace('<begin position="2"/>', '<begin position="two"/>').encode()
    with pytest.raises(ValueError, match="invalid literal"):
        len(element.parse(document).features)


def test_cut_at_any_byte_it_is_an_error(tmp_path: Path) -> None:
    data = (HEAD + ENTRY + OTHER + TAIL).encode()
    whole = len(data.rstrip())
    for end in [*range(0, whole, 11), *range(whole - 15, whole)]:
        with pytest.raises(SourceError) as error:
            read(tmp_path, data[:end])
        assert error.value.reason in ("empty_file", "unparsable_entry", "truncated_entry"), end
    assert len([item for item in read(tmp_path, data[:whole]) if isinstance(item, SequenceRecord)]) == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEAD.replace("<uniprot", "<uniparc") + ENTRY + "</uniparc>", "unparsable_entry"),
        ("<rss><channel/></rss>", "unparsable_entry"),
        (HEAD + "text" + ENTRY + TAIL, "unparsable_entry"),
        (HEAD + ENTRY + "<evil>" + OTHER + TAIL, "unparsable_entry"),
        (HEAD + " " * 70_000 + ENTRY + TAIL, "unparsable_entry"),
        (HEAD + "</entry>" + ENTRY + TAIL, "unparsable_entry"),
        (HEAD + "<!-- " + ENTRY + TAIL, "unparsable_entry"),
        (HEAD + ENTRY.replace("Binds ATP.", "x" * (17 << 20)) + TAIL, "overlong_entry"),
        ("<?xml version='1.0' encoding='koi8-r'?><uniprot>" + ENTRY + TAIL, "xml_encoding"),
        ("<?xml version='1.0' encoding='no-such'?><uniprot>" + ENTRY + TAIL, "xml_encoding"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_entries(tmp_path: Path, data: str, reason: str) -> None:
    assert refused(tmp_path, data) == reason


def test_that_there_are_no_entries_is_said(tmp_path: Path) -> None:
    refused, seen = read(tmp_path, HEAD + TAIL)
    assert isinstance(refused, Rejection) and isinstance(seen, FileSeen)
    assert (refused.reason, refused.source, refused.position) == ("no_entries", "file", "whole file")


def test_harmless_variations(tmp_path: Path) -> None:
    wanted = [item for item in read(tmp_path, HEAD + ENTRY + TAIL) if isinstance(item, Record)]
    bare = '<uniprot xmlns="https://uniprot.org/uniprot">'
    prefixed = re.sub(r"<(/?)(?=[a-zA-Z])", r"<\1", ENTRY)
    for data in (
        bare + ENTRY + "</uniprot>",
        "<uniprot>" + ENTRY.replace("<entry ", '<entry xmlns="http://uniprot.org/uniprot" ') + "</uniprot >",
        "\ufeff" + HEAD + "<!-- a comment, <b> -->" + ENTRY.replace("\n", "\r\n") + "<?pi?>" + TAIL,
        HEAD.replace("UTF-8", "US-ASCII") + prefixed + TAIL + "<!-- end -->\n",
        HEAD + ENTRY.replace("Binds ATP.", "<![CDATA[Binds ATP.]]>") + TAIL,
    ):
        found = [item for item in read(tmp_path, data) if isinstance(item, Record)]
        assert [replace(item, position="") for item in found] == [replace(item, position="") for item in wanted]
    latin = (HEAD.replace("UTF-8", "ISO-8859-1") + ENTRY.replace("Test protein", "Protéine") + TAIL).encode("latin-1")
    (known,) = [item for item in read(tmp_path, latin) if isinstance(item, EntryRecord)]
    assert known.about.name == "Protéine"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    data = (HEAD + ENTRY * 6_000 + TAIL).encode()
    assert len(data) > 12e6
    (tmp_path / "big.xml.gz").write_bytes(gzip.compress(data, 1))
    place, count = Place(str(tmp_path)), 0
    tracemalloc.start()
    try:
        with Stream.open(place, "big.xml.gz") as stream:
            count = sum(1 for _ in xml.pieces(stream))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 6_000 and peak < 12e6
