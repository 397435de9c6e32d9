"""One small good input of each kind of source, from which hostile ones are made; real where the sample has one."""

import gzip
import io
import json
import struct
from functools import cache
from typing import Any

import gemmi
import msgpack
import numpy as np
from PIL import Image as Picture

from data_prep.sources.files import resolve
from data_prep.sources.uniprotkb.entry import crc64
from tests.unit.tars import member
from tests.unit.tars import tar as tarred

SAMPLE = resolve("package:data_prep/sample")
SEQUENCE = "MKTAYIAKQRQISFVKSHFS"
CHECKSUM = crc64(SEQUENCE.encode())
Tree = dict[str, bytes]  # files by name


def flat() -> Tree:
    """Three real entries."""
    entries = SAMPLE.read("uniprot/entries.dat").split(b"\n//\n")
    short = sorted(entries[:-1], key=len)[:3]
    return {"entries.dat": b"\n//\n".join(short) + b"\n//\n"}


HEAD = b'<?xml version="1.0" encoding="UTF-8"?>\n<uniprot xmlns="http://uniprot.org/uniprot">\n'
TAIL = b"<copyright>\nCopyrighted by the UniProt Consortium\n</copyright>\n</uniprot>\n"
ENTRY = f"""<entry dataset="Swiss-Prot" created="1986-07-21" modified="2024-05-29" version="200">
<accession>P12345</accession>
<accession>Q99999</accession>
<name>TEST_HUMAN</name>
<protein><recommendedName><fullName evidence="1">Test protein</fullName></recommendedName></protein>
<organism><name type="scientific">Homo sapiens</name><dbReference type="NCBI Taxonomy" id="9606"/></organism>
<comment type="function"><text evidence="1">Binds ATP.</text></comment>
<dbReference type="GO" id="GO:0005524"><property type="term" value="F:ATP binding"/>
<property type="evidence" value="ECO:0007669"/><property type="project" value="UniProtKB-KW"/></dbReference>
<feature type="splice variant" id="VSP_000001" description="in isoform 2"><original>KTA</original>
<variation>WW</variation><location><begin position="2"/><end position="4"/></location></feature>
<sequence length="20" mass="2300" checksum="{CHECKSUM}" modified="1986-07-21" version="1">{SEQUENCE}</sequence>
</entry>
""".encode()


def xml() -> Tree:
    return {"entries.xml": HEAD + ENTRY + ENTRY.replace(b"P12345", b"P54321").replace(b"Q99999", b"Q77777") + TAIL}


def exported() -> Tree:
    columns = (
        "Entry\tProtein names\tOrganism\tOrganism (ID)\tLength\tSequence\tChecksum\tGene Ontology IDs\tFunction [CC]\n"
    )
    row = f"\tTest protein\tHomo sapiens (Human)\t9606\t20\t{SEQUENCE}\t{CHECKSUM}\tGO:0005524\tFUNCTION: Binds ATP.\n"
    return {"exported.tsv": f"{columns}P12345{row}P54321{row}".encode()}


def fasta() -> Tree:
    return {"more.fasta": b">" + b">".join(SAMPLE.read("uniprot/more.fasta").split(b">")[1:5])}


def gaf() -> Tree:
    return {"yeast.gaf": b"".join(SAMPLE.read("go/yeast.gaf").splitlines(keepends=True)[:24])}


def gpad() -> Tree:
    lines = [
        "!gpa-version: 1.1",
        "!generated: 2016-08-16",
        "UniProtKB\tA5Z2X5\tinvolved_in\tGO:0008150\tGO_REF:0000015\tECO:0000307\t\t\t20030730\tSGD\t\tgo_evidence=ND",
        "UniProtKB\tA5Z2X5\tpart_of\tGO:0005737\tPMID:1\tECO:0000314\t\t\t20030730\tSGD\t\tgo_evidence=IDA",
        "SGD\tS000000001\tenables\tGO:0005524\tPMID:2\tECO:0000315\t\t\t20030730\tSGD\t\tgo_evidence=IMP",
    ]
    return {"yeast.gpa": "".join(f"{line}\n" for line in lines).encode()}


def gpi() -> Tree:
    lines = ["!gpi-version: 1.2", "SGD\tS000000001\tX\tx\t\tprotein\ttaxon:559292\t\tUniProtKB:P00001"]
    return gpad() | {"yeast.gpi": "".join(f"{line}\n" for line in lines).encode()}


def eco() -> Tree:
    return gpad() | {"eco.txt": b"# ECO to GAF\nECO:0001225\tIMP\tDefault\nECO:0001226\tIDA\tDefault\n"}


