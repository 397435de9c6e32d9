"""What a run writes of itself, across stops."""

import json
from pathlib import Path

import pytest

from pretrain.journal import Journal


def lines(folder: Path) -> list[str]:
    return (folder / "log.jsonl").read_text().splitlines()


def test_records_are_lines_with_event_step_and_facts(tmp_path: Path) -> None:
    with Journal(tmp_path, tensorboard=False) as journal:
        journal.record("step", 3, loss=1.5, losses={"a": 1.0})
        (record,) = map(json.loads, lines(tmp_path))  # flushed as it is written
    assert record.pop("time") > 0
    assert record == {"event": "step", "step": 3, "loss": 1.5, "losses": {"a": 1.0}}


@pytest.mark.parametrize("before", ["", '{"event": "step", "step": 1}\n'])
def test_a_run_that_goes_on_appends(tmp_path: Path, before: str) -> None:
    (tmp_path / "log.jsonl").write_text(before)
    with Journal(tmp_path, tensorboard=False) as journal:
        journal.record("resume", 1)
    assert [json.loads(line)["event"] for line in lines(tmp_path)] == [*(["step"] if before else []), "resume"]


@pytest.mark.parametrize("cut", ['{"event": "st', '{"event": "step", "step": 1}', '{"text": "β'])
def test_a_line_that_a_kill_cut_does_not_swallow_the_next_record(tmp_path: Path, cut: str) -> None:
    (tmp_path / "log.jsonl").write_text(cut)
    with Journal(tmp_path, tensorboard=False) as journal:
        journal.record("resume", 1)
    assert lines(tmp_path)[0] == cut and json.loads(lines(tmp_path)[1])["event"] == "resume"
