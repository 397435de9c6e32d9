"""A job's results are there whole or not at all, and one job at a time works on a data set."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest

from data_prep import job as module
from data_prep.job import beside, clear, opened, publish
from data_prep.shards import Manifest
from pretrain.places import Place

TAR = "train/sequence/00000.tar"
SHARD = {"path": TAR, "samples": 1, "bytes": 1, "sha256": "", "index_sha256": ""}


def manifest(name: str = "mine") -> bytes:
    """Of a data set with one shard."""
    splits = {"train": {"sequence": {"samples": 1, "residues": 1, "shards": [SHARD]}}}
    files = {"rejected.jsonl": ""}
    return Manifest(name, 1, splits, {}, {}, {}, files, [], {}, {}, "", {}, {}).to_bytes()


def fill(place: Place, name: str = "mine") -> None:
    """A data set, whole as far as names go."""
    place.write(TAR, name.encode())
    place.write("manifest.json", manifest(name))


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
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["SHA256SUMS", "manifest.json", "shard"]


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
        job.data.write("rejected.jsonl", b"1")
        with job.task("write/a") as task:
            task.finish({})
        patch.setattr(*((Path, "replace") if step == "replace" else (module, "_clear")), killed)
        publish(job, manifest())
    with opened(out, "a", overwrite=True) as job:
        assert (job.done("write/a") is None) == (not job.data.list())
        job.data.write("rejected.jsonl", b"2")
        publish(job, manifest())
    assert (tmp_path / "d" / "rejected.jsonl").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_second_job_refuses_and_a_dead_one_does_not_hold(tmp_path):
    out = Place(str(tmp_path / "d"))
    code = (
        "import os, sys, time; from data_prep.job import opened; from pretrain.places import Place\n"
        f"with opened(Place({str(tmp_path / 'd')!r}), 'a', False): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"another run is preparing .*d now"), opened(out, "a", False):
            pass
        other.kill()
    with opened(out, "a", False) as job:
        publish(job, manifest())
    with pytest.raises(ValueError, match="already holds a data set"), opened(out, "a", False):
        pass


def test_a_kill_between_the_last_two_steps_loses_nothing(tmp_path):
    old = tmp_path / ".d.work" / "old"
    old.mkdir(parents=True)
    (old / "manifest.json").write_bytes(manifest())
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


@pytest.fixture(params=["disk", "store"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = Place(str(tmp_path / "d") if request.param == "disk" else f"memory://job{uuid4().hex}")
    yield place
    place.remove()


@pytest.mark.parametrize(
    "said", [b"{}", b'{"name": "my web app", "icons": []}', b"", b"[]", b'{"splits": {"train": 1}}']
)
def test_a_folder_with_another_programs_manifest_is_not_touched(out: Place, said: bytes) -> None:
    out.write("manifest.json", said)
    out.write("thesis.tex", b"mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"its manifest\.json is not Fourfold's"), opened(out, "a", overwrite):
            pass
    assert out.find("**/*") == ["manifest.json", "thesis.tex"]


def test_a_data_set_with_somebodys_files_is_not_replaced(out: Place) -> None:
    fill(out)
    for number in range(6):
        out.write(f"notes/{number}.txt", b"mine")
    told = r"not the data set's: notes/0.txt, .*notes/4.txt, …; overwrite=true would remove them"
    with pytest.raises(ValueError, match=told), opened(out, "a", overwrite=True):
        pass
    assert len(out.find("**/*")) == 8


def test_files_that_come_while_a_data_set_is_made_stay(out: Place) -> None:
    fill(out)
    with pytest.raises(ValueError, match=r"not the data set's: notes\.txt;"), opened(out, "a", overwrite=True) as job:
        job.data.write(TAR, b"other")
        out.write("notes.txt", b"mine")
        publish(job, manifest("other"))
    out.remove("notes.txt")
    with opened(out, "a", overwrite=True) as job:
        assert job.data.read(TAR) == b"other"
        publish(job, manifest("other"))
    assert out.read("manifest.json") == manifest("other")


def test_stored_features_and_what_a_killed_encoding_left_are_the_data_sets(out: Place) -> None:
    fill(out)
    for name in ("abc/features.json", "abc/train/sequence/00000.safetensors", ".lock", ".part-1/tmp/features"):
        out.write(f"features/{name}", b"")
    with opened(out, "a", overwrite=True) as job:
        job.data.write("rejected.jsonl", b"")
        publish(job, manifest("other"))
    assert out.find("**/*") == ["SHA256SUMS", "manifest.json", "rejected.jsonl"]


def test_the_old_data_set_stays_whole_until_the_new_one_is(out: Place) -> None:
    fill(out)
    with pytest.raises(RuntimeError), opened(out, "a", overwrite=True) as job:
        job.data.write(TAR, b"other")
        with job.task("write/a") as task:
            task.finish({})
        raise RuntimeError("no sample is left")
    assert out.read("manifest.json") == manifest() and out.read(TAR) == b"mine"
    with opened(out, "a", overwrite=True) as job:
        assert job.done("write/a") == {} and job.data.read(TAR) == b"other"
        publish(job, manifest("other"))
    assert out.find("**/*") == ["SHA256SUMS", "manifest.json", TAR]
    assert out.read("manifest.json") == manifest("other") and out.read(TAR) == b"other"


@pytest.mark.parametrize("step", ["remove", "copy", "write", "_clear"])
def test_a_kill_while_a_stores_data_set_is_replaced_costs_nothing(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    out = Place(f"memory://job{uuid4().hex}")
    fill(out)
    killed, real = [], Place.write

    def kill(*args: Any) -> None:
        if step != "write" or args[0] == out:
            killed.append(step)
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), opened(out, "a", overwrite=True) as job:
        job.data.write(TAR, b"other")
        with job.task("write/a") as task:
            task.finish({})
        patch.setattr(module if step == "_clear" else Place, step, kill)
        try:
            publish(job, manifest("other"))
        finally:
            patch.undo()
    assert killed
    with opened(out, "a", overwrite=step in ("remove", "_clear")) as job:
        assert (job.done("write/a") is None) == (step == "_clear")
        job.data.write(TAR, b"other")
        publish(job, manifest("other"))
    assert out.find("**/*") == ["SHA256SUMS", "manifest.json", TAR]
    assert out.read("manifest.json") == manifest("other") and out.read(TAR) == b"other"


def test_another_configuration_goes_on_where_a_replacement_was_interrupted(out: Place) -> None:
    fill(out)
    for identity in ("a", "b"):
        with opened(out, identity, overwrite=True) as job:
            assert not job.data.list()
            job.data.write("rejected.jsonl", b"")
    with opened(out, "b", overwrite=True) as job:
        publish(job, manifest())
    assert out.find("**/*") == ["SHA256SUMS", "manifest.json", "rejected.jsonl"]


def test_a_mount_point_is_refused_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for name in ("disk", "link"):
        with (
            pytest.raises(ValueError, match=r"is a mount point, .* give a folder below it: .*disk/data"),
            opened(Place(str(tmp_path / name)), "a", overwrite=False),
        ):
            pass
    with opened(Place(str(tmp_path / "disk/data")), "a", overwrite=False) as job:
        publish(job, manifest())
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["data"]


def test_the_current_folder_and_a_link_can_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk" / "mine").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "mine")
    monkeypatch.chdir(tmp_path / "disk" / "mine")
    for out in (Place("."), Place(str(tmp_path / "link"))):
        with opened(out, "a", overwrite=True) as job:
            assert job.work.local == tmp_path / "disk" / ".mine.work"
            publish(job, manifest())
        assert out.list() == ["SHA256SUMS", "manifest.json"]
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "disk" / ".mine.work").exists()


def test_what_a_job_left_that_was_killed_when_all_was_done_is_cleared(
    out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(work: Place) -> None:
        work.remove(module.JOB)  # the first of many
        raise KeyboardInterrupt

    for when in ("before", "while"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), opened(out, "a", True) as job:
            with job.task("parse/x") as task:
                task.finish({})
            patch.setattr(module, "_clear", killed if when == "while" else Mock(side_effect=KeyboardInterrupt))
            publish(job, manifest())
        assert beside(out).find("parse/x/*")
        clear(out, "a")
        assert not beside(out).list() and out.find("**/*") == ["SHA256SUMS", "manifest.json"]


def test_what_may_go_on_or_is_in_use_is_not_cleared(out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(module, "SILENT", 0.5)
    fill(out)
    clear(out, "a")  # nothing is there
    with opened(out, "b", overwrite=True) as job:
        with job.task("parse/x") as task:
            task.finish({})
        clear(out, "b")
    clear(out, "a")
    assert beside(out).find("parse/x/*")
    clear(out, "b")
    assert not beside(out).list()
