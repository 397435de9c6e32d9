"""TensorBoard, Weights & Biases, MLflow: all get the same numbers, and none may hold training up or end it.

A tracker's run goes on where the run's folder was resumed: its id lies in `trackers.json`. Opening one that was asked
for is an error where it fails before the first step of a new run, and a warning where a run is resumed. After that
what fails is told once and tried again, by a thread, so that a server that is away costs no step.
"""

import contextlib
import importlib
import json
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pretrain.config import Config

IDS = "trackers.json"
WAITING = 10_000  # points that wait for a server that is away; the oldest go first
PAUSES = 1.0, 60.0  # seconds before a point is tried again: the first, and the longest
TRIES = 30  # of one point, about 25 minutes: a server may refuse it for good
PATIENCE = 30.0  # seconds that the end of a run waits for points under way
log = logging.getLogger(__name__)

Numbers = Mapping[str, float]
T = TypeVar("T")


class WandbConfig(Config):
    """A run of a project of Weights & Biases; `offline` keeps it in the run's folder for `wandb sync`."""

    project: str
    entity: str | None = None
    name: str | None = None
    mode: Literal["online", "offline"] = "online"


class MlflowConfig(Config):
    """A run of an experiment. uri: a tracking server, a database, or a folder."""

    uri: str
    experiment: str
    name: str | None = None


class Tracker(Protocol):
    """Where a run's curves go."""

    def log(self, numbers: Numbers, step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """done: steps taken before; what earlier sittings said of later ones is dropped."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def log(self, numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """Its own steps only ever rise, and a resumed run repeats some: ours are a number of their own, and the x axis."""

    AXIS = "training_step"

    def __init__(self, config: WandbConfig, folder: Path, id: str, settings: Mapping[str, Any]) -> None:
        wandb = _library("wandb")
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or folder.name,
            id=id,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            mode=config.mode,
            settings=wandb.Settings(console="off"),  # the terminal is the progress bar's
        )
        self._run.define_metric(self.AXIS)
        self._run.define_metric("*", step_metric=self.AXIS)

    def log(self, numbers: Numbers, step: int) -> None:
        self._run.log({**numbers, self.AXIS: step})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Mlflow:
    """settings, flat, are the run's parameters; MLflow lets none change, so a resumed run keeps those it began with."""

    PARAMETERS, LONGEST = 100, 500  # of one request; characters of a value

    def __init__(self, config: MlflowConfig, folder: Path, id: str | None, settings: Mapping[str, Any]) -> None:
        if "://" not in config.uri or config.uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks whoever means a folder to say so
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the courier tries again, and longer
        self._entities = _library("mlflow.entities", "mlflow")
        self._client = _library("mlflow.tracking", "mlflow").MlflowClient(tracking_uri=config.uri)
        if id is not None:
            self.id = id
            self._client.update_run(id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(config.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(config.experiment)
        self.id = self._client.create_run(experiment, run_name=config.name or folder.name).info.run_id
        flat = [(name, str(value)[: self.LONGEST]) for name, value in _flat(settings)]
        for start in range(0, len(flat), self.PARAMETERS):
            some = [self._entities.Param(*each) for each in flat[start : start + self.PARAMETERS]]
            self._client.log_batch(self.id, params=some)

    def log(self, numbers: Numbers, step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class Courier:
    """Brings points to a tracker, one after the other, by a thread; what fails is tried again."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self._tracker = name, tracker
        self._points: deque[tuple[Numbers, int]] = deque(maxlen=WAITING)
        self._more, self._closing, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._failed = self._warned = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def log(self, numbers: Numbers, step: int) -> None:
        self._points.append((numbers, step))
        self._more.set()

    def close(self, failed: bool) -> None:
        """What is under way is waited for, but not long."""
        self._failed = failed
        self._closing.set()
        self._more.set()
        self._thread.join(PATIENCE)
        self._given_up.set()
        if self._thread.is_alive():
            log.warning("%s did not take the end of this run in %.0f s; log.jsonl has all of it", self.name, PATIENCE)

    def _run(self) -> None:
        while not self._given_up.is_set():
            self._more.wait()
            self._more.clear()
            closing = self._closing.is_set()  # before the points: none comes after it
            while self._points and not self._given_up.is_set():
                numbers, step = self._points.popleft()
                self._insist(lambda numbers=numbers, step=step: self._tracker.log(numbers, step))
            if closing:
                self._insist(lambda: self._tracker.close(self._failed))
                return

    def _insist(self, act: Callable[[], None]) -> None:
        """Do it, in TRIES at most, or until the run is over and waits no longer."""
        pause, longest = PAUSES
        for _ in range(TRIES):
            try:
                return act()
            except Exception as error:  # whatever a library of others raises
                if not self._warned:
                    words = f"{type(error).__name__}: {error}"
                    log.warning("%s is not reached; training goes on, and tries again: %s", self.name, words)
                self._warned = True
            if not self._closing.is_set():
                self._closing.wait(pause)
            elif self._given_up.wait(PAUSES[0]):
                return None
            pause = min(longest, 2 * pause)
        return None


def open_trackers(
    folder: Path,
    done: int,
    settings: Mapping[str, Any],
    tensorboard: bool = True,
    wandb: WandbConfig | None = None,
    mlflow: MlflowConfig | None = None,
) -> list[Tracker]:
    """Those that are asked for. done: steps of earlier sittings; settings: the run's configuration.

    Raises ValueError for a package that is not installed, and where a new run's tracker cannot be opened.
    """
    for name, asked in (("wandb", wandb), ("mlflow", mlflow)):
        if asked:
            _library(name)
    ids, opened = _ids(folder), list[Tracker]()
    folder.mkdir(parents=True, exist_ok=True)
    if wandb:
        mine = ids.get("wandb") or secrets.token_hex(4)
        opened += _opened("wandb", done, lambda: Wandb(wandb, folder, mine, settings))
        ids["wandb"] = mine
    if mlflow:
        for each in _opened("mlflow", done, lambda: Mlflow(mlflow, folder, ids.get("mlflow"), settings)):
            opened.append(each)
            ids["mlflow"] = each.id
    if ids:
        (folder / IDS).write_text(json.dumps(ids) + "\n")
    couriers = [Courier(type(each).__name__, each) for each in opened]
    return [*couriers, *([TensorBoard(folder / "tensorboard", done)] if tensorboard else [])]


def _opened(name: str, done: int, build: Callable[[], T]) -> list[T]:
    try:
        return [build()]
    except Exception as error:  # whatever a library of others raises
        words = f"log.{name} could not be opened: {type(error).__name__}: {error}"
        if not done:
            raise ValueError(f"{words}. Mend that, or train without it (log.{name} unset)") from error
        log.warning("%s; the run goes on without it", words)
        return []


def _library(module: str, package: str = "") -> Any:
    """A library of an extra, imported where it is used. Raises ValueError naming what to install."""
    package = package or module
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"log.{package} needs the package {package}, which cannot be imported here ({error}): "
            f"pip install 'fourfold[{package}]', or leave log.{package} out"
        ) from error


def _ids(folder: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        return {str(name): str(id) for name, id in json.loads((folder / IDS).read_text()).items()}
    return {}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Every value of nested settings, with its dotted name."""
    found = []
    for name, value in tree.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found
