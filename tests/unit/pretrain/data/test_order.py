"""Orders: exact permutations in lanes, found from any place."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pretrain.data.order import Order, interleave, schedule


def make(counts: list[int], seed: int = 3, lanes: int = 4, window: int = 2, name: str = "sequence", place: int = 0):
    """An order over shards of ten samples each, of which the first few are usable; sample i costs i."""

    def open(shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        numbers = 10 * shard + np.arange(counts[shard])
        return numbers, numbers

    return Order(name, np.array(counts, np.int64), open, seed, lanes, window, place)


COUNTS = [7, 0, 10, 1, 9, 10, 3]


@pytest.mark.parametrize("lanes", [1, 2, 5, 24])
@pytest.mark.parametrize("window", [1, 2, 100])
def test_each_cycle_is_an_exact_permutation(window, lanes):
    usable = [10 * shard + i for shard, count in enumerate(COUNTS) for i in range(count)]
    n, order = len(usable), make(COUNTS, lanes=lanes, window=window)
    cycles = [order.take(cycle * n, n) for cycle in range(4)]
    assert order.total == n and all(sorted(cycle.numbers.tolist()) == usable for cycle in cycles)
    assert len({tuple(cycle.numbers.tolist()) for cycle in cycles}) == 4
    assert all(np.array_equal(cycle.numbers, cycle.costs) for cycle in cycles)
    lane_of = [dict(zip((c.numbers // 10).tolist(), c.lanes.tolist(), strict=True)) for c in cycles]
    assert lane_of == lane_of[:1] * 4 and len(set(lane_of[0].values())) == min(lanes, 6)
    whole = [i for cycle in cycles for i in cycle.numbers.tolist()]
    for begin, count in [(0, 1), (5, n), (n - 1, 2), (n - 3, 2 * n), (2 * n + 5, 0), (17, 60)]:
        again = make(COUNTS, lanes=lanes, window=window).take(begin, count)
        assert again.numbers.tolist() == whole[begin : begin + count]


def test_lanes_of_groups_with_few_shards_begin_at_different_places():
    taken = [{*make([5], lanes=24, place=place).take(0, 5).lanes.tolist()} for place in (0, 3, 23, 24)]
    assert taken == [{0}, {3}, {23}, {0}]
    assert {*make([5, 5, 5], lanes=24, place=20).take(0, 15).lanes.tolist()} == {20, 4, 12}


def test_shuffling_touches_few_shards_of_each_lane_at_a_time():
    order = make([10] * 96, lanes=3, window=4)
    taken = order.take(0, 960)
    shards = taken.numbers // 10
    for begin in range(0, 960, 120):  # three lanes, four shards of ten
        assert len(set(shards[begin : begin + 120].tolist())) == 12
        assert (np.diff(shards[begin : begin + 120]) != 0).mean() > 0.8  # and mixes them
    assert not np.array_equal(taken.numbers, make([10] * 96, lanes=3, window=4, seed=2).take(0, 960).numbers)
    assert not np.array_equal(taken.numbers, make([10] * 96, lanes=3, window=4, name="image").take(0, 960).numbers)


def test_windows_name_the_shards_that_come_next():
    counts = [10] * 12
    for cursor in (0, 55, 119, 120, 463):
        order, taken = make(counts, lanes=2, window=2), make(counts, lanes=2, window=2).take(cursor, 240)
        for lane, ahead, shards in order.windows(cursor, 4):
            mine = taken.numbers[taken.lanes == lane] // 10
            changes = np.flatnonzero(~np.isin(mine, shards))
            assert ahead or changes[0] > 0  # the open window is what comes first
            assert {*shards.tolist()} <= {*mine[: 20 * ahead + 20].tolist(), *(shards.tolist() if not ahead else [])}


def exhaustive(totals: NDArray[np.int64]) -> NDArray[np.int64]:
    lanes = np.repeat(np.arange(len(totals)), totals)
    numbers = np.concatenate([np.arange(total) for total in totals])
    return lanes[np.lexsort((lanes, (2 * numbers + 1) / (2 * totals[lanes])))]


def totals() -> Iterator[NDArray[np.int64]]:
    random = np.random.default_rng(0)
    yield from (random.integers(1, high, random.integers(1, 25)) for high in [2, 5, 50, 3000] * 8)
    yield np.array([9000, *[1] * 23])  # where shares and places differ most


def test_a_place_in_the_schedule_is_found_without_what_came_before():
    random = np.random.default_rng(1)
    for each in totals():
        whole, n = exhaustive(each), int(each.sum())
        for place in [0, n, *random.integers(0, n + 1, 20).tolist()]:
            count = int(random.integers(0, min(n - place, 300) + 1))
            picks, begins = schedule(each, place, count)
            assert picks.tolist() == whole[place : place + count].tolist()
            assert begins.tolist() == np.bincount(whole[:place], minlength=len(each)).tolist()
        assert schedule(each, 0, n)[0].tolist() == whole.tolist()


def test_a_hundred_million_samples_need_no_replay():
    counts = np.full(10_000, 10_000)
    opened = []

    def open(shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        opened.append(shard)
        return 10_000 * shard + np.arange(10_000), np.ones(10_000, np.int64)

    place = 5 * 10**8 + 77_777_777
    one = Order("sequence", counts, open, 1, 24, 2).take(place, 3)
    assert len(opened) <= 3 * 2
    assert one.numbers.tolist() == Order("sequence", counts, open, 1, 24, 2).take(place - 2, 5).numbers.tolist()[2:]


def test_every_prefix_is_within_one_of_its_share():
    weights = np.array([5.0, 1.0, 0.3])
    picks = interleave(np.zeros(3, np.int64), weights, 500)
    for n in range(1, 501):
        share = n * weights / weights.sum()
        assert (np.abs(np.bincount(picks[:n], minlength=3) - share) <= 1 + 1e-9).all()
    middle = np.bincount(picks[:123], minlength=3)
    assert interleave(middle, weights, 377).tolist() == picks[123:].tolist()
