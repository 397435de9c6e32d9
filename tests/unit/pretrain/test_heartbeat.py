"""Whether a run's process lives, told from a file: also of one that is gone, elsewhere, or that took its number."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain import heartbeat
from pretrain.heartbeat import STATE, Heartbeat, alive, claim


def change(folder: Path, **facts: Any) -> None:
    state = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(json.dumps(state | facts))


@pytest.fixture
def beaten(tmp_path: Path) -> Path:
    """A folder in which this process has said that it lives, once."""
    heart = Heartbeat(tmp_path)
    heart.close()
    change(tmp_path, ended=False)
    return tmp_path


def test_a_process_lives_until_it_says_that_it_has_ended(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path)
    assert alive(tmp_path)
    heart.close()
    assert not alive(tmp_path)


def test_beats_go_on_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)
    heart = Heartbeat(tmp_path)
    first = json.loads((tmp_path / STATE).read_text())["time"]
    deadline = time.monotonic() + 30
    while json.loads((tmp_path / STATE).read_text())["time"] == first:
        assert time.monotonic() < deadline
    heart.close()


def test_a_process_that_is_gone_is_dead_at_once(beaten: Path) -> None:
    program = f"from pathlib import Path; from pretrain.heartbeat import Heartbeat; Heartbeat(Path({str(beaten)!r}))"
    process = subprocess.run([sys.executable, "-c", f"import os; {program}; os._exit(0)"], check=True)
    assert process.returncode == 0 and not json.loads((beaten / STATE).read_text())["ended"]
    assert not alive(beaten)


def test_another_process_with_its_number_is_not_it(beaten: Path) -> None:
    assert alive(beaten)
    change(beaten, began=1e9)
    assert not alive(beaten)


@pytest.mark.parametrize(("age", "lives"), [(10, True), (3600, False)])
def test_on_another_machine_only_a_fresh_beat_counts(beaten: Path, age: float, lives: bool) -> None:
    change(beaten, machine=["elsewhere", ""], pid=1, time=time.time() - age)
    assert alive(beaten) is lives


@pytest.mark.parametrize("text", ["", "[]", '{"pid": ', '{"ended": false}'])
def test_a_torn_file_is_no_life(tmp_path: Path, text: str) -> None:
    assert not alive(tmp_path)
    (tmp_path / STATE).write_text(text)
    assert not alive(tmp_path)


def test_a_folder_that_vanishes_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    heart = Heartbeat(tmp_path / "run")
    (tmp_path / "run" / STATE).unlink()
    (tmp_path / "run").rmdir()
    heart.close()


def test_a_folder_is_for_one_process(tmp_path: Path) -> None:
    held = claim(tmp_path)
    other = f"from pathlib import Path; from pretrain.heartbeat import claim; claim(Path({str(tmp_path)!r}))"
    heart = Heartbeat(tmp_path)
    told = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    assert told.returncode == 1 and f"is in use by process {os.getpid()} on" in told.stderr, told.stderr
    heart.close()
    held.close()
    told = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("skew", [0, 3600])
def test_a_process_of_another_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    """Whatever its clock says."""
    now = time.time
    monkeypatch.setattr("pretrain.heartbeat.time.time", lambda: now() - skew)
    monkeypatch.setattr("pretrain.heartbeat.BEAT", 0.2)
    heart = Heartbeat(tmp_path)
    monkeypatch.setattr("pretrain.heartbeat._machine", lambda: ["elsewhere", "1"])
    with pytest.raises(ValueError, match="is in use"):
        claim(tmp_path)
    heart._ended.set()  # it dies, and cannot say so
    heart._thread.join()
    claim(tmp_path).close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_beats_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    _refuse(monkeypatch, code)
    claim(tmp_path).close()
    assert "cannot be locked" in caplog.text and os.strerror(code) in caplog.text
    heart = Heartbeat(tmp_path)
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"):
        claim(tmp_path)
    heart.close()
    claim(tmp_path).close()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EAGAIN])
def test_a_lock_that_another_holds_is_told_by_two_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    _refuse(monkeypatch, code)
    with pytest.raises(ValueError, match="is in use: wait"):
        claim(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"pid": ', '{"ended": false}'])
def test_a_torn_file_claims_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("pretrain.heartbeat.BEAT", 0.01)
    (tmp_path / STATE).write_text(text)
    claim(tmp_path).close()


def _refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Locking fails as a file system makes it fail."""

    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("pretrain.heartbeat.fcntl.lockf", refused)