def annotations() -> Tree:
    return {"go.tsv": b"uniprot\tgo_id\tevidence\nP12345\tGO:0005524\tIDA\nP54321\tGO:0005737; GO:0005634\tIEA\n"}


def annotations_csv() -> Tree:
    return {"go.csv": b'uniprot,go_id,evidence\nP12345,GO:0005524,IDA\nP54321,"GO:0005737,GO:0005634",IEA\n'}


def texts() -> Tree:
    return {"texts.tsv": "uniprot\tdescription\nP12345\tBinds ATP.\nP54321\tBinds α-actin.\n".encode()}


def texts_csv() -> Tree:
    return {"texts.csv": b'uniprot,description\nP12345,"Binds ATP,\nand GTP."\nP54321,Binds actin.\n'}


def ontology() -> Tree:
    stanzas = "".join(
        f"\n[Term]\nid: GO:{i:07d}\nname: process {i}\nnamespace: biological_process\n"
        f'def: "A process." [GOC:x]\nsynonym: "also {i}" EXACT []\nis_a: GO:{max(i // 2, 1):07d} ! process\n'
        for i in range(2, 9)
    )
    root = "\n[Term]\nid: GO:0000001\nname: process\nnamespace: biological_process\nalt_id: GO:0000099\n"
    head = "format-version: 1.2\ndata-version: releases/2022-07-01\nontology: go\n"
    return {"go.obo": (head + root + stanzas + "\n[Typedef]\nid: part_of\nname: part of\n").encode()}


def mmcif() -> Tree:
    return {"4ou0_A.cif": SAMPLE.read("structures/4ou0_A.cif") + b"#\n"}


def archive_mmcif() -> Tree:
    """In the archives' layout: tables parted by `#`, columns aligned."""
    block = gemmi.cif.read_string(SAMPLE.read("structures/4ou0_A.cif"))[0]
    options = gemmi.cif.WriteOptions()
    options.align_pairs = options.align_loops = 30  # pyright: ignore[reportAttributeAccessIssue]
    return {"4ou0_A.cif": block.as_string(options).replace("\nloop_", "\n#\nloop_").rstrip().encode() + b"\n#\n"}


def pdb() -> Tree:
    return {"1a8o.pdb": SAMPLE.read("structures/1A8O.pdb")}


def chain(count: int = 30, confidence: float = 90.0) -> bytes:
    """A PDB file of one chain in a spiral."""
    names = ("ALA", "CYS", "ASP", "GLU", "PHE", "GLY", "HIS", "ILE", "LYS", "LEU")
    lines = [
        f"ATOM  {3 * i + j + 1:>5}  {name:<3} {names[i % 10]} A{i + 1:>4}    {6 * np.sin(i) + j:8.3f}"
        f"{6 * np.cos(i):8.3f}{1.5 * i:8.3f}{1.0:6.2f}{confidence:6.2f}          {name[0]:>2}\n"
        for i in range(count)
        for j, name in enumerate(("N", "CA", "C"))
    ]
    return "".join([*lines, "TER\n", "END\n"]).encode()


def column(name: str, values: list) -> dict[str, Any]:
    """A column of BinaryCIF: numbers as they are, texts by their index."""
    if isinstance(values[0], str):
        known = sorted(set(values))
        index = np.array([known.index(value) for value in values], dtype="<i4").tobytes()
        offsets = np.cumsum([0, *map(len, known)]).astype("<i4").tobytes()
        plain = [{"kind": "ByteArray", "type": 3}]
        told = {"dataEncoding": plain, "stringData": "".join(known), "offsetEncoding": plain, "offsets": offsets}
        return {"name": name, "data": {"data": index, "encoding": [{"kind": "StringArray", **told}]}, "mask": None}
    number, kind = ("<f4", 32) if isinstance(values[0], float) else ("<i4", 3)
    data = np.array(values, dtype=number).tobytes()
    return {"name": name, "data": {"data": data, "encoding": [{"kind": "ByteArray", "type": kind}]}, "mask": None}


def atoms(count: int = 30) -> list[dict[str, Any]]:
    """The columns of a chain's `_atom_site`."""
    rows = [(i, j, name) for i in range(count) for j, name in enumerate(("N", "CA", "C"))]
    return [
        column("group_PDB", ["ATOM"] * len(rows)),
        column("label_atom_id", [name for *_, name in rows]),
        column("label_comp_id", ["ALA" if i % 2 else "GLY" for i, *_ in rows]),
        column("label_asym_id", ["A"] * len(rows)),
        column("label_entity_id", ["1"] * len(rows)),
        column("label_seq_id", [i + 1 for i, *_ in rows]),
        column("auth_asym_id", ["A"] * len(rows)),
        column("Cartn_x", [float(6 * np.sin(i) + j) for i, j, _ in rows]),
        column("Cartn_y", [float(6 * np.cos(i)) for i, *_ in rows]),
        column("Cartn_z", [1.5 * i for i, *_ in rows]),
        column("pdbx_PDB_model_num", [1] * len(rows)),
    ]


