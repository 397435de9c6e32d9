"""Checkpoints damaged after they were committed: bits flipped, files torn, emptied or gone. Each must be found out."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain import checkpoint
from tests.runs.faults.crash import KEEP, Made, right

PARTS = 64


@dataclass
class Found:
    """tried: damages. missed: those after which the damaged one was taken, or no older one. seconds: each look."""

    tried: int = 0
    missed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the damages that were found."""
        return 1 - len(self.missed) / self.tried


def two(folder: Path) -> tuple[Path, Path]:
    """An older and a newer checkpoint: their folders."""
    engine: Any = Made()
    for engine.step in (1, 2):
        checkpoint.save(folder, engine, engine.step, {"step": engine.step}, KEEP)
    older, newer = checkpoint.committed(folder)
    return older, newer


def flips(newer: Path, per_part: int = 1) -> Found:
    """A bit drawn from each 1/64th of every file, turned and turned back."""
    found, draw = Found(), random.Random(0)
    for path in sorted(newer.iterdir()):
        data = path.read_bytes()
        for part in range(PARTS * per_part):
            at = len(data) * part // (PARTS * per_part) + draw.randrange(max(1, len(data) // (PARTS * per_part)))
            bit = draw.randrange(8)
            turned = bytearray(data)
            turned[min(at, len(data) - 1)] ^= 1 << bit
            with _as(path, bytes(turned)):
                _look(found, newer, f"bit {bit} of byte {at} of {path.name}")
    return found


def torn(newer: Path) -> Found:
    """Every file cut at each 1/64th (so empty, too), with a byte too many, filled with zeros, and gone."""
    found = Found()
    for path in sorted(newer.iterdir()):
        data = path.read_bytes()
        cuts = [data[: len(data) * part // PARTS] for part in range(PARTS)]
        for broken in (*cuts, data[:-1], data + b"\0", bytes(len(data)), None):
            with _as(path, broken):
                what = "gone" if broken is None else f"{len(broken)} of {len(data)} bytes"
                _look(found, newer, f"{path.name}: {what}")
    return found


def wrong_words(newer: Path) -> Found:
    """COMMIT.json and checkpoint.json that are JSON and yet are none of ours."""
    found = Found()
    for name in ("COMMIT.json", "checkpoint.json"):
        for words in (
            "{}",
            "[]",
            "null",
            "7",
            '{"format": 1}',
            '{"format": 2, "files": {}}',
            '{"format": 1, "files": 3}',
        ):
            with _as(newer / name, words.encode()):
                _look(found, newer, f"{name} is {words}")
    return found


@contextmanager
def _as(path: Path, data: bytes | None) -> Iterator[None]:
    """The file with other bytes, or without it, and then as it was."""
    real = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(real)


def _look(found: Found, newer: Path, what: str) -> None:
    found.tried += 1
    began = time.perf_counter()
    taken = checkpoint.latest(newer.parent)
    found.seconds.append(time.perf_counter() - began)
    if taken is None or taken.path == newer or not right(taken):
        found.missed.append(f"{what}: {taken and taken.path.name} was taken")


def every(newer: Path, kinds: tuple[Callable[[Path], Found], ...] = (flips, torn, wrong_words)) -> Found:
    """All kinds of damage, one after the other."""
    parts = [kind(newer) for kind in kinds]
    return Found(
        sum(part.tried for part in parts),
        [each for part in parts for each in part.missed],
        [each for part in parts for each in part.seconds],
    )
