"""Position → the samples of a step, as arithmetic over the index: a pure function, the same on every rank.

Each group (one split's samples of one modality subset) runs through cycles, each a permutation of the whole group. Its
order is shuffled on two levels, shards first and then samples within a window of `window` consecutive shards, so
that a reader touches few files at a time and a place in the order is found without computing what came before. Groups
interleave by weight, decided from the cursors alone. So a `Position` (a step and one cursor per group) is all there is
to remember, and to resume is to call `next` on it.

Permutations sort the raw words of a Philox generator keyed by (seed, group, cycle, window): NumPy promises that these
words stay the same across its releases, which it does not for its own `shuffle`.
"""

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from pretrain.config import Config
from pretrain.data.draw import InputSpec
from pretrain.data.index import Dataset, Group
from pretrain.sample import Facet, Modality

# What a sample must have for a modality to give tokens: function needs a text, its terms alone have none.
NEEDS = {
    Modality.SEQUENCE: Facet.SEQUENCE,
    Modality.STRUCTURE: Facet.STRUCTURE,
    Modality.FUNCTION: Facet.TEXT,
    Modality.IMAGE: Facet.IMAGE,
}
CHARACTERS = 4  # of a text per word piece, about; lengths in the index are in characters


class PlanConfig(Config):
    """How steps are made of a split. One of `samples` (proteins per step) and `tokens` (tokens per step) is set.

    weights: group → its share of the samples; every group is named, 0 leaves one out. Empty: by size, so that each
    protein is seen equally often. epoch_group: the group whose cycle is called an epoch; by default the largest.
    window: shards among which samples are shuffled, per group; reading keeps about so many open.
    """

    samples: int | None = pydantic.Field(default=None, ge=1)
    tokens: int | None = pydantic.Field(default=None, ge=1)
    weights: dict[str, float] = pydantic.Field(default_factory=dict)
    epoch_group: str | None = None
    window: int = pydantic.Field(default=8, ge=1)

    @pydantic.model_validator(mode="after")
    def _one_size(self) -> "PlanConfig":
        if (self.samples is None) == (self.tokens is None):
            raise ValueError("set one of `samples` (proteins per step) and `tokens` (tokens per step)")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights.values()):
            raise ValueError(f"weights must be numbers from 0 up: {self.weights}")
        return self


@dataclass(frozen=True)
class Position:
    """How far a run is: steps done, and samples consumed of each group (cycle × N + place). Absent groups are at 0."""

    step: int = 0
    cursors: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "cursors": dict(sorted(self.cursors.items()))}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Position":
        return Position(int(value["step"]), {str(group): int(cursor) for group, cursor in value["cursors"].items()})


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of a step: its group, its number there, its slot in the step, its cost in tokens."""

    group: str
    index: int
    slot: int
    cost: int


@dataclass(frozen=True)
class StepPlan:
    """What a step consists of, before it is cut; slots run from 0 in `entries`' order."""

    step: int
    entries: tuple[Entry, ...]

    @property
    def cost(self) -> int:
        return sum(entry.cost for entry in self.entries)

    def cut(self, world: int, accumulate: int) -> list[list[tuple[Entry, ...]]]:
        """[world][accumulate] micro-batches that together hold every entry once, of about equal cost, some maybe empty.

        Longest first, each to the lightest so far (LPT: at most 4/3 of the best possible cut). Ties go to the first,
        and the first micro-batches of all ranks come first, so a short step idles no rank before it must.
        """
        parts: list[list[Entry]] = [[] for _ in range(world * accumulate)]
        loads = [(0, part) for part in range(len(parts))]
        for entry in sorted(self.entries, key=lambda entry: (-entry.cost, entry.slot)):
            load, part = loads[0]
            parts[part].append(entry)
            heapq.heapreplace(loads, (load + entry.cost, part))
        ordered = [tuple(sorted(part, key=lambda entry: entry.slot)) for part in parts]
        return [ordered[rank::world] for rank in range(world)]


