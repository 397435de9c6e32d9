import dataclasses
import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from uuid import uuid4

import pytest

from pretrain.config import dump, validate
from pretrain.data.cache import Cache
from pretrain.data.dataset import Dataset
from pretrain.data.index import SOME
from pretrain.data.plan import Entry, Plan, PlanConfig, Position, StepPlan
from pretrain.places import Place
from pretrain.sample import Modality


@pytest.fixture
def make_plan(dataset, make_spec):
    def make(
        seed: int = 7, modalities: tuple[Modality, ...] = tuple(Modality), spec: dict | None = None, **config
    ) -> Plan:
        config = config or {"samples": 8}
        return Plan(dataset, "train", PlanConfig(**config), seed, make_spec(modalities=modalities, **(spec or {})))

    return make


def steps_of(plan: Plan, count: int, position: Position | None = None) -> list[StepPlan]:
    position, steps = position or Position(), []
    for _ in range(count):
        step, position = plan.next(position)
        steps.append(step)
    return steps


def test_a_cycle_of_every_group_covers_the_split_once(make_plan, dataset):
    plan = make_plan(samples=9)
    entries = [entry for step in steps_of(plan, 10) for entry in step.entries]
    assert Counter((entry.group, entry.index) for entry in entries) == Counter(
        (name, i) for name, group in dataset.groups("train").items() for i in range(len(group))
    )
    assert [entry.slot for entry in entries] == list(range(9)) * 10
    assert [step.step for step in steps_of(plan, 3)] == [0, 1, 2]


@pytest.mark.parametrize("config", [{"samples": 8}, {"tokens": 500}])
def test_any_position_continues_the_same(make_plan, config):
    first = make_plan(**config)
    position, steps, positions = Position(), [], []
    for _ in range(30):
        positions.append(position)
        step, position = first.next(position)
        steps.append(step)
    assert positions[-1].cursors[first.epoch_group] > first.sizes[first.epoch_group]  # into a second cycle
    for begin in (29, 11, 0, 20):
        stored = Position.from_json(json.loads(json.dumps(positions[begin].to_json())))
        assert stored == positions[begin] and stored.step == begin
        assert steps_of(make_plan(**config), 30 - begin, stored) == steps[begin:]
    assert steps_of(make_plan(seed=8, **config), 2) != steps[:2]


def test_weights_set_the_shares(make_plan):
    names = ("function", "sequence", "sequence_structure", "sequence_structure_function", "structure")
    weights = {**dict.fromkeys(names, 1.0), "sequence_structure_function_image": 3.0, "function": 0.0}
    plan = make_plan(samples=7, weights=weights)
    count = Counter(entry.group for step in steps_of(plan, 40) for entry in step.entries)
    assert count.pop("sequence_structure_function_image") == 120
    assert set(count.values()) == {40} and len(count) == 4
    assert plan.left_out["function"] == 10 and plan.left_out["sequence"] == 0


def test_steps_by_tokens_keep_to_their_budget(make_plan):
    steps = steps_of(make_plan(tokens=300, spec={"crop": 1000, "sequence_max": 1000}), 60)
    following = [step.entries[0].cost for step in steps[1:]]
    for step, next_cost in zip(steps, following, strict=False):
        assert step.cost <= 300 < step.cost + next_cost
    steps = steps_of(make_plan(tokens=90, spec={"crop": 1000, "sequence_max": 1000}), 60)
    alone = [step for step in steps if step.cost > 90]
    assert alone and all(len(step.entries) == 1 for step in alone)


