"""BinaryCIF → atoms and facts: the few tables that are wanted, decoded with numpy.

The file is MessagePack; a column is bytes and the list of encodings that led to them (github.com/molstar/BinaryCIF).
What is not wanted is skipped without becoming objects. Nothing that a file says of its lengths is believed: a step's
output is computed, compared with the table's rows, and bounded before it is allocated.
"""

from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from data_prep.sources.coordinates.atoms import MAX_VALUE, NONE, Atoms, polymers
from data_prep.sources.coordinates.references import TABLES, Facts, of_tables
from data_prep.sources.files import SourceError

MAX_ROWS = 4_000_000  # of a table; the largest entry of the PDB has 2.4 million atoms
MAX_COLUMNS = 1_000  # of a table
MAX_TEXT = 32 << 20  # bytes of a column's values, of which each has as many as the longest
LEAST = 6  # bytes of a file for each row of a table: three coordinates have no fewer, nor has anything else
MAX_STEPS = 16  # encodings of a column; real ones have up to four
TYPES = {1: "<i1", 2: "<i2", 3: "<i4", 4: "<u1", 5: "<u2", 6: "<u4", 32: "<f4", 33: "<f8"}
WANTED = {name.decode() for name in TABLES} | {"_atom_site"}
Table = tuple[dict[str, Any], int]  # what a file has of each column, and the number of rows


def looks_like(data: bytes) -> bool:
    """Whether it begins as BinaryCIF does: a small map, and one of its three keys."""
    return (
        bool(data) and 0x81 <= data[0] <= 0x84 and any(key in data[:64] for key in (b"encoder", b"version", b"dataBl"))
    )


def read(data: bytes) -> tuple[Atoms, Facts]:
    """The first data block's atoms and facts. Raises SourceError for what is damaged or lies."""
    try:
        entry, tables = _tables(data)
        for name, (_, rows) in tables.items():
            if rows * LEAST > len(data):
                raise SourceError("unparsable_structure", f"its table {name} claims {rows} rows in {len(data)} bytes")
        site = _Site(tables.get("_atom_site", ({}, 0)))
        return polymers(site), of_tables(entry, lambda *wanted: _rows(tables, *wanted))
    except (
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        ValueError,
        OverflowError,
        msgpack.exceptions.UnpackException,
    ) as error:
        if isinstance(error, SourceError):
            raise
        what = "it ends early" if isinstance(error, msgpack.OutOfData) else f"{type(error).__name__}: {error}"
        raise SourceError("unparsable_structure", f"not a readable BinaryCIF file: {what}") from error


def _tables(data: bytes) -> tuple[str, dict[str, Table]]:
    """The first block's header, and its wanted tables as {column: what the file has of it} and a number of rows."""
    reader = msgpack.Unpacker(raw=False, max_buffer_size=len(data), max_array_len=MAX_COLUMNS, max_map_len=16)
    reader.feed(data)
    entry, found = "", {}
    for _ in range(reader.read_map_header()):
        if reader.unpack() != "dataBlocks":
            reader.skip()
            continue
        for block in range(reader.read_array_header()):
            if block:
                reader.skip()
                continue
            for _ in range(reader.read_map_header()):
                key = reader.unpack()
                if key == "header":
                    entry = str(reader.unpack())
                elif key == "categories":
                    for _ in range(reader.read_array_header()):
                        name, table = _category(reader)
                        if name in WANTED:
                            found[name] = table
                else:
                    reader.skip()
    return entry, found


def _category(reader: msgpack.Unpacker) -> tuple[str, Table]:
    name, columns, rows = None, {}, 0
    for _ in range(reader.read_map_header()):
        key = reader.unpack()
        if key == "name":
            name = str(reader.unpack())
        elif name is not None and name not in WANTED:
            reader.skip()
        elif key == "columns":
            columns = {column["name"]: column for column in reader.unpack()}
        elif key == "rowCount":
            rows = reader.unpack()
        else:
            reader.skip()
    if not isinstance(rows, int) or not 0 <= rows <= MAX_ROWS:
        raise SourceError("unparsable_structure", f"its table {name} claims {rows} rows")
    return str(name), (columns, rows)


class _Site:
    """Atoms as BinaryCIF has them; a column is decoded once."""

    def __init__(self, table: Table, rows: NDArray[np.intp] | None = None, known: dict | None = None) -> None:
        self._table, self._rows, self._known = table, rows, {} if known is None else known

    def take(self, rows: NDArray[np.intp]) -> "_Site":
        return _Site(self._table, rows if self._rows is None else self._rows[rows], self._known)

    def text(self, name: str) -> NDArray | None:
        columns, rows = self._table
        if name not in self._known:
            self._known[name] = _column(columns[name], rows) if name in columns else None
        column = self._known[name]
        return column if column is None or self._rows is None else column[self._rows]


