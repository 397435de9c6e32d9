"""The runs below a folder, and what became of each: read from what they wrote, whole or not, and from nothing else."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pretrain.heartbeat import alive

DEPTH = 4  # folders below the one asked for
LOG, CONFIG = "log.jsonl", "config.json"

State = Literal["running", "finished", "stopped", "failed", "died", "unknown"]
ENDS: dict[str, State] = {"end": "finished", "stopped": "stopped", "error": "failed"}
COLORS: dict[State, str] = {
    "running": "green", "finished": "bold", "stopped": "yellow", "failed": "red", "died": "red", "unknown": "dim"
}  # fmt: skip
COLUMNS = (
    "run", "model", "state", "step", "loss", "best validation", "R@k (chance)", "tokens/s", "checkpoint", "started",
    "took",
)  # fmt: skip
DISPENSABLE = "started", "model", "took", "R@k (chance)", "tokens/s", "checkpoint"  # in this order
Record = dict[str, Any]


@dataclass
class Run:
    """One run. Times are seconds since 1970, durations seconds; None where the run has not said.

    state: `running`: its process lives; `finished`, `stopped` (asked to), `failed` (with an error): as its log ends;
        `died`: its log ends with none of these and its process is gone; `unknown`: there is no log that says anything.
    loss, tokens_per_second: of the last logged step. best: (step, loss) of the lowest validation. retrieval: pair →
        k, recall, chance at the last validation. checkpoint: (step, time) of the newest. took: all sittings together.
    notes: what is wrong with its files, and its error.
    """

    folder: str
    model: str = "?"
    state: State = "unknown"
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    best: tuple[int, float] | None = None
    retrieval: dict[str, dict[str, float]] = field(default_factory=dict)
    tokens_per_second: float | None = None
    checkpoint: tuple[int, float] | None = None
    started: float | None = None
    took: float = 0.0
    notes: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        return asdict(self)


def find(folder: Path) -> list[Run]:
    """Every run at or below a folder, by name. Raises ValueError where there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; `fourfold train` makes runs, below `runs` unless `out` says otherwise")
    return [read(path) for path in sorted(_folders(folder))]


def read(folder: Path) -> Run:
    """What is known of the run in a folder; damaged files are noted, never an error."""
    run = Run(str(folder))
    config = _config(folder / CONFIG, run.notes)
    run.model = str(_at(config, "model", "kind") or "?")
    run.steps = _at(config, "steps")
    ended = _replay(folder / LOG, run)
    if alive(folder):
        run.state = "running"
    elif ended:
        run.state = ENDS[ended]
    elif run.started is not None:
        run.state = "died"
    run.checkpoint = max(filter(None, (run.checkpoint, *_saved(folder / "checkpoints"))), default=None)
    return run


def table(runs: Sequence[Run], width: int, now: float | None = None) -> Table:
    """A row for each. Recall is the mean over the pairs of modalities, with the chance level. Where `width` columns of
    text are too few for all of it, the least important columns are left out."""
    now = time.time() if now is None else now
    rows = [_row(run, now) for run in runs]
    names = list(COLUMNS)
    for name in (*DISPENSABLE, None):
        shown = Table(box=None, header_style="dim", pad_edge=False)
        for each in names:
            shown.add_column(each, justify="left" if each in ("run", "model", "state") else "right", overflow="fold")
        for row in rows:
            shown.add_row(*(row[each] for each in names))
        if name is None or Console(width=10_000).measure(shown).maximum <= width:
            return shown
        names.remove(name)
    raise AssertionError


def _row(run: Run, now: float) -> dict[str, str]:
    """What COLUMNS say of a run."""
    state = f"died at step {run.step:,}" if run.state == "died" else run.state
    recalls, chances = ([each[name] for each in run.retrieval.values()] for name in ("recall", "chance"))
    cells = (
        escape(run.folder),
        escape(run.model),
        f"[{COLORS[run.state]}]{state}",
        f"{run.step:,}" + (f"/{run.steps:,}" if isinstance(run.steps, int) else ""),
        _number(run.loss, ".4f"),
        f"{_number(run.best[1], '.4f')} at {run.best[0]:,}" if run.best else "–",
        f"{fmean(recalls):.2f} ({fmean(chances):.2f})" if recalls else "–",
        _number(run.tokens_per_second, ",.0f"),
        f"{run.checkpoint[0]:,}, {_ago(now - run.checkpoint[1])}" if run.checkpoint else "–",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)) if run.started else "–",
        str(timedelta(seconds=round(run.took))) if run.started else "–",
    )
    return dict(zip(COLUMNS, cells, strict=True))


