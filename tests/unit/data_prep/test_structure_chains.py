"""Which atoms and residues of a chain are taken, whose they are, and what an AlphaFold model has beside them."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.records import Rejection, StructureRecord
from data_prep.sources.coordinates.states import states
from data_prep.sources.files import Slice
from data_prep.sources.structures import Structures
from pretrain.places import Place
from tests.pack import PACK

needs_pack = pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not beside the checkout")
NAMES = ("ALA", "CYS", "ASP", "GLU", "PHE", "GLY", "HIS", "ILE", "LYS", "LEU")
BACKBONE = ("N", "CA", "C")
TAGS = (
    "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id "
    "pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"
)
COLUMNS = TAGS.split()


def atom(name: str, residue: str, place, *, chain="A", alt=".", occupancy=1.0, x=0.0, b=50.0, **more) -> str:
    """A row of `_atom_site`; the label number is the author's unless `number` says otherwise."""
    told = {"code": "?", "number": place, "part": chain, "entity": 1, "model": 1, "group": "ATOM"} | more
    y = 3.8 * float(place) if isinstance(place, int) else 0.0
    row = (told["group"], 1, name[0], name, alt, residue, told["part"], told["entity"], place, told["code"], x, y, 0.0)
    return " ".join(map(str, (*row, occupancy, b, told["number"], chain, told["model"])))


def residues(count: int = 10, first: int = 1, **more) -> list[str]:
    return [
        atom(name, NAMES[i % 10], first + i, x=float(j), **more)
        for i in range(count)
        for j, name in enumerate(BACKBONE)
    ]


def cif(rows: list[str], facts: str = "") -> str:
    return f"data_1ABC\n_entry.id 1ABC\n{facts}\nloop_\n" + "\n".join(
        [*(f"_atom_site.{column}" for column in COLUMNS), *rows, ""]
    )


def items(folder: Path, content: str | bytes, name: str = "x.cif", **options) -> list:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    root = Place(str(folder))
    options = {"on_error": "stop", "min_residues": 5, **options}
    return list(Structures(files="*", **options).read(root, Slice((name,)), root))


def read(folder: Path, content: str | bytes, name: str = "x.cif", **options) -> list[StructureRecord]:
    return [item for item in items(folder, content, name, **options) if isinstance(item, StructureRecord)]


def test_a_conformer_is_taken_whole_by_its_summed_occupancy(tmp_path):
    """CA alone would say B, N and C with it say A; what has no letter belongs to both."""
    rows = residues()
    rows[12:15] = [
        atom("N", "PHE", 5, alt="A", occupancy=0.6, x=10.0),
        atom("N", "PHE", 5, alt="B", occupancy=0.4, x=20.0),
        atom("CA", "PHE", 5, alt="A", occupancy=0.45, x=11.0),
        atom("CA", "PHE", 5, alt="B", occupancy=0.55, x=21.0),
        atom("C", "PHE", 5, x=2.0),
    ]
    (record,) = read(tmp_path, cif(rows))
    assert record.coordinates[4, :, 0].tolist() == [10.0, 11.0, 2.0]
    rows[14] = atom("CA", "PHE", 5, alt="A", occupancy=0.1, x=11.0)
    (record,) = read(tmp_path, cif(rows))
    assert record.coordinates[4, :, 0].tolist() == [20.0, 21.0, 2.0]


def test_of_equal_conformers_the_first_is_taken(tmp_path):
    rows = residues()
    rows[13:14] = [atom("CA", "PHE", 5, alt=letter, occupancy=0.5, x=x) for letter, x in (("B", 8.0), ("A", 7.0))]
    (record,) = read(tmp_path, cif(rows))
    assert record.coordinates[4, 1, 0] == 8.0


@pytest.mark.parametrize("interleaved", [False, True])
def test_of_residues_at_one_place_the_better_occupied_is_taken(tmp_path, interleaved):
    """Microheterogeneity, whose atoms some files list by name and others by residue."""
    rows = residues()
    both = [
        atom(name, residue, 5, alt=alt, occupancy=occupancy, x=float(j))
        for j, name in enumerate(BACKBONE)
        for residue, alt, occupancy in (("SER", "A", 0.4), ("TRP", "B", 0.6))
    ]
    rows[12:15] = both if interleaved else sorted(both, key=lambda row: row.split()[5])
    (record,) = read(tmp_path, cif(rows))
    assert record.letters == "ACDEWGHIKL"
    assert record.mask.all()


def test_conformers_at_the_end_of_a_chain_belong_to_their_residues(tmp_path):
    rows = residues()
    rows[12:15] = [atom(name, "PHE", 5, alt="A", occupancy=0.3) for name in BACKBONE]
    rows += [atom(name, "PHE", 5, alt="B", occupancy=0.7, x=5.0) for name in BACKBONE]
    (record,) = read(tmp_path, cif(rows))
    assert record.letters == "ACDEFGHIKL"
    assert record.coordinates[4, :, 0].tolist() == [5.0, 5.0, 5.0]


