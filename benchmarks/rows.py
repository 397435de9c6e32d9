"""One row per claim: ours, the peer's, and their ratio, taken in turn within one run.

A ratio is oriented so that larger is better, and `target` is the least that counts. Where a claim has no peer but a
goal, the goal stands in the peer's place. Machines are noisy: a figure is the median of several rounds.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """ours, peer: in `unit`. ratio: how many times better ours is. target: the least ratio that counts."""

    what: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    target: float
    unit: str


def options(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--json", type=Path, help="write the rows, and the machine, to this file")
    return parser


def race(ours: Callable[[], int], peer: Callable[[], int], rounds: int) -> tuple[float, float]:
    """Median rates (what is counted, per second) of two callables, in turn: ours, the peer, ours, …"""
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for found, run in zip(rates, (ours, peer), strict=True):
            started = time.perf_counter()
            count = run()
            if number:  # the first round fills caches
                found.append(count / (time.perf_counter() - started))
    return statistics.median(rates[0]), statistics.median(rates[1])


def faster(what: str, rates: tuple[float, float], peer_name: str, target: float, unit: str) -> Row:
    """A claim about rates: the ratio is ours over the peer's."""
    return Row(what, rates[0], rates[1], peer_name, rates[0] / rates[1], target, unit)


def within(what: str, value: float, goal: float, unit: str) -> Row:
    """A claim that a cost stays within a goal: the ratio is the goal over the cost."""
    return Row(what, value, goal, "goal", goal / value, 1.0, unit)


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Print the rows, and write them with the kind of machine if asked to."""
    table = Table(*(name for name in Row.__annotations__))
    for row in rows:
        numbers = (f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}" for value in (row.ours, row.peer))
        ours, peer = numbers
        table.add_row(row.what, ours, peer, row.peer_name, f"{row.ratio:.2f}", f"{row.target:.2f}", row.unit)
    Console(width=140).print(table)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        about = machine() | {"python": platform.python_version(), "rows": [asdict(row) for row in rows]}
        path.write_text(json.dumps(about, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """The kind of machine: a figure means little without."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = next((line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    about = {"machine": platform.machine(), "processor": model, "cores": len(os.sched_getaffinity(0))}
    return about | {"memory_gb": round(memory / 1e9), "gpu": None}
