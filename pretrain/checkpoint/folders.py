"""Where a run's checkpoints lie: a folder on a disk that all hosts share, or a bucket. How one is committed there.

    step-00000040/         what COMMIT.json says is in it, whole, or it is no checkpoint

On a disk a checkpoint is staged under another name (`.step-00000040.<attempt>.partial`) and committed by one rename. A
bucket has no rename: an attempt's files lie in a folder of its own below the step's, and the commit is a put-if-absent
of `step-00000040/COMMIT.json`, which names the attempt. Either way an attempt never touches another's files, so what is
left of one that was interrupted can do no harm.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pretrain.checkpoint import disk
from pretrain.checkpoint.disk import Written
from pretrain.places import Place

FORMAT = 1
COMMIT = "COMMIT.json"
FOLDER = re.compile(r"step-(\d{8,})")


class Disk:
    """A folder. Files are fsynced before the rename, and names after it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def steps(self) -> list[int]:
        """Steps of committed checkpoints, in order; what is staged has another name and is not seen."""
        found = (FOLDER.fullmatch(path.name) for path in self.path.iterdir()) if self.path.is_dir() else ()
        return sorted(int(match[1]) for match in found if match)

    def begin(self, step: int, attempt: str) -> None:
        """Room for an attempt. Every rank calls this before it writes."""
        disk.make_folder(self._staged(step, attempt))

    def write(self, step: int, attempt: str, name: str, parts: Iterable[Any]) -> Written:
        return disk.write_file(self._staged(step, attempt) / name, parts)

    def names(self, step: int, attempt: str) -> set[str]:
        return {path.name for path in self._staged(step, attempt).iterdir()}

    def read(self, step: int, attempt: str, name: str) -> bytes:
        return (self._staged(step, attempt) / name).read_bytes()

    def commit(self, step: int, attempt: str, files: Mapping[str, Written]) -> None:
        """Make the attempt the step's checkpoint. One that stands there is broken, or of weights given up: it goes."""
        staged, final = self._staged(step, attempt), self.path / name_of(step)
        disk.write_file(staged / COMMIT, [_commit(files)])
        disk.sync_folder(staged)
        if final.exists():
            self._discard(final)
        disk.rename(staged, final)
        disk.sync_folder(self.path)

    def remove(self, step: int) -> None:
        self._discard(self.path / name_of(step))

    def clear(self, keep: str = "") -> None:
        """Remove what interrupted attempts and removals left, but for the attempt `keep`."""
        for path in self.path.glob(".step-*.partial"):
            if not path.name.endswith(f".{keep}.partial"):
                disk.remove(path)

    def fetch(self, step: int) -> None:
        """It is here."""

    def local(self, step: int) -> Path:
        """The checkpoint's folder, to be read once it has been fetched."""
        return self.path / name_of(step)

    def _staged(self, step: int, attempt: str) -> Path:
        return self.path / f".{name_of(step)}.{attempt}.partial"

    def _discard(self, path: Path) -> None:
        """Under a name that is none first: a removal that is interrupted must not leave half a checkpoint."""
        gone = path.with_name(f".{path.name}.removed.partial")
        disk.remove(gone)
        disk.rename(path, gone)
        disk.remove(gone)


