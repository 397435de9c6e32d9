"""Microscope images: the channel files of one field or cell become one PNG with up to four bands.

Band i is `pretrain.sample.CHANNELS[i]`; up to the last channel that is there, an absent one is a black band, and
`present` says which are real. Two bands are a PNG of grey and alpha, four one of RGBA: containers, no transparency is
meant, so bands are resized one by one (a picture library would weigh colours by alpha).

What a file shows is said by a manifest, by the file's name, or by a table of samples, in this order. The protein is the
accession that they give, or that of the gene that they name. An image of an unknown protein is in the data set too:
all of one gene, or else of one antibody, are one unpaired sample; of those that name neither, each is one.
"""

import os
import posixpath
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from hashlib import blake2b
from itertools import groupby
from typing import Literal

import pydantic
from PIL import Image as Picture

from data_prep.records import FileSeen, ImageRecord, Items, Rejection
from data_prep.sources import hpa, pixels
from data_prep.sources.files import WHOLE_FILE, Files, Slice, SourceError, Stream, find, packed, stopping
from data_prep.sources.genes import GeneMap, GeneTable, unversioned
from data_prep.sources.hpa import SampleColumns, Samples
from data_prep.sources.shots import Guide, ImageColumns, Shot, listed, named
from pretrain.places import Place
from pretrain.sample import CHANNELS, MAX_KEY, Image

ALL = "bands"  # the channel of a file that is itself a multi-band image
Channel = Literal["protein", "nucleus", "microtubules", "er", "bands", ""]
USUAL: dict[str, Channel] = {
    "green": "protein",
    "blue": "nucleus",
    "red": "microtubules",
    "yellow": "er",
    "bands": "bands",
}
MAX_FILE = 128 << 20  # bytes of an image file
SHARE = 4 << 20  # bytes of a manifest's text per task, some 30,000 rows
MOST = 32  # tasks per manifest, if not more are wanted: each reads all of it (3 % of its time) and keeps its own rows
MOST_ROWS = 1_000_000  # of a manifest in one task, 0.5 GB
TEXT = 8  # times that a gzipped manifest expands, about
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


