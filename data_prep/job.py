"""A preparation as a job that can be interrupted: where its intermediate files are, what is done, who may work on it.

Beside a local data set lies `.<name>.work/`, below one on an object store `.work/`; a cluster without a common disk
needs a store. A task writes in a folder of its own and hands it over in one step, `done.json` last, under a name that
is the hash of all that its result follows from. So whatever is done is never done again: after any interruption the
same command goes on, and after a change of input or configuration what does not depend on it is still there. All of it
is deleted when the data set is complete.

A data set that is replaced (`overwrite`) stays whole and readable until the new one is complete. Locally the two change
places by renames. A store has none: there the new one grows in `.work/data/`, and at the end the old one is removed and
the new one copied to its place, within the store; in between there is none, and after an interruption the same command
copies once more.
"""

import fcntl
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from data_prep.views.card import CARD, CROISSANT, SUMS, sums
from data_prep.views.lookup import named
from pretrain.data.features import FOLDER, SUMMARY
from pretrain.data.index import MANIFEST
from pretrain.places import Place
from pretrain.sample import canonical

DONE = "done.json"
LOCK = "lock.json"
JOB = "job"
WORK = ".work"  # a store's intermediate files, below the data set
FEW = 5  # files that are named
BEAT = 5.0  # seconds between two signs of life of a job that writes to an object store
SILENT = 4 * BEAT  # seconds without one after which a job counts as dead


class Held(ValueError):
    """Another job works on this data set."""


