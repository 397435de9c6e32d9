"""Trackers, with stand-ins for the libraries that record what is asked of them; and servers that are away."""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pretrain import trackers
from pretrain.trackers import Courier, MlflowConfig, Numbers, WandbConfig, open_trackers

WANDB, MLFLOW = WandbConfig(project="proteins"), MlflowConfig(uri="http://server", experiment="first")
SETTINGS = {"model": {"kind": "amma", "width": 8}, "steps": 3}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of stand-ins for wandb and mlflow."""
    said: list[tuple[Any, ...]] = []

    class Run:
        info = SimpleNamespace(run_id="run-1")

        def define_metric(self, name: str, **more: str) -> None:
            said.append(("define", name, more))

        def log(self, numbers: Numbers) -> None:
            said.append(("log", dict(numbers)))

        def finish(self, exit_code: int) -> None:
            said.append(("finish", exit_code))

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            said.append(("client", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            said.append(("experiment", name))
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Run:
            said.append(("run", experiment, run_name))
            return Run()

        def update_run(self, id: str, status: str) -> None:
            said.append(("update", id, status))

        def log_batch(self, id: str, metrics: Any = (), params: Any = ()) -> None:
            said.append(("batch", id, [(m[0], m[1], m[3]) for m in metrics], list(params)))

        def set_terminated(self, id: str, status: str) -> None:
            said.append(("end", id, status))

    def init(**given: Any) -> Run:
        said.append(("init", given))
        return Run()

    def module(name: str, **has: Any) -> None:
        made = ModuleType(name)
        made.__dict__.update(has)
        monkeypatch.setitem(sys.modules, name, made)

    module("wandb", init=init, Settings=lambda **given: given)
    module("mlflow")
    module("mlflow.entities", Metric=lambda *given: given, Param=lambda *given: given)
    module("mlflow.tracking", MlflowClient=Client)
    return said


def test_wandb_gets_points_over_our_own_steps_and_the_same_run_after_a_resume(tmp_path: Path, calls: list[Any]) -> None:
    for done in (0, 2):
        (tracker,) = open_trackers(tmp_path, done, SETTINGS, tensorboard=False, wandb=WANDB)
        tracker.log({"step/loss": 0.5}, 3)
        tracker.close(failed=bool(done))
    inits = [call[1] for call in calls if call[0] == "init"]
    assert inits[0]["id"] == inits[1]["id"] == json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    first = inits[0]
    assert (first["project"], first["resume"], first["name"]) == ("proteins", "allow", tmp_path.name)
    assert first["config"] == SETTINGS and first["dir"] == str(tmp_path) and first["mode"] == "online"
    assert ("define", "*", {"step_metric": "training_step"}) in calls
    assert ("log", {"step/loss": 0.5, "training_step": 3}) in calls
    assert [call for call in calls if call[0] == "finish"] == [("finish", 0), ("finish", 1)]


def test_mlflow_gets_points_and_settings_and_the_same_run_after_a_resume(tmp_path: Path, calls: list[Any]) -> None:
    for done in (0, 2):
        (tracker,) = open_trackers(tmp_path, done, SETTINGS, tensorboard=False, mlflow=MLFLOW)
        tracker.log({"step/loss": 0.5, "step/seconds": 1.0}, 3 + done)
        tracker.close(failed=bool(done))
    assert calls == [
        ("client", "http://server"),
        ("experiment", "first"),
        ("run", "7", tmp_path.name),
        ("batch", "run-1", [], [("model.kind", "amma"), ("model.width", "8"), ("steps", "3")]),
        ("batch", "run-1", [("step/loss", 0.5, 3), ("step/seconds", 1.0, 3)], []),
        ("end", "run-1", "FINISHED"),
        ("client", "http://server"),
        ("update", "run-1", "RUNNING"),
        ("batch", "run-1", [("step/loss", 0.5, 5), ("step/seconds", 1.0, 5)], []),
        ("end", "run-1", "FAILED"),
    ]


@pytest.mark.parametrize(("name", "config"), [("wandb", WANDB), ("mlflow", MLFLOW)])
@pytest.mark.parametrize("done", [0, 40])
def test_a_missing_package_is_told_with_what_to_install(
    tmp_path: Path, name: str, config: Any, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"pip install 'fourfold\[{name}\]'"):
        open_trackers(tmp_path / "run", done, SETTINGS, True, **{name: config})
    assert not (tmp_path / "run").exists()  # no run was begun


def test_a_server_that_is_away_ends_a_new_run_and_not_a_resumed_one(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(**_: Any) -> None:
        raise RuntimeError("no answer")

    monkeypatch.setattr(sys.modules["wandb"], "init", away)
    with pytest.raises(ValueError, match=r"log.wandb could not be opened: RuntimeError: no answer"):
        open_trackers(tmp_path, 0, SETTINGS, False, wandb=WANDB)
    with caplog.at_level(logging.WARNING):
        assert open_trackers(tmp_path, 40, SETTINGS, False, wandb=WANDB) == []
    assert "the run goes on without it" in caplog.text


class Server:
    """Answers only while it is up."""

    def __init__(self) -> None:
        self.up, self.asked, self.taken, self.closed = False, 0, list[int](), threading.Event()

    def log(self, numbers: Numbers, step: int) -> None:
        self.asked += 1
        if not self.up:
            raise ConnectionError("away")
        self.taken.append(step)

    def close(self, failed: bool) -> None:
        self.log({}, -1)
        self.closed.set()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_a_server_misses_is_brought_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(trackers, "TRIES", 10**6)
    server = Server()
    courier = Courier("Server", server)
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            courier.log({"loss": 1.0}, step)
        until(lambda: server.asked > 3)
        server.up = True
        until(lambda: server.taken == [0, 1, 2, 3, 4])
    courier.log({"loss": 1.0}, 5)
    courier.close(failed=False)
    assert server.taken == [0, 1, 2, 3, 4, 5, -1] and server.closed.is_set()
    assert caplog.text.count("is not reached; training goes on") == 1


def test_a_server_that_stays_away_holds_the_end_up_no_longer_than_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE", 0.1)
    monkeypatch.setattr(trackers, "PAUSES", (0.01, 60.0))
    server = Server()
    courier = Courier("Server", server)
    courier.log({"loss": 1.0}, 1)
    with caplog.at_level(logging.WARNING):
        courier.close(failed=True)
    assert "did not take the end of this run" in caplog.text and server.taken == []
    courier._thread.join(30)
    assert not courier._thread.is_alive()


def test_a_point_that_is_refused_for_good_does_not_keep_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "PAUSES", (0.001, 0.001))
    server = Server()
    server.up = True
    log = server.log

    def refuse(numbers: Numbers, step: int) -> None:
        if step == 1:
            raise ValueError("not this one")
        log(numbers, step)

    monkeypatch.setattr(server, "log", refuse)
    courier = Courier("Server", server)
    for step in range(3):
        courier.log({}, step)
    until(lambda: server.taken == [0, 2])
    courier.close(failed=False)
