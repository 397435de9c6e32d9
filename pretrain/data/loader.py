"""Position → steps: the plan runs in the main process, reading and drawing in workers, and steps come out in order.

A worker gets a micro-batch's list of entries and gives back a `Batch`; it holds no state that matters. So what a step
contains, and where resume begins, cannot depend on how many workers there are or how far ahead they read.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as MapDataset

from pretrain.batch import Batch
from pretrain.config import Config
from pretrain.data.cache import CACHE_GIB, GIB, Cache, default_folder
from pretrain.data.collate import pack
from pretrain.data.dataset import Dataset
from pretrain.data.draw import InputSpec, draw
from pretrain.data.files import Ahead, Fetcher
from pretrain.data.index import index_path
from pretrain.data.labels import LabelTable
from pretrain.data.plan import Entry, Plan, PlanConfig, Position, StepPlan
from pretrain.data.stored import Mode, Stored
from pretrain.sample import CorruptSample

log = logging.getLogger(__name__)

AHEAD = 2  # micro-batches that each worker prepares ahead
DAMAGED_IN_ROW = 16
ALIGNED = 8  # bytes; the widest element that a batch has

_Planned = tuple[StepPlan, Position, Position | None]  # a step, the position after it and, of a run, before it


class DataConfig(Config):
    """Which data set, how steps are made of it, how they are read.

    workers: processes per rank that read ahead; 0 reads in the training process. max_damaged_in_row: samples in a row
    that may be damaged (they are skipped, counted and named) before the run stops. features: encoders' features are
    read where `fourfold encode` has stored them (`auto`), must be there (`stored`), or are computed (`live`).
    labels: a file of labels for models that learn them (`pretrain.data.labels` says its form).
    path: a folder, or any URL that fsspec opens. What is read of a store is kept below `cache` on the local disk (by
    default below the system's temporary folder), up to `cache_gib` GiB, shared by all ranks and workers of a host.
    """

    path: str
    plan: PlanConfig
    workers: int = pydantic.Field(default=0, ge=0)
    max_damaged_in_row: int = pydantic.Field(default=DAMAGED_IN_ROW, ge=0)
    features: Mode = "auto"
    labels: str | None = None
    cache: str | None = None
    cache_gib: float = pydantic.Field(default=CACHE_GIB, gt=0)

    def open(self) -> Dataset:
        """The data set. Raises ValueError as `Dataset.open` does."""
        folder = Path(self.cache).absolute() if self.cache else default_folder()
        return Dataset.open(self.path, Cache(folder, int(self.cache_gib * GIB)))


@dataclass(frozen=True, eq=False)
class Step:
    """One step as one rank sees it.

    plan: the whole step's, all ranks' entries. position: after this step; a checkpoint made now stores it.
    batches: this rank's micro-batches, exactly G, some possibly of zero proteins. skipped: this rank's damaged samples,
    `shard: key: what`. waited: seconds that the training process spent waiting for this step's data.
    """

    plan: StepPlan
    position: Position
    batches: tuple[Batch, ...]
    skipped: tuple[str, ...]
    waited: float


class Loader:
    """This rank's part of every step of a plan; stored: the features that are read instead of encoded.

    caches: into how many equal blocks the ranks fall that share a local disk; lanes are dealt to these where the data
    set is on a store (`StepPlan.cut`). Raises ValueError for a step that cannot be cut over the ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        spec: InputSpec,
        rank: int,
        world: int,
        accumulate: int,
        workers: int = 0,
        max_damaged_in_row: int = DAMAGED_IN_ROW,
        stored: Stored | None = None,
        caches: int = 1,
        labels: LabelTable | None = None,
    ) -> None:
        plan.check(world, accumulate)
        self._remote = dataset.files.cache is not None
        self._stored, self.caches = stored, caches if self._remote else 1
        self.plan, self.rank, self.world, self.accumulate = plan, rank, world, accumulate
        self.workers, self.max_damaged_in_row = workers, max_damaged_in_row
        self._reader = _Reader(dataset, plan.split, plan.seed, spec, stored, labels)

    def steps(self, position: Position) -> Iterator[Step]:
        """Endless: the step at `position` and those after it."""

        def planned() -> Iterator[_Planned]:
            after = position
            while True:
                before = after
                plan, after = self.plan.next(before)
                yield plan, after, before

        return self._run(planned())

    def once(self, limit: int | None = None) -> Iterator[Step]:
        """Every sample of the split once, or the first `limit`; see `Plan.once`. Equally many steps on every rank."""
        return self._run((plan, Position(), None) for plan in self.plan.once(limit))

    def _run(self, planned: Iterable[_Planned]) -> Iterator[Step]:
        sent: deque[tuple[StepPlan, Position]] = deque()  # planned for the workers, not yet given out

        def works() -> Iterator[_Work]:
            ahead, unsent = Ahead(), 0
            for plan, after, before in planned:
                sent.append((plan, after))
                if self._remote and before and ahead != (ahead := self._ahead_of(before)):
                    unsent = max(1, self.workers)  # micro-batches go to the workers in turn
                for entries in plan.cut(self.world, self.accumulate, self.caches)[self.rank]:
                    yield _Work(plan.step, entries, ahead if unsent else None)
                    unsent = max(0, unsent - 1)

        parts, in_row = iter(self._ahead(works())), 0
        while True:
            began = time.perf_counter()
            got = [_received(part) for part in islice(parts, self.accumulate)]
            if not got:
                return
            waited = time.perf_counter() - began
            in_row = self._note([outcome for part in got for outcome in part.outcomes], in_row)
            skipped = tuple(outcome for part in got for outcome in part.outcomes if outcome)
            yield Step(*sent.popleft(), tuple(part.batch for part in got), skipped, waited)

    def _ahead_of(self, position: Position) -> Ahead:
        """What this rank's cache has open at a position, and what comes next."""
        mine = self.rank * self.caches // self.world
        windows = list(self.plan.windows(position, 2))
        here = [(i, shard) for lane, i, shard in windows if lane * self.caches // self.plan.config.lanes == mine]
        open, following = ([shard for i, shard in here if i == ahead] for ahead in (0, 1))
        features = self._stored.files if self._stored else lambda shard: []
        return Ahead(
            tuple(file for shard in open for file in (shard, *features(shard))),
            tuple(file for shard in following for file in (index_path(shard), shard, *features(shard))),
        )

    def _ahead(self, works: Iterator["_Work"]) -> DataLoader:
        if self.workers:  # the library warns, or hangs, when its threads have run before a fork
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=works,  # type: ignore[arg-type]  # an iterable serves; only its order is used
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # one part, where the library expects a list
            generator=torch.Generator(),  # its own: making an iterator must not move the training's generator
        )

    def _note(self, outcomes: list[str], in_row: int) -> int:
        """Warn of each damaged sample; ValueError after too many in a row. Returns how many in a row there are now."""
        for what in outcomes:
            in_row = in_row + 1 if what else 0
            if what:
                log.warning("skipped a damaged sample: %s", what)
            if in_row > self.max_damaged_in_row:
                raise ValueError(
                    f"{in_row} damaged samples in a row, the last {what}; the data set is broken: compare its files "
                    "with the hashes in its manifest, and copy or prepare it again (max_damaged_in_row is the limit)"
                )
        return in_row


