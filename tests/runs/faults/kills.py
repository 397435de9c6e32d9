"""Real runs whose processes are killed at random, and what that costs: until it is noticed, until training goes on."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pretrain import checkpoint
from tests.runs.training import log, start

STEPS = 24
OFTEN = (f"steps={STEPS}", "checkpoint.every=1", "checkpoint.keep=2", "validation.every=999")  # always saving


@dataclass
class Killed:
    """kills: what was killed, and after which step. detect: seconds until the ranks that were left had ended too.

    recover: seconds from the relaunch to its first step.
    """

    kills: list[str] = field(default_factory=list)
    detect: list[float] = field(default_factory=list)
    recover: list[float] = field(default_factory=list)


def whole(data: Path, out: Path, ranks: int = 2) -> None:
    """The run that nobody interrupts."""
    codes = [process.wait(timeout=280) for process in start(data, out, ranks, *OFTEN)]
    assert codes == [0] * ranks, out.with_suffix(".txt").read_text()[-4000:]


def killed(data: Path, out: Path, count: int, seed: int = 0, ranks: int = 2) -> Killed:
    """The same run, killed `count` times: one rank or all, at a time drawn anew, also within a save; then finished.

    A run that came to its end before its kill begins again from a checkpoint drawn from the middle of it.
    """
    draw, found = random.Random(seed), Killed()
    while len(found.kills) < count:
        processes = start(data, out, ranks, *OFTEN)
        began, before = time.monotonic(), len(log(out))
        if not _until(lambda before=before: _stepped(out, before), processes):
            codes = [process.wait() for process in processes]
            assert codes == [0] * ranks, f"{codes}\n{out.with_suffix('.txt').read_text()[-4000:]}"
            _back(out, draw)
            continue
        if found.kills:
            found.recover.append(time.monotonic() - began)
        time.sleep(draw.uniform(0, 2.0))
        chosen = [processes[draw.randrange(ranks)]] if draw.random() < 0.5 else processes
        if any(process.poll() is not None for process in processes):
            [process.wait() for process in processes]
            _back(out, draw)
            continue
        ended = time.monotonic()
        for process in chosen:
            process.send_signal(signal.SIGKILL)
        codes = [process.wait(timeout=120) for process in processes]
        if not all(codes):  # the run had come to its end: what was killed had nothing left to do
            state(out)
            _back(out, draw)
            continue
        found.detect.append(time.monotonic() - ended)
        last = max(record["step"] for record in log(out))
        found.kills.append(f"{'all' if chosen is processes else 'one'} after step {last}")
        assert checkpoint.latest(out / "checkpoints") is not None or last <= 2
    processes = start(data, out, ranks, *OFTEN)
    codes = [process.wait(timeout=280) for process in processes]
    assert codes == [0] * ranks, f"{codes}\n{out.with_suffix('.txt').read_text()[-4000:]}"
    return found


def state(out: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of a run's end."""
    found = checkpoint.latest(out / "checkpoints")
    assert found is not None and found.step == STEPS, found
    return {
        f"{name} {kind}": found.slice(checkpoint.Fragment(name, 0, torch.Size(entry["shape"]).numel()), kind)
        for name, entry in found.parameters.items()
        for kind in checkpoint.STATES
    }


def alike(one: Path, other: Path) -> bool:
    """Whether two runs ended in the same state, bitwise."""
    want, got = state(one), state(other)
    return want.keys() == got.keys() and all(torch.equal(value, got[name]) for name, value in want.items())


def _stepped(out: Path, before: int) -> bool:
    return any(record["event"] == "step" for record in log(out)[before:])


def _until(condition: Callable[[], bool], processes: list) -> bool:
    """Wait for a condition; False where the processes ended first."""
    end = time.monotonic() + 240
    while not condition():
        if any(process.poll() is not None for process in processes):
            return False
        assert time.monotonic() < end, "no step in 240 s"
        time.sleep(0.05)
    return True


def _back(out: Path, draw: random.Random) -> None:
    """A finished run as it was after an earlier step: its later checkpoints are gone."""
    kept = checkpoint.committed(out / "checkpoints")
    for path in kept[1:] if draw.random() < 0.5 else kept:
        shutil.rmtree(path)