def test_insertion_codes_are_residues_of_their_own(tmp_path):
    rows = [
        atom(name, NAMES[i % 10], i + 1, number=min(i + 1, 5), code="ABCDEF"[i - 5] if i > 4 else "?", x=float(j))
        for i in range(10)
        for j, name in enumerate(BACKBONE)
    ]
    (record,) = read(tmp_path, cif(rows))
    assert record.number.tolist() == list(range(1, 11))  # places in the sequence, which know no codes
    lines = [
        f"ATOM  {3 * i + j:>5}  {name:<3} {NAMES[i]} A{min(i + 1, 5):>4}{'ABCDEF'[i - 5] if i > 4 else ' '}   "
        f"{float(j):8.3f}{3.8 * i:8.3f}{0.0:8.3f}  1.00 50.00           {name[0]}\n"
        for i in range(10)
        for j, name in enumerate(BACKBONE)
    ]
    (record,) = read(tmp_path, "".join(lines) + "TER\nEND\n", "y.pdb")
    assert record.letters == "ACDEFGHIKL"
    assert record.number.tolist() == list(range(10))  # the author's repeat


@pytest.mark.parametrize(("name", "letter"), [("MSE", "M"), ("SEP", "S"), ("PTR", "Y"), ("TPO", "T"), ("HYP", "P")])
def test_modified_residues_are_their_parents(tmp_path, name, letter):
    rows = residues()
    rows[12:15] = [atom(each, name, 5, group="HETATM") for each in BACKBONE]
    (record,) = read(tmp_path, cif(rows))
    assert record.letters == f"ACDE{letter}GHIKL"


def test_what_no_table_knows_is_x(tmp_path):
    rows = residues()
    rows[12:15] = [atom(each, "ZZZ", 5, group="HETATM") for each in BACKBONE]
    (record,) = read(tmp_path, cif(rows))
    assert record.letters == "ACDEXGHIKL"


def test_ligands_and_water_are_no_residues(tmp_path):
    rows = [*residues(), atom("N", "NAG", ".", number=300, group="HETATM"), atom("O", "HOH", ".", number=400)]
    (record,) = read(tmp_path, cif(rows))
    assert record.letters == "ACDEFGHIKL"


def test_a_chain_of_d_amino_acids_is_refused_by_name(tmp_path):
    mirrored = ("DAL", "DCY", "DAS", "DGL", "DPN", "GLY", "DHI", "DIL", "DLY", "DLE")
    rows = [atom(name, mirrored[i], i + 1, x=float(j)) for i in range(10) for j, name in enumerate(BACKBONE)]
    (refused, _) = items(tmp_path, cif(rows + residues(chain="B")), on_error="reject")[::2]
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.key, refused.position) == ("d_peptide", "pdb_1abc_A", "chain A")


def test_author_s_chains_name_what_label_s_chains_part(tmp_path):
    rows = residues(chain="H", part="A") + residues(chain="L", part="B", entity=2)
    assert [record.id for record in read(tmp_path, cif(rows))] == ["1abc_H", "1abc_L"]


def test_a_file_without_label_numbers(tmp_path):
    """As many programs write it: the author's numbers, and water among the atoms."""
    water = atom("O", "HOH", 400, group="HETATM")
    rows = [row.split() for row in [*residues(first=-3), water]]
    kept = [i for i, column in enumerate(COLUMNS) if column not in ("label_seq_id", "label_entity_id", "label_asym_id")]
    text = "data_x\nloop_\n" + "\n".join(f"_atom_site.{COLUMNS[i]}" for i in kept)
    text += "\n" + "\n".join(" ".join(row[i] for i in kept) for row in rows) + "\n"
    (record,) = read(tmp_path, text)
    assert record.number.tolist() == list(range(-3, 7))
    assert record.letters == "ACDEFGHIKL"


REFERENCES = """loop_
_struct_ref.id
_struct_ref.entity_id
_struct_ref.db_name
_struct_ref.pdbx_db_accession
1 1 UNP P11111
2 1 UNP P22222
3 2 GB  AAA00001
loop_
_struct_ref_seq.ref_id
_struct_ref_seq.pdbx_strand_id
_struct_ref_seq.db_align_beg
_struct_ref_seq.db_align_end
_struct_ref_seq.seq_align_beg
_struct_ref_seq.seq_align_end
1 A 101 110 1 10
2 A 31 40 13 22
1 A 201 210 25 34
3 B 1 10 1 10
"""


