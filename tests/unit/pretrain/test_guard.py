"""Which steps are bad, when a run goes back, and what of it outlives a checkpoint."""

import math
from typing import Any

import pytest

from pretrain.engine import StepResult
from pretrain.guard import ENOUGH, Guard, GuardConfig


def _result(total: float, applied: bool) -> StepResult:
    return StepResult({}, total, {}, 1.0, 1e-3, applied)


def _guard(good: int = 0, **settings: Any) -> Guard:
    guard = Guard(GuardConfig(**settings))
    for step in range(1, good + 1):
        guard.note(step, _result(float(step), True))
    return guard


def test_a_spike_is_one_only_after_enough_good_losses() -> None:
    assert _guard(ENOUGH - 1).admits(1e9)
    guard = _guard(ENOUGH)
    assert guard.limit() == 10 * 8.5 and guard.admits(85.0) and not guard.admits(85.1)
    assert _guard(ENOUGH, spike=0).admits(1e9)


@pytest.mark.parametrize("total", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_admitted(total: float) -> None:
    assert not _guard(spike=0).admits(total)


def test_the_median_is_of_the_last_good_losses() -> None:
    guard = _guard(100, window=16)
    assert guard.losses == [float(each) for each in range(85, 101)]
    guard.note(101, _result(1e6, False))
    assert guard.losses[-1] == 100.0


def test_only_bad_steps_in_a_row_go_back() -> None:
    guard = _guard(in_row=3)
    assert [guard.note(step, _result(math.nan, False)) for step in (1, 2)] == ["skipped", "skipped"]
    assert guard.note(3, _result(1.0, True)) == "good" and guard.bad == []
    assert [guard.note(step, _result(math.nan, False)) for step in (4, 5, 6)] == ["skipped", "skipped", "rewind"]
    back = guard.back({"losses": [1.0], "excluded": [2]})
    assert back.excluded == {2, 4, 5, 6} and back.bad == [] and back.losses == [1.0] and back.rewinds == 1


def test_returns_are_counted_until_a_good_step_is_saved() -> None:
    guard = _guard(rewinds=2)
    for _ in range(2):
        assert not guard.exhausted()
        guard = guard.back(None)
        guard.saved()  # nothing good in it
    assert guard.exhausted()
    guard.note(1, _result(1.0, True))
    guard.saved()
    assert not guard.exhausted()


def test_what_a_checkpoint_holds_makes_the_same_guard() -> None:
    guard = _guard(20)
    guard.excluded = {3, 25, 30}
    state = guard.state(20)
    assert state["excluded"] == [25, 30]
    again = Guard.restored(guard.config, state)
    assert (again.losses, again.excluded, again.limit()) == (guard.losses, {25, 30}, guard.limit())
    assert Guard.restored(guard.config, None) == Guard(guard.config)
