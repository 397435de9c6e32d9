"""3Di states: letter for letter mini3di's, and Foldseek's own where its output is known."""

from pathlib import Path
from typing import Any

import gemmi
import mini3di
import numpy as np
import pytest
from Bio.PDB.PDBParser import PDBParser

from data_prep.sources.coordinates import states as module
from data_prep.sources.coordinates.states import states
from data_prep.sources.files import resolve
from tests.pack import PACK

SAMPLE = resolve("package:data_prep/sample") / "structures"
BACKBONE, WITH_BETA = ("N", "CA", "C"), ("N", "CA", "C", "CB")
PEER = mini3di.Encoder()
FOLDSEEK = {  # as `foldseek createdb` wrote them; taken from the test data of biotite, which holds itself to them too
    ("1aki", "A"): "DADDLQRVLVLCVVLPPACQVHDHSLLVSQQLCQPPVRAQADWDADPQQWIQGGSNRHIQQEDAPQPRGDNGNNPVVYHSVVSSDPRCPSVVSRVSVVC"
    "VPPVHVVVRVSSVVPPPPDPSVVSCPPHDD",
    ("5zng", "A"): "DVQAFFKKKWKKFAPQQDPVSLVVLQVLLCPFPFWDHWDQDDPNSGMITTIGGPGDVVVSQVRRCVVRVDMDTDDMDGD",
    (
        "1dix",
        "A",
    ): "DDDPQLAWWKKWKWWFVLQVDQAPDHWAFAVVDRADRFIATQAIAGHHLVQHGAWQQPPPPFDDCVVVVVCVVVCQHHHGGRHPPHYNCVVRLRRRCRTG"
    "VVSLCVQQVDPNSRVVLSSVVCVVQRLQVLCVVLVHHLPWFWAFPVSSQVSSCVVPVEGKDFAWDAGHVGFTATTMIIWMGGSNSPDTDHDSDDHDHDRDTIHTRHGD",
}


def read(path: str, chain: str | int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A chain's residues with N, CA, C and CB: coordinates and mask."""
    residues = gemmi.read_structure(path)[0][chain].get_polymer()
    coordinates = np.zeros((len(residues), 4, 3), dtype=np.float32)
    mask = np.zeros((len(residues), 4), dtype=bool)
    for i, residue in enumerate(residues):
        for slot, name in enumerate(WITH_BETA):
            if name in residue:
                coordinates[i, slot] = residue[name][0].pos.tolist()
                mask[i, slot] = True
    return coordinates, mask


def peer(coordinates: np.ndarray, mask: np.ndarray) -> str:
    """mini3di on the same arrays; it wants NaN where an atom is absent."""
    n, ca, c, *beta = np.where(mask[..., None], coordinates, np.nan).astype(np.float32).transpose(1, 0, 2)
    return PEER.build_sequence(PEER.encode_atoms(ca, beta[0] if beta else np.full_like(ca, np.nan), n, c))


def models(count: int) -> list[Path]:
    found = sorted((PACK / "afdb").glob("*.pdb.gz"))
    if not found:
        pytest.skip(f"no AlphaFold DB models under {PACK}")
    return found[:: len(found) // count]


def agreement(a: str, b: str) -> float:
    assert len(a) == len(b)
    return float(np.mean([x == y for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize("entry", FOLDSEEK, ids="_".join)
def test_letters_are_foldseeks_own(entry):
    path = PACK / "pdb" / f"{entry[0]}.cif.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    coordinates, mask = read(str(path), entry[1])
    assert states(coordinates, mask, WITH_BETA) == FOLDSEEK[entry]


def test_letters_are_those_of_mini3dis_own_way_through_biopython():
    structure: Any = PDBParser(QUIET=True).get_structure("x", f"{SAMPLE}/1A8O.pdb")
    expected = PEER.build_sequence(PEER.encode_chain(next(structure.get_chains())))
    coordinates, mask = read(f"{SAMPLE}/1A8O.pdb")
    assert len(expected) > 60 and len(set(expected)) > 8
    assert states(coordinates, mask, WITH_BETA) == expected


def test_chains_of_the_sample_have_mini3dis_letters():
    total = 0
    for name in SAMPLE.find("*_A.cif.gz"):
        coordinates, mask = read(f"{SAMPLE}/{name}")
        letters = states(coordinates[:, :3], mask[:, :3], BACKBONE)
        assert letters == peer(coordinates[:, :3], mask[:, :3]), name
        total += len(letters)
    assert total > 3000


@pytest.mark.parametrize("share", [0.003, 0.03, 0.3, 0.9])
def test_missing_atoms_are_mini3dis_missing_atoms(share):
    draw = np.random.default_rng(7)
    for name in SAMPLE.find("*_A.cif.gz")[:8]:
        coordinates, _ = read(f"{SAMPLE}/{name}")
        mask = draw.random((len(coordinates), 3)) > share
        absent = np.where(mask[..., None], coordinates[:, :3], 0.0).astype(np.float32)
        assert states(absent, mask, BACKBONE) == peer(absent, mask)


def test_real_and_placed_beta_carbons_on_models():
    real, placed = [], []
    for path in models(20):
        coordinates, mask = read(str(path))
        real.append(states(coordinates, mask, WITH_BETA))
        placed.append(states(coordinates[:, :3], mask[:, :3], BACKBONE))
        if len(mask) < 700:
            assert real[-1] == peer(coordinates, mask) and placed[-1] == peer(coordinates[:, :3], mask[:, :3])
    assert 0.955 < agreement("".join(real), "".join(placed)) < 0.985


def test_an_absent_beta_carbon_is_placed():
    coordinates, mask = read(f"{SAMPLE}/1A8O.pdb")
    mask[:, 3] = False
    assert states(coordinates, mask, WITH_BETA) == states(coordinates[:, :3], mask[:, :3], BACKBONE)


def test_order_of_atoms_and_other_atoms_do_not_matter():
    coordinates, mask = read(f"{SAMPLE}/1A8O.pdb")
    mixed, names = [2, 0, 3, 1], ("C", "N", "O", "CA")
    assert states(coordinates[:, mixed], mask[:, mixed], names) == states(coordinates[:, :3], mask[:, :3], BACKBONE)


def test_a_turned_chain_has_the_same_letters_and_its_mirror_image_others():
    coordinates, mask = read(f"{SAMPLE}/1A8O.pdb")
    letters = states(coordinates, mask, WITH_BETA)
    assert states(coordinates[..., [1, 2, 0]], mask, WITH_BETA) == letters
    assert states(coordinates[..., [1, 0, 2]], mask, WITH_BETA) != letters


def test_blocks_change_nothing(monkeypatch):
    coordinates, mask = read(f"{SAMPLE}/1A8O.pdb")
    letters = states(coordinates, mask, WITH_BETA)
    monkeypatch.setattr(module, "CELLS", 100)
    assert states(coordinates, mask, WITH_BETA) == letters


def test_a_chain_too_short_to_meet_itself_has_no_state():
    coordinates, mask = read(f"{SAMPLE}/1A8O.pdb")
    assert [states(coordinates[:n], mask[:n], WITH_BETA) for n in range(4)] == ["", "D", "DD", "DDD"]
    mask[[i for i in range(len(mask)) if i not in (10, 11, 12)]] = False
    assert set(states(coordinates, mask, WITH_BETA)) == {"D"}


def test_without_a_backbone_there_are_no_states():
    with pytest.raises(ValueError, match=r"need N, CA and C; \['C', 'N'\] are not among the atoms"):
        states(np.zeros((30, 1, 3), dtype=np.float32), np.ones((30, 1), dtype=bool), ("CA",))
