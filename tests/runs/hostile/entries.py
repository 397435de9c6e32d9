"""Hostile UniProt entries: flat files, XML, FASTA, exported tables."""

import re
from collections.abc import Callable, Iterator

from data_prep.sources.uniprotkb.flat import LIMIT
from tests.runs.hostile.files import MIB, Case, packed
from tests.runs.hostile.good import CHECKSUM, ENTRY, HEAD, SEQUENCE, TAIL, exported, fasta, flat, xml

LONGEST = LIMIT - 64 * 1024  # bytes of lines in an entry that is just small enough
PATHS = {
    "a path upwards": "../../../etc/passwd",
    "an absolute path": "/etc/cron.d/x",
    "a path of Windows": "..\\..\\x",
    "a device": "/dev/stdin",
    "dots alone": "..",
    "a name for a shell": "$(touch${IFS}x);`id`",
    "a name for a query": "x'--",
    "a name of 100,000 letters": "A" * 100_000,
    "a name in other letters": "Р12345",
    "a name with a zero byte": "P1\0x",
    "a format": "%n%s{0.__class__}",
}


def swapped(data: bytes, old: bytes, new: bytes) -> Callable[[], bytes]:
    assert old in data, old
    return lambda: data.replace(old, new, 1)


FLAT = flat()["entries.dat"]
FIRST = FLAT.split(b"\n//\n")[0]
KEY = (re.search(rb"^AC   (\w+);", FIRST, re.MULTILINE) or [b"", b""])[1]
SQ = (re.search(rb"^SQ   .*$", FIRST, re.MULTILINE) or [b""])[0]


def flat_file() -> Iterator[Case]:
    yield Case(
        "a stated length of less than nothing", swapped(FLAT, SQ.split(b"AA")[0], b"SQ   SEQUENCE   -5 "), "told"
    )
    yield Case(
        "a stated length of 10^30", swapped(FLAT, SQ.split(b"AA")[0], b"SQ   SEQUENCE   1" + b"0" * 30 + b" "), "told"
    )
    yield Case(
        "a stated length of 5,000 digits",
        swapped(FLAT, SQ.split(b"AA")[0], b"SQ   SEQUENCE   " + b"9" * 5000 + b" "),
        "told",
    )
    yield Case("another checksum", swapped(FLAT, SQ[-23:], b"0123456789ABCDEF CRC64;"), "told", ("checksum_mismatch",))
    yield Case("a residue less", swapped(FLAT, SQ + b"\n     M", SQ + b"\n     "), "told", ("checksum_mismatch",))
    yield Case("a sequence in other letters", swapped(FLAT, SQ + b"\n     M", SQ + b"\n     \xd0\x9c"), "told")
    yield Case("two SQ lines", swapped(FLAT, SQ, SQ + b"\n     MKT\n" + SQ), "told")
    yield Case(
        "no AC line", lambda: b"".join(line for line in FLAT.splitlines(keepends=True) if line[:2] != b"AC"), "refused"
    )
    yield Case(
        "no SQ line", lambda: b"".join(line for line in FLAT.splitlines(keepends=True) if line[:2] != b"SQ"), "refused"
    )
    yield Case("no marks of ends", lambda: FLAT.replace(b"\n//\n", b"\n"), "refused")
    yield Case("marks of ends alone", lambda: b"//\n" * 10_000, "told")
    yield Case("an entry in an entry", swapped(FLAT, b"\nDE ", b"\n" + FIRST + b"\nDE "), "told")
    yield Case("an unknown line code", swapped(FLAT, b"\nDE ", b"\nQQ   x\nDE "))
    yield Case("a taxon of 5,000 digits", swapped(FLAT, b"NCBI_TaxID=", b"NCBI_TaxID=" + b"9" * 5000))
    yield Case("a date of another year", swapped(FLAT, b"sequence version ", b"sequence version " + b"9" * 5000))
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", swapped(FLAT, b"AC   " + KEY, b"AC   " + key.encode()))


