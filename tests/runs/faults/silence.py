"""Ranks that are told to stop, or stopped without being asked: what the others say, and how soon."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.runs.training import finish, log, start, wait_for_step

SOON = ("watch.silent=4", "validation.every=999", "checkpoint.every=5")


@dataclass
class Silent:
    """alarm: what the log or standard error said of the rank. detect: seconds until then. recover: seconds from SIGCONT
    to the next step. codes: with which the ranks ended."""

    alarm: str
    detect: float
    recover: float
    codes: list[int]


def stopped(data: Path, out: Path, rank: int, *overrides: str, steps: int = 30) -> Silent:
    """SIGSTOP one of two ranks until it is named, SIGCONT it, and let the run finish."""
    processes = start(data, out, 2, f"steps={steps}", *SOON, *overrides)
    wait_for_step(out, 3, processes)
    began = time.monotonic()
    processes[rank].send_signal(signal.SIGSTOP)
    text = _named(out, rank)
    detect = time.monotonic() - began
    last = max(record["step"] for record in log(out) if record["event"] == "step")
    began = time.monotonic()
    processes[rank].send_signal(signal.SIGCONT)
    if last < steps:
        wait_for_step(out, last + 1, processes)
    recover = time.monotonic() - began
    finish(processes, out)
    return Silent(text, detect, recover, [process.returncode for process in processes])


def given_up(data: Path, out: Path, rank: int) -> Silent:
    """SIGSTOP one of two ranks until the other gives it up; then start the run again."""
    processes = start(data, out, 2, "steps=30", *SOON, "watch.give_up=8")
    wait_for_step(out, 6, processes)
    began = time.monotonic()
    processes[rank].send_signal(signal.SIGSTOP)
    code = processes[1 - rank].wait(timeout=60)
    detect = time.monotonic() - began
    processes[rank].send_signal(signal.SIGKILL)
    processes[rank].wait()
    said, before, began = out.with_suffix(".txt").read_text(), len(log(out)), time.monotonic()
    again = start(data, out, 2, "steps=30", *SOON)
    while not any(record["event"] == "step" for record in log(out)[before:]):
        assert all(process.poll() is None for process in again), out.with_suffix(".txt").read_text()[-4000:]
        time.sleep(0.05)
    recover = time.monotonic() - began
    finish(again, out)
    return Silent(said, detect, recover, [code])


def told_to_stop(data: Path, out: Path, twice: bool) -> Silent:
    """SIGTERM to all ranks; with `twice` a second one at once, which ends them wherever they are."""
    processes = start(data, out, 2, "steps=500", *SOON)
    wait_for_step(out, 6, processes)
    began = time.monotonic()
    for _ in range(2 if twice else 1):
        for process in processes:
            process.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # signals of one kind that wait are one
    codes = [process.wait(timeout=120) for process in processes]
    return Silent(out.with_suffix(".txt").read_text(), time.monotonic() - began, 0.0, codes)


def may_trace() -> bool:
    """Whether py-spy may read a process of this user's that is not its child."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return os.geteuid() == 0 or not scope.exists() or scope.read_text().strip() == "0"


def alarms(out: Path) -> list[dict[str, Any]]:
    return [record for record in log(out) if record["event"] == "alarm"]


def _named(out: Path, rank: int) -> str:
    """What is said of the rank. The first one cannot write that down itself: the second says it on standard error."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        said = out.with_suffix(".txt").read_text()
        if f"warning: rank {rank} (process" in said and "its last phase" in said:
            return said[said.index(f"warning: rank {rank} (process") :]
        time.sleep(0.05)
    raise AssertionError(f"rank {rank} was not named:\n{out.with_suffix('.txt').read_text()[-4000:]}")
