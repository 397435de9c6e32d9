"""The sample's Gene Ontology subset and its annotations, from GO.db, org.Hs.eg.db and Biopython's GOA files."""

import re
import sqlite3
from collections import defaultdict
from pathlib import Path

ASPECTS = {"BP": ("bp", "P", "involved_in"), "MF": ("mf", "F", "enables"), "CC": ("cc", "C", "located_in")}
RELATIONS = {
    "isa": "is_a",
    "part of": "part_of",
    "regulates": "regulates",
    "positively regulates": "positively_regulates",
    "negatively regulates": "negatively_regulates",
}
ROOTS = {"GO:0008150", "GO:0003674", "GO:0005575"}
RETIRED = ("GO:0000008", "GO:0000020")  # obsolete terms that nothing here uses
YEAST = ("goa_yeast.gaf", "gene_association.goa_yeast.1.gaf")
OBO = """format-version: 1.2
data-version: releases/2022-07-01
ontology: go
remark: A subset of GO 2022-07-01, written from GO.sqlite of the Bioconductor package GO.db 3.16.0.
remark: The terms that the sample's annotations use, all their ancestors by is_a and part_of, relations among these.
remark: CC BY 4.0, Gene Ontology Consortium.

"""
TYPEDEFS = """[Typedef]
id: part_of
name: part of
namespace: external
is_transitive: true

[Typedef]
id: regulates
name: regulates
namespace: external

[Typedef]
id: negatively_regulates
name: negatively regulates
namespace: external
is_a: regulates ! regulates

[Typedef]
id: positively_regulates
name: positively regulates
namespace: external
is_a: regulates ! regulates
"""
HUMAN = """!gaf-version: 2.2
!remark: NCBI gene2go annotations (2022-09-12) of org.Hs.eg.db 3.16.0, written for one UniProt accession of each gene.
!remark: That package has no references, qualifiers or dates of lines: relations are the defaults of their aspect.
"""
EXERCISE = """!gaf-version: 2.2
!remark: NOT DATA. Lines made up to exercise the reader, one for each thing it must not believe; see README.md.
"""
LINE = (
    "UniProtKB\t{key}\t{symbol}\t{relation}\t{term}\tGO_REF:0000000\t{code}\t\t"
    "{aspect}\t{name}\t\tprotein\ttaxon:9606\t20220912\t{by}\t\t\n"
)


def main(proteins: list[dict[str, str]], go: Path, human: Path, goa: Path, out: Path) -> None:
    """Write the three `go/*.gaf`, and the `go/go.obo` that covers them and the UniProt entries."""
    wanted = {source: [p["key"] for p in proteins if source in p["function"].split()] for source in ("human", "yeast")}
    with sqlite3.connect(go) as ontology, sqlite3.connect(human) as genes:
        gaf = {
            "human": HUMAN + "".join(human_lines(genes, wanted["human"])),
            "yeast": yeast_lines(goa, wanted["yeast"]),
            "exercise": EXERCISE + "".join(exercise_lines()),
        }
        for name, text in gaf.items():
            (out / "go" / f"{name}.gaf").write_text(text)
        entries = (out / "uniprot" / "entries.dat").read_text()
        used = set(re.findall(r"GO:\d{7}", gaf["human"] + gaf["yeast"] + gaf["exercise"])) | set(
            re.findall(r"^DR   GO; (GO:\d{7});", entries, re.MULTILINE)
        )
        (out / "go" / "go.obo").write_text(obo(ontology, used))


def human_lines(genes: sqlite3.Connection, keys: list[str]) -> list[str]:
    query = """SELECT symbol, go_id, evidence, gene_name FROM uniprot JOIN gene_info USING (_id)
               JOIN go_{table} USING (_id) WHERE uniprot_id = ? ORDER BY go_id, evidence"""
    lines = []
    for key in sorted(keys):
        for table, aspect, relation in ASPECTS.values():
            for symbol, term, code, name in genes.execute(query.format(table=table), (key,)):
                fields = {"key": key, "symbol": symbol, "term": term, "code": code, "name": name}
                lines.append(LINE.format(relation=relation, aspect=aspect, by="org.Hs.eg.db", **fields))
    return lines


