"""What all sources share: where their files are, how they are read piece by piece, and what happens to a damaged one.

A file is read as a `Stream`: decompressed as it comes, hashed as it comes, never held whole unless it is small. A big
plain file of entries is cut into byte ranges, one task each; a range has the entries that begin in it.

The rule for damage: a source that is one big file (sequences, ontology, annotations, texts, an image manifest) stops
the run, because going on would silently lose most of a modality; a source of many small files (structures, images)
rejects the one and goes on, because a mirror of a public archive always has a few broken files. Either may be turned
with `on_error = "stop"` or `"reject"`. A missing folder, or a pattern that matches nothing, always stops.

Whatever a file is, and whoever made it: reading it takes less than 1 GiB, ends in records, rejections or a SourceError,
and never in silence. What would take more is refused by name; the limits are constants of the modules, far above any
real file. Nothing is unpickled, extracted, or looked up where a file says.
"""

import csv
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

import pydantic

from data_prep.records import FileSeen, Items, Rejection
from data_prep.sources.streams import BLOCK, DAMAGE, WHOLE_FILE, SourceError, Stream
from pretrain.config import Config
from pretrain.places import Place

__all__ = [
    "BLOCK",
    "DAMAGE",
    "WHOLE_FILE",
    "Files",
    "Slice",
    "SourceError",
    "Stream",
    "find",
    "load",
    "packed",
    "resolve",
    "rows",
    "text",
]

MAX_LINE = 4 << 20  # bytes of a table's row: as a list of empty cells it takes 32 MiB
MOST_REFUSED = 1000  # lines in a row that are no lines of a table: then it is no table


@dataclass(frozen=True)
class Slice:
    """A unit of work: some files, or of one file the entries that begin in its bytes [begin, end)."""

    names: tuple[str, ...]
    begin: int = 0
    end: int | None = None


class Files(Config):
    """The part of every source's configuration that says which files it reads.

    files: one pattern or several, relative to the root (`structures/*.cif.gz`; `**` descends).
    root: a name under the configuration's `[roots]`; without it, the configuration's own `root`.
    name: how the source is called in keys of unpaired items and in the manifest. release: as its publisher names it,
    where the files do not say it. licence, note: what a user of the data must know; they go into the manifest, the
    model card and the report. on_error: see the module. slice: files per task. chunk: MiB of a plain file per task.
    (Both are constants of the configuration, so that output never depends on the number of workers.)
    """

    MARK: ClassVar[bytes] = b""  # what ends an entry, where a plain file can be cut into ranges
    TAR: ClassVar[bool] = False  # whether tar archives are read

    files: str | tuple[str, ...]
    root: str | None = None
    name: str = ""
    release: str = ""
    licence: str = ""
    note: str = ""
    on_error: Literal["stop", "reject"] = "stop"
    slice: int = pydantic.Field(default=1, ge=1)
    chunk: int = pydantic.Field(default=256, ge=1)

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.files,) if isinstance(self.files, str) else self.files

    def slices(self, root: Place) -> list[Slice]:
        """The work units of this source, in the order of its files' names."""
        names, found = find(root, self.patterns), []
        for begin in range(0, len(names), self.slice):
            some = tuple(names[begin : begin + self.slice])
            size = root.listed(some[0]).bytes if self.MARK and len(some) == 1 else 0
            step = self.chunk << 20
            if size <= step or not self.cuttable(root, some[0]):
                found.append(Slice(some))
            else:
                found += [Slice(some, at, min(at + step, size)) for at in range(0, size, step)]
        return found

    def cuttable(self, root: Place, name: str) -> bool:
        """Whether a big file may be cut into byte ranges."""
        return not packed(root, name)

    def read(self, root: Place, part: Slice, home: Place) -> Items:
        """Every record of a slice; a damaged file raises or becomes a rejection, as `on_error` says.

        root: where this source's files lie. home: the configuration's own root, which may be another.
        """
        for name in part.names:
            found = False
            try:
                with Stream.open(root, name, part.begin, part.end) as stream:
                    if not part.begin:
                        stream.opening(tar=self.TAR)
                    for item in self.parse(stream):
                        found = found or not isinstance(item, FileSeen)
                        yield item
                    if part.end is None:
                        if not found:
                            problem = f"{stream.given} bytes, and nothing in them that is read; is it whole?"
                            yield Rejection("no_entries", Path(name).name, name, problem, WHOLE_FILE)
                        yield stream.seen()
                    elif part.begin == 0:
                        with Stream.open(root, name) as whole:
                            whole.release = stream.release
                            yield whole.seen()
            except SourceError as error:
                if self.on_error == "stop":
                    raise stopping(error) from error
                yield Rejection(error.reason, Path(name).name, name, str(error), error.position or WHOLE_FILE)

    def rows(
        self, stream: Stream, columns: dict[str, str], optional: Collection[str] = ()
    ) -> Iterator[tuple[str, dict[str, str]] | Rejection]:
        """Lines of a table, as `rows` reads them; with `on_error = "reject"` those that are none, and the next ones."""
        refused: list[SourceError] | None = [] if self.on_error == "reject" else None
        for row in chain(rows(stream, columns, optional, refused), [None]):
            for error in refused or ():
                yield Rejection(error.reason, Path(stream.name).name, stream.name, str(error), error.position)
            if refused:
                refused.clear()
            if row:
                yield row

    def companions(self, root: Place, home: Place) -> list[tuple[Place, str]]:
        """Tables that every slice is read with; when one of them has changed, all slices are read again."""
        return []

    def parse(self, stream: Stream) -> Items:
        """The records of one file. Raises SourceError for a file that is damaged as a whole."""
        raise NotImplementedError