@dataclass(frozen=True)
class _Work:
    """A micro-batch to read; ahead: what has become of the windows since the last one, where that matters."""

    step: int
    entries: tuple[Entry, ...]
    ahead: Ahead | None = None


@dataclass(frozen=True, eq=False)
class _Part:
    """A micro-batch, and per entry what was wrong with it ("" for nothing)."""

    batch: Batch
    outcomes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Parcel:
    """A part on its way out of a worker: one block of bytes, and the part with a `_Place` for each tensor.

    A tensor sent by itself costs the training process 0.15 ms, and a batch has about twenty.
    """

    block: Tensor
    outline: _Part


class _Place(NamedTuple):
    """Where in a block a tensor's bytes are, and what they mean."""

    begin: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def view(self, block: Tensor) -> Tensor:
        return block[self.begin : self.begin + self.size].view(self.dtype).view(self.shape)


def _received(result: "_Part | _Parcel | str") -> _Part:
    """What a worker gave. Raises ValueError for what it could not read at all."""
    if isinstance(result, str):
        raise ValueError(result)
    return result if isinstance(result, _Part) else _unwrapped(result)


def _wrapped(part: _Part) -> _Parcel:
    placed: list[tuple[_Place, Tensor]] = []
    end = 0

    def place(value: Any) -> Any:
        nonlocal end
        if not isinstance(value, Tensor):
            return value
        placed.append((_Place(end, value.nbytes, value.dtype, tuple(value.shape)), value))
        end += -(-value.nbytes // ALIGNED) * ALIGNED
        return placed[-1][0]

    outline = _each(part, place)
    block = torch.empty(end, dtype=torch.uint8)
    for where, tensor in placed:
        where.view(block).copy_(tensor)
    return _Parcel(block, outline)


def _unwrapped(parcel: _Parcel) -> _Part:
    """The part, its tensors views of the block."""
    return _each(parcel.outline, lambda value: value.view(parcel.block) if isinstance(value, _Place) else value)


def _each(record: Any, change: Callable[[Any], Any]) -> Any:
    """The record, with `change` applied to what its fields and its fields' fields hold."""
    if is_dataclass(record) and not isinstance(record, type):
        return replace(record, **{f.name: _each(getattr(record, f.name), change) for f in fields(record)})
    if isinstance(record, Mapping):
        return {key: _each(value, change) for key, value in record.items()}
    return change(record)


class _Reader(MapDataset):
    """Work → part, or in words why it cannot be read; what runs in a worker."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        seed: int,
        spec: InputSpec,
        stored: Stored | None,
        labels: LabelTable | None = None,
    ) -> None:
        self._dataset, self._split, self._seed, self._spec, self._stored = dataset, split, seed, spec, stored
        self._labels = labels
        self._fetcher: Fetcher | None = None

    def __getitem__(self, work: _Work) -> _Part | _Parcel | str:
        if work.ahead:
            self._fetcher = self._fetcher or Fetcher(self._dataset.files)
            self._fetcher.want(work.ahead)
            self._dataset.files.retain(work.ahead.open)
        try:
            part = self._read(work)
        except (ValueError, OSError) as error:
            return str(error)
        return part if get_worker_info() is None else _wrapped(part)

    def _read(self, work: _Work) -> _Part:
        rows, outcomes = [], []
        for entry in work.entries:
            try:
                sample = self._dataset.read(self._split, entry.group, entry.index)
                held = self._stored and self._stored.sample(self._split, entry.group, entry.index)
                row = draw(sample, entry.slot, self._seed, work.step, self._spec, held)
                rows.append(replace(row, label=self._labels.label(sample, row)) if self._labels else row)
                outcomes.append("")
            except CorruptSample as error:
                outcomes.append(self._named(entry, str(error)))
        widths = self._stored.widths if self._stored else None
        return _Part(pack(rows, self._seed, work.step, self._spec, widths), tuple(outcomes))

    def _named(self, entry: Entry, what: str) -> str:
        group = self._dataset.splits[self._split][entry.group]
        place = f"{group.shard(entry.index)}: {group.key(entry.index)}: "
        return what if what.startswith(place) else place + what


def _as_it_is(part: _Part | _Parcel | str) -> _Part | _Parcel | str:
    return part
