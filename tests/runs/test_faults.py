"""Checkpoints through crashes at every act, refused acts, full and read-only disks, and damage afterwards."""

import errno
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain import checkpoint
from pretrain.checkpoint import Failed, Saved
from tests.runs.faults import crash, damage, disks, peer


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hundreds of broken checkpoints would be named."""
    logging.getLogger("pretrain.checkpoint").setLevel(logging.ERROR)
    yield
    logging.getLogger("pretrain.checkpoint").setLevel(logging.NOTSET)


def _all_is_well(tally: crash.Tally, points: int) -> None:
    assert tally.points == points
    assert not tally.lost and not tally.wrong and not tally.left, tally


def test_after_a_crash_at_any_act_the_newest_committed_state_is_there() -> None:
    _all_is_well(crash.crash_points(40), 40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_a_crash_at_every_act_the_newest_committed_state_is_there() -> None:
    _all_is_well(crash.crash_points(), 4 * crash.acts())


def test_a_refused_act_costs_one_checkpoint() -> None:
    tally = crash.refusals((errno.ENOSPC, errno.EROFS, errno.EIO), every=31)
    _all_is_well(tally, tally.points)
    assert tally.points >= 18


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_any_refused_act_costs_one_checkpoint() -> None:
    tally = crash.refusals((errno.ENOSPC, errno.EROFS, errno.EIO))
    _all_is_well(tally, 3 * crash.acts())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_harness_finds_what_plain_saving_loses() -> None:
    """Also the proof that crash points and flips are real: DeepSpeed's own checkpoints do not survive all of them."""
    tally, found = peer.crash_points(), peer.flips()
    assert tally.points >= 64 and tally.lost and found.missed


def test_every_turned_bit_and_torn_file_is_found_and_the_older_one_taken(tmp_path: Path) -> None:
    older, newer = damage.two(tmp_path)
    found = damage.every(newer)
    assert found.tried > 10 * damage.PARTS and not found.missed, found.missed
    whole = checkpoint.latest(tmp_path)
    assert whole is not None and whole.path == newer and checkpoint.verify(older) == []


@pytest.mark.parametrize("kind", ["full", "read_only"])
def test_a_disk_that_is_full_or_read_only_costs_the_checkpoints_of_that_time(tmp_path: Path, kind: str) -> None:
    try:
        with disks.mounted(tmp_path / "disk") as disk:
            told, newest, _ = getattr(disks, kind)(disk)
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"needs to mount a tmpfs: {error}")
    assert [type(each) for each in told] == [Saved, Saved, Failed, Saved] and newest == [1, 2, 2, 4]
    assert isinstance(told[2], Failed)
    assert {"full": "No space left", "read_only": "Read-only file system"}[kind] in told[2].error
    assert "step 3 could not be written" in told[2].error
