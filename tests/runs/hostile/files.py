"""What can be wrong with any file at all, whatever is in it."""

import bz2
import gzip
import io
import lzma
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tests.runs.hostile.good import Tree
from tests.runs.hostile.kinds import Kind

# refused: nothing of the file becomes a record, and it is said why. told: something is rejected or refused. same: the
# good file's records, and nothing rejected. told or same: never other records without a word. any: whatever is no
# crash, no silence and no other exception.
Must = Literal["refused", "told", "same", "told or same", "any"]
ALONE = ("foldcomp index", "foldcomp lookup", "preferred genes")  # kinds whose first line is a good file by itself
MARKER = "UNPICKLED"
MIB = 1 << 20
HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Sorry, %s</body></html>\n"


@dataclass(frozen=True)
class Case:
    """data: the target's bytes, made when they are needed. more: other files. lay: anything else in the folder.

    settings: of the source. limits: of our modules, lowered where a case would take long to meet them. heavy: read
    once, not with both `on_error`s, and in a process of its own. names: the reasons of which one must be given.
    """

    name: str
    data: Callable[[], bytes] | None
    must: Must = "any"
    names: tuple[str, ...] = ()
    more: Tree = field(default_factory=dict)
    lay: Callable[[Path], None] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    heavy: bool = False


class Trap:
    """What leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple:
        return open, (MARKER, "w")


def trap(protocol: int = 4) -> bytes:
    return pickle.dumps(Trap(), protocol)


def torch_file() -> bytes:
    """A pickle as torch packs it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", trap(2))
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def numpy_file() -> bytes:
    """A pickle as numpy packs it."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (-len(header) - 11 % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + trap(2)


def zipped(data: bytes, name: str = "../../etc/cron.d/x") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


@cache
def _member(filler: bytes) -> bytes:
    return gzip.compress((filler * (MIB // len(filler) + 1))[:MIB], 9, mtime=0)


def members(head: bytes, filler: bytes, megabytes: int) -> bytes:
    """gzip, a member after the other: a head, then a filler that goes on."""
    return packed(head) + _member(filler) * megabytes


def member(head: bytes, filler: bytes, megabytes: int) -> bytes:
    """gzip of one member, 1,000 times smaller than what it holds; its checksum is never reached."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    begin = deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress((filler * (MIB // len(filler) + 1))[:MIB]) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\2\xff" + begin + block * megabytes + deflate.flush() + bytes(8)


def named(data: bytes) -> bytes:
    """gzip whose header names another file, and has a comment."""
    body = packed(data)[10:]
    return b"\x1f\x8b\x08\x18\0\0\0\0\0\xff" + b"../../../etc/passwd\0" + b"x" * 200 + b"\0" + body


def anything(kind: Kind) -> Iterator[Case]:
    """The attacks that need to know nothing of a kind but one good file of it."""
    yield from nothing()
    yield from other_formats(kind)
    yield from compressed(kind)
    yield from bombs(kind)
    if kind.text:
        yield from letters(kind)


def nothing() -> Iterator[Case]:
    for name, data in {
        "no byte": b"",
        "a blank": b" ",
        "a line end": b"\n",
        "blank lines": b" \t\r\n" * 3000,
        "a zero byte": b"\0",
        "zero bytes": bytes(65536),
        "bytes of 255": b"\xff" * 65536,
        "a byte order mark": b"\xef\xbb\xbf",
        "a page": HTML % b"the release has moved",
        "a page after blanks": b"\n\n  " + HTML.lower() % b"no",
        "a page without a type": b"<html>\n<body>Service Unavailable</body>\n</html>\n",
        "an S3 error": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code></Error>',
        "a JSON error": b'{"error": "not found", "status": 404}',
        "a plain error": b"404: Not Found",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    }.items():
        yield Case(name, lambda data=data: data, "refused")


def other_formats(kind: Kind) -> Iterator[Case]:
    seed = kind.seed
    for protocol in (0, 2, 5):
        yield Case(f"a pickle of protocol {protocol}", lambda protocol=protocol: trap(protocol), "refused")
    for name, make in {
        "a packed pickle": lambda: packed(trap()),
        "a pickle of torch": torch_file,
        "a pickle of numpy": numpy_file,
        "a zip archive": lambda: zipped(seed),
        "bzip2": lambda: bz2.compress(seed),
        "xz": lambda: lzma.compress(seed),
        "zstd": lambda: b"\x28\xb5\x2f\xfd" + seed[:64],
        "a program": lambda: b"\x7fELF\x02\x01\x01" + bytes(500),
        "a document": lambda: b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        "a script": lambda: b"#!/bin/sh\ntouch " + MARKER.encode() + b"\n",
        "SQLite": lambda: b"SQLite format 3\0" + bytes(100),
        "Parquet": lambda: b"PAR1" + bytes(100) + b"PAR1",
        "safetensors": lambda: struct.pack("<Q", 1 << 62) + b'{"x":',
    }.items():
        yield Case(name, make, "refused")
    for size in (16, 700, 70_000):
        yield Case(f"{size} random bytes", lambda size=size: random.Random(size).randbytes(size), "refused")


