"""Every system's tiny configuration on the sample, as a user runs it: how long it takes, and whether it has learnt.

    python benchmarks/tiny.py [--quick] [--json FILE]

One run each, with as many threads as there are cores. Time is from `fourfold train` to its end, the sample being
prepared. Loss is the last validation's, against the first's. Retrieval is of every pair of modalities, and says of
how many proteins. --quick runs Fourfold alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rows

from data_prep.prepare import PrepareConfig, prepare
from pretrain.config import load

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ("fourfold", "amma", "align_pro", "bihierarchical", "ssgi", "two_tower")
MOST = 180  # seconds


def claims(quick: bool) -> list[rows.Row]:
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "sample"
        prepare(load(PrepareConfig, "prepare/sample.toml", ["workers=0"]), data, quiet=True)
        return [row for system in SYSTEMS[: 1 if quick else None] for row in _run(system, data, Path(scratch) / system)]


def _run(system: str, data: Path, out: Path) -> list[rows.Row]:
    name, began = f"{system}/tiny.toml", time.perf_counter()
    command = [sys.executable, "-m", "cluster.cli", "train", name, f"data.path={data}", f"out={out}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    seconds = time.perf_counter() - began
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    told = [record for record in log if record["event"] == "validation"]
    first, last = told[0]["loss"], told[-1]["loss"]
    found = [
        rows.within(f"{name}: from the command to its end", seconds, MOST, "s"),
        rows.Row(f"{name}: validation loss", last, first, "first validation", first / last, 1.0, "loss"),
    ]
    for pair, one in told[-1]["retrieval"].items():
        recall, chance = one["recall"], one["chance"]
        if chance < 1:  # otherwise k takes all of so few proteins, and says nothing
            what = f"{name}: {pair}, {one['n']} held-out proteins, {_errors(one):+.1f} standard errors from chance"
            found.append(rows.Row(what, recall, chance, "chance", recall / chance, 1.0, "recall at 10"))
    return found


def _errors(one: dict[str, Any]) -> float:
    return (one["recall"] - one["chance"]) / (one["chance"] * (1 - one["chance"]) / one["n"]) ** 0.5


def main() -> None:
    chosen = rows.options(__doc__).parse_args()
    rows.report(claims(chosen.quick), chosen.json)


if __name__ == "__main__":
    main()
