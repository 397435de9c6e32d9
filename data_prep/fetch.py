"""Public archives → files on our side: `fourfold fetch`.

Every file is brought whole or gone on with later, looked at, held against its published checksum where there is one,
and written down in `fetched.json`. What is there and as it was written down is not fetched again.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from data_prep.remote.errand import Errands, Outcome
from data_prep.remote.ledger import Ledger
from data_prep.remote.wanted import FetchConfig, Wanted, plan
from data_prep.remote.web import Web
from pretrain import config as configuration
from pretrain.places import Place

SHOWN = 50  # failures that are printed; fetched.json has all


@dataclass
class Report:
    """Counts by outcome, bytes that came, and every failure."""

    counts: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.what] += 1
        self.bytes += outcome.bytes if outcome.what == "fetched" else 0
        if outcome.what == "failed":
            self.failed.append(outcome)

    @property
    def complete(self) -> bool:
        return not self.counts["failed"] and not self.counts["stopped"]

    def lines(self) -> Iterator[str]:
        """For people: what came, what did not and why."""
        about = {
            "fetched": f"fetched, {self.bytes / 1e6:,.1f} MB",
            "kept": "there already",
            "absent": "not at their source, which is allowed",
            "failed": "failed",
            "stopped": "not tried: servers failed too often in a row; go on later",
        }
        yield from (f"{self.counts[what]:>10,}  {words}" for what, words in about.items() if self.counts[what])
        failed = sorted(self.failed, key=lambda each: (each.reason, each.name))
        width = max((len(each.reason) for each in failed), default=0)
        for each in failed[:SHOWN]:
            yield f"{each.reason.replace('_', ' '):<{width}}  {each.message}"
        if len(failed) > SHOWN:
            yield f"… and {len(failed) - SHOWN:,} more, in fetched.json"


def load(path: str, overrides: Iterable[str] = ()) -> FetchConfig:
    """The configuration. `release=2025_03` and `version=6` are text, though TOML would read numbers and dates."""
    texts = []
    for override in overrides:
        name, equals, value = override.partition("=")
        quoted = name in ("release", "version") and equals and value[:1] not in ("'", '"')
        texts.append(f"{name}={json.dumps(value)}" if quoted else override)
    return configuration.load(FetchConfig, path, texts)


def fetch(
    config: FetchConfig,
    out: str | Path,
    only: tuple[str, ...] = (),
    parts: Path | None = None,
    verify: bool = False,
    refresh: bool = False,
    quiet: bool = False,
) -> Report:
    """Bring what the configuration names to `out`: a folder, or a place that fsspec reaches.

    parts: where unfinished files grow; `out` itself where that is a folder here. verify: read what is there and compare
    its hash. refresh: ask servers whether what is there is still what they have. Raises ValueError for a configuration
    that lacks something, OSError where files cannot be written; all else is in the report.
    """
    place = Place(str(out))
    growing = parts or place.local
    if growing is None:
        raise ValueError(f"{out} is no folder here, and files grow in one: give --parts FOLDER")
    wanted = plan(config, only)
    with Ledger.open(place, place.local or growing) as ledger, _progress(quiet, len(wanted)) as (show, arrived):
        web = Web(config.web, arrived=arrived)
        return _run(Errands(config, place, growing, ledger, web, verify, refresh), wanted, show)


def _run(errands: Errands, wanted: list[Wanted], show: Callable[[Report], None]) -> Report:
    report = Report()
    with ThreadPoolExecutor(errands.config.web.connections) as pool:
        try:
            for done in as_completed([pool.submit(errands.one, each) for each in wanted]):
                for outcome in done.result():
                    report.add(outcome)
                show(report)
        except BaseException:  # Ctrl-C, or a full disk: what came is kept
            errands.web.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            errands.ledger.failed = [asdict(each) for each in sorted(report.failed, key=lambda each: each.name)]
    return report


@contextmanager
def _progress(quiet: bool, total: int) -> Iterator[tuple[Callable[[Report], None], Callable[[int], None]]]:
    """Two functions for a bar on the terminal: one shows a report, one counts bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(f"0 of {total:,} files", total=None)

        def show(report: Report) -> None:
            done = sum(report.counts.values())
            progress.update(task, description=f"{done:,} of {total:,} files, {len(report.failed):,} failed")

        yield show, lambda count: progress.advance(task, count)
