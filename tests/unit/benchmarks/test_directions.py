"""The benchmark of directions: which proteins are held out for it, and what a folder of runs may be gone on with."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pretrain.sample import Modality
from tests.unit.datasets import protein, write

COLUMNS = ("bulk_location", "pdb_id", "chain", "uniprot")
CHAINS = [
    ("a#0", "1ABC", "A", "P00001"),
    ("a#1", "5UGW", "A", "AF-O14746-F1"),
    ("a#2", "2XYZ", "B", ""),
    ("", "3NOT", "A", "P00009"),
    ("a#3", "4TRA", "A", "P00002"),
]


def test_proteins_are_held_out_by_their_accessions(benchmark: ModuleType, tmp_path: Path) -> None:
    """Also where the pack names a chain's protein by its AlphaFold model."""
    (tmp_path / "structures").mkdir()
    (tmp_path / "structures" / "manifest.tsv").write_text("\n".join(map("\t".join, [COLUMNS, *CHAINS])) + "\n")
    lists = tmp_path / "benchmarks" / "deepfri"
    lists.mkdir(parents=True)
    for name in benchmark.chains.LISTS.values():
        for split, keys in (("train", "4TRA-A"), ("valid", ""), ("test", "1ABC-A\n5UGW-A\n2XYZ-B\n3NOT-A\n9ZZZ-A")):
            (lists / f"{name}_{split}.txt").write_text(keys)
    assert benchmark.chains.held_out(tmp_path) == ["O14746", "P00001", "pdb_2xyz_B"]


