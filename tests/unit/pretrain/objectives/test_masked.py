"""Residues taken from where they are: what is left of them, against a slow twin; and what letters they show."""

from dataclasses import replace

import torch

from pretrain.encoders.letters import LETTERS
from pretrain.objectives.masked import changed, without
from tests.unit.pretrain.encoders.test_graphs import batch
from tests.unit.pretrain.encoders.test_graphs import without as lacking


def test_a_hidden_residue_lies_between_those_that_are_seen() -> None:
    """In chains with a gap, an absent Cα, hidden ends, all hidden, and none at all."""
    given = lacking(batch([12, 0, 3, 6], gap=4), [8], 1)
    hidden = torch.zeros(21, dtype=torch.bool)
    hidden[[0, 1, 3, 4, 7, 8, 11, 12, 13, 14, 18]] = True
    found = without(given, hidden)
    for start, stop in ((0, 12), (12, 15), (15, 21)):
        seen = [i for i in range(start, stop) if given.mask[i, 1] and not hidden[i]]
        for i in range(start, stop):
            if not hidden[i]:
                assert torch.equal(found.mask[i], given.mask[i])
                assert torch.equal(found.coordinates[i], given.coordinates[i])
                continue
            before, after = [j for j in seen if j < i][-1:], [j for j in seen if j > i][:1]
            assert found.mask[i].tolist() == [False, bool(seen), False, False]
            assert not found.coordinates[i, [0, 2, 3]].any()
            want = torch.zeros(3)
            if before and after:
                (a,), (b,) = before, after
                share = (given.positions[i] - given.positions[a]) / (given.positions[b] - given.positions[a])
                want = (1 - share) * given.coordinates[a, 1] + share * given.coordinates[b, 1]
            elif seen:
                want = given.coordinates[(before or after)[0], 1]
            torch.testing.assert_close(found.coordinates[i, 1], want)
    moved = replace(given, coordinates=given.coordinates + 50 * hidden.view(-1, 1, 1))
    assert torch.equal(without(moved, hidden).coordinates, found.coordinates)
    assert not len(without(batch([0]), hidden[:0]).letters)


def test_where_nothing_is_trained_all_that_is_asked_for_is_hidden() -> None:
    letters, asked = torch.full((40,), ord("A"), dtype=torch.uint8), torch.arange(40) % 3 == 0
    draw = torch.linspace(0, 0.99, 40, dtype=torch.float64)
    assert torch.equal(changed(letters, asked, draw, 0, training=False) == 0, asked)
    shown = changed(letters, asked, draw, 0, training=True)
    assert (shown[asked] != 0).any() and torch.equal(shown[~asked], letters[~asked])


def test_a_tenth_of_those_asked_for_show_another_letter_each_as_often() -> None:
    """And a tenth their own: X, which is never the other."""
    count, own = 100_000, ord("X")
    letters, asked = torch.full((count,), own, dtype=torch.uint8), torch.ones(count, dtype=torch.bool)
    draw = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = changed(letters, asked, draw, 0, training=True).bincount(minlength=128)
    others = found[list(LETTERS.encode())]
    for number, share in ((found[0], 0.8), (others.sum(), 0.1), (found[own], 0.1)):
        assert abs(int(number) / count - share) < 0.01
    assert int(found.sum()) == int(found[0] + found[own] + others.sum())
    assert int(others.min()) > 400 and int(others.max()) < 600  # 500 of each; four and a half standard deviations