def test_a_fusion_gives_each_protein_its_own_residues(tmp_path):
    """As crystallographers write a receptor with lysozyme in its loop: linkers (11, 12, 23, 24) belong to neither."""
    rows = residues(34) + residues(10, chain="B", entity=2)
    receptor, lysozyme, antibody = read(tmp_path, cif(rows, REFERENCES))
    assert (receptor.key, receptor.id, receptor.begin, receptor.end) == ("P11111", "1abc_A", 101, 210)
    assert receptor.number.tolist() == [*range(1, 11), *range(25, 35)]
    assert receptor.shift == 99  # of the first of two segments that are equally long
    assert (lysozyme.key, lysozyme.begin, lysozyme.end, lysozyme.shift) == ("P22222", 31, 40, 17)
    assert lysozyme.number.tolist() == list(range(13, 23))
    assert antibody.key == "pdb_1abc_B"  # GenBank's names are not UniProt's


def test_a_fusion_in_a_pdb_file_counts_in_the_author_s_numbers(tmp_path):
    lines = [
        "DBREF  1ABC A  101   110  UNP    P11111   AAAA_HUMAN     101    110             \n",
        "DBREF  1ABC A 1031  1040  UNP    P22222   BBBB_HUMAN      31     40             \n",
    ]
    for first in (101, 1031):
        lines += [
            f"ATOM  {3 * i + j:>5}  {name:<3} {NAMES[i]} A{first + i:>4}    "
            f"{float(j):8.3f}{3.8 * i:8.3f}{0.0:8.3f}  1.00 50.00           {name[0]}\n"
            for i in range(10)
            for j, name in enumerate(BACKBONE)
        ]
    first, second = read(tmp_path, "".join([*lines, "TER\n", "END\n"]), "x.pdb")
    assert (first.key, first.number.tolist(), first.shift) == ("P11111", list(range(101, 111)), -1)
    assert (second.key, second.number.tolist(), second.shift) == ("P22222", list(range(1031, 1041)), -1001)


def test_a_manifest_has_the_last_word_about_a_fusion_too(tmp_path):
    (tmp_path / "known.tsv").write_text("file\tuniprot\nx.cif\tP33333\n")
    (record,) = read(tmp_path, cif(residues(34), REFERENCES), manifest="known.tsv")
    assert (record.key, len(record.letters)) == ("P33333", 34)


def test_without_ranges_the_entity_tells_the_protein(tmp_path):
    facts = REFERENCES[: REFERENCES.index("loop_\n_struct_ref_seq")].replace("2 1 UNP P22222\n", "")
    rows = residues() + residues(chain="B", entity=2)
    assert [record.key for record in read(tmp_path, cif(rows, facts))] == ["P11111", "pdb_1abc_B"]


def test_fragments_are_numbered_and_placed(tmp_path):
    facts = """_struct_ref.id 1
_struct_ref.entity_id 1
_struct_ref.db_name UNP
_struct_ref.pdbx_db_accession Q8WZ42
_struct_ref_seq.ref_id 1
_struct_ref_seq.pdbx_strand_id A
_struct_ref_seq.db_align_beg 401
_struct_ref_seq.db_align_end 410
_struct_ref_seq.seq_align_beg 1
_struct_ref_seq.seq_align_end 10
"""
    (record,) = read(tmp_path, cif(residues(), facts), "AF-Q8WZ42-F3-model_v4.cif")
    assert (record.key, record.id, record.fragment) == ("Q8WZ42", "AF-Q8WZ42-F3", 3)
    assert (record.begin, record.end, record.shift) == (401, 410, 399)
    for name, fragment in (("AF-Q8WZ42-F12.cif", 12), ("AF-Q8WZ42-F1-model_v6.cif", 1), ("x.cif", 0)):
        assert read(tmp_path, cif(residues(), facts), name)[0].fragment == fragment


def confident(values: list[float]) -> str:
    return cif(
        [
            atom(name, NAMES[i % 10], i + 1, x=float(j), b=b)
            for i, b in enumerate(values)
            for j, name in enumerate(BACKBONE)
        ]
    )


def test_models_below_the_floor_are_refused_with_their_value(tmp_path):
    content, name = confident([40.0] * 5 + [60.0] * 5), "AF-P12345-F1-model_v4.cif"
    (record,) = read(tmp_path, content, name, min_plddt=50.0)
    assert record.confidence is not None
    assert record.confidence.tolist() == [40.0] * 5 + [60.0] * 5
    refused, _ = items(tmp_path, content, name, min_plddt=50.1)
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.key, refused.position) == ("low_confidence", "P12345", "chain A")
    assert "mean pLDDT 50.0, min_plddt is 50.1" in refused.detail
    assert read(tmp_path, content, "1abc.cif", min_plddt=99.0)  # an experiment has no pLDDT


