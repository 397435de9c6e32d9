"""What all sources share: where their files are, how they are read piece by piece, and what happens to a damaged one.

A file is read as a `Stream`: decompressed as it comes, hashed as it comes, never held whole unless it is small. A big
plain file of entries is cut into byte ranges, one task each; a range has the entries that begin in it.

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
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import pydantic
from isal import igzip, isal_zlib

from data_prep.places import Place
from data_prep.records import FileSeen, Items, Rejection
from pretrain.config import Config

BLOCK = 1 << 20  # bytes read at once
MAX_WHOLE = 512 << 20  # bytes of a file that is parsed in one piece; the largest mmCIF file of the PDB has 400 MB
MAX_PIECE = 64 << 20  # bytes of one entry or line; the longest UniProt entry has 0.5 MB
DAMAGE: tuple[Any, ...] = (EOFError, zlib.error, isal_zlib.error, gzip.BadGzipFile)
BOMB = 400  # times that a file may expand; text of one repeated letter reaches 1,000, real files 50
BOMB_FROM = 256 << 20  # bytes that are let through before the ratio is asked for


class SourceError(ValueError):
    """A source file that cannot be used. `reason` is the short name under which a rejection of it is counted."""

    def __init__(self, reason: str, message: str, position: str = "") -> None:
        super().__init__(message)
        self.reason, self.position = reason, position

    def __reduce__(self) -> tuple:  # its arguments, so that the error survives the way from a worker to the driver
        return SourceError, (self.reason, str(self), self.position)


@dataclass(frozen=True)
class Slice:
    """A unit of work: some files, or of one file the entries that begin in its bytes [begin, end)."""

    names: tuple[str, ...]
    begin: int = 0
    end: int | None = None


class Stream(io.RawIOBase):
    """A source file's decompressed bytes, front to back; also of an open file, as a member of an archive is.

    name: relative to the root. begin, end: the range of a plain file whose entries are wanted. release: a parser sets
    it when the file says of what release it is. place: the file's root, where a parser finds its companions. marked:
    whether the piece given last ended with its mark. Raises SourceError, from any read, for a file that cannot be read,
    is damaged, or expands beyond reason.
    """

    def __init__(self, name: str, file: IO[bytes], begin: int = 0, end: int | None = None) -> None:
        super().__init__()
        self.name, self.begin, self.end, self.release = name, begin, end, ""
        self.place: Place | None = None
        self.raw_bytes, self.given, self._digest = 0, 0, hashlib.sha256()
        self.marked, self._ahead = False, b""
        self._file = file
        self._source = io.BufferedReader(_Hashed(self), BLOCK)
        self.packed = not begin and self._source.peek(2)[:2] == b"\x1f\x8b"
        self._plain: Any = igzip.IGzipFile(fileobj=self._source) if self.packed else self._source

    @staticmethod
    def open(place: Place, name: str, begin: int = 0, end: int | None = None) -> "Stream":
        """Raises SourceError for a file that is not there or must not be read."""
        try:
            stream = Stream(name, place.open(name), begin, end)
        except OSError as error:
            raise _unreadable(name, error) from error
        stream.place = place
        return stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, or all that are left, up to MAX_WHOLE; fewer than asked for are no sign of the end."""
        if size is None or size < 0:
            return self.whole()
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        try:
            data = self._plain.read(size)
        except DAMAGE as error:
            raise SourceError(
                "truncated_gzip",
                f"{self.name}: gzip stream is damaged after {self.raw_bytes} bytes ({error}); fetch the file again",
                f"byte {self.given}",
            ) from error
        self.given += len(data)
        if self.packed and self.given > max(BOMB_FROM, BOMB * self.raw_bytes):
            raise SourceError(
                "decompression_bomb",
                f"{self.name}: {self.raw_bytes} bytes have expanded to {self.given}; no source file does that",
                f"byte {self.given}",
            )
        return data

    def start(self, offset: int) -> None:
        """Begin at a byte of a plain file, before anything is read."""
        self._file.seek(offset)

    def opening(self, size: int = 4096) -> bytes:
        """The first bytes, to tell a format by; they are given again by what reads next.

        Raises SourceError for a file of nothing but white space there, and for a web page, which is what some servers
        send in place of a file that they do not have.
        """
        begun = b""
        while len(begun) < size and (part := self.read(size - len(begun))):
            begun += part
        self._ahead = begun + self._ahead
        text = begun.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if not text:
            raise self._empty()
        if text.startswith((b"<!doctype html", b"<html")):
            raise SourceError(
                "html_reply", f"{self.name}: a web page, {begun[:60]!r}, where data should be; fetch the file again"
            )
        return begun

    def _empty(self) -> SourceError:
        return SourceError(
            "empty_file", f"{self.name}: the file is empty ({self.raw_bytes} bytes); fetch it again, or leave it out"
        )

    def whole(self, limit: int = MAX_WHOLE) -> bytes:
        """Everything that is left. Raises SourceError for more than `limit` bytes, and for nothing but white space."""
        parts, held = [], 0
        while part := self.read(BLOCK):
            held += len(part)
            if held > limit:
                raise SourceError(
                    "too_large", f"{self.name}: over {limit >> 20} MiB, more than a file of this kind has; look at it"
                )
            parts.append(part)
        data = b"".join(parts)
        if not data.strip():
            raise self._empty()
        return data

    def pieces(self, mark: bytes, limit: int = MAX_PIECE) -> Iterator[tuple[int, bytes]]:
        """(offset in the decompressed file, bytes) between marks, these left out; an empty last piece is none.

        Of a range, those that begin in it: nothing is given twice by ranges that touch, and nothing is left out.
        """
        cut = re.compile(re.escape(mark)).split  # half again as fast as bytes.split
        rest, offset, end = b"", max(self.begin - len(mark), 0), self.end
        if offset:
            self._file.seek(offset)
        partial = self.begin > 0  # the first piece began before the range
        self.marked = True
        while block := self.read(BLOCK):
            rest += block
            *found, rest = cut(rest)
            for piece in found:
                at, offset = offset, offset + len(piece) + len(mark)
                if not partial:
                    if end is not None and at >= end:
                        return
                    yield at, piece
                partial = False
            if len(rest) > limit:
                raise SourceError(
                    "overlong_entry",
                    f"{self.name}: no end after {len(rest)} bytes of an entry or line; look there",
                    f"byte {offset}",
                )
        if rest and not partial and (end is None or offset < end):
            self.marked = False
            yield offset, rest

    def seen(self) -> FileSeen:
        """The file's provenance, after reading what is left of it. Not for a range."""
        while self.read(BLOCK):
            pass
        return FileSeen(self.name, self.raw_bytes, self._digest.hexdigest(), self.release)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Hashed(io.RawIOBase):
    """A file whose bytes are counted and hashed on their way."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            size = self._stream._file.readinto(buffer)  # type: ignore[attr-defined]  # every file that is read has it
        except OSError as error:
            raise _unreadable(self._stream.name, error) from error
        self._stream.raw_bytes += size
        self._stream._digest.update(memoryview(buffer)[:size])
        return size


def _unreadable(name: str, error: OSError) -> SourceError:
    what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
    return SourceError("unreadable_file", f"{name}: {what}; check the file and its rights")


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
            size = root.stat(some[0]).bytes if self.MARK and len(some) == 1 else 0
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
            try:
                with Stream.open(root, name, part.begin, part.end) as stream:
                    yield from self.parse(stream)
                    if part.end is None:
                        yield stream.seen()
                    elif part.begin == 0:
                        with Stream.open(root, name) as whole:
                            whole.release = stream.release
                            yield whole.seen()
            except SourceError as error:
                if self.on_error == "stop":
                    raise
                yield Rejection(error.reason, Path(name).name, name, str(error), error.position)

    def parse(self, stream: Stream) -> Items:
        """The records of one file. Raises SourceError for a file that is damaged as a whole."""
        raise NotImplementedError


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
    stream: Stream, columns: dict[str, str], optional: Collection[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Lines of a table with a header, as (position, {our name: value}); tabs, or commas in a `.csv`.

    Blank lines are passed over. columns: our name → the file's column. optional: our names that a file may lack; their
    value is then "". Raises SourceError when the header lacks another, and for a line with fewer columns.
    """
    stream.opening()
    lines = _cells(stream)
    _, header = next(lines, ("", [""]))
    missing = sorted(theirs for ours, theirs in columns.items() if theirs not in header and ours not in optional)
    if missing:
        raise SourceError(
            "unparsable_table",
            f"{stream.name}: no column {missing} in its header {header}; name the right ones in the source's `columns`",
        )
    place = {ours: header.index(theirs) for ours, theirs in columns.items() if theirs in header}
    absent = dict.fromkeys(columns.keys() - place.keys(), "")
    for position, row in lines:
        if len(row) < len(header):
            raise SourceError(
                "unparsable_line",
                f"{stream.name}, {position}: {len(row)} columns, the header has {len(header)}",
                position,
            )
        yield position, absent | {ours: row[i].strip() for ours, i in place.items()}


def _cells(stream: Stream) -> Iterator[tuple[str, list[str]]]:
    """(position, cells) of each line that is not blank. Between tabs a quote is a character like any other."""
    if ".csv" not in Path(stream.name).suffixes:
        for at, line in stream.pieces(b"\n"):
            if line.strip():
                yield f"byte {at}", text(line).rstrip("\r").split("\t")
        return
    reader = csv.reader((text(line) + "\n" for _, line in stream.pieces(b"\n")), strict=True)
    try:
        yield from ((f"line {reader.line_num}", row) for row in reader if row)
    except csv.Error as error:
        raise SourceError(
            "unparsable_line", f"{stream.name}, line {reader.line_num}: {error}", f"line {reader.line_num}"
        ) from error