def yeast_lines(goa: Path, keys: list[str]) -> str:
    """The lines of these proteins, verbatim, under the first file's header."""
    lines = [line for name in YEAST for line in (goa / name).read_text().splitlines(keepends=True)]
    header = [line for line in (goa / YEAST[0]).read_text().splitlines(keepends=True) if line.startswith("!")]
    kept = [line for line in lines if not line.startswith("!") and line.split("\t")[1] in keys]
    return "".join([*header, *dict.fromkeys(kept)])


def exercise_lines() -> list[str]:
    """A denied annotation, an obsolete and an unknown term, none to be believed; of human acyl-CoA-binding protein."""
    terms = {"NOT|located_in GO:0005576": "C", "enables GO:0000005": "F", "involved_in GO:9999999": "P"}
    protein = {"key": "P07108", "symbol": "DBI", "name": "acyl-CoA-binding protein", "code": "IDA", "by": "exercise"}
    return [LINE.format(relation=r.split()[0], term=r.split()[1], aspect=a, **protein) for r, a in terms.items()]


def obo(ontology: sqlite3.Connection, used: set[str]) -> str:
    """The subset as OBO text: live terms by id, then the obsolete ones, then the relations."""
    rows = ontology.execute(
        "SELECT _id, go_id, term, term_type, definition FROM go_term JOIN go_ontology USING (ontology)"
    )
    terms = {row[0]: row for row in rows if row[1].startswith("GO:")}
    number = {row[1]: row[0] for row in terms.values()}
    alternative, synonyms = defaultdict(list), defaultdict(list)
    for i, synonym, secondary in ontology.execute("SELECT _id, synonym, secondary FROM go_synonym"):
        (alternative[i] if secondary else synonyms[i]).append(secondary or synonym)
    merged = {old: i for i, olds in alternative.items() for old in olds}
    parents = defaultdict(list)
    for table, _, _ in ASPECTS.values():
        for child, parent, relation in ontology.execute(f"SELECT * FROM go_{table}_parents"):
            if parent in terms:
                parents[child].append((RELATIONS[relation], parent))
    pending = [number.get(term, merged.get(term)) for term in sorted(used | ROOTS)]
    kept: set[int] = set()
    while pending:
        term = pending.pop()
        if term is not None and term not in kept:
            kept.add(term)
            pending += [parent for relation, parent in parents[term] if relation in ("is_a", "part_of")]
    text = OBO
    for i in sorted(kept, key=lambda i: terms[i][1]):
        _, term, name, namespace, definition = terms[i]
        text += f"[Term]\nid: {term}\nname: {name}\nnamespace: {namespace}\n"
        text += "".join(f"alt_id: {old}\n" for old in sorted(alternative[i]))
        text += f'def: "{quote(definition)}" []\n' if definition else ""
        text += "".join(f'synonym: "{quote(synonym)}" RELATED []\n' for synonym in sorted(synonyms[i]))
        for relation, parent in sorted(parents[i], key=lambda p: (p[0] != "is_a", p[0], terms[p[1]][1])):
            if parent in kept:
                prefix = "is_a: " if relation == "is_a" else f"relationship: {relation} "
                text += f"{prefix}{terms[parent][1]} ! {terms[parent][2]}\n"
        text += "\n"
    names = {"BP": "biological_process", "MF": "molecular_function", "CC": "cellular_component"}
    for term, name, aspect, definition in ontology.execute("SELECT * FROM go_obsolete ORDER BY go_id"):
        if term in used or term in RETIRED:
            text += f"[Term]\nid: {term}\nname: {name}\nnamespace: {names[aspect]}\n"
            text += (f'def: "{quote(definition)}" []\n' if definition else "") + "is_obsolete: true\n\n"
    return text + TYPEDEFS


def quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