def test_residues_below_the_floor_are_left_out_of_everything(tmp_path):
    content, name = confident([90.0, 90.0, 30.0, 90.0, 90.0, 20.0, 90.0, 90.0, 90.0, 90.0]), "AF-P12345-F1-model_v4.cif"
    pae = [[(7 * i + j) % 31 for j in range(10)] for i in range(10)]
    (tmp_path / "AF-P12345-F1-predicted_aligned_error_v4.json").write_text(
        json.dumps([{"predicted_aligned_error": pae}])
    )
    (whole,) = read(tmp_path, content, name)
    (record,) = read(tmp_path, content, name, min_residue_plddt=50.0)
    kept = [0, 1, 3, 4, 6, 7, 8, 9]
    assert record.letters == "".join(whole.letters[i] for i in kept)
    assert record.number.tolist() == [i + 1 for i in kept]
    assert np.array_equal(record.coordinates, whole.coordinates[kept])
    assert record.states == "".join((whole.states or "")[i] for i in kept)
    assert record.pae is not None
    assert record.pae.tolist() == [[pae[i][j] for j in kept] for i in kept]
    refused, _ = items(tmp_path, content, name, min_residue_plddt=50.0, min_residues=9)
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.detail) == ("low_confidence", "AF-P12345-F1: 8 residues of pLDDT 50 and more")


def test_a_damaged_file_of_aligned_errors_costs_only_these(tmp_path):
    (tmp_path / "AF-P12345-F1-predicted_aligned_error_v4.json").write_text('[{"predicted_aligned_error": [[1, 2]]}]')
    refused, record, _ = items(tmp_path, confident([90.0] * 10), "AF-P12345-F1-model_v4.cif")
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.key) == ("pae_shape", "P12345")
    assert refused.source == "AF-P12345-F1-predicted_aligned_error_v4.json"
    assert record.pae is None
    (record, _) = items(tmp_path, confident([90.0] * 10), "AF-P12345-F1-model_v4.cif", pae="ignore")
    assert record.pae is None


@needs_pack
def test_a_real_model_with_its_aligned_errors_and_states():
    root = Place(str(PACK / "afdb"))
    name = "AF-P29373-F1-model_v4.cif.gz"
    record, _ = Structures(files=name).read(root, Slice((name,)), root)
    assert isinstance(record, StructureRecord)
    assert (record.key, record.id, record.fragment, len(record.letters)) == ("P29373", "AF-P29373-F1", 1, 138)
    assert (record.begin, record.end, record.shift) == (1, 138, -1)
    assert record.pae is not None
    assert record.pae.shape == (138, 138)
    assert record.states is not None
    placed = states(record.coordinates, record.mask, record.atoms)  # without CB a few differ
    assert 0.9 < np.mean([a == b for a, b in zip(record.states, placed, strict=True)]) < 1.0
    (bare, _) = Structures(files=name, states=False, pae="ignore").read(root, Slice((name,)), root)
    assert isinstance(bare, StructureRecord)
    assert (bare.states, bare.pae) == (None, None)


@needs_pack
def test_any_version_in_the_name_and_none():
    root = Place(str(PACK / "afdb"))
    names = root.find("AF-*model*")
    assert {name.partition("model")[2].partition(".")[0] for name in names} == {"", "_v3", "_v4", "_v6"}
    found = [item for name in names for item in Structures(files=name, states=False).read(root, Slice((name,)), root)]
    records = [item for item in found if isinstance(item, StructureRecord)]
    assert len(records) == len(names)
    assert {record.fragment for record in records} == {1}
    assert all(record.confidence is not None for record in records)
    unsaid = {record.key for record in records if record.begin is None}
    assert unsaid == {"P17538"}  # whose file has lost its DBREF
    assert all((record.begin, record.end) == (1, len(record.letters)) for record in records if record.key not in unsaid)


def test_atoms_are_some_of_the_backbone():
    with pytest.raises(ValueError, match="atoms are some of N, CA, C, O, each once; given are CA, CB"):
        Structures(files="x", atoms=("CA", "CB"))


def test_an_archive_of_one_model_in_two_formats_gives_two_records(tmp_path):
    """The join then keeps the first, and counts the other as a duplicate."""
    import tarfile

    for name in ("AF-P12345-F1-model_v4.cif.gz", "AF-P12345-F1-model_v4.cif"):
        content = confident([90.0] * 10).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for path in sorted(tmp_path.glob("*.cif*")):
            archive.add(path, path.name)
    root = Place(str(tmp_path))
    for members, count in (("*", 2), ("*.cif.gz", 1)):
        source = Structures(files="x.tar", members=members, min_residues=5)
        found = list(source.read(root, Slice(("x.tar",)), root))
        assert [item.id for item in found if isinstance(item, StructureRecord)] == ["AF-P12345-F1"] * count
