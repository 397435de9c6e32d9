"""Hostile structures: mmCIF, BinaryCIF, PDB, aligned errors, Foldcomp databases."""

import json
from collections.abc import Callable, Iterator

from tests.runs.hostile.entries import PATHS
from tests.runs.hostile.files import MIB, Case, packed
from tests.runs.hostile.good import MODEL, chain, entry, errors, mmcif, pdb

CIF = mmcif()["4ou0_A.cif"]
HEAD, _, BODY = CIF.partition(b"_atom_site.pdbx_PDB_model_num\n")
ROW = BODY.split(b"\n")[0]
X = ROW.split()[9]
PDB = pdb()["1a8o.pdb"]
WORDS = b"data_x\nloop_\n" + b"".join(
    b"_atom_site.%s\n" % tag
    for tag in (
        b"group_PDB",
        b"label_atom_id",
        b"label_comp_id",
        b"label_asym_id",
        b"label_seq_id",
        b"Cartn_x",
        b"Cartn_y",
        b"Cartn_z",
    )
)
LOOP = b"loop_\n_atom_site.group_PDB\n_atom_site.label_atom_id\n"


def mmcifs() -> Iterator[Case]:
    def row(at: int, word: bytes) -> bytes:
        words = ROW.split()
        words[at] = word
        return CIF.replace(ROW, b" ".join(words), 1)

    words = {
        "an x of no number": (9, b"nan"),
        "an x beyond all bounds": (9, b"1e999"),
        "an x of a date": (9, b"2024-01-01"),
        "an x of 60 digits": (9, b"9" * 60),
        "an x of 100,000 digits": (9, b"9" * 100_000),
        "an occupancy of no number": (12, b"nan"),
        "an occupancy of less than nothing": (12, b"-1e308"),
        "a temperature of no number": (13, b"inf"),
        "a chain of 10,000 letters": (6, b"A" * 10_000),
        "a chain of a path": (6, b"../../x"),
        "a chain in other letters": (6, "Ж".encode()),
        "a chain of bytes that are no letters": (6, b"\xff\xfe"),
        "a component of 10,000 letters": (5, b"A" * 10_000),
        "a component in other letters": (5, "Ж".encode()),
        "an atom of 10,000 letters": (3, b"C" * 10_000),
        "a residue of 2^31": (8, b"2147483648"),
        "a residue of 2^63": (8, b"9223372036854775808"),
        "a residue of 60 digits": (8, b"9" * 60),
        "a residue of less than nothing": (8, b"-2147483648"),
        "a residue of half": (8, b"1.5"),
        "a quote that does not close": (5, b"'GLY"),
        "a text that does not close": (5, b"\n;GLY"),
        "a comment": (5, b"GLY#"),
        "a reserved word": (5, b"loop_"),
        "a saved frame": (5, b"save_x"),
        "a block in a row": (5, b"data_x"),
        "a value of nothing": (5, b""),
        "a control byte": (5, b"G\x01Y"),
    }
    for name, (at, word) in words.items():
        yield Case(name, lambda at=at, word=word: row(at, word))
    for name, data in {
        "no atoms": HEAD + b"_atom_site.pdbx_PDB_model_num\n#\n",
        "no block": CIF.replace(b"data_", b"date_", 1),
        "a block alone": b"data_x\n#\n",
        "tags alone": LOOP,
        "a loop without tags": b"data_x\nloop_\nATOM N\n#\n",
        "a tag twice": CIF.replace(b"_atom_site.Cartn_y", b"_atom_site.Cartn_x"),
        "no coordinates": CIF.replace(b"_atom_site.Cartn_", b"_atom_site.Kartn_"),
        "half a row": CIF.replace(ROW, ROW[: len(ROW) // 2], 1),
        "a row and a half": CIF.replace(ROW, ROW + b" " + ROW[: len(ROW) // 2], 1),
        "every atom twice": HEAD + b"_atom_site.pdbx_PDB_model_num\n" + BODY.rstrip(b"#\n") + b"\n" + BODY,
        "all atoms in one residue": WORDS + b"ATOM CA GLY A 1 1.0 2.0 3.0\n" * 20_000 + b"#\n",
        "10,000 chains": WORDS + b"".join(b"ATOM CA GLY C%d 1 1.0 2.0 3.0\n" % i for i in range(10_000)) + b"#\n",
        "100,000 blocks": b"data_x\n" * 100_000,
        "100,000 frames": b"data_x\n" + b"save_a\nsave_\n" * 100_000,
        "a block name of 1 MB": b"data_" + b"x" * MIB + CIF[CIF.index(b"\n") :],
        "a comment of 1 MB": b"#" * MIB + b"\n" + CIF,
        "a text of 1 MB": CIF.replace(b"\nloop_", b"\n_x.y\n;" + b"x" * MIB + b"\n;\nloop_", 1),
        "a global block": b"global_\n" + CIF,
        "STAR of old": b"data_x\nloop_ _a _b stop_ 1 2\n",
        "CIF 2": b"#\\#CIF_2.0\n" + CIF.replace(ROW, ROW + b" [1 2 {'a':1}]", 1),
        "references of 100,000 rows": CIF.replace(
            b"\nloop_",
            b"\nloop_\n_struct_ref.id\n_struct_ref.db_name\n_struct_ref.pdbx_db_accession\n"
            + b"1 UNP P12345\n" * 100_000
            + b"#\nloop_",
            1,
        ),
        "a reference of a path": CIF
        + b"_struct_ref.id 1\n_struct_ref.entity_id 1\n_struct_ref.db_name UNP\n"
        + b"_struct_ref.pdbx_db_accession ../../x\n#\n",
        "a resolution of no number": CIF + b"_refine.ls_d_res_high nan\n#\n",
        "a resolution of 1,000 digits": CIF + b"_refine.ls_d_res_high " + b"9" * 1000 + b"\n#\n",
        "words in a hundred pieces": CIF.replace(b" ", b"\n"),
    }.items():
        yield Case(name, lambda data=data: data)
    for name, data in {
        "30 MB of one-letter values": b"data_x\nloop_\n_a.b\n" + b"1 " * (15 * MIB),
        "6,000,000 values": b"data_x\nloop_\n_a.b\n" + b"1 " * (6 * MIB) + b"\n" + CIF[CIF.index(b"\n") :],
        "3 MB of tags": b"data_x\n" + b"".join(b"_a.b%d 1\n" % i for i in range(200_000)),
        "rows of all lengths": WORDS
        + b"".join(b"ATOM CA G A %d 1 1 %d\n" % (i % 5000, i % 7) for i in range(99_999)) * 13,
        "rows of all lengths with a long name": WORDS
        + b"ATOM CA G "
        + b"A" * 64
        + b" 1 1 1 1\n"
        + b"".join(b"ATOM CA G A %d 1 1 %d\n" % (i % 5000, i % 7) for i in range(99_999)) * 13,
        "30 MB of rows": HEAD + b"_atom_site.pdbx_PDB_model_num\n" + (ROW + b"\n") * (30 * MIB // len(ROW)) + b"#\n",
        "30 MB of a quote": b"data_x\n_a.b '" + b"x" * (30 * MIB),
        "30 MB of semicolons": b"data_x\n_a.b\n" + b";\n" * (15 * MIB),
        "30 MB of comments": b"#\n" * (15 * MIB) + CIF,
        "30 MB of loops": b"data_x\n" + b"loop_\n" * (5 * MIB),
    }.items():
        yield Case(name, lambda data=data: packed(data), heavy=True)
    for name in (
        "AF-P12345-F99999999999999999999-model_v4.cif",
        "AF-P12345-F0-model_v4.cif",
        "AF-P12345-F1-model_v" + "9" * 99 + ".cif",
    ):
        yield Case(f"called {name[:30]}", None, more={name: CIF})
    for name, told in {
        "a line end": "a\nb.cif",
        "an escape": "a\x1b[2Jb.cif",
        "200 letters": "a" * 200 + ".cif",
        "a dash": "-rf.cif",
        "a pattern": "[a-z]*.cif",
        "bytes that are no letters": "a\udcff.cif",
        "other letters": "Жж.cif",
        "a quote": "a'\"`$(x).cif",
        "a key of dots": "....cif",
    }.items():
        yield Case(f"a file's name of {name}", None, more={told: CIF})
        yield Case(f"a broken file with a name of {name}", None, "told", more={told: CIF[:900]})
    yield Case("a folder called as a file", None, lay=lambda folder: (folder / "x.cif").mkdir())


def pdbs() -> Iterator[Case]:
    lines = PDB.splitlines(keepends=True)
    first = next(line for line in lines if line.startswith(b"ATOM"))
    where = PDB.index(first)

    def edited(begin: int, end: int, text: bytes) -> Callable[[], bytes]:
        return lambda: PDB.replace(first, first[:begin] + text.ljust(end - begin)[: end - begin] + first[end:], 1)

    for name, (begin, end, text) in {
        "an x of no number": (30, 38, b"     nan"),
        "an x of infinity": (30, 38, b"     inf"),
        "an x of letters": (30, 38, b"   1.2.3"),
        "an x of stars": (30, 38, b"********"),
        "an x beyond": (30, 38, b"9999999."),
        "a residue of letters": (22, 26, b"ZZZZ"),
        "a residue of nothing": (22, 26, b"    "),
        "a residue of stars": (22, 26, b"****"),
        "a number of stars": (6, 11, b"*****"),
        "an occupancy of letters": (54, 60, b"  abcd"),
        "a temperature of letters": (60, 66, b"  abcd"),
        "a charge of letters": (78, 80, b"??"),
        "a zero byte": (17, 20, b"G\0Y"),
        "other letters": (17, 20, "Ж".encode()),
    }.items():
        yield Case(name, edited(begin, end, text))
    atom = b"".join(line for line in lines if line.startswith(b"ATOM"))
    for name, data in {
        "atoms alone": atom,
        "no atoms": PDB[:where] + b"END\n",
        "no end": PDB.replace(b"\nEND", b"\nEDN"),
        "a short line": PDB.replace(first, first[:40] + b"\n", 1),
        "a line of 1 MB": PDB.replace(first, first.rstrip() + b"x" * MIB + b"\n", 1),
        "10,000 models": PDB[:where]
        + b"".join(b"MODEL     %4d\n%sENDMDL\n" % (i % 9999, first) for i in range(10_000))
        + b"END\n",
        "models that do not end": PDB[:where] + b"MODEL        1\n" * 10_000 + atom + b"END\n",
        "ends alone": b"END\n" * 100_000,
        "TER after each atom": PDB.replace(b"\nATOM", b"\nTER\nATOM"),
        "SEQRES of 20,000 lines": b"SEQRES   1 A   70  MSE ASP ILE ARG GLN GLY PRO LYS GLU PRO PHE ARG ASP\n" * 20_000
        + PDB,
        "SEQRES of nothing": b"SEQRES\n" * 10 + PDB,
        "DBREF of letters": b"DBREF  1A8O A   ONE   TWO  UNP    P12497   POL_HV1N5      283    352\n" + PDB,
        "DBREF of a path": b"DBREF  1A8O A  151   220  UNP    ../../x  POL_HV1N5      283    352\n" + PDB,
        "DBREF of 20,000 lines": b"DBREF  1A8O A  151   220  UNP    P12497   POL_HV1N5      283    352\n" * 20_000
        + PDB,
        "DBREF1 without DBREF2": b"DBREF1 1A8O A  151   220  UNP                  P12497\n" + PDB,
        "every atom twice": atom + atom + b"END\n",
        "20,000 places of an atom": first * 20_000 + b"END\n",
        "PDBQT": PDB.replace(b"ATOM  ", b"ROOT\nATOM  "),
        "an mmCIF file": CIF,
        "a GROMACS file": b"x\n 1\n    1ALA      N    1   0.126   1.624   1.679\n",
    }.items():
        yield Case(name, lambda data=data: data)
    yield Case("30 MB of atoms", lambda: packed(first * (30 * MIB // len(first)) + b"END\n"), heavy=True)
    yield Case("30 MB of remarks", lambda: packed(b"REMARK\n" * (4 * MIB) + PDB), heavy=True)
    yield Case("30 MB of residues", lambda: packed(chain(9_000) * 14), heavy=True)


def aligned() -> Iterator[Case]:
    good = errors()
    rows = json.loads(good)[0]["predicted_aligned_error"]
    for name, made in {
        "a row less": [{"predicted_aligned_error": rows[1:]}],
        "a column less": [{"predicted_aligned_error": [row[1:] for row in rows]}],
        "rows of other lengths": [{"predicted_aligned_error": [rows[0][1:], *rows[1:-1], rows[-1] + [1]]}],
        "flat": [{"predicted_aligned_error": [each for row in rows for each in row]}],
        "rows in rows": [{"predicted_aligned_error": [[row] for row in rows]}],
        "texts": [{"predicted_aligned_error": [["x"] * 30] * 30}],
        "nothing": [{"predicted_aligned_error": []}],
        "null": [{"predicted_aligned_error": None}],
        "true": [{"predicted_aligned_error": [[True] * 30] * 30}],
        "no number": [{"predicted_aligned_error": [[float("nan")] * 30] * 30}],
        "infinity": [{"predicted_aligned_error": [[float("inf")] * 30] * 30}],
        "less than nothing": [{"predicted_aligned_error": [[-5] * 30] * 30}],
        "2^70": [{"predicted_aligned_error": [[2**70] * 30] * 30}],
        "another field": [{"x": rows}],
        "a list": rows,
        "old, a pair less": [{"residue1": [1] * 899, "residue2": [1] * 899, "distance": [1.0] * 899}],
        "old, one pair always": [{"residue1": [1] * 900, "residue2": [1] * 900, "distance": [1.0] * 900}],
        "old, residues beyond": [{"residue1": [2**40] * 900, "residue2": [1] * 900, "distance": [1.0] * 900}],
        "old, residue zero": [{"residue1": [0] * 900, "residue2": [1] * 900, "distance": [1.0] * 900}],
        "old, no distance": [{"residue1": [1] * 900, "residue2": [1] * 900}],
    }.items():
        must = "any" if name in ("true", "less than nothing", "2^70") else "told"
        yield Case(name, lambda made=made: json.dumps(made).encode(), must)  # type: ignore[arg-type]
    for name, data in {
        "numbers beyond": good.replace(b"[0,", b"[1e999,"),
        "an octal number": good.replace(b"[0,", b"[0777,"),
        "a number of 5,000 digits": good.replace(b"[0,", b"[" + b"9" * 5000 + b","),
        "the field in a text": b'[{"x": "predicted_aligned_error", "predicted_aligned_error": "[[1]]"}]',
        "100,000 brackets": b'[{"predicted_aligned_error": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
        "100,000 commas": b'[{"predicted_aligned_error": [[' + b"," * 100_000 + b"]]}]",
        "another object": good.replace(b"max_", b"predicted_aligned_error"),
    }.items():
        yield Case(name, lambda data=data: data)
    for name, filler in {"brackets": b"[", "commas": b",", "zeros": b"0,", "ends": b"]"}.items():
        data = b'[{"predicted_aligned_error": [[' + filler * (MIB // len(filler))
        yield Case(f"1 MB of {name}", lambda data=data: data + b"]]}]", "told")
    size = 8_000  # residues: so many allow for a file of 1.5 GB
    big = {MODEL: chain(size)}
    line = b"[" + b"0," * (size - 1) + b"0],"
    for name, filler in {
        "rows": line,
        "brackets": b"[",
        "closed brackets": b"]",
        "commas": b",",
        "digits": b"0",
    }.items():

        def made(filler: bytes = filler) -> bytes:
            return packed(b'[{"predicted_aligned_error": [' + filler * (90 * MIB // len(filler)) + b"0]]}]")

        yield Case(f"90 MB of {name}", made, "told", more=big, heavy=True)


def databases() -> Iterator[Case]:
    good = entry()
    size = len(good) + 1

    def edit(at: int, data: bytes) -> Callable[[], bytes]:
        return lambda: good[:at] + data + good[at + len(data) :] + b"\0" + good + b"\0"

    for at in range(4, 76, 2):
        for data in (b"\xff\xff", b"\0\0"):
            yield Case(f"{data.hex()} in its header at {at}", edit(at, data))
    for name, index in {
        "an entry beyond": b"0\t0\t%d\n" % (10 * size),
        "an entry of 4 GB": b"0\t0\t4294967295\n",
        "an entry at 2^62": b"0\t%d\t10\n" % 2**62,
        "an entry before": b"0\t-5\t10\n",
        "an entry of nothing": b"0\t0\t0\n",
        "an entry of half": b"0\t0\t%d\n" % (size // 2),
        "an entry of two": b"0\t0\t%d\n" % (2 * size),
        "100,000 times one entry": b"".join(b"%d\t0\t%d\n" % (i, size) for i in range(2_000)),
        "one key of two": b"0\t0\t%d\n0\t%d\t%d\n" % (size, size, size),
        "a key of 5,000 digits": b"9" * 5000 + b"\t0\t%d\n" % size,
        "letters": b"zero\t0\t%d\n" % size,
        "a column less": b"0\t0\n",
    }.items():
        yield Case(f"index: {name}", None, more={"db.index": index})
    for name, told in PATHS.items():
        yield Case(f"name: {name}", None, more={"db.lookup": f"0\t{told}\t0\n1\tx\t0\n".encode()})
    yield Case("no index", None, "told", lay=lambda folder: (folder / "db.index").unlink())
    yield Case("no data", None, "told", lay=lambda folder: (folder / "db").unlink())


CASES = {
    "mmcif": mmcifs,
    "pdb": pdbs,
    "pae": aligned,
    "foldcomp": databases,
}
