"""Foldcomp databases: the records that the models themselves give, in any number of tasks, and damage of every kind."""

import gzip
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest

from data_prep.records import FileSeen, Rejection, StructureRecord
from data_prep.sources import foldcomp as module
from data_prep.sources.coordinates import fcz
from data_prep.sources.files import SourceError, resolve
from data_prep.sources.foldcomp import Damaged, Foldcomp
from data_prep.sources.structures import Structures
from pretrain.places import Place
from tests.pack import PACK

foldcomp: Any = pytest.importorskip("foldcomp")
SAMPLE = resolve("package:data_prep/sample") / "structures"
BREAK = 25  # residues between anchors, as in the published databases
ACCESSIONS = ["P00001", "P00002-2", "A0A024RBG1", "Q8WZ42", "Q8WZ42", "P00006"]
NAMES = [f"AF-{accession}-F1-model_v4" for accession in ACCESSIONS]
NAMES[4] = NAMES[4].replace("-F1-", "-F3-")
NAMES[5] = "MGYP000740246123.pdb.gz"


def glycines(name: str, count: int = 1000) -> str:
    """A real chain's backbone as if all of it were glycine: the sample has no side chains."""
    lines = ["TITLE     A MODEL\n"]
    for i, residue in enumerate(list(gemmi.read_structure(f"{SAMPLE}/{name}")[0][0].get_polymer())[:count]):
        for atom in residue:
            x, y, z = atom.pos.tolist()
            lines.append(
                f"ATOM  {len(lines):5d}  {atom.name:<3} GLY A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
                f"{1:6.2f}{50 + i % 40:6.2f}          {atom.name[0]:>2}\n"
            )
    return "".join(lines)


@pytest.fixture(scope="module")
def entries() -> dict[str, bytes]:
    chains = ["1ew4_A.cif.gz", "1fm0_A.cif.gz", "1gmx_A.cif.gz", "3f3q_A.cif.gz", "3fpz_A.cif.gz", "5jh0_D.cif.gz"]
    return {
        name: foldcomp.compress(name, glycines(chain), anchor_residue_threshold=BREAK)
        for name, chain in zip(NAMES, chains, strict=True)
    }


def database(
    folder: Path, entries: dict[str, bytes], name: str = "db", lookup: bool = True, zero: bytes = b"\0"
) -> Place:
    """As MMseqs2 and Foldcomp lay one out."""
    data, index, names = b"", "", ""
    for key, (entry, content) in enumerate(entries.items()):
        index += f"{key}\t{len(data)}\t{len(content + zero)}\n"
        names += f"{key}\t{entry}\t0\n"
        data += content + zero
    (folder / name).write_bytes(data)
    (folder / f"{name}.index").write_text(index)
    (folder / f"{name}.dbtype").write_bytes(struct.pack("<i", 12))
    if lookup:
        (folder / f"{name}.lookup").write_text(names)
    return Place(str(folder))


def items(place: Place, **options) -> list:
    source = Foldcomp(files="db", **options)
    return [item for part in source.slices(place) for item in source.read(place, part, place)]


def structures(place: Place, **options) -> list[StructureRecord]:
    found = items(place, **options)
    assert not [item for item in found if isinstance(item, Rejection)]
    return [item for item in found if isinstance(item, StructureRecord)]


def rejections(place: Place, **options) -> list[Rejection]:
    return [item for item in items(place, **options) if isinstance(item, Rejection)]


def test_each_entry_is_a_record_with_its_accession(tmp_path, entries):
    found = structures(database(tmp_path, entries))
    assert [r.key for r in found] == ["P00001", "P00002-2", "A0A024RBG1", "Q8WZ42", "Q8WZ42", "pdb_MGYP000740246123_A"]
    assert [r.id for r in found[:5]] == [name.partition("-model")[0] for name in NAMES[:5]]
    assert [r.fragment for r in found] == [1, 1, 1, 1, 3, 0]
    assert [(r.begin, r.shift) for r in found] == [(1, -1)] * 4 + [(401, 399), (None, None)]
    assert [r.position for r in found] == [f"entry {key}" for key in range(6)]
    assert {r.source for r in found} == {"db"}
    first = found[0]
    assert first.letters == "G" * 106 and first.number.tolist() == list(range(1, 107)) and first.end == 106
    assert first.coordinates.shape == (106, 3, 3) and first.coordinates.dtype == np.float32 and first.mask.all()
    assert first.states is not None and len(set(first.states)) > 8


