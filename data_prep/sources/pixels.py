"""Bytes of an image file → planes of 8 bits, cut to a square and resized; planes → one PNG.

PNG, JPEG and TIFF alone are opened, by content, whatever the file is called. Its header is asked for its size before
a pixel is decoded. Of JPEG files that are several times too large, only as many frequencies are decoded as are needed
(the format allows 1/2, 1/4 and 1/8): at 2048² that is ten times faster and differs by 1 grey level of 255 on average.
Memory: the file, and 14 bytes for each of its pixels; 0.6 GiB for the largest.
"""

import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image as Picture
from PIL import ImageChops, UnidentifiedImageError

from data_prep.sources.files import SourceError
from pretrain.sample import CHANNELS

FORMATS = ("PNG", "JPEG", "TIFF")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's modes of one band with more than 8 bits
LAYERED = {"LA", "RGBA"}  # the last band is opacity, or in a file of bands a channel
READ_AS = {"1": "L", "LA": "L"}  # what other modes are read as; those not named (palette, ink) as RGB
SPARE = 2  # times the wanted size that a JPEG is decoded to at least, so that the resizing decides what it looks like
ROWS = 64  # of a plane, scaled at once
LEVEL = 6  # of PNG compression: 9 takes 1.4 times as long, and saves 0.5 %
BITS_PER_SAMPLE, TILE_WIDTH, TILE_LENGTH, SUBFILE = 258, 322, 323, 254  # TIFF 6.0's tags
THUMBNAIL = 1  # bit of SUBFILE: a smaller version of another page
PAGES = 3 * len(CHANNELS)  # of a TIFF that are looked at, thumbnails and all
MAX_VALUES = 1 << 18  # of a TIFF's tag; 32 million pixels in tiles of 16 × 16 have half as many offsets
TEXT = {1, 2, 6, 7}  # types of a TIFF's tags that are bytes, whatever their number
TIFF = {b"II*\0": ("<I", "<H", "<HHI4x"), b"MM\0*": (">I", ">H", ">HHI4x")}  # an offset, a count, an entry
TIFF |= {b"II+\0": ("<Q", "<Q", "<HHQ8x"), b"MM\0+": (">Q", ">Q", ">HHQ8x")}  # BigTIFF


def planes(path: str, data: bytes, size: int, depth: int, limit: int, stacked: bool) -> list[Picture.Image]:
    """The file's planes, each `L` of size × size.

    stacked: its bands or pages are channels, up to four, opacity among them. Otherwise it is one channel, and of false
    colours the brightest band counts, whichever has the signal. limit: pixels that a file may have.
    Raises SourceError, with `path` in its words, for what is not such an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on tags that nobody asked for
            warnings.simplefilter("error", Picture.DecompressionBombWarning)
            if data[:4] in TIFF:
                _count(path, data)
            return _planes(path, data, size, depth, limit, stacked)
    except SourceError:
        raise
    except (Picture.DecompressionBombWarning, Picture.DecompressionBombError) as error:
        raise SourceError(
            "too_many_pixels", f"{path}: {str(error).partition(',')[0]}; max_pixels is {limit}"
        ) from error
    except UnidentifiedImageError as error:  # its own message holds a memory address, another in each process
        raise SourceError(
            "unreadable_image", f"{path}: not a PNG, JPEG or TIFF that can be read; it begins with {data[:12]!r}"
        ) from error
    except Exception as error:  # a damaged file makes Pillow raise OSError, SyntaxError, zlib.error, struct.error, ...
        raise SourceError("unreadable_image", f"{path}: not a readable image: {error}") from error


def _planes(path: str, data: bytes, size: int, depth: int, limit: int, stacked: bool) -> list[Picture.Image]:
    with Picture.open(io.BytesIO(data), formats=FORMATS) as picture:
        found, number = list[Picture.Image](), 0
        for number, page in enumerate(_pages(picture)):
            if number and not stacked:
                raise SourceError("many_pages", f"{path}: several pages in a file of one channel; give one file each")
            if number >= len(CHANNELS):
                raise SourceError("many_pages", f"{path}: over {len(CHANNELS)} pages; a page is a channel")
            _measure(path, page, limit)
            if page.format == "JPEG":
                page.draft(None, (SPARE * size, SPARE * size))
            elif depth != 16 and page.mode in MODES.values() and _bits(page, data) > 8:
                problem = f"{path}: 16-bit bands come without their lower 8 bits, too little for a depth of {depth}"
                raise SourceError("unreadable_depth", f"{problem}; give one file for each channel")
            found += [_fit(band, size) for band in _bands(path, page, depth, stacked)]
    if number and len(found) != number + 1:
        raise SourceError("many_pages", f"{path}: {number + 1} pages have {len(found)} bands; give one of each")
    return found[: len(CHANNELS)]


def _pages(picture: Picture.Image) -> Iterator[Picture.Image]:
    """A TIFF's pages without thumbnails; the picture itself of other formats."""
    yield picture
    if picture.format != "TIFF":
        return
    for number in range(1, PAGES):
        try:
            picture.seek(number)
        except EOFError:
            return
        if not int(_tag(picture, SUBFILE)) & THUMBNAIL:
            yield picture


