"""Secondary accessions: entries that were merged live on under one accession, and other files still use the others.

Entries are parsed before everything else, so that a structure or an annotation of a secondary accession finds its
protein. An accession is left as it is when it is itself an entry here (an older file), or when several entries claim it
(an entry that was split): which one is meant cannot be known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_prep.records import EntryRecord, Record
from data_prep.sources.streams import Stream
from pretrain.places import Place

NAMES = "aliases.txt"  # of a task that parsed entries: `primary secondary secondary …` a line


@dataclass(frozen=True, eq=False)
class Aliases:
    """secondary: bytes [N], sorted. primary: bytes [N]. ambiguous: how many were left out for having several."""

    secondary: NDArray[np.bytes_]
    primary: NDArray[np.bytes_]
    ambiguous: int = 0

    def of(self, key: str) -> str:
        """The accession to use; an isoform follows its protein (`Q12345-2` → `P12345-2`)."""
        if not len(self.secondary):
            return key
        base, dash, number = key.partition("-")
        at = int(np.searchsorted(self.secondary, base.encode()))
        if at < len(self.secondary) and self.secondary[at] == base.encode():
            return self.primary[at].decode() + dash + number
        return key

    def renamed(self, record: Record) -> Record:
        """The record, under its protein's own accession."""
        key = self.of(record.key)
        return record if key == record.key else replace(record, key=key)


def line(record: EntryRecord) -> str:
    return " ".join((record.key, *record.secondary)) + "\n"


def collect(place: Place, names: Sequence[str]) -> Aliases:
    """The table of all entries' listings, which are gone through twice: memory is that of the secondary accessions."""
    claims: dict[str, set[str]] = {}
    for primary, *secondary in _lines(place, names):
        for name in secondary:
            claims.setdefault(name, set()).add(primary)
    entries = {primary for primary, *_ in _lines(place, names) if primary in claims}
    ambiguous = sum(len(found) > 1 for name, found in claims.items() if name not in entries)
    pairs = sorted((name, *found) for name, found in claims.items() if len(found) == 1 and name not in entries)
    return Aliases(np.array([a for a, _ in pairs], dtype="S"), np.array([b for _, b in pairs], dtype="S"), ambiguous)


def _lines(place: Place, names: Sequence[str]) -> Iterator[list[str]]:
    for name in names:
        with Stream.open(place, name) as stream:
            for _, one in stream.pieces(b"\n"):
                yield one.decode().split(" ")


def store(aliases: Aliases) -> bytes:
    """A line of numbers (ambiguous, widths), then both columns as they are in memory."""
    head = f"{aliases.ambiguous} {aliases.secondary.itemsize} {aliases.primary.itemsize}\n"
    return head.encode() + aliases.secondary.tobytes() + aliases.primary.tobytes()


@lru_cache(maxsize=1)
def read(place: Place, name: str) -> Aliases:
    """The table that `store` made; its name tells its content."""
    head, _, data = place.read(name).partition(b"\n")
    ambiguous, first, second = map(int, head.split())
    count = len(data) // (first + second)
    secondary = np.frombuffer(data, f"S{first}", count)
    return Aliases(secondary, np.frombuffer(data, f"S{second}", count, first * count), ambiguous)