class Plan:
    """The steps of one split for one model. Pure: the same arguments and position give the same step anywhere.

    sizes: group → usable samples. left_out: group → samples with none of the model's modalities, or of weight 0.
    truncated: samples whose sequence is longer than the encoder's maximum (their far end is not seen).
    """

    def __init__(self, dataset: Dataset, split: str, config: PlanConfig, seed: int, spec: InputSpec) -> None:
        self.dataset, self.split, self.config, self.seed, self.spec = dataset, split, config, seed, spec
        wanted = np.uint8(sum(NEEDS[modality] for modality in spec.modalities))
        groups = dataset.groups(split)
        usable = {name: (group.facets & wanted) != 0 for name, group in groups.items()}
        sizes = {name: int(mask.sum()) for name, mask in usable.items()}
        weights = _weights(config.weights, sizes)
        self.sizes = {name: sizes[name] for name, weight in weights.items() if weight > 0}
        self.left_out = {name: len(group) - self.sizes.get(name, 0) for name, group in groups.items()}
        if not self.sizes:
            wants = ", ".join(spec.modalities)
            raise ValueError(f"{dataset.path}: no sample of split {split!r} has any of {wants}, or all weights are 0")
        self.weights = {name: weights[name] for name in self.sizes}
        self.groups = {name: groups[name] for name in self.sizes}
        too_long = [usable[name] & (group.residues > spec.sequence_max) for name, group in self.groups.items()]
        self.truncated = sum(int(mask.sum()) for mask in too_long) if Modality.SEQUENCE in spec.modalities else 0
        self.epoch_group = config.epoch_group or max(self.sizes, key=self.sizes.__getitem__)
        if self.epoch_group not in self.sizes:
            raise ValueError(
                f"epoch_group {self.epoch_group!r} is not one of the plan's groups: {', '.join(self.sizes)}"
            )
        self._orders = {
            name: Order(name, group.starts, usable[name], seed, config.window) for name, group in self.groups.items()
        }

    def check(self, world: int, accumulate: int) -> None:
        """Raises ValueError for a step that cannot be cut over `world` ranks with a sample for each."""
        if world < 1 or accumulate < 1:
            raise ValueError(f"{world} ranks and {accumulate} micro-batches per rank; both must be at least 1")
        if self.config.samples is not None and self.config.samples < world:
            raise ValueError(
                f"a step of fewer samples than ranks: samples = {self.config.samples}, {world} ranks; "
                f"set samples to {world} or more, or start fewer ranks"
            )
        if self.config.tokens is not None and self.config.tokens < world * self.mean_cost():
            raise ValueError(
                f"a step of fewer samples than ranks: tokens = {self.config.tokens} hold about "
                f"{self.config.tokens / self.mean_cost():.1f} samples of {self.mean_cost():.0f} tokens, {world} ranks; "
                f"set tokens to {math.ceil(world * self.mean_cost())} or more, or start fewer ranks"
            )

    def mean_cost(self) -> float:
        """Tokens of a sample, averaged over the groups by weight."""
        means = {name: costs(group, slice(None), self.spec).mean() for name, group in self.groups.items()}
        return float(sum(self.weights[name] * means[name] for name in means) / sum(self.weights.values()))

    def next(self, position: Position) -> tuple[StepPlan, Position]:
        """The step at `position` and the position after it."""
        unknown = sorted(set(position.cursors) - set(self.sizes))
        if unknown:
            raise ValueError(
                f"the position has cursors for {', '.join(unknown)}, the plan has {', '.join(self.sizes)}: "
                "data set, weights or modalities are not those of the run; start a new one"
            )
        cursors = np.array([position.cursors.get(name, 0) for name in self.sizes])
        weights = np.array(list(self.weights.values()))
        if self.config.samples is not None:
            picks, entries = self._take(cursors, weights, self.config.samples, 0)
        else:
            picks, entries = self._fill(cursors, weights, self.config.tokens or 1)
        after = (cursors + np.bincount(picks, minlength=len(cursors))).tolist()
        return StepPlan(position.step, entries), Position(position.step + 1, dict(zip(self.sizes, after, strict=True)))

    def once(self, limit: int | None = None) -> Iterator[StepPlan]:
        """Every sample once (or the first `limit` of them, a fair share of each group), in an order that never changes.

        For validation. All steps are numbered 0 and slots run on from one to the next, so each sample has a slot of its
        own and every pass draws the same masks. Weights of the groups play no part; the last step may be short.
        """
        if self.config.samples is None:
            raise ValueError("a pass over a split needs a plan with `samples` per step, not `tokens`")
        sizes = np.array(list(self.sizes.values()))
        total = int(sizes.sum()) if limit is None else min(limit, int(sizes.sum()))
        cursors = np.zeros_like(sizes)
        for begin in range(0, total, self.config.samples):
            picks, entries = self._take(cursors, sizes, min(self.config.samples, total - begin), begin)
            cursors = cursors + np.bincount(picks, minlength=len(cursors))
            yield StepPlan(0, entries)

    def epoch(self, position: Position) -> float:
        """Cycles of the epoch group done at `position`."""
        return position.cursors.get(self.epoch_group, 0) / self.sizes[self.epoch_group]

    def _take(
        self, cursors: NDArray[np.int64], weights: NDArray, samples: int, slot: int
    ) -> tuple[NDArray[np.int64], tuple[Entry, ...]]:
        """The stream at `cursors`: (int64 [samples], the group each comes from; the entries, slots from `slot` on)."""
        picks = interleave(cursors, weights, samples)
        numbers, cost = np.empty(samples, np.int64), np.empty(samples, np.int64)
        for i, (name, group) in enumerate(self.groups.items()):
            mine = picks == i
            numbers[mine] = self._orders[name].take(int(cursors[i]), int(mine.sum()))
            cost[mine] = costs(group, numbers[mine], self.spec)
        order = list(self.groups)
        names = [order[pick] for pick in picks]
        return picks, tuple(map(Entry, names, numbers.tolist(), range(slot, slot + samples), cost.tolist()))

    def _fill(
        self, cursors: NDArray[np.int64], weights: NDArray, tokens: int
    ) -> tuple[NDArray[np.int64], tuple[Entry, ...]]:
        """As `_take`, as many samples as `tokens` hold; the first always fits, however long."""
        samples = 16
        while True:
            picks, entries = self._take(cursors, weights, samples, 0)
            fit = int(np.searchsorted(np.cumsum([entry.cost for entry in entries]), tokens, side="right"))
            if fit < samples:
                return picks[: max(fit, 1)], entries[: max(fit, 1)]
            samples *= 2