def details(runs: Sequence[Run]) -> list[str]:
    """What has no room in the table: what is wrong with each run, and for a single one its pairs of modalities."""
    lines = [f"{run.folder}: {note}" for run in runs for note in run.notes]
    if len(runs) == 1:
        for pair, found in runs[0].retrieval.items():
            lines.append(f"{pair}: R@{found['k']:g} {found['recall']:.2f} (chance {found['chance']:.2f})")
    return lines


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "–"


def _ago(seconds: float) -> str:
    for length, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {name} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _folders(folder: Path) -> Iterator[Path]:
    """Folders that a run has written to. What lies inside one, or inside a data set, is not looked at."""
    for path, below, files in os.walk(folder):
        here = Path(path)
        if LOG in files or (CONFIG in files and _config(here / CONFIG, []).keys() >= {"steps", "model", "data"}):
            yield here
            below.clear()
        elif "manifest.json" in files or len(here.relative_to(folder).parts) >= DEPTH:
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]


def _replay(path: Path, run: Run) -> str | None:
    """The log told into `run`; returns the event that ended it, None where none did."""
    ended, began, last, damaged, said = None, None, None, 0, ""
    try:
        file = path.open("rb")
    except OSError as error:
        run.notes.append(f"{path.name} cannot be read: {error.strerror or error}")
        return None
    with file:
        for record in _last_of_steps(file):
            if record is None:
                damaged += 1
                continue
            event, now = record["event"], record["time"]
            if run.started is None or event in ("start", "resume"):
                run.took += last - began if began is not None and last is not None else 0
                run.started, began, ended, said = run.started or now, now, None, ""
            last, ended = now, event if event in ENDS else ended
            if event in ("alarm", "error"):
                said = str(record.get("text", record.get("error", "")))
            _told(run, event, record)
    run.took += last - began if began is not None and last is not None else 0
    if said and ended in (None, "error"):
        run.notes.append(said)
    if damaged:
        run.notes.append(f"{damaged} line(s) of {path.name} are no records, and left out")
    return ended


def _told(run: Run, event: str, record: Record) -> None:
    """What one record says of the run."""
    step = record["step"]
    if event in ("step", "resume", "rewind", "end", "stopped"):
        run.step = step
    if event == "step":
        run.loss, run.tokens_per_second = record.get("loss"), record.get("tokens_per_second")
    elif event == "checkpoint":
        run.checkpoint = step, record["time"]
    elif event == "validation":
        loss, pairs, wanted = record.get("loss"), record.get("retrieval"), ("k", "recall", "chance")
        if isinstance(loss, (int, float)) and (run.best is None or loss < run.best[1] or run.best[0] == step):
            run.best = step, loss
        if isinstance(pairs, dict):
            run.retrieval = {p: {n: r[n] for n in wanted} for p, r in pairs.items() if r.keys() >= set(wanted)}


def _last_of_steps(file: Any) -> Iterator[Record | None]:
    """The log's records; None for a line that is none. A log may have millions of lines for steps: of several in a row
    only the last is parsed."""
    waiting: bytes | None = None
    for line in file:
        if line.startswith(b'{"event": "step"') and line.endswith(b"}\n"):
            waiting = line
            continue
        if waiting:
            yield _record(waiting)
            waiting = None
        if line.strip():
            yield _record(line)
    if waiting:
        yield _record(waiting)


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
        good = isinstance(record["event"], str) and isinstance(record["step"], int)
        return {**record, "time": float(record["time"])} if good else None
    except (ValueError, KeyError, TypeError):
        return None


def _saved(folder: Path) -> list[tuple[int, float]]:
    """(step, time) of checkpoints that lie in the run's own folder; the log of one may be lost."""
    found = []
    for commit in folder.glob("step-*/COMMIT.json"):
        step = commit.parent.name.removeprefix("step-")
        if step.isdigit():
            found.append((int(step), commit.stat().st_mtime))
    return found


def _config(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
        notes.append(f"{path.name} is no table")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror or error}")
    except ValueError:
        notes.append(f"{path.name} is damaged")
    return {}


def _at(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
