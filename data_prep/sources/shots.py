"""Which image file shows what: the rows of a manifest, or names of files, with what a sample table adds."""

import posixpath
import zlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from sys import intern

from data_prep.sources import hpa
from data_prep.sources.files import SourceError, Stream, rows
from data_prep.sources.hpa import Samples
from pretrain.config import Config


class ImageColumns(Config):
    """Columns of an image manifest. An empty name stands for the usual one, if the manifest has it; `path` it must.

    Usual are the names here, and `uniprot` for the accession. gene: an Ensembl id, a symbol or an Entrez id. cell:
    unique in the manifest, or together with plate, well and field; without cell and field, files are one image whose
    names differ in the channel alone.
    """

    path: str = ""
    accession: str = ""
    gene: str = ""
    antibody: str = ""
    cell_line: str = ""
    plate: str = ""
    well: str = ""
    field: str = ""
    cell: str = ""
    channel: str = ""


OWN = {ours: ours for ours in ImageColumns.model_fields} | {"accession": "uniprot"}


@dataclass(frozen=True, slots=True)
class Shot:
    """One file, and what is known of it. source, position: where that is said."""

    path: str
    channel: str
    cell: str
    accession: str
    gene: str
    antibody: str
    cell_line: str
    source: str
    position: str = ""

    @property
    def protein(self) -> str:
        """What it is an image of, in the source's own words. Files of one cell and one of these are one image."""
        return self.accession or self.gene or self.antibody


def listed(
    stream: Stream,
    columns: ImageColumns,
    folder: str,
    channels: Container[str],
    words: frozenset[str],
    samples: Samples,
    part: int,
    parts: int,
) -> Iterator[Shot]:
    """A manifest's rows of those cells that fall into one of several parts. Raises SourceError for a bad manifest.

    folder: what its paths are relative to. channels: those that may be named. words: as in `hpa.parse`.
    """
    theirs, optional = hpa.named(columns.model_dump(), OWN, {"path"})
    position = ""
    for position, row in rows(stream, theirs, optional):
        cell = _cell(row)
        told = None if cell else hpa.parse(row["path"], words)
        cell = cell or (told.cell if told else "")
        if zlib.crc32(cell.encode()) % parts != part:
            continue
        told = told or hpa.parse(row["path"], words)
        channel = row["channel"] or ("" if "" in channels else told.channel)
        if channel not in channels and not hpa.colours(channel):
            raise SourceError(
                "unknown_channel",
                f"{stream.name}, {position}: channel {channel!r}; map it in `channels`",
                position,
            )
        stained = samples.of(row["plate"] or told.plate, row["well"] or told.well, row["field"] or told.field)
        yield Shot(
            path=posixpath.join(folder, row["path"]),
            channel=intern(channel),
            cell=intern(cell),
            accession=intern(row["accession"] or ("" if row["gene"] else stained.accession)),
            gene=intern(row["gene"] or stained.gene),
            antibody=intern(row["antibody"] or stained.antibody or told.antibody),
            cell_line=intern(row["cell_line"] or stained.cell_line),
            source=stream.name,
            position=position,
        )
    if not position:
        raise SourceError("empty_manifest", f"{stream.name}: no line after its header; write it again, or leave it out")


def _cell(row: dict[str, str]) -> str:
    """An image's name from a manifest's columns, `<plate>_<well>_<field>_<cell>` of what there is; "" if unsaid."""
    plate, cell = row["plate"], row["cell"]
    if not (cell or row["field"]):
        return ""
    if plate and cell.startswith(f"{plate}_"):
        return cell  # whole already
    return "_".join(filter(None, (plate, row["well"], row["field"], cell)))


def named(paths: Iterable[str], words: frozenset[str], samples: Samples) -> Iterator[Shot]:
    """Files that say by their names what they are."""
    for path in paths:
        told = hpa.parse(path, words)
        stained = samples.of(told.plate, told.well, told.field)
        yield Shot(
            path=path,
            channel=told.channel,
            cell=told.cell,
            accession=stained.accession,
            gene=stained.gene,
            antibody=stained.antibody or told.antibody,
            cell_line=stained.cell_line,
            source=path,
        )