def compressed(kind: Kind) -> Iterator[Case]:
    seed = kind.seed
    good, same, cut = packed(seed), "same" if kind.gzip else "told", ("truncated_gzip",) if kind.gzip else ()
    yield Case("gzip", lambda: good, same)
    yield Case("gzip of several members", lambda: packed(seed[:50]) + packed(seed[50:]), same)
    yield Case("gzip that names another file", lambda: named(seed), same)
    yield Case("gzip within gzip", lambda: packed(good), "refused")
    yield Case("gzip thrice", lambda: packed(packed(good)), "refused")
    yield Case("gzip of nothing", lambda: packed(b""), "refused")
    yield Case("gzip of a page", lambda: packed(HTML % b"no"), "refused")
    yield Case("a header of gzip", lambda: good[:10], "refused", cut)
    yield Case("two bytes of gzip", lambda: good[:2], "refused", cut)
    yield Case("gzip of an unknown method", lambda: good[:2] + b"\x07" + good[3:], "refused", cut)
    yield Case("gzip with reserved flags", lambda: good[:3] + b"\xe0" + good[4:], "told or same")
    yield Case("gzip of a wrong checksum", lambda: good[:-8] + bytes(4) + good[-4:], "told", cut)
    yield Case("gzip of a wrong length", lambda: good[:-4] + b"\xff\xff\xff\x7f", "told", cut)
    yield Case("gzip without its end", lambda: good[:-8], "told", cut)
    yield Case("gzip and garbage", lambda: good + b"garbage", "told or same")
    yield Case("gzip and a broken member", lambda: good + good[:-9], "told", cut)


def bombs(kind: Kind) -> Iterator[Case]:
    half = kind.seed[: len(kind.seed) // 2]
    line = kind.line or b"x" * 999 + b"\n"
    yield Case("a bomb of zero bytes", lambda: member(b"", b"\0", 1024), "refused", heavy=True)
    yield Case("a bomb of lines", lambda: members(kind.seed, line, 1024), "told", heavy=True)
    yield Case("100 MB without a line end", lambda: member(half + b"\n", b"AC" * 500, 100), "told", heavy=True)
    if kind.text and kind.entries:
        yield Case("a bomb of tabs", lambda: members(kind.seed, b"\t", 100), "told", heavy=True)
        yield Case("a bomb of line ends", lambda: members(kind.seed, b"\n", 1), "told or same", heavy=True)


def letters(kind: Kind) -> Iterator[Case]:
    seed = kind.seed
    text = seed.decode("utf-8")
    middle = seed.index(b"\n", len(seed) // 2) + 1
    yield Case("a byte order mark before it", lambda: b"\xef\xbb\xbf" + seed)
    yield Case("UTF-16", lambda: text.encode("utf-16"), "refused")
    yield Case("UTF-16, the other way", lambda: text.encode("utf-16-be"), "refused")
    yield Case("UTF-32", lambda: text.encode("utf-32"), "refused")
    yield Case("carriage returns alone", lambda: seed.replace(b"\n", b"\r"), "told or same")
    yield Case("carriage returns too", lambda: seed.replace(b"\n", b"\r\n"))
    yield Case("zero bytes in the middle", lambda: seed[:middle] + bytes(9) + seed[middle:])
    yield Case("a zero byte after each line", lambda: seed.replace(b"\n", b"\0\n"))
    yield Case("Latin-1", lambda: seed.replace(b"e", b"\xe9"))
    yield Case("letters of other scripts", lambda: text.replace("A", "А").replace("a", "а").encode())
    yield Case("surrogates", lambda: seed[:middle] + b"\xed\xa0\x80\xed\xb0\x80" + seed[middle:])
    yield Case("overlong UTF-8", lambda: seed.replace(b"/", b"\xc0\xaf").replace(b".", b"\xc0\xae"))
    yield Case("escape sequences", lambda: seed.replace(b"P", b"\x1b]0;x\x07\x1b[2J").replace(b"0", b"\x1b[31m0"))
    yield Case("twice", lambda: seed + seed)
    yield Case("backwards", lambda: seed[::-1])
    yield Case("lines backwards", lambda: b"".join(seed.splitlines(keepends=True)[::-1]))
    yield Case("without its first line", lambda: seed.partition(b"\n")[2])
    yield Case(
        "its first line alone", lambda: seed.partition(b"\n")[0] + b"\n", "any" if kind.name in ALONE else "told"
    )
    yield Case("a merge conflict", lambda: b"<<<<<<< HEAD\n" + seed + b"=======\n" + seed + b">>>>>>> other\n")


def cuts(kind: Kind, count: int) -> Iterator[Case]:
    """Ended too early, at places all over it, plain and packed."""
    seed, good = kind.seed, packed(kind.seed)
    for at in places(len(seed), count):
        must: Must = "told or same" if kind.ends and seed[at:].strip(b"\0 \r\n") else "any"
        yield Case(f"cut at byte {at} of {len(seed)}", lambda at=at: seed[:at], must)
    for at in places(len(good), count // 2):
        yield Case(f"packed, cut at byte {at} of {len(good)}", lambda at=at: good[:at], "told" if kind.gzip else "any")


def places(size: int, count: int) -> list[int]:
    """All over a file, with its first and its last bytes."""
    some = random.Random(size).sample(range(size), min(count, size))
    return sorted({*some[:-6], *(at for at in (1, 2, 3, size - 1, size - 2, size - 3) if 0 < at < size)})


def flips(kind: Kind, count: int) -> Iterator[Case]:
    """One byte is another."""
    for name, data, must in (("", kind.seed, "any"), ("packed, ", packed(kind.seed), "told or same")):
        draw = random.Random(len(data))
        for _ in range(count if not name else count // 2):
            at, by = draw.randrange(len(data)), draw.randrange(1, 256)
            if name and at < 10:
                continue  # of gzip's own header hardly anything matters, and what does has cases of its own

            def flipped(data: bytes = data, at: int = at, by: int = by) -> bytes:
                return data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]

            yield Case(f"{name}byte {at} changed by {by}", flipped, must)  # type: ignore[arg-type]
