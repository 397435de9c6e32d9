"""Processes that end at every act of the checkpoint writer, and what a fresh process then finds.

One light process has imported everything and computed nothing, so it can fork: a child saves and ends at its act, a
second child asks for the newest checkpoint, looks at every value, and saves the next one.
"""

import json
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pretrain import checkpoint
from pretrain.checkpoint import STATES, CheckpointConfig, Fragment, Writer, folder_of
from pretrain.checkpoint import writer as writing
from tests.runs.faults.acts import CRASHED, Fault, Where, points

SIZES = {"a": (5, 3), "b": (3,)}
KEEP = CheckpointConfig(keep=2, keep_every=4)
BREAK = 5  # the step whose checkpoint is broken and saved again, as after a rewind past it
STEPS = (1, 2, 3, 4, 5, 5, 6, 7, 8, 9)  # what is saved, in turn; with retention, and one that replaces a broken one


class Made(nn.Module):
    """What `Writer` asks of an engine. Every value follows from the step, so a reader knows what is right."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.register_buffer("scale", torch.ones(2))

    @property
    def model(self) -> nn.Module:
        return self

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(SIZES)

    def optimizer_steps(self) -> int:
        return self.step

    def read_all(self) -> Iterator[tuple[Fragment, dict[str, torch.Tensor]]]:
        for name, shape in SIZES.items():
            length = torch.Size(shape).numel()
            yield Fragment(name, 0, length), {state: value(self.step, name, state, length) for state in STATES}


@dataclass
class Tally:
    """points: crashes, `cuts` of them power cuts. seconds: each look for the newest.

    lost: those after which none was found, or an older one than had been committed. wrong: those after which one was
    taken whose values were not its step's. left: those whose leftovers the next save did not clear.
    """

    points: int = 0
    cuts: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def good(self) -> float:
        """The share of crashes after which the run goes on from the right state."""
        return 1 - len(self._bad()) / self.points

    def share(self, kind: Literal["kill", "power"]) -> float:
        """The same of kills, or of power cuts."""
        bad = sum((name == "power") == (kind == "power") for name in (each.split()[0] for each in self._bad()))
        return 1 - bad / (self.cuts if kind == "power" else self.points - self.cuts)

    def _bad(self) -> set[str]:
        return {each.partition(":")[0] for each in (*self.lost, *self.wrong)}


def value(step: int, name: str, state: str, length: int) -> torch.Tensor:
    """fp32 [length]: what a parameter's state is after `step` steps."""
    return torch.arange(length) + 100.0 * step + 10 * STATES.index(state) + ord(name)


def crash_points(count: int | None = None) -> Tally:
    """Crash a sequence of saves at `count` points drawn at random from all of them, or at all of them."""
    return apart(_crash_points, count)


def acts() -> int:
    """How many acts the whole sequence consists of."""
    return apart(_acts)


def refusals(errors: tuple[int, ...], every: int = 1) -> Tally:
    """Acts that are refused with an error number (a full disk, a read-only one) instead: the save that fails says so,
    the earlier ones stand, and the next save is made as always."""
    return apart(_refusals, errors, every)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a process that has computed nothing: one in which torch's threads have run cannot be forked."""
    with ProcessPoolExecutor(1, get_context("spawn")) as light:
        return light.submit(function, *arguments).result()


def _acts() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        forked(lambda: _count(path))
        return int((path / "count").read_text())


def _count(path: Path) -> None:
    with Fault() as fault:
        _saves(path / "checkpoints")
    (path / "count").write_text(str(fault.count))


def _crash_points(count: int | None) -> Tally:
    tally = Tally()
    for at, where in points(_acts(), count):
        _one(tally, at, where)
    return tally


def _one(tally: Tally, at: int, where: Where) -> None:
    """One crash, and the look at what it left."""
    tally.points += 1
    tally.cuts += where == "power"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoints"

        def crash() -> None:
            with Fault(at, where):
                _saves(folder)

        code = forked(crash, CRASHED)
        assert code in (0, CRASHED), f"{where} act {at}: the saving process ended with {code}"
        said = Path(scratch) / "found.json"
        began = time.perf_counter()
        forked(lambda: _look(folder, said))
        tally.seconds.append(time.perf_counter() - began)
        found, name = json.loads(said.read_text()), f"{where} act {at}"
        done = [int(step) for step in (Path(scratch) / "done").read_text().split()] if code else [*STEPS]
        if done and (found["step"] or 0) < done[-1]:
            tally.lost.append(f"{name}: step {found['step']}, after {done[-1]} had been committed")
        if not found["right"]:
            tally.wrong.append(f"{name}: step {found['step']} has other values")
        if found["left"]:
            tally.left.append(f"{name}: {found['left']} were not cleared")


