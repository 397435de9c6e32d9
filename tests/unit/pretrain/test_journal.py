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


def test_tensorboard_shows_curves_and_a_step_that_was_done_again_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for sitting, (done, steps) in enumerate([(0, range(1, 6)), (3, range(4, 7))]):
        with Journal(tmp_path, tensorboard=True, done=done) as journal:
            journal.record("start", 0, width=8)
            for step in steps:
                journal.record("step", step, losses={"a": step + 10 * sitting})
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["step/losses/a"]
    assert [(e.step, e.value) for e in board.Scalars("step/losses/a")] == [
        *((step, step) for step in (1, 2, 3)),
        *((step, step + 10) for step in (4, 5, 6)),
    ]
