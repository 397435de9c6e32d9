"""The readers of mmCIF, BinaryCIF and PDB against gemmi's own model of a structure, atom by atom, and each other."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import gemmi
import numpy as np
import pytest

from data_prep.records import StructureRecord
from data_prep.sources.coordinates import mmcif
from data_prep.sources.coordinates.atoms import NONE, READ
from data_prep.sources.coordinates.residues import chains
from data_prep.sources.files import Stream
from data_prep.sources.structures import Structures, opened
from pretrain.places import Place
from tests.pack import PACK

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "data_prep" / "sample" / "structures"
LIMIT = 512 << 20
# folder, and of how many files one is read: all of those that differ from each other, some of those that are alike
FOLDERS = {
    "afdb": 1,
    "pdb": 1,
    "structures/afdb": 1,
    "structures/originals": 1,
    "structures/multiconf": 12,
    "structures/stability_dg": 12,
    "structures/docking_db5": 20,
    "structures/ligand_affinity_fep": 6,
    "structures/pdb_mmcif": 60,
    "benchmarks/scope/domains": 4,
}
needs_pack = pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not beside the checkout")
Residue = tuple[str, int | None, int, dict[int, gemmi.Atom]]  # component, label and author's number, atoms by slot


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def by_gemmi(path: Path) -> Iterator[tuple[str, list[Residue]]]:
    """Chains of polymers with their residues."""
    data = content(path)
    if path.name.removesuffix(".gz").endswith(".cif"):
        structure = gemmi.make_structure_from_block(gemmi.cif.read_string(data)[0])
    else:
        structure = gemmi.read_pdb_string(data)
    structure.setup_entities()
    structure.assign_label_seq_id(False)
    for chain in structure[0]:
        numbers: dict[tuple, dict[str, list[gemmi.Atom]]] = {}
        for residue in chain.get_polymer():
            names = numbers.setdefault((residue.label_seq, residue.seqid.num, residue.seqid.icode), {})
            names[residue.name] = [*names.get(residue.name, []), *residue]
        best = [(*best_conformer(names), number) for number, names in numbers.items()]
        if found := [(name, number[0], number[1], atoms) for name, atoms, number in best if atoms]:
            yield chain.name, found


def best_conformer(names: dict[str, list[gemmi.Atom]]) -> tuple[str, dict[int, gemmi.Atom]]:
    """The one with the highest summed occupancy, in the plainest of ways."""
    found: list[tuple[float, str, dict[int, gemmi.Atom]]] = []
    for name, listed in names.items():
        near = [atom for atom in listed if atom.name in READ and all(abs(x) < 1e5 for x in atom.pos)]
        for letter in dict.fromkeys(atom.altloc for atom in near if atom.altloc != "\0") or ["\0"]:
            atoms: dict[int, gemmi.Atom] = {}
            for atom in near:
                slot = READ.index(atom.name)
                if atom.altloc in (letter, "\0") and (slot not in atoms or atom.occ > atoms[slot].occ):
                    atoms[slot] = atom
            found.append((round(sum(atom.occ for atom in atoms.values()), 3), name, atoms))
    return max(found, key=lambda each: each[0])[1:]  # the first of equals


def check(path: Path) -> int:
    """Hold the file's chains against gemmi's; returns the number of residues."""
    ours = {chain.name: chain for chain in opened(path.name, content(path), LIMIT)[0]}
    count = 0
    for name, residues in by_gemmi(path):
        chain = ours.pop(name)
        mask = np.zeros((len(residues), len(READ)), dtype=bool)
        coordinates = np.zeros((len(residues), len(READ), 3), dtype=np.float32)
        for i, (_, _, _, atoms) in enumerate(residues):
            for slot, atom in atoms.items():
                mask[i, slot], coordinates[i, slot] = True, atom.pos.tolist()
        assert [name.decode() for name in chain.residues] == [name for name, *_ in residues]
        assert np.array_equal(chain.mask, mask)
        assert np.array_equal(chain.coordinates, coordinates)
        assert chain.number.tolist() == [number for _, _, number, _ in residues]
        assert chain.place.tolist() == [NONE if number is None else number for _, number, _, _ in residues]
        count += len(residues)
    assert not ours
    return count


def structures(folder: Path) -> list[Path]:
    known = (".cif", ".pdb", ".ent")
    return [path for path in sorted(folder.rglob("*")) if path.name.removesuffix(".gz").endswith(known)]


def test_every_structure_of_the_sample_is_what_gemmi_makes_of_it():
    read = [path for path in structures(SAMPLE) if not path.name.startswith("reject")]
    assert len(read) > 60
    assert sum(check(path) for path in read) > 10_000


@needs_pack
@pytest.mark.parametrize("folder", FOLDERS)
def test_structures_of_the_pack_are_what_gemmi_makes_of_them(folder):
    strange = {"104D_v23.pdb.gz"}  # a hybrid of DNA and RNA, in a format that gemmi refuses
    read = [path for path in structures(PACK / folder)[:: FOLDERS[folder]] if path.name not in strange]
    assert read
    for path in read:
        assert check(path), path.name


@needs_pack
def test_an_old_file_whose_charges_are_line_numbers_is_read():
    with pytest.raises(Exception, match="no polymer with a backbone"):
        opened("x.pdb", content(PACK / "structures/originals/104D_v23.pdb.gz"), LIMIT)


def records(path: Path, **options) -> list[StructureRecord]:
    with Stream.open(Place(str(path.parent)), path.name) as stream:
        items = list(Structures(files="*", **options).parse(stream))
    return [item for item in items if isinstance(item, StructureRecord)]


@needs_pack
@pytest.mark.parametrize("entry", ["1aki", "1dix", "1k6p", "1o1z", "2d0f", "3o5r", "4i39", "5h73", "5zng"])
def test_an_entry_is_the_same_in_each_format(entry):
    formats = [path for suffix in ("cif.gz", "bcif", "pdb.gz") if (path := PACK / "pdb" / f"{entry}.{suffix}").exists()]
    first, *others = (records(path, atoms=("N", "CA", "C", "O"), min_residues=1) for path in formats)
    assert len(formats) == (2 if entry == "4i39" else 3)
    assert first
    for other in others:
        assert len(other) == len(first)
        for a, b in zip(first, other, strict=True):
            told = [(x.key, x.id, x.letters, x.states, x.begin, x.end, x.shift, x.position) for x in (a, b)]
            assert told[0] == told[1]
            assert round(a.resolution or 0, 2) == round(b.resolution or 0, 2)
            assert np.array_equal(a.coordinates, b.coordinates)
            assert np.array_equal(a.mask, b.mask)
            assert np.array_equal(a.number, b.number)


@needs_pack
def test_the_archives_layout_is_cut_and_gives_what_tokens_give():
    paths = [*sorted((PACK / "afdb").glob("*.cif*")), *sorted((PACK / "pdb").glob("*.cif.gz"))]
    assert len(paths) == 17
    for path in paths:
        data = content(path)
        begin = data.find(mmcif.BEGIN) + 7
        assert type(mmcif._cut(data, begin)[0]).__name__ == "_Aligned"
        cut, told = mmcif.read(data)
        tokens, told_too = mmcif.read(b"# not as the archives begin\n" + data)
        assert told == told_too
        for a, b in zip(chains(cut), chains(tokens), strict=True):
            assert a.residues == b.residues
            assert np.array_equal(a.coordinates, b.coordinates)
            assert np.array_equal(a.temperature, b.temperature)
            assert np.array_equal(a.place, b.place)


def variants() -> dict[str, bytes]:
    """One file, written in ways that CIF allows and the archives do not use."""
    data = (SAMPLE / "4ou0_A.cif").read_bytes()
    head, _, body = data.partition(b"_atom_site.pdbx_PDB_model_num\n")
    rows = [row.split() for row in body.split(b"\n") if row]

    def written(row) -> bytes:
        return head + b"_atom_site.pdbx_PDB_model_num\n" + b"".join(map(row, rows))

    widths = [max(len(row[i]) for row in rows) + 1 for i in range(len(rows[0]))]
    return {
        "aligned": written(lambda row: b"".join(w.ljust(n) for w, n in zip(row, widths, strict=True)) + b"\n") + b"#\n",
        "aligned at the right": written(
            lambda row: b"".join(w.rjust(n) for w, n in zip(row, widths, strict=True)) + b"\n"
        ),
        "a value a line": written(lambda row: b"\n".join(row) + b"\n"),
        "two rows a line": written(lambda row: b" ".join(row) + (b"\n" if row is rows[-1] or row[1] < b"5" else b" ")),
        "tabs": written(lambda row: b"\t".join(row) + b"\n"),
        "quoted atoms": written(lambda row: b" ".join([*row[:3], b'"' + row[3] + b'"', *row[4:]]) + b"\n"),
        "quoted residues": written(lambda row: b" ".join([*row[:5], b"'" + row[5] + b"'", *row[6:]]) + b"\n"),
        "a text field": written(
            lambda row: b" ".join(row[:5]) + b"\n;" + row[5] + b"\n;\n" + b" ".join(row[6:]) + b"\n"
        ),
        "comments": written(lambda row: b" ".join(row) + b" # an atom\n"),
        "carriage returns": data.replace(b"\n", b"\r\n"),
        "no last line end": data.rstrip(),
        "capitals": data.replace(b"loop_", b"LOOP_").replace(b"data_", b"DATA_"),
        "another block": data + b"#\ndata_other\n_entry.id other\n",
        "a comment first": b"# by a program\n" + data,
        "a byte order mark": b"\xef\xbb\xbf" + data,
    }


@pytest.mark.parametrize("name", variants())
def test_any_way_of_writing_gives_the_same_atoms(name):
    (plain,), facts = opened("x.cif", (SAMPLE / "4ou0_A.cif").read_bytes(), LIMIT)
    (chain,), told = opened("x.cif", variants()[name], LIMIT)
    assert facts == told
    assert chain.residues == plain.residues
    assert np.array_equal(chain.coordinates, plain.coordinates)
    assert np.array_equal(chain.place, plain.place)


def test_facts_inside_a_text_field_are_not_believed():
    data = (SAMPLE / "4ou0_A.cif").read_bytes()
    (_,), facts = opened("x.cif", data, LIMIT)
    lie = b"_struct_ref.id 1\n_struct_ref.db_name UNP\n_struct_ref.pdbx_db_accession P99999\n"
    lie = b"_struct.details\n;\n#\n" + lie + b"#\n;\n\n"
    begin = data.index(b"\nloop_\n_atom_site") + 1
    (_,), told = opened("x.cif", data[:begin] + lie + data[begin:], LIMIT)
    assert told == facts
