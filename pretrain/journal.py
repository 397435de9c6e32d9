"""What a run says of itself: `log.jsonl` for programs, trackers for curves, a bar or lines on the screen for people.

Rank 0 writes; on every other rank a journal is silent. A resumed run appends: where steps repeat, the later record
holds. Whatever ends a run with an error is its last record.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pretrain import distributed
from pretrain.heartbeat import Heartbeat
from pretrain.progress import Progress
from pretrain.trackers import Tracker

CURVES = ("step", "validation")  # events that trackers get; the others are facts, not curves
LOG = "log.jsonl"
log = logging.getLogger(__name__)


class Journal:
    """Open it as a context. Records are flushed as they are written, so a killed run has said all that it did."""

    def __init__(
        self, folder: Path, trackers: Sequence[Tracker] = (), bar: Progress | None = None, held: Any = None
    ) -> None:
        """trackers, bar: the first rank's, closed with the journal, and so is `held`, its claim to the folder."""
        self._held = held
        self.writes, self.bar = distributed.rank() == 0, bar
        self._lock, self._trackers, self._step, self._full = threading.Lock(), trackers, 0, False
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)
            cut = _cut(folder / LOG)
            self._file = (folder / LOG).open("a")
            self._file.write("\n" if cut else "")
            self._heart = Heartbeat(folder)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self.writes:
            return
        if error is not None:
            expected = isinstance(error, (ValueError, OSError))
            self.record("error", self._step, error=str(error) if expected else f"{type(error).__name__}: {error}")
        if self.bar:
            self.bar.close()
        for tracker in self._trackers:
            tracker.close(failed=error is not None)
        with suppress(OSError):
            self._file.close()
        self._heart.close()
        if self._held:
            self._held.close()

    def record(self, event: str, step: int, **facts: Any) -> None:
        """One line of `log.jsonl`: {"event", "step", "time", …facts}; the numbers of CURVES go to trackers too.

        Where the disk is full, what cannot be written waits for the next record, and training goes on.
        """
        if not self.writes:
            return
        entry = {"event": event, "step": step, "time": round(time.time(), 3), **facts}
        with self._lock:  # alarms come from a thread
            try:
                self._file.write(json.dumps(entry, allow_nan=True) + "\n")
                self._file.flush()
                self._full = False
            except OSError as error:
                if not self._full:
                    log.warning("%s cannot be written; training goes on: %s", self._file.name, error)
                self._full = True
            self._step = max(self._step, step) if event != "rewind" else step
        if event in CURVES and self._trackers:
            numbers = dict(_numbers(facts, f"{event}/"))
            for tracker in self._trackers:
                tracker.log(numbers, step)

    def alarm(self, text: str, facts: dict[str, Any]) -> None:
        """Something about a rank that cannot speak for itself, from a thread of whichever rank noticed."""
        self.record("alarm", facts.get("step", 0), text=text, **{k: v for k, v in facts.items() if k != "step"})
        self._print(f"warning: {text}")

    def say(self, text: str) -> None:
        """A line for people, on standard error."""
        if self.writes:
            self._print(text)

    def _print(self, text: str) -> None:
        if self.bar:
            self.bar.say(text)
        else:
            print(text, file=sys.stderr, flush=True)


def _cut(path: Path) -> bool:
    """Whether a killed process left half a line, which the next record must not become a part of."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _numbers(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Every number in nested facts, with its path as name."""
    found = []
    for name, value in facts.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found