def lines() -> Iterator[Case]:
    """Entries that are just small enough, and repeat what takes long or much."""
    for name, line in {
        "AC": b"AC   P12345; Q99999; A0A024RBG1;\n",
        "DE": b"DE   AltName: Full=X (Y) [Z (A)];\n",
        "GN": b"GN   Name=ABC; Synonyms=X, Y {ECO:0000303};\n",
        "OC": b"OC   A; B; C; D;\n",
        "OX": b"OX   NCBI_TaxID=9606 {ECO:0000312};\n",
        "RN": b"RN   [1]\n",
        "CC": b"CC   -!- FUNCTION: A. {ECO:0000269}. (By similarity). A - b.\n",
        "DR": b"DR   GO; GO:0005524; F:x; IEA:X.\n",
        "KW": b"KW   A; B; C; D; E; F; G;\n",
        "FT": b'FT   CHAIN           1..20\nFT                   /note="x"\n',
        "OH": b"OH   NCBI_TaxID=9606; x.\n",
    }.items():
        size = LONGEST if name in ("AC", "DR") else LONGEST // 8
        begin = (FIRST.find(b"\n" + line[:5]) if b"\n" + line[:5] in FIRST else FIRST.index(b"\nCC   ")) + 1
        yield Case(f"{size >> 20} MiB of {name} lines", swelling(begin, line * (size // len(line))), heavy=True)
    function, name, place = b"CC   -!- FUNCTION: ", b"DE   RecName: Full=", b"CC   -!- SUBCELLULAR LOCATION: "
    for told, code, said in (
        ("brackets", function, b"(" * MIB + b")" * MIB),
        ("brackets", name, b"(" * MIB + b")" * MIB),
        ("brackets that close", function, b" (x)" * (MIB // 2)),
        ("brackets that close", name, b" (x)" * (MIB // 2)),
        ("evidence", function, b"{ECO:" * (MIB // 3)),
        ("molecules", place, b"[X]: " * (MIB // 3)),
        ("hyphens", function, b"a- b" * (MIB // 3)),
        ("equals", b"CC   -!- CATALYTIC ACTIVITY: ", b"Reaction=" * (MIB // 6)),
        ("isoforms", b"CC   -!- ALTERNATIVE PRODUCTS: ", b"IsoId=P1-2; Sequence=VSP_1; " * (MIB // 20)),
        ("blanks", b"OS   ", b" " * (2 * MIB) + b"x"),
        ("blanks", function, b" " * (2 * MIB) + b"x"),
    ):
        begin = FIRST.index(b"\n" + code[:5]) + 1
        yield Case(f"2 MiB of {told} in {code.decode().strip()}", swelling(begin, code + said + b"\n"), heavy=True)


def swelling(begin: int, data: bytes) -> Callable[[], bytes]:
    """An entry that has more at one of its places."""
    return lambda: packed(FIRST[:begin] + data + FIRST[begin:] + b"\n//\n")


XML = xml()["entries.xml"]
LAUGHS = (
    b'<!DOCTYPE x [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9))
    + b"]>\n"
)
OUTSIDE = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>\n'
TYPES = {
    "laughs": LAUGHS,
    "an outer entity": OUTSIDE,
    "an entity of the network": b'<!DOCTYPE x [<!ENTITY e SYSTEM "http://127.0.0.1:1/x">]>\n',
    "an outer type": b'<!DOCTYPE x SYSTEM "file:///etc/passwd">\n',
    "a public type": b'<!DOCTYPE x PUBLIC "-//X" "http://127.0.0.1:1/x.dtd">\n',
    "a parameter": b'<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>\n',
    "an entity": b'<!ENTITY a "b">\n',
    "a notation": b'<!DOCTYPE x [<!NOTATION n SYSTEM "x"><!ATTLIST x a CDATA "b">]>\n',
    "an empty type": b"<!DOCTYPE uniprot>\n",
    "a type in capitals and not": b'<!doctype x [<!entity a "b">]>\n',
    "a type after blanks": b"<!  DOCTYPE x>\n",
}
PLACES = {
    "first": lambda data: data + XML,
    "after the declaration": lambda data: XML.replace(b"<uniprot", data + b"<uniprot", 1),
    "before an entry": lambda data: HEAD + data + ENTRY + TAIL,
    "in an entry": lambda data: HEAD + ENTRY.replace(b"<name>", data + b"<name>", 1) + TAIL,
    "between entries": lambda data: HEAD + ENTRY + data + ENTRY + TAIL,
    "after the entries": lambda data: HEAD + ENTRY + data + TAIL,
    "last": lambda data: XML + data,
}


def documents() -> Iterator[Case]:
    for name, data in TYPES.items():
        for where, put in PLACES.items():
            yield Case(f"{name}, {where}", lambda data=data, put=put: put(data), "told")
    for encoding in ("utf-16", "utf-16-be", "utf-32", "utf-7", "cp037", "shift_jis", "utf-8-sig"):
        yield Case(
            f"laughs in {encoding}",
            lambda encoding=encoding: (LAUGHS + XML).decode().replace('"UTF-8"', f'"{encoding}"').encode(encoding),
            "told",
        )
    for name, said in {
        "an unknown entity": b"&lol;",
        "a letter that XML does not have": b"&#0;",
        "a letter beyond Unicode": b"&#x110000;",
        "a surrogate": b"&#xD800;",
        "a zero byte": b"\0",
        "an unclosed section": b"<![CDATA[",
        "an unclosed comment": b"<!-- ",
        "an unclosed tag": b"<name",
        "an unclosed element": b"<name>",
        "a wrong end": b"</name></name>",
        "an instruction to include": b'<xi:include href="file:///etc/passwd"/>',
        "an unknown prefix": b"<x:name/>",
        "another entry": b"<entry>",
        "the end of another entry": b"</entry>",
        "a section with the end of an entry": b"<![CDATA[</entry>]]>",
        "a comment with the end of an entry": b"<!-- </entry> -->",
    }.items():
        yield Case(
            f"{name} in an entry", lambda said=said: HEAD + ENTRY.replace(b"<name>", said + b"<name>", 1) + ENTRY + TAIL
        )
    for name, said in {
        "100,000 levels": b"<a>" * 100_000 + b"</a>" * 100_000,
        "255 levels": b"<a>" * 240 + b"</a>" * 240,
        "an attribute of 12 MB": b'<a b="' + b"x" * (12 * MIB) + b'"/>',
        "a text of 12 MB": b"<a>" + b"x" * (12 * MIB) + b"</a>",
        "100,000 attributes": b"<a " + b" ".join(b'a%d="1"' % i for i in range(100_000)) + b"/>",
        "50,000 prefixes": b"<a " + b" ".join(b'xmlns:a%d="u%d"' % (i, i) for i in range(50_000)) + b"/>",
        "700,000 elements": b"<a/>" * 700_000,
        "3,000,000 elements": b"<a/>" * 3_000_000,
        "a name of 12 MB": b"<" + b"a" * (12 * MIB) + b"/>",
        "a comment of 12 MB": b"<!--" + b"x" * (12 * MIB) + b"-->",
        "300,000 letters by number": b"<a>" + b"&#65;" * 300_000 + b"</a>",
        "100,000 terms": b'<dbReference type="GO" id="GO:0005524"/>' * 100_000,
        "50,000 accessions": b"<accession>P12345</accession>" * 50_000,
        "30,000 texts": b'<comment type="function"><text>A.</text></comment>' * 30_000,
    }.items():
        yield Case(
            f"{name} in an entry",
            lambda said=said: packed(HEAD + ENTRY.replace(b"<name>", said + b"<name>", 1) + TAIL),
            heavy=True,
        )
    edits = {
        "no sequence": (re.search(rb"<sequence .*</sequence>\n", ENTRY)[0], b""),  # type: ignore[index]
        "two sequences": (b"<sequence ", b'<sequence length="0" checksum="0000000000000000"></sequence><sequence '),
        "another checksum": (CHECKSUM.encode(), b"0123456789ABCDEF"),
        "a length of less than nothing": (b'length="20"', b'length="-20"'),
        "a length of 5,000 digits": (b'length="20"', b'length="' + b"9" * 5000 + b'"'),
        "a length that is none": (b'length="20"', b'length="twenty"'),
        "a mass that is none": (b'mass="2300"', b'mass="NaN"'),
        "no accession": (b"<accession>P12345</accession>\n<accession>Q99999</accession>", b""),
        "an empty accession": (b"<accession>P12345", b"<accession>"),
        "no organism": (re.search(rb"<organism>.*</organism>\n", ENTRY)[0], b""),  # type: ignore[index]
        "no names": (b"<name>TEST_HUMAN</name>", b""),
        "a month that is none": (b"1986-07-21", b"1986-13-21"),
        "a date that is none": (b'modified="1986-07-21"', b'modified="yesterday"'),
        "a place that is none": (b'<begin position="2"/>', b'<begin position="two"/>'),
        "a place of 5,000 digits": (b'<begin position="2"/>', b'<begin position="' + b"9" * 5000 + b'"/>'),
        "no place": (b'<location><begin position="2"/><end position="4"/></location>', b"<location/>"),
        "a taxon that is none": (b'id="9606"', b'id="x"'),
        "a variant beyond the sequence": (b'<end position="4"/>', b'<end position="4000000000"/>'),
        "a version of letters": (b'version="200"', b'version="two"'),
        "another language": (SEQUENCE.encode(), "МКТ".encode()),
    }
    for name, (old, new) in edits.items():
        yield Case(name, lambda old=old, new=new: HEAD + ENTRY.replace(old, new, 1) + TAIL, settings={"isoforms": True})
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", lambda key=key: HEAD + ENTRY.replace(b"P12345", key.encode(), 1) + TAIL)
    for name, data in {
        "another root": XML.replace(b"uniprot", b"uniref"),
        "a picture": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
        "a feed": b'<?xml version="1.0"?><rss version="2.0"><channel/></rss>',
        "two roots": XML + XML,
        "a stylesheet": XML.replace(b"<uniprot", b'<?xml-stylesheet href="file:///etc/passwd"?>\n<uniprot', 1),
        "XML 1.1": XML.replace(b'version="1.0"', b'version="1.1"'),
        "XML 9": XML.replace(b'version="1.0"', b'version="9.0"'),
        "an unknown encoding": XML.replace(b"UTF-8", b"klingon"),
        "an encoding of 100,000 letters": XML.replace(b"UTF-8", b"x" * 100_000),
        "an entry alone": ENTRY,
        "no entry": HEAD + TAIL,
        "an unclosed root": HEAD,
        "comments without an end": HEAD + b"<!-- " * 20_000,
    }.items():
        yield Case(name, lambda data=data: data)


FASTA = fasta()["more.fasta"]


def sequences() -> Iterator[Case]:
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", lambda key=key: b">sp|" + key.encode() + b"|X_Y Z\nMKTAYI\n>P1\nMKT\n")
        yield Case(f"header: {name}", lambda key=key: b">" + key.encode() + b" Z\nMKTAYI\n>P1\nMKT\n")
    for name, data in {
        "no header": b"MKTAYI\n",
        "headers alone": b">P1\n>P2\n>P3\n",
        "an empty header": b">\nMKTAYI\n",
        "marks alone": b">\n" * 10_000,
        "marks in a row": b">" * 100_000,
        "bars alone": b">sp||\nMKT\n>sp|\nMKT\n>|||\nMKT\n",
        "digits": b">P1\n12345\n",
        "other letters": ">P1\nМКТАУІ\n".encode(),
        "letters that grow in capitals": ">P1\nßŉΐ\n".encode(),
        "DNA with gaps": b">P1\nACGT--NN..**\n",
        "a sequence of nothing": b">P1\n\n\n \n",
        "a taxon of 5,000 digits": b">sp|P1|X Y OS=Z OX=" + b"9" * 5000 + b"\nMKT\n",
        "a taxon of other digits": ">sp|P1|X Y OS=Z OX=٣٤\nMKT\n".encode(),
        "FASTQ": b"@x\nACGT\n+\nIIII\n",
        "Stockholm": b"# STOCKHOLM 1.0\nx MKT\n//\n",
    }.items():
        yield Case(name, lambda data=data: data)
    yield Case("a header of 100 kB", lambda: b">P1 " + b"x" * 100_000 + b"\nMKT\n", "told", ("overlong_header",))
    yield Case("a header of 60 kB of fields", lambda: b">sp|P1|X Y" + b" OS=" * 15_000 + b"\nMKT\n")
    yield Case(
        "a header of 60 kB of brackets", lambda: b">sp|P1|X Y" + b" (a)" * 15_000 + b" OS=" + b"(" * 999 + b"\nMKT\n"
    )
    yield Case("15 MiB of one residue a line", lambda: packed(b">P1\n" + b"A\n" * (15 * MIB // 2)), heavy=True)
    yield Case("15 MiB of a sequence", lambda: packed(b">P1\n" + b"MKTAYIAKQR" * (15 * MIB // 10)), heavy=True)
    yield Case("100,000 sequences of nothing", lambda: packed(b">P1\n" * 100_000), heavy=True)


TABLE = exported()["exported.tsv"]


def exported_tables() -> Iterator[Case]:
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", swapped(TABLE, b"P12345", key.encode()))
    for name, (old, new) in {
        "another checksum": (CHECKSUM.encode(), b"0123456789ABCDEF"),
        "a length of less than nothing": (b"\t20\t", b"\t-20\t"),
        "a length of 5,000 digits": (b"\t20\t", b"\t" + b"9" * 5000 + b"\t"),
        "a length that is none": (b"\t20\t", b"\ttwenty\t"),
        "a taxon of 5,000 digits": (b"9606", b"9" * 5000),
        "a column less": (b"P12345\t", b"P12345 "),
        "a column twice": (b"Organism\t", b"Entry\t"),
        "no such column": (b"Entry\t", b"Eintrag\t"),
        "a sequence in other letters": (SEQUENCE.encode(), "МКТ".encode()),
        "an accession alone": (TABLE[TABLE.index(b"P12345") + 6 : TABLE.index(b"\nP54321")], b"\t" * 8),
        "a name of a million brackets": (b"Test protein", b" (x)" * 250_000),
        "a function of a million brackets": (b"Binds ATP", b"{ECO:" * 200_000),
        "a million terms": (b"GO:0005524", b"GO:0005524; " * 300_000),
    }.items():
        yield Case(name, swapped(TABLE, old, new))


CASES = {
    "flat file": flat_file,
    "isoforms": lines,
    "xml": documents,
    "fasta": sequences,
    "uniprot table": exported_tables,
}
