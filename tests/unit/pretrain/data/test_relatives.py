"""Proteins of one cluster next to each other: an order like any other, found from any place."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.config import load
from pretrain.data.dataset import Dataset
from pretrain.data.index import SUFFIX, ShardIndex
from pretrain.data.order import Order, gathered
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.encoders.bundle import Encoders
from pretrain.run import RunConfig, identity_of
from pretrain.sample import Modality

GROUP = "sequence"


def slowly(clusters: list[int], most: int) -> list[int]:
    """One sample after another: who is not in a run yet begins one, of the next ones of its cluster."""
    order: list[int] = []
    for i, cluster in enumerate(clusters):
        if i not in order:
            order += [j for j in range(i, len(clusters)) if clusters[j] == cluster and j not in order][:most]
    return order


@pytest.mark.parametrize("most", [1, 2, 3, 100])
@pytest.mark.parametrize("kinds", [1, 4, 30, 1000])
def test_runs_are_those_of_a_slow_twin(most: int, kinds: int) -> None:
    for seed, size in ((0, 60), (1, 1), (2, 0)):
        clusters = np.random.default_rng(seed).integers(-5, kinds, size)
        assert gathered(clusters, most).tolist() == slowly(clusters.tolist(), most)


def order_of(relatives: int, lanes: int = 2, window: int = 2) -> Order:
    """Five shards of twelve samples; sample i is of cluster i % 7."""

    def open(shard: int) -> tuple[np.ndarray, ...]:
        numbers = 12 * shard + np.arange(12)
        return numbers, numbers, numbers % 7

    return Order(GROUP, np.full(5, 12), open, 3, lanes, window, relatives=relatives)


@pytest.mark.parametrize("window", [1, 2, 9])
def test_each_cycle_is_still_an_exact_permutation(window: int) -> None:
    whole = order_of(3, window=window).take(0, 240).numbers.tolist()
    for cycle in range(4):
        assert sorted(whole[60 * cycle : 60 * cycle + 60]) == list(range(60))
    for begin, count in ((0, 1), (17, 60), (59, 2), (130, 100)):
        again = order_of(3, window=window).take(begin, count)
        assert again.numbers.tolist() == whole[begin : begin + count]
        assert again.costs.tolist() == again.numbers.tolist()
    lanes = [order_of(relatives, window=window).take(0, 240).lanes.tolist() for relatives in (1, 3)]
    assert lanes[0] == lanes[1]


def test_relatives_follow_each_other() -> None:
    numbers = order_of(3, lanes=1, window=9).take(0, 60).numbers % 7
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers)) + 1)
    assert max(len(run) for run in runs) >= 3 and np.mean([len(run) for run in runs]) > 2.5
    plain = order_of(1, lanes=1, window=9).take(0, 60).numbers % 7
    assert (np.diff(plain) == 0).sum() < 20 < (np.diff(numbers) == 0).sum()


@pytest.fixture
def clustered(tmp_path: Path, write_dataset, make_protein) -> Dataset:
    samples = [make_protein(f"P{i:03d}", Modality.SEQUENCE) for i in range(80)]
    return Dataset.open(write_dataset(tmp_path / "data", {"train": samples}, cluster=lambda key: int(key[1:]) % 20))


def test_a_step_holds_several_of_a_cluster(clustered: Dataset, make_spec) -> None:
    """Each cluster's four are in one step of eight, where chance has hardly two; and any position goes on alike."""

    shipped = load(RunConfig, "align_pro/ablations/hard_negatives.toml").data.plan

    def steps(relatives: int, position: Position, count: int) -> list[list[int]]:
        config = shipped.model_copy(update={"samples": 8, "relatives": relatives})
        plan, found = Plan(clustered, "train", config, 5, make_spec()), []
        for _ in range(count):
            step, position = plan.next(position)
            found.append([entry.index for entry in step.entries])
        return found

    group = clustered.groups("train")[GROUP]

    def clusters(step: list[int]) -> int:
        return len({int(group.key(i)[1:]) % 20 for i in step})

    assert len(clustered.groups("train")[GROUP].shards) == 4
    near, plain = steps(shipped.relatives, Position(), 30), steps(1, Position(), 10)
    assert [clusters(step) for step in near] == [2] * 30 and min(map(clusters, plain)) > 2
    assert sorted(i for step in near[:10] for i in step) == list(range(80))
    assert steps(4, Position(13, {GROUP: 104}), 17) == near[13:]


def test_a_data_set_without_clusters_says_so(dataset: Dataset, make_spec) -> None:
    with pytest.raises(ValueError, match=r"data.plan.relatives = 2 .* with split.method = 'cluster'"):
        Plan(dataset, "train", PlanConfig(samples=8, relatives=2), 5, make_spec())


def test_an_index_holds_clusters_or_none(clustered: Dataset, dataset: Dataset) -> None:
    for data, has in ((clustered, True), (dataset, False)):
        shard = next(iter(data.groups("train").values())).shards[0]
        path = (data.path / shard).with_suffix(SUFFIX)
        index = ShardIndex.read(path)
        assert (index.cluster is not None) == has and index.to_bytes() == path.read_bytes()
    assert index.cluster is None
    with pytest.raises(ValueError, match="unequal length"):
        short = ShardIndex.read((clustered.path / clustered.groups("train")[GROUP].shards[0]).with_suffix(SUFFIX))
        object.__setattr__(short, "cluster", short.cluster[:1])  # type: ignore[index]
        ShardIndex.parse(short.to_bytes(), "short")


def test_runs_begun_before_there_was_a_choice_go_on(dataset: Dataset) -> None:
    run = load(RunConfig, "amma/tiny.toml", ["model.modalities=['sequence']"])
    encoders = Encoders.build(run.frozen)
    assert "relatives" not in identity_of(run, dataset, encoders)["plan"]
    other = load(RunConfig, "amma/tiny.toml", ["model.modalities=['sequence']", "data.plan.relatives=3"])
    assert identity_of(other, dataset, encoders)["plan"]["relatives"] == 3
    for same in (False, True):
        ours = load(RunConfig, "fourfold/tiny.toml", [f"model.same_residues={same}".lower()])
        assert ("same_residues" in identity_of(ours, dataset, encoders)["model"]) == same
