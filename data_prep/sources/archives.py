"""Tar archives read front to back: members as they come, nothing extracted, nothing of a header believed.

USTAR, with GNU's and PAX's long names. A member that is no plain file, or whose name could lead out of a folder, is
told by name and passed over, and so is one that is not wanted; their bytes are read, so that the archive's hash is of
all of it. An archive that is damaged or ends early raises, and says within which member and at which byte.

A big plain archive can be cut into byte ranges: a range has the members whose headers begin in it. Its first header is
found by looking a little further back for one whose checksum is right, and going on from there.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_prep.sources.files import SourceError, Stream

BLOCK = 512
MAX_NAME = 1024  # characters of a member's name
MAX_EXTRA = 64 << 10  # bytes of a header that carries a long name
BACK = MAX_EXTRA + 4 * BLOCK  # how far before a range its first member's own headers can begin
STEP = 1 << 20  # bytes passed over at once
MAX_HEADERS = 8  # of one member
TOO_LARGE = "too_large"
UNREAD = "unread_member"  # why there are no data of a member that nobody asked for
FILES, FOLDER = (b"0", b"\0", b"7"), b"5"
LINKS, DEVICES = (b"1", b"2"), (b"3", b"4", b"6")
NO_DATA = (*LINKS, *DEVICES, FOLDER)  # whatever their size says
LONG_NAME, PAX = b"L", b"x"
RECORD = re.compile(rb"(\d{1,6}) ")
EXTRA = (LONG_NAME, PAX, b"K", b"g")  # headers before a member's own; a link's name and what is true of all are unused


@dataclass(frozen=True)
class Member:
    """name: as the archive has it. data: its bytes as they are, or None. refused: why there are none, and detail."""

    name: str
    data: bytes | None
    refused: str = ""
    detail: str = ""


def looks_like(head: bytes) -> bool:
    """Whether a file's first block is a tar header."""
    return len(head) >= BLOCK and _header(head[:BLOCK]) is not None


def members(stream: Stream, wanted: Callable[[str], bool], limit: int, end: int | None = None) -> Iterator[Member]:
    """The wanted members; the refused ones, and those not wanted (`UNREAD`), without their data.

    limit: bytes of a member. end: where the stream's range ends.
    """
    reader = _Reader(stream)
    blank = reader.find_header(end) if stream.begin else False
    while end is None or reader.at < end:
        start = reader.at
        try:
            block = reader.take(BLOCK, "a header")
        except _Ended as ended:
            if blank and not ended.got:
                return
            raise reader.broken("truncated_archive", f"no end mark; there are {ended}") from ended
        blank = not block.strip(b"\0")
        if not blank:
            member = _member(reader, block, wanted, limit)
            if member is not None and start >= stream.begin:
                yield member


class _Ended(EOFError):
    """The archive has ended before what was asked for. got: how much of it there was."""

    def __init__(self, got: int, what: str) -> None:
        super().__init__(what)
        self.got = got


class _Reader:
    """Bytes from the front. at: how many have been taken, from the archive's begin. last: the member read last."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._ahead = stream, b""
        self.at, self.last = max(stream.begin - BACK, 0), ""
        if stream.begin:
            stream.start(self.at)

    def take(self, size: int, what: str, keep: bool = True) -> bytes:
        """Exactly so many bytes; nothing where they are not kept. Raises _Ended, and SourceError for damage."""
        parts, left = [], size
        while left:
            try:
                part = self._ahead or self._stream.read(min(left, STEP))
            except SourceError as error:
                raise self.broken(error.reason, str(error), told=True) from error
            self._ahead = b""
            if not part:
                raise _Ended(size - left, f"{size - left} of {size} bytes of {what}")
            left -= len(part)
            self.at += len(part)
            if keep:
                parts.append(part)
        return b"".join(parts)

    def content(self, name: str, size: int, keep: bool) -> bytes:
        """A member's bytes, and past what fills its last block."""
        try:
            data = self.take(size, name, keep)
            self.take(-size % BLOCK, f"what follows {name}", keep=False)
        except _Ended as ended:
            self.last = name
            raise self.broken("truncated_archive", f"it ends within {name}, after {ended}") from ended
        return data

    def find_header(self, end: int | None) -> bool:
        """Go to the first block that is a header, or to the end; whether the block before it is blank."""
        block = b""
        while end is None or self.at < end:
            before = block
            try:
                block = self.take(BLOCK, "a header")
            except _Ended:
                break
            if _header(block) is not None:
                self._ahead, self.at = block, self.at - BLOCK
                block = before
                break
        return not block.strip(b"\0")

    def broken(self, reason: str, problem: str, told: bool = False) -> SourceError:
        """told: whether the problem names the archive, and says what to do, already."""
        after = f"after {self.last}" if self.last else "at its begin"
        where = f"{self.last}, byte {self.at}" if self.last else f"byte {self.at}"
        if told:
            return SourceError(reason, f"{problem} ({after}, byte {self.at})", where)
        return SourceError(reason, f"{self._stream.name}: {problem} ({after}, byte {self.at}); fetch it again", where)


