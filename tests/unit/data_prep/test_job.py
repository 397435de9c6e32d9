"""A job's results are there whole or not at all, and one job at a time works on a data set."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import job as module
from data_prep.job import opened, publish
from data_prep.places import Place


def test_a_result_is_whole_or_not_there(tmp_path):
    with opened(Place(str(tmp_path / "d")), "a", overwrite=False) as job:
        with pytest.raises(RuntimeError), job.task("parse/x") as task:
            (task.folder / "half").write_text("written")
            raise RuntimeError("killed")
        assert job.done("parse/x") is None
        for attempt in ("first", "second"):
            with job.task("parse/x") as task:
                (task.folder / "who").write_text(attempt)
                task.finish({"n": 1})
        assert job.done("parse/x") == {"n": 1}
        assert job.work.read("parse/x/who") == b"first"
        assert not job.work.list("tmp")
    with opened(Place(str(tmp_path / "d")), "b", overwrite=False) as job:  # as after a change of configuration
        assert job.done("parse/x") == {"n": 1}
        job.data.write("shard", b"1")
        publish(job, b"{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["manifest.json", "shard"]


def test_shards_of_another_job_do_not_stay_and_neither_does_what_tells_of_them(tmp_path):
    out = Place(str(tmp_path / "d"))
    for identity, expected in (("a", []), ("a", ["shard"]), ("b", []), ("a", [])):
        with opened(out, identity, overwrite=False) as job:
            assert job.data.list() == expected
            assert (job.done(f"write/{identity}") is None) == (not expected)
            job.data.write("shard", b"1")
            with job.task(f"write/{identity}") as task:
                task.finish({})
            with job.task("parse/x") as task:
                task.finish({})
    with opened(out, "a", overwrite=False) as job:
        assert job.done("parse/x") == {}


@pytest.mark.parametrize("step", ["replace", "_clear"])
def test_a_kill_while_publishing_never_leaves_results_without_their_shards(tmp_path, monkeypatch, step):
    out = Place(str(tmp_path / "d"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), opened(out, "a", overwrite=False) as job:
        job.data.write("shard", b"1")
        with job.task("write/a") as task:
            task.finish({})
        patch.setattr(*((Path, "replace") if step == "replace" else (module, "_clear")), killed)
        publish(job, b"{}")
    with opened(out, "a", overwrite=True) as job:
        assert (job.done("write/a") is None) == (not job.data.list())
        job.data.write("shard", b"2")
        publish(job, b"{}")
    assert (tmp_path / "d" / "shard").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_second_job_refuses_and_a_dead_one_does_not_hold(tmp_path):
    out = Place(str(tmp_path / "d"))
    code = (
        "import os, sys, time; from data_prep.job import opened; from data_prep.places import Place\n"
        f"with opened(Place({str(tmp_path / 'd')!r}), 'a', False): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"another run is preparing .*d now"), opened(out, "a", False):
            pass
        other.kill()
    with opened(out, "a", False) as job:
        publish(job, b"{}")
    with pytest.raises(ValueError, match="already holds a data set"), opened(out, "a", False):
        pass


def test_a_kill_between_the_last_two_steps_loses_nothing(tmp_path):
    old = tmp_path / ".d.work" / "old"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds a data set"), opened(Place(str(tmp_path / "d")), "a", False):
        pass
    assert (tmp_path / "d" / "manifest.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_what_is_not_a_data_set_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there and is not a data set"), opened(Place(str(tmp_path)), "a", True):
        pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"), opened(Place(str(tmp_path / "file")), "a", True):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"
