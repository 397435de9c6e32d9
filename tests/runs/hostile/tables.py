"""Hostile tables and ontologies: annotations in every layout, texts, the tables that sources look things up in."""

from collections.abc import Callable, Iterator

from tests.runs.hostile.entries import PATHS, swapped
from tests.runs.hostile.files import MIB, Case, packed
from tests.runs.hostile.good import annotations, gaf, genes, gpad, gpi, listed, ontology, samples, texts

GAF = gaf()["yeast.gaf"]
GPAD = gpad()["yeast.gpa"]
GPI = gpi()["yeast.gpi"]
OBO = ontology()["go.obo"]
COLUMNS = b"uniprot\tgo_id\tevidence\n"


def columns(count: int, head: str = "UniProtKB\tP12345") -> bytes:
    return (head + "\tx" * (count - 2) + "\n").encode()


def gaf_lines() -> Iterator[Case]:
    line = GAF.splitlines(keepends=True)[-1]
    for name, data in {
        "a header alone": b"!gaf-version: 2.2\n",
        "comments alone": b"! nothing\n" * 1000,
        "version 9": b"!gaf-version: 9.9\n" + line,
        "version 3": b"!gaf-version: 3.0\n" + line,
        "a version of 100 kB": b"!gaf-version: " + b"2" * 100_000 + b"\n" + line,
        "GPAD by its header": b"!gpa-version: 1.1\n" + line,
        "GPI by its header": b"!gpi-version: 1.2\n" + line,
        "GPAD without a header": GPAD.split(b"\n", 1)[1],
        "14 columns": columns(14),
        "10,000 columns": columns(10_000),
        "columns of nothing": b"\t" * 16 + b"\n",
        "blanks for tabs": line.replace(b"\t", b"    "),
        "no GO term": line.replace(b"GO:", b"XX:"),
        "a term of a path": line.replace(b"GO:", b"GO:../../"),
        "a term of 100 kB": line.replace(b"GO:", b"GO:" + b"0" * 100_000),
        "every line denied": b"".join(
            b"\t".join([*each.split(b"\t")[:3], b"NOT", *each.split(b"\t")[4:]]) for each in [line] * 50
        ),
        "200,000 NOTs in a line": line.replace(b"\t\tGO:", b"\t" + b"NOT|" * 200_000 + b"\tGO:"),
        "an evidence of 100 kB": line.replace(b"IEA", b"X" * 100_000).replace(b"IDA", b"X" * 100_000),
    }.items():
        yield Case(name, lambda data=data: data)
    for name, key in PATHS.items():
        yield Case(
            f"accession: {name}",
            lambda key=key: columns(17, f"UniProtKB\t{key}").replace(b"x\tx\tx", b"X\t\tGO:0005524", 1),
        )
    yield Case(
        "2,000 kinds of other databases",
        lambda: b"".join(columns(17, f"DB{i}\tx").replace(b"x\tx\tx", b"X\t\tGO:0005524", 1) for i in range(2000)),
        "told",
    )
    yield Case(
        "20,000 terms of one protein",
        lambda: b"".join(columns(17).replace(b"x\tx\tx", b"X\t\tGO:%07d" % i, 1) for i in range(20_000)),
        heavy=True,
    )
    yield Case("a million lines that are none", lambda: packed(b"x\n" * 200_000), "refused", heavy=True)


def gpad_lines() -> Iterator[Case]:
    line = GPAD.splitlines(keepends=True)[-2]
    for name, data in {
        "a header alone": b"!gpa-version: 1.1\n",
        "version 9": b"!gpad-version: 9.9\n" + line,
        "GAF by its header": b"!gaf-version: 2.2\n" + line,
        "9 columns": columns(9),
        "a colon alone": columns(12, ":\t:"),
        "properties of 1 MB": line.rstrip() + b"|go_evidence=" * 80_000 + b"\n",
    }.items():
        yield Case(name, lambda data=data: data)
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", swapped(GPAD, b"A5Z2X5", key.encode()))
    yield Case("no GPI file where one is named", None, "told", settings={"gpi": "nowhere.gpi"})
    yield Case("no mapping of ECO where one is named", None, "told", settings={"eco": "nowhere.txt"})


