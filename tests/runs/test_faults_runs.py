"""Real runs, killed at random, told to stop, stopped, given up: they end in the state of one that nobody touched."""

import re
import signal
from pathlib import Path

import pytest

from pretrain import checkpoint
from tests.runs.faults import kills, silence
from tests.runs.training import log, losses, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def whole(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    kills.whole(sample_data, out)
    return out


@pytest.fixture(scope="module")
def untouched(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("untouched") / "run"
    train(sample_data, out, 2, "steps=30", *silence.SOON)
    return out


def test_killed_again_and_again_it_ends_in_the_same_state(sample_data: Path, whole: Path, tmp_path: Path) -> None:
    found = kills.killed(sample_data, tmp_path / "run", 20)
    assert len(found.kills) == 20
    assert kills.alike(whole, tmp_path / "run") and losses(whole) == losses(tmp_path / "run"), found.kills


@pytest.mark.parametrize("twice", [False, True])
def test_sigterm_ends_in_order_and_a_second_one_at_once(sample_data: Path, tmp_path: Path, twice: bool) -> None:
    out = tmp_path / "run"
    ended = silence.told_to_stop(sample_data, out, twice)
    if not twice:
        assert ended.codes == [0, 0] and log(out)[-1]["event"] == "stopped"
    else:
        assert ended.codes == [-signal.SIGTERM] * 2 or ended.codes == [0, 0], ended  # or it had just stopped in order
    newest = checkpoint.latest(out / "checkpoints")
    assert newest is not None and newest.step >= 5
    resume = len(log(out))
    train(sample_data, out, 2, f"steps={newest.step + 3}", *silence.SOON)
    assert log(out)[resume]["event"] == "resume" and log(out)[resume]["step"] == newest.step


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named_and_the_run_goes_on_when_it_does(
    sample_data: Path, untouched: Path, tmp_path: Path, rank: int
) -> None:
    out = tmp_path / "run"
    found = silence.stopped(sample_data, out, rank)
    assert found.detect < 30
    named = re.search(
        rf"rank {rank} \(process \d+ on \S+\) has not been heard of for \d+ s; its last phase: (\w+) of", found.alarm
    )
    assert named and named[1] in ("data", "step", "exchange", "save"), found.alarm
    assert losses(out) == losses(untouched)
    if rank:
        first, second = silence.alarms(out)[:2]
        assert first["rank"] == 1 and first["phase"] == named[1] and "is back after" in second["text"]


def test_the_stack_of_a_stopped_rank_is_shown(sample_data: Path, tmp_path: Path) -> None:
    if not silence.may_trace():
        pytest.skip("needs to read another process's memory (ptrace)")
    found = silence.stopped(sample_data, tmp_path / "run", 1, steps=8)
    (alarm,) = [each for each in silence.alarms(tmp_path / "run") if "phase" in each]
    assert "Thread" in alarm["stack"] and "pretrain/train.py" in alarm["stack"] and "train.py" in found.alarm


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_given_up_ends_the_run_and_a_relaunch_goes_on(
    sample_data: Path, untouched: Path, tmp_path: Path, rank: int
) -> None:
    out = tmp_path / "run"
    found = silence.given_up(sample_data, out, rank)
    assert found.codes == [3] and re.search(rf"rank {rank} is given up after \d+ s of silence", found.alarm)
    assert losses(out) == losses(untouched)
