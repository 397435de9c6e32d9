"""What sources yield: small typed records, and the rejections that stand in for what could not be read.

A record belongs to one protein (`key`) and comes from one file (`source`, relative to its root), from a place in it
(`position`: `byte 1234` of the decompressed text, a member of an archive, a line). Structures are not yet aligned and
terms not yet resolved: that needs the protein's other records, and happens in `join.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pretrain.sample import About, Image, Text

LONGEST = 1_200  # characters of what a rejection says


@dataclass(frozen=True)
class SequenceRecord:
    key: str
    source: str
    sequence: str
    position: str = ""


@dataclass(frozen=True)
class EntryRecord:
    """What an entry says of its protein besides sequence and function. secondary: accessions it has taken over."""

    key: str
    source: str
    about: About
    secondary: tuple[str, ...] = ()
    position: str = ""


@dataclass(frozen=True)
class AnnotationRecord:
    """Direct annotations as (GO id, evidence code) pairs, ids as the file has them: perhaps alternative or obsolete.

    denied: ids of what the protein does not have, as the file says with NOT. steps: of each term, how many bytes or
    lines its own line stands behind `position`; empty where all stand in one place. (Small numbers, because there are
    millions of them.)
    """

    key: str
    source: str
    terms: tuple[tuple[str, str], ...]
    position: str = ""
    denied: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()

    def at(self, number: int) -> str:
        """The position of a term."""
        unit, _, first = self.position.partition(" ")
        return f"{unit} {int(first) + self.steps[number]}" if self.steps else self.position


@dataclass(frozen=True)
class TextRecord:
    key: str
    source: str
    text: Text
    position: str = ""


@dataclass(frozen=True)
class ImageRecord:
    key: str
    source: str
    image: Image
    position: str = ""


@dataclass(frozen=True, eq=False)
class StructureRecord:
    """One chain as observed: L residues with A backbone atoms.

    coordinates: float32 [L, A, 3], Å, 0 where absent. mask: bool [L, A]. number: int32 [L], strictly increasing residue
    numbers of the source (or 0..L-1 where its own repeat). confidence: float32 [L], pLDDT. begin, end: the stated
    range of the sequence, 1-based and inclusive. shift: position minus number, where the file states both. states: 3Di
    letters, L. pae: uint8 [L, L], Å. fragment: 1, 2, … of a model that comes in overlapping pieces, 0 of a whole one.
    """

    key: str
    source: str
    id: str
    letters: str
    atoms: tuple[str, ...]
    coordinates: NDArray[np.float32]
    mask: NDArray[np.bool_]
    number: NDArray[np.int32]
    confidence: NDArray[np.float32] | None = None
    resolution: float | None = None
    begin: int | None = None
    end: int | None = None
    shift: int | None = None
    states: str | None = None
    pae: NDArray[np.uint8] | None = None
    fragment: int = 0
    position: str = ""


@dataclass(frozen=True, order=True)
class Rejection:
    """Something that is not in the data set, and why. `detail` says what was seen, in the singular case.

    count: how many alike it stands for, where there are millions (lines of one evidence code in a file's slice).
    """

    reason: str
    key: str
    source: str
    detail: str = ""
    position: str = ""
    count: int = 1

    def __post_init__(self) -> None:
        """Cut what a hostile file makes long: a name of a megabyte would be one here too."""
        for name in ("key", "detail", "position"):
            if len(value := getattr(self, name)) > LONGEST:
                object.__setattr__(self, name, f"{value[: LONGEST - 1]}…")


@dataclass(frozen=True)
class FileSeen:
    """A source file that was read to its end: what the manifest's provenance is made of. release: as the file says."""

    path: str
    bytes: int
    sha256: str = field(repr=False)
    release: str = ""


Record = SequenceRecord | EntryRecord | AnnotationRecord | TextRecord | ImageRecord | StructureRecord
Item = Record | Rejection | FileSeen
Items = Iterator[Item]