def test_costs_are_the_tokens_of_a_sample(dataset, make_plan, make_spec):
    plan = make_plan(samples=90, spec={"crop": 40, "sequence_max": 50})
    for entry in steps_of(plan, 1)[0].entries:
        sample = dataset.read("train", entry.group, entry.index)
        texts = sample.function.texts if sample.function else ()
        cost = min(len(sample.sequence or ""), 40)
        cost += min(max((len(structure) for structure in sample.structures), default=0), 40)
        cost += min(-(-max((len(text.text) for text in texts), default=0) // 4), 16)
        assert entry.cost == cost + 4 * min(len(sample.images), 2)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_cut_keeps_every_entry_and_balances(make_plan, world, accumulate):
    for step in steps_of(make_plan(samples=30), 3):
        cut = step.cut(world, accumulate)
        assert [len(parts) for parts in cut] == [accumulate] * world
        every = [entry for parts in cut for part in parts for entry in part]
        assert sorted(entry.slot for entry in every) == list(range(30)) and set(every) == set(step.entries)
        loads = [sum(entry.cost for entry in part) for parts in cut for part in parts]
        assert max(loads) - min(loads) <= max(entry.cost for entry in step.entries)
        assert cut == step.cut(world, accumulate)


def test_fewer_lanes_than_caches_are_refused(make_plan):
    step, _ = make_plan(samples=40, lanes=1).next(Position())
    assert len(step.cut(4, 2, 1)) == 4
    with pytest.raises(ValueError, match=r"lanes = 1, and 2 hosts .* Set data\.plan\.lanes to 2 or more"):
        step.cut(4, 2, 2)


@pytest.mark.parametrize("caches", [1, 2, 4])
def test_each_cache_gets_its_own_lanes(make_plan, caches):
    plan, seen = make_plan(samples=30, lanes=4), {}
    for step in steps_of(plan, 9):
        cut = step.cut(4, 2, caches)
        assert [len(parts) for parts in cut] == [2] * 4
        assert sorted(entry.slot for parts in cut for part in parts for entry in part) == list(range(30))
        for rank, parts in enumerate(cut):
            for entry in (entry for part in parts for entry in part):
                shard = plan.groups[entry.group].shard(entry.index)
                assert seen.setdefault(shard, rank * caches // 4) == rank * caches // 4 or caches == 1
    with pytest.raises(ValueError, match="4 ranks cannot be 3 equal blocks"):
        StepPlan(0, ()).cut(4, 1, 3)


@pytest.mark.parametrize("count", [1, 3])
def test_windows_are_what_the_next_samples_are_read_from(make_plan, count):
    plan = make_plan(samples=3, lanes=2, window=1)
    position = Position()
    for _ in range(70):
        windows = [(ahead, lane, shard) for lane, ahead, shard in plan.windows(position, count)]
        step, after = plan.next(position)
        for entry in step.entries:  # three samples never go beyond the next window of a lane, except by its end
            shard = plan.groups[entry.group].shard(entry.index)
            ahead = [ahead for ahead, lane, at in windows if (lane, at) == (entry.lane, shard)]
            assert ahead if count == 3 else entry.slot or ahead == [0]
        position = after


def test_a_short_step_fills_one_micro_batch_of_each_rank_first():
    step = StepPlan(0, tuple(Entry("sequence", i, i, 10) for i in range(3)))
    assert [[len(part) for part in parts] for parts in step.cut(2, 3)] == [[1, 1, 0], [1, 0, 0]]
    assert StepPlan(0, ()).cut(2, 2) == [[(), ()], [(), ()]]


def test_a_step_of_fewer_samples_than_ranks_is_an_error(make_plan):
    make_plan(samples=4).check(4, 8)
    with pytest.raises(ValueError, match="a step of fewer samples than ranks: samples = 4, 5 ranks; set samples to 5"):
        make_plan(samples=4).check(5, 1)
    plan = make_plan(tokens=200)
    plan.check(2, 1)
    with pytest.raises(ValueError, match=r"a step of fewer samples than ranks: tokens = 200.*set tokens to"):
        plan.check(20, 1)
    with pytest.raises(ValueError, match="at least 1"):
        plan.check(1, 0)


def test_samples_without_the_models_modalities_are_left_out_and_counted(make_plan, dataset):
    plan = make_plan(modalities=(Modality.STRUCTURE,))
    assert sum(plan.sizes.values()) == 70 and plan.left_out["sequence"] == 10 and plan.left_out["function"] == 10
    assert {entry.group for step in steps_of(plan, 20) for entry in step.entries} == set(plan.sizes)
    with pytest.raises(ValueError, match="no sample of split 'valid' has any of image"):
        groups = {name: group for name, group in dataset.groups("valid").items() if "image" not in name}
        small = dataclasses.replace(dataset, splits={"valid": groups})
        Plan(small, "valid", plan.config, 0, dataclasses.replace(plan.spec, modalities=(Modality.IMAGE,)))


def test_terms_without_a_text_are_no_function(tmp_path, write_dataset, make_protein, make_spec):
    held = [make_protein(f"F{i}", Modality.FUNCTION, texts=i % 2) for i in range(10)]
    data = Dataset.open(write_dataset(tmp_path, {"train": held}, partitions=3))
    plan = Plan(data, "train", PlanConfig(samples=5), 0, make_spec())
    assert plan.sizes == {"function": 5} and plan.left_out == {"function": 5}
    group = data.groups("train")["function"]
    assert {group.key(entry.index) for entry in plan.next(Position())[0].entries} == {f"F{i}" for i in range(1, 10, 2)}


def test_truncated_counts_sequences_beyond_the_encoder(make_plan, dataset):
    long = sum(int((i.residues > 50).sum()) for group in dataset.groups("train").values() for i in group.some())
    assert long and make_plan(spec={"sequence_max": 50}).truncated == long
    assert make_plan(spec={"sequence_max": 50}, modalities=(Modality.STRUCTURE,)).truncated == 0


@pytest.mark.parametrize(("shards", "estimated"), [(SOME, False), (SOME + 1, True)])
def test_on_a_store_truncated_is_an_estimate_where_not_every_index_was_read(
    tmp_path, write_dataset, make_protein, make_spec, shards, estimated
):
    proteins = [make_protein(f"P{i}", Modality.SEQUENCE, length=10 + i % 80) for i in range(15 * shards)]
    proteins += [make_protein(f"F{i}", Modality.FUNCTION) for i in range(10 * shards)]
    folder, place = write_dataset(tmp_path / "data", {"train": proteins}, shards), Place(f"memory://{uuid4().hex}/data")
    for path in folder.rglob("*.*"):
        place.write(path.relative_to(folder).as_posix(), path.read_bytes())
    spec = make_spec(sequence_max=70)
    local, remote = (
        Plan(Dataset.open(where, Cache(tmp_path / "cache", 1 << 30)), "train", PlanConfig(samples=8), 0, spec)
        for where in (folder, place)
    )
    assert [len(group.shards) for group in remote.groups.values()] == [shards, shards]
    assert local.truncated == sum(len(each.sequence) > 70 for each in proteins if each.sequence) > 10
    assert (local.estimated, remote.estimated) == (False, estimated)
    assert abs(remote.truncated - local.truncated) <= (len(proteins) // 8 if estimated else 0)


def test_epochs_are_cycles_of_one_group(make_plan):
    plan = make_plan(samples=9)
    assert plan.epoch_group == "sequence_structure_function_image" and plan.sizes[plan.epoch_group] == 40
    position = Position()
    for _ in range(15):
        position = plan.next(position)[1]
    assert plan.epoch(position) == 1.5 and plan.epoch(Position()) == 0
    assert make_plan(samples=9, epoch_group="function").epoch_group == "function"
    with pytest.raises(ValueError, match="epoch_group 'funktion' is not one of"):
        make_plan(samples=9, epoch_group="funktion")


@pytest.mark.parametrize("limit", [None, 1, 17, 1000])
def test_a_pass_sees_each_sample_once_in_one_order(make_plan, limit):
    steps = list(make_plan(samples=8).once(limit))
    entries = [entry for step in steps for entry in step.entries]
    assert len(entries) == min(limit or 90, 90) and len({(entry.group, entry.index) for entry in entries}) == len(
        entries
    )
    assert [entry.slot for entry in entries] == list(range(len(entries))) and {step.step for step in steps} == {0}
    assert entries == [entry for step in make_plan(samples=30).once(limit) for entry in step.entries]
    if limit == 17:
        assert Counter(entry.group for entry in entries)["sequence_structure_function_image"] in (7, 8)  # 17 × 40 / 90


@pytest.mark.parametrize(
    "wrong", [{}, {"samples": 4, "tokens": 9}, {"samples": 0}, {"samples": 1, "weights": {"a": -1}}]
)
def test_wrong_configurations(wrong):
    with pytest.raises(ValueError, match="problem"):
        validate(PlanConfig, wrong, "test")


def test_configurations_survive_their_dump():
    config = PlanConfig(tokens=100, weights={"sequence": 2.0})
    assert validate(PlanConfig, dump(config), "test") == config


def test_weights_name_every_group(make_plan):
    with pytest.raises(ValueError, match="weights name sequence; the split's groups are function, sequence, "):
        make_plan(samples=2, weights={"sequence": 1.0})


def test_a_position_of_other_data_is_refused(make_plan):
    with pytest.raises(ValueError, match="cursors for image"):
        make_plan().next(Position(3, {"image": 4}))


def test_a_pass_needs_steps_by_count(make_plan):
    with pytest.raises(ValueError, match="`samples` per step"):
        list(islice(make_plan(tokens=100).once(), 1))


def stream(plan: Plan, pieces: list[tuple[int, int, int]]) -> list[tuple[str, int, int]]:
    """The samples in order of step and slot, over pieces of a run: (steps, ranks, micro-batches per rank) of each."""
    position, found = Position(), []
    for count, world, accumulate in pieces:
        position = Position.from_json(json.loads(json.dumps(position.to_json())))
        for _ in range(count):
            step, position = plan.next(position)
            parts = [part for rank in step.cut(world, accumulate) for part in rank]
            assert len(parts) == world * accumulate
            found += sorted(
                (step.step, entry.slot, entry.group, entry.index, entry.cost) for part in parts for entry in part
            )
    return found


@pytest.mark.parametrize("config", [{"samples": 8}, {"tokens": 500, "lanes": 3}])
def test_any_ranks_and_micro_batches_also_changed_on_the_way_give_one_stream(make_plan, config):
    whole = stream(make_plan(**config), [(30, 1, 1)])
    for world in (1, 2, 3, 4, 8):
        for accumulate in (1, 2, 5):
            assert stream(make_plan(**config), [(30, world, accumulate)]) == whole
    assert stream(make_plan(**config), [(4, 2, 1), (1, 8, 3), (11, 3, 2), (14, 4, 1)]) == whole


MEMORY = """
import tracemalloc
import numpy as np
from pretrain.data.draw import InputSpec
from pretrain.data.index import Group, ShardIndex
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.sample import Modality

SHARDS = EACH = 10_000
lengths = np.random.default_rng(0).integers(30, 2000, EACH).astype(np.int32)
keys = tuple(map(str, range(EACH)))

class Indices:  # as if it were read, each time
    def of(self, shard, facets):
        none = np.zeros(EACH, np.int32)
        offset, crc, kinds = np.zeros(EACH, np.int64), np.zeros(EACH, np.uint32), np.full(EACH, 3, np.uint8)
        return ShardIndex(keys, offset, offset, crc, kinds, lengths.copy(), lengths.copy(), none, none)

class Data:
    def groups(self, split):
        facets = np.zeros((SHARDS, 32), np.int32)
        facets[:, 3] = EACH
        shards = tuple(f"train/sequence_structure/{i:05d}.tar" for i in range(SHARDS))
        kinds = (Modality.SEQUENCE, Modality.STRUCTURE)
        starts = np.arange(SHARDS + 1) * EACH
        return {"sequence_structure": Group("sequence_structure", kinds, shards, starts, facets, None, Indices())}

tracemalloc.start()
spec = InputSpec(1024, None, None, 64, 64, 16, 512, 4, tuple(Modality)[:2])
plan = Plan(Data(), "train", PlanConfig(samples=256), 0, spec)
assert plan.sizes == {"sequence_structure": 10**8}
for cursor in (0, 77_777_777, 10**8 - 5, 3 * 10**8 + 12_345_678):
    step, after = plan.next(Position(1, {"sequence_structure": cursor}))
    assert len(step.entries) == 256 and after.cursors == {"sequence_structure": cursor + 256}
print(tracemalloc.get_traced_memory()[1])
"""


def test_a_plan_of_a_hundred_million_samples_is_small():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100e6  # bytes; one per sample would be as many
