"""Files that someone points at become samples, or a clear error."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from data_prep.proteins import read
from pretrain.sample import Sample

FASTA = ">sp|P12345|NAME_HUMAN a protein\nMKTAYIAK\nQRQ*\n\n>A0A024R1R8.2 other\nmk tx\n"
RESIDUES = {"M": "MET", "K": "LYS", "T": "THR", "A": "ALA"}


def pdb(letters: str, numbers: list[int], chain: str = "A") -> str:
    """Backbone atoms on a line, 3.8 Å a residue."""
    lines, serial = [], 0
    for letter, number in zip(letters, numbers, strict=True):
        for i, atom in enumerate(("N", "CA", "C", "O")):
            serial += 1
            place = f"{3.8 * number + i:8.3f}{100.0:8.3f}{-i:8.3f}"
            residue = f"{RESIDUES[letter]} {chain}{number:4d}"
            lines.append(f"ATOM  {serial:5d}  {atom:<3} {residue}    {place}  1.00 50.00           {atom[0]}")
    return "\n".join([*lines, "TER", "END", ""])


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["some.fasta", "some.FA", "some.faa.gz"])
def test_fasta(tmp_path: Path, name: str) -> None:
    first, second = read(write(tmp_path / name, FASTA))
    assert (first.key, first.sequence) == ("P12345", "MKTAYIAKQRQ")
    assert (second.key, second.sequence) == ("A0A024R1R8-2", "MKTX")  # a key has no dots


@pytest.mark.parametrize("name", ["1abc.pdb", "1abc.ent.gz"])
def test_a_structure_brings_its_sequence_and_its_gaps(tmp_path: Path, name: str) -> None:
    (sample,) = read(write(tmp_path / name, pdb("MKTAM", [7, 8, 9, 12, 13])))
    (structure,) = sample.structures
    assert sample.sequence == "MKTXXAM" and structure.residue.tolist() == [0, 1, 2, 5, 6]
    assert structure.letters == "MKTAM" and not structure.mismatch(sample.sequence).any()
    present = structure.coordinates[structure.mask]
    assert structure.mask.all() and np.abs(present.mean(axis=0)).max() < 1e-4
    assert np.linalg.norm(structure.coordinates[1, 1] - structure.coordinates[0, 1]) == pytest.approx(3.8, abs=1e-3)


def test_a_folder_of_structures_gives_every_chain(tmp_path: Path) -> None:
    two = pdb("MKT", [1, 2, 3]).replace("END\n", "") + pdb("AAAA", [1, 2, 3, 4], "B")
    write(tmp_path / "2xyz.pdb", two)
    write(tmp_path / "1abc.ent.gz", pdb("MK", [1, 2]))
    (tmp_path / "notes.txt").write_text("not a structure")
    found = {sample.key: sample.sequence for sample in read(tmp_path)}
    assert set(found.values()) == {"AAAA", "MK", "MKT"} and len(found) == 3
    assert {key.rpartition("_")[2] for key in found} == {"A", "B"}


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.fasta", "", "empty"),
        ("a.fasta", "MKT", "begins with '>'"),
        ("a.fasta", ">\nMKT\n", "without a name"),
        ("a.fasta", ">a\n>b\nMK\n", "a has no sequence"),
        ("a.fasta", ">a\nMK1-T\n", "'-' '1' in a sequence"),
        ("a.pdb", "HEADER\nEND\n", "no atoms"),
        ("a.cif", "data_x\n_entry.id x\n", "no atoms"),
        ("a.cif", "loop_\n", "not a readable"),
        ("a.docx", "x", "this is none"),
    ],
)
def test_what_cannot_be_read_is_a_clear_error(tmp_path: Path, name: str, text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read(write(tmp_path / name, text))


def test_a_truncated_gzip_is_a_clear_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fasta.gz", FASTA * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="gzip"):
        read(path)


@pytest.mark.parametrize("end", ["*", "**", "*\n", " *\n\n"])
def test_a_stop_at_the_end_is_no_residue(tmp_path: Path, end: str) -> None:
    (sample,) = read(write(tmp_path / "a.fasta", f">a\nMKT\nAYI{end}"))
    assert sample.sequence == "MKTAYI"
    with pytest.raises(ValueError, match=r"'\*' in a sequence"):
        read(write(tmp_path / "a.fasta", f">a\nMKT*\nAYI{end}"))


def test_an_empty_path_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^an empty path; give a FASTA file"):
        read("")
    with pytest.raises(ValueError, match=rf"^the current folder, {tmp_path}, has neither structures"):
        read(Path(""))


def test_what_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing at"):
        read(tmp_path / "gone")
    with pytest.raises(ValueError, match="neither structures"):
        read(tmp_path)


def test_a_data_set_gives_all_of_its_samples(tmp_path: Path) -> None:
    """One prepared from the same files, without Ray."""
    from data_prep.prepare import PrepareConfig, prepare

    write(tmp_path / "some.fasta", ">P1\n" + "MKTAYIAKQR" * 5 + "\n>P2\n" + "AAKTAYIMQR" * 5 + "\n")
    source = {"kind": "fasta", "files": "some.fasta"}
    config = PrepareConfig.model_validate(
        {
            "name": "some",
            "root": str(tmp_path),
            "sources": [source],
            "partitions": 2,
            "workers": 0,
            "split": {"method": "hash"},
        }
    )
    prepare(config, tmp_path / "data", quiet=True)
    found = {sample.key: sample for sample in read(tmp_path / "data")}
    assert set(found) == {"P1", "P2"} and isinstance(found["P1"], Sample)
    assert found["P1"].sequence == "MKTAYIAKQR" * 5
