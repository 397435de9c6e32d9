"""A group's endless order, as arithmetic: which sample stands at a place, found without computing what came before.

A group's shards are dealt into lanes, always the same ones, so that hosts can share the lanes out and each needs only
its lanes' shards. Each lane runs through its own shards: their order is shuffled anew in each cycle, and then samples
within windows of `window` consecutive shards. Lanes interleave in proportion to what they hold, so that all end at the
cycle's end: a cycle is an exact permutation of the group, a window of it about `lanes` × `window` shards wide, and what
is open of a group at a time are its lanes' windows.

Where relatives are wanted next to each other (`gathered`), each window's permutation is rearranged; that too depends on
nothing but the window.

Permutations sort the raw words of a Philox generator keyed by (seed, group) and counted by (lane, window, cycle): NumPy
promises that these words stay the same across its releases, which it does not for its own `shuffle`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# A shard → its usable samples' (numbers, costs); and their clusters, where relatives are wanted.
Open = Callable[[int], tuple[NDArray[np.int64], ...]]


@dataclass(frozen=True, eq=False)
class Taken:
    """A stretch of an order: int64 [n] each. numbers: of the samples in their group; lanes: which lane gave it."""

    numbers: NDArray[np.int64]
    costs: NDArray[np.int64]
    lanes: NDArray[np.int64]


class Order:
    """One group's order. counts: int64 [S], usable samples of each shard; `open` reads one when its window opens.

    place: of the group among its split's; groups of fewer shards than lanes begin at different lanes, or one host
    would have them all. relatives: up to how many of a cluster follow each other, of those in a window. Holds the
    lanes' windows and nothing more: 16 bytes for each of their samples.
    """

    def __init__(
        self,
        name: str,
        counts: NDArray[np.int64],
        open: Open,
        seed: int,
        lanes: int,
        window: int,
        place: int = 0,
        relatives: int = 1,
    ) -> None:
        key = np.array([seed, int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")], np.uint64)
        shards = np.flatnonzero(counts)
        used = min(lanes, len(shards))
        self._lanes = [
            _Lane((place + i * lanes // used) % lanes, mine, counts[mine], open, key, window, relatives)
            for i, mine in enumerate(shards[i::used] for i in range(used))
        ]
        self._lanes.sort(key=lambda lane: lane.number)
        self._totals = np.array([lane.total for lane in self._lanes], np.int64)
        self.total = int(self._totals.sum())

    def take(self, cursor: int, samples: int) -> Taken:
        """The samples at places cursor, cursor + 1, … of the order."""
        numbers, costs, lanes = (np.empty(samples, np.int64) for _ in range(3))
        done = 0
        while done < samples:
            cycle, place = divmod(cursor + done, self.total)
            some = min(samples - done, self.total - place)
            picks, begins = schedule(self._totals, place, some)
            for i in np.unique(picks).tolist():
                mine = done + np.flatnonzero(picks == i)
                numbers[mine], costs[mine] = self._lanes[i].take(cycle, int(begins[i]), len(mine))
                lanes[mine] = self._lanes[i].number
            done += some
        return Taken(numbers, costs, lanes)

    def windows(self, cursor: int, count: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """(lane, how many windows from now, its shards): the lanes' open windows at a place and the next, `count` of
        each lane. Reads nothing."""
        cycle, place = divmod(cursor, self.total)
        _, begins = schedule(self._totals, place, 0)
        for lane, begin in zip(self._lanes, begins.tolist(), strict=True):
            for ahead, shards in enumerate(lane.windows(cycle, begin, count)):
                yield lane.number, ahead, shards


class _Lane:
    """Some shards of a group, and the window over them that is open. shards, counts: int64 [k]."""

    def __init__(
        self,
        number: int,
        shards: NDArray[np.int64],
        counts: NDArray[np.int64],
        open: Open,
        key: NDArray[np.uint64],
        width: int,
        relatives: int,
    ) -> None:
        self.number, self.total = number, int(counts.sum())
        self._shards, self._counts, self._open, self._key, self._width = shards, counts, open, key, width
        self._relatives = relatives
        # What was computed last, kept because steps follow one another; never needed for the result.
        self._cycle: tuple[int, NDArray[np.int64], NDArray[np.int64]] = (-1, shards, counts)
        self._window: tuple[tuple[int, int], NDArray[np.int64], NDArray[np.int64]] = ((-1, -1), shards, counts)

    def take(self, cycle: int, place: int, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(numbers, costs) of the samples at `place` of a cycle and after it; the cycle has as many."""
        parts = []
        while samples:
            numbers, costs = self._from(cycle, place)
            parts.append((numbers[:samples], costs[:samples]))
            place, samples = place + len(parts[-1][0]), samples - len(parts[-1][0])
        numbers, costs = zip(*parts, strict=True)
        return np.concatenate(numbers), np.concatenate(costs)

    def windows(self, cycle: int, place: int, count: int) -> Iterator[NDArray[np.int64]]:
        """The shards of the window at `place`, and of those after it."""
        while count:
            places, bounds = self._begin(cycle)
            if place >= self.total:
                cycle, place = cycle + 1, 0
                continue
            window = int(bounds.searchsorted(place, side="right")) - 1
            yield self._shards[places[window * self._width : (window + 1) * self._width]]
            place, count = int(bounds[window + 1]), count - 1

    def _begin(self, cycle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(the cycle's order of the lane's shards, int64 [W + 1] the places at which its windows begin)."""
        if self._cycle[0] != cycle:
            places = self._shuffled(len(self._shards), 0, cycle)
            bounds = np.cumsum([0, *np.add.reduceat(self._counts[places], np.arange(0, len(places), self._width))])
            self._cycle = (cycle, places, bounds)
        return self._cycle[1:]

    def _from(self, cycle: int, place: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What stands at `place` of a cycle and after it, up to its window's end."""
        places, bounds = self._begin(cycle)
        window = int(bounds.searchsorted(place, side="right")) - 1
        if self._window[0] != (cycle, window):
            opened = [self._read(i) for i in places[window * self._width : (window + 1) * self._width].tolist()]
            numbers, costs, *clusters = (np.concatenate(columns) for columns in zip(*opened, strict=True))
            shuffled = self._shuffled(len(numbers), window + 1, cycle)
            if self._relatives > 1:
                shuffled = shuffled[gathered(clusters[0][shuffled], self._relatives)]
            self._window = ((cycle, window), numbers[shuffled], costs[shuffled])
        _, numbers, costs = self._window
        return numbers[place - bounds[window] :], costs[place - bounds[window] :]

    def _read(self, i: int) -> tuple[NDArray[np.int64], ...]:
        columns = self._open(int(self._shards[i]))
        assert len(columns[0]) == self._counts[i], "whoever opens a shard checks that it is what was counted"
        return columns

    def _shuffled(self, count: int, level: int, cycle: int) -> NDArray[np.int64]:
        """int64 [count]: a permutation. Sorting words whose low bits are their places is four times argsort's speed."""
        words = np.random.Philox(key=self._key, counter=[0, self.number, level, cycle]).random_raw(count)
        bits = np.uint64(count.bit_length())
        words = (words >> bits << bits) | np.arange(count, dtype=np.uint64)
        words.sort()
        return (words & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def gathered(clusters: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """int64 [n]: the order in which each sample is followed by the next ones of its cluster, `most` of them in a run.

    clusters: int64 [n], in the order that there is. A run stands where its first sample does.
    """
    order = np.argsort(clusters, kind="stable")  # cluster by cluster, as they come
    begins = np.flatnonzero(np.diff(clusters[order], prepend=clusters[order[:1]] - 1))
    begin = np.repeat(begins, np.diff(begins, append=len(order)))
    heads = begin + (np.arange(len(order)) - begin) // most * most
    places = np.empty(len(order), np.int64)
    places[order] = order[heads]
    return np.argsort(places, kind="stable")


def schedule(totals: NDArray[np.int64], place: int, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A cycle in which lane i comes totals[i] times: (int64 [samples], the lane at each place from `place` on; int64
    [L], how often each came before).

    Stride scheduling: a lane's n-th sample (from 0) falls due at (n + ½) / total, ties to the first lane; all dues are
    below 1, so that every lane ends with the cycle. Those due by x are floor(x × total + ½) of a lane, and over all
    lanes x × N, give or take half a sample for each: so where the count is `place` is known within the number of lanes,
    and only that neighbourhood is sorted. Exact for groups below 10^10 samples.
    """
    whole, count = int(totals.sum()), len(totals)
    first = ((2 * place - count) * totals + whole) // (2 * whole) - 1  # one less: dues that float makes equal
    last = ((2 * (place + samples) + count) * totals + whole) // (2 * whole) + 1
    first, last = first.clip(0, totals), last.clip(0, totals)
    sizes = last - first
    lanes = np.repeat(np.arange(count), sizes)
    numbers = np.arange(len(lanes)) + np.repeat(first - (np.cumsum(sizes) - sizes), sizes)
    order = lanes[np.lexsort((lanes, (numbers + 0.5) / totals[lanes]))]
    before = place - int(first.sum())
    return order[before : before + samples], first + np.bincount(order[:before], minlength=count)


def interleave(cursors: NDArray[np.int64], weights: NDArray, samples: int) -> NDArray[np.int64]:
    """int64 [samples]: which group gives each of the next samples, by stride scheduling.

    A group's n-th sample falls due at (n − ½) / weight; the next one is always the earliest due, ties to the first
    group. So each group keeps to its share from the start, within about a sample (the half is what puts the one sample
    of a small group in the middle of a cycle, not at its end), and the cursors alone say what comes next.
    """
    due = (cursors[:, None] + np.arange(samples) + 0.5) / weights[:, None]
    group = np.repeat(np.arange(len(cursors)), samples)
    return group[np.lexsort((group, due.ravel()))[:samples]]
