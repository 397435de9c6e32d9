"""Position → the samples of a step, as arithmetic over the index: a pure function, the same on every rank.

Each group (one split's samples of one modality subset) runs through cycles, each a permutation of the whole group, in
lanes that hosts can share out (`pretrain.data.order`). Groups interleave by weight, decided from the cursors alone. So
a `Position` (a step and one cursor per group) is all there is to remember, and to resume is to call `next` on it.

What is held in memory is a few numbers per shard and the windows that are open: a shard's index is read when its window
opens.
"""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from pretrain.config import Config
from pretrain.data.dataset import Dataset
from pretrain.data.draw import InputSpec
from pretrain.data.index import SOME, Group, ShardIndex
from pretrain.data.order import Order, interleave
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
    lanes: into how many lanes each group's shards are dealt (a group of fewer shards has fewer); hosts that read from a
    store share them out. window: shards of a lane among which samples are shuffled; `lanes` × `window` shards of a
    group are open at a time.
    relatives: up to how many proteins of one cluster follow each other in a group's lane, so that a step compares them:
    hard negatives. They are looked for in the lane's open window; with `lanes = 1` and a `window` of all shards, among
    all (16 bytes each). Lanes take turns, so a step holds whole runs where it has more than `relatives` × `lanes`
    proteins of a group. Clusters are those of the data set's split, `split.method = "cluster"`.
    """

    samples: int | None = pydantic.Field(default=None, ge=1)
    tokens: int | None = pydantic.Field(default=None, ge=1)
    weights: dict[str, float] = pydantic.Field(default_factory=dict)
    epoch_group: str | None = None
    lanes: int = pydantic.Field(default=24, ge=1)
    window: int = pydantic.Field(default=1, ge=1)
    relatives: int = pydantic.Field(default=1, ge=1)

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
    """One sample of a step: its group, its number there, its slot in the step, its cost in tokens, its lane."""

    group: str
    index: int
    slot: int
    cost: int
    lane: int = 0


@dataclass(frozen=True)
class StepPlan:
    """What a step consists of, before it is cut; slots run from 0 in `entries`' order. lanes: those of the plan."""

    step: int
    entries: tuple[Entry, ...]
    lanes: int = 1

    @property
    def cost(self) -> int:
        return sum(entry.cost for entry in self.entries)

    def cut(self, world: int, accumulate: int, caches: int = 1) -> list[list[tuple[Entry, ...]]]:
        """[world][accumulate] micro-batches that together hold every entry once, of about equal cost, some maybe empty.

        caches: equal blocks of ranks that each have a cache of a store's shards, as a host's ranks do. Lanes are dealt
        to caches, and a rank gets samples of its cache's lanes only, so each host downloads 1/caches of the data. The
        price is balance, which is then sought among the ranks of a cache only: over 8 hosts of 8 ranks, lengths being
        lognormal, the busiest rank has 1.22 times the mean of tokens with 8 proteins a rank and 1.09 with 32, against
        1.09 and 1.00 when each host can read everything. Neither the step's samples nor their slots depend on it.
        """
        if world % caches:
            raise ValueError(f"{world} ranks cannot be {caches} equal blocks of ranks, one for each cache")
        if caches > self.lanes:
            raise ValueError(
                f"data.plan.lanes = {self.lanes}, and {caches} hosts that read from a store share the lanes out: some "
                f"have nothing to train on. Set data.plan.lanes to {caches} or more, or give each host the data set"
            )
        parts: list[list[Entry]] = [[] for _ in range(caches)]
        for entry in self.entries:
            parts[entry.lane * caches // self.lanes].append(entry)
        return [rank for part in parts for rank in _cut(part, world // caches, accumulate)]


def _cut(entries: Iterable[Entry], world: int, accumulate: int) -> list[list[tuple[Entry, ...]]]:
    """[world][accumulate] parts: longest first, each to the lightest so far (LPT: at most 4/3 of the best possible).

    Ties go to the first, and the first micro-batches of all ranks come first, so a short step idles no rank before it
    must.
    """
    parts: list[list[Entry]] = [[] for _ in range(world * accumulate)]
    loads = [(0, part) for part in range(len(parts))]
    for entry in sorted(entries, key=lambda entry: (-entry.cost, entry.slot)):
        load, part = loads[0]
        parts[part].append(entry)
        heapq.heapreplace(loads, (load + entry.cost, part))
    ordered = [tuple(sorted(part, key=lambda entry: entry.slot)) for part in parts]
    return [ordered[rank::world] for rank in range(world)]


class Plan:
    """The steps of one split for one model. Pure: the same arguments and position give the same step anywhere.

    sizes: group → usable samples. given: group → the modalities that some of its samples have tokens of. left_out:
    group → samples with none of the model's modalities, or of weight 0. truncated: samples whose sequence is longer
    than the encoder's maximum (their far end is not seen). estimated: whether that is an estimate, as of a large group
    on a store, whose indices are not all read ahead.
    """

    def __init__(self, dataset: Dataset, split: str, config: PlanConfig, seed: int, spec: InputSpec) -> None:
        self.dataset, self.split, self.config, self.seed, self.spec = dataset, split, config, seed, spec
        needs = NEEDS | ({Modality.FUNCTION: Facet.TEXT | Facet.TERMS} if spec.terms else {})
        self._wanted = sum(needs[modality] for modality in spec.modalities)
        groups = dataset.groups(split)
        usable = {name: group.with_any(self._wanted) for name, group in groups.items()}
        sizes = {name: int(counts.sum()) for name, counts in usable.items()}
        weights = _weights(config.weights, sizes)
        self.sizes = {name: sizes[name] for name, weight in weights.items() if weight > 0}
        self.left_out = {name: len(group) - self.sizes.get(name, 0) for name, group in groups.items()}
        if not self.sizes:
            wants = ", ".join(spec.modalities)
            raise ValueError(f"{dataset.place}: no sample of split {split!r} has any of {wants}, or all weights are 0")
        self.weights = {name: weights[name] for name in self.sizes}
        self.groups = {name: groups[name] for name in self.sizes}
        self.given = {
            name: [m for m in group.modalities if group.with_any(needs[m]).any()] for name, group in self.groups.items()
        }
        sequences = [
            group for group in self.groups.values() if Modality.SEQUENCE in {*group.modalities} & {*spec.modalities}
        ]
        self.truncated = sum(group.longer(spec.sequence_max) for group in sequences)
        self.estimated = any(group.lengths is None and len(group.shards) > SOME for group in sequences)
        self.epoch_group = config.epoch_group or max(self.sizes, key=self.sizes.__getitem__)
        if self.epoch_group not in self.sizes:
            raise ValueError(
                f"epoch_group {self.epoch_group!r} is not one of the plan's groups: {', '.join(self.sizes)}"
            )
        self._orders = {
            name: Order(
                name,
                usable[name],
                partial(self._open, name),
                seed,
                config.lanes,
                config.window,
                place,
                config.relatives,
            )
            for place, name in enumerate(self.groups)
        }
        for group in self.groups.values() if config.relatives > 1 else ():
            self._clusters(group, 0)

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
        """Tokens of a sample, averaged over the groups by weight; of a large group over some of its shards."""
        means = {
            name: float(np.concatenate([costs(index, slice(None), self.spec) for index in group.some()]).mean())
            for name, group in self.groups.items()
        }
        return sum(self.weights[name] * means[name] for name in means) / sum(self.weights.values())

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
        step = StepPlan(position.step, entries, self.config.lanes)
        return step, Position(position.step + 1, dict(zip(self.sizes, after, strict=True)))

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
            yield StepPlan(0, entries, self.config.lanes)

    def epoch(self, position: Position) -> float:
        """Cycles of the epoch group done at `position`."""
        return position.cursors.get(self.epoch_group, 0) / self.sizes[self.epoch_group]

    def windows(self, position: Position, count: int) -> Iterator[tuple[int, int, str]]:
        """(lane, how many windows from now, shard) of every shard that is open at `position`, and of those that open
        next: `count` windows of each lane."""
        for name, group in self.groups.items():
            for lane, ahead, shards in self._orders[name].windows(position.cursors.get(name, 0), count):
                yield from ((lane, ahead, group.shards[shard]) for shard in shards.tolist())

    def _open(self, name: str, shard: int) -> tuple[NDArray[np.int64], ...]:
        """(numbers, costs) of a shard's usable samples; and their clusters, where relatives are wanted."""
        group = self.groups[name]
        index = group.index(shard)
        rows = np.flatnonzero(index.facets & np.uint8(self._wanted))
        found = group.starts[shard] + rows, costs(index, rows, self.spec)
        return found if self.config.relatives == 1 else (*found, self._clusters(group, shard)[rows].astype(np.int64))

    def _clusters(self, group: Group, shard: int) -> NDArray[np.int32]:
        """Of a shard's samples. ValueError where the data set has none."""
        found = group.index(shard).cluster
        if found is None:
            raise ValueError(
                f"data.plan.relatives = {self.config.relatives} needs to know which proteins are relatives, and the "
                f"index of {self.dataset.place / group.shards[shard]} does not say: prepare the data set again, with "
                "split.method = 'cluster'; or leave relatives at 1"
            )
        return found

    def _take(
        self, cursors: NDArray[np.int64], weights: NDArray, samples: int, slot: int
    ) -> tuple[NDArray[np.int64], tuple[Entry, ...]]:
        """The stream at `cursors`: (int64 [samples], the group each comes from; the entries, slots from `slot` on)."""
        picks = interleave(cursors, weights, samples)
        columns = np.empty((3, samples), np.int64)
        for i, order in enumerate(self._orders.values()):
            if len(mine := np.flatnonzero(picks == i)):
                taken = order.take(int(cursors[i]), len(mine))
                columns[:, mine] = taken.numbers, taken.costs, taken.lanes
        order, (numbers, cost, lanes) = list(self.groups), columns.tolist()
        names, slots = [order[pick] for pick in picks], range(slot, slot + samples)
        return picks, tuple(map(Entry, names, numbers, slots, cost, lanes))

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


def costs(index: ShardIndex, rows: NDArray[np.int64] | slice, spec: InputSpec) -> NDArray[np.int64]:
    """int64 [n]: tokens that fusion sees of these samples, from the index: exact but for texts and partial crops."""
    has = spec.modalities
    total = np.zeros(len(index.facets[rows]), dtype=np.int64)
    if Modality.SEQUENCE in has:
        total += np.minimum(index.residues[rows], min(spec.sequence_max, spec.crop))
    if Modality.STRUCTURE in has:
        total += np.minimum(index.structure[rows], min(spec.structure_max or spec.crop, spec.crop))
    if Modality.FUNCTION in has:
        total += np.minimum(-(-index.text[rows] // CHARACTERS), spec.text_max)
    if Modality.IMAGE in has:
        total += np.minimum(index.images[rows], spec.max_images) * spec.image_patches
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
