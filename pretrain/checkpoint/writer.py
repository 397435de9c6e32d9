"""Checkpoints written while training goes on: a copy on the training process's time, the rest on a thread's.

Each rank's thread writes the rank's file and then a small table of what it holds; the first rank's waits for all tables
and commits. Threads do not communicate but through the folder, so nothing of theirs meets the collectives of training.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import Field, field_validator

from pretrain import distributed
from pretrain.checkpoint.content import ABOUT, BUFFERS, rank_file
from pretrain.checkpoint.disk import Written
from pretrain.checkpoint.folders import FORMAT, Folder, folder_of, name_of
from pretrain.checkpoint.snapshot import Camera, Snapshot, file_of
from pretrain.config import Config
from pretrain.engine import Engine
from pretrain.places import Place

log = logging.getLogger(__name__)
POLL = 0.05  # seconds between two looks for the other ranks' tables; each pause is half as long again, up to a second


class CheckpointConfig(Config):
    """every: steps between checkpoints. keep: how many of the newest stay; each `keep_every`-th step stays for good.

    keep_best: the one with the lowest validation loss stays, too. folder: where they lie, also `s3://…`; `checkpoints`
    below the run's `out` by default; a relative path is made absolute, as whoever reads `config.json` later may be
    elsewhere. background: write while training goes on. failures: checkpoints in a row that may fail (a full disk, a
    store that is away) before the run ends.
    """

    every: int = Field(default=500, ge=1)
    keep: int = Field(default=3, ge=1)
    keep_every: int | None = Field(default=None, ge=1)
    keep_best: bool = True
    folder: str | None = None
    background: bool = True
    failures: int = Field(default=3, ge=1)

    @field_validator("folder")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        return folder and Place(folder).url


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint. seconds: from the copy to the commit; blocked: of them, those that training waited."""

    step: int
    path: str
    seconds: float
    blocked: float


@dataclass(frozen=True)
class Failed:
    """A checkpoint that could not be written, and why."""

    step: int
    error: str


