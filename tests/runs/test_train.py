"""Runs that are killed, stopped, broken and resumed, on real data, in real processes."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

from pretrain import checkpoint
from pretrain.config import load
from pretrain.run import RunConfig
from pretrain.setup import prepare
from tests.runs.training import SMALL, finish, kill, log, losses, start, train, wait_for_step

SHORT = ("steps=20", "checkpoint.every=5")


@pytest.fixture(scope="module")
def uninterrupted(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(sample_data, out, 2, *SHORT)
    return out


def _state(out: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.latest(out / "checkpoints")
    assert found is not None and found.step == 20
    return {
        f"{name}.{kind}": found.slice(checkpoint.Fragment(name, 0, torch.Size(entry["shape"]).numel()), kind)
        for name, entry in found.parameters.items()
        for kind in checkpoint.STATES
    }


def test_a_killed_run_resumes_bitwise(sample_data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = start(sample_data, out, 2, *SHORT, "data.workers=1")
    wait_for_step(out, 12, processes)
    kill(processes)
    train(sample_data, out, 2, *SHORT)
    (resumed,) = [record["step"] for record in log(out) if record["event"] == "resume"]
    assert resumed in (5, 10, 15)  # the newest that was written in time
    assert losses(out) == losses(uninterrupted) and len(losses(out)) == 20
    want, got = _state(uninterrupted), _state(out)
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)
    validations = [[r["losses"] for r in log(run) if r["event"] == "validation"][-1] for run in (uninterrupted, out)]
    assert validations[0] == validations[1]


def test_sigterm_makes_a_checkpoint_and_another_number_of_ranks_goes_on(
    sample_data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    processes = start(sample_data, out, 2, "steps=20")
    wait_for_step(out, 3, processes)
    processes[1].send_signal(signal.SIGTERM)  # one rank is told, both stop at the same step
    finish(processes, out)
    (stopped,) = [record["step"] for record in log(out) if record["event"] == "stopped"]
    assert 3 <= stopped < 20 and [path.name for path in checkpoint.committed(out / "checkpoints")] == [
        f"step-{stopped:08d}"
    ]
    train(sample_data, out, 1, "steps=20")
    want, got = losses(uninterrupted), losses(out)
    for step in range(1, 21):  # other ranks sum in another order, and no more than that
        assert got[step] == pytest.approx(want[step], rel=1e-3, abs=1e-6), step


def test_a_broken_newest_checkpoint_is_passed_over(sample_data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    broken = out / "checkpoints" / "step-00000020" / "rank-00001.safetensors"
    data = bytearray(broken.read_bytes())
    data[-5] ^= 1
    broken.write_bytes(data)
    train(sample_data, out, 2, *SHORT)
    assert "step-00000020 is broken and passed over: rank-00001.safetensors" in out.with_suffix(".txt").read_text()
    assert [record["step"] for record in log(out) if record["event"] == "resume"] == [15]
    want, got = _state(uninterrupted), _state(out)
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.plan.samples=1", "a step of fewer samples than ranks"),
        ("model.widht=8", "did you mean 'width'"),
        ("data.path=/nowhere/at/all", "/nowhere/at/all"),
        ("encoders.sequence.weights=/no/such/weights.pt", "/no/such/weights.pt"),
    ],
)
def test_bad_input_is_one_clear_error(sample_data: Path, tmp_path: Path, override: str, message: str) -> None:
    out = tmp_path / "run"
    finish(start(sample_data, out, 2, "steps=40", override), out, expect=2)
    said = out.with_suffix(".txt").read_text()
    assert said.count("error: ") == 1 and message in said and "Traceback" not in said, said


def test_a_run_is_not_resumed_with_another_model(sample_data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    before = {name: (out / name).read_text() for name in ("config.json", "log.jsonl")}
    finish(start(sample_data, out, 1, "steps=30", "model.depth=2"), out, expect=2)
    assert "was trained with another model" in out.with_suffix(".txt").read_text()
    assert {name: (out / name).read_text() for name in before} == before
    train(sample_data, out, 1, "steps=20")
    assert "nothing is left to do" in out.with_suffix(".txt").read_text() and log(out)[-1]["event"] == "end"


def test_what_one_rank_cannot_read_all_ranks_know(sample_data: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(sample_data, data)
    for shard in data.glob("train/*/*.tar"):
        damaged = bytearray(shard.read_bytes())
        damaged[600::700] = bytes(byte ^ 1 for byte in damaged[600::700])
        shard.write_bytes(damaged)
    finish(start(data, out, 2, "steps=40", "data.max_damaged_in_row=1"), out, expect=2)
    said = out.with_suffix(".txt").read_text()
    assert said.count("error: ") == 1 and "damaged samples in a row" in said and "Traceback" not in said, said
    assert log(out)[-1]["event"] == "error" and "damaged samples in a row" in log(out)[-1]["error"]


def test_a_run_that_diverges_says_so_and_saves_nothing_of_it(sample_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    diverging = ("optimizer.lr=1e30", "optimizer.clip=0", "optimizer.warmup=0", "checkpoint.every=1")
    finish(start(sample_data, out, 1, "steps=40", *diverging), out, expect=2)
    assert "training has diverged: steps [11, 12, 13] had losses" in out.with_suffix(".txt").read_text()
    records = log(out)
    assert [r["excluded"] for r in records if r["event"] == "rewind"] == [[2, 3, 4], [5, 6, 7], [8, 9, 10]]
    saved = [checkpoint.Checkpoint.read(path) for path in checkpoint.committed(out / "checkpoints")]
    assert {each.optimizer_steps for each in saved} == {1}


@pytest.mark.parametrize(
    ("override", "message"),
    [("validation.split=vaild", "split 'vaild' holds no samples"), ("data.plan.samples=0", "greater than or equal")],
)
def test_a_mistake_is_found_before_the_first_step(sample_data: Path, override: str, message: str) -> None:
    settings = [*SMALL, f"data.path={sample_data}", override]
    with pytest.raises(ValueError, match=message):
        prepare(load(RunConfig, "amma/tiny.toml", settings))
