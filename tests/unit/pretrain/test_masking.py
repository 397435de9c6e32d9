"""What is masked: exact budgets, even choices, and draws that know the protein's slot and nothing else."""

import itertools

import numpy as np
import pytest
import torch

from pretrain.masking import Alpha, Dropout, MaskingConfig, Purpose, budgets, draw_masks, drop, generator, keep
from pretrain.sample import Modality

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
CONFIG = MaskingConfig()


def test_a_draw_depends_on_each_part_of_its_key_and_on_nothing_else():
    keys = [(1, 2, 3, Purpose.KEEP), (2, 2, 3, Purpose.KEEP), (1, 3, 3, Purpose.KEEP), (1, 2, 4, Purpose.KEEP)]
    keys.append((1, 2, 3, Purpose.BUDGET))
    draws = [tuple(generator(*key).random(3)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert [tuple(generator(*key).random(3)) for key in reversed(keys)] == draws[::-1]


@pytest.mark.parametrize(
    "key", [(0, 0, 0, Purpose.TEXT), (1, 2, 3, Purpose.KEEP), (2**63 - 1, 2**40, 77, Purpose.WINDOW)]
)
def test_draws_are_those_of_philox_and_stay_so(key: tuple[int, int, int, Purpose]):
    seed, step, slot, purpose = key
    plain = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, purpose, slot, step]))
    assert np.array_equal(generator(*key).integers(1 << 62, size=9), plain.integers(1 << 62, size=9))


@pytest.mark.parametrize("share", [0.01, 1 / 6, 0.5, 0.9, 1.0])
def test_budget_totals_are_exact_and_within_what_there_is(share: float):
    config = MaskingConfig(keep=share, alpha=Alpha(sequence=0.05, structure=3.0))
    for case, lengths in enumerate(itertools.product((0, 1, 3, 400), (0, 2, 350), (0, 1, 30), (0, 196))):
        present = dict(zip(Modality, lengths, strict=True))
        for draw in range(5):
            kept = budgets(present, config, generator(0, draw, case, Purpose.BUDGET))
            assert list(kept) == list(present)
            assert all(0 <= kept[m] <= present[m] for m in present), (present, kept)
            assert sum(kept.values()) == (max(1, round(share * sum(lengths))) if any(lengths) else 0)


def test_budget_shares_have_the_means_of_their_dirichlet():
    present = {SEQUENCE: 10_000, STRUCTURE: 10_000, FUNCTION: 10_000}
    draws = [budgets(present, MaskingConfig(keep=0.1), generator(7, 0, i, Purpose.BUDGET)) for i in range(3000)]
    shares = np.array([list(kept.values()) for kept in draws]) / 3000
    assert np.allclose(shares.mean(0), [0.2, 0.4, 0.4], atol=0.01)
    assert np.allclose(shares.var(0), [0.2 * 0.8 / 6, 0.4 * 0.6 / 6, 0.4 * 0.6 / 6], atol=0.003)


def test_the_excess_of_a_short_modality_goes_to_the_others_in_proportion():
    present = {SEQUENCE: 1000, STRUCTURE: 1000, FUNCTION: 2}
    for i in range(50):
        kept = budgets(present, CONFIG, generator(3, 0, i, Purpose.BUDGET))
        shares = generator(3, 0, i, Purpose.BUDGET).dirichlet([1, 2, 2])
        assert sum(kept.values()) == 334
        if shares[2] * 334 > 2:
            assert kept[FUNCTION] == 2
            assert abs(kept[SEQUENCE] - 332 * shares[0] / (shares[0] + shares[1])) < 1


def test_a_share_of_zero_by_underflow_still_fills_the_total():
    config = MaskingConfig(keep=1.0, alpha=Alpha(sequence=1e-3, structure=1e-3, function=1e-3))
    for i in range(200):
        kept = budgets({SEQUENCE: 5, STRUCTURE: 7, FUNCTION: 9}, config, generator(0, 0, i, Purpose.BUDGET))
        assert kept == {SEQUENCE: 5, STRUCTURE: 7, FUNCTION: 9}


def test_every_choice_of_kept_tokens_is_equally_likely():
    seen: dict[tuple[int, ...], int] = {}
    for i in range(6000):
        visible = keep(5, 2, generator(11, 0, i, Purpose.KEEP))
        assert visible.shape == (5,) and visible.sum() == 2
        chosen = tuple(np.flatnonzero(visible).tolist())
        seen[chosen] = seen.get(chosen, 0) + 1
    assert sorted(seen) == list(itertools.combinations(range(5), 2))
    chi_square = sum((count - 600) ** 2 / 600 for count in seen.values())
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001


def test_keep_takes_nothing_and_everything():
    rng = generator(0, 0, 0, Purpose.KEEP)
    assert not keep(0, 0, rng).size and not keep(4, 0, rng).any() and keep(4, 4, rng).all()