def _count(path: str, data: bytes) -> None:
    """Refuse a TIFF whose tags claim so many numbers that listing them takes a hundred times the file's size."""
    offset, number, entry = TIFF[data[:4]]
    at, seen = struct.calcsize(offset), set[int]()
    for _ in range(PAGES + 1):
        (at,) = struct.unpack_from(offset, data, at)
        if not at or at in seen:
            return
        seen.add(at)
        (count,) = struct.unpack_from(number, data, at)
        at += struct.calcsize(number)
        for _ in range(count):
            tag, kind, values = struct.unpack_from(entry, data, at)
            if values > MAX_VALUES and kind not in TEXT:
                raise SourceError(
                    "unreadable_image", f"{path}: {values} values of TIFF tag {tag}; no image has as many"
                )
            at += struct.calcsize(entry)


def _tag(picture: Picture.Image, tag: int) -> int:
    """A TIFF tag's largest value, 0 if it is not there."""
    value = picture.tag_v2.get(tag, 0)  # type: ignore[attr-defined]  TIFF files have it
    return max(value, default=0) if isinstance(value, tuple) else value


def _measure(path: str, picture: Picture.Image, limit: int) -> None:
    """Refuse what is too large to decode, before that; a tile may lie about its size on its own."""
    width, height = picture.size
    if width * height > limit:
        raise SourceError("too_many_pixels", f"{path}: {width} × {height} pixels; max_pixels is {limit}")
    if picture.format == "TIFF" and (tile := _tag(picture, TILE_WIDTH) * _tag(picture, TILE_LENGTH)) > limit:
        raise SourceError("too_many_pixels", f"{path}: tiles of {tile} pixels; max_pixels is {limit}")


def _bits(picture: Picture.Image, data: bytes) -> int:
    """Bits of a band as stored; Pillow gives 8 of several bands' 16."""
    return _tag(picture, BITS_PER_SAMPLE) if picture.format == "TIFF" else data[24]  # of a PNG's IHDR


def _bands(path: str, picture: Picture.Image, depth: int, stacked: bool) -> list[Picture.Image]:
    """`L` pictures: one, or with `stacked` one for each band."""
    if picture.mode in DEEP:
        return [_scaled(path, np.array(picture), depth)]
    if picture.mode not in ("L", "RGB", *(LAYERED if stacked else ())):
        picture = picture.convert(READ_AS.get(picture.mode, "RGB"))
    bands = list(picture.split())
    if stacked or len(bands) == 1:
        return bands
    brightest = bands[0]
    for band in bands[1:]:
        brightest = ImageChops.lighter(brightest, band)
    return [brightest]


def _scaled(path: str, pixels: np.ndarray, depth: int) -> Picture.Image:
    """Integers from 0 to 2^depth - 1, or floats from 0 to 1, as 8 bits. Raises SourceError for what lies beyond."""
    real = pixels.dtype.kind == "f"
    top, slack = (1.0, 0.5) if real else (float(2**depth - 1), 0.0)
    if real:
        pixels[np.isnan(pixels)] = 0
    low, high = float(pixels.min()), float(pixels.max())
    if high > top + slack or low < -slack:
        wanted = "floats lie between 0 and 1" if real else f"depth = {depth} ends at {top:.0f}"
        raise SourceError("out_of_range", f"{path}: values from {low:g} to {high:g}; {wanted}")
    scaled = np.empty(pixels.shape, dtype=np.uint8)
    for row in range(0, len(pixels), ROWS):  # in pieces: float64 of all of it would be the largest array by far
        scaled[row : row + ROWS] = np.rint(pixels[row : row + ROWS].astype(np.float64) * (255 / top)).clip(0, 255)
    return Picture.fromarray(scaled)


def _fit(plane: Picture.Image, size: int) -> Picture.Image:
    """The central square, at size × size, bilinear and antialiased."""
    width, height = plane.size
    side = min(width, height)
    if width != height:
        left, top = (width - side) // 2, (height - side) // 2
        plane = plane.crop((left, top, left + side, top + side))
    return plane if side == size else plane.resize((size, size), Picture.Resampling.BILINEAR)


def png(found: dict[str, Picture.Image], size: int) -> bytes:
    """One PNG of the planes by channel, in the order of CHANNELS; always the same bytes for the same planes."""
    count = max(CHANNELS.index(channel) for channel in found) + 1
    bands = [found.get(channel) or Picture.new("L", (size, size)) for channel in CHANNELS[:count]]
    picture = bands[0] if count == 1 else Picture.merge(MODES[count], bands)
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=LEVEL)
    return out.getvalue()