def _header(block: bytes) -> tuple[str, int, bytes] | None:
    """Name, size and kind; None for what is no header."""
    told = _number(block[148:156])
    if told is None or told != sum(block) - sum(block[148:156]) + 8 * 32:
        return None
    size = _number(block[124:136])
    if size is None:
        return None
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    return name, size, block[156:157]


def _member(reader: _Reader, block: bytes, wanted: Callable[[str], bool], limit: int) -> Member | None:
    """The member whose first header this is; None for a folder."""
    long_name, long_size, overlong, broken = "", None, 0, False
    for _ in range(MAX_HEADERS):
        header = _header(block)
        if header is None:
            raise reader.broken("broken_archive", "what should be a header is none")
        name, size, kind = header
        if kind not in EXTRA:
            break
        overlong = max(overlong, size if size > MAX_EXTRA else 0)
        content = reader.content(f"a header of {name}", size, keep=size <= MAX_EXTRA)
        if kind == LONG_NAME:
            long_name = _text(content)
        elif kind == PAX and size <= MAX_EXTRA:
            told = _pax(content)
            broken = told is None
            long_name = (told or {}).get("path", long_name)
            long_size = (told or {}).get("size")
        try:
            block = reader.take(BLOCK, "a header")
        except _Ended as ended:
            raise reader.broken("truncated_archive", f"it ends before the member; there are {ended}") from ended
    else:
        raise reader.broken("broken_archive", f"{MAX_HEADERS} headers of one member")
    if long_size is not None:
        if not re.fullmatch(r"\d{1,15}", long_size):
            raise reader.broken("broken_archive", f"{name} is of {long_size[:20]!r} bytes")
        size = int(long_size)
    name = long_name or name
    refused, detail = _refusal(name, kind, size, limit)
    if overlong or broken:
        refused, detail = "archive_name", f"a header of {overlong} bytes" if overlong else "a header that is no header"
    if kind in NO_DATA:
        size = 0
    if kind != FOLDER and refused in ("", TOO_LARGE) and not wanted(name):
        refused = UNREAD
    data = reader.content(name, size, keep=not refused and kind != FOLDER)
    reader.last = name[:MAX_NAME]
    return None if kind == FOLDER else Member(reader.last, None if refused else data, refused, detail)


def _refusal(name: str, kind: bytes, size: int, limit: int) -> tuple[str, str]:
    """Reason and detail, empty for a plain file with a plain name."""
    if kind in LINKS:
        return "archive_link", "a link; only plain files are read"
    if kind in DEVICES:
        return "archive_device", "a device or a pipe; only plain files are read"
    if kind not in (*FILES, FOLDER):
        return "archive_member_type", f"a member of type {kind!r}; only plain files are read"
    if len(name) > MAX_NAME:
        return "archive_name", f"a name of {len(name)} characters"
    if not name or name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.search(r"[\x00-\x1f]", name):
        return "archive_path", "an absolute name, one that leads out of its folder, or none"
    if size > limit:
        return TOO_LARGE, f"{size} bytes, over {limit >> 20} MiB"
    return "", ""


def _pax(content: bytes) -> dict[str, str] | None:
    """`30 path=…\\n` records; None if one of them lies of its length."""
    found, at = {}, 0
    while match := RECORD.match(content, at):
        end = at + int(match[1])
        key, equals, value = content[match.end() : end - 1].partition(b"=")
        if not match.end() < end <= len(content) or content[end - 1] != ord("\n") or not equals:
            return None
        found[_text(key)] = value.decode("utf-8", "replace")
        at = end
    return found if at == len(content) else None


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's binary of what they cannot hold; None for neither, and for less than nothing."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else (None if digits else 0)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")
