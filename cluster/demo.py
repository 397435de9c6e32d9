"""`fourfold demo`: the whole way, once, on real proteins. Every stage is a command that anybody could type.

Prepare with Ray; train on two ranks; `kill -9` one of them; start the same command again, which resumes; export; load
the model where deepspeed and ray cannot be imported; search; report. What each stage claims is checked, and the exit
code says so.
"""

import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

PREPARE, TRAIN = "prepare/sample.toml", "amma/tiny.toml"
RANKS = 2
PATIENCE = 300.0  # seconds until a first checkpoint; more means that training hangs


class Failed(Exception):
    """A stage did not do what it is there to show."""


@dataclass
class Demo:
    """Where everything lies, and what has been done so far: (stage, seconds, result)."""

    out: Path
    console: Console = field(default_factory=lambda: Console(stderr=True))
    rows: list[tuple[str, float, str]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def run(self) -> Path:
        return self.out / "run"

    @property
    def model(self) -> Path:
        return self.out / "model"

    @property
    def report(self) -> Path:
        return self.out / "report.html"


def demo(out: Path) -> int:
    """Run every stage; 0 if all of them did what they claim. Only what a demo wrote to `out` is replaced."""
    show = Demo(out)
    for folder in (show.data, show.run, show.model):
        shutil.rmtree(folder, ignore_errors=True)
    show.report.unlink(missing_ok=True)
    stages = (prepare, train_and_kill, resume, export, take_away, report)
    try:
        for stage in stages:
            _do(show, stage)
        failed = None
    except (Failed, subprocess.CalledProcessError) as error:
        failed = error
    _print(show)
    if failed:
        show.console.print(f"[bold red]failed:[/] {failed}", highlight=False)
        return 1
    show.console.print(f"report: {show.report.resolve()}", highlight=False, soft_wrap=True)
    return 0


def prepare(show: Demo) -> str:
    """raw files → shards (Ray)"""
    _fourfold(show, "prepare", PREPARE, "--out", str(show.data))
    manifest = json.loads((show.data / "manifest.json").read_text())
    groups = [(name, group["samples"]) for split in manifest["splits"].values() for name, group in split.items()]
    rejected = sum(manifest["rejected"].values())
    samples, kinds = sum(count for _, count in groups), len({name for name, _ in groups})
    _check(samples > 0 and rejected > 0, f"{samples} samples, {rejected} rejected: the sample must have both")
    return f"{samples} proteins in {kinds} kinds of pairing; {rejected} rejected, {len(manifest['rejected'])} reasons"


def train_and_kill(show: Demo) -> str:
    """train on two ranks, kill -9 one"""
    process = subprocess.Popen(_echo(show, _train(show)))
    try:
        checkpoint = _wait(show, process, lambda log: _last(log, "checkpoint"))
        _wait(show, process, lambda log: [r for r in log if r["event"] == "step" and r["step"] > checkpoint["step"]])
        victim = _rank(process.pid, RANKS - 1)
        show.console.print(f"[bold]$[/] kill -9 {victim.pid}  [dim]# rank {RANKS - 1}[/]", highlight=False)
        victim.kill()
        code = process.wait(PATIENCE)
    except BaseException:
        _end(process)
        raise
    _check(code != 0, "training lost a rank and still ended with exit code 0")
    return f"checkpoint at step {checkpoint['step']}, killed after step {_last(_log(show), 'step')['step']}"


def resume(show: Demo) -> str:
    """the same command again"""
    _run(show, _train(show))
    log = _log(show)
    resumed, steps = _last(log, "resume"), [record for record in log if record["event"] == "step"]
    if resumed is None or resumed["step"] < 1:
        raise Failed("the second start did not resume from a checkpoint")
    losses = [record["loss"] for record in steps]
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    _check(all(map(math.isfinite, losses)), "a loss is not finite")
    _check(last < first, f"the loss did not fall: {first:.3f} at the beginning, {last:.3f} at the end")
    seconds = sum(record["tokens"] / record["tokens_per_second"] for record in steps)
    rate = sum(record["tokens"] for record in steps) / seconds
    done = f"resumed at step {resumed['step']}, done at {steps[-1]['step']}"
    return f"{done}; loss {first:.3f} → {last:.3f}; {rate:,.0f} tokens/s"


def export(show: Demo) -> str:
    """checkpoint → model"""
    _fourfold(show, "export", str(show.run), str(show.model))
    size = sum(file.stat().st_size for file in show.model.rglob("*") if file.is_file())
    return f"{len(list(show.model.iterdir()))} files, {size / 1e6:.1f} MB"


def take_away(show: Demo) -> str:
    """load and search without deepspeed or ray"""
    command = [sys.executable, "-m", "cluster.takeaway", str(show.model), str(show.data)]
    done = subprocess.run(_echo(show, command), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    for query in found["searches"]:
        hits = ", ".join(f"{key} {score:.2f}" for key, score in query["hits"])
        show.console.print(f"  {query['query']} → {hits}", highlight=False, markup=False)
    _check(found["itself_first"], "a protein is not the best match of itself")
    _check(found["alone"] <= 1e-6, f"a protein alone differs by {found['alone']:.1e} from the same protein in a batch")
    embedded = f"{found['proteins']} proteins embedded, alone as in a batch within {found['alone']:.0e}"
    return f"{embedded}; {len(found['searches'])} searches"


def report(show: Demo) -> str:
    """the page"""
    from pretrain.evaluation.report import write_report

    path = write_report(show.report, show.data, show.run, show.model)
    return f"{path.stat().st_size / 1e3:,.0f} kB, self-contained"


def _do(show: Demo, stage: Callable[[Demo], str]) -> None:
    show.console.rule(f"[bold]{stage.__doc__}")
    started, result = time.perf_counter(), "[red]failed[/]"
    try:
        result = stage(show)
    finally:
        show.rows.append((stage.__doc__ or "", time.perf_counter() - started, result))


def _print(show: Demo) -> None:
    table = Table(title="What was done", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("result")
    for name, seconds, result in show.rows:
        table.add_row(name, f"{seconds:.1f}", result)
    table.add_section()
    table.add_row("all of it", f"{sum(seconds for _, seconds, _ in show.rows):.1f}", "")
    show.console.print(table, highlight=False)


def _train(show: Demo) -> list[str]:
    settings = [f"data.path={show.data}", f"out={show.run}"]
    return [sys.executable, "-m", "cluster.cli", "train", TRAIN, *settings, "--ranks", str(RANKS)]


def _fourfold(show: Demo, *arguments: str) -> None:
    _run(show, [sys.executable, "-m", "cluster.cli", *arguments])


def _run(show: Demo, command: list[str]) -> None:
    subprocess.run(_echo(show, command), check=True)


def _echo(show: Demo, command: list[str]) -> list[str]:
    """Show the command as one would type it."""
    typed = shlex.join(command).replace(f"{sys.executable} -m cluster.cli", "fourfold")
    show.console.print(f"[bold]$[/] {typed.replace(sys.executable, 'python')}", highlight=False, soft_wrap=True)
    return command


def _wait(show: Demo, process: subprocess.Popen[bytes], condition: Callable[[list[dict[str, Any]]], Any]) -> Any:
    """The first true value of `condition` on the log of a run that is going on."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition(_log(show))):
        if process.poll() is not None:
            raise Failed(f"training ended with exit code {process.returncode} before it could be killed")
        if time.monotonic() > deadline:
            raise Failed(f"training wrote nothing to wait for within {PATIENCE:.0f} s")
        time.sleep(0.1)
    return value


def _log(show: Demo) -> list[dict[str, Any]]:
    """The run's records; the last line may be half written."""
    path = show.run / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    records = []
    for line in filter(None, lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # the line that a kill cut short, closed by the next run's first
    return records


def _last(log: list[dict[str, Any]], event: str) -> Any:
    return next((record for record in reversed(log) if record["event"] == event), None)


def _rank(launcher: int, number: int) -> psutil.Process:
    for process in psutil.Process(launcher).children(recursive=True):
        if process.environ().get("RANK") == str(number) and "pretrain.train" in process.cmdline():
            return process
    raise Failed(f"no process of rank {number} below {launcher}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever happens, no rank outlives the demo."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)
