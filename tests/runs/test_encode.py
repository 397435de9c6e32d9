"""Training on features that were stored ahead: the same run within bfloat16, in real processes on real proteins."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.validate import validate
from pretrain import checkpoint
from tests.runs.training import SMALL, finish, kill, log, losses, start, train, wait_for_step

STORED = ("steps=12", "data.features=stored")


@pytest.fixture(scope="module")
def encoded(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with the features of `SMALL`'s encoders, made by the command."""
    data = Path(shutil.copytree(sample_data, tmp_path_factory.mktemp("encoded") / "data"))
    command = [sys.executable, "-m", "cluster.cli", "encode", "amma/tiny.toml", *SMALL, f"data.path={data}"]
    done = subprocess.run([*command, "--workers", "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[::2]
    assert [line.split()[4] for line in lines] == ["sequence", "structure", "function", "image"], done.stdout
    return data


@pytest.fixture(scope="module")
def on_stored(encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stored") / "run"
    train(encoded, out, 2, *STORED, "engine.stage=3")
    return out


def began(out: Path) -> list[list[str]]:
    return [record["stored"] for record in log(out) if record["event"] in ("start", "resume")]


def test_losses_are_those_of_a_live_run_within_bfloat16(sample_data: Path, on_stored: Path, tmp_path: Path) -> None:
    train(sample_data, tmp_path / "run", 2, "steps=12", "engine.stage=3")
    assert began(tmp_path / "run") == [[]] and began(on_stored) == [["sequence", "structure", "function", "image"]]
    want, got = losses(tmp_path / "run"), losses(on_stored)
    assert len(want) == 12 and want != got
    for step, terms in want.items():
        assert got[step] == pytest.approx(terms, rel=2e-3), step
    held_out = [[r["losses"] for r in log(run) if r["event"] == "validation"] for run in (tmp_path / "run", on_stored)]
    assert held_out[1][-1] == pytest.approx(held_out[0][-1], rel=2e-3)
    said = on_stored.with_suffix(".txt").read_text()
    assert "features of structure: read from features/gearnet-" in said


def test_a_killed_run_on_other_ranks_resumes_on_stored_features(encoded: Path, on_stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = start(encoded, out, 2, "steps=12", "engine.stage=3", "checkpoint.every=5")
    wait_for_step(out, 8, processes)
    kill(processes)
    found = checkpoint.latest(out / "checkpoints")
    assert found is not None and found.state["stored"] == ["sequence", "structure", "function", "image"]
    train(encoded, out, 1, "steps=12", "engine.stage=3", "checkpoint.every=5")
    want, got = losses(on_stored), losses(out)
    for step in range(1, 13):
        assert got[step] == pytest.approx(want[step], rel=1e-3, abs=1e-6), step


@pytest.mark.slow
def test_a_live_run_goes_on_live_unless_it_is_told_otherwise(encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(encoded, out, 1, "steps=4", "data.features=live", "checkpoint.every=2", "validation.every=9")
    train(encoded, out, 1, "steps=6", "checkpoint.every=2", "validation.every=9")
    train(encoded, out, 1, "steps=8", "data.features=stored", "checkpoint.every=2", "validation.every=9")
    assert began(out) == [[], [], ["sequence", "structure", "function", "image"]]
    assert "features of image: encoded at every step, as this run began" in out.with_suffix(".txt").read_text()


def test_what_is_missing_is_one_clear_error(encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finish(start(encoded, out, 2, *STORED, "encoders.sequence.seed=9"), out, expect=2)
    said = out.with_suffix(".txt").read_text()
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert "no features of the sequence encoder" in said and "fourfold encode CONFIG" in said


def test_a_damaged_feature_costs_its_sample_and_is_named(encoded: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(encoded, tmp_path / "data"))
    assert not validate(str(data)).damage
    for file in data.glob("features/esm-*/train/*/*.safetensors"):
        damaged = bytearray(file.read_bytes())
        damaged[-1] ^= 1
        file.write_bytes(damaged)
    assert all(damage.path.startswith("features/esm-") for damage in validate(str(data)).damage)
    out = tmp_path / "run"
    train(data, out, 2, *STORED)
    skipped = [name for record in log(out) if record["event"] == "skipped" for name in record["samples"]]
    assert skipped and all("features/esm-" in name and "checksum is wrong" in name for name in skipped)
