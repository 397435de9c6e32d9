"""A chain's place in its sequence: exact, by numbers, by alignment; and what has no place."""

import random

import numpy as np
import pytest

from data_prep.align import SURE, place

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
SEQUENCE = "".join(random.Random(0).choices(LETTERS, k=400))


def other(letter: str) -> str:
    return LETTERS[(LETTERS.index(letter) + 1) % 20]


def mutate(letters: str, *places: int) -> str:
    return "".join(other(letter) if i in places else letter for i, letter in enumerate(letters))


def numbers(*ranges: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.arange(a, b, dtype=np.int32) for a, b in ranges])


def placed(letters: str, number: np.ndarray, begin=None, end=None, shift=None):
    return place(letters, number, SEQUENCE, begin, end, shift, identity=0.95, aligned=0.8)


def test_a_piece_of_the_sequence_is_found_whatever_its_numbers():
    result = placed(SEQUENCE[100:180], numbers((1, 81)))
    assert result.residue.tolist() == list(range(100, 180))
    assert (result.identity, result.aligned) == (1.0, 1.0)


def test_a_repeat_is_placed_in_the_stated_range():
    doubled = SEQUENCE[:60] * 2
    result = place(SEQUENCE[:60], numbers((1, 61)), doubled, 61, 120, None, 0.95, 0.8)
    assert result.residue.tolist() == list(range(60, 120))


def test_an_unobserved_loop_is_placed_by_the_numbers():
    """Letters at a loop's edge often fit on either side of it; numbers know."""
    sequence = SEQUENCE[:50] + "GGGGGGGG" + SEQUENCE[50:100]
    letters = sequence[20:52] + sequence[56:90]  # four of the eight glycines were not observed
    number = numbers((121, 153), (157, 191))
    result = place(letters, number, sequence, 21, 90, None, 0.95, 0.8)
    assert result.residue.tolist() == [*range(20, 52), *range(56, 90)]
    assert result.identity == 1.0


def test_point_mutants_stay_in_place():
    letters = mutate(SEQUENCE[50:150], 10, 60)
    assert SURE >= 2
    result = placed(letters, numbers((51, 151)))
    assert result.residue.tolist() == list(range(50, 150))
    assert result.identity == pytest.approx(0.98)


def test_more_mutants_are_aligned():
    letters = mutate(SEQUENCE[50:250], 10, 40, 60, 90, 120, 150)
    result = placed(letters, numbers((1, 201)))
    assert result.residue.tolist() == list(range(50, 250))
    assert result.identity == pytest.approx(194 / 200)


def test_a_tag_has_no_place_and_is_left_out():
    letters = "MGSSHHHHHHSSGLVPRGSH" + mutate(SEQUENCE[50:250], 90)
    result = placed(letters, numbers((-19, 201)))
    assert result.residue.tolist() == list(range(50, 250))
    assert result.kept[0] == 20
    assert result.aligned == pytest.approx(200 / 220)


def test_a_deletion_in_the_chain_is_a_gap_in_the_map():
    letters = SEQUENCE[50:120] + SEQUENCE[130:250]
    result = placed(letters, numbers((1, 191)))
    assert result.identity == 1.0
    assert len(result.residue) == 190
    assert (np.diff(result.residue) > 1).sum() == 1


def test_a_wrong_range_falls_back_to_the_whole_sequence():
    letters = mutate(SEQUENCE[200:320], 5, 40, 70, 100)
    result = placed(letters, numbers((1, 121)), begin=1, end=120)
    assert result.residue.tolist() == list(range(200, 320))


def test_a_range_that_holds_too_little_of_the_chain_falls_back_too():
    letters = SEQUENCE[20:100] + SEQUENCE[120:250]
    result = placed(letters, numbers((0, 210)), begin=21, end=40)
    assert (result.residue[0], result.residue[-1], result.aligned) == (20, 249, 1.0)


def test_a_range_beyond_the_sequence_is_not_believed():
    result = placed(SEQUENCE[10:60], numbers((1, 51)), begin=900, end=950)
    assert result.residue.tolist() == list(range(10, 60))


def test_a_model_of_the_same_sequence_needs_no_aligner(monkeypatch):
    monkeypatch.setattr("data_prep.align._gapped", None)
    result = placed(SEQUENCE, numbers((1, 401)))
    assert (result.residue.tolist(), result.identity, result.aligned) == (list(range(400)), 1.0, 1.0)
    sure = numbers((1, 30), (41, 90), (100, 401))  # of which unsure residues were left out
    result = placed("".join(SEQUENCE[i - 1] for i in sure), sure, begin=1, end=400, shift=-1)
    assert (result.residue.tolist(), result.identity) == ((sure - 1).tolist(), 1.0)


def test_chains_beyond_the_aligner_are_placed_by_their_numbers(monkeypatch):
    monkeypatch.setattr("data_prep.align._gapped", None)
    long = SEQUENCE * 60
    letters = mutate(long[1000:13000], *range(0, 12000, 1000))
    result = place(letters, numbers((1, 12001)), long, 1001, 13000, None, 0.95, 0.8)
    assert result.residue.tolist() == list(range(1000, 13000))
    assert result.identity == pytest.approx(1 - 12 / 12000)
    stranger = "".join(random.Random(1).choices(LETTERS, k=12000))
    assert place(stranger, numbers((1, 12001)), long, None, None, None, 0.95, 0.8).identity < 0.5
    nowhere = place(letters, numbers((90_001, 102_001)), long[:12500], None, None, None, 0.95, 0.8)
    assert nowhere.aligned * nowhere.identity < 0.5


def test_a_stranger_has_no_identity_to_speak_of():
    stranger = "".join(random.Random(1).choices(LETTERS, k=120))
    result = placed(stranger, numbers((1, 121)))
    assert result.identity * result.aligned < 0.5
