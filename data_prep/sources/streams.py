"""A source file as a stream: decompressed and hashed as it comes, cut at marks, within limits for hostile files."""

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

from isal import igzip, isal_zlib

from data_prep.records import FileSeen
from pretrain.places import Place

BLOCK = 1 << 20  # bytes read at once
MAX_WHOLE = 512 << 20  # bytes of a file that is parsed in one piece; the largest mmCIF file of the PDB has 400 MB
MAX_PIECE = 64 << 20  # bytes of one entry or line; the longest UniProt entry has 0.5 MB
MAX_SAID = 1_000  # characters of a message
WHOLE_FILE = "whole file"  # the position of what is wrong with all of it
OTHERS = {  # how files begin that are packed in a way that is not read
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x1f\x8b": "gzip within gzip",
}
TAR, TAR_AT = b"ustar", 257  # what a tar archive's first block has, and where
DAMAGE: tuple[Any, ...] = (EOFError, zlib.error, isal_zlib.error, gzip.BadGzipFile)
BOMB = 200  # times that a file may expand; text of one repeated letter reaches 1,000, real files 50
BOMB_FROM = 32 << 20  # bytes that are let through before the ratio is asked for


class SourceError(ValueError):
    """A source file that cannot be used. `reason` is the short name under which a rejection of it is counted.

    Messages quote what was seen: a long one loses its middle, and what a terminal would obey is spelt out.
    """

    def __init__(self, reason: str, message: str, position: str = "") -> None:
        super().__init__(_readable(message))
        self.reason, self.position = reason, position

    def __reduce__(self) -> tuple:  # its arguments, so that the error survives the way from a worker to the driver
        return SourceError, (self.reason, str(self), self.position)


def _readable(message: str) -> str:
    if len(message) > MAX_SAID:
        message = f"{message[: MAX_SAID * 2 // 3]} […] {message[-MAX_SAID // 3 :]}"
    if message.isprintable():
        return message
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message)


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
        self._source: Any = io.BufferedReader(_Hashed(self), BLOCK)
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
                f"byte {self.raw_bytes} of the gzip",
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

    def opening(self, size: int = 4096, tar: bool = False) -> bytes:
        """The first bytes, to tell a format by; they are given again by what reads next. tar: whether it may be one.

        Raises SourceError for a file of nothing but white space there, for one that is packed in another way than gzip,
        for an archive that is none of the caller's formats, and for a web page, which is what some servers send in
        place of a file that they do not have.
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
        if other := next((what for mark, what in OTHERS.items() if begun.startswith(mark)), None):
            raise SourceError("unknown_format", f"{self.name}: this is {other}, and gzip alone is read; unpack it")
        if not tar and begun.startswith(TAR, TAR_AT):
            inside = begun[:100].partition(b"\0")[0].decode("utf-8", "replace")
            raise SourceError(
                "unknown_format",
                f"{self.name}: a tar archive, which begins with {inside!r}; unpack it, and name its members in `files`",
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
        held, tail, over = [b""], b"", len(mark) - 1  # what is not cut yet; its last bytes, where a mark may have begun
        offset, end = max(self.begin - len(mark), 0), self.end
        if offset:
            self._file.seek(offset)
        partial = self.begin > 0  # the first piece began before the range
        self.marked = True
        while block := self.read(BLOCK):
            held.append(block)
            if mark in block or mark in tail + block[:over]:
                *found, rest = cut(b"".join(held))
                held = [rest]
                for piece in found:
                    at, offset = offset, offset + len(piece) + len(mark)
                    if not partial:
                        if end is not None and at >= end:
                            return
                        yield at, piece
                    partial = False
            if (size := sum(map(len, held))) > limit:
                raise SourceError(
                    "overlong_entry",
                    f"{self.name}: no end after {size} bytes of an entry or line; look there",
                    f"byte {offset}",
                )
            tail = (tail + block[-over:])[-over:] if over else b""
        rest = b"".join(held)
        if rest and not partial and (end is None or offset < end):
            self.marked = False
            yield offset, rest

    def seen(self) -> FileSeen:
        """The file's provenance, after reading what is left of it. Not for a range."""
        while self.read(BLOCK):
            pass
        return FileSeen(self.name, self.raw_bytes, self._digest.hexdigest(), self.release)

    def close(self) -> None:
        # The garbage collector does not see through isal's reader: a cycle with one in it, and its buffers, would stay.
        self._plain = self._source = self._file
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
        if self._stream.end is None:  # a range is no file, and has no hash
            self._stream._digest.update(memoryview(buffer)[:size])
        return size


def _unreadable(name: str, error: OSError) -> SourceError:
    what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
    return SourceError("unreadable_file", f"{name}: {what}; check the file and its rights")