def test_coordinates_and_confidence_are_the_models_within_foldcomps_error(tmp_path, entries):
    found = structures(database(tmp_path, entries), atoms=("N", "CA", "C", "O"))
    residues = list(gemmi.read_structure(f"{SAMPLE}/1ew4_A.cif.gz")[0][0].get_polymer())
    real = np.array([[r[name][0].pos.tolist() for name in ("N", "CA", "C", "O")] for r in residues])
    off = np.linalg.norm(found[0].coordinates - real, axis=-1)
    assert np.sqrt(np.square(off[:, :3]).mean()) < 0.1 and off.max() < 0.5
    assert found[0].confidence is not None
    assert np.abs(found[0].confidence - [50 + i % 40 for i in range(len(residues))]).max() < 0.2


def test_records_are_those_of_the_text_that_foldcomp_itself_writes(tmp_path, entries):
    place = database(tmp_path, entries)
    (tmp_path / "text").mkdir()
    for entry in entries.values():
        title, text = foldcomp.decompress(entry)
        (tmp_path / "text" / f"{title}.pdb".replace(".pdb.gz", "")).write_text(text)
    ours = {r.id: r for r in structures(place, predicted=False)}
    source = Structures(files="text/*.pdb")
    theirs = [item for part in source.slices(place) for item in source.read(place, part, place)]
    theirs = {item.id: item for item in theirs if isinstance(item, StructureRecord)}
    assert ours.keys() == theirs.keys() and len(ours) == 6
    for id, other in theirs.items():
        own = ours[id]
        assert (own.key, own.letters, own.atoms, own.fragment) == (
            other.key,
            other.letters,
            other.atoms,
            other.fragment,
        )
        assert np.array_equal(own.number, other.number) and np.array_equal(own.mask, other.mask)
        assert np.abs(own.coordinates - other.coordinates).max() < 6e-4
        assert (own.confidence is None) == (other.confidence is None)


def test_the_databases_written_here_are_read_by_foldcomp_itself(tmp_path, entries):
    database(tmp_path, entries)
    with foldcomp.open(tmp_path / "db") as peer:
        assert [name for name, _ in peer] == NAMES


@pytest.mark.parametrize("size", [1, 2, 4096])
def test_any_number_of_tasks_reads_the_same(tmp_path, entries, size):
    place = database(tmp_path, entries)
    source = Foldcomp(files="db", entries=size)
    parts = source.slices(place)
    assert len(parts) == {1: 3, 2: 2, 4096: 1}[size]
    assert {part.names for part in parts} == {("db.index",)}
    found = structures(place, entries=size)
    assert [r.position for r in found] == [f"entry {key}" for key in range(6)]
    whole = structures(place)
    assert [r.coordinates.tobytes() for r in found] == [r.coordinates.tobytes() for r in whole]
    seen = sorted(item.path for item in items(place, entries=size) if isinstance(item, FileSeen))
    assert seen == ["db", "db.index", "db.lookup"]


@pytest.mark.parametrize("zero", [b"\0", b""])
def test_entries_with_and_without_a_zero_at_their_end(tmp_path, entries, zero):
    assert len(structures(database(tmp_path, entries, zero=zero))) == 6


def test_without_a_lookup_the_titles_are_names(tmp_path, entries):
    named = structures(database(tmp_path, entries))
    (tmp_path / "db.lookup").unlink()
    assert [r.id for r in structures(Place(str(tmp_path)))] == [r.id for r in named]


def test_names_come_from_the_lookup_and_one_that_is_missing_is_named(tmp_path, entries):
    titled = {name: foldcomp.compress("ALPHAFOLD MONOMER V2.0 PREDICTION", glycines("1fm0_A.cif.gz")) for name in NAMES}
    place = database(tmp_path, titled)
    assert [r.id for r in structures(place)][:3] == ["AF-P00001-F1", "AF-P00002-2-F1", "AF-A0A024RBG1-F1"]
    lines = (tmp_path / "db.lookup").read_text().splitlines(keepends=True)
    (tmp_path / "db.lookup").write_text("".join(lines[:2] + lines[3:]))
    (rejection,) = rejections(place)
    assert (rejection.reason, rejection.source, rejection.position) == ("unnamed_entry", "db", "entry 2")
    assert len([item for item in items(place) if isinstance(item, StructureRecord)]) == 5