def gpi_lines() -> Iterator[Case]:
    for name, data in {
        "a header alone": b"!gpi-version: 1.2\n",
        "version 9": b"!gpi-version: 9.9\nSGD\tS000000001\tX\tx\t\tprotein\ttaxon:1\t\tUniProtKB:P1\n",
        "2 columns": b"!gpi-version: 1.2\nSGD\tS000000001\n",
        "a parent of itself": b"!gpi-version: 1.2\nSGD\tS000000001\tX\tx\t\tp\ttaxon:1\tSGD:S000000001\t\n",
        "parents in a circle": b"!gpi-version: 1.2\nSGD\tS000000001\tX\tx\t\tp\ttaxon:1\tSGD:B\t\n"
        + b"SGD\tB\tX\tx\t\tp\ttaxon:1\tSGD:S000000001\t\n",
        "a taxon of 5,000 digits": GPI.replace(b"559292", b"9" * 5000),
        "a taxon of other digits": GPI.replace(b"559292", "²".encode()),
        "300,000 accessions of one": GPI.replace(
            b"UniProtKB:P00001", b"|".join(b"UniProtKB:P%06d" % i for i in range(150_000))
        ),
        "200,000 header lines": b"".join(b"!x%d: y\n" % i for i in range(200_000)) + GPI,
    }.items():
        yield Case(name, lambda data=data: data)
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", swapped(GPI, b"P00001", key.encode()))
    yield Case(
        "too many objects",
        lambda: GPI + b"".join(b"X\t%d\t\t\t\t\t\t\tUniProtKB:P1\n" % i for i in range(3000)),
        "told",
        ("too_large",),
        limits={"gene_products.MOST": 2000},
    )


def annotation_tables() -> Iterator[Case]:
    yield from table(annotations()["go.tsv"], b"P12345", b"GO:0005524")
    for name, data in {
        "codes without terms": COLUMNS + b"P1\t\tIDA;IEA\n",
        "more codes than terms": COLUMNS + b"P1\tGO:1\tIDA;IEA\n",
        "100,000 terms in a cell": COLUMNS + b"P1\t" + b"GO:0005524;" * 100_000 + b"\tIDA\n",
        "separators alone": COLUMNS + b"P1\t" + b";|," * 10_000 + b"\tIDA\n",
        "brackets alone": COLUMNS + b"P1\t" + b"[GO:" * 100_000 + b"\tIDA\n",
        "every line denied": b"uniprot\tgo_id\tqualifier\n" + b"P1\tGO:0005524\tNOT\n" * 1000,
    }.items():
        yield Case(name, lambda data=data: data)
    yield Case(
        "30,000 terms of one protein",
        lambda: packed(COLUMNS + b"".join(b"P1\tGO:%07d\tIDA\n" % i for i in range(30_000))),
        heavy=True,
    )


def texts_tables() -> Iterator[Case]:
    yield from table(texts()["texts.tsv"], b"P12345", b"Binds ATP.")
    yield Case("a text of 3 MB", lambda: b"uniprot\tdescription\nP1\t" + b"Binds ATP. " * 270_000 + b"\n")
    yield Case("a text of nothing", lambda: b"uniprot\tdescription\nP1\t\n", "refused", ("empty_text",))


def table(data: bytes, key: bytes, value: bytes) -> Iterator[Case]:
    """What can be wrong with any table that has a key and a value."""
    head, _, rest = data.partition(b"\n")
    for name, told in PATHS.items():
        yield Case(f"accession: {name}", swapped(data, key, told.encode()))
    for name, made in {
        "no column names": rest,
        "a name twice": head + b"\t" + head.split(b"\t")[0] + b"\n" + rest,
        "names in capitals": head.upper() + b"\n" + rest,
        "names between blanks": head.replace(b"\t", b" \t ") + b"\n" + rest,
        "names in quotes": b'"' + head.replace(b"\t", b'"\t"') + b'"\n' + rest,
        "commas for tabs": data.replace(b"\t", b","),
        "a column less in a row": data.replace(key + b"\t", key + b" ", 1),
        "columns more in a row": data.replace(value, value + b"\tx\ty\tz", 1),
        "an empty key": data.replace(key, b"", 1),
        "100,000 columns": head + b"\tx" * 100_000 + b"\n" + rest,
        "quotes that do not close": data.replace(value, b'"' + value, 1),
        "a formula": data.replace(value, b"=cmd|' /C calc'!A0", 1),
        "5,000 rows that are none": head + b"\n" + b"x\n" * 5000,
    }.items():
        yield Case(name, lambda made=made: made)


def commas(data: bytes, key: bytes, value: bytes) -> Iterator[Case]:
    head = data.partition(b"\n")[0]
    for name, made in {
        "quotes that do not close": data.replace(value, b'"' + value, 1),
        "quotes in the middle": data.replace(value, b'x"' + value + b'"x', 1),
        "a cell of 200 kB": data.replace(value, b"x" * 200_000, 1),
        "a cell of 200,000 lines": data.replace(value, b'"' + b"x\n" * 200_000 + b'"', 1),
        "quotes alone": head + b"\n" + b'"' * 100_001,
        "commas alone": head + b"\n" + b"," * 100_000,
        "tabs for commas": data.replace(b",", b"\t"),
        "a zero byte": data.replace(value, value + b"\0", 1),
        "an empty key": data.replace(key, b"", 1),
    }.items():
        yield Case(name, lambda made=made: made)


