"""Processes that end at every request by which the checkpoint writer changes a bucket, and what is then found there.

As `crash`, against a store that is really there. What dies is the client; what it had asked for before, the store did.
"""

import contextlib
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pretrain import checkpoint
from pretrain.checkpoint import CheckpointConfig, Writer, folder_of
from pretrain.checkpoint.folders import COMMIT, Bucket, committed_files, name_of
from pretrain.places import Place
from tests.runs.faults.acts import CRASHED
from tests.runs.faults.crash import Made, Tally, apart, forked, right

REQUESTS = ("put", "create", "remove")
KEEP = CheckpointConfig(keep=2, keep_best=False)
BREAK = 3  # the step whose checkpoint is broken and saved again, as after a rewind past it
STEPS = (1, 2, 3, 3, 4)  # what is saved, in turn; with retention, and one that replaces a broken one

Where = Literal["before", "within", "after"]
WHERE: tuple[Where, ...] = ("before", "within", "after")


def crash_points(url: str, count: int | None = None) -> Tally:
    """Crash a sequence of saves at `count` points drawn at random from all of them, or at all of them.

    url: of a folder of a bucket, below which each point has one of its own.
    """
    return apart(_crash_points, url, count)


class _Requests:
    """Patches `Place` in this process. `count` is the number of changing requests so far; at: the one at which it ends.

    Within a put half of the bytes have gone, as a part of an upload that nobody completes; within a removal half of the
    files have; within a put-if-absent everything has but the answer.
    """

    def __init__(self, at: int = -1, where: Where = "before") -> None:
        self.at, self.where, self.count = at, where, 0
        self._lock = threading.RLock()
        self._real: dict[str, Callable[..., Any]] = {name: getattr(Place, name) for name in REQUESTS}

    def patch(self) -> None:
        for name in REQUESTS:
            setattr(Place, name, lambda place, *arguments, name=name: self._request(name, place, arguments))

    def _request(self, name: str, place: Place, arguments: tuple[Any, ...]) -> Any:
        with self._lock:
            due, self.count = self.count == self.at, self.count + 1
            if due and self.where == "within":
                _half(name, place, arguments)
            if due and self.where != "after":
                os._exit(CRASHED)
            result = self._real[name](place, *arguments)
            if due:
                os._exit(CRASHED)
            return result


def _half(request: str, place: Place, arguments: tuple[Any, ...]) -> None:
    store, base = place._store
    if request == "put":
        file, name = arguments
        bucket, _, key = f"{base}/{name}".partition("/")
        upload = store.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
        data = file.read_bytes()[: file.stat().st_size // 2]
        store.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=data)
    elif request == "create":
        with contextlib.suppress(OSError):  # the name is taken
            store.pipe_file(f"{base}/{arguments[0]}", arguments[1], mode="create")
    else:
        files = store.find(f"{base}/{arguments[0]}")
        store.rm(files[: (len(files) + 1) // 2])


def _crash_points(url: str, count: int | None) -> Tally:
    import s3fs  # noqa: F401  # once for all children; a connection that was made here could not be used there

    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)
        forked(lambda: _saves(f"{url}/whole", path, _Requests()))
        every: list[tuple[int, Where]] = [
            (at, where) for at in range(int((path / "count").read_text())) for where in WHERE
        ]
    for number, (at, where) in enumerate(every if count is None else random.Random(count).sample(every, count)):
        with tempfile.TemporaryDirectory() as scratch:
            _one(tally, f"{url}/{number}", Path(scratch), at, where)
    return tally


def _one(tally: Tally, url: str, scratch: Path, at: int, where: Where) -> None:
    """One crash, and the look at what it left."""
    tally.points += 1
    forked(lambda: _saves(url, scratch, _Requests(at, where)), CRASHED)
    began = time.perf_counter()
    forked(lambda: _look(url, scratch))
    tally.seconds.append(time.perf_counter() - began)
    found, name = json.loads((scratch / "found.json").read_text()), f"{where} request {at}"
    older, newer = map(int, (scratch / "saving").read_text().split())
    if (found["step"] or 0) not in (older, newer):
        tally.lost.append(f"{name}: step {found['step']}, after {older} had been committed and while {newer} was saved")
    if not found["right"]:
        tally.wrong.append(f"{name}: step {found['step']} or the one that was saved next has other values")
    if found["left"]:
        tally.left.append(f"{name}: {found['left']}")


def _saves(url: str, scratch: Path, requests: _Requests) -> None:
    """The sequence. `saving` in the scratch folder has the newest step whose checkpoint stands, and the one in work."""
    folder = folder_of(url, scratch / "fetched")
    assert isinstance(folder, Bucket)
    engine: Any = Made()
    requests.patch()
    writer, stands = Writer(folder, KEEP), 0
    for step in STEPS:
        if step == stands == BREAK:
            stands = BREAK - 1
            _torn(folder, step)
        (scratch / "saving").write_text(f"{stands} {step}")
        _save(writer, engine, step)
        stands = step
    writer.close()
    (scratch / "count").write_text(str(requests.count))


def _save(writer: Writer, engine: Any, step: int) -> None:
    engine.step = step
    writer.save(engine, step, {"step": step})
    writer.settle(final=True)


def _torn(folder: Bucket, step: int) -> None:
    attempt = json.loads(folder.place.read(f"{name_of(step)}/{COMMIT}"))["attempt"]
    name = f"{name_of(step)}/{attempt}/rank-00000.safetensors"
    data = folder.place.read(name)
    folder.place.write(name, data[: len(data) // 2])


def _look(url: str, scratch: Path) -> None:
    """In a fresh process: what is the newest, is it right, and does the next save leave nothing but what it keeps?

    What is there another machine sees, and the one that was stopped saves.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        folder, own = folder_of(url, Path(elsewhere)), folder_of(url, scratch / "fetched")
        assert isinstance(folder, Bucket) and isinstance(own, Bucket)
        found, engine = checkpoint.latest(folder), Made()
        good, step = found is None or right(found), found.step if found else None
        before, after = folder.steps(), (step or 0) + 10
        writer = Writer(own, KEEP)
        _save(writer, engine, after)
        writer.close()
        saved = checkpoint.latest(folder)
        good = good and saved is not None and saved.step == after and right(saved)
        kept = sorted({*before, after})[-2:]
        wanted = {name for each in kept for name in _files(folder, each)}
        left = sorted({*folder.place.find("**/*")} ^ wanted)
    left += [path.name for path in (scratch / "fetched").iterdir() if not path.name.startswith("step-")]
    (scratch / "found.json").write_text(json.dumps({"step": step, "right": good, "left": left}))


def _files(folder: Bucket, step: int) -> list[str]:
    """What a committed checkpoint consists of."""
    commit = folder.place.read(f"{name_of(step)}/{COMMIT}")
    attempt = json.loads(commit)["attempt"]
    return [f"{name_of(step)}/{COMMIT}", *(f"{name_of(step)}/{attempt}/{name}" for name in committed_files(commit))]