@pytest.mark.parametrize("probe", [64, 4096])
def test_a_long_lookup_is_not_read_from_its_beginning(tmp_path, entries, probe, monkeypatch):
    content = entries[NAMES[1]]
    data, keys = content + b"\0", [7, 9_000, 9_001, 150_000, 199_999]
    (tmp_path / "db").write_bytes(data * len(keys))
    lines = [f"{key}\t{i * len(data)}\t{len(data)}\n" for i, key in enumerate(keys)]
    (tmp_path / "db.index").write_text("".join(lines))
    (tmp_path / "db.lookup").write_text("".join(f"{key}\tAF-K{key}-F1-model_v4\t0\n" for key in range(200_000)))
    monkeypatch.setattr(module, "PROBE", probe)
    found = structures(Place(str(tmp_path)), entries=1)
    assert [r.key for r in found] == [f"K{key}" for key in keys]


def test_an_index_in_another_order_than_the_data(tmp_path, entries, monkeypatch):
    place = database(tmp_path, entries)
    lines = (tmp_path / "db.index").read_text().splitlines(keepends=True)
    (tmp_path / "db.index").write_text("".join(reversed(lines)))
    assert [r.position for r in structures(place)] == [f"entry {key}" for key in range(6)]
    calls = []
    read = Place.read
    monkeypatch.setattr(Place, "read", lambda *args: calls.append(args) or read(*args))
    monkeypatch.setattr(module, "BLOCK", 3000)
    assert len(structures(place)) == 6
    assert len([call for call in calls if call[1] == "db"]) == 4


def test_configuration_is_that_of_structures(tmp_path, entries):
    place = database(tmp_path, entries)
    assert structures(place, atoms=("CA",), states=False)[0].coordinates.shape == (106, 1, 3)
    short = rejections(place, min_residues=107)
    assert {r.reason for r in short} == {"short_chain"} and {r.source for r in short} == {"db"}
    assert short[0].position == "entry 0" and short[0].key == "P00001"
    assert len(rejections(place, min_plddt=99)) == 6
    sure = structures(place, min_residue_plddt=60)[0].confidence
    assert sure is not None and sure.min() >= 60
    assert structures(place, predicted=False)[5].confidence is None
    assert structures(place)[5].confidence is not None


def test_patterns_find_databases_and_not_their_other_files(tmp_path, entries):
    for name in ("human", "mouse"):
        database(tmp_path, {NAMES[0]: entries[NAMES[0]]}, name)
    place = Place(str(tmp_path))
    for files in ("*", "*.index", ("human", "mouse.index")):
        assert [part.names[0] for part in Foldcomp(files=files).slices(place)] == ["human.index", "mouse.index"]


def test_what_is_no_database_is_refused(tmp_path, entries):
    place = database(tmp_path, entries)
    (tmp_path / "db.index").rename(tmp_path / "other.index")
    with pytest.raises(ValueError, match=r"no db\.index; a Foldcomp database is both files"):
        Foldcomp(files="db").slices(place)
    with pytest.raises(ValueError, match="no other; a Foldcomp database is both files"):
        Foldcomp(files="other.index").slices(place)
    (tmp_path / "db.index").touch()
    with pytest.raises(ValueError, match=r"db\.index is empty"):
        Foldcomp(files="db").slices(place)


def test_without_the_package_it_is_named(tmp_path, entries, monkeypatch):
    place = database(tmp_path, entries)
    monkeypatch.setitem(sys.modules, "foldcomp", None)
    with pytest.raises(ValueError, match=r"pip install fourfold\[foldcomp\]"):
        Foldcomp(files="db").slices(place)


@pytest.mark.parametrize(
    "line",
    ["0\t0", "a\t0\t100", "0 0 100 7", "-1\t0\t5", "0\t0\t99999999999999", "0\t0\t99999999", "\0\0\0", "", "9" * 99],
)
@pytest.mark.parametrize("on_error", ["stop", "reject"])
def test_a_damaged_index_stops_the_run(tmp_path, entries, line, on_error):
    place = database(tmp_path, entries)
    with open(tmp_path / "db.index", "a") as index:
        index.write(f"{line}\n6\t0\t100\n")
    with pytest.raises(Damaged, match=r"db\.index: .* is not key, offset, length"):
        items(place, on_error=on_error)


def test_data_that_end_early_stop_the_run(tmp_path, entries):
    place = database(tmp_path, entries)
    with open(tmp_path / "db", "r+b") as data:
        data.truncate(5000)
    with pytest.raises(Damaged, match=r"entry \d lies at bytes \d+ to \d+ of 5000; the database is cut short"):
        items(place)


def test_a_lookup_that_is_none_stops_the_run(tmp_path, entries):
    place = database(tmp_path, entries)
    (tmp_path / "db.lookup").write_bytes(bytes(20_000))
    with pytest.raises(Damaged, match="no line of key and name"):
        items(place)


