"""The pack from files to shards: time, memory, bytes, and what a second worker brings.

    FOURFOLD_PACK=PACK FOURFOLD_EXPANDED=EXPANDED python benchmarks/pack.py [KEY=VALUE …]
        [--quick] [--rounds N] [--keep DATA] [--json FILE]

`pack.toml` is prepared with two workers and with one, in turn, each time in a process of its own that starts Ray anew.
Asserted: that both write the same manifest, and that it counts what lies on disk. Memory is every process's own
high-water mark, as the kernel keeps it. `--quick` takes `part.toml`, and two workers only. Without the pack it is the
sample inside the package, which is too small for anything but memory.
"""

import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import rows
from rich.progress import Progress

from data_prep.bars import Bars
from data_prep.prepare import PrepareConfig, make
from data_prep.recipe import roots_of
from data_prep.shards import Manifest
from data_prep.steps import plan
from pretrain.config import load
from pretrain.data.index import SUFFIX
from pretrain.places import Place

FOLDER = Path(__file__).parent
ROUNDS = 3
SHARED = ("reading sources", "writing shards")  # the stages that have work for all workers
SECONDS = {"pack": 600, "part": 120}  # goals
SMALL = 10_000  # samples, below which fixed costs hide what a sample costs


@dataclass
class Run:
    """One preparation. stages: seconds by name. peaks: most bytes of memory by kind of process. store: Ray's, in bytes.

    manifest: None until it is done.
    """

    workers: int
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=lambda: {"driver": 0, "worker": 0})
    store: dict[str, int] = field(default_factory=lambda: {"spilled": 0, "created": 0})
    manifest: Manifest | None = None


class Stages(Bars):
    """Times the stages of `make`, and asks Ray after each what its object store has done so far."""

    def __init__(self, run: Run) -> None:
        super().__init__(Progress(disable=True))
        self._run = run

    def __call__(self, what: str, items: Iterator[Any], total: int) -> None:
        begin = time.perf_counter()
        super().__call__(what, items, total)
        self._run.stages[what] = time.perf_counter() - begin
        if self._run.workers:
            self._run.store = object_store()


def object_store() -> dict[str, int]:
    """Bytes that have been spilled to disk, and that were ever put there, since Ray was started."""
    from ray._private.internal_api import get_memory_info_reply
    from ray._private.state import state

    stats = get_memory_info_reply(state).store_stats
    return {"spilled": stats.spilled_bytes_total, "created": stats.cumulative_created_bytes}


@contextmanager
def watched(peaks: dict[str, int]) -> Iterator[None]:
    """Keep the high-water marks of this process and of any Ray worker, while the block runs."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            peaks["driver"] = max(peaks["driver"], high_water("self"))
            for child in psutil.Process().children(recursive=True):
                try:
                    if "".join(child.cmdline()[:1]).startswith("ray::"):
                        peaks["worker"] = max(peaks["worker"], high_water(str(child.pid)))
                except (psutil.Error, OSError, IndexError):
                    continue  # it ended between being listed and being asked

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def high_water(process: str) -> int:
    """The most bytes of memory that a process has had."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def prepared(settings: PrepareConfig, workers: int, out: Path) -> Run:
    """Prepare once. Asserts that the manifest counts what lies on disk."""
    config = settings.model_copy(update={"workers": workers})
    run, begin = Run(workers), time.perf_counter()
    roots = roots_of(config)
    with watched(run.peaks):
        run.manifest = make(config, Place(str(out)), roots, plan(config, roots), Stages(run))
    run.seconds = time.perf_counter() - begin
    sizes = (path.stat().st_size for pattern in ("*/*/*.tar", f"*/*/*{SUFFIX}") for path in out.glob(pattern))
    assert sum(sizes) == run.manifest.totals["bytes"], f"{out}: the manifest miscounts its shards"
    return run


