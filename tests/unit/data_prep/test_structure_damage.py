"""Structure files that are cut, lie, or are something else: each is a rejection with a reason, within bounds."""

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pytest

from data_prep.records import FileSeen, Rejection, StructureRecord
from data_prep.sources.coordinates import bcif
from data_prep.sources.files import Slice, SourceError
from data_prep.sources.structures import Structures, opened
from pretrain.places import Place
from tests.pack import PACK

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "data_prep" / "sample" / "structures"
needs_pack = pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not beside the checkout")
LIMIT = 40 << 20


def items(folder: Path, data: bytes, name: str, **options) -> list:
    (folder / name).write_bytes(data)
    root = Place(str(folder))
    return list(Structures(files="*", states=False, **options).read(root, Slice((name,)), root))


def refusal(folder: Path, data: bytes, name: str, **options) -> str:
    """The one rejection's reason; it has a file and a detail, and nothing else came but the file's hash."""
    found = [item for item in items(folder, data, name, **options) if not isinstance(item, FileSeen)]
    (refused,) = found
    assert isinstance(refused, Rejection)
    assert refused.source == name
    assert refused.detail
    return refused.reason


RENAMED = {
    "pickle": (b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.", "unparsable"),
    "web page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "html_reply"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), "unparsable"),
    "zip": (b"PK\x03\x04" + bytes(64), "unknown_format"),
    "json": (b'{"predicted_aligned_error": [[0]]}', "unparsable"),
    "zeros": (bytes(4096), "unparsable"),
    "text": (b"this is not a structure\n" * 9, "unparsable"),
    "fasta": (b">sp|P12345|X\nMKV\n", "unparsable"),
    "safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "unparsable"),
    "mmtf": (b"\xde\x00\x25\xabmmtfVersion\xa51.0.0", "unparsable"),
}


@pytest.mark.parametrize("name", ["x.cif", "x.bcif", "x.pdb"])
@pytest.mark.parametrize("what", RENAMED)
def test_something_else_by_the_name_of_a_structure(tmp_path, what, name):
    data, reason = RENAMED[what]
    expected = {"unparsable": ("unparsable_structure", "no_atoms")}.get(reason, (reason,))
    assert refusal(tmp_path, data, name) in expected
    if reason != "html_reply":
        assert refusal(tmp_path, gzip.compress(data), f"{name}.gz") in expected


@pytest.mark.parametrize("right", ["cif", "pdb"])
@pytest.mark.parametrize("wrong", ["x.cif", "x.pdb", "x.bcif", "x.ent.gz", "x", "x.txt"])
def test_the_content_tells_the_format(tmp_path, right, wrong):
    data = (SAMPLE / "4ou0_A.cif" if right == "cif" else SAMPLE / "1A8O.pdb").read_bytes()
    (record, _) = items(tmp_path, data, wrong)
    assert isinstance(record, StructureRecord)
    assert record.id.startswith("4ou0" if right == "cif" else "1a8o")


def test_cut_anywhere_a_packed_file_is_refused(tmp_path):
    data = (SAMPLE / "1lo6_A.cif.gz").read_bytes()
    for at in range(2, len(data), len(data) // 30):
        assert refusal(tmp_path, data[:at], "x.cif.gz") == "truncated_gzip"


@needs_pack
@pytest.mark.parametrize(
    "path", ["afdb/AF-P0A9J6-F1-model_v6.cif", "pdb/3o5r.cif.gz", "pdb/3o5r.pdb.gz", "pdb/3o5r.bcif"]
)
def test_cut_anywhere_a_plain_file_of_the_archives_is_refused(path):
    """Also between two rows, where the format itself does not show it."""
    data = (PACK / path).read_bytes()
    data = gzip.decompress(data) if path.endswith("gz") else data
    name = path.rpartition("/")[2].removesuffix(".gz")
    end = data.rindex(b"\nEND") + 4 if name.endswith("pdb") else len(data) - 2  # what follows is blank
    places = list(range(1, end, len(data) // 60))
    if not name.endswith("bcif"):
        places += [data.index(b"\n", at) + 1 for at in places[::3] if 0 < data.find(b"\n", at) < end - 4]
    for at in places:
        with pytest.raises(SourceError) as caught:
            opened(name, data[:at], LIMIT)
        assert caught.value.reason in ("truncated_structure", "unparsable_structure", "no_atoms"), at


@needs_pack
@pytest.mark.parametrize("path", ["afdb/AF-P0A9J6-F1-model_v6.cif", "pdb/3o5r.pdb.gz", "pdb/3o5r.bcif"])
def test_bytes_changed_at_random_never_crash(path):
    data = (PACK / path).read_bytes()
    data = gzip.decompress(data) if path.endswith("gz") else data
    chance = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        changed = np.frombuffer(data, dtype=np.uint8).copy()
        changed[chance.integers(0, len(data), 200)] = chance.integers(0, 256, 200)
        try:
            found, _ = opened("x", changed.tobytes(), LIMIT)
            assert all(np.isfinite(chain.coordinates).all() for chain in found)
        except SourceError:
            refused += 1
    assert refused


def packed(rows: int, columns: dict[str, dict], **more) -> bytes:
    """A BinaryCIF file of one `_atom_site` table."""
    table = {"name": "_atom_site", "rowCount": rows, "columns": [{"name": n, **c} for n, c in columns.items()]}
    block = {"header": "X", "categories": [table], **more}
    return msgpack.packb({"encoder": "x", "version": "0.3", "dataBlocks": [block]}) or b""


def numbers(values: list, kind: int = 3) -> dict:
    data = np.array(values, dtype=bcif.TYPES[kind]).tobytes()
    return {"data": {"data": data, "encoding": [{"kind": "ByteArray", "type": kind}]}, "mask": None}


def strings(values: list[str]) -> dict:
    names = list(dict.fromkeys(values))
    offsets = np.cumsum([0, *map(len, names)]).tolist()
    index = numbers([names.index(value) for value in values])["data"]
    encoding = {
        "kind": "StringArray",
        "stringData": "".join(names),
        "offsets": numbers(offsets)["data"]["data"],
        "offsetEncoding": [{"kind": "ByteArray", "type": 3}],
        "dataEncoding": index["encoding"],
    }
    return {"data": {"data": index["data"], "encoding": [encoding]}, "mask": None}


def site(count: int = 30) -> dict[str, dict]:
    atoms = ["N", "CA", "C"] * count
    residue = [i // 3 for i in range(len(atoms))]
    columns: dict[str, dict] = {
        "label_atom_id": strings(atoms),
        "label_comp_id": strings([("ALA", "GLY", "SER")[i % 3] for i in residue]),
        "label_asym_id": strings(["A"] * len(atoms)),
        "label_seq_id": numbers([i + 1 for i in residue]),
    }
    return columns | {f"Cartn_{axis}": numbers([i * 0.5 for i in range(len(atoms))], 33) for axis in "xyz"}


def test_the_binary_file_of_these_tests_is_right(tmp_path):
    (record, _) = items(tmp_path, packed(90, site()), "x.bcif")
    assert isinstance(record, StructureRecord)
    assert (record.id, record.letters[:4], len(record.letters)) == ("x_A", "AGSA", 30)
    assert record.coordinates[1, 1].tolist() == [2.0, 2.0, 2.0]


def lying(column: str, *steps: dict, data: bytes = b"", rows: int = 90) -> bytes:
    """With one column of other encodings."""
    return packed(rows, site() | {column: {"data": {"data": data, "encoding": list(steps)}, "mask": None}})


INT = {"kind": "ByteArray", "type": 3}
LIES = {
    "more rows than values": packed(1000, site()),
    "fewer rows than values": packed(10, site()),
    "rows without bound": packed(1 << 60, site()),
    "rows below nothing": packed(-1, site()),
    "rows that are no number": packed("many", site()),  # type: ignore[arg-type]
    "a run of billions": lying(
        "label_seq_id",
        {"kind": "RunLength", "srcType": 3, "srcSize": 90},
        INT,
        data=np.array([1, 2**31 - 1] * 9, "<i4").tobytes(),
    ),
    "a run below nothing": lying(
        "label_seq_id", {"kind": "RunLength", "srcSize": 90}, INT, data=np.array([1, -5, 1, 95], "<i4").tobytes()
    ),
    "runs of runs": lying(
        "label_seq_id",
        *[{"kind": "RunLength", "srcSize": 90}] * 9,
        INT,
        data=np.array([2000, 2000] * 1000, "<i4").tobytes(),
    ),
    "an odd run": lying("label_seq_id", {"kind": "RunLength", "srcSize": 90}, INT, data=bytes(4 * 91)),
    "bytes that do not fit": lying("label_seq_id", INT, data=bytes(361)),
    "no bytes": lying("Cartn_x", {"kind": "ByteArray", "type": 33}),
    "an unknown type": lying("Cartn_x", {"kind": "ByteArray", "type": 77}, data=bytes(360)),
    "an unknown encoding": lying("Cartn_x", {"kind": "Pickle"}, INT, data=bytes(360)),
    "no encodings": lying("Cartn_x", data=bytes(90)),
    "a thousand encodings": lying("Cartn_x", *[{"kind": "Delta", "origin": 0}] * 900, INT, data=bytes(360)),
    "a factor of nothing": lying("Cartn_x", {"kind": "FixedPoint", "factor": 0}, INT, data=bytes(360)),
    "a factor that is a text": lying("Cartn_x", {"kind": "FixedPoint", "factor": "0"}, INT, data=bytes(360)),
    "a packed number without end": lying(
        "label_seq_id",
        {"kind": "IntegerPacking", "isUnsigned": True, "srcSize": 90},
        {"kind": "ByteArray", "type": 4},
        data=b"\xff" * 90,
    ),
    "a string beyond its column": packed(
        90,
        site() | {"label_atom_id": numbers([99] * 90) | {"data": strings(["N"] * 90)["data"] | {"data": b"\7" * 360}}},
    ),
    "offsets beyond the text": packed(
        90,
        site()
        | {
            "label_atom_id": {
                "data": {
                    "data": bytes(360),
                    "encoding": [
                        strings(["N"])["data"]["encoding"][0] | {"offsets": np.array([5, 2**31 - 1], "<i4").tobytes()}
                    ],
                }
            }
        },
    ),
    "numbers for names": packed(90, site() | {"label_atom_id": numbers([1] * 90)}),
    "a column twice removed": msgpack.packb({"encoder": "x", "dataBlocks": [{"categories": [[[]]]}]}),
    "no blocks": msgpack.packb({"encoder": "x", "version": "1", "dataBlocks": []}),
    "blocks that are no list": msgpack.packb({"encoder": "x", "dataBlocks": {"a": 1}}),
    "columns that are no list": msgpack.packb(
        {"encoder": "x", "dataBlocks": [{"categories": [{"name": "_atom_site", "rowCount": 1, "columns": 7}]}]}
    ),
    "a list of four billion": b"\x82\xa7encoder\xa1x\xaadataBlocks\xdd\xff\xff\xff\xff",
    "bytes of four billion": b"\x82\xa7encoder\xc6\xff\xff\xff\xff\xaadataBlocks\x90",
    "lists in lists": b"\x82\xa7encoder\xa1x\xaadataBlocks" + b"\x91" * 100_000,
    "lists in lists in atoms": b"\x82\xa7encoder\xa1x\xaadataBlocks\x91\x81\xaacategories\x91\x82\xa4name\xaa_atom_site"
    + b"\xa7columns"
    + b"\x91" * 100_000,
    "an extension type": b"\x82\xa7encoder\xa1x\xaadataBlocks\xc7\x05\x01abcde",
    "a second value behind it": packed(90, {"label_atom_id": strings(["N"] * 90)}) + b"\x90" * 99,
}


@pytest.mark.parametrize("what", LIES)
def test_a_binary_file_that_lies_is_refused(tmp_path, what):
    assert refusal(tmp_path, LIES[what], "x.bcif") in ("unparsable_structure", "no_atoms", "no_protein_chain")


ODD = {
    "nan": "nan",
    "infinite": "inf",
    "below": "-inf",
    "far": "1e30",
    "beyond doubles": "1e999",
    "none": "?",
    "x": "x",
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("axis", [0, 2])
def test_atoms_of_odd_places_are_absent(tmp_path, what, axis):
    lines = (SAMPLE / "4ou0_A.cif").read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("ATOM"))
    for i in range(begin, begin + 90):
        words = lines[i].split()
        words[9 + axis] = ODD[what]
        lines[i] = " ".join(words)
    record, _ = items(tmp_path, "\n".join(lines).encode(), "x.cif")
    assert isinstance(record, StructureRecord)
    assert np.isfinite(record.coordinates).all()
    whole, _ = items(tmp_path, (SAMPLE / "4ou0_A.cif").read_bytes(), "y.cif")
    assert len(whole.letters) - len(record.letters) == 30


SITE = b"group_PDB id label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id Cartn_x Cartn_y Cartn_z"
HEAD = b"data_x\nloop_\n" + b"".join(b"_atom_site.%s\n" % name for name in SITE.split())


def rows(count: int, row: bytes) -> bytes:
    return HEAD + b"".join(row % {b"i": i} for i in range(count))


MANY = {
    "chains": (rows(20_000, b"ATOM %(i)d CA . ALA A%(i)d 1 1.0 2.0 3.0\n"), "too_many_chains"),
    "models of one atom": (b"MODEL        1\n" * 50_000, "no_atoms"),
    "locations": (rows(20_000, b"ATOM %(i)d CA %(i)d ALA A 1 1.0 2.0 3.0\n"), "too_many_locations"),
    "names of one residue": (rows(20_000, b"ATOM %(i)d CA . X%(i)d A 1 1.0 2.0 3.0\n"), "too_many_locations"),
    "atoms of one residue": (rows(20_000, b"ATOM %(i)d CA . ALA A 1 1.0 2.0 3.0\n"), "too_many_locations"),
    "a value of a megabyte": (
        rows(9, b"ATOM %(i)d CA . ALA A 1 1.0 2.0 3.0" + b"0" * (1 << 20) + b"\n"),
        "overlong_value",
    ),
    "a residue's name of a megabyte": (
        rows(9, b"ATOM %(i)d CA . " + b"A" * (1 << 20) + b" A 1 1 2 3\n"),
        "overlong_value",
    ),
    "values": (b"data_x\nloop_\n_a.b\n" + b"1 " * 14_000_000, "too_large"),
    "bytes": (b"data_x\n" + b"#" * (41 << 20), "too_large"),
    "bytes of a binary file": (b"\x82\xa7encoder\xc6" + bytes(11 << 20), "too_large"),
    "no column of places": (
        HEAD.replace(b"_atom_site.Cartn_y\n", b"") + b"ATOM 1 CA . ALA A 1 1.0 2.0\n",
        "unparsable_structure",
    ),
    "fewer values than columns": (rows(50, b"ATOM %(i)d CA . ALA A 1 1.0 2.0\n") + b"ATOM\n", "unparsable_structure"),
    "a tag twice": (HEAD + b"_atom_site.id\n" + b"ATOM 1 CA . ALA A 1 1.0 2.0 3.0 4\n", "unparsable_structure"),
    "an open text": (HEAD + b"ATOM 1 CA . ALA A 1 1.0 2.0\n;3.0\n", "unparsable_structure"),
    "an open quote": (HEAD + b"ATOM 1 CA . ALA A 1 1.0 2.0 '3.0\n", "unparsable_structure"),
    "tags without rows": (HEAD, "unparsable_structure"),
}


@pytest.mark.parametrize("what", MANY)
def test_more_than_any_structure_has_is_refused(tmp_path, what):
    data, reason = MANY[what]
    assert refusal(tmp_path, data, "x.cif") in (reason, "no_atoms" if reason == "unparsable_structure" else reason)


def numbered(number: Callable[[int], int]) -> bytes:
    """A chain of thirty residues."""
    lines = (
        f"ATOM {3 * i + j} {name} . ALA A {number(i)} {i}.0 {j}.0 3.0\n"
        for i in range(30)
        for j, name in enumerate(("N", "CA", "C"))
    )
    return HEAD + "".join(lines).encode()


def test_negative_and_repeated_numbers(tmp_path):
    def numbers(number: Callable[[int], int]) -> list[int]:
        record, _ = items(tmp_path, numbered(number), "x.cif")
        assert isinstance(record, StructureRecord)
        assert len(record.letters) == 30
        return record.number.tolist()

    assert numbers(lambda i: i - 10) == list(range(-10, 20))
    assert numbers(lambda i: 100 - i) == list(range(30))
    assert numbers(lambda i: i % 7) == list(range(30))


@pytest.mark.parametrize("beyond", [2**31, 10**12, 10**30, -(2**40)])
def test_numbers_beyond_any_sequence_are_none(tmp_path, beyond):
    assert refusal(tmp_path, numbered(lambda i: beyond + i), "x.cif") == "short_chain"


PEAK = """
from data_prep.sources.files import SourceError
from data_prep.sources.structures import opened
{make}
try:
    opened(name, data, 40 << 20)
except SourceError:
    pass
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])  # getrusage's begins at the parent's
"""
WORST = {
    "short values": 'name, data = "x.cif", b"data_x\\nloop_\\n_a.b\\n" + b"1 " * 12_900_000',
    "quoted atoms": f"""name = "x.cif"
data = {HEAD!r} + b"".join(b"ATOM %d CA . 'ALA' A %d 1.0 2.0 3.0\\n" % (i, i) for i in range(900_000))""",
    "sequences": """name = "x.pdb"
data = b"SEQRES   1 A 9999  ALA GLY ALA ALA GLY ALA ALA GLY ALA ALA GLY ALA ALA\\n" * 500_000 + b"END\\n" """,
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WORST)
def test_the_largest_file_that_is_let_in_stays_below_a_gibibyte(what):
    run = [sys.executable, "-c", PEAK.format(make=WORST[what])]
    peak = int(subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert 100 << 10 < peak < 1 << 20, f"{peak >> 10} MiB"
