"""Checkpoints in a bucket, of a real run: killed, its own disk lost, and gone on with."""

import shutil
from pathlib import Path

import pytest

from pretrain import checkpoint
from pretrain.places import Place
from tests.runs.faults import bucket
from tests.runs.store import Server
from tests.runs.training import kill, log, losses, start, train, wait_for_step


def test_a_run_goes_on_from_its_bucket(sample_data: Path, server: Server, tmp_path: Path) -> None:
    folder = f"s3://bucket/{tmp_path.name}/checkpoints"
    saving = (f"checkpoint.folder={folder}", "checkpoint.every=5", "checkpoint.keep=2", "checkpoint.keep_best=false")
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(sample_data, whole, 1, "steps=20")
    processes = start(sample_data, out, 1, "steps=20", *saving)
    wait_for_step(out, 13, processes)
    kill(processes)
    Place(folder).write("step-00000015/interrupted/rank-00000.safetensors", b"half of one")
    train(sample_data, out, 1, "steps=20", *saving)
    (resumed,) = [record["step"] for record in log(out) if record["event"] == "resume"]
    assert resumed in (5, 10) and losses(out) == losses(whole)
    assert checkpoint.folder_of(folder, tmp_path / "scratch").steps() == [15, 20]
    assert not list(out.glob("checkpoints/*"))
    shutil.rmtree(out / "fetched")  # another machine has not got it
    found, same = checkpoint.latest(checkpoint.folder_of_run(out)), checkpoint.latest(whole / "checkpoints")
    assert found is not None and same is not None
    weights, wanted = found.weights(), same.weights()
    assert all((weights[name] == value).all() for name, value in wanted.items())


def _all_is_well(tally: bucket.Tally) -> None:
    assert not tally.lost and not tally.wrong and not tally.left, tally


def test_after_a_crash_at_any_request_the_older_or_the_newer_state_is_there(server: Server, tmp_path: Path) -> None:
    _all_is_well(bucket.crash_points(f"s3://bucket/{tmp_path.name}/some", 4))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_a_crash_at_every_request_the_older_or_the_newer_state_is_there(server: Server, tmp_path: Path) -> None:
    tally = bucket.crash_points(f"s3://bucket/{tmp_path.name}/every")
    _all_is_well(tally)
    assert tally.points >= 60


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_bucket_that_is_away_for_a_while_costs_no_checkpoint(
    sample_data: Path, server: Server, tmp_path: Path
) -> None:
    folder, out = f"s3://bucket/{tmp_path.name}/checkpoints", tmp_path / "run"
    saving = (f"checkpoint.folder={folder}", "checkpoint.every=4", "checkpoint.keep=9")
    processes = start(sample_data, out, 1, "steps=16", *saving)
    try:
        wait_for_step(out, 5, processes)
        server.kill()
        wait_for_step(out, 7, processes)
    finally:
        server.start()
        server.ready()
    assert processes[0].wait(timeout=150) == 0, out.with_suffix(".txt").read_text()[-3000:]
    saved = [record["step"] for record in log(out) if record["event"] == "checkpoint"]
    assert saved == [4, 8, 12, 16] and not [r for r in log(out) if r["event"] == "unsaved"]
