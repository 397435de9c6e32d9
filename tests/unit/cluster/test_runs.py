"""What is said of runs, whatever state their folders are in."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster import cli
from cluster.runs import details, find, read, table
from pretrain.heartbeat import Heartbeat

PAIRS = {
    "sequence-structure": {"k": 10, "recall": 0.6, "chance": 0.2},
    "sequence-image": {"k": 10, "recall": 0.4, "chance": 0.4},
}


def record(event: str, step: int, time: float, **facts: Any) -> dict[str, Any]:
    return {"event": event, "step": step, "time": time, **facts}


def steps(first: int, last: int, time: float) -> list[dict[str, Any]]:
    return [record("step", n, time + n, loss=2 - n / 100, tokens_per_second=1000.0 + n) for n in range(first, last + 1)]


def validation(step: int, time: float, loss: float) -> dict[str, Any]:
    return record("validation", step, time, loss=loss, retrieval=PAIRS)


WHOLE = [
    record("start", 0, 1000.0),
    *steps(1, 20, 1000.0),
    validation(20, 1021.0, 1.7),
    record("checkpoint", 20, 1022.0, path="step-00000020"),
]
ENDED = [*WHOLE, *steps(21, 40, 1010.0), validation(40, 1051.0, 1.9), record("end", 40, 1052.0)]


def write(folder: Path, records: list[dict[str, Any]], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    tree = {"model": {"kind": "amma"}, "steps": 40, "data": {}} | config
    (folder / "config.json").write_text(json.dumps(tree))
    return folder


def test_a_finished_run(tmp_path: Path) -> None:
    run = read(write(tmp_path, ENDED))
    assert (run.state, run.model, run.step, run.steps) == ("finished", "amma", 40, 40)
    assert (run.loss, run.tokens_per_second) == (1.6, 1040.0)
    assert run.best == (20, 1.7) and run.retrieval == PAIRS and run.checkpoint == (20, 1022.0)
    assert (run.started, run.took, run.notes) == (1000.0, 52.0, [])


def test_a_killed_run_has_died_and_one_that_is_resumed_runs(tmp_path: Path) -> None:
    folder = write(tmp_path, [*WHOLE, *steps(21, 25, 1010.0)])
    assert read(folder).state == "died" and read(folder).step == 25
    heart = Heartbeat(folder)
    assert read(folder).state == "running"
    heart.close()
    write(folder, [*WHOLE, *steps(21, 25, 1010.0), record("resume", 20, 5000.0), *steps(21, 22, 5000.0)])
    run = read(folder)
    assert (run.state, run.step, run.took, run.started) == ("died", 22, 35.0 + 22.0, 1000.0)


@pytest.mark.parametrize(
    ("last", "state", "notes"),
    [
        (record("stopped", 25, 1036.0), "stopped", []),
        (record("error", 25, 1036.0, error="no space"), "failed", ["no space"]),
        (record("alarm", 25, 1036.0, text="rank 3 is silent"), "died", ["rank 3 is silent"]),
    ],
)
def test_how_a_run_ended(tmp_path: Path, last: dict[str, Any], state: str, notes: list[str]) -> None:
    run = read(write(tmp_path, [*WHOLE, *steps(21, 25, 1010.0), last]))
    assert (run.state, run.notes, run.step) == (state, notes, 25)
    again = [*WHOLE, last, record("resume", 20, 2000.0), record("end", 40, 2100.0)]
    assert (read(write(tmp_path, again)).state, read(tmp_path).notes) == ("finished", [])


def test_going_back_counts_from_there(tmp_path: Path) -> None:
    assert read(write(tmp_path, [*WHOLE, *steps(21, 25, 1010.0), record("rewind", 20, 1036.0)])).step == 20


def test_a_broken_log_tells_what_it_holds_and_that_it_is_broken(tmp_path: Path) -> None:
    folder = write(tmp_path, ENDED)
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    lines[30] = b'{"event": "st\n'
    lines[10] = b"\xff\x00 not a record\n"
    lines[11:11] = [b"\n", b"[1, 2]\n", b'{"event": "end"}\n', b'{"event": "step", "step": null, "time": 1}\n']
    (folder / "log.jsonl").write_bytes(b"".join(lines) + b'{"event": "validation", "st')
    (folder / "config.json").write_text("{")
    run = read(folder)
    assert (run.state, run.step, run.loss, run.best, run.steps) == ("finished", 40, 1.6, (20, 1.7), None)
    assert run.notes == ["config.json is damaged", "5 line(s) of log.jsonl are no records, and left out"]


def test_a_run_without_a_log_still_has_its_checkpoints(tmp_path: Path) -> None:
    folder = write(tmp_path, ENDED)
    (folder / "log.jsonl").unlink()
    for step, committed in ((20, True), (40, True), (60, False)):
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        if committed:
            (folder / "checkpoints" / f"step-{step:08d}" / "COMMIT.json").write_text("{}")
    (run,) = find(tmp_path)
    assert run.state == "unknown" and run.checkpoint is not None and run.checkpoint[0] == 40
    assert "log.jsonl cannot be read" in run.notes[0]


def test_runs_are_found_below_a_folder_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("a", "deep/er/b", "c"):
        write(tmp_path / name, ENDED)
    write(tmp_path / "a" / "checkpoints", ENDED)  # inside a run
    write(tmp_path / "data" / "train", ENDED)  # inside a data set
    (tmp_path / "data" / "manifest.json").write_text("{}")
    write(tmp_path / ".hidden", ENDED)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"format": 1, "model": {}}')
    assert [Path(run.folder).relative_to(tmp_path).as_posix() for run in find(tmp_path)] == ["a", "c", "deep/er/b"]
    assert [run.folder for run in find(tmp_path / "c")] == [str(tmp_path / "c")]


def test_a_log_of_a_million_steps_is_not_parsed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, [*WHOLE, *steps(21, 5000, 1010.0)])
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    assert read(folder).step == 5000 and len(parsed) < 10


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_table_names_every_run_in_one_line(tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", ENDED)
    write(tmp_path / "b", [*WHOLE, record("error", 20, 1036.0, error="no [room] left")])
    write(tmp_path / "c", [])
    monkeypatch.chdir(tmp_path)
    runs = find(Path("."))
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    console.print(table(runs, width, now=1022.0 + 7200))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert [line.split()[0] for line in text.splitlines()] == ["run", "a", "b", "c"]
    assert all(line in text for line in ("finished", "40/40", "1.7000 at 20", "failed", "unknown"))
    assert ("started" in text, "R@k" in text) == (width > 100, width > 60)
    if width == 200:
        first, second, third = (line.split() for line in text.splitlines()[1:])
        assert first[1:3] == ["amma", "finished"]
        assert "40/40 1.6000 1.7000 at 20 0.50 (0.30) 1,040 20, 2 h ago" in " ".join(first) and first[-1] == "0:00:52"
        assert second[2] == "failed" and third[2] == "unknown"
    assert details(runs) == ["b: no [room] left"]
    assert details(runs[:1]) == [
        "sequence-structure: R@10 0.60 (chance 0.20)",
        "sequence-image: R@10 0.40 (chance 0.40)",
    ]


def test_the_verb_prints_a_table_or_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs" / "a", ENDED)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["runs"])
    assert result.exit_code == 0 and "runs/a" in result.output and "finished" in result.output
    (found,) = json.loads(CliRunner().invoke(cli.app, ["runs", "--json"]).output)
    assert found["state"] == "finished" and found["best"] == [20, 1.7] and found["retrieval"] == PAIRS
    (tmp_path / "empty").mkdir()
    assert "no runs below empty" in CliRunner().invoke(cli.app, ["runs", "empty"]).output
    assert isinstance(CliRunner().invoke(cli.app, ["runs", "nowhere"]).exception, ValueError)


def test_a_run_of_the_first_version_is_read_too(tmp_path: Path) -> None:
    """It has no heartbeat, and fewer facts in each record."""
    folder = write(tmp_path, [{"event": "start", "step": 0, "time": time.time() - 9}, *steps(1, 3, time.time() - 9)])
    run = read(folder)
    assert run.state == "died" and run.best is None and run.retrieval == {}
