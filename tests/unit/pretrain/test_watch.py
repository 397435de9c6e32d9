"""Who is named, when, by whom, and with what. Time is given, not waited for; for real: tests/runs/test_faults_runs."""

import os
import subprocess
import sys
from typing import Any

import pytest

from pretrain import distributed, watch
from pretrain.watch import LOST, Watch, WatchConfig


class Told(list[tuple[str, dict[str, Any]]]):
    def __call__(self, text: str, facts: dict[str, Any]) -> None:
        self.append((text, facts))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def first(told: Told, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The first rank's watch, which waits in its fourth step. It may not look into processes."""
    monkeypatch.setattr(watch, "_stack", lambda _: "")
    one = Watch(WatchConfig(silent=15, stuck=120, give_up=600), told)
    one.phase("step", 4)
    return one


def _beat(rank: int = 1, phase: str = "step", step: int = 4, host: str = "beta") -> dict[str, Any]:
    return {"rank": rank, "phase": phase, "step": step, "pid": 99, "host": host}


def test_a_silent_rank_is_named_once_with_what_it_did_last(first: Watch, told: Told) -> None:
    first._hear(_beat(phase="exchange"), 100.0)
    first._look(114.9)
    assert not told
    first._look(115.0)
    first._look(130.0)
    ((text, facts),) = told
    assert text == "rank 1 (process 99 on beta) has not been heard of for 15 s; its last phase: exchange of step 4"
    assert facts == {"rank": 1, "host": "beta", "pid": 99, "phase": "exchange", "step": 4}


def test_who_comes_back_is_told_and_can_be_named_again(first: Watch, told: Told) -> None:
    first._hear(_beat(), 100.0)
    first._look(120.0)
    first._hear(_beat(), 125.0)
    first._look(126.0)
    assert [text for text, _ in told][1:] == ["rank 1 is back after 25 s"]
    first._look(141.0)
    assert len(told) == 3


def test_a_rank_that_lives_and_keeps_the_others_waiting_for_its_data_is_named(first: Watch, told: Told) -> None:
    for second in range(100, 222):
        first._hear(_beat(phase="data"), float(second))
        first._look(float(second))
    ((text, _),) = told
    assert "has kept the others waiting for its data for 120 s" in text


@pytest.mark.parametrize(("own", "phase", "step"), [("data", "data", 4), ("step", "step", 4), ("step", "data", 5)])
def test_who_waits_for_others_is_not_to_blame(first: Watch, told: Told, own: str, phase: str, step: int) -> None:
    first.phase(own, 4)
    for second in range(100, 400):
        first._hear(_beat(phase=phase, step=step), float(second))
        first._look(float(second))
    assert not told


@pytest.mark.parametrize(("rank", "speaks"), [(0, False), (1, True), (2, False)])
def test_of_the_first_rank_the_second_speaks(
    first: Watch, told: Told, rank: int, speaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    first._hear(_beat(rank=0), 100.0)
    first._look(120.0)
    assert bool(told) == speaks


def test_a_rank_that_stays_silent_is_given_up(first: Watch, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    first._hear(_beat(), 100.0)
    first._look(699.0)
    assert not codes
    first._look(700.0)
    assert codes == [LOST] and "rank 1 is given up after 600 s of silence; start the run again" in told[-1][0]
    patient = Watch(WatchConfig(give_up=0), told)
    patient._hear(_beat(), 100.0)
    patient._look(1e6)
    assert codes == [LOST]


def test_a_rank_that_was_never_heard_is_named_and_not_given_up(
    first: Watch, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where datagrams do not pass, all ranks are silent, and the run is well."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    first._ranks[1] = watch._Rank(_beat(), 100.0, 100.0)
    for second in range(100, 2000, 5):
        first._look(float(second))
    ((text, _),) = told
    assert "has not been heard of for 15 s, nor ever before; datagrams between hosts may be blocked" in text
    assert not codes


def test_a_rank_that_was_stuck_is_named_again_when_it_falls_silent(first: Watch, told: Told) -> None:
    for second in range(100, 222):
        first._hear(_beat(phase="data"), float(second))
        first._look(float(second))
    first._look(240.0)
    assert ["data for" in text for text, _ in told] == [True, False]
    assert "has not been heard of for 19 s" in told[1][0]


def test_the_stack_is_of_the_process_and_absent_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert watch._stack(gone.pid) == ""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    assert watch._stack(os.getpid()) == ""