@pytest.fixture
def data(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of one protein; nothing is trained on it, and a run's figures are its number."""
    found = iter(range(9))
    monkeypatch.setattr(benchmark, "_trained", lambda *_: None)
    monkeypatch.setattr(benchmark, "_remember", lambda *_: None)
    monkeypatch.setattr(benchmark, "_plan", lambda *_: {})
    monkeypatch.setattr(benchmark, "_probed", lambda *_: dict.fromkeys(("EC", "MF", "BP", "CC"), float(next(found))))
    monkeypatch.setattr(benchmark, "_retrieved", lambda *_: {})
    monkeypatch.setattr(benchmark, "_tasks", lambda bench: [])
    return write(tmp_path / "data", {"train": [protein("A", Modality.SEQUENCE)]})


def test_a_folder_of_other_settings_is_refused(benchmark: ModuleType, data: Path, tmp_path: Path) -> None:
    quick = benchmark.Bench(data, tmp_path, tmp_path, tmp_path / "runs", 4, 8, 40)
    whole = benchmark.Bench(data, tmp_path, tmp_path, tmp_path / "runs", 600, 32, 10**9)
    arm = benchmark.Arm("amma/tiny.toml")
    assert benchmark.finish(quick, "amma", arm, 0) == benchmark.finish(quick, "amma", arm, 0)
    with pytest.raises(ValueError, match=r"amma/0 was begun with other settings: steps was 4, is 600, batch was 8, is"):
        benchmark.finish(whole, "amma", arm, 0)
    with pytest.raises(ValueError, match=r"run was \w+, is \w+\. Give another place"):
        benchmark.finish(quick, "amma", benchmark.Arm("amma/tiny.toml", ("model.sees=symmetric",)), 0)
    assert benchmark.finish(whole, "amma", arm, 1)["mean"] == 1


def test_what_runs_set_themselves_is_no_other_setting(benchmark: ModuleType, data: Path, tmp_path: Path) -> None:
    """A configuration's own number of steps, and when it validates, which runs here do not go by."""
    bench = benchmark.Bench(data, tmp_path, tmp_path, tmp_path / "runs", 4, 8, 40)
    shipped = benchmark.Arm("amma/tiny.toml", ("model.width=64",))
    longer = benchmark.Arm("amma/tiny.toml", ("model.width=64", "steps=999", "validation.every=333", "log.every=3"))
    assert benchmark._made(bench, shipped) == benchmark._made(bench, longer)
    wider = benchmark.Arm("amma/tiny.toml", ("model.width=128",))
    assert benchmark._made(bench, shipped)["run"] != benchmark._made(bench, wider)["run"]


def test_results_are_gone_on_with_where_the_folder_is_lost(
    benchmark: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sittings, each in a folder of its own: the second takes the first's figures from the file."""
    results = tmp_path / "results.json"

    def sit(*more: str) -> dict[str, Any]:
        given = {"data": data, "pack": tmp_path, "structures": tmp_path, "json": results}
        command = ["directions.py", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]
        monkeypatch.setattr("sys.argv", [*command, *more])
        benchmark.main()
        return json.loads(results.read_text())

    first = sit("--runs", str(tmp_path / "one"), "--arms", "amma", "fourfold")
    assert first["runs_left"] == 3 * len(benchmark.claims_of()[0]) - 6
    second = sit("--runs", str(tmp_path / "two"), "--arms", "amma-symmetric")
    assert second["runs_left"] == first["runs_left"] - 3
    assert [second["runs"]["fourfold"]["found"][seed]["EC"] for seed in "012"] == [1, 3, 5]
    assert [second["runs"]["amma-symmetric"]["found"][seed]["EC"] for seed in "012"] == [6, 7, 8]
    page = results.with_suffix(".md").read_text()
    assert "| AMMA: asymmetric over symmetric | EC | 0.887 over 0.716 | 2.000 over 7.000 | -5.000 ± " in page
    with pytest.raises(SystemExit, match=r"results\.json: amma was begun with other settings: steps was 400, is 4,"):
        sit("--runs", str(tmp_path / "three"), "--quick")


def test_every_arm_is_a_run_and_every_claim_is_of_arms(benchmark: ModuleType) -> None:
    arms, directions = benchmark.claims_of()
    trained = {name for name, arm in arms.items() if not arm.alone and not benchmark.storable(arm)}
    assert trained == {"bihierarchical", "bihierarchical-serial", "bihierarchical-parallel"}
    pairs = {"sequence-structure", "sequence-function", "structure-function"}
    metrics = {"EC", "MF", "BP", "CC", "mean", "EC AUPR", "MF AUPR"} | pairs
    for claim in directions:
        assert {claim.better, claim.other} <= arms.keys() and claim.metric in metrics, claim
        assert claim.source is None or len(claim.source) == 2
        compared = [set(benchmark._run(arms[name]).model.modalities) for name in (claim.better, claim.other)]
        assert claim.metric not in pairs or all({*claim.metric.split("-")} <= one for one in compared), claim
        assert claim.metric not in pairs or (arms[claim.better].retrieval and arms[claim.other].retrieval), claim
    assert {name for claim in directions for name in (claim.better, claim.other)} == arms.keys()


def test_a_claim_is_told_of_the_seeds_that_both_arms_have(benchmark: ModuleType) -> None:
    claims = importlib.import_module("claims")
    claim = claims.Direction("more over less", "more", "less", "EC", (0.9, 0.8))
    assert benchmark.compared(claim, {"more": {0: {"EC": 0.5}}, "less": {1: {"EC": 0.4}}}, {}) is None
    one = benchmark.compared(claim, {"more": {0: {"EC": 0.5}}, "less": {0: {"EC": 0.5}}}, {})
    assert one["verdict"] == "does not agree" and one["difference"]["half"] is None and not one["clear"]
    found = {
        "more": {0: {"EC": 0.5}, 1: {"EC": 0.6}, 2: {"EC": 0.7}},
        "less": {0: {"EC": 0.4}, 1: {"EC": 0.4}, 2: {"EC": 0.4}},
    }
    three = benchmark.compared(claim, found, {})
    # Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, and t of two degrees of freedom is 4.303.
    assert three["difference"] == pytest.approx({"mean": 0.2, "half": 4.303 * 0.1 / 3**0.5}) and not three["clear"]
    row = claims._row(three)
    assert row["ours"] == pytest.approx(0.6) and row["ratio"] == pytest.approx(1.5) and row["verdict"] == "agrees"
    assert row["peer_name"] == "less" and row["seeds"] == 3 and row["unit"] == "Fmax"


def test_a_difference_below_what_label_frequencies_score_is_not_clear(benchmark: ModuleType) -> None:
    claims = importlib.import_module("claims")
    claim = claims.Direction("more over less", "more", "less", "CC")
    found = {
        "more": {0: {"CC": 0.5}, 1: {"CC": 0.502}, 2: {"CC": 0.501}},
        "less": {0: {"CC": 0.4}, 1: {"CC": 0.403}, 2: {"CC": 0.402}},
    }
    assert benchmark.compared(claim, found, {"CC": 0.45})["clear"]
    told = benchmark.compared(claim, found, {"CC": 0.5})
    assert not told["clear"] and claims._row(told)["naive"] == 0.5