class Writer:
    """The checkpoints of one sitting. Collective, but for `failed` and `news`: all ranks call in the same order."""

    def __init__(self, folder: Folder, config: CheckpointConfig, patience: float = 1800.0) -> None:
        """patience: seconds that the first rank waits for the others' files."""
        self.folder, self.config, self.patience = folder, config, patience
        self._sitting = str(distributed.gather_objects(uuid4().hex[:12])[0])
        self._camera, self._attempts = Camera(), 0
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="checkpoint")
        self._given_up = threading.Event()
        self._written: Future[None] | None = None  # this rank's files
        self._commit: Future[Saved] | None = None  # on the first rank, the whole checkpoint
        self._told: list[Saved | Failed] = []
        self._failures = 0
        self._step = 0

    def save(
        self, engine: Engine, step: int, state: dict[str, Any], best: int | None = None, displaces: bool = True
    ) -> float:
        """Copy the engine's state and begin to write it; returns the seconds that this took. best: the step whose
        checkpoint `keep_best` keeps. displaces: whether older ones may go for it.

        An earlier checkpoint is finished first. Raises Everywhere as `settle` does.
        """
        began = time.perf_counter()
        self.settle()
        self._attempts += 1
        attempt = f"{self._sitting}-{self._attempts}"
        snapshot = self._camera.take(engine, step, state)
        self._step, self._given_up = step, threading.Event()
        self._written = self._threads.submit(self._write, snapshot, attempt)
        if distributed.rank() == 0:
            blocked = time.perf_counter() - began
            let_go = partial(retain, self.folder, step, self.config, best) if displaces else None
            self._commit = self._threads.submit(self._finish, snapshot, attempt, let_go, began, blocked)
        if not self.config.background:
            self.settle()
        return time.perf_counter() - began

    def failed(self) -> bool:
        """Whether this rank knows that the checkpoint being written has failed. Not collective."""
        jobs = [job for job in (self._written, self._commit) if job is not None and job.done()]
        return any(job.exception() is not None for job in jobs)

    def news(self) -> list[Saved | Failed]:
        """What became of checkpoints since the last call; of those committed the first rank tells. Not collective."""
        if self._commit is not None and self._commit.done() and self._commit.exception() is None:
            self._told.append(self._commit.result())
            self._commit = None
        told, self._told = self._told, []
        return told

    def settle(self, final: bool = False) -> None:
        """Wait until the checkpoint that is being written is committed. Raises Everywhere where it failed and is the
        last of too many in a row, or `final`: there will be no other to make up for it."""
        written, commit = self._written, self._commit
        self._written = self._commit = None
        try:
            distributed.together(lambda: written.result() if written else None)
            done = distributed.together(lambda: commit.result() if commit else None)
        except distributed.Everywhere as error:
            self._given_up.set()
            if commit:
                commit.exception()  # waits: nobody writes any more
                self._clear("")
            self._failures += 1
            words = f"the checkpoint of step {self._step} could not be written: {error}. Earlier ones are as they were"
            if final or self._failures >= self.config.failures:
                raise distributed.Everywhere(words) from error
            self._told.append(Failed(self._step, words))
            return
        if written:
            self._failures = 0
        if done:
            self._told.append(done)

    def close(self) -> None:
        """Give up what is unfinished, and let the threads go."""
        self._given_up.set()
        self._threads.shutdown(wait=True)

    def _write(self, snapshot: Snapshot, attempt: str) -> None:
        """This rank's files; the table last, by which the first rank knows that they are whole."""
        step, name = snapshot.step, rank_file(snapshot.rank)
        if snapshot.rank == 0:
            self._clear(attempt)
        try:
            self.folder.begin(step, attempt)
            files = {name: self.folder.write(step, attempt, name, file_of(snapshot.states))}
            if snapshot.buffers:
                files[BUFFERS] = self.folder.write(step, attempt, BUFFERS, [snapshot.buffers_file()])
            table = {"table": snapshot.table, "files": {name: asdict(written) for name, written in files.items()}}
            self.folder.write(step, attempt, _table(snapshot.rank), [json.dumps(table).encode()])
        except Exception:
            self._given_up.set()
            raise

    def _finish(
        self, snapshot: Snapshot, attempt: str, let_go: Callable[[], None] | None, began: float, blocked: float
    ) -> Saved:
        """Wait for every rank's table, join them, commit, let go of old ones."""
        step = snapshot.step
        self.folder.begin(step, attempt)
        tables = {_table(rank): self._await(step, attempt, _table(rank)) for rank in range(snapshot.world)}
        parts = [json.loads(data) for data in tables.values()]
        about = {
            "format": FORMAT,
            "step": step,
            "world": snapshot.world,
            "optimizer_steps": snapshot.optimizer_steps,
            "parameters": {
                name: {"shape": list(shape), "fragments": _joined(name, parts)}
                for name, shape in snapshot.shapes.items()
            },
            "state": snapshot.state,
        }
        files = {name: Written(len(data), hashlib.sha256(data).hexdigest()) for name, data in tables.items()}
        files |= {name: Written(**written) for part in parts for name, written in part["files"].items()}
        files[ABOUT] = self.folder.write(step, attempt, ABOUT, [json.dumps(about, indent=1).encode()])
        self.folder.commit(step, attempt, files)
        try:
            if let_go:
                let_go()
        except OSError as error:  # this checkpoint stands none the less
            log.warning("%s: an old checkpoint could not be removed: %s", self.folder, error)
        return Saved(step, name_of(step), round(time.perf_counter() - began, 3), round(blocked, 4))

    def _await(self, step: int, attempt: str, name: str) -> bytes:
        """A rank's table, once it is there and whole."""
        end, pause = time.monotonic() + self.patience, POLL
        while (table := self._table(step, attempt, name)) is None:
            if self._given_up.wait(pause):
                raise _GivenUp(f"{name} was not waited for: the checkpoint had failed elsewhere")
            if time.monotonic() > end:
                raise OSError(
                    f"{self.folder}: no {name} after {self.patience:.0f} s; do all hosts share this folder? Set "
                    "checkpoint.folder to one that they do, or to a bucket"
                )
            pause = min(1.0, 1.5 * pause)
        return table

    def _table(self, step: int, attempt: str, name: str) -> bytes | None:
        """On a disk a file has its name before its bytes; JSON that is not whole cannot be read."""
        if name not in self.folder.names(step, attempt):
            return None
        table = self.folder.read(step, attempt, name)
        try:
            json.loads(table)
        except ValueError:
            return None
        return table

    def _clear(self, attempt: str) -> None:
        """Leftovers of attempts that were interrupted. That they cannot be removed is no reason to save nothing."""
        try:
            self.folder.clear(keep=attempt)
        except OSError as error:
            log.warning("%s: what interrupted checkpoints left could not be removed: %s", self.folder, error)


class _GivenUp(OSError):
    """Another part of the checkpoint failed; that one's words count."""


def save(folder: Path, engine: Engine, step: int, state: dict[str, Any], config: CheckpointConfig) -> Path:
    """Write and commit one checkpoint while the caller waits. Collective; returns its path on every rank.

    Raises Everywhere, on every rank, where one of them cannot write (a full disk, a folder that not all hosts share).
    """
    writer = Writer(folder_of(folder), config)
    try:
        writer.save(engine, step, state)
        writer.settle(final=True)
    finally:
        writer.close()
    return folder / name_of(step)


def retain(folder: Folder, step: int, config: CheckpointConfig, best: int | None = None) -> None:
    """Remove all but what the configuration keeps. Those after `step`, the newest one that is known to hold, are broken
    ones, or given up: they do not displace any."""
    for old in [each for each in folder.steps() if each <= step][: -config.keep]:
        if not (config.keep_every and old % config.keep_every == 0) and not (config.keep_best and old == best):
            folder.remove(old)


def _table(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _joined(name: str, parts: list[dict[str, Any]]) -> list[list[int]]:
    return sorted((run for part in parts for run in part["table"].get(name, [])), key=lambda run: run[2])