def packed_bcif(columns: list[dict[str, Any]], rows: int, **more: Any) -> bytes:
    table = {"name": "_atom_site", "rowCount": rows, "columns": columns}
    block = {"header": "1ABC", "categories": [table]}
    return msgpack.packb({"version": "0.3", "encoder": "x", "dataBlocks": [block], **more}) or b""


def bcif() -> Tree:
    return {"1abc.bcif": packed_bcif(atoms(), 90)}


MODEL = "AF-P12345-F1-model_v4.pdb"
ERRORS = "AF-P12345-F1-predicted_aligned_error_v4.json"


def tar() -> Tree:
    names = [f"AF-P0000{i}-F1-model_v4.pdb" for i in range(3)]
    return {"proteome.tar": tarred(*(member(f"{name}.gz", gzip.compress(chain(), mtime=0)) for name in names))}


def errors(length: int = 30) -> bytes:
    matrix = (np.arange(length)[:, None] - np.arange(length)[None]) % 30
    told = json.dumps([{"predicted_aligned_error": matrix.tolist(), "max_predicted_aligned_error": 31.75}])
    return told.replace("], [", "],\n[").encode() + b"\n"


def pae() -> Tree:
    return {MODEL: chain(), ERRORS: errors()}


def listed() -> Tree:
    return {"x.pdb": chain(), "manifest.tsv": b"file\tuniprot\tbegin\tend\nx.pdb\tP12345\t1\t30\n"}


def picture(format: str = "PNG", size: int = 24, mode: str = "L") -> bytes:
    values = np.random.default_rng(7).integers(0, 255, (size, size, 3 if mode == "RGB" else 1), dtype=np.uint8)
    out = io.BytesIO()
    Picture.fromarray(values.squeeze()).convert(mode).save(out, format=format)
    return out.getvalue()


ROWS = b"path\tuniprot\tcell\tchannel\na_green.png\tP12345\t1\tgreen\na_blue.png\tP12345\t1\tblue\n"


def images() -> Tree:
    green = SAMPLE.read("images/P98066_1_nucleus.png")
    return {"images.tsv": ROWS, "a_green.png": green, "a_blue.png": picture()}


def jpeg() -> Tree:
    return images() | {"a_green.png": picture("JPEG")}


def tiff() -> Tree:
    return images() | {"a_green.png": picture("TIFF")}


def atlas() -> Tree:
    return {"1/495_A11_1_green.jpg": picture("JPEG"), "1/495_A11_1_blue.jpg": picture("JPEG")}


def genes() -> Tree:
    rows = ROWS.replace(b"uniprot", b"gene").replace(b"P12345", b"TST")
    return images() | {"images.tsv": rows, "genes.tsv": b"uniprot\tsymbol\nP12345\tTST\nQ12345\tTSX\nP54321\tOTH\n"}


def preferred() -> Tree:
    return genes() | {"swissprot.fasta": b">sp|P12345|TEST_HUMAN Test\nMKTAYI\n"}


def samples() -> Tree:
    table = b"if_plate_id\tposition\tsample\tantibody\tuniprot\n495\tA11\t1\tHPA1\tP12345\n"
    return atlas() | {"samples.tsv": table}


@cache
def entry() -> bytes:
    """Of a Foldcomp database: a real backbone as if all of it were glycine, as the sample has no side chains."""
    import foldcomp

    lines = ["TITLE     A MODEL\n"]
    structure = gemmi.read_structure_string(gzip.decompress(SAMPLE.read("structures/1ew4_A.cif.gz")))
    for i, residue in enumerate(list(structure[0][0].get_polymer())[:60]):
        for atom in residue:
            x, y, z = atom.pos.tolist()
            lines.append(
                f"ATOM  {len(lines):5d}  {atom.name:<3} GLY A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
                f"{1:6.2f}{50 + i % 40:6.2f}          {atom.name[0]:>2}\n"
            )
    return foldcomp.compress("AF-P12345-F1-model_v4", "".join(lines), anchor_residue_threshold=25)  # type: ignore


def database() -> Tree:
    data = entry() + b"\0"
    index = f"0\t0\t{len(data)}\n1\t{len(data)}\t{len(data)}\n".encode()
    lookup = b"0\tAF-P12345-F1-model_v4\t0\n1\tAF-P54321-F1-model_v4\t0\n"
    return {"db": 2 * data, "db.index": index, "db.lookup": lookup, "db.dbtype": struct.pack("<i", 12)}
