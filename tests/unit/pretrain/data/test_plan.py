import dataclasses
import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from pretrain.config import dump, validate
from pretrain.data.index import Dataset
from pretrain.data.plan import Entry, Order, Plan, PlanConfig, Position, StepPlan, interleave
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


@pytest.mark.parametrize("window", [1, 2, 3, 5, 100])
def test_each_cycle_is_an_exact_permutation(window):
    starts = np.array([0, 7, 7, 20, 21, 40])  # one shard is empty
    usable = np.arange(40) % 5 != 2
    usable[20] = False  # and one has nothing usable
    kept = np.flatnonzero(usable).tolist()
    order = Order("sequence", starts, usable, 3, window)
    n = len(kept)
    cycles = [order.take(cycle * n, n).tolist() for cycle in range(4)]
    assert all(sorted(cycle) == kept for cycle in cycles)
    assert len({tuple(cycle) for cycle in cycles}) == 4
    whole = [i for cycle in cycles for i in cycle]
    for begin, count in [(0, 1), (5, n), (n - 1, 2), (n - 3, 2 * n), (2 * n + 5, 0), (17, 60)]:
        assert Order("sequence", starts, usable, 3, window).take(begin, count).tolist() == whole[begin : begin + count]


def test_shuffling_touches_few_shards_at_a_time():
    starts = np.arange(0, 1010, 10)
    order = Order("sequence", starts, np.ones(1000, bool), 1, 4).take(0, 1000)
    shards = order // 10
    for begin in range(0, 1000, 40):
        assert len(set(shards[begin : begin + 40].tolist())) == 4
        assert (np.diff(shards[begin : begin + 40]) != 0).mean() > 0.5  # and mixes them
    assert not np.array_equal(order, Order("sequence", starts, np.ones(1000, bool), 2, 4).take(0, 1000))
    assert not np.array_equal(order, Order("structure", starts, np.ones(1000, bool), 1, 4).take(0, 1000))


def test_orders_of_a_hundred_million_samples_are_found_without_replay():
    usable = np.ones(100_000_000, bool)
    order = Order("sequence", np.arange(0, len(usable) + 1, 10_000), usable, 1, 8)
    place = 5 * len(usable) + 77_777_777
    assert order.take(place, 3).tolist() == order.take(place - 2, 5).tolist()[2:]


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


def test_every_prefix_is_within_one_of_its_share():
    weights = np.array([5.0, 1.0, 0.3])
    picks = interleave(np.zeros(3, np.int64), weights, 500)
    for n in range(1, 501):
        share = n * weights / weights.sum()
        assert (np.abs(np.bincount(picks[:n], minlength=3) - share) <= 1 + 1e-9).all()
    middle = np.bincount(picks[:123], minlength=3)
    assert interleave(middle, weights, 377).tolist() == picks[123:].tolist()


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
    long = sum(int((group.residues > 50).sum()) for group in dataset.groups("train").values())
    assert long and make_plan(spec={"sequence_max": 50}).truncated == long
    assert make_plan(spec={"sequence_max": 50}, modalities=(Modality.STRUCTURE,)).truncated == 0


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
