"""What all sources share: where their files are, how they are opened, and what happens when one is damaged.

The rule for damage: a source that is one big file (sequences, ontology, annotations, texts, an image manifest) stops
the run, because going on would silently lose most of a modality; a source of many small files (structures, images)
rejects the one and goes on, because a mirror of a public archive always has a few broken files. Either may be turned
with `on_error = "stop"` or `"reject"`. A missing folder, or a pattern that matches nothing, always stops.
"""

import csv
import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal

from data_prep.records import FileSeen, Items, Rejection
from pretrain.config import Config


class SourceError(ValueError):
    """A source file that cannot be used. `reason` is the short name under which a rejection of it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:  # two arguments, so that the error survives the way from a worker to the driver
        return SourceError, (self.reason, str(self))


class Files(Config):
    """The part of every source's configuration that says which files it reads.

    files: one pattern or several, relative to the root (`structures/*.cif.gz`; `**` descends).
    root: a name under the configuration's `[roots]`; without it, the configuration's own `root`.
    name: how the source is called in keys of unpaired items and in the manifest. release: as its publisher names it.
    licence, note: what a user of the data must know; they go into the manifest, the model card and the report.
    on_error: see the module. slice: files per task (a constant of the configuration, so that output never depends on
    the number of workers).
    """

    files: str | tuple[str, ...]
    root: str | None = None
    name: str = ""
    release: str = ""
    licence: str = ""
    note: str = ""
    on_error: Literal["stop", "reject"] = "stop"
    slice: int = 1

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.files,) if isinstance(self.files, str) else self.files

    def slices(self, root: Path) -> list[tuple[str, ...]]:
        """The work units of this source: file names relative to its root, sorted."""
        names = find(root, self.patterns)
        return [tuple(names[i : i + self.slice]) for i in range(0, len(names), self.slice)]

    def read(self, root: Path, names: tuple[str, ...], home: Path | None = None) -> Items:
        """Every record of the named files; a damaged file raises or becomes a rejection, as `on_error` says.

        root: where this source's files lie. home: the configuration's own root, if that is another.
        """
        for name in names:
            try:
                data, seen = load(root, name)
                yield from self.parse(name, data)
                yield seen
            except SourceError as error:
                if self.on_error == "stop":
                    raise
                yield Rejection(error.reason, Path(name).name, name, str(error))

    def parse(self, name: str, data: bytes) -> Items:
        """The records of one file's (decompressed) bytes. Raises SourceError for a file that is damaged as a whole."""
        raise NotImplementedError


def resolve(root: str, field: str = "root") -> Path:
    """A configured root as a folder: a path (relative to the current directory), `$VARIABLE`, `package:name/folder`."""
    place = os.path.expanduser(os.path.expandvars(root))
    if unset := re.search(r"\$\{?(\w+)", place):
        raise ValueError(
            f"{field} is {root!r} and the environment has no {unset[1]}: set it, or override with {field}=FOLDER"
        )
    if place.startswith("package:"):
        package, _, inside = place.removeprefix("package:").partition("/")
        return Path(str(package_files(package))) / inside
    if not Path(place).is_dir():
        raise ValueError(f"{field}: no folder at {place!r}; give one with {field}=FOLDER")
    return Path(place)


def find(root: Path, patterns: tuple[str, ...]) -> list[str]:
    """The files that match, relative to the root, sorted. Raises ValueError for a pattern that matches none."""
    found: set[str] = set()
    for pattern in patterns:
        names = {path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file()}
        if not names:
            folder = (root / pattern).parent
            known = (
                "the folder does not exist"
                if "*" not in str(folder) and not folder.is_dir()
                else "nothing there matches"
            )
            raise ValueError(
                f"no file for {pattern!r} under {root}: {known}; correct the source's `files`, or the root"
            )
        found |= names
    return sorted(found)


def load(root: Path, name: str) -> tuple[bytes, FileSeen]:
    """The file's bytes, decompressed if it is gzip, and its provenance. Raises SourceError saying what is wrong."""
    try:
        raw = (root / name).read_bytes()
    except OSError as error:
        raise SourceError(
            "unreadable_file", f"{name}: {error.strerror or error}; check the file and its rights"
        ) from error
    seen = FileSeen(name, len(raw), hashlib.sha256(raw).hexdigest())
    data = raw
    if raw[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(
                "truncated_gzip", f"{name}: gzip stream of {len(raw)} bytes is damaged ({error}); fetch the file again"
            ) from error
    if not data.strip():
        raise SourceError(
            "empty_file", f"{name}: the file is empty ({len(raw)} bytes); fetch it again, or leave it out"
        )
    return data, seen


def text(name: str, data: bytes) -> str:
    """Bytes as UTF-8 (a byte order mark is left off), or as Latin-1, which old releases are in."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def rows(name: str, data: bytes, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a table with a header, as (line number, {our name: value}); tabs, or commas in a `.csv`.

    Blank lines are passed over. columns: our name → the file's column. Raises SourceError when the header lacks one.
    """
    lines = _cells(name, text(name, data))
    _, header = next(lines)
    missing = sorted(set(columns.values()) - set(header))
    if missing:
        raise SourceError(
            "unparsable_table",
            f"{name}: no column {missing} in its header {header}; name the right ones in the source's `columns`",
        )
    place = {ours: header.index(theirs) for ours, theirs in columns.items()}
    for number, row in lines:
        if len(row) < len(header):
            raise SourceError(
                "unparsable_line", f"{name}, line {number}: {len(row)} columns, the header has {len(header)}"
            )
        yield number, {ours: row[i].strip() for ours, i in place.items()}


def _cells(name: str, content: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not blank. Between tabs a quote is a character like any other."""
    if ".csv" not in Path(name).suffixes:
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield number, line.rstrip("\r").split("\t")
        return
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        yield from ((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise SourceError("unparsable_line", f"{name}, line {reader.line_num}: {error}") from error