def test_a_damaged_entry_is_rejected_and_the_rest_read(tmp_path, entries):
    bad = bytearray(entries[NAMES[1]])
    bad[4] += 1
    place = database(tmp_path, entries | {NAMES[1]: bytes(bad)})
    (rejection,) = rejections(place)
    assert (rejection.reason, rejection.key, rejection.source) == ("damaged_foldcomp", NAMES[1], "db")
    assert rejection.position == "entry 1" and "82 residues" in rejection.detail
    assert len([item for item in items(place) if isinstance(item, StructureRecord)]) == 5
    with pytest.raises(SourceError, match=f"entry 1, {NAMES[1]}"):
        items(place, on_error="stop")


def test_an_index_that_points_elsewhere_is_rejected(tmp_path, entries):
    place = database(tmp_path, entries)
    text = (tmp_path / "db.index").read_text().splitlines()
    (tmp_path / "db.index").write_text(text[0] + "\n1\t17\t900\n2\t0\t0\n3\t0\t1\n")
    found = rejections(place)
    assert [r.reason for r in found] == ["damaged_foldcomp"] * 3


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_ends_the_process(entries, seed):
    """Refused before foldcomp sees it, or decompressed to as many finite residues. Unchecked, many end the process."""
    draw = random.Random(seed)
    entry = entries[NAMES[4]]
    refused = read = 0
    for _ in range(250):
        damaged = bytearray(entry)
        for _ in range(draw.choice([1, 1, 3, 30])):
            damaged[draw.randrange(draw.choice([80, 300, len(entry)]))] = draw.randrange(256)
        if draw.random() < 0.3:
            damaged = damaged[: draw.randrange(len(entry))]
        try:
            _, chain = fcz.chain(bytes(damaged))
        except SourceError as error:
            assert error.reason == "damaged_foldcomp"
            refused += 1
        else:
            assert len(chain.residues) == 311 and np.isfinite(chain.coordinates).all()
            read += 1
    assert refused > 80 and read > 50


@pytest.mark.parametrize("end", [0, 1, 3, 4, 75, 76, 100, 500, -9, -1])
def test_cut_entries_are_refused(entries, end):
    with pytest.raises(SourceError) as caught:
        fcz.chain(entries[NAMES[0]][:end])
    assert caught.value.reason == "damaged_foldcomp"


def test_memory_does_not_grow_with_entries(entries):
    """foldcomp.decompress keeps every text it gave: 0.2 MB of this entry."""
    entry = entries[NAMES[4]]
    for _ in range(20):
        fcz.chain(entry)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(200):
        fcz.chain(entry)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8_000


def test_the_package_is_not_needed_to_import_the_source():
    code = "import sys; sys.modules['foldcomp'] = None; import data_prep.sources.foldcomp"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_models_come_back_within_foldcomps_error(tmp_path):
    paths = sorted((PACK / "afdb").glob("*.pdb.gz"))[::6]
    if not paths:
        pytest.skip(f"no AlphaFold DB models under {PACK}")
    text = {path.name.removesuffix(".pdb.gz"): gzip.decompress(path.read_bytes()).decode() for path in paths}
    packed = {name: foldcomp.compress(name, each, anchor_residue_threshold=BREAK) for name, each in text.items()}
    ours = structures(database(tmp_path, packed))
    source, place = Structures(files=tuple(f"afdb/{path.name}" for path in paths)), Place(str(PACK))
    theirs = [item for part in source.slices(place) for item in source.read(place, part, place)]
    theirs = [item for item in theirs if isinstance(item, StructureRecord)]
    assert len(ours) == len(theirs) == len(paths)
    off = []
    for own, other in zip(ours, theirs, strict=True):
        assert (own.key, own.id, own.letters, own.fragment) == (other.key, other.id, other.letters, other.fragment)
        assert (own.begin, own.end, own.shift) == (other.begin, other.end, other.shift)
        assert np.array_equal(own.number, other.number) and own.mask.all()
        off.append(np.linalg.norm(own.coordinates - other.coordinates, axis=-1).ravel())
        assert own.confidence is not None and other.confidence is not None
        assert np.abs(own.confidence - other.confidence).max() < 0.2
        assert own.states is not None and other.states is not None
        assert np.mean([a == b for a, b in zip(own.states, other.states, strict=True)]) > 0.85
    assert np.sqrt(np.square(np.concatenate(off)).mean()) < 0.2 and np.concatenate(off).max() < 3
