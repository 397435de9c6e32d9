"""Microscope images by manifest: the channel files of one cell become one PNG with up to four bands.

Band i is `pretrain.sample.CHANNELS[i]`; up to the last channel that is there, an absent one is a black band, and
`present` says which are real. Two bands are a PNG of grey and alpha, four one of RGBA: containers, no transparency is
meant, so bands are resized one by one (a picture library would weigh colours by alpha).
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from data_prep.places import Place
from data_prep.records import FileSeen, ImageRecord, Items, Rejection
from data_prep.sources.files import Files, Slice, SourceError, Stream, find, load, rows
from data_prep.spill import partition
from pretrain.config import Config
from pretrain.sample import CHANNELS, Image

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
PLAIN = {"L", "RGB", "I", "F", "I;16", "I;16B", "I;16L"}  # Pillow's modes whose bands are measured values
LAYERED = {"LA", "RGBA"}  # the last band is opacity, or in a `bands` file a channel
READ_AS = {"1": "L", "LA": "L", "RGBA": "RGB"}  # what other modes are read as; those not named (palette, ink) as RGB
ALL = "bands"  # the channel of a file that is itself a multi-band image
Channel = Literal["protein", "nucleus", "microtubules", "er", "bands", ""]
USUAL: dict[str, Channel] = {
    "green": "protein",
    "blue": "nucleus",
    "red": "microtubules",
    "yellow": "er",
    "bands": "bands",
}


class ImageColumns(Config):
    """Columns of an image manifest. `path` is relative to `paths`; an empty accession means: unpaired."""

    path: str = "path"
    accession: str = "uniprot"
    cell: str = "cell"
    channel: str = "channel"


class Images(Files):
    """`kind = "images"`; `files` are manifests, TSV or CSV. A damaged manifest always stops.

    channels: the manifest's channel name → one of CHANNELS, `"bands"` for a ready-made file whose bands are the leading
    CHANNELS, or `""` for a stain that none stands for, which is left out and counted. Default: names of the HPA.
    size: pixels of a side; images are cut to their central square and resized (bilinear, antialiased).
    depth: bits that 16-bit files really use; they are scaled by 255 / (2^depth - 1). Floats are scaled from 0–1.
    parts: into how many tasks one manifest is cut, by cell. paths: what the manifest's paths are relative to.
    """

    kind: Literal["images"] = "images"
    name: str = "image"
    columns: ImageColumns = ImageColumns()
    channels: dict[str, Channel] = pydantic.Field(default_factory=lambda: dict(USUAL))
    size: int = 128
    depth: int = 16
    parts: int = 4
    paths: Literal["manifest", "root"] = "manifest"
    on_error: Literal["stop", "reject"] = "reject"

    def slices(self, root: Place) -> list[Slice]:
        """Of a manifest, each slice has the cells of one part."""
        return [Slice((name,), part, part + 1) for name in find(root, self.patterns) for part in range(self.parts)]

    def read(self, root: Place, part: Slice, home: Place) -> Items:
        name = part.names[0]
        stream = Stream.open(root, name)
        cells = self._cells(name, stream)
        if part.begin == 0:
            yield stream.seen()
        for (key, cell), files in cells.items():
            if partition(cell, self.parts) == part.begin:
                yield from self._cell(root, name, key, cell, files)

    def _cells(self, name: str, stream: Stream) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """(key, cell) → its (channel, path) rows, as they stand in the manifest."""
        cells: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for line, row in rows(stream, self.columns.model_dump()):
            if row["channel"] not in self.channels:
                raise SourceError(
                    "unknown_channel",
                    f"{name}, {line}: channel {row['channel']!r}; map it in `channels`",
                )
            key = row["accession"] or f"{self.name}_{row['cell']}"
            cells.setdefault((key, row["cell"]), []).append((self.channels[row["channel"]], row["path"]))
        return cells

    def _cell(
        self, root: Place, name: str, key: str, cell: str, files: list[tuple[str, str]]
    ) -> Iterator[ImageRecord | Rejection | FileSeen]:
        planes: dict[str, np.ndarray] = {}
        try:
            for channel, path in files:
                if not channel:
                    continue
                place = path if self.paths == "root" else (Path(name).parent / path).as_posix()
                data, seen = load(root, place)
                bands = _bands(path, data, self.depth, alpha=channel == ALL)
                # A stain saved in false colours has its signal in whichever band has it.
                found = dict(zip(CHANNELS, bands, strict=False)) if channel == ALL else {channel: np.max(bands, axis=0)}
                if twice := sorted(planes.keys() & found.keys()):
                    raise SourceError("duplicate_channel", f"{path} is its second file of channel {', '.join(twice)}")
                planes |= found
                yield seen
            if planes:
                present = tuple(channel for channel in CHANNELS if channel in planes)
                yield ImageRecord(key, name, Image(f"{self.name}_{cell}", _png(planes, self.size), present))
        except SourceError as error:
            if self.on_error == "stop":
                raise
            yield Rejection(
                error.reason.replace("unreadable_file", "missing_image"), key, name, f"cell {cell}: {error}"
            )
        for channel, path in files:
            if not channel:
                yield Rejection("unmapped_channel", key, name, f"cell {cell}: {path}")


def _bands(path: str, data: bytes, depth: int, alpha: bool) -> list[np.ndarray]:
    """The file's bands, each uint8 [H, W]; a last one of opacity only if `alpha` says that it means something here.

    Raises SourceError for what is not an image.
    """
    try:
        with Picture.open(io.BytesIO(data)) as picture:
            kept = PLAIN | LAYERED if alpha else PLAIN
            pixels = np.asarray(picture if picture.mode in kept else picture.convert(READ_AS.get(picture.mode, "RGB")))
    except UnidentifiedImageError as error:  # its own message holds a memory address, another in each process
        raise SourceError("unreadable_image", f"{path}: not an image of a known format") from error
    except Exception as error:  # a damaged file makes Pillow raise OSError, SyntaxError, zlib.error, struct.error, ...
        raise SourceError("unreadable_image", f"{path}: not a readable image: {error}") from error
    if pixels.dtype != np.uint8:
        top = 1.0 if pixels.dtype.kind == "f" else float(2**depth - 1)
        pixels = np.rint(np.nan_to_num(pixels).astype(np.float64) * (255 / top)).clip(0, 255).astype(np.uint8)
    return [pixels] if pixels.ndim == 2 else [pixels[..., band] for band in range(min(pixels.shape[2], len(CHANNELS)))]


def _png(planes: dict[str, np.ndarray], size: int) -> bytes:
    """One PNG of the planes, in the order of CHANNELS; always the same bytes for the same planes."""
    count = max(CHANNELS.index(channel) for channel in planes) + 1
    bands = [
        _fit(planes[channel], size) if channel in planes else Picture.new("L", (size, size))
        for channel in CHANNELS[:count]
    ]
    picture = bands[0] if count == 1 else Picture.merge(MODES[count], bands)
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=9)
    return out.getvalue()


def _fit(plane: np.ndarray, size: int) -> Picture.Image:
    """The central square, at `size` × `size`."""
    height, width = plane.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = Picture.fromarray(np.ascontiguousarray(plane[top : top + side, left : left + side]))
    return picture if side == size else picture.resize((size, size), Picture.Resampling.BILINEAR)
