"""What a run writes of itself, across stops."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pretrain.heartbeat import alive
from pretrain.journal import Journal
from pretrain.trackers import Numbers, TensorBoard


def lines(folder: Path) -> list[str]:
    return (folder / "log.jsonl").read_text().splitlines()


def test_records_are_lines_with_event_step_and_facts(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.record("step", 3, loss=1.5, losses={"a": 1.0})
        (record,) = map(json.loads, lines(tmp_path))  # flushed as it is written
    assert record.pop("time") > 0
    assert record == {"event": "step", "step": 3, "loss": 1.5, "losses": {"a": 1.0}}


@pytest.mark.parametrize("before", ["", '{"event": "step", "step": 1}\n'])
def test_a_run_that_goes_on_appends(tmp_path: Path, before: str) -> None:
    (tmp_path / "log.jsonl").write_text(before)
    with Journal(tmp_path) as journal:
        journal.record("resume", 1)
    assert [json.loads(line)["event"] for line in lines(tmp_path)] == [*(["step"] if before else []), "resume"]


@pytest.mark.parametrize("cut", ['{"event": "st', '{"event": "step", "step": 1}', '{"text": "β'])
def test_a_line_that_a_kill_cut_does_not_swallow_the_next_record(tmp_path: Path, cut: str) -> None:
    (tmp_path / "log.jsonl").write_text(cut)
    with Journal(tmp_path) as journal:
        journal.record("resume", 1)
    assert lines(tmp_path)[0] == cut and json.loads(lines(tmp_path)[1])["event"] == "resume"


def test_tensorboard_shows_curves_and_a_step_that_was_done_again_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for sitting, (done, steps) in enumerate([(0, range(1, 6)), (3, range(4, 7))]):
        with Journal(tmp_path, [TensorBoard(tmp_path / "tensorboard", done)]) as journal:
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


class Tracker:
    """Remembers what it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[int, Numbers]] = []
        self.failed: bool | None = None

    def log(self, numbers: Numbers, step: int) -> None:
        self.points.append((step, numbers))

    def close(self, failed: bool) -> None:
        self.failed = failed


def test_trackers_get_the_numbers_of_curves_with_their_paths(tmp_path: Path) -> None:
    tracker = Tracker()
    with Journal(tmp_path, [tracker]) as journal:
        journal.record("step", 3, loss=1.5, losses={"a": 1.0}, path="x", ok=True)
        journal.record("checkpoint", 3, seconds=1.0)
        journal.record("validation", 3, embeddings={"image": {"n": 4}})
    assert tracker.points == [
        (3, {"step/loss": 1.5, "step/losses/a": 1.0}),
        (3, {"validation/embeddings/image/n": 4.0}),
    ]
    assert tracker.failed is False


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("no room"), "no room"), (KeyError("x"), "KeyError: 'x'"), (OSError("gone"), "gone")]
)
def test_what_ends_a_run_is_its_last_record(tmp_path: Path, error: Exception, said: str) -> None:
    tracker = Tracker()
    with pytest.raises(type(error)), Journal(tmp_path, [tracker]) as journal:
        journal.record("step", 7, loss=1.0)
        raise error
    last = json.loads(lines(tmp_path)[-1])
    assert (last["event"], last["step"], last["error"]) == ("error", 7, said)
    assert tracker.failed is True


def test_a_journal_tells_that_its_process_lives(tmp_path: Path) -> None:
    with Journal(tmp_path):
        assert alive(tmp_path)
    assert not alive(tmp_path)


def test_a_full_disk_ends_no_run_and_costs_no_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Journal(tmp_path) as journal:
        file: Any = journal._file
        flush, full = file.flush, True

        class Full:
            name = file.name
            write, close = file.write, file.close

            def flush(self) -> None:
                if full:
                    raise OSError(28, "No space left on device")
                flush()

        journal._file = Full()  # type: ignore[assignment]
        with caplog.at_level(logging.WARNING):
            journal.record("step", 1)
            journal.record("step", 2)
        assert lines(tmp_path) == [] and caplog.text.count("No space left") == 1
        full = False
        journal.record("step", 3)
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [1, 2, 3]
