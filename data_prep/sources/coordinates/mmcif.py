"""mmCIF text → atoms and facts, the common layout without tokenising it.

The archives (PDB, AlphaFold DB) write `_atom_site` as a table of fixed columns. Seen as a matrix of bytes it needs no
tokens: the few columns and rows that are wanted are cut out, a tenth of the file. The small tables of facts are cut
out in the same way and read by gemmi. Everything is checked that makes the cut equal to CIF's grammar: rows of one
length, one value per column and row, no quotes, comments or text fields in the way. Whatever fails a check is
`Unusual`, and gemmi reads the whole file: twice the time, the same atoms.

Memory: three times the file; where gemmi reads it, or it is cut into words, up to 20 times.
"""

import re
from collections.abc import Callable
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from data_prep.sources.coordinates.atoms import MAX_VALUE, NAMES, Atoms, Site, Text, polymers
from data_prep.sources.coordinates.references import TABLES, Facts, of_tables
from data_prep.sources.files import SourceError

START = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:#[^\n]*\n\s*)*data_", re.IGNORECASE)
BEGIN = b"\nloop_\n_atom_site."
MAX_SMALL = 4 << 20  # bytes of the tables of facts
MAX_VALUES = 13_000_000
MAX_WORDS = 11_000_000  # of a table that is cut into them, 50 bytes each; 500,000 atoms have 10,500,000
MAX_COLUMN = 32 << 20  # bytes, of which each value has as many as the longest
QUOTES, TEXT = (34, 39), 59  # " and ', ;
MARKS = (b"#", b";", b'"', b"'")  # what a bare value cannot begin with, and a comment, text or quoted one does
NEXT = re.compile(rb"\n#[ \t]*(?:\n(?=loop_|_|#)|\Z|\n\Z)")  # what may follow a table's end
QUOTED = {quote + name + quote for name in NAMES for quote in (b"'", b'"')}


def looks_like(data: bytes) -> bool:
    """Whether the first word that is no comment begins a data block."""
    return START.match(data, 0, 1 << 16) is not None


class Unusual(Exception):
    """Text that may be right, and is not laid out as the archives do it."""


def read(data: bytes) -> tuple[Atoms, Facts]:
    """The first data block's atoms and facts. Raises SourceError, and what gemmi raises for what is no CIF."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        begin = data.find(BEGIN)
        if begin < 0 or _inside_text(data, 0, begin):
            raise Unusual("no loop of atoms where one begins a line")
        if b"\n#" in data[:begin] and not data.endswith((b"\n#\n", b"\n# \n")):
            raise Unusual("no mark where the file ends")
        site, end = _cut(data, begin + 7)
        head, tail = data[: begin + 1], data[end:]
        if head.find(b"\ndata_", 1) >= 0 or b"\ndata_" in tail:
            raise Unusual("several blocks")
        small = _small_tables(head, tail)
        if len(small) > MAX_SMALL:
            raise Unusual("large tables of facts")
        block = gemmi.cif.read_string(small)[0]
        return polymers(site), of_tables(block.name, _table(block))
    except Unusual:
        _refuse_cut(data)
        _refuse_many(data)
        block = gemmi.cif.read_string(data)[0]
        return polymers(_Tokens(block)), of_tables(block.name, _table(block))


def _inside_text(data: bytes, begin: int, end: int) -> bool:
    """Whether a text field is open at `end`: a semicolon that begins a line opens one, the next closes it."""
    return bool(data.count(b"\n;", begin, end + 1) % 2)


def _refuse_cut(data: bytes) -> None:
    """A file that parts its tables with lines of `#`, and does not end with one, has lost its end."""
    parted = data.count(b"\n#\n") + data.count(b"\n# \n")
    if parted > 2 and not data.endswith((b"#", b"#\n", b"# \n")):
        raise SourceError("truncated_structure", f"it ends within a table, after {len(data)} bytes; fetch it again")


def _refuse_many(data: bytes, most: int = MAX_VALUES) -> None:
    """gemmi takes up to 70 bytes for a value, so that a file of nothing but short ones takes 35 times its size."""
    blank = np.frombuffer(data, dtype=np.uint8) <= 32
    values = np.count_nonzero(blank[:-1] > blank[1:])
    if values > most:
        raise SourceError("too_large", f"{values:,} values; {most:,} are allowed, which 500,000 atoms have")


def _cut(data: bytes, begin: int) -> tuple[Site, int]:
    """The table of atoms whose first tag is at `begin`, and where it ends."""
    tags, at = [], begin
    while data.startswith(b"_atom_site.", at):
        stop = data.find(b"\n", at)
        if stop < 0:
            raise Unusual("ends within its tags")
        tags.append(data[at + 11 : stop].rstrip().decode("ascii", "replace"))
        at = stop + 1
    end = data.find(b"\n#", at) + 1
    if end and not NEXT.match(data, end - 1):
        raise Unusual("a comment among the atoms")
    if not end:
        end = len(data)
        if b"\n_" in data[at:] or b"loop_" in data[at:]:
            raise Unusual("no mark where the atoms end")
    marked = any(data.find(character, at, end) >= 0 for character in MARKS)
    site = _aligned(data, at, end, tags)
    if site is not None:
        return site.checked() if marked else site, end
    if not marked:
        _refuse_many(data[at:end], MAX_WORDS)
    words = [] if marked else data[at:end].split()
    if not words or len(words) % len(tags) or len(set(tags)) != len(tags):
        raise Unusual("quotes, comments or text among unaligned atoms")
    return _Words({tag: words[i :: len(tags)] for i, tag in enumerate(tags)}), end


def _aligned(data: bytes, begin: int, end: int, tags: list[str]) -> "_Aligned | None":
    """Rows as a matrix, if each value begins below the one of the row before."""
    width = data.find(b"\n", begin) + 1 - begin
    if not 0 < width <= end - begin or (end - begin) % width:
        return None
    flat = np.frombuffer(data, dtype=np.uint8, count=end - begin, offset=begin)
    blank = flat <= 32
    begins = np.concatenate(([not blank[0]], blank[:-1] > blank[1:]))
    if not (begins[width:] == begins[:-width]).all():
        return None
    starts = np.flatnonzero(begins[:width]).tolist()
    if len(starts) != len(tags) or len(set(tags)) != len(tags):
        return None
    edges = dict(zip(tags, zip(starts, [*starts[1:], width], strict=True), strict=True))
    return _Aligned(flat.reshape(-1, width), edges)


class _Aligned:
    """Atoms as a matrix of bytes with the columns' edges. quoted: whether some values are."""

    def __init__(self, rows: NDArray[np.uint8], edges: dict[str, tuple[int, int]], quoted: bool = False) -> None:
        self._rows, self._edges, self._quoted = rows, edges, quoted

    def take(self, rows: NDArray[np.intp]) -> "_Aligned":
        taken = self._rows[rows]
        if self._quoted and np.isin(taken[:, [begin for begin, _ in self._edges.values()]], list(QUOTES)).any():
            raise Unusual("quoted values among those that are asked for")
        return _Aligned(taken, self._edges, self._quoted)

    def checked(self) -> "_Aligned":
        """Values that begin with a quote end with it too, and no atom that is asked for is called by one."""
        for tag, (begin, end) in self._edges.items():
            marked = np.isin(self._rows[:, begin], list(b"".join(MARKS)))
            cells = set(_cells(self._rows[marked, begin:end]).tolist())
            if any(len(cell) < 2 or cell[0] not in QUOTES or cell[-1] != cell[0] for cell in cells):
                raise Unusual("a quoted value with a blank, or a comment")
            if tag.endswith("atom_id") and not cells.isdisjoint(QUOTED):
                raise Unusual("a quoted name of an atom")
        return _Aligned(self._rows, self._edges, quoted=True)

    def text(self, name: str) -> Text | None:
        begin, end = self._edges.get(name, (0, 0))
        if end - begin > MAX_VALUE:
            raise Unusual("a wide column")
        return _cells(self._rows[:, begin:end]) if end else None