def _saves(folder: Path) -> None:
    """The sequence. `done` beside the folder names the steps whose checkpoints the writer has called committed."""
    done = open(folder.parent / "done", "a")  # noqa: SIM115  # the process ends in between
    writer = Writer(folder_of(folder), KEEP)
    engine: Any = Made()
    for before, step in zip((0, *STEPS), STEPS, strict=False):
        if before == step == BREAK:
            done.seek(0)
            done.truncate()
            done.write("1 2 3 4\n")
            done.flush()
            _torn(folder / f"step-{step:08d}" / "rank-00000.safetensors")
        engine.step = step
        _save(writer, engine, step)
        done.write(f"{step}\n")
        done.flush()
    writer.close()


def _save(writer: Writer, engine: Any, step: int) -> None:
    writer.save(engine, step, {"step": step})
    writer.settle(final=True)


def _torn(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _look(folder: Path, said: Path) -> None:
    """In a fresh process: what is the newest, is it right, and does the next save clear what was left?"""
    found = checkpoint.latest(folder)
    step = found.step if found else None
    engine: Any = Made()
    engine.step = (step or 0) + 10
    checkpoint.save(folder, engine, engine.step, {"step": engine.step}, KEEP)
    left = [path.name for path in folder.iterdir() if not path.name.startswith("step-")]
    after = checkpoint.latest(folder)
    good = (found is None or right(found)) and after is not None and after.step == engine.step and right(after)
    said.write_text(json.dumps({"step": step, "right": good, "left": left}))


def right(found: checkpoint.Checkpoint) -> bool:
    """Whether every value is the one of the checkpoint's step."""
    whole = {
        (name, state): Fragment(name, 0, torch.Size(shape).numel()) for name, shape in SIZES.items() for state in STATES
    }
    alike = all(
        torch.equal(found.slice(fragment, state), value(found.step, name, state, fragment.length))
        for (name, state), fragment in whole.items()
    )
    return alike and found.optimizer_steps == found.step == found.state["step"] and "scale" in found.buffers()


def _refusals(errors: tuple[int, ...], every: int) -> Tally:
    tally = Tally()
    for number in errors:
        for at in range(0, _acts(), every):
            tally.points += 1
            with tempfile.TemporaryDirectory() as scratch:
                folder, said = Path(scratch) / "checkpoints", Path(scratch) / "found.json"
                began = time.perf_counter()
                forked(lambda at=at, number=number, folder=folder, said=said: _refused(folder, said, at, number))
                tally.seconds.append(time.perf_counter() - began)
                found, name = json.loads(said.read_text()), f"{os.strerror(number)} at act {at}"
                tally.lost += [f"{name}: {each}" for each in found["lost"]]
                tally.left += [f"{name}: {found['left']}"] if found["left"] else []
    return tally


def _refused(folder: Path, said: Path, at: int, number: int) -> None:
    """Save on and on as training does; after each save the newest checkpoint must be right, and two saves after the
    refused act all must be well."""
    writer, lost, newest, step = Writer(folder_of(folder), KEEP), [], 0, 0
    engine: Any = Made()
    with Fault(at, OSError(number, os.strerror(number))) as fault:
        last = None
        while step != last:
            step += 1
            engine.step = step
            writer.save(engine, step, {"step": step})
            writer.settle()
            told = writer.news()
            newest = max([newest, *(each.step for each in told if isinstance(each, checkpoint.Saved))])
            failed = [each for each in told if isinstance(each, checkpoint.Failed)]
            found = checkpoint.latest(folder)
            if (found.step if found else 0) < newest or (found and not right(found)):
                lost.append(f"after step {step}: {found.step if found else None} instead of {newest}")
            if any(os.strerror(number) not in each.error for each in failed):
                lost.append(f"step {step} failed without a reason: {failed}")
            if last is None and fault.count > at:
                last = step + 2
    if newest != last:
        lost.append(f"the last save, of step {last}, did not succeed: {newest}")
    writer.close()
    said.write_text(json.dumps({"lost": lost, "left": [p.name for p in folder.iterdir() if p.name[0] == "."]}))


def forked(function: Callable[[], None], *allowed: int) -> int:
    """Run it in a forked child; its exit code. Raises AssertionError where the child failed otherwise."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            logging.disable(logging.WARNING)  # of the broken checkpoints that it makes
            writing.POLL = 0.002  # the next table is there at once
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, *allowed), f"a child ended with {code}"
    return code
