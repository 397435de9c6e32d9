"""Preparing from and to an S3 server that is really there: the same bytes as on a disk, also when it is restarted."""

import filecmp
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import job
from data_prep.prepare import PrepareConfig, prepare
from data_prep.validate import validate
from pretrain import places
from pretrain.config import load
from pretrain.places import Place

SAMPLE = "prepare/sample.toml"


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("expected") / "data"
    prepare(load(PrepareConfig, SAMPLE, ["workers=0"]), out, quiet=True)
    return out


def assert_same(out: str, expected: Path, scratch: Path) -> None:
    """What lies at a URL is what lies in a folder: no file more, none less."""
    place, got = Place(out), scratch / "got"
    names = sorted(path.relative_to(expected).as_posix() for path in expected.rglob("*") if path.is_file())
    assert place.find("**/*") == names
    for name in names:
        (got / name).parent.mkdir(parents=True, exist_ok=True)
        (got / name).write_bytes(place.read(name))
    _, different, unreadable = filecmp.cmpfiles(got, expected, names, shallow=False)
    assert (different, unreadable) == ([], [])
    shutil.rmtree(got)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_on_a_store_is_the_one_on_a_disk(server, expected, tmp_path, workers):
    out = f"s3://bucket/plain{workers}"
    prepare(load(PrepareConfig, SAMPLE, [f"workers={workers}"]), out, quiet=True)
    assert_same(out, expected, tmp_path)
    with pytest.raises(ValueError, match="already holds a data set"):
        prepare(load(PrepareConfig, SAMPLE, ["workers=0", "filters.min_length=30"]), out, quiet=True)


def test_sources_on_a_store_are_read_as_on_a_disk(server, expected, tmp_path):
    source = Path(job.__file__).parent / "sample"
    place = Place("s3://bucket/sources")
    for path in source.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            place.write(path.relative_to(source).as_posix(), path.read_bytes())
    prepare(load(PrepareConfig, SAMPLE, ["workers=0", "root=s3://bucket/sources"]), tmp_path / "data", quiet=True)
    names = sorted(path.relative_to(expected).as_posix() for path in expected.rglob("*") if path.is_file())
    _, different, unreadable = filecmp.cmpfiles(tmp_path / "data", expected, names, shallow=False)
    assert (different, unreadable) == ([], [])


def test_a_large_shard_goes_in_parts_and_is_read_back(server, tmp_path, monkeypatch):
    place, name = Place("s3://bucket/large"), "train/sequence/00000.tar"
    file = tmp_path / "shard"
    file.write_bytes(os.urandom(1 << 20) * 110)
    wanted = hashlib.sha256(file.read_bytes()).hexdigest()
    assert place.put(file, name) == wanted
    assert not file.exists()
    stat = place.stat(name)
    assert stat.bytes == 110 << 20
    assert "-" in stat.version  # the tag of an object that was put in parts
    assert places.sha256(place.open(name)) == wanted
    assert place.read(name, (50 << 20) - 3, 6) == place.read(name)[(50 << 20) - 3 : (50 << 20) + 3]
    file.write_bytes(b"whole")
    monkeypatch.setattr(Place, "open", lambda self, name: io.BytesIO(b"wh0le"))
    with pytest.raises(places.Damaged, match="read back"):
        place.put(file, name)
    assert file.exists()


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_a_store_that_is_restarted_in_the_middle_costs_time_only(server, expected, tmp_path, workers):
    out = f"s3://bucket/restarted{workers}"
    command = [sys.executable, "-m", "cluster.cli", "prepare", SAMPLE, "--out", out, "--workers", workers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not Place(out).find(".work/parse/*/done.json"):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.2)
        server.kill()
        time.sleep(3)
        assert process.poll() is None, process.stderr and process.stderr.read()
        server.start()
        server.ready()
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said
    assert_same(out, expected, tmp_path)


def test_a_second_job_refuses_a_dead_one_is_taken_over_and_what_it_did_stays(server, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "BEAT", 0.5)
    monkeypatch.setattr(job, "SILENT", 6.0)
    out = "s3://bucket/killed"
    command = [sys.executable, "-m", "cluster.cli", "prepare", SAMPLE, "--out", out, "--workers", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 120
        while len(done := Place(out).find(".work/parse/*/done.json")) < 2:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGSTOP)  # neither dead nor alive: no sign of life
        before = {name: Place(out).stat(name).version for name in done}
        process.kill()
    with job.opened(Place(out), "other", overwrite=False):  # after the wait for a sign of life
        with pytest.raises(ValueError, match=r"another run \(process \d+ on .*\) is preparing s3://bucket/killed now"):
            prepare(load(PrepareConfig, SAMPLE, ["workers=0"]), out, quiet=True)
        assert {name: Place(out).stat(name).version for name in before} == before
    prepare(load(PrepareConfig, SAMPLE, ["workers=0"]), out, quiet=True)
    assert_same(out, expected, tmp_path)


def test_a_data_set_that_is_replaced_can_be_read_until_the_new_one_is_whole(server, expected, tmp_path):
    out = "s3://bucket/replaced"
    other = load(PrepareConfig, SAMPLE, ["workers=0", "filters.min_length=30"])
    before = prepare(other, out, quiet=True).to_bytes()
    with pytest.raises(ValueError, match="no sample is left"):
        prepare(load(PrepareConfig, SAMPLE, ["workers=0", "overwrite=true", "filters.min_length=3000",
                "join.keep_unpaired_function=false", "join.min_aligned=1.1", "join.max_images=0",
                "join.max_structures=0"]), out, quiet=True)  # fmt: skip
    assert Place(out).read("manifest.json") == before
    assert not [each for each in validate(out, quiet=True).damage if not each.path.startswith(".work/")]
    prepare(load(PrepareConfig, SAMPLE, ["workers=0", "overwrite=true"]), out, quiet=True)
    assert_same(out, expected, tmp_path)
