"""Ray on a machine that has much else to do."""

from typing import Any

import pytest

from data_prep.workers import STARTS, Workers


def starting(monkeypatch: pytest.MonkeyPatch, *answers: Exception | None) -> list[dict[str, Any]]:
    ray, asked = pytest.importorskip("ray"), []

    def init(**options: Any) -> None:
        asked.append(options)
        if answer := answers[len(asked) - 1]:
            raise answer

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return asked


SLOW = Exception("The current node timed out during startup. This could happen because …")


def test_a_slow_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = starting(monkeypatch, SLOW, None)
    with Workers(2):
        assert [options["num_cpus"] for options in asked] == [2, 2]


def test_one_that_never_comes_up_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = starting(monkeypatch, *[SLOW] * STARTS)
    with pytest.raises(OSError, match="workers=0 prepares without Ray"), Workers(1):
        pass
    assert len(asked) == STARTS


def test_another_failure_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = starting(monkeypatch, Exception("no space left on device"))
    with pytest.raises(Exception, match="no space left"), Workers(1):
        pass
    assert len(asked) == 1