@dataclass(frozen=True)
class Job:
    """work: intermediate files. data: where shards go. out: the data set's final place, which on a store is `data` too
    unless another data set lies there.

    owner: who holds the lock, on a store. overwrite: whether what lies at `out` may be replaced.
    """

    work: Place
    data: Place
    out: Place
    owner: str = ""
    overwrite: bool = False

    def done(self, name: str) -> dict[str, Any] | None:
        """What a task told when it was done; None if it is not."""
        return json.loads(self.work.read(f"{name}/{DONE}")) if self.work.exists(f"{name}/{DONE}") else None

    @contextmanager
    def task(self, name: str) -> Iterator["Task"]:
        """A task's own folder; what is in it when `finish` is called becomes the result `name`, all or nothing."""
        base = self.work.local
        if base is not None:
            (base / "tmp").mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="task-", dir=None if base is None else base / "tmp"))
        try:
            yield Task(self, name, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Task:
    job: Job
    name: str
    folder: Path

    def finish(self, told: dict[str, Any]) -> dict[str, Any]:
        """Hand the folder over, with `told` as what others learn of it; of two attempts the first counts."""
        (self.folder / DONE).write_text(canonical(told))
        work = self.job.work
        if work.local is None:
            for path in sorted(self.folder.iterdir(), key=lambda path: path.name == DONE):
                work.put(path, f"{self.name}/{path.name}")
            return told
        target = work.local / self.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.folder.rename(target)
        except OSError:
            if not (target / DONE).is_file():
                raise
        return told


@contextmanager
def opened(out: Place, identity: str, overwrite: bool) -> Iterator[Job]:
    """The job that prepares `out`, for this process alone. Raises ValueError if `out` is taken, or another has it.

    identity: of everything that the data set follows from.
    """
    if out.local is not None:
        out = Place(str(out.local.resolve()))  # what links name is replaced, not they: so all is on its disk
        if os.path.ismount(out.local):  # type: ignore[arg-type]
            raise ValueError(
                f"{out} is a mount point, and a data set comes to its place by a rename, which a mount point does not "
                f"take; give a folder below it: {out / 'data'}"
            )
    work = beside(out)
    with _alone(work, out) as owner:
        check_free(out, overwrite)
        if not work.exists(JOB) or work.read(JOB).decode() != identity:
            work.write(JOB, b"")  # what follows may be interrupted: then it is done again
            # Shards of another job may have other names: none of them may stay beside ours, nor what tells of them.
            work.remove("write")
            work.remove("data")
            if out.local is None and not out.exists(MANIFEST):
                _empty(out)
        data = out if out.local is None and not out.exists(MANIFEST) and not work.exists("data") else work / "data"
        if out.local is None and data != out and not work.exists("data"):
            work.remove("write")  # of a job that ended: it tells of shards that lie in the data set
        work.write(JOB, identity.encode())
        work.remove("tmp")  # of tasks that were killed
        yield Job(work, data, out, owner, overwrite)


def beside(out: Place) -> Place:
    """Where a data set's intermediate files are."""
    if out.local is None:
        return out / WORK
    target = out.local.resolve()
    return Place(str(target.parent / f".{target.name}.work"))


def clear(out: Place, identity: str) -> None:
    """Remove what a job left that was killed when its data set was whole: nobody would come back for terabytes.

    identity: of the data set at `out`. What another job left stays, as it may go on; and so does what one uses now.
    """
    work = beside(out)

    def left() -> bool:
        return bool(work.list()) and (not work.exists(JOB) or work.read(JOB).decode() in ("", identity))

    if left():
        with suppress(Held), _alone(work, out):
            if left():  # still, now that nobody else can change it
                _clear(work)


def check_free(out: Place, overwrite: bool) -> None:
    """Raises ValueError for a place that has something else, or a data set that is not to be replaced.

    A data set is what its manifest says it is. A folder that only has a file of that name is somebody's, and so are
    files in a data set that are not the data set's: they are never removed.
    """
    if out.local is not None and not out.exists() and (old := beside(out).local / "old").is_dir():  # type: ignore
        old.rename(out.local)  # a job was killed between its last two steps
    if out.local is not None and out.exists() and not out.local.is_dir():
        raise ValueError(f"{out} is a file; give a folder")
    names = [name for name in out.list() if name != WORK] if out.exists() else []
    started = out.local is None and out.exists(f"{WORK}/{JOB}")  # what lies there is of a job that did not end
    if names and not started and MANIFEST not in names:
        raise ValueError(f"{out} is there and is not a data set; give another folder")
    if MANIFEST not in names:
        return
    try:
        tree = json.loads(out.read(MANIFEST))
        known = named(tree) if "format" in tree else None
    except (ValueError, KeyError, TypeError, AttributeError):
        known = None
    if known is None:
        raise ValueError(
            f"{out} is there and is not a data set: its {MANIFEST} is not Fourfold's, or damaged; give another folder, "
            "or remove this one yourself"
        )
    if not overwrite:
        raise ValueError(f"{out} already holds a data set; give another folder, or overwrite=true to replace it")
    if few := list(islice((name for name in out.find("**/*") if not _belongs(name, known)), FEW + 1)):
        raise ValueError(
            f"{out} has files that are not the data set's: {', '.join(few[:FEW])}{', …' if few[FEW:] else ''}; "
            "overwrite=true would remove them: move them away, or give another folder"
        )


def _belongs(name: str, known: set[str]) -> bool:
    """Whether a file is one of those that a data set's manifest names, of their features, or of a job on it."""
    top, _, rest = name.partition("/")
    encoder, _, path = rest.partition("/")
    of_shard = f"{path.rpartition('.')[0]}.tar" in known
    return name in known or top == WORK or (top == FOLDER and (encoder[:1] == "." or path == SUMMARY or of_shard))


def publish(job: Job, manifest: bytes) -> None:
    """Make the data set whole: hashes of what tells of it, its manifest last, then its name. Intermediate files go."""
    if job.owner and json.loads(job.work.read(LOCK))["id"] != job.owner:
        raise ValueError(f"another run took over {job.out}, as this one was silent for {SILENT:.0f} s; look at it")
    made = {name: job.data.read(name) for name in (CARD, CROISSANT) if job.data.exists(name)}
    job.data.write(SUMS, sums({MANIFEST: manifest, **made}))
    check_free(job.out, job.overwrite)  # hours have passed; whoever put something there must be asked
    if job.out.local is not None and job.data.local is not None:
        job.data.write(MANIFEST, manifest)
        target, old = job.out.local, job.work.local / "old"  # type: ignore[operator]  # local as its data are
        target.parent.mkdir(parents=True, exist_ok=True)
        job.work.write(JOB, b"")  # from here on its shards are not where they are said to be
        if target.exists():
            job.work.remove("old")
            target.rename(old)
        job.data.local.replace(target)
    else:
        if job.data != job.out:
            job.out.remove(MANIFEST)  # first: what is no longer whole must not look so
            _empty(job.out)
            job.data.copy(job.data.find("**/*"), job.out)
        job.out.write(MANIFEST, manifest)
        job.work.write(JOB, b"")
    _clear(job.work)


def _empty(out: Place) -> None:
    """Remove everything but the intermediate files."""
    for name in out.list():
        if name != WORK:
            out.remove(name)


def _clear(work: Place) -> None:
    """Remove everything but the lock."""
    for name in work.list():
        if name not in ("lock", LOCK):
            work.remove(name)


@contextmanager
def _alone(work: Place, out: Place) -> Iterator[str]:
    """Hold the work folder against other jobs. Locally the system lets go of it when a process dies, in any way."""
    if work.local is None:
        with _alone_on_store(work, out) as owner:
            yield owner
        return
    base = work.local
    base.mkdir(parents=True, exist_ok=True)
    path = base / "lock"
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Held(f"another run is preparing {out} now; wait for it, or give another folder") from None
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            raise Held(f"another run prepared {out} just now; look at it, and start again if need be")
        try:
            yield ""
        finally:
            if set(work.list()) <= {"lock", "tmp"}:  # finished, or never begun
                shutil.rmtree(base, ignore_errors=True)


@contextmanager
def _alone_on_store(work: Place, out: Place) -> Iterator[str]:
    """The same by an object that only one job can create, and that its owner renews: a silent one counts as dead."""
    me = {"id": uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}

    def sign(beat: int) -> bytes:
        return canonical({**me, "beat": beat}).encode()

    if not work.create(LOCK, sign(0)):
        before = work.read(LOCK)
        time.sleep(SILENT)
        if not work.exists(LOCK) or work.read(LOCK) != before:
            held = json.loads(before)
            raise Held(
                f"another run (process {held['pid']} on {held['host']}) is preparing {out} now; wait for it, or give "
                "another place"
            )
        work.remove(LOCK)
        if not work.create(LOCK, sign(0)):
            raise Held(f"another run began to prepare {out} just now; wait for it, or give another place")
        time.sleep(BEAT)  # of two that found the same one dead, the later may have removed the earlier's
        if json.loads(work.read(LOCK))["id"] != me["id"]:
            raise Held(f"another run began to prepare {out} just now; wait for it, or give another place")
    ended = threading.Event()

    def renew() -> None:
        beat = 0
        while not ended.wait(BEAT):
            beat += 1
            try:
                if json.loads(work.read(LOCK))["id"] == me["id"]:
                    work.write(LOCK, sign(beat))
            except Exception:
                continue  # the store is away for a moment; the next beat tries again

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield str(me["id"])
    finally:
        ended.set()
        thread.join()
        if work.exists(LOCK) and json.loads(work.read(LOCK))["id"] == me["id"]:
            work.remove(LOCK)
