"""The demo's own judgement: what it reads of a run, and when it says that something failed."""

import json
import sys
from pathlib import Path

import pytest

from cluster import demo, takeaway
from cluster.demo import Demo, Failed


def log(show: Demo, *records: object, rest: str = "") -> None:
    show.run.mkdir(parents=True, exist_ok=True)
    (show.run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + rest)


def step(number: int, loss: float) -> dict[str, object]:
    return {"event": "step", "step": number, "loss": loss, "tokens": 100, "tokens_per_second": 50.0}


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    monkeypatch.setattr(demo, "_run", lambda *_: None)  # what the commands do has tests of its own
    return Demo(tmp_path)


def test_a_half_written_line_is_not_a_record_yet(show: Demo) -> None:
    assert demo._log(show) == []
    log(show, step(1, 2.0), rest='{"event": "st')
    assert [record["step"] for record in demo._log(show)] == [1]
    log(show, step(1, 2.0), rest='{"event": "st{"event": "resume", "step": 0}\n' + json.dumps(step(2, 1.0)) + "\n")
    assert [record["step"] for record in demo._log(show)] == [1, 2]


def test_resuming_is_told_with_its_figures(show: Demo) -> None:
    log(show, step(1, 4.0), step(2, 3.0), {"event": "resume", "step": 1}, step(2, 3.0), step(3, 2.0))
    told = demo.resume(show)
    assert "resumed at step 1, done at 3" in told and "4.000 → 2.000" in told and "50 tokens/s" in told


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ([step(1, 4.0), step(2, 3.0)], "did not resume"),
        ([step(1, 4.0), {"event": "resume", "step": 0}, step(2, 3.0)], "did not resume"),
        ([step(1, 4.0), {"event": "resume", "step": 1}, step(2, 5.0)], "did not fall"),
        ([step(1, 4.0), {"event": "resume", "step": 1}, step(2, float("nan"))], "not finite"),
    ],
)
def test_a_claim_that_does_not_hold_fails(show: Demo, records: list[object], match: str) -> None:
    log(show, *records)
    with pytest.raises(Failed, match=match):
        demo.resume(show)


def test_a_stage_that_fails_is_named_and_ends_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Demo) -> str:
        """the broken stage"""
        raise Failed("it broke")

    def never(_: Demo) -> str:
        raise AssertionError("a stage ran after one had failed")

    monkeypatch.setattr(demo, "prepare", broken)
    monkeypatch.setattr(demo, "train_and_kill", never)
    kept = tmp_path / "notes.txt"
    kept.write_text("mine")
    assert demo.demo(tmp_path) == 1
    told = capsys.readouterr().err
    assert "the broken stage" in told and "failed: it broke" in told
    assert kept.read_text() == "mine"


def test_the_takeaway_refuses_deepspeed_and_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [takeaway.Blocked(), *sys.meta_path])
    for name in ("deepspeed", "ray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ModuleNotFoundError, match="blocked"):
            __import__(name)