def manifests() -> Iterator[Case]:
    """Of structures."""
    data = listed()["manifest.tsv"]
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", swapped(data, b"P12345", key.encode()))
        yield Case(f"file: {name}", lambda key=key: data + key.encode() + b"\tP1\t1\t2\n")
    for name, (old, new) in {
        "a begin of letters": (b"\t1\t", b"\tone\t"),
        "a begin of 5,000 digits": (b"\t1\t", b"\t" + b"9" * 5000 + b"\t"),
        "a begin of 30 digits": (b"\t1\t", b"\t" + b"9" * 30 + b"\t"),
        "a begin of less than nothing": (b"\t1\t", b"\t-7\t"),
        "a begin after the end": (b"\t1\t", b"\t99\t"),
        "no such column": (b"uniprot", b"accession"),
    }.items():
        yield Case(name, swapped(data, old, new))
    settings = {"columns": {"file": "file", "accession": "uniprot", "resolution": "resolution"}}
    for told in ("nan", "inf", "-1", "1e999", "9" * 5000, "x"):
        made = f"file\tuniprot\tresolution\nx.pdb\tP1\t{told}\n".encode()
        yield Case(f"a resolution of {told[:5]}", lambda made=made: made, settings=settings)
    yield Case(
        "too many rows",
        lambda: data + b"".join(b"%d.pdb\tP1\t1\t2\n" % i for i in range(3000)),
        "told",
        ("too_large",),
        limits={"structures.MOST_LISTED": 2000},
    )
    yield Case("no manifest where one is named", None, "told", settings={"manifest": "nowhere.tsv"})


def gene_tables() -> Iterator[Case]:
    data = genes()["genes.tsv"]
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", swapped(data, b"P12345", key.encode()))
        yield Case(f"symbol: {name}", swapped(data, b"TST", key.encode()))
    for name, made in {
        "no accession": b"uniprot\tsymbol\n\tTST\n",
        "no symbol": b"uniprot\tsymbol\nP12345\t\n",
        "a gene of many": b"uniprot\tsymbol\n" + b"".join(b"P%05d\tTST\n" % i for i in range(3000)),
        "one of many genes": b"uniprot\tsymbol\nP12345\t" + b";".join(b"G%d" % i for i in range(100_000)) + b"\n",
    }.items():
        yield Case(name, lambda made=made: made)
    yield Case(
        "too many names",
        lambda: data + b"".join(b"P%d\tG%d\n" % (i, i) for i in range(2000)),
        "told",
        ("too_large",),
        limits={"genes.MOST": 3000},
    )
    yield Case(
        "no table where one is named", None, "told", settings={"genes": {"files": "nowhere.tsv", "symbol": "symbol"}}
    )


def sample_tables() -> Iterator[Case]:
    data = samples()["samples.tsv"]
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", swapped(data, b"P12345", key.encode()))
        yield Case(f"plate: {name}", lambda key=key: data + key.encode() + b"\tA1\t1\tx\tP1\n")
    yield Case(
        "too many rows",
        lambda: data + b"".join(b"1\tA1\t%d\tx\tP1\n" % i for i in range(3000)),
        "told",
        ("too_large",),
        limits={"hpa.MOST": 2000},
    )


