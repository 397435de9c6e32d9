"""A UniProtKB entry in memory, the same from a flat file and from XML, and the sequence checksum that both state.

Fields are named after those of `Bio.SwissProt.Record`, and hold the same values; positions of features are 1-based and
inclusive as in the file.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple, Self, TypeVar, overload

import anycrc

from data_prep.sources.files import SourceError

Dated = tuple[str, int | str]  # ("21-JUL-1986", version); old releases have versions such as "2.3"
S = TypeVar("S")
T = TypeVar("T")
STRAIN = re.compile(r"(strain|isolate|serotype|serovar|serogroup|biovar|biotype|genotype|subtype|type|clone|clade)\b")
BRACKETS = {")": "(", "]": "["}
TAXON = re.compile(r"[0-9]{1,10}")
MAX_NAME = 10_000  # characters; beyond that a name is no name

_crc64 = anycrc.CRC(width=64, poly=0x1B, init=0, refin=True, refout=True, xorout=0)


class Reference(NamedTuple):
    """A citation. comments: (token, text). references: (database, identifier). positions: lines on what was done."""

    number: int
    evidence: str = ""
    positions: tuple[str, ...] = ()
    comments: tuple[tuple[str, str], ...] = ()
    references: tuple[tuple[str, str], ...] = ()
    authors: str = ""
    title: str = ""
    location: str = ""


class Feature(NamedTuple):
    """begin, end: residues, or the file's own text where it says less than one residue (`<1`, `?`, `?20`, `>30`).

    isoform: the one that positions refer to, where it is not the entry's own sequence. qualifiers: `note`, `evidence`,
    …, or `description` in releases before 2019_11.
    """

    type: str
    begin: int | str
    end: int | str
    isoform: str | None
    id: str | None
    qualifiers: dict[str, str]


class Later(Sequence[T]):
    """A tuple that is parsed when it is first looked at: references are half of an entry, and seldom asked for."""

    def __init__(self, parse: Callable[[S], tuple[T, ...]], text: S) -> None:
        self._parse = lambda: parse(text)

    @cached_property
    def _items(self) -> tuple[T, ...]:
        return self._parse()

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._items == tuple(other)

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return repr(self._items)


@dataclass(frozen=True)
class Entry:
    """gene_name: per gene, names by their kind. comments: `TOPIC: text`. cross_references: database, then its columns.

    seqinfo: length, molecular weight, checksum (16 hexadecimal digits of CRC64; older sums in old releases).
    """

    entry_name: str
    data_class: str
    accessions: tuple[str, ...]
    sequence: str
    seqinfo: tuple[int, int, str]
    sequence_length: int = 0
    molecule_type: str | None = None
    created: Dated | None = None
    sequence_update: Dated | None = None
    annotation_update: Dated | None = None
    description: str = ""
    gene_name: tuple[dict[str, str | list[str]], ...] = ()
    organism: str = ""
    organelle: str = ""
    organism_classification: tuple[str, ...] = ()
    taxonomy_id: tuple[str, ...] = ()
    host_organism: tuple[str, ...] = ()
    host_taxonomy_id: tuple[str, ...] = ()
    references: Sequence[Reference] = ()
    comments: tuple[str, ...] = ()
    cross_references: tuple[tuple[str, ...], ...] = ()
    keywords: tuple[str, ...] = ()
    features: Sequence[Feature] = field(default=(), repr=False)
    protein_existence: int | str = ""

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """One of all its fields: set one by one, as a frozen class does, they take three times as long."""
        entry = object.__new__(cls)
        entry.__dict__.update(fields)
        return entry


def crc64(sequence: bytes) -> str:
    """The checksum of UniProt: CRC-64 of ISO 3309, from zero, as 16 hexadecimal digits."""
    return f"{_crc64.calc(sequence):016X}"


def verify(sequence: bytes, length: int, checksum: str) -> None:
    """Raises SourceError if a sequence is not the one that its entry states the length and checksum of."""
    if len(sequence) != length:
        raise SourceError("checksum_mismatch", f"{length} residues are stated, {len(sequence)} are there")
    if len(checksum) == 16 and (seen := crc64(sequence)) != checksum:
        raise SourceError("checksum_mismatch", f"checksum {checksum} is stated, {seen} is that of the sequence")


def taxon(text: str) -> int:
    """An NCBI taxon's number. Raises ValueError for what is none."""
    if not TAXON.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no NCBI taxon")
    return int(text)


def outer(text: str) -> tuple[str, tuple[str, ...]]:
    """A name and the bracketed groups after it: `A (b) (c (d))` → `A`, (`b`, `c (d)`). An endless one is left alone."""
    groups: list[str] = []
    text = text.rstrip()
    while text[-1:] in BRACKETS and len(text) < MAX_NAME:
        depth, at = 1, len(text) - 1
        while depth and at:
            at -= 1
            depth += (text[at] in ")]") - (text[at] in "([")
        if depth or text[at] != BRACKETS[text[-1]] or text[at - 1 : at] != " ":
            break
        groups.insert(0, text[at + 1 : -1])
        text = text[:at].rstrip()
    return text, tuple(groups)


def scientific(organism: str) -> str:
    """`Escherichia coli (strain K12)`, `Homo sapiens (Human)` → the name without common names and synonyms."""
    name, groups = outer(organism.removesuffix("."))
    return " ".join([name, *(f"({group})" for group in takewhile(STRAIN.match, groups))])
