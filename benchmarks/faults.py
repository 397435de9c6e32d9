"""What training survives: crashes, power cuts and flipped bits, against plain `deepspeed.save_checkpoint`; real runs
that are killed, stopped and given up.

python benchmarks/faults.py [--quick] [--kills N] [--json FILE]

Shares are of states that load with the right values, or of damages that are found. A power cut loses all that was not
fsynced (of the peer's, only what its last save wrote). Times are of real runs of two ranks: until a fault was noticed,
and until training went on. The longer form has 1,000 crashes (all that the peer has) and 200 kills.
"""

import errno
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.prepare import PrepareConfig, prepare
from pretrain.checkpoint import Failed
from pretrain.config import load
from tests.runs.faults import crash, damage, disks, kills, peer, silence

PEER = "save_checkpoint"


def claims(quick: bool, kills: int) -> list[rows.Row]:
    logging.getLogger("pretrain.checkpoint").setLevel(logging.ERROR)  # each broken checkpoint would be named
    found = [*_crashes(40 if quick else 1000), *_damage(1 if quick else 8), *_refused(quick)]
    return found if quick else [*found, *_runs(kills)]


def _crashes(count: int) -> list[rows.Row]:
    """Ends before, within and after acts, and power cuts."""
    ours, theirs = crash.crash_points(count), peer.crash_points(count)
    ends, cuts = (ours.share("kill"), theirs.share("kill")), (ours.share("power"), theirs.share("power"))
    return [
        rows.faster("states that load after a kill at any act", ends, PEER, 1.0, "share"),
        rows.faster("states that load after a power cut at any act", cuts, PEER, 1.0, "share"),
        rows.within("a crash: to find the newest state, and save the next", statistics.median(ours.seconds), 1.0, "s"),
    ]


def _damage(per_part: int) -> list[rows.Row]:
    with tempfile.TemporaryDirectory() as folder:
        _, newer = damage.two(Path(folder))
        turned, torn = damage.flips(newer, per_part), damage.torn(newer)
    theirs = peer.flips()
    return [
        rows.faster(
            "flipped bits found, one in each 1/64 of each file", (turned.share, theirs.share), PEER, 1.0, "share"
        ),
        rows.faster("torn, empty and missing files found", (torn.share, 1.0), "goal", 1.0, "share"),
        rows.within("a damage: to find it and the older state", statistics.median(turned.seconds), 1.0, "s"),
    ]


def _refused(quick: bool) -> list[rows.Row]:
    """Acts that the system refuses, and disks that are full or read-only for real, where they may be mounted."""
    tally = crash.refusals((errno.ENOSPC, errno.EROFS, errno.EIO), 40 if quick else 1)
    made = [rows.faster("refused acts that cost one checkpoint and no more", (tally.good, 1.0), "goal", 1.0, "share")]
    try:
        for kind, disk in (("full", disks.full), ("read-only", disks.read_only)):
            with tempfile.TemporaryDirectory() as folder, disks.mounted(Path(folder) / "disk") as place:
                told, newest, seconds = disk(place)
            assert isinstance(told[2], Failed) and newest == [1, 2, 2, 4], (told, newest)
            made.append(rows.within(f"a {kind} disk: to say so, the older state kept", seconds[2], 1.0, "s"))
    except (PermissionError, FileNotFoundError) as error:
        print(f"no full disk: {error}", file=sys.stderr)
    return made


def _runs(count: int) -> list[rows.Row]:
    with tempfile.TemporaryDirectory() as folder:
        data, whole, killed = (Path(folder) / name for name in ("data", "whole", "killed"))
        prepare(load(PrepareConfig, "prepare/sample.toml", ["workers=0"]), data, quiet=True)
        kills.whole(data, whole)
        found = kills.killed(data, killed, count)
        same = kills.alike(whole, killed)
        ended = silence.told_to_stop(data, Path(folder) / "ended", twice=False)
        stopped = silence.stopped(data, Path(folder) / "stopped", 1)
        given_up = silence.given_up(data, Path(folder) / "given-up", 1)
    return [
        rows.faster(
            f"{count} kills of one or all ranks: bitwise the same end", (float(same), 1.0), "goal", 1.0, "share"
        ),
        rows.within("kill -9 of a rank: the others have ended", statistics.median(found.detect), 30, "s"),
        rows.within("kill -9: from the relaunch to the next step", statistics.median(found.recover), 120, "s"),
        rows.within("SIGTERM: until all has been saved and ended", ended.detect, 30, "s"),
        rows.within("SIGSTOP of a rank: until it is named (watch.silent=4)", stopped.detect, 30, "s"),
        rows.within("SIGCONT: until the next step", stopped.recover, 10, "s"),
        rows.within("a rank given up (8 s): until the run ends", given_up.detect, 30, "s"),
        rows.within("a rank given up: from the relaunch to the next step", given_up.recover, 120, "s"),
    ]


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="real runs that are killed (not with --quick)")
    chosen, began = parser.parse_args(), time.perf_counter()
    rows.report(claims(chosen.quick, chosen.kills), chosen.json)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
