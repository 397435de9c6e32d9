"""Records on their way from the task that parsed them to the task that joins them: runs, sorted by partition and key.

A task holds records up to a limit, sorts them and writes a run: a table of its partitions, then their records in the
order of keys. Joining a partition merges its segments of all runs, key by key. So neither a big source file nor a big
partition needs much memory, and there are as many files as there is data, not tasks × partitions. A record is one JSON
line, followed by the raw bytes that the line announces (arrays and images): plain, checked, and never a pickle.
"""

import dataclasses
import heapq
import json
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.records import (
    AnnotationRecord,
    EntryRecord,
    ImageRecord,
    Record,
    SequenceRecord,
    StructureRecord,
    TextRecord,
)
from pretrain.places import Place
from pretrain.sample import About, Image, Text

RECORDS = (SequenceRecord, EntryRecord, AnnotationRecord, TextRecord, ImageRecord, StructureRecord)
KINDS = {kind.__name__: kind for kind in RECORDS}
CODES = {kind: code for code, kind in enumerate(RECORDS)}
FAN = 64  # runs that are read side by side; where there are more, so many are first merged into one
HELD = 160 << 20  # bytes of records that a parsing task holds before it writes a run
MERGED = 96 << 20  # bytes of all runs together that a joining task reads ahead
SMALLEST = 64 << 10  # bytes read at once of one run; below this, reading costs more than it saves
MAGIC = b"FFSPILL1"
SEGMENT = struct.Struct("<QQII")  # offset, bytes, CRC-32, records of one partition
FRAME = struct.Struct("<BHI")  # kind, bytes of the key, bytes of the record
AGAIN = "remove the work folder and begin again"
COST = 200  # bytes that Python needs beside a record's own


class SpillDamaged(ValueError):
    """A run that is not what was written."""


def partition(key: str, partitions: int) -> int:
    """Where a protein lives; a pure function of its key, so that any worker may compute it."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % partitions


class Spill:
    """One task's records → `<folder>/0000.run`, `0001.run`, …; `runs` are their names, `spilled` the records' bytes."""

    def __init__(self, folder: Path, partitions: int, held: int = HELD) -> None:
        self.folder, self.partitions, self.limit = folder, partitions, held
        self.runs: list[str] = []
        self._records: list[tuple[int, bytes, int, int, bytes]] = []
        self._held = 0
        self.spilled = 0

    def add(self, record: Record) -> None:
        data, key = dumps(record), record.key.encode()
        where = partition(record.key, self.partitions)
        self._records.append((where, key, len(self._records), CODES[type(record)], data))
        self._held += len(data) + COST
        self.spilled += len(data)
        if self._held > self.limit:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a run; nothing if nothing is."""
        if not self._records:
            return
        self._records.sort(key=lambda record: record[:3])
        name = f"{len(self.runs):04d}.run"
        frames = ((where, key, kind, data) for where, key, _, kind, data in self._records)
        _write(self.folder / name, self.partitions, frames)
        self.runs.append(name)
        self._records, self._held = [], 0


def _write(path: Path, partitions: int, frames: Iterable[tuple[int, bytes, int, bytes]]) -> None:
    """A run of (partition, key, kind, record), which come in the order of partitions and keys."""
    table = bytearray(SEGMENT.size * partitions)
    with open(path, "wb") as file:
        file.write(MAGIC + table)
        for where, records in groupby(frames, key=lambda frame: frame[0]):
            begin, crc, count = file.tell(), 0, 0
            for count, (_, key, kind, data) in enumerate(records, 1):  # noqa: B007  count is the last one
                frame = FRAME.pack(kind, len(key), len(data)) + key
                crc = zlib.crc32(data, zlib.crc32(frame, crc))
                file.write(frame)
                file.write(data)
            SEGMENT.pack_into(table, where * SEGMENT.size, begin, file.tell() - begin, crc, count)
        file.seek(len(MAGIC))
        file.write(table)