def _cells(part: NDArray[np.uint8]) -> Text:
    """[N, W] bytes with blanks at the right → N strings."""
    part = np.where(part > 32, part, np.uint8(0))
    return part.view(f"S{part.shape[1]}").ravel() if part.size else np.zeros(len(part), dtype="S1")


class _Words:
    """Atoms as words between blanks, by column."""

    def __init__(self, columns: dict[str, list[bytes]], rows: NDArray[np.intp] | None = None) -> None:
        self._columns, self._rows = columns, rows

    def take(self, rows: NDArray[np.intp]) -> "_Words":
        return _Words(self._columns, rows if self._rows is None else self._rows[rows])

    def text(self, name: str) -> Text | None:
        if name not in self._columns:
            return None
        column = np.array(checked(self._columns[name]))
        return column if self._rows is None else column[self._rows]


class _Tokens:
    """Atoms as gemmi has tokenised them."""

    def __init__(self, block: gemmi.cif.Block, rows: NDArray[np.intp] | None = None) -> None:
        self._block, self._rows = block, rows

    def take(self, rows: NDArray[np.intp]) -> "_Tokens":
        return _Tokens(self._block, rows if self._rows is None else self._rows[rows])

    def text(self, name: str) -> Text | None:
        values = list(self._block.find_values(f"_atom_site.{name}"))
        if not values:
            return None
        column = np.array(checked(values))
        column = (column if self._rows is None else column[self._rows]).astype(np.bytes_)
        if len(column) and any(quote in column.view(np.uint8)[:: column.itemsize] for quote in (*QUOTES, TEXT)):
            return np.array(
                [gemmi.cif.as_string(value.decode()).encode() for value in column.tolist()], dtype=np.bytes_
            )
        return column


def _small_tables(*parts: bytes) -> bytes:
    """The tables of facts, cut out of what stands before and after the atoms."""
    found = [parts[0][: parts[0].find(b"\n") + 1]]
    if not found[0].startswith(b"data_"):
        raise Unusual("does not begin with its block's name")
    for part in parts:
        inside = False  # a text field
        for table in part.split(b"\n#"):
            begin = table.find(b"\n_") + 1
            if table[begin : table.find(b".", begin)] in TABLES:
                if inside or table.count(b"\n;") % 2:
                    raise Unusual("a table within a text field")
                found += [b"loop_\n" if table[:begin].rstrip().endswith(b"loop_") else b"", table[begin:], b"\n"]
            inside ^= bool(table.count(b"\n;") % 2)
    return b"".join(found)


def checked(values: list[Any]) -> list[Any]:
    """A column whose strings fit: an array gives each the room of the longest."""
    longest = max(map(len, values), default=0)
    if longest > MAX_VALUE or longest * len(values) > MAX_COLUMN:
        raise SourceError("overlong_value", f"a value of {longest} characters among its {len(values):,} atoms")
    return values


def _table(block: gemmi.cif.Block) -> Callable[[str, tuple[str, ...]], list[tuple[str, ...]]]:
    def table(category: str, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = block.find(f"{category}.", [columns[0], *(f"?{column}" for column in columns[1:])])
        return [tuple(gemmi.cif.as_string(row[i]) if row.has(i) else "" for i in range(len(columns))) for row in found]

    return table
