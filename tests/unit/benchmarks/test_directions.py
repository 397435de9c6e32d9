"""The benchmark of directions: which proteins are held out for it, and what a folder of runs may be gone on with."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from pretrain.sample import Modality
from tests.unit.datasets import protein, write

FOLDER = Path(__file__).parents[3] / "benchmarks"
COLUMNS = ("bulk_location", "pdb_id", "chain", "uniprot")
CHAINS = [
    ("a#0", "1ABC", "A", "P00001"),
    ("a#1", "5UGW", "A", "AF-O14746-F1"),
    ("a#2", "2XYZ", "B", ""),
    ("", "3NOT", "A", "P00009"),
    ("a#3", "4TRA", "A", "P00002"),
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("directions")


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


def test_a_folder_of_other_settings_is_refused(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "data", {"train": [protein("A", Modality.SEQUENCE)]})
    found = iter(range(9))
    monkeypatch.setattr(benchmark, "_trained", lambda *_: None)
    monkeypatch.setattr(benchmark, "_probed", lambda *_: dict.fromkeys(("EC", "MF", "BP", "CC"), float(next(found))))
    monkeypatch.setattr(benchmark, "_retrieved", lambda *_: {})
    quick = benchmark.Bench(data, tmp_path, tmp_path, tmp_path / "runs", 4, 8, 40)
    whole = benchmark.Bench(data, tmp_path, tmp_path, tmp_path / "runs", 600, 32, 10**9)
    arm = benchmark.Arm("amma/tiny.toml")
    assert benchmark.finish(quick, "amma", arm, 0) == benchmark.finish(quick, "amma", arm, 0)
    with pytest.raises(ValueError, match=r"amma/0 was begun with other settings: steps was 4, is 600, batch was 8, is"):
        benchmark.finish(whole, "amma", arm, 0)
    with pytest.raises(ValueError, match=r"run was \w+, is \w+\. Give another --runs"):
        benchmark.finish(quick, "amma", benchmark.Arm("amma/tiny.toml", ("model.sees=symmetric",)), 0)
    assert benchmark.finish(whole, "amma", arm, 1)["mean"] == 1
