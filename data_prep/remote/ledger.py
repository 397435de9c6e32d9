"""What has been fetched: `fetched.json` beside the files, and a journal that survives a killed process.

A line goes to the journal for each file as it is finished; `fetched.json` takes them over when a run ends, or begins.
"""

import fcntl
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from data_prep.remote.wanted import Wanted
from pretrain.places import Place

RECORD = "fetched.json"
JOURNAL = ".fetched.jsonl"
LOCK = ".fetched.lock"
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One file as it was fetched.

    ask: the question whose answer gave the url. of: how many the answer gave. checked: by which checksum, if any.
    """

    item: str
    url: str
    bytes: int
    sha256: str
    etag: str = ""
    last_modified: str = ""
    date: str = ""
    release: str = ""
    licence: str = ""
    accession: str = ""
    ask: str = ""
    checked: str = ""
    of: int = 1


@dataclass
class Ledger:
    """files: path → entry. absent: address (or question) → what the source does not have. failed: of the last run."""

    out: Place
    journal: Path
    files: dict[str, Entry] = field(default_factory=dict)
    absent: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: list[dict[str, str]] = field(default_factory=list)
    _asked: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _lines: IO[str] | None = None

    @staticmethod
    @contextmanager
    def open(out: Place, parts: Path) -> "Iterator[Ledger]":
        """The ledger of a folder, held by one run at a time. Raises ValueError if another one has it."""
        parts.mkdir(parents=True, exist_ok=True)
        with open(parts / LOCK, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when a process dies
            except BlockingIOError:
                raise ValueError(f"another run is fetching to {out} now; wait for it, or give another folder") from None
            ledger = Ledger(out, parts / JOURNAL)
            ledger._load()
            try:
                with open(ledger.journal, "a", encoding="utf-8") as ledger._lines:
                    yield ledger
            finally:
                ledger._save()

    def of(self, wanted: Wanted) -> dict[str, Entry]:
        """Path → entry of what an earlier run fetched for this; empty where it fetched nothing, or from elsewhere."""
        paths = [wanted.path] if wanted.path else self._asked.get(wanted.ask, [])
        found = {path: self.files[path] for path in paths if path in self.files}
        return {path: each for path, each in found.items() if (each.ask if wanted.ask else each.url) == _source(wanted)}

    def add(self, path: str, entry: Entry) -> None:
        with self._lock:
            self._put(path, entry)
            self._write({"path": path, "entry": asdict(entry)})

    def answered(self, ask: str, urls: list[str]) -> None:
        """A question has a new answer: files of the old one stay, but are no longer what it asks for."""
        with self._lock:
            for path in [path for path in self._asked.get(ask, []) if ask and self.files[path].url not in urls]:
                self._asked[ask].remove(path)
                self.files[path] = replace(self.files[path], ask="")

    def miss(self, wanted: Wanted, about: dict[str, str]) -> None:
        """The source does not have it."""
        with self._lock:
            self.absent[_source(wanted)] = about
            self._write({"absent": _source(wanted), "about": about})

    def missed(self, wanted: Wanted) -> bool:
        return _source(wanted) in self.absent

    def _put(self, path: str, entry: Entry) -> None:
        if path not in self._asked[entry.ask]:
            self._asked[entry.ask].append(path)
        self.files[path] = entry
        self.absent.pop(entry.ask or entry.url, None)

    def _write(self, line: dict[str, Any]) -> None:
        assert self._lines is not None
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

    def _load(self) -> None:
        if self.out.exists(RECORD):
            try:
                tree = json.loads(self.out.read(RECORD))
                if tree["format"] != FORMAT:
                    raise ValueError(f"format {tree['format']!r}, this version reads {FORMAT}")
                self.absent = dict(tree["absent"])
                for path, entry in tree["files"].items():
                    self._put(path, Entry(**entry))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{self.out}/{RECORD} cannot be read ({error}); move it away") from error
        for line in self.journal.read_text(encoding="utf-8").splitlines() if self.journal.exists() else ():
            try:
                note = json.loads(line)
            except ValueError:  # the last line of a killed run; its file has a note of its own
                continue
            if "path" in note:
                self._put(note["path"], Entry(**note["entry"]))
            else:
                self.absent[note["absent"]] = note["about"]

    def _save(self) -> None:
        files = {path: asdict(entry) for path, entry in sorted(self.files.items())}
        tree = {"format": FORMAT, "files": files, "absent": dict(sorted(self.absent.items())), "failed": self.failed}
        self.out.write(RECORD, json.dumps(tree, indent=1, ensure_ascii=False).encode() + b"\n")
        self.journal.unlink(missing_ok=True)


def _source(wanted: Wanted) -> str:
    return wanted.ask or wanted.url
