"""What a run says of itself: `log.jsonl` for programs, TensorBoard for curves, one line on the screen for people.

Rank 0 writes; on every other rank a journal is silent. A resumed run appends: where steps repeat, the later record
holds.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from pretrain import distributed

CURVES = ("step", "validation")  # events that TensorBoard gets; the others are facts, not curves


class Journal:
    """Open it as a context. Records are flushed as they are written, so a killed run has said all that it did.

    done: steps that an earlier sitting took and this one goes on from; TensorBoard drops what that said of later ones.
    """

    def __init__(self, folder: Path, tensorboard: bool, done: int = 0) -> None:
        self.writes = distributed.rank() == 0
        self._lock = threading.Lock()
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "log.jsonl"
            cut = _cut(path)
            self._file = path.open("a")
            self._file.write("\n" if cut else "")
            self._board = _board(folder / "tensorboard", done) if tensorboard else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writes:
            self._file.close()
            if self._board:
                self._board.close()

    def record(self, event: str, step: int, **facts: Any) -> None:
        """One line of `log.jsonl`: {"event", "step", "time", …facts}; the numbers of CURVES go to TensorBoard too."""
        if not self.writes:
            return
        entry = {"event": event, "step": step, "time": round(time.time(), 3), **facts}
        with self._lock:  # alarms come from a thread
            self._file.write(json.dumps(entry, allow_nan=True) + "\n")
            self._file.flush()
        if self._board and event in CURVES:
            for name, value in _numbers(facts):
                self._board.add_scalar(f"{event}/{name}", value, step)

    def alarm(self, text: str, facts: dict[str, Any]) -> None:
        """Something about a rank that cannot speak for itself, from a thread of whichever rank noticed."""
        self.record("alarm", facts.get("step", 0), text=text, **{k: v for k, v in facts.items() if k != "step"})
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line for people, on standard error."""
        if self.writes:
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


def _board(folder: Path, done: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=done + 1)