def stopping(error: SourceError) -> SourceError:
    """What ends a run with `on_error = "stop"`: the damage, and then the other way to deal with it.

    A sentence of its own, for many of the messages end in advice, others in what was seen, and some in a question.
    """
    said = str(error)
    if "on_error" in said:
        return error
    end = "" if said.endswith(("?", ".", "!")) else "."
    other = 'To leave out and count what is damaged, set on_error = "reject" for its source'
    return SourceError(error.reason, f"{said}{end} {other}", error.position)


def resolve(root: str, field: str = "root") -> Place:
    """A configured root: a path (relative to the current directory), `$VARIABLE`, `package:name/folder`, or a URL."""
    place = os.path.expanduser(os.path.expandvars(root))
    if unset := re.search(r"\$\{?(\w+)", place):
        raise ValueError(
            f"{field} is {root!r} and the environment has no {unset[1]}: set it, or override with {field}=FOLDER"
        )
    if place.startswith("package:"):
        package, _, inside = place.removeprefix("package:").partition("/")
        return Place(str(Path(str(package_files(package))) / inside))
    if "://" not in place and not Path(place).is_dir():
        raise ValueError(f"{field}: no folder at {place!r}; give one with {field}=FOLDER")
    return Place(place if "://" in place else str(Path(place).resolve()))


def find(root: Place, patterns: tuple[str, ...]) -> list[str]:
    """The files that match, relative to the root, sorted. Raises ValueError for a pattern that matches none."""
    found: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("/"):
            raise ValueError(f"{pattern!r} is absolute; patterns are relative to the root {root}: change one of them")
        names = root.find(pattern)
        if not names:
            folder = pattern.rpartition("/")[0]
            missing = "*" not in folder and folder and not root.exists(folder)
            known = "the folder does not exist" if missing else "nothing there matches"
            raise ValueError(
                f"no file for {pattern!r} under {root}: {known}; correct the source's `files`, or the root"
            )
        found |= set(names)
    return sorted(found)


def packed(root: Place, name: str) -> bool:
    """Whether a file is gzip, which can only be read from its beginning."""
    return root.read(name, 0, 2) == b"\x1f\x8b"


def load(root: Place, name: str) -> tuple[bytes, FileSeen]:
    """A small file's bytes, decompressed if it is gzip, and its provenance. Raises SourceError."""
    with Stream.open(root, name) as stream:
        return stream.whole(), stream.seen()


def text(data: bytes) -> str:
    """Bytes as UTF-8 (a byte order mark is left off), or as Latin-1, which old releases are in."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def rows(
    stream: Stream,
    columns: dict[str, str],
    optional: Collection[str] = (),
    refused: list[SourceError] | None = None,
    setting: str = "columns",
) -> Iterator[tuple[str, dict[str, str]]]:
    """Lines of a table with a header, as (position, {our name: value}); tabs, or commas in a `.csv`.

    Blank lines are passed over. columns: our name → the file's column. optional: our names that a file may lack; their
    value is then "". refused: where a line with fewer columns goes, for the caller to take; without it, such a line
    ends the reading. setting: where the columns are configured. Raises SourceError when the header lacks a column, and
    for such a line.
    """
    stream.opening()
    lines = _cells(stream)
    _, header = next(lines, ("", [""]))
    missing = sorted(theirs for ours, theirs in columns.items() if theirs not in header and ours not in optional)
    if missing:
        shown = ", ".join(f"{name[:40]!r}" for name in header[:20]) + (", …" if len(header) > 20 else "")
        raise SourceError(
            "unparsable_table",
            f"{stream.name}: no column {missing} in its header [{shown}]; name the right ones in `{setting}`",
        )
    if any("\r" in name for name in header):
        raise SourceError(
            "unparsable_table", f"{stream.name}: its lines end in carriage returns alone; write it with line feeds"
        )
    place = {ours: header.index(theirs) for ours, theirs in columns.items() if theirs in header}
    absent = dict.fromkeys(columns.keys() - place.keys(), "")
    for position, row in lines:
        if len(row) < len(header):
            said = f"{stream.name}, {position}: {len(row)} columns, the header has {len(header)}"
            error = SourceError("unparsable_line", said, position)
            if refused is None or len(refused) >= MOST_REFUSED:
                raise error
            refused.append(error)
            continue
        yield position, absent | {ours: row[i].strip() for ours, i in place.items()}


def _cells(stream: Stream) -> Iterator[tuple[str, list[str]]]:
    """(position, cells) of each line that is not blank. Between tabs a quote is a character like any other."""
    if ".csv" not in Path(stream.name).suffixes:
        for at, line in stream.pieces(b"\n", MAX_LINE):
            if line.strip():
                yield f"byte {at}", text(line).rstrip("\r").split("\t")
        return
    reader = csv.reader((text(line) + "\n" for _, line in stream.pieces(b"\n", MAX_LINE)), strict=True)
    try:
        yield from ((f"line {reader.line_num}", row) for row in reader if row)
    except csv.Error as error:
        raise SourceError(
            "unparsable_line", f"{stream.name}, line {reader.line_num}: {error}", f"line {reader.line_num}"
        ) from error
