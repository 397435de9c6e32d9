"""Which image file shows what: the rows of a manifest, or names of files, with what a sample table adds."""

import posixpath
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from sys import intern

from data_prep.sources import hpa
from data_prep.sources.files import SourceError, Stream, rows
from data_prep.sources.hpa import Samples, Stained
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


@dataclass(frozen=True)
class Guide:
    """How to read what names files. channels: those that may be named. samples: of what plate and well are."""

    columns: ImageColumns
    channels: Container[str]
    words: frozenset[str]
    samples: Samples


def listed(stream: Stream, guide: Guide, folder: str, mine: Callable[[str], bool], genes: set[str]) -> Iterator[Shot]:
    """A manifest's rows of those cells that are `mine`. Raises SourceError for a bad manifest.

    folder: what its paths are relative to. genes: to which the names are added that stand for a protein in any row.
    """
    theirs, optional = hpa.named(guide.columns.model_dump(), OWN, {"path"})
    channels, words, samples, position = guide.channels, guide.words, guide.samples, ""
    for position, row in rows(stream, theirs, optional):
        cell = _cell(row)
        told = hpa.parse(row["path"], words) if samples or not cell else None
        cell = cell or (told.cell if told else "")
        of = (row["plate"] or told.plate, row["well"] or told.well, row["field"] or told.field) if told else ()
        stained = samples.of(*of) if of else Stained()
        accession = row["accession"] or ("" if row["gene"] else stained.accession)
        gene = row["gene"] or stained.gene
        if gene and not accession:
            genes.add(gene)
        if not mine(cell):
            continue
        told = told or hpa.parse(row["path"], words)
        channel = row["channel"] or ("" if "" in channels else told.channel)
        if channel not in channels and not hpa.colours(channel):
            raise SourceError(
                "unknown_channel",
                f"{stream.name}, {position}: channel {channel!r}; map it in `channels`",
                position,
            )
        yield Shot(
            path=posixpath.join(folder, row["path"]),
            channel=intern(channel),
            cell=intern(cell),
            accession=intern(accession),
            gene=intern(gene),
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


def named(paths: Iterable[str], guide: Guide, genes: set[str]) -> Iterator[Shot]:
    """Files that say by their names what they are."""
    for path in paths:
        told = hpa.parse(path, guide.words)
        stained = guide.samples.of(told.plate, told.well, told.field)
        if stained.gene and not stained.accession:
            genes.add(stained.gene)
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