class Images(Files):
    """`kind = "images"`; `files` are manifests (TSV or CSV, perhaps gzipped), or image files named as in `hpa`.

    channels: the manifest's or the file name's channel → one of CHANNELS, `"bands"` for a file whose bands or pages are
    the leading CHANNELS, or `""` for a stain that none stands for, which is left out and counted. Default: the HPA's.
    size: pixels of a side; images are cut to their central square and resized (bilinear, antialiased).
    depth: bits that 16-bit files really use; they are scaled by 255 / (2^depth - 1). Floats are scaled from 0–1.
    max_pixels: of a file; a larger one is not decoded. paths: what the manifest's paths are relative to.
    metadata: a table of samples by plate and well, for what manifest and names do not say. genes: a table of genes'
    accessions. Both are relative to the configuration's own `root`.
    parts: tasks per manifest at least; slice: image files per task, where `files` names them.
    A damaged manifest or table always stops. Memory of a task: 500 bytes for each of its rows of the manifest (32 tasks
    have ten million in 160 MB), the tables of genes and samples, and one file's pixels (see `pixels`).
    """

    kind: Literal["images"] = "images"
    name: str = "image"
    columns: ImageColumns = ImageColumns()
    metadata: str | None = None
    metadata_columns: SampleColumns = SampleColumns()
    genes: GeneTable | None = None
    channels: dict[str, Channel] = pydantic.Field(default_factory=lambda: dict(USUAL))
    size: int = pydantic.Field(default=128, ge=1, le=4096)
    depth: int = pydantic.Field(default=16, ge=8, le=31)
    max_pixels: int = pydantic.Field(default=1 << 25, ge=1)
    parts: int = pydantic.Field(default=4, ge=1)
    slice: int = pydantic.Field(default=512, ge=1)
    paths: Literal["manifest", "root"] = "manifest"
    on_error: Literal["stop", "reject"] = "reject"

    @property
    def words(self) -> frozenset[str]:
        return frozenset(self.channels) - {""}

    def slices(self, root: Place) -> list[Slice]:
        """Of a manifest, equal shares of its bytes, each of which stands for as many of its cells. Of image files, some
        that are next to each other by cell, so that no image is in two tasks."""
        found: list[Slice] = []
        files: list[tuple[str, str]] = []
        for name in find(root, self.patterns):
            if hpa.is_image(name):
                files.append((hpa.parse(name, self.words).cell, name))
            else:
                size, step = self._share(root, name)
                found += [Slice((name,), at, min(at + step, size)) for at in range(0, size, step)]
        if files and self.genes and not self.metadata:
            raise ValueError(
                f"{files[0][1]}: a file's name says plate, well and field, not the gene that `genes` could look "
                "up; give `metadata`, a table of samples, or a manifest as `files`"
            )
        some: list[str] = []
        for _, group in groupby(sorted(files), key=lambda each: each[0]):
            some += [name for _, name in group]
            if len(some) >= self.slice:
                found.append(Slice(tuple(some)))
                some = []
        return found + ([Slice(tuple(some))] if some else [])

    def _share(self, root: Place, name: str) -> tuple[int, int]:
        """A manifest's bytes, and how many of them stand for one task."""
        size = max(root.stat(name).bytes, 1)
        text = size * TEXT if packed(root, name) else size
        parts = max(self.parts, min(MOST, -(-text // SHARE)))
        return size, -(-size // parts)

    def companions(self, root: Place, home: Place) -> list[tuple[Place, str]]:
        names = [self.metadata] if self.metadata else []
        if self.genes:
            prefer = (self.genes.prefer,) if isinstance(self.genes.prefer, str) else self.genes.prefer
            names += [self.genes.files, *(name for pattern in prefer if pattern for name in home.find(pattern))]
        return [(home, name) for name in names]

    def read(self, root: Place, part: Slice, home: Place) -> Items:
        genes = GeneMap.read(home, self.genes) if self.genes else GeneMap()
        samples = Samples.read(home, self.metadata, self.metadata_columns) if self.metadata else Samples()
        if part.begin == 0:
            yield from (*genes.seen, *samples.seen)
        guide, met = Guide(self.columns, self.channels, self.words, samples), set[str]()
        images: defaultdict[tuple[str, str], list[Shot]] = defaultdict(list)
        if part.end is None:
            names = yield from self._nameable(part.names)
            for shot in named(names, guide, met):
                images[shot.cell, shot.protein].append(shot)
            yield from _ambiguous(met, genes, lambda _: True)
        else:
            with Stream.open(root, part.names[0]) as stream:
                folder = posixpath.dirname(stream.name) if self.paths == "manifest" else ""
                mine = self._mine(root, part)
                for number, shot in enumerate(listed(stream, guide, folder, mine, met)):
                    images[shot.cell, shot.protein].append(shot)
                    if max(number, len(met)) >= MOST_ROWS:
                        problem = f"{stream.name}: over {MOST_ROWS} rows for one task"
                        raise SourceError("too_large", f"{problem}; give the source more `parts`")
                if part.begin == 0:
                    yield stream.seen()
            yield from _ambiguous(met, genes, mine)
        for shots in images.values():
            first = shots[0]
            accession = first.accession or genes.accession(first.gene)
            name = unversioned(first.gene) or first.antibody or first.cell
            yield from self._image(root, accession or unpaired(self.name, name), shots)

    def _mine(self, root: Place, part: Slice) -> Callable[[str], bool]:
        """Whether a name falls to a slice of a manifest."""
        size, step = self._share(root, part.names[0])
        number, count = part.begin // step, -(-size // step)
        return lambda name: zlib.crc32(name.encode()) % count == number

    def _nameable(self, paths: Iterable[str]) -> Generator[Rejection, None, list[str]]:
        """Rejects the files whose names do not tell a channel; returns the others."""
        names: list[str] = []
        for path in paths:
            channel = hpa.parse(path, self.words).channel
            if (channel or "" in self.channels) and path.isprintable():
                names.append(path)
                continue
            problem = f"{path!a}: the name does not end in one of the `channels` ({', '.join(sorted(self.words))})"
            if self.on_error == "stop":
                raise stopping(SourceError("unknown_name", problem))
            yield Rejection("unknown_name", ascii(posixpath.basename(path)), ascii(path), problem, WHOLE_FILE)
        return names

    def _image(self, root: Place, key: str, shots: list[Shot]) -> Iterator[ImageRecord | Rejection | FileSeen]:
        """The image of one cell's files. If one of them is damaged, there is none."""
        planes: dict[str, Picture.Image] = {}
        used: set[tuple[str, str]] = set()
        first = at = shots[0]
        try:
            for at in sorted(shots, key=lambda shot: shot.channel not in self.channels):
                bands = self._bands(at.channel, planes)
                if problem := self._superfluous(at, bands, used):
                    told = f"cell {at.cell}: {at.path}"
                    yield Rejection(problem, key, at.source, told, at.position or WHOLE_FILE)
                    continue
                used.add((at.path, at.channel))
                data, seen = load(root, at.path)
                yield seen
                for channel, plane in self._planes(at, data, bands).items():
                    if channel in planes:
                        raise SourceError("duplicate_channel", f"{at.path} is its second file of channel {channel}")
                    planes[channel] = plane
            if planes:
                present = tuple(channel for channel in CHANNELS if channel in planes)
                names = {
                    "antibody": next((shot.antibody for shot in shots if shot.antibody), ""),
                    "gene": unversioned(next((shot.gene for shot in shots if shot.gene), "")),
                    "cell_line": next((shot.cell_line for shot in shots if shot.cell_line), ""),
                }
                image = Image(f"{self.name}_{first.cell}", pixels.png(planes, self.size), present, **names)
                yield ImageRecord(key, first.source, image, first.position)
        except SourceError as error:
            reason = error.reason.replace("unreadable_file", "missing_image")
            if self.on_error == "stop":
                where = ", ".join(filter(None, (at.source, at.position)))
                raise stopping(SourceError(reason, f"{where}, cell {at.cell}: {error}", at.position)) from error
            yield Rejection(reason, key, at.source, f"cell {at.cell}: {error}", at.position or WHOLE_FILE)

    def _bands(self, name: str, there: Container[str]) -> dict[str, int]:
        """Our channels that a file of a channel has, and the band of each. Of several colours, those not yet there."""
        if name not in self.channels:
            ours = {self.channels.get(colour, ""): band for colour, band in hpa.colours(name).items()}
            return {channel: band for channel, band in ours.items() if channel and channel not in there}
        channel = self.channels[name]
        if channel == ALL:
            return {each: band for band, each in enumerate(CHANNELS)}
        return {channel: 0} if channel else {}

    def _superfluous(self, at: Shot, bands: dict[str, int], used: set[tuple[str, str]]) -> str:
        """Why a file is passed over though nothing is wrong with it, or ""."""
        if (at.path, at.channel) in used:
            return "duplicate_row"
        if bands:
            return ""
        if at.channel in self.channels:
            return "unmapped_channel"
        return "redundant_file" if hpa.colours(at.channel) else "mixed_colours"

    def _planes(self, at: Shot, data: bytes, bands: dict[str, int]) -> dict[str, Picture.Image]:
        several = at.channel not in self.channels
        stacked = several or self.channels[at.channel] == ALL
        planes = pixels.planes(at.path, data, self.size, self.depth, self.max_pixels, stacked)
        if several and len(planes) != len(hpa.BANDS):
            raise SourceError(
                "unreadable_image", f"{at.path}: {len(planes)} bands, and its name tells of three colours"
            )
        return {channel: planes[band] for channel, band in bands.items() if band < len(planes)}


def load(root: Place, path: str) -> tuple[bytes, FileSeen]:
    """An image file's bytes, unpacked if it is gzip. Raises SourceError for what is outside the root, or no file."""
    inside = posixpath.normpath(path)
    if inside.startswith(("/", "../")) or inside in ("..", ".") or "\0" in path:
        raise SourceError("unsafe_path", f"{path!r} does not lie in the root; give a path below it")
    if root.local is not None:
        real, base = os.path.realpath(root.local / inside), os.path.realpath(root.local)
        if os.path.commonpath((real, base)) != base:
            raise SourceError(
                "unsafe_path", f"{path!r} is a link out of the root; make the folder that it leads to a root"
            )
        if os.path.exists(real) and not os.path.isfile(real):  # a pipe would never end
            raise SourceError("missing_image", f"{path!r} is no file")
    with Stream.open(root, inside) as stream:
        return stream.whole(MAX_FILE), stream.seen()


def unpaired(source: str, name: str) -> str:
    """The key of what has no accession: safe, unique and never too long."""
    whole = f"{source}_{name}"
    key = UNSAFE.sub("-", whole)
    if key == whole and len(key) <= MAX_KEY:
        return key
    digest = blake2b(whole.encode(), digest_size=4).hexdigest()
    return f"{key[: MAX_KEY - len(digest) - 1]}-{digest}"


def _ambiguous(names: set[str], genes: GeneMap, mine: Callable[[str], bool]) -> Iterator[Rejection]:
    """The accessions that a gene might have led to. Each gene is one task's to tell, where all tasks know it."""
    for best, *others in sorted({known for name in names if len(known := genes.accessions(name)) > 1}):
        if mine(best):
            named = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
            problem = f"of {len(others) + 1} accessions {best}, not {named}"
            yield Rejection("ambiguous_gene", best, genes.seen[0].path, problem, WHOLE_FILE)