def passes(runs: int) -> int:
    """How many times records are copied until their runs can be read side by side."""
    count = 0
    while runs > FAN:
        runs, count = -(-runs // FAN), count + 1
    return count


def combine(place: Place, runs: Sequence[str], partitions: int, path: Path) -> None:
    """One run of what several have, which stays in their order. Raises SpillDamaged."""

    def frames() -> Iterator[tuple[int, bytes, int, bytes]]:
        for number in range(partitions):
            for key, _, _, kind, data in _frames(place, runs, number):
                yield number, key, kind, data

    _write(path, partitions, frames())


def _frames(place: Place, runs: Sequence[str], number: int) -> Iterator[tuple[bytes, int, int, int, bytes]]:
    """(key, order of the run, place in it, kind, bytes) of one partition's records in all runs, sorted."""
    ahead = max(SMALLEST, MERGED // max(len(runs), 1))
    segments = [_segment(place, run, number, order, ahead) for order, run in enumerate(runs)]
    return heapq.merge(*segments, key=lambda frame: frame[:3])


def merge(place: Place, runs: Sequence[str], number: int) -> Iterator[tuple[str, Record]]:
    """(key, record) of one partition: by key, then in the order of the runs, then as they were added.

    Raises SpillDamaged.
    """
    return ((key, record) for key, record in skim(place, runs, number, RECORDS) if record is not None)


def skim(
    place: Place, runs: Sequence[str], number: int, wanted: Collection[type]
) -> Iterator[tuple[str, Record | None]]:
    """The same; records of other kinds than are wanted are None, and not decoded."""
    kinds = {CODES[kind] for kind in wanted}
    for key, _, _, kind, data in _frames(place, runs, number):
        try:
            yield key.decode(), loads(data) if kind in kinds else None
        except (KeyError, TypeError, ValueError) as error:  # before its segment's checksum was reached
            raise SpillDamaged(f"{place}: a record of {key!r} is damaged; {AGAIN}") from error


def _segment(
    place: Place, run: str, number: int, order: int, ahead: int
) -> Iterator[tuple[bytes, int, int, int, bytes]]:
    """(key, order of the run, place in it, kind, bytes) of a partition's records in one run."""
    entry = place.read(run, len(MAGIC) + number * SEGMENT.size, SEGMENT.size)
    if len(entry) < SEGMENT.size:
        raise SpillDamaged(f"{place / run} has no entry for partition {number}; {AGAIN}")
    begin, size, crc, count = SEGMENT.unpack(entry)
    at, held, seen, frame = 0, b"", 0, 0
    for record in range(count):
        while len(held) < frame + FRAME.size or len(held) < frame + FRAME.size + sum(
            FRAME.unpack_from(held, frame)[1:]
        ):
            block = place.read(run, begin + at, min(ahead, size - at)) if at < size else b""
            if not block:
                raise SpillDamaged(f"{place / run} ends within partition {number}; {AGAIN}")
            at, held, seen, frame = at + len(block), held[frame:] + block, zlib.crc32(block, seen), 0
            if at == size and seen != crc:
                raise SpillDamaged(f"{place / run}: partition {number} fails its checksum; {AGAIN}")
        kind, keys, length = FRAME.unpack_from(held, frame)
        key, data = frame + FRAME.size, frame + FRAME.size + keys
        frame = data + length
        yield held[key:data], order, record, kind, held[data:frame]
    if at != size:
        raise SpillDamaged(f"{place / run}: partition {number} has {size - at} bytes too many; {AGAIN}")


def dumps(record: Record) -> bytes:
    """Fields that are arrays or bytes become [name, dtype, shape] in the line, and their bytes follow it."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    if isinstance(record, ImageRecord):
        fields["image"] = {**dataclasses.asdict(record.image), "data": None}
        fields["data"] = np.frombuffer(record.image.data, dtype=np.uint8)
    if isinstance(record, EntryRecord):
        fields["about"] = dataclasses.asdict(record.about)
    if isinstance(record, TextRecord):
        fields["text"] = record.text._asdict()
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in fields.items() if name not in arrays}
    table = [[name, value.dtype.str, value.shape] for name, value in arrays.items()]
    line = json.dumps({"kind": type(record).__name__, "fields": plain, "arrays": table}).encode()
    return b"".join((line, b"\n", *(np.ascontiguousarray(value).tobytes() for value in arrays.values())))


def loads(data: bytes) -> Record:
    """The record of `dumps`' bytes; its arrays are views of them."""
    end = data.index(b"\n")
    entry = json.loads(data[:end])
    fields, at = entry["fields"], end + 1
    for name, dtype, shape in entry["arrays"]:
        count = int(np.prod(shape))
        fields[name] = np.frombuffer(data, dtype=dtype, count=count, offset=at).reshape(shape)
        at += fields[name].nbytes
    return _record(KINDS[entry["kind"]], fields)


def _record(kind: Any, fields: dict[str, Any]) -> Record:
    """Tuples and nested dataclasses, which JSON does not know, made again."""
    if kind is ImageRecord:
        about = fields.pop("image")
        data = fields.pop("data").tobytes()
        fields["image"] = Image(**{**about, "data": data, "present": tuple(about["present"])})
    elif kind is TextRecord:
        fields["text"] = Text(**fields["text"])
    elif kind is EntryRecord:
        about: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields["about"].items()}
        fields["about"], fields["secondary"] = About(**about), tuple(fields["secondary"])
    elif kind is AnnotationRecord:
        fields["terms"] = tuple((term, evidence) for term, evidence in fields["terms"])
        fields["denied"], fields["steps"] = tuple(fields["denied"]), tuple(fields["steps"])
    elif kind is StructureRecord:
        fields["atoms"] = tuple(fields["atoms"])
    return kind(**fields)
