"""Records on their way from the task that parsed them to the task that joins them: one file per partition.

A record is one JSON line, followed by the raw bytes that the line announces (arrays and images). Plain, appendable,
and never a pickle.
"""

import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from hashlib import blake2b
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
from pretrain.sample import About, Image, Text

RECORDS = (SequenceRecord, EntryRecord, AnnotationRecord, TextRecord, ImageRecord, StructureRecord)
KINDS = {kind.__name__: kind for kind in RECORDS}
BUFFER = 64 << 20  # bytes held before they go to disk: bounds a task's memory, whatever the size of its source file


def partition(key: str, partitions: int) -> int:
    """Where a protein lives; a pure function of its key, so that any worker may compute it."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % partitions


class Spill:
    """One task's output: `<folder>/<partition>`. A retried task starts its folder afresh."""

    def __init__(self, folder: Path, partitions: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.partitions = folder, partitions
        self.buffers: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.held = 0

    def add(self, record: Record) -> None:
        data = dumps(record)
        self.buffers[partition(record.key, self.partitions)] += data
        self.held += len(data)
        if self.held > BUFFER:
            self.flush()

    def flush(self) -> None:
        for number, buffer in self.buffers.items():
            with open(self.folder / str(number), "ab") as file:
                file.write(buffer)
        self.buffers.clear()
        self.held = 0


def read(path: Path) -> Iterator[Record]:
    """The records of one spill file, in the order they were added."""
    with open(path, "rb") as file:
        while line := file.readline():
            yield _record(json.loads(line), file)


def dumps(record: Record) -> bytes:
    """Fields that are arrays or bytes become [name, dtype, shape] in the line, and their bytes follow it."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    if isinstance(record, ImageRecord):
        fields["image"] = {**dataclasses.asdict(record.image), "data": None}
        fields["data"] = np.frombuffer(record.image.data, dtype=np.uint8)
    if isinstance(record, EntryRecord):
        fields["about"] = dataclasses.asdict(record.about)
    if isinstance(record, TextRecord):
        fields["text"] = dataclasses.asdict(record.text)
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in fields.items() if name not in arrays}
    table = [[name, value.dtype.str, value.shape] for name, value in arrays.items()]
    line = json.dumps({"kind": type(record).__name__, "fields": plain, "arrays": table}).encode()
    return b"".join((line, b"\n", *(np.ascontiguousarray(value).tobytes() for value in arrays.values())))


def _record(entry: dict[str, Any], file: Any) -> Record:
    fields = entry["fields"]
    for name, dtype, shape in entry["arrays"]:
        data = file.read(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        fields[name] = np.frombuffer(data, dtype=dtype).reshape(shape)
    kind = KINDS[entry["kind"]]
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
    elif kind is StructureRecord:
        fields["atoms"] = tuple(fields["atoms"])
    return kind(**fields)