def _rows(tables: dict[str, Table], category: str, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A small table as text, "" where there is no value."""
    columns, rows = tables.get(category, ({}, 0))
    if names[0] not in columns:
        return []
    found = []
    for name in names:
        column = _column(columns[name], rows) if name in columns else np.full(rows, b"?")
        values = [cell.decode() if isinstance(cell, bytes) else f"{cell:.12g}" for cell in column.tolist()]
        found.append(["" if value in ("?", ".", "nan", str(NONE)) else value for value in values])
    return list(zip(*found, strict=True))


def _column(column: dict[str, Any], rows: int) -> NDArray:
    """Numbers, or byte strings. No value: NaN, NONE or `?`."""
    values = _decoded(column["data"], rows)
    if column.get("mask"):
        absent = _decoded(column["mask"], rows) != 0
        if absent.any():
            nothing = {"S": b"?", "f": np.nan}.get(values.dtype.kind, NONE)
            wide = values.astype(np.int64) if values.dtype.kind in "iu" else values
            values = np.where(absent, nothing, wide)
    return values


def _decoded(what: dict[str, Any], rows: int) -> NDArray:
    values = _decode(what["data"], what["encoding"])
    if len(values) != rows:
        raise SourceError("unparsable_structure", f"a column has {len(values)} values, its table {rows} rows")
    return values


def _decode(data: bytes, encodings: list[dict[str, Any]]) -> NDArray:
    """The encodings undone, the last first."""
    if len(encodings) > MAX_STEPS:
        raise ValueError(f"{len(encodings)} encodings of a column")
    values: Any = data
    for encoding in reversed(encodings):
        match encoding["kind"]:
            case "ByteArray":
                values = np.frombuffer(values, dtype=TYPES[encoding["type"]])
            case "FixedPoint":
                values = values / _nonzero(encoding["factor"])
            case "IntervalQuantization":
                low, high, steps = (encoding[key] for key in ("min", "max", "numSteps"))
                values = low + values * ((high - low) / _nonzero(steps - 1))
            case "RunLength":
                values = _repeated(values)
            case "Delta":
                values = np.cumsum(values, dtype=np.int64) + encoding["origin"]
            case "IntegerPacking":
                values = _unpacked(values, encoding["isUnsigned"])
            case "StringArray":
                values = _strings(values, encoding)
            case other:
                raise ValueError(f"encoding {other!r} is not known")
        if len(values) > MAX_ROWS:
            raise ValueError(f"{len(values)} values in a column")
    return values


def _nonzero(number: float) -> float:
    if not number:
        raise ValueError("a division by zero")
    return number


def _repeated(pairs: NDArray) -> NDArray:
    values, counts = pairs[0::2], pairs[1::2].astype(np.int64)
    if (counts < 0).any() or counts.sum() > MAX_ROWS:
        raise ValueError(f"a run of {counts.max()} values")
    return np.repeat(values, counts)


def _unpacked(values: NDArray, unsigned: bool) -> NDArray:
    """Small integers, of which the largest and the smallest that their type has are added to the next."""
    kind = np.iinfo(values.dtype)
    more = values == kind.max
    if not unsigned:
        more |= values == kind.min
    if not more.any():
        return values
    last = np.flatnonzero(~more)
    if not len(last) or last[-1] != len(values) - 1:
        raise ValueError("a packed integer without an end")
    return np.add.reduceat(values.astype(np.int64), np.concatenate(([0], last[:-1] + 1)))


def _strings(data: bytes, encoding: dict[str, Any]) -> NDArray[np.bytes_]:
    """Indices of strings; -1 is none. What is longer than any value that is used is cut: a title."""
    index = _decode(data, encoding["dataEncoding"])
    offsets = _decode(encoding["offsets"], encoding["offsetEncoding"]).tolist()
    content = encoding["stringData"]
    names = [content[a:b].encode()[:MAX_VALUE] for a, b in pairwise(offsets)] + [b""]
    if len(index) and not -1 <= index.min() <= index.max() < len(names) - 1:
        raise ValueError(f"a string number {index.max()} of {len(names) - 1}")
    texts = np.array(names)
    if texts.itemsize * len(index) > MAX_TEXT:
        raise ValueError(f"{len(index)} values of up to {texts.itemsize} letters")
    return texts[index]
