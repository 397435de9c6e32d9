"""A training step on stored features against the same step with live encoders, and what stored features cost on disk.

python benchmarks/encode.py [DATA] [--quick] [--json FILE]    DATA: a prepared data set; by default the package's sample

DATA keeps the features. Both are runs of `pretrain.train` on amma/tiny in processes of their own, in turn, one rank; a
figure is the median step, its data included, without the first ten. Ours reads features, the peer computes them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rows

from data_prep import encode
from data_prep.prepare import PrepareConfig, prepare
from pretrain.config import load
from pretrain.places import Place

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "amma/tiny.toml"
WARM = 10  # steps


def claims(quick: bool, data: Path | None = None) -> list[rows.Row]:
    with tempfile.TemporaryDirectory() as scratch:
        path = data or Path(scratch) / "sample"
        if not data:
            prepare(load(PrepareConfig, "prepare/sample.toml", ["workers=0"]), path, quiet=True)
        started = time.perf_counter()
        made = encode.run(Place(str(path)), encode.EncodeConfig(run=CONFIG), workers=0)
        seconds = time.perf_counter() - started
        rates = _rates(path, Path(scratch), 40 if quick else 120, 1 if quick else 3)
        sequence = next(each for each in made if each.modality == "sequence")
        least = 2 * json.loads((path / sequence.folder / "features.json").read_text())["width"]
        return [
            rows.faster("training steps on stored features, amma/tiny", rates, "live encoders", 1.5, "steps/s"),
            rows.within("stored sequence features", sequence.bytes / sequence.rows, 1.02 * least, "bytes/residue"),
            rows.within("encoding the data set, once", seconds, 240, "s"),
        ]


def _rates(data: Path, scratch: Path, steps: int, rounds: int) -> tuple[float, float]:
    """Steps per second, (stored, live)."""
    found: dict[str, list[float]] = {"stored": [], "live": []}
    for number in range(rounds):
        for mode, rates in found.items():
            out = scratch / f"{mode}-{number}"
            seldom = ["checkpoint.every=9999", "validation.every=9999", "log.every=1", "log.tensorboard=false"]
            options = [f"data.path={data}", f"out={out}", f"steps={steps}", f"data.features={mode}", *seldom]
            subprocess.run(
                [sys.executable, "-m", "pretrain.train", CONFIG, *options],
                cwd=ROOT, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
            rates += [1 / record["seconds"] for record in log if record["event"] == "step" and record["step"] > WARM]
    return statistics.median(found["stored"]), statistics.median(found["live"])


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("data", nargs="?", type=Path)
    chosen = parser.parse_args()
    rows.report(claims(chosen.quick, chosen.data), chosen.json)


if __name__ == "__main__":
    main()
