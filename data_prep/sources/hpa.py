"""How the Human Protein Atlas names its images and tells what is on them; other makers' names as far as they agree.

`<plate>_<well>_<field>_<colour>.jpg`, with a cell's number after the field where cells were cut out. Several colours
(`495_A11_1_blue_red_green.jpg`, as on its web site) are one RGB picture with a stain in each band; yellow has no band
there, so a picture with it cannot be taken apart. The site keeps files in folders named by antibody
(`36985/495_A11_1_green.jpg`), its archive in folders named by plate.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from data_prep.records import FileSeen
from data_prep.sources.files import SourceError, Stream, find, rows
from pretrain.config import Config
from pretrain.places import Place

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
BANDS = {"red": 0, "green": 1, "blue": 2}  # of a picture of several colours
FIELD = re.compile(r"(?P<plate>\d+)_(?P<well>[A-P]\d{1,2})_(?P<field>\d+)(?:_(?P<cell>\d+))?")


@dataclass(frozen=True)
class Name:
    """What a file's name says. cell: what all files of one image share. channel: a colour, several, or nothing."""

    cell: str
    channel: str
    plate: str = ""
    well: str = ""
    field: str = ""
    antibody: str = ""


def is_image(path: str) -> bool:
    return path.lower().removesuffix(".gz").endswith(ENDINGS)


def parse(path: str, channels: frozenset[str]) -> Name:
    """A file's name taken apart. channels: names that may stand at its end.

    A name that is not the Atlas's is its whole path without channel and ending: two folders may number alike.
    """
    folder, _, last = path.rpartition("/")
    stem = last.removesuffix(".gz").rpartition(".")[0]
    words = stem.split("_")
    end = len(words)
    while end > 1 and words[end - 1] in channels:
        end -= 1
    if known := FIELD.fullmatch("_".join(words[:end])):
        antibody = PurePosixPath(folder).name
        told = antibody if antibody.isdecimal() and antibody != known["plate"] else ""
        return Name(known[0], "_".join(words[end:]), known["plate"], known["well"], known["field"], told)
    end = max(end, len(words) - 1)  # elsewhere a second colour belongs to the name
    return Name(f"{folder}/{'_'.join(words[:end])}".lstrip("/"), "_".join(words[end:]))


def colours(channel: str) -> dict[str, int]:
    """The colours of a picture of several, and the band that each has in it; empty for what is none."""
    words = channel.split("_")
    split = len(words) > 1 and len(set(words)) == len(words) and all(word in BANDS for word in words)
    return {word: BANDS[word] for word in words} if split else {}


class SampleColumns(Config):
    """Columns of a sample table. An empty name stands for the Atlas's own, if the table has it.

    These are: if_plate_id, position, sample, antibody, ensembl_ids; `cell_line` and `uniprot` for the last two.
    """

    plate: str = ""
    well: str = ""
    field: str = ""
    antibody: str = ""
    gene: str = ""
    cell_line: str = ""
    accession: str = ""


MOST = 1_000_000  # rows of sample tables that are remembered, 0.3 GB; the Atlas has some 100,000
OWN = {
    "plate": "if_plate_id",
    "well": "position",
    "field": "sample",
    "antibody": "antibody",
    "gene": "ensembl_ids",
    "cell_line": "cell_line",
    "accession": "uniprot",
}


@dataclass(frozen=True, slots=True)
class Stained:
    """What a well's antibody stains, as the table says; each may be empty."""

    antibody: str = ""
    gene: str = ""
    cell_line: str = ""
    accession: str = ""


class Samples:
    """What is in which well and field: about 300 bytes a row, read once per process."""

    def __init__(self) -> None:
        self.seen: tuple[FileSeen, ...] = ()
        self._fields: dict[tuple[str, str, str], Stained] = {}
        self._wells: dict[tuple[str, str], Stained | None] = {}

    @staticmethod
    def read(place: Place, pattern: str, columns: SampleColumns) -> "Samples":
        """Raises ValueError for a table that is not there, SourceError for one without plate and well."""
        versions = tuple(place.stat(name).version for name in find(place, (pattern,)))
        return _read(place, pattern, tuple(columns.model_dump().items()), versions)

    def __bool__(self) -> bool:
        return bool(self._wells)

    def of(self, plate: str, well: str, field: str) -> Stained:
        """A field's own row; else what all rows of its well agree on; else nothing."""
        return self._fields.get((plate, well, field)) or self._wells.get((plate, well)) or Stained()


@lru_cache(maxsize=4)
def _read(place: Place, pattern: str, columns: tuple[tuple[str, str], ...], _versions: tuple[str, ...]) -> Samples:
    samples, seen, same = Samples(), [], dict[Stained, Stained]()
    names, optional = named(dict(columns), OWN, {"plate", "well"})
    for name in find(place, (pattern,)):
        with Stream.open(place, name) as stream:
            for _, row in rows(stream, names, optional, setting="metadata_columns"):
                stained = Stained(row["antibody"], row["gene"], row["cell_line"], row["accession"])
                stained = same.setdefault(stained, stained)
                well = row["plate"], row["well"]
                samples._fields[(*well, row["field"])] = stained
                if samples._wells.setdefault(well, stained) is not stained:
                    samples._wells[well] = None
                if len(samples._fields) > MOST:
                    raise SourceError("too_large", f"{name}: over {MOST} rows; take those of your plates")
            seen.append(stream.seen())
    if not samples:
        raise SourceError("empty_table", f"{pattern}: no line after its header; fetch it again, or leave it out")
    samples.seen = tuple(seen)
    return samples


def named(given: dict[str, str], usual: dict[str, str], needed: set[str]) -> tuple[dict[str, str], set[str]]:
    """(our name → the table's column, those that it may lack): a column that someone named must be there."""
    columns = {ours: theirs or usual[ours] for ours, theirs in given.items()}
    return columns, {ours for ours, theirs in given.items() if not theirs and ours not in needed}
