import dataclasses
import json
import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from pretrain.config import validate
from pretrain.data.collate import collate
from pretrain.data.dataset import Dataset
from pretrain.data.loader import DataConfig, Loader, Step, _Part, _unwrapped, _wrapped
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.sample import Modality


@pytest.fixture
def make_loader(dataset, make_spec) -> Callable[..., Loader]:
    def make(rank: int = 0, world: int = 1, accumulate: int = 1, workers: int = 0, data: Dataset = dataset, **over):
        spec = make_spec(crop=30)
        plan = Plan(data, "train", PlanConfig(samples=over.pop("samples", 12)), 5, spec)
        return Loader(data, plan, spec, rank, world, accumulate, workers, **over)

    return make


def contents(steps: list[Step]) -> dict[int, tuple]:
    """Slot → key, window, text and the sums of what was drawn, for every protein of one step on all ranks."""
    return {
        int(slot): (key, *batch.window[i].tolist(), *_drawn(batch, i))
        for step in steps
        for batch in step.batches
        for i, (slot, key) in enumerate(zip(batch.slots, batch.keys, strict=True))
    }


def _drawn(batch, i: int) -> tuple[float, ...]:
    parts = ((batch.structure, batch.structure.coordinates), (batch.function, batch.function.ids))
    return tuple(float(values[part.offsets[i] : part.offsets[i + 1]].double().sum()) for part, values in parts)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_step_is_the_same_on_any_ranks_and_workers(make_loader, world, workers):
    ranks = [list(islice(make_loader(rank, world, 2, workers).steps(Position()), 4)) for rank in range(world)]
    for steps in ranks:
        assert [step.plan for step in steps] == [step.plan for step in ranks[0]]
        assert [step.position for step in steps] == [step.position for step in ranks[0]]
        assert all(len(step.batches) == 2 and not step.skipped and step.waited >= 0 for step in steps)
    joined = [contents([steps[i] for steps in ranks]) for i in range(4)]
    for i, step in enumerate(joined):
        assert sorted(step) == list(range(12)) and [batch.step for batch in ranks[0][i].batches] == [i, i]
    assert joined == [contents([step]) for step in islice(make_loader().steps(Position()), 4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_as_if_nothing_had_stopped(make_loader, workers):
    steps = list(islice(make_loader(workers=workers).steps(Position()), 12))
    for stop in (0, 7):
        after = list(islice(make_loader(workers=2 - workers).steps(steps[stop].position), 11 - stop))
        assert [contents([step]) for step in after] == [contents([step]) for step in steps[stop + 1 :]]
        assert [step.position for step in after] == [step.position for step in steps[stop + 1 :]]


MANY = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
EVERY_WORLD, EVERY_WORKERS = (1, 2, 3, 4, 8), (0, 1, 2, 3, 4)


def course(make_loader, pieces: list[tuple[int, int, int, int]]) -> list[tuple]:
    """(position after it, contents) of each step, over pieces of a run: (steps, ranks, micro-batches, workers) of each,
    each piece with new loaders, from the position that the one before ended at."""
    position, found = Position(), []
    for count, world, accumulate, workers in pieces:
        ranks = [
            list(islice(make_loader(rank, world, accumulate, workers).steps(position), count)) for rank in range(world)
        ]
        for steps in zip(*ranks, strict=True):
            assert len({json.dumps(step.position.to_json()) for step in steps}) == 1
            found.append((steps[0].position, contents(list(steps))))
        position = Position.from_json(json.loads(json.dumps(ranks[0][-1].position.to_json())))
    return found


@MANY
def test_the_order_stays_when_ranks_and_workers_change_within_an_epoch(make_loader):
    """Real workers, 0 to 4 of them, and 1, 2, 3, 4 and 8 ranks: two epochs in six pieces, against one reader."""
    whole = course(make_loader, [(15, 1, 1, 0)])
    assert (
        course(make_loader, [(2, 1, 1, 4), (3, 8, 1, 0), (2, 2, 3, 3), (3, 4, 1, 1), (4, 3, 2, 2), (1, 1, 2, 4)])
        == whole
    )
    assert len({key for _, step in whole for key, *_ in step.values()}) == 90


@MANY
@pytest.mark.slow
@pytest.mark.parametrize("workers", EVERY_WORKERS)
@pytest.mark.parametrize("world", EVERY_WORLD)
def test_the_order_is_one_for_any_ranks_and_workers(make_loader, world, workers):
    whole = course(make_loader, [(9, 1, 1, 0)])
    assert course(make_loader, [(9, world, 2, workers)]) == whole
    for other, (ranks, readers) in enumerate(zip(EVERY_WORLD, reversed(EVERY_WORKERS), strict=True)):
        stop = 2 + other
        assert course(make_loader, [(stop, world, 1, workers), (9 - stop, ranks, 1, readers)]) == whole


def test_micro_batches_may_be_empty(make_loader):
    step = next(make_loader(rank=1, world=2, accumulate=4, samples=3).steps(Position()))
    assert [len(batch) for batch in step.batches] == [1, 0, 0, 0]


def test_fewer_samples_than_ranks_is_refused_at_once(make_loader):
    with pytest.raises(ValueError, match="a step of fewer samples than ranks"):
        make_loader(world=3, samples=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_training_generator_alone(make_loader, workers):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    next(make_loader(workers=workers).steps(Position()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def damage(tmp_path, write_dataset, make_protein) -> Callable[[int], Dataset]:
    """20 proteins, the first `count` of them damaged after they were written."""

    def make(count: int) -> Dataset:
        held = [make_protein(f"P{i:02d}", Modality.SEQUENCE) for i in range(20)]
        data = Dataset.open(write_dataset(tmp_path / str(count), {"train": held}, partitions=1))
        group = data.groups("train")["sequence"]
        tar: Path = data.path / group.shard(0)
        damaged = bytearray(tar.read_bytes())
        for i in range(count):
            damaged[group.row(i).offset + group.row(i).size - 600] ^= 1
        tar.write_bytes(damaged)
        return data

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_skipped_counted_and_named(make_loader, damage, workers, caplog):
    with caplog.at_level(logging.WARNING, "pretrain.data.loader"):
        steps = list(
            islice(make_loader(data=damage(3), samples=10, workers=workers, accumulate=2).steps(Position()), 2)
        )
    skipped = [name for step in steps for name in step.skipped]
    assert sorted(name[:29] for name in skipped) == [f"train/sequence/00000.tar: P0{i}" for i in range(3)]
    assert all("checksum is wrong" in name for name in skipped)
    assert sum(len(batch) for step in steps for batch in step.batches) == 17
    assert caplog.text.count("skipped a damaged sample: train/sequence/00000.tar: P0") == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_many_damaged_samples_in_a_row_stop_the_run(make_loader, damage, workers):
    steps = make_loader(data=damage(20), samples=4, workers=workers, max_damaged_in_row=9).steps(Position())
    assert [len(next(steps).batches[0]) for _ in range(2)] == [0, 0]
    with pytest.raises(ValueError, match=r"10 damaged samples in a row, the last train/sequence/00000.tar: P\d\d: "):
        next(steps)


def test_a_few_between_good_ones_do_not(make_loader, damage):
    loader = make_loader(data=damage(10), samples=20, max_damaged_in_row=10)
    assert all(len(step.skipped) == 10 for step in islice(loader.steps(Position()), 5))


def test_a_sample_that_cannot_be_drawn_is_skipped_too(tmp_path, write_dataset, make_protein, make_loader):
    held = [make_protein(f"I{i}", Modality.IMAGE) for i in range(3)]
    object.__setattr__(held[1].images[0], "data", b"no PNG, though its checksum is right")
    data = Dataset.open(write_dataset(tmp_path, {"train": held}, partitions=1))
    step = next(make_loader(data=data, samples=3).steps(Position()))
    assert len(step.batches[0]) == 2
    assert step.skipped[0].startswith("train/image/00000.tar: I1: image I1_0 cannot be read as PNG")


@pytest.mark.parametrize("world", [1, 3])
def test_a_pass_over_a_split_sees_every_sample_once_with_the_same_draws(dataset, make_spec, world):
    def once(samples: int, limit: int | None = None) -> dict[str, tuple]:
        plan = Plan(dataset, "valid", PlanConfig(samples=samples), 0, make_spec(crop=20))
        loaders = [Loader(dataset, plan, make_spec(crop=20), rank, world, 1) for rank in range(world)]
        ranks = [[batch for step in loader.once(limit) for batch in step.batches] for loader in loaders]
        assert len({len(batches) for batches in ranks}) == 1
        found = [
            (key, (int(batch.slots[i]), batch.step, *batch.window[i].tolist(), *_drawn(batch, i)))
            for batches in ranks
            for batch in batches
            for i, key in enumerate(batch.keys)
        ]
        assert len(found) == len(dict(found))
        return dict(found)

    every = once(6)
    assert len(every) == 20 and {values[1] for values in every.values()} == {0}
    assert sorted(values[0] for values in every.values()) == list(range(20))
    assert once(7) == every == once(20)
    some = once(6, limit=9)
    assert len(some) == 9 and some.items() <= every.items()


def test_the_data_configuration_is_strict():
    config = validate(DataConfig, {"path": "data/tiny", "plan": {"samples": 8}}, "test")
    assert config.workers == 0 and config.plan == PlanConfig(samples=8)
    with pytest.raises(ValueError, match="did you mean 'workers'"):
        validate(DataConfig, {"path": "x", "plan": {"samples": 8}, "worker": 3}, "test")
    with pytest.raises(ValueError, match="one of `samples`"):
        validate(DataConfig, {"path": "x", "plan": {}}, "test")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_batch_leaves_a_worker_as_it_was(dataset, make_spec, count):
    group = dataset.groups("train")["sequence_structure_function_image"]
    samples = [dataset.read("train", group.name, i) for i in range(count)]
    batch = collate(samples, range(count), 1, 2, make_spec())
    copy = _unwrapped(_wrapped(_Part(batch, ("",) * count))).batch
    assert (copy.keys, copy.seed, copy.step, list(copy.lengths)) == (batch.keys, 1, 2, list(Modality))
    held = [(getattr(copy, name), getattr(batch, name)) for name in ("sequence", "structure", "function", "image")]
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for a, b in held for f in dataclasses.fields(a)]
    pairs += [(copy.slots, batch.slots), (copy.window, batch.window)]
    pairs += [(copy.lengths[modality], batch.lengths[modality]) for modality in Modality]
    for a, b in pairs:
        assert a.dtype == b.dtype and torch.equal(a, b)