class Bucket:
    """A folder of a store that fsspec reaches. scratch: local, for files on their way there and back."""

    def __init__(self, place: Place, scratch: Path) -> None:
        self.place, self.scratch = place, scratch
        self._mark = hashlib.sha256(place.url.encode()).hexdigest()[:12]  # others may use the scratch folder, too

    def __str__(self) -> str:
        return str(self.place)

    def steps(self) -> list[int]:
        found = (FOLDER.fullmatch(name.partition("/")[0]) for name in self.place.find(f"step-*/{COMMIT}"))
        return sorted(int(match[1]) for match in found if match)

    def begin(self, step: int, attempt: str) -> None:
        """Room for an attempt's files on their way; what was interrupted there, however large, goes.

        Every rank of a host calls this, at its own time: no other attempt at this place is being written then.
        """
        disk.make_folder(self.scratch)
        for path in self.scratch.glob(f".{self._mark}.*.partial"):
            if not path.name.startswith(f".{self._mark}.{attempt}."):
                disk.remove(path)

    def write(self, step: int, attempt: str, name: str, parts: Iterable[Any]) -> Written:
        """By way of a local file: a store takes large files in parts, and is asked afterwards what it has."""
        with tempfile.TemporaryDirectory(".partial", f".{self._mark}.{attempt}.", self.scratch) as folder:
            written = disk.write_file(Path(folder) / name, parts)
            self.place.put(Path(folder) / name, f"{name_of(step)}/{attempt}/{name}")
        return written

    def names(self, step: int, attempt: str) -> set[str]:
        return set(self.place.list(f"{name_of(step)}/{attempt}"))

    def read(self, step: int, attempt: str, name: str) -> bytes:
        return self.place.read(f"{name_of(step)}/{attempt}/{name}")

    def commit(self, step: int, attempt: str, files: Mapping[str, Written]) -> None:
        where, data = f"{name_of(step)}/{COMMIT}", _commit(files, attempt)
        if self.place.create(where, data):
            return
        if attempt in self.place.read(where).decode(errors="replace"):  # the answer to our own first try was lost
            return
        self.place.remove(name_of(step) + "/" + COMMIT)  # broken, or of weights given up
        if not self.place.create(where, data):
            raise OSError(f"{self.place}/{where}: another run commits here; give each run an `out` of its own")

    def remove(self, step: int) -> None:
        """The commit first: what is left of an interrupted removal is no checkpoint."""
        self.place.remove(f"{name_of(step)}/{COMMIT}")
        self.place.remove(name_of(step))

    def clear(self, keep: str = "") -> None:
        """Remove attempts that were not committed, but for `keep`."""
        for step in self.place.list():
            if not FOLDER.fullmatch(step):
                continue
            committed = self._attempt(step)
            for name in self.place.list(step):
                if name not in (COMMIT, committed, keep):
                    self.place.remove(f"{step}/{name}")

    def fetch(self, step: int) -> None:
        """Bring it into the scratch folder, where no other is kept; what is there of it and whole is not fetched again.
        Whether it came whole, `verify` tells.

        Hosts that share a disk fetch into the same folder at the same time: a file comes under a name of its own and is
        renamed, so that a reader sees it whole or not at all.
        """
        target = self.local(step)
        for other in self.scratch.glob("step-*"):
            if other != target:
                disk.remove(other)
        disk.make_folder(target)
        commit = self.place.read(f"{name_of(step)}/{COMMIT}")
        with tempfile.TemporaryDirectory(".partial", f".{self._mark}.fetched.", self.scratch) as folder:
            own = Path(folder)
            (own / COMMIT).write_bytes(commit)
            os.replace(own / COMMIT, target / COMMIT)
            for name, entry in committed_files(commit).items():
                if (target / name).is_file() and disk.hashed(target / name) == entry["sha256"]:
                    continue
                source = self.place.open(f"{name_of(step)}/{json.loads(commit)['attempt']}/{name}")
                with source, (own / name).open("wb") as file:
                    shutil.copyfileobj(source, file, disk.CHUNK)
                os.replace(own / name, target / name)

    def local(self, step: int) -> Path:
        return self.scratch / name_of(step)

    def _attempt(self, step: str) -> str | None:
        try:
            return str(json.loads(self.place.read(f"{step}/{COMMIT}"))["attempt"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


Folder = Disk | Bucket


def folder_of(url: str | Path, scratch: Path | None = None) -> Folder:
    """The folder of a path, or of a URL that fsspec opens; of a bucket, `scratch` is where files pass through."""
    place = Place(str(url))
    if place.local is not None:
        return Disk(place.local)
    return Bucket(place, scratch or Path(tempfile.gettempdir()) / "fourfold-checkpoints")


def folder_of_run(run: Path) -> Folder:
    """Where a run keeps its checkpoints, as its `config.json` says; `checkpoints` below it where there is none."""
    try:
        named = json.loads((run / "config.json").read_text())["checkpoint"]["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        named = None
    return folder_of(named or run / "checkpoints", run / "fetched")


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def committed_files(commit: bytes) -> dict[str, dict[str, Any]]:
    """File → its bytes and sha256. Raises ValueError for what is no COMMIT.json of a format that this version knows."""
    try:
        about = json.loads(commit)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
        files = {
            str(name): Written(int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in about["files"].items()
            if "/" not in name
        }
        if commit != _commit(files, about["attempt"]):  # a bit has turned where nothing is read
            raise ValueError("it is not as it was written")
        return {name: asdict(written) for name, written in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{COMMIT}: {type(error).__name__}: {error}") from error


def _commit(files: Mapping[str, Written], attempt: str = "") -> bytes:
    entries = {name: asdict(written) for name, written in sorted(files.items())}
    return json.dumps({"format": FORMAT, "attempt": attempt, "files": entries}, indent=1).encode()
