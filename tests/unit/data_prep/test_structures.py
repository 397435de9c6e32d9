"""Structures from mmCIF and PDB: what is taken, whose it is, and what each kind of damage is called."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from data_prep.records import FileSeen, Rejection, StructureRecord
from data_prep.sources.files import Slice, SourceError, resolve
from data_prep.sources.structures import ManifestColumns, Structures
from pretrain.places import Place

SAMPLE = resolve("package:data_prep/sample") / "structures"
NAMES = ("ALA", "CYS", "ASP", "GLU", "PHE", "GLY", "HIS", "ILE", "LYS", "LEU")


def atom(serial, name, residue, number, *, chain="A", alt=" ", occ=1.0, b=50.0, x=0.0, record="ATOM") -> str:
    return (
        f"{record:<6}{serial:>5}  {name:<3}{alt}{residue:>3} {chain}{number:>4}    "
        f"{x:8.3f}{float(number):8.3f}{0.0:8.3f}{occ:6.2f}{b:6.2f}          {name[0]:>2}\n"
    )


def pdb(count: int = 10, chain: str = "A") -> str:
    lines = [
        atom(3 * i + j, name, NAMES[i % 10], i + 1, chain=chain, x=float(j))
        for i in range(count)
        for j, name in enumerate(("N", "CA", "C"))
    ]
    return "".join(lines) + "TER\n"


def read(tmp_path: Path, content: str | bytes, name: str = "x.pdb", **options) -> list[StructureRecord]:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    options = {"on_error": "stop", "min_residues": 5, **options}
    return [item for item in items(tmp_path, name, **options) if isinstance(item, StructureRecord)]


def items(folder: Path | Place, name: str, **options) -> list:
    root = Place(str(folder))
    return list(Structures(files="*", **options).read(root, Slice((name,)), root))


def test_backbone_of_a_chain_without_accession(tmp_path):
    (record,) = read(tmp_path, pdb() + "END\n")
    assert (record.key, record.id, record.letters) == ("pdb_x_A", "x_A", "ACDEFGHIKL")
    assert record.coordinates.shape == (10, 3, 3)
    assert record.coordinates[4, 1].tolist() == [1.0, 5.0, 0.0]
    assert record.mask.all()
    assert record.number.tolist() == list(range(1, 11))
    assert record.confidence is None


def test_missing_atoms_are_masked_and_other_atoms_ignored(tmp_path):
    content = pdb().replace(atom(13, "CA", "PHE", 5, x=1.0), atom(13, "CB", "PHE", 5, x=9.0))
    (record,) = read(tmp_path, content)
    assert record.mask[4].tolist() == [True, False, True]
    assert record.coordinates[4, 1].tolist() == [0.0, 0.0, 0.0]


def test_the_better_occupied_location_is_taken(tmp_path):
    line = atom(13, "CA", "PHE", 5, x=1.0)
    both = atom(13, "CA", "PHE", 5, alt="A", occ=0.3, x=7.0) + atom(14, "CA", "PHE", 5, alt="B", occ=0.7, x=8.0)
    (record,) = read(tmp_path, pdb().replace(line, both))
    assert record.coordinates[4, 1, 0] == 8.0


def test_modified_residues_count_as_their_parents(tmp_path):
    content = pdb().replace("ATOM     12  N   PHE A   5", "HETATM   12  N   MSE A   5")
    content = content.replace("ATOM     13  CA  PHE A   5", "HETATM   13  CA  MSE A   5")
    content = content.replace("ATOM     14  C   PHE A   5", "HETATM   14  C   MSE A   5")
    (record,) = read(tmp_path, content)
    assert record.letters == "ACDEMGHIKL"


def test_a_file_named_by_pdb_id_and_chain(tmp_path):
    (record,) = read(tmp_path, pdb(), "6PWJ_A.pdb")
    assert record.id == "6pwj_A"


def test_first_model_and_every_chain_of_enough_residues(tmp_path):
    models = "".join(f"MODEL     {m:>4}\n{pdb()}{pdb(8, 'B')}{pdb(3, 'C')}ENDMDL\n" for m in (1, 2))
    assert [record.id for record in read(tmp_path, models)] == ["x_A", "x_B"]
    refused = [item for item in items(tmp_path, "x.pdb") if isinstance(item, Rejection)]
    assert [(r.reason, r.key) for r in refused] == [("short_chain", f"pdb_x_{c}") for c in "ABC"]


def test_dbref_gives_accession_range_and_shift(tmp_path):
    dbref = "DBREF  1ABC A    1    10  UNP    P12345   TEST_HUMAN      19     28             \n"
    (record,) = read(tmp_path, f"HEADER    {'TEST':<40}01-JAN-00   1ABC              \n" + dbref + pdb())
    assert (record.key, record.id) == ("P12345", "1abc_A")
    assert (record.begin, record.end, record.shift) == (19, 28, 17)


def test_dbref1_and_dbref2(tmp_path):
    lines = (
        "DBREF1 1ABC A    1    10  UNP                  A0A023GRW4_9           \n"
        f"DBREF2 1ABC A     {'A0A023GRW4':<22}     {101:>10}  {110:>10}\n"
    )
    (record,) = read(tmp_path, lines + pdb())
    assert (record.key, record.begin, record.end, record.shift) == ("A0A023GRW4", 101, 110, 99)


def test_alphafold_models_are_known_by_name_and_have_confidence(tmp_path):
    (record,) = read(tmp_path, gzip.compress(pdb().encode()), "AF-P12345-F1-model_v4.pdb.gz")
    assert (record.key, record.id) == ("P12345", "AF-P12345-F1")
    assert record.confidence is not None
    assert np.unique(record.confidence).tolist() == [50.0]


def test_an_isoform_s_model_belongs_to_the_isoform(tmp_path):
    (record,) = read(tmp_path, pdb(), "AF-P12345-2-F1-model_v6.pdb")
    assert (record.key, record.id) == ("P12345-2", "AF-P12345-2-F1")
    assert record.confidence is not None


def test_an_experiment_whose_title_speaks_of_alphafold_has_no_confidence(tmp_path):
    title = "TITLE     A COMPLEX, PHASED BY AN ALPHAFOLD MODEL\n"
    (record,) = read(tmp_path, title + "EXPDTA    X-RAY DIFFRACTION\n" + pdb())
    assert record.confidence is None
    (record,) = read(tmp_path, title.replace("A COMPLEX, PHASED BY AN", "PREDICTION OF") + pdb())
    assert record.confidence is not None


@pytest.mark.parametrize("place", ["nan", "inf", "1e12", "?"])
def test_an_atom_that_is_nowhere_is_absent(tmp_path, place):
    lines = SAMPLE.read("4ou0_A.cif").decode().splitlines()
    (whole,) = read(tmp_path, "\n".join(lines), "x.cif")
    at = next(i for i, line in enumerate(lines) if line.startswith("ATOM"))
    words = lines[at].split()
    words[10] = place  # y: of the three, not the first
    lines[at] = " ".join(words)
    (record,) = read(tmp_path, "\n".join(lines), "x.cif")
    assert not record.mask[0, 0]
    assert record.mask.sum() == whole.mask.sum() - 1
    assert np.abs(record.coordinates).max() < 1000


def test_a_chain_filed_under_a_model_belongs_to_its_protein(tmp_path):
    (tmp_path / "named.tsv").write_text("file\tuniprot\nx.pdb\tAF-Q12809-F1\n")
    (record,) = read(tmp_path, pdb(), manifest="named.tsv")
    assert record.key == "Q12809"


def test_the_name_of_a_model_is_believed_before_its_dbref(tmp_path):
    """As AlphaFold DB writes it: a ten-letter accession shifts the columns."""
    dbref = "DBREF  XXXX A    1   384  UNP    A0A2Y9FRR4 A0A2Y9FRR4_PHYMC      1    384\n"
    (record,) = read(tmp_path, dbref + pdb(), "AF-A0A2Y9FRR4-F1-model_v4.pdb")
    assert (record.key, record.begin, record.end) == ("A0A2Y9FRR4", 1, 384)
    shortened = "DBREF       A    1   384  UNP    A0A2Y9FR 4 A0A2Y9FRR4     0      1             \n"  # by a program
    (record,) = read(tmp_path, shortened + pdb(), "AF-A0A2Y9FRR4-F1-model_v4.pdb")
    assert (record.key, record.begin, record.end) == ("A0A2Y9FRR4", None, None)


def test_the_folder_or_a_manifest_may_name_the_protein(tmp_path):
    (record,) = read(tmp_path, pdb(), "Q11111/x.pdb", accession="folder")
    assert record.key == "Q11111"
    (tmp_path / "m.tsv").write_text("file\tuniprot\tres\nelse/x.pdb\tQ22222\t1.8\n")
    (record,) = read(tmp_path, pdb(), manifest="m.tsv", columns=ManifestColumns(resolution="res"))
    assert (record.key, record.resolution) == ("Q22222", 1.8)
    (tmp_path / "m.tsv").write_text("pdb\tchain\tuniprot\tfrom\nX\tA\tQ33333\t7\n")
    columns = ManifestColumns(file="", pdb="pdb", chain="chain", begin="from")
    (record,) = read(tmp_path, pdb(), manifest="m.tsv", columns=columns)
    assert (record.key, record.begin) == ("Q33333", 7)
    (tmp_path / "n.tsv").write_text("pdb\tchain\tuniprot\tfrom\nX\ta\tQ33333\t7\n")
    (record,) = read(tmp_path, pdb(), manifest="n.tsv", columns=columns)  # chain a is not chain A
    assert record.key == "pdb_x_A"
    (tmp_path / "o.tsv").write_text("pdb\tchain\tuniprot\tfrom\nX\tA\tQ33333\tseven\n")
    with pytest.raises(SourceError, match=r"row of x_A: .*'seven'"):
        read(tmp_path, pdb(), manifest="o.tsv", columns=columns)


def test_mmcif_with_a_reference():
    record, seen = items(SAMPLE, "4phj_B.cif")
    assert isinstance(record, StructureRecord)
    assert isinstance(seen, FileSeen)
    assert (record.key, record.id) == ("P04632", "4phj_B")
    assert record.begin is not None
    assert len(record.letters) == len(record.number) == len(record.mask)


def test_numbers_that_repeat_are_replaced(tmp_path):
    content = pdb().replace("GLY A   6 ", "GLY A   5A")
    (record,) = read(tmp_path, content)
    assert record.number.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (b"", "x.cif", "empty_file"),
        (b"data_x\n_entry.id x\n", "x.cif", "no_atoms"),
        (b"this is not a CIF", "x.cif", "unparsable_structure"),
        (b"HEADER    NOTHING\nEND\n", "x.pdb", "no_atoms"),
        (gzip.compress(pdb().encode())[:-30], "x.pdb.gz", "truncated_gzip"),
        ("".join(atom(i, "O", "HOH", i, record="HETATM") for i in range(1, 9)).encode(), "x.pdb", "no_protein_chain"),
    ],
)
def test_damage_stops_or_is_rejected(tmp_path, content, name, reason):
    with pytest.raises(SourceError, match=name) as error:
        read(tmp_path, content, name)
    assert error.value.reason == reason
    (refused,) = items(tmp_path, name)
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.key) == (reason, name)
