"""Ray on a machine that has much else to do."""

from types import SimpleNamespace
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


class Cluster:
    """Ray as far as `Workers` uses it, with 100 cores that wait until somebody asks for a result."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ray = pytest.importorskip("ray")
        self.asked = starting(monkeypatch, None)
        self.running = self.most = 0
        task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self.start))
        fakes = {
            "remote": lambda **_: lambda function: task,
            "put": lambda each: each,
            "cluster_resources": lambda: {"CPU": 100.0},
            "wait": lambda waiting: (waiting[:1], waiting[1:]),
            "get": self.end,
            "cancel": lambda *_, **__: None,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(ray, name, fake)

    def start(self, common: tuple[Any, Any], item: tuple[Any, ...]) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        return common[0](*common[1], *item)

    def end(self, result: Any) -> Any:
        self.running -= 1
        return result


@pytest.mark.parametrize(("count", "address", "most"), [(0, "auto", 400), (3, "auto", 3), (3, None, 400)])
def test_an_address_means_ray_and_workers_are_a_share_of_it(
    monkeypatch: pytest.MonkeyPatch, count: int, address: str | None, most: int
) -> None:
    cluster = Cluster(monkeypatch)
    with Workers(count, address) as pool:
        assert sorted(pool.run(pow, (2,), [(n % 9,) for n in range(500)])) == sorted(2 ** (n % 9) for n in range(500))
    assert [options.get("address") for options in cluster.asked] == [address]
    assert cluster.most in (most, most + 1)  # the next is handed over while one that ended is fetched