def terms() -> Iterator[Case]:
    """Ontologies."""
    term = b"\n[Term]\nid: GO:%07d\nname: x\nnamespace: y\n"
    five = b"name: process 5\n"

    def adds(line: bytes) -> Callable[[], bytes]:
        return lambda: OBO.replace(five, five + line)

    for name, make in {
        "a term above itself": adds(b"is_a: GO:0000005\n"),
        "terms in a circle": lambda: OBO.replace(b"GO:0000099", b"GO:0000099\nis_a: GO:0000008"),
        "parts in a circle": lambda: OBO.replace(b"alt_id: GO:0000099", b"relationship: part_of GO:0000008"),
        "a parent that is not there": adds(b"is_a: GO:7777777\n"),
        "a term twice": lambda: OBO + OBO[OBO.index(b"\n[Term]") :],
        "a term without an id": lambda: OBO + b"\n[Term]\nname: x\n",
        "an id of a path": lambda: OBO.replace(b"GO:0000005", b"GO:../../x"),
        "an id of a sentence": lambda: OBO.replace(b"GO:0000005", b"GO:0000005 and more"),
        "quotes that do not close": lambda: OBO.replace(b'"A process."', b'"A process.'),
        "brackets that do not close": lambda: OBO.replace(b"[GOC:x]", b"[GOC:x"),
        "braces that do not close": lambda: OBO.replace(five, b"name: process 5 {a=\n"),
        "an unknown clause": adds(b"colour: red\n"),
        "an unknown relationship": adds(b"relationship: eats GO:0000001\n"),
        "a synonym of no scope": adds(b'synonym: "x" []\n'),
        "a name twice": adds(b"name: x\n"),
        "a namespace twice": adds(b"namespace: x\n"),
        "no namespace": lambda: OBO.replace(b"namespace: biological_process\n", b""),
        "no name": lambda: OBO.replace(five, b""),
        "no header": lambda: OBO[OBO.index(b"\n[Term]") :],
        "a header alone": lambda: OBO[: OBO.index(b"\n[Term]")],
        "a header of a megabyte": lambda: b"format-version: 1.2\n" + b"remark: x\n" * 120_000 + OBO.split(b"\n", 1)[1],
        "typedefs alone": lambda: OBO[: OBO.index(b"\n[Term]")] + OBO[OBO.index(b"\n[Typedef]") :],
        "an unknown stanza": lambda: OBO + b"\n[Thing]\nid: x\n",
        "an instance": lambda: OBO + b"\n[Instance]\nid: x\ninstance_of: GO:0000001\n",
        "a comment in a typedef": lambda: OBO + b"! a comment\n",
        "a comment in a term": adds(b"! a comment\n"),
        "comments everywhere": lambda: OBO.replace(b"\n", b"\n! x\n"),
        "trailing comments": lambda: OBO.replace(five, b"name: process 5 ! x\n"),
        "an import": lambda: OBO.replace(b"ontology: go\n", b"ontology: go\nimport: file:///etc/passwd\n"),
        "OWL": lambda: b'<?xml version="1.0"?>\n<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>\n',
        "JSON": lambda: b'{"graphs": [{"nodes": [], "edges": []}]}',
        "obsolete and alive": adds(b"is_obsolete: true\nis_obsolete: false\n"),
        "replaced by itself": adds(b"is_obsolete: true\nreplaced_by: GO:0000005\n"),
        "obsolete with children": lambda: OBO.replace(b"id: GO:0000002\n", b"id: GO:0000002\nis_obsolete: true\n"),
        "terms of others": lambda: OBO.replace(b"GO:", b"XX:"),
        "a date that is none": lambda: OBO.replace(b"ontology: go", b"date: yesterday\nontology: go"),
        "a backslash at the end": lambda: OBO.replace(five, b"name: process 5\\\n"),
        "unicode escapes": lambda: OBO.replace(five, b"name: \\u0000\\W\\q\n"),
    }.items():
        yield Case(name, make)
    for name, make in {
        "11,000 terms above each other": lambda: (
            OBO + b"".join(term % (1000 + i) + b"is_a: GO:%07d\n" % (999 + i if i else 1) for i in range(11_000))
        ),
        "a name of 2 MB": lambda: OBO.replace(five, b"name: " + b"x" * (2 * MIB) + b"\n"),
        "200,000 synonyms": lambda: OBO.replace(five, five + b'synonym: "abc" EXACT []\n' * 200_000),
        "8,000 references": lambda: OBO.replace(b"[GOC:x]", b"[" + b"GOC:x, " * 8_000 + b"GOC:x]"),
        "brackets in brackets": lambda: OBO.replace(b"[GOC:x]", b"[" * 500_000),
    }.items():
        yield Case(name, make, heavy=True)
    yield Case(
        "too many terms",
        lambda: OBO + b"".join(term % (1000 + i) for i in range(3000)),
        "told",
        ("too_large",),
        limits={"ontology.MOST_TERMS": 2000},
    )


CASES = {
    "gaf": gaf_lines,
    "gpad": gpad_lines,
    "gpi": gpi_lines,
    "annotations": annotation_tables,
    "annotations csv": lambda: commas(b"uniprot,go_id,evidence\nP12345,GO:0005524,IDA\n", b"P12345", b"GO:0005524"),
    "texts": texts_tables,
    "texts csv": lambda: commas(b"uniprot,description\nP12345,Binds ATP.\n", b"P12345", b"Binds ATP."),
    "ontology": terms,
    "structures manifest": manifests,
    "gene table": gene_tables,
    "samples table": sample_tables,
}
