"""Image files → planes: what each format's pixels become, and how what is no image, or a trap, is refused."""

import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from data_prep.sources.files import SourceError
from data_prep.sources.pixels import planes, png
from tests.pack import PACK

ROOT = Path(__file__).resolve().parents[3]
GRID = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([GRID, GRID // 2, GRID // 4], axis=2)


def saved(pixels: np.ndarray | Picture.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Picture.Image) else Picture.fromarray(pixels)).save(out, kind, **options)
    return out.getvalue()


def read(
    data: bytes, *, size: int = 8, depth: int = 16, limit: int = 1 << 20, stacked: bool = False
) -> list[np.ndarray]:
    return [np.asarray(plane) for plane in planes("x", data, size, depth, limit, stacked)]


def tiff(pages: int = 1, data: bytes = GRID.tobytes(), **tags: int | list[int] | None) -> bytes:
    """A little-endian TIFF of 8 × 8 grey pixels; tags by number (`t256=[9]`), None to leave one out."""
    usual = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    given = usual | {int(name[1:]): value for name, value in tags.items()}
    entries = {tag: value if isinstance(value, list) else [value] for tag, value in given.items() if value is not None}
    body, at = b"II*\0", 8 + len(data)
    body += struct.pack("<I", at) + data
    for page in range(pages):
        table, extra = struct.pack("<H", len(entries)), b""
        beyond = len(body) + 2 + 12 * len(entries) + 4
        for tag, values in sorted(entries.items()):
            packed = struct.pack(f"<{len(values)}I", *values)
            place = packed if len(packed) == 4 else struct.pack("<I", beyond + len(extra))
            table += struct.pack("<HHI", tag, 4, len(values)) + place
            extra += packed if len(packed) > 4 else b""
        body += table + struct.pack("<I", beyond + len(extra) if page + 1 < pages else 0) + extra
    return body


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (saved(GRID, "PNG"), {}, GRID),
        (saved(GRID, "TIFF"), {}, GRID),
        (saved(GRID, "TIFF", compression="tiff_lzw"), {}, GRID),
        (saved(GRID, "TIFF", compression="tiff_adobe_deflate"), {}, GRID),
        (saved(GRID, "TIFF", big_tiff=True), {}, GRID),
        (tiff(), {}, GRID),
        (saved(GRID.astype(np.uint16) * 257, "PNG"), {}, GRID),
        (saved(GRID.astype(np.uint16) * 257, "TIFF"), {}, GRID),
        (saved(GRID.astype(np.uint16), "TIFF"), {"depth": 8}, GRID),
        (saved(np.where(GRID > 100, 4095, 0).astype(np.uint16), "TIFF"), {"depth": 12}, np.where(GRID > 100, 255, 0)),
        (saved(GRID.astype(np.float32) / 255, "TIFF"), {}, GRID),
        (saved(GRID.astype(np.int32) * 257, "TIFF"), {}, GRID),
        (saved(GRID > 100, "PNG"), {}, np.where(GRID > 100, 255, 0)),
        (saved(np.stack([GRID, GRID // 2], axis=2), "PNG"), {}, GRID),
        (saved(COLOURS, "PNG"), {}, GRID),
        (saved(COLOURS[..., ::-1].copy(), "TIFF"), {}, GRID),
        (saved(np.dstack([COLOURS, 255 - GRID]), "PNG"), {}, GRID),
        (saved(Picture.fromarray(COLOURS).quantize(64), "PNG"), {}, GRID),
        (saved(Picture.fromarray(COLOURS).convert("CMYK"), "TIFF"), {}, GRID),
    ],
)
def test_one_channel_of_every_kind_is_the_same_grey(data, options, expected):
    (plane,) = read(data, **options)
    assert np.array_equal(plane, expected)


def test_a_file_of_channels_gives_its_bands_or_its_pages():
    four = np.dstack([COLOURS, 255 - GRID])
    assert [np.array_equal(a, four[..., i]) for i, a in enumerate(read(saved(four, "PNG"), stacked=True))] == [True] * 4
    assert [np.array_equal(a, COLOURS[..., i]) for i, a in enumerate(read(saved(COLOURS, "TIFF"), stacked=True))] == [
        True
    ] * 3
    pages = [Picture.fromarray(four[..., i]) for i in range(4)]
    paged = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert [np.array_equal(a, four[..., i]) for i, a in enumerate(read(paged, stacked=True))] == [True] * 4
    deep = [Picture.fromarray(four[..., i].astype(np.uint16) * 257) for i in range(3)]
    paged = saved(deep[0], "TIFF", save_all=True, append_images=deep[1:])
    assert [np.array_equal(a, four[..., i]) for i, a in enumerate(read(paged, stacked=True))] == [True] * 3


def test_a_thumbnail_among_a_tiffs_pages_is_no_channel():
    small = Picture.new("L", (2, 2), 99)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = saved(GRID, "TIFF", save_all=True, append_images=[small])
    assert [plane.tolist() for plane in read(data)] == [GRID.tolist()]
    assert len(read(data, stacked=True)) == 1


TWICE = saved(COLOURS, "TIFF", save_all=True, append_images=[Picture.fromarray(COLOURS)])


@pytest.mark.parametrize(
    ("data", "stacked", "reason", "words"),
    [
        (tiff(pages=2), False, "many_pages", "several pages in a file of one channel"),
        (tiff(pages=5), True, "many_pages", "over 4 pages"),
(TWICE, True, "many_pages", "2 pages have 6 bands"),
        (saved(np.full((8, 8), 7.5, np.float32), "TIFF"), False, "out_of_range", "7.5; floats lie between 0 and 1"),
        (saved(np.full((8, 8), np.inf, np.float32), "TIFF"), False, "out_of_range", "values from inf"),
        (saved(np.full((8, 8), -3, np.int32), "TIFF"), False, "out_of_range", "values from -3"),
        (saved(np.full((8, 8), 70_000, np.int32), "TIFF"), False, "out_of_range", "depth = 16 ends at 65535"),
        (saved(np.zeros((9, 1001), np.uint8), "PNG"), False, "too_many_pixels", "1001 × 9 pixels; max_pixels is 9000"),
    ],
)  # fmt: skip
def test_what_cannot_be_what_the_configuration_says(data, stacked, reason, words):
    with pytest.raises(SourceError, match=words) as refused:
        read(data, stacked=stacked, limit=9000)
    assert refused.value.reason == reason


def test_values_that_are_not_numbers_are_black_and_a_little_beyond_the_range_is_rounding():
    pixels = np.array([[np.nan, 1.0001], [-0.001, 0.5]], dtype=np.float32)
    (plane,) = read(saved(pixels, "TIFF"), size=2)
    assert plane.tolist() == [[0, 255], [0, 128]]


def test_several_deep_bands_are_refused_where_their_lower_bits_count():
    rows = b"".join(b"\0" + bytes(8 * 6) for _ in range(8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert len(read(data, stacked=True)) == 3
    with pytest.raises(SourceError, match="too little for a depth of 12") as refused:
        read(data, depth=12)
    assert refused.value.reason == "unreadable_depth"


def test_a_jpeg_is_decoded_small_and_looks_like_the_whole_of_it_made_small():
    waves = np.sin(np.arange(1024) / 40)[:, None] * np.cos(np.arange(1024) / 60)
    large = Picture.fromarray((127 + 127 * waves).astype(np.uint8))
    (plane,) = read(saved(large, "JPEG", quality=95), size=64, limit=1 << 20)
    whole = np.asarray(large.resize((64, 64), Picture.Resampling.BILINEAR))
    assert np.abs(plane.astype(int) - whole).max() <= 3


JPEG = saved(Picture.fromarray(COLOURS).resize((32, 32)), "JPEG")
SIZE = JPEG.index(b"\xff\xc0") + 5
MEGABYTE = zlib.compress(bytes(10**6))
BOMB = zlib.compress(bytes(64 << 20))
TILED = {"t273": None, "t278": None, "t279": None, "t322": 60_000, "t323": 60_000, "t324": 8, "t325": 64}
TOO_LARGE = {
    "PNG of 60000²": png_of(60_000, 60_000, b"\0"),
    "PNG of 2^31 - 1": png_of(2**31 - 1, 2**31 - 1, b"\0"),
    "PNG of 8 × 200 million": png_of(8, 200_000_000, b"\0"),
    "JPEG of 65500²": JPEG[:SIZE] + struct.pack(">HH", 65_500, 65_500) + JPEG[SIZE + 4 :],
    "TIFF of 60000²": tiff(t256=60_000, t257=60_000),
    "TIFF whose tile is 60000²": tiff(**TILED),
    "TIFF whose packed tile is 60000²": tiff(**TILED, t259=8),
}
UNREADABLE = {
    "PNG of 0 × 0": png_of(0, 0, b"\0"),
    "zTXt that expands": png_of(8, 8, b"\0", chunk(b"zTXt", b"a\0\0" + BOMB)),
    "iTXt that expands": png_of(8, 8, b"\0", chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
    "iCCP that expands": png_of(8, 8, b"\0", chunk(b"iCCP", b"a\0\0" + BOMB)),
    "a hundred zTXt": png_of(8, 8, b"\0", *[chunk(b"zTXt", b"a\0\0" + MEGABYTE)] * 100),
    "PNG chunk of 2 GiB": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR" + bytes(20),
    "PNG without pixels": png_of(8, 8, b""),
    "TIFF strip beyond the end": tiff(t273=2**31),
    "TIFF packed strip beyond the end": tiff(t273=2**31, t259=8),
    "TIFF strip of 4 GiB": tiff(t259=5, t279=2**32 - 1),
    "TIFF strip of 4 billion rows": tiff(t259=8, t278=2**32 - 1),
    "TIFF of no rows": tiff(t259=8, t278=0),
    "TIFF of 65535 bands": tiff(t277=65_535),
    "TIFF of 64 bits": tiff(t258=64),
    "TIFF without a size": tiff(t256=None),
    "TIFF of a million strips": tiff(t273=[8] * 10**6),
    "TIFF table beyond the end": b"II*\0" + struct.pack("<I", 2**31) + bytes(64),
    "TIFF table of 65535 entries": tiff()[:72] + b"\xff\xff" + tiff()[74:],
    "BigTIFF table of 2^60 entries": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + bytes(64),
    "HTML": b"<!DOCTYPE html><html>404</html>",
    "nothing": b"",
    "zeros": bytes(1000),
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "GIF": saved(GRID, "GIF"),
    "BMP": saved(GRID, "BMP"),
    "WebP": saved(COLOURS, "WEBP"),
    "zip": b"PK\x03\x04" + bytes(60),
}
TRAPS = {name: (data, "too_many_pixels") for name, data in TOO_LARGE.items()}
TRAPS |= {name: (data, "unreadable_image") for name, data in UNREADABLE.items()}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_refused_by_name(trap, stacked):
    data, reason = TRAPS[trap]
    with pytest.raises(SourceError) as refused:
        read(data, stacked=stacked)
    assert refused.value.reason == reason
    assert str(refused.value).startswith("x: ") and " at 0x" not in str(refused.value)


def test_traps_take_no_memory():
    """150 MB for all of them in one process: what Pillow lets a PNG's texts have, and a buffer or two."""
    script = (
        "import importlib.util, resource, sys\n"
        "spec = importlib.util.spec_from_file_location('traps', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name, (data, reason) in module.TRAPS.items():\n"
        "    try: module.read(data); sys.exit(name)\n"
        "    except module.SourceError as error: assert error.reason == reason, (name, error)\n"
        "    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - taken\n"
        "    if more > 150_000: sys.exit(f'{name}: {more} kB')\n"
    )
    subprocess.run([sys.executable, "-c", script, __file__], check=True, cwd=ROOT, timeout=120)


WHOLE = {
    "png": saved(GRID, "PNG"),
    "png16": saved(GRID.astype(np.uint16) * 257, "PNG"),
    "jpeg": saved(Picture.fromarray(GRID), "JPEG"),
    "tiff": tiff(),
    "tiff float": saved(GRID.astype(np.float32) / 255, "TIFF"),
    "tiff lzw": saved(GRID, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_cut_at_any_byte_is_refused_or_was_whole_already(kind):
    data = WHOLE[kind]
    (plane,) = read(data)
    refused = 0
    for end in range(len(data)):
        try:
            (cut,) = read(data[:end])
        except SourceError as error:
            assert error.reason == "unreadable_image"
            refused += 1
        else:
            assert np.array_equal(cut, plane), end
    assert refused >= len(data) - 24  # what follows the last pixel: checksums, marks of an end


@pytest.mark.parametrize("kind", WHOLE)
def test_damaged_bytes_end_in_planes_or_a_refusal(kind):
    random_ = random.Random(kind)
    for _ in range(300):
        data = bytearray(WHOLE[kind])
        for _ in range(random_.randint(1, 4)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        try:
            assert all(plane.shape == (8, 8) for plane in read(bytes(data), stacked=True))
        except SourceError as error:
            assert error.reason in ("unreadable_image", "too_many_pixels", "out_of_range", "many_pages")


def test_equal_planes_are_equal_bytes_and_absent_channels_are_black():
    plane = Picture.fromarray(GRID)
    data = png({"er": plane, "protein": plane}, 8)
    assert data == png({"protein": plane, "er": plane}, 8)
    pixels = np.asarray(Picture.open(io.BytesIO(data)))
    assert [
        np.array_equal(pixels[..., i], expected) for i, expected in enumerate((GRID, 0 * GRID, 0 * GRID, GRID))
    ] == [True] * 4


@pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not beside this checkout")
def test_real_files_hold_what_their_makers_say():
    cells = sorted((PACK / "images" / "hpa_cells").rglob("*.tif"))[::7]
    for path in cells:
        (plane,) = read(path.read_bytes(), size=128)
        with Picture.open(path) as picture:
            assert np.array_equal(plane, np.rint(np.asarray(picture, dtype=np.float64) * 255))
    for path in sorted((PACK / "images" / "hpa_fields").glob("*.jpg")):
        data = path.read_bytes()
        (plane,) = read(data, size=128, limit=1 << 22)
        with Picture.open(path) as picture:
            brightest = Picture.fromarray(np.asarray(picture).max(axis=2))
        whole = np.asarray(brightest.resize((128, 128), Picture.Resampling.BILINEAR)).astype(int)
        assert np.abs(plane - whole).mean() < 1.5 and plane.max() > 100
        with pytest.raises(SourceError, match="truncated"):
            read(data[: len(data) // 2], size=128, limit=1 << 22)