class Order:
    """One group's endless order: cycle after cycle, each an exact permutation of the group's usable samples.

    starts: int64 [S + 1], the shards' first samples; usable: bool [N].
    """

    def __init__(self, name: str, starts: NDArray[np.int64], usable: NDArray[np.bool_], seed: int, window: int) -> None:
        self._starts, self._usable, self._width = starts.tolist(), usable, window
        self._counts = np.array([np.count_nonzero(usable[begin:end]) for begin, end in pairwise(self._starts)])
        self._total = int(self._counts.sum())
        self._key = np.array(
            [seed, int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")], dtype=np.uint64
        )
        # What was computed last, kept because steps follow one another; never needed for the result.
        self._cycle: tuple[int, NDArray[np.int64], NDArray[np.int64]] = (-1, self._counts, self._counts)
        self._window: tuple[tuple[int, int], NDArray[np.int64]] = ((-1, -1), self._counts)

    def take(self, cursor: int, samples: int) -> NDArray[np.int64]:
        """int64 [samples]: the group's sample numbers at places cursor, cursor + 1, ... of the order."""
        parts = []
        while samples:
            cycle, place = divmod(cursor, self._total)
            part = self._from(cycle, place)[:samples]
            parts.append(part)
            cursor, samples = cursor + len(part), samples - len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _from(self, cycle: int, place: int) -> NDArray[np.int64]:
        """What stands at `place` of a cycle and after it, up to its window's end."""
        if self._cycle[0] != cycle:
            shards = self._shuffled(np.arange(len(self._counts)), cycle, 0)
            ends = np.cumsum(self._counts[shards])[self._width - 1 :: self._width]
            self._cycle = (cycle, shards, np.concatenate([[0], ends]))
        _, shards, bounds = self._cycle
        window = int(np.searchsorted(bounds, place, side="right")) - 1
        if self._window[0] != (cycle, window):
            opened = shards[window * self._width : (window + 1) * self._width].tolist()
            spans = [(self._starts[shard], self._starts[shard + 1]) for shard in opened]
            samples = np.concatenate([begin + np.flatnonzero(self._usable[begin:end]) for begin, end in spans])
            self._window = ((cycle, window), self._shuffled(samples, cycle, window + 1))
        return self._window[1][place - bounds[window] :]

    def _shuffled(self, values: NDArray[np.int64], cycle: int, level: int) -> NDArray[np.int64]:
        words = np.random.Philox(key=self._key, counter=[0, 0, level, cycle]).random_raw(len(values))
        return values[np.argsort(words, kind="stable")]


def interleave(cursors: NDArray[np.int64], weights: NDArray, samples: int) -> NDArray[np.int64]:
    """int64 [samples]: which group gives each of the next samples, by stride scheduling.

    A group's n-th sample falls due at (n − ½) / weight; the next one is always the earliest due, ties to the first
    group. So each group keeps to its share from the start, within about a sample (the half is what puts the one sample
    of a small group in the middle of a cycle, not at its end), and the cursors alone say what comes next.
    """
    due = (cursors[:, None] + np.arange(samples) + 0.5) / weights[:, None]
    group = np.repeat(np.arange(len(cursors)), samples)
    return group[np.lexsort((group, due.ravel()))[:samples]]


def costs(group: Group, rows: NDArray[np.int64] | slice, spec: InputSpec) -> NDArray[np.int64]:
    """int64 [n]: tokens that fusion sees of these samples, from the index: exact but for texts and partial crops."""
    has = spec.modalities
    total = np.zeros(len(group.keys[rows]), dtype=np.int64)
    if Modality.SEQUENCE in has:
        total += np.minimum(group.residues[rows], min(spec.sequence_max, spec.crop))
    if Modality.STRUCTURE in has:
        total += np.minimum(group.structure[rows], min(spec.structure_max or spec.crop, spec.crop))
    if Modality.FUNCTION in has:
        total += np.minimum(-(-group.text[rows] // CHARACTERS), spec.text_max)
    if Modality.IMAGE in has:
        total += np.minimum(group.images[rows], spec.max_images) * spec.image_patches
    return np.maximum(total, 1)


def _weights(given: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Group → weight, 0 where nothing is usable. Raises ValueError unless `given` names every group, or none."""
    if not given:
        return {name: float(size) for name, size in sizes.items()}
    if set(given) != set(sizes):
        raise ValueError(
            f"weights name {', '.join(sorted(given))}; the split's groups are {', '.join(sizes)}. "
            "Name each of them (0 leaves one out), or none for shares by size"
        )
    return {name: given[name] if size else 0.0 for name, size in sizes.items()}
