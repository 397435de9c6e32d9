"""Hostile images: paths that lead out, headers that claim, files that expand; and what is laid in their folder."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image as Picture

from tests.runs.hostile.entries import PATHS
from tests.runs.hostile.files import MARKER, MIB, Case, packed, trap
from tests.runs.hostile.good import ROWS, picture

PNG = picture()


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    told = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", told)


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 0, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(size: int) -> bytes:
    deflate = zlib.compressobj(9)
    return b"".join(deflate.compress(bytes(min(MIB, size - at))) for at in range(0, size, MIB)) + deflate.flush()


def tiff(*entries: tuple[int, int, int, int], order: str = "<", after: int = 0, data: bytes = b"") -> bytes:
    """entries: (tag, type, count, value)."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    told = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return mark + struct.pack(f"{order}IH", 8, len(entries)) + told + struct.pack(f"{order}I", after) + data


def shape(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """The entries of a grey picture of one strip, which begins at byte 8."""
    size = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    return [*size, (278, 4, 1, height), (279, 4, 1, width * height % 2**32), (273, 4, 1, 8)]


def saved(format: str, **options: object) -> bytes:
    out = io.BytesIO()
    Picture.new("L", (24, 24), 7).save(out, format=format, **options)
    return out.getvalue()


def pngs() -> Iterator[Case]:
    line = zlib.compress(b"\0" + bytes(24))
    for name, make in {
        "100,000 by 100,000": lambda: png(100_000, 100_000, line),
        "2^31 by 2^31": lambda: png(2**31 - 1, 2**31 - 1, line),
        "2^32 by 1": lambda: png(2**32 - 1, 1, line),
        "nothing by nothing": lambda: png(0, 0, line),
        "nothing by 24": lambda: png(0, 24, line),
        "an unknown depth": lambda: png(24, 24, line, depth=7),
        "an unknown colour": lambda: png(24, 24, line, colour=5),
        "a palette that is not there": lambda: png(24, 24, line, colour=3),
        "a line of many": lambda: png(24, 24, line),
        "no pixels": lambda: png(24, 24),
        "pixels that are none": lambda: png(24, 24, b"garbage"),
        "pixels of a wrong checksum": lambda: PNG.replace(b"IDAT", b"IDAT\0", 1),
        "a header twice": lambda: PNG[:33] + PNG[8:],
        "no header": lambda: PNG[:8] + PNG[33:],
        "no end": lambda: PNG[:-12],
        "a chunk of 4 GB": lambda: PNG[:33] + b"\xff\xff\xff\xfftEXt",
        "a chunk of an unknown name": lambda: PNG[:33] + chunk(b"ABCD", b"x") + PNG[33:],
        "an unchecked chunk": lambda: PNG[:33] + chunk(b"tEXt", b"a\0b", 0) + PNG[33:],
        "100,000 chunks": lambda: PNG[:33] + chunk(b"tEXt", b"a\0b") * 100_000 + PNG[33:],
        "a text that expands": lambda: PNG[:33] + chunk(b"zTXt", b"a\0\0" + zeros(100 * MIB)) + PNG[33:],
        "a profile that expands": lambda: PNG[:33] + chunk(b"iCCP", b"a\0\0" + zeros(100 * MIB)) + PNG[33:],
        "many texts that expand": lambda: PNG[:33] + chunk(b"zTXt", b"a\0\0" + zeros(900_000)) * 100 + PNG[33:],
        "a film": lambda: PNG[:33] + chunk(b"acTL", struct.pack(">II", 10_000, 0)) + PNG[33:],
        "a picture and a pickle": lambda: PNG + trap(),
        "a pickle of a picture": lambda: trap() + PNG,
    }.items():
        yield Case(name, make)
    for size in (5_000, 5_700, 5_800):
        yield Case(
            f"{size} by {size} of nothing", lambda size=size: png(size, size, zeros(size * (size + 1))), heavy=True
        )
    yield Case("5,700 by 5,700 of 16 bits", lambda: png(5_700, 5_700, zeros(5_700 * 11_401), 16), heavy=True)
    yield Case("5,700 by 5,700 in colours", lambda: png(5_700, 5_700, zeros(5_700 * 22_801), 8, 6), heavy=True)
    yield Case("33,000,000 by 1", lambda: png(33_000_000, 1, zeros(33_000_001)), heavy=True)
    yield Case("1 by 33,000,000", lambda: png(1, 33_000_000, zeros(66_000_000)), heavy=True)
    for format in ("GIF", "BMP", "WEBP", "TGA", "PCX", "ICO", "PPM", "SGI", "EPS", "PDF", "DDS", "JPEG2000"):
        yield Case(f"{format} by another name", lambda format=format: saved(format), "told")
    for name, data in {
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "ImageMagick": b"push graphic-context\nimage over 0,0 0,0 'ephemeral:/etc/passwd'\n",
        "Photoshop": b"8BPS\0\1" + bytes(40),
        "HDF": b"\x89HDF\r\n\x1a\n" + bytes(40),
        "FITS": b"SIMPLE  =                    T".ljust(2880),
    }.items():
        yield Case(name, lambda data=data: data, "told")


def jpegs() -> Iterator[Case]:
    good = picture("JPEG")
    at = good.index(b"\xff\xc0") + 5
    for name, make in {
        "65,535 by 65,535": lambda: good[:at] + b"\xff" * 4 + good[at + 4 :],
        "nothing by nothing": lambda: good[:at] + bytes(4) + good[at + 4 :],
        "9 components": lambda: good[: at + 4] + b"\x09" + good[at + 5 :],
        "a segment beyond": lambda: good[:2] + b"\xff\xe1\xff\xff" + good[2:],
        "a segment of nothing": lambda: good[:2] + b"\xff\xe1\0\0" + good[2:],
        "10,000 segments": lambda: good[:2] + b"\xff\xe1\0\x04ab" * 10_000 + good[2:],
        "a scan that does not end": lambda: good[:-2],
        "a scan of nothing": lambda: good[: good.index(b"\xff\xda")],
        "no tables": lambda: good.replace(b"\xff\xdb", b"\xff\xee").replace(b"\xff\xc4", b"\xff\xee"),
        "EXIF of a path": lambda: (
            good[:2] + b"\xff\xe1\0\x20Exif\0\0" + b"II*\0\xff\xff\xff\xff" + bytes(16) + good[2:]
        ),
        "arithmetic": lambda: good.replace(b"\xff\xc0", b"\xff\xc9"),
        "lossless": lambda: good.replace(b"\xff\xc0", b"\xff\xc3"),
        "two pictures": lambda: good + good,
    }.items():
        yield Case(name, make)


def tiffs() -> Iterator[Case]:
    for name, make in {
        "no directory": lambda: b"II*\0\0\0\0\0",
        "a directory beyond": lambda: b"II*\0\xff\xff\xff\xff",
        "a directory of nothing": lambda: tiff(),
        "65,535 entries": lambda: b"II*\0" + struct.pack("<IH", 8, 65_535),
        "a directory of itself": lambda: tiff(*shape(24, 24), after=8, data=bytes(576)),
        "2^32 by 2^32": lambda: tiff(*shape(2**32 - 1, 2**32 - 1)),
        "100,000 by 100,000": lambda: tiff(*shape(100_000, 100_000)),
        "nothing by nothing": lambda: tiff(*shape(0, 0)),
        "2^32 strips": lambda: tiff(*shape(24, 24)[:-1], (273, 4, 2**32 - 1, 8)),
        "2^31 bits": lambda: tiff((258, 3, 2**31, 8), *shape(24, 24)),
        "an unknown compression": lambda: tiff(
            *((tag, kind, count, 12345 if tag == 259 else value) for tag, kind, count, value in shape(24, 24))
        ),
        "JPEG of old": lambda: tiff(
            *((tag, kind, count, 6 if tag == 259 else value) for tag, kind, count, value in shape(24, 24))
        ),
        "a strip beyond": lambda: tiff(*shape(24, 24)[:-1], (273, 4, 1, 2**31)),
        "tiles of nothing": lambda: tiff(*shape(24, 24)[:5], (322, 4, 1, 0), (323, 4, 1, 0), (324, 4, 1, 8)),
        "tiles of 2^31": lambda: tiff(*shape(24, 24)[:5], (322, 4, 1, 2**31), (323, 4, 1, 2**31), (324, 4, 1, 8)),
        "a tag of an unknown type": lambda: tiff((256, 99, 1, 24), *shape(24, 24)[1:]),
        "a text of 4 GB": lambda: tiff((270, 2, 2**32 - 1, 8), *shape(24, 24)),
        "a big TIFF": lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(99),
        "the other order": lambda: tiff(*shape(24, 24), order=">", data=bytes(576)),
        "100 directories": lambda: b"II*\0" + b"".join(struct.pack("<IH", 8 + 6 * i, 0) for i in range(100)),
    }.items():
        yield Case(name, make)


def folders() -> Iterator[Case]:
    """What a manifest's paths may lead to."""

    def rows(path: str) -> Callable[[], bytes]:
        return lambda: ROWS.replace(b"a_green.png", path.encode("utf-8", "surrogateescape"))

    outside = {
        "upwards": "../../../../../etc/passwd",
        "upwards from inside": "a/../../../../../etc/passwd",
        "absolute": "/etc/passwd",
        "absolute twice": "//etc/passwd",
        "a device": "/dev/zero",
        "a process": "/proc/self/environ",
        "an address": "file:///etc/passwd",
        "the network": "http://127.0.0.1:9/x.png",
        "a bucket": "s3://x/y.png",
        "a user": "~/x.png",
        "a variable": "$HOME/x.png",
        "a package": "package:os/x.png",
        "a zero byte": "a\0.png",
        "nothing": "",
        "the folder": ".",
        "the folder above": "..",
        "itself": "images.tsv",
        "100,000 letters": "a" * 100_000,
        "100,000 folders": "a/" * 50_000,
        "a pattern": "*.png",
        "another system": "..\\..\\x.png",
    }
    for name, path in outside.items():
        yield Case(f"a path: {name}", rows(path), "told")
    laid: dict[str, Callable[[Path], None]] = {
        "a link outside": lambda folder: (folder / "b.png").symlink_to("/etc/passwd"),
        "a link to a device": lambda folder: (folder / "b.png").symlink_to("/dev/zero"),
        "a link to a folder outside": lambda folder: (folder / "b.png").symlink_to("/etc"),
        "a link to itself": lambda folder: (folder / "b.png").symlink_to("b.png"),
        "a link to nothing": lambda folder: (folder / "b.png").symlink_to("c.png"),
        "a pipe": lambda folder: os.mkfifo(folder / "b.png"),
        "a folder": lambda folder: (folder / "b.png").mkdir(),
    }
    for name, lay in laid.items():
        yield Case(name, rows("b.png"), "told", lay=lay)
    yield Case(
        "a folder that is a link", rows("b/passwd"), "told", lay=lambda folder: (folder / "b").symlink_to("/etc")
    )
    for name, key in PATHS.items():
        yield Case(f"accession: {name}", lambda key=key: ROWS.replace(b"P12345", key.encode()))
        yield Case(f"cell: {name}", lambda key=key: ROWS.replace(b"\t1\t", b"\t" + key.encode() + b"\t"))
        yield Case(f"gene: {name}", lambda key=key: ROWS.replace(b"uniprot", b"gene").replace(b"P12345", key.encode()))
    for name, data in {
        "no rows": ROWS.partition(b"\n")[0] + b"\n",
        "an unknown channel": ROWS.replace(b"green\n", b"ultraviolet\n"),
        "no path": ROWS.replace(b"path", b"file"),
        "one row 1,000 times": ROWS + ROWS.splitlines(keepends=True)[1] * 1000,
        "one file of two cells": ROWS + b"a_green.png\tP2\t2\tgreen\n",
        "two files of one channel": ROWS + b"a_blue.png\tP12345\t1\tgreen\n",
        "the marker": ROWS.replace(b"a_green.png", MARKER.encode()),
    }.items():
        yield Case(name, lambda data=data: data)
    yield Case(
        "too many rows",
        lambda: ROWS + b"".join(b"x.png\t\t%d\tgreen\n" % i for i in range(9000)),
        "told",
        ("too_large",),
        limits={"images.MOST_ROWS": 2000},
    )
    yield Case(
        "too many genes",
        lambda: ROWS.replace(b"uniprot", b"gene") + b"".join(b"x.png\tG%d\t%d\tgreen\n" % (i, i) for i in range(9000)),
        "told",
        ("too_large",),
        limits={"images.MOST_ROWS": 2000},
    )


def packed_pictures() -> Iterator[Case]:
    yield from (
        Case(f"packed, {case.name}", lambda make=case.data: packed(make() if make else b"")) for case in jpegs()
    )


CASES = {"images manifest": folders, "png": pngs, "jpeg": jpegs, "tiff": tiffs, "atlas": packed_pictures}