def test_dropout_rates_and_never_the_last_one():
    dropout = Dropout(sequence=0.3, structure=0.6)
    present = {SEQUENCE: 9, STRUCTURE: 8, FUNCTION: 0, IMAGE: 5}
    shown = [drop(present, dropout, generator(5, 0, i, Purpose.DROPOUT)) for i in range(4000)]
    rates = [np.mean([case[m] == 0 for case in shown]) for m in (SEQUENCE, STRUCTURE, IMAGE)]
    assert np.allclose(rates, [0.3, 0.6, 0.0], atol=0.025)
    assert all(case[m] in (0, present[m]) for case in shown for m in present)

    certain = Dropout(sequence=1, structure=1, function=1, image=1)
    stays = [drop(present, certain, generator(5, 0, i, Purpose.DROPOUT)) for i in range(900)]
    assert all(sum(length > 0 for length in case.values()) == 1 for case in stays)
    rates = [np.mean([case[m] > 0 for case in stays]) for m in (SEQUENCE, STRUCTURE, IMAGE)]
    assert np.allclose(rates, 1 / 3, atol=0.05)
    assert drop({SEQUENCE: 4, FUNCTION: 0}, certain, generator(0, 0, 0, Purpose.DROPOUT)) == {SEQUENCE: 4, FUNCTION: 0}


LENGTHS = {
    SEQUENCE: torch.tensor([30, 0, 12, 1]),
    STRUCTURE: torch.tensor([25, 40, 0, 0]),
    FUNCTION: torch.tensor([0, 10, 3, 0]),
}


def test_masks_count_what_they_show():
    masks = draw_masks(LENGTHS, 1, 2, torch.arange(4), CONFIG)
    for modality, lengths in LENGTHS.items():
        parts = masks.visible[modality].split(lengths.tolist())
        assert [int(part.sum()) for part in parts] == masks.kept[modality].tolist()
        assert masks.visible[modality].dtype == torch.bool and masks.kept[modality].dtype == torch.int64
    totals = torch.stack(list(masks.kept.values())).sum(0)
    assert totals.tolist() == [round(55 / 6), round(50 / 6), round(15 / 6), 1]


def test_a_dropped_modality_shows_nothing_and_frees_no_budget():
    config = MaskingConfig(keep=0.5, dropout=Dropout(structure=1.0))
    masks = draw_masks(LENGTHS, 1, 2, torch.arange(4), config)
    assert not masks.visible[STRUCTURE].any() and len(masks.visible[STRUCTURE]) == 65
    assert torch.stack(list(masks.kept.values())).sum(0).tolist() == [15, 5, 8, 1]  # of what the encoder may see


def test_masks_do_not_depend_on_batch_mates_or_order():
    slots = torch.tensor([4, 0, 9, 2])
    whole = draw_masks(LENGTHS, 8, 5, slots, CONFIG)
    for row in range(4):
        alone = draw_masks({m: n[row : row + 1] for m, n in LENGTHS.items()}, 8, 5, slots[row : row + 1], CONFIG)
        for modality, lengths in LENGTHS.items():
            assert torch.equal(alone.visible[modality], whole.visible[modality].split(lengths.tolist())[row])
    flipped = draw_masks({m: LENGTHS[m] for m in reversed(LENGTHS)}, 8, 5, slots, CONFIG)
    assert all(torch.equal(flipped.visible[m], whole.visible[m]) for m in LENGTHS)
    other = draw_masks(LENGTHS, 8, 6, slots, CONFIG)
    assert any(not torch.equal(other.visible[m], whole.visible[m]) for m in LENGTHS)


RESIDUES = {
    SEQUENCE: torch.cat([torch.arange(100, 130), torch.arange(0, 12), torch.arange(1)]),
    STRUCTURE: torch.cat([torch.arange(103, 128), torch.arange(0, 80, 2)]),
}


def test_the_same_residues_are_shown_as_far_as_shares_go():
    """Whoever shows fewer shows a part of what the other shows, of what both have; budgets are as without."""
    slots, met = torch.tensor([4, 0, 9, 2]), 0
    for step in range(50):
        apart = draw_masks(LENGTHS, 8, step, slots, CONFIG)
        masks = draw_masks(LENGTHS, 8, step, slots, CONFIG, RESIDUES)
        shown = {}
        for m in LENGTHS:
            assert torch.equal(masks.kept[m], apart.kept[m])
            parts = masks.visible[m].split(LENGTHS[m].tolist())
            assert [int(part.sum()) for part in parts] == masks.kept[m].tolist()
        for m, residues in RESIDUES.items():
            places = residues.split(LENGTHS[m].tolist())
            shown[m] = {int(i) for i in places[0][masks.visible[m].split(LENGTHS[m].tolist())[0]]}
        both = {i for i in shown[SEQUENCE] if 103 <= i < 128}
        assert both <= shown[STRUCTURE] or shown[STRUCTURE] <= both
        met += len(both & shown[STRUCTURE])
        row = {m: LENGTHS[m][:1] for m in LENGTHS}
        alone = draw_masks(row, 8, step, slots[:1], CONFIG, {m: RESIDUES[m][: int(row[m])] for m in RESIDUES})
        assert all(torch.equal(alone.visible[m], masks.visible[m][: int(row[m])]) for m in LENGTHS)
    assert met > 50


def test_of_the_same_residues_each_is_shown_as_often():
    times = torch.zeros(25)
    for step in range(400):
        times += draw_masks(LENGTHS, 3, step, torch.arange(4), CONFIG, RESIDUES).visible[STRUCTURE][:25]
    assert times.min() > 0.6 * times.mean() and times.max() < 1.4 * times.mean()


def test_no_proteins_give_empty_masks():
    none = torch.zeros(0, dtype=torch.int64)
    masks = draw_masks(dict.fromkeys(Modality, none), 0, 0, none, CONFIG)
    assert all(masks.visible[m].shape == (0,) and masks.kept[m].shape == (0,) for m in Modality)