def claims(
    quick: bool, rounds: int = ROUNDS, overrides: Sequence[str] = (), keep: Path | None = None
) -> list[rows.Row]:
    settings, runs = settings_of(quick, overrides), {2: list[Run](), 1: list[Run]()}
    turns = [(2,)] if quick else [(2, 1), (1, 2)] * rounds
    with tempfile.TemporaryDirectory() as scratch:
        for number, turn in enumerate(turns[:rounds]):
            for workers in turn:
                out = Path(scratch) / f"{number}-{workers}"
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as one:
                    run = one.submit(prepared, settings, workers, out).result()
                runs[workers].append(run)
                print(f"{workers} workers: {run.seconds:.0f} s,", *(f"{k} {v:.0f} s," for k, v in run.stages.items()))
                if keep and (number, workers) == (0, 2):
                    shutil.copytree(out, keep)
                shutil.rmtree(out)
    written = {run.manifest.to_bytes() for both in runs.values() for run in both if run.manifest}
    assert len(written) == 1, "the number of workers changes what is written"
    return [*costs(settings.name, runs[2]), *(second_worker(runs) if runs[1] else ())]


def costs(name: str, runs: Sequence[Run]) -> list[rows.Row]:
    manifest = runs[0].manifest
    assert manifest
    totals, seconds = manifest.totals, statistics.median(run.seconds for run in runs)
    peak = {kind: max(run.peaks[kind] for run in runs) for kind in runs[0].peaks}
    spilled, created = (max(run.store[kind] for run in runs) for kind in ("spilled", "created"))
    count = totals["samples"]
    found = [
        rows.within("peak memory of a worker", peak["worker"] / 2**20, 1024, "MiB"),
        rows.within("peak memory of the driver", peak["driver"] / 2**20, 1024, "MiB"),
        rows.Row("spilled by Ray's object store", spilled, 0, "goal", float(spilled == 0), 1.0, "bytes"),
        rows.within("ever put into Ray's object store", created / 2**20, 75, "MiB"),
    ]
    if count < SMALL:
        return found
    what, goal = f"{name}: {count:,} samples from files to shards, 2 workers", SECONDS.get(name, 600)
    return [
        *found,
        rows.within(what, seconds, goal, "s"),
        rows.faster(f"{name}: the same as a rate", (count / seconds, count / goal), "goal", 1.0, "samples/s"),
        rows.within("overhead beside what samples hold", totals["overhead_bytes_per_sample"], 1500, "bytes/sample"),
        rows.within("structures on disk", totals["structure_bytes_per_residue"], 24, "bytes/residue"),
    ]


def second_worker(runs: dict[int, list[Run]]) -> list[rows.Row]:
    """Two workers against one, on the same slices: by stage, and the whole with all that one core has to do alone."""

    def row(what: str, of: Callable[[Run], float]) -> rows.Row:
        two, one = (statistics.median(of(run) for run in runs[workers]) for workers in (2, 1))
        return rows.Row(f"two workers: {what}", two, one, "one worker", one / two, 1.7, "s")

    return [
        row("the stages that they share", lambda run: sum(run.stages[each] for each in SHARED)),
        *(row(f"of these, {each}", lambda run, each=each: run.stages[each]) for each in SHARED),
        row("the whole, Ray's start included", lambda run: run.seconds),
    ]


def settings_of(quick: bool, overrides: Sequence[str] = ()) -> PrepareConfig:
    """The pack, a part of it, or where there is none the sample inside the package."""
    settings = load(PrepareConfig, FOLDER / ("part.toml" if quick else "pack.toml"), list(overrides))
    try:
        roots_of(settings)
    except ValueError as error:
        print(f"no pack ({error}): the sample instead")
        settings = load(PrepareConfig, "prepare/sample.toml")
    return settings


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="with each number of workers; quick: one")
    parser.add_argument("--keep", type=Path, help="a folder for the data set that is made first")
    chosen = parser.parse_args()
    rows.report(claims(chosen.quick, chosen.rounds, chosen.overrides, chosen.keep), chosen.json)


if __name__ == "__main__":
    main()
