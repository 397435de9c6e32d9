"""Features that are read instead of computed: which of a data set's fit a run, and the rows of one item. numpy only."""

import json
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pretrain.data.cache import Item
from pretrain.data.dataset import Dataset
from pretrain.data.features import AGAIN, FOLDER, FORMAT, MAX_HEADER, SUMMARY, Layout, checksum, path_of
from pretrain.places import Place
from pretrain.sample import CorruptSample, Modality

Mode = Literal["auto", "stored", "live"]


@dataclass(frozen=True)
class Folder:
    """One encoder's features of a data set, complete and of the right size. files: shard → its features' file."""

    modality: Modality
    encoder: str
    width: int
    files: Mapping[str, Item]


class Unavailable(ValueError):
    """There are no stored features that fit: never made, unfinished, or of other data."""


def open_folder(dataset: Dataset, modality: Modality, encoder: str, width: int, splits: Iterable[str]) -> Folder:
    """An encoder's features of these splits. Unavailable where there are none, ValueError where they are damaged."""
    place, name = dataset.place, f"{FOLDER}/{encoder}"
    path = place / name
    if not place.exists(name):
        raise Unavailable(f"{path} does not exist")
    if not place.exists(f"{name}/{SUMMARY}"):
        raise Unavailable(f"{path} has no {SUMMARY}: encoding was interrupted, or goes on")
    try:
        summary = json.loads(place.read(f"{name}/{SUMMARY}"))
        held, found = summary["shards"], (summary["format"], summary["encoder"]["features"], summary["width"])
        manifest = summary["dataset"]["manifest_sha256"]
        files = {
            shard: Item(path_of(encoder, shard), int(entry["bytes"]), str(entry.get("sha256")))
            for shard, entry in held.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / SUMMARY} is damaged ({type(error).__name__}: {error}); {AGAIN}") from error
    if manifest != dataset.sha256:
        raise Unavailable(
            f"{path} belongs to other data: to a manifest of SHA-256 {str(manifest)[:12]}…, not {dataset.sha256[:12]}…"
        )
    if found != (FORMAT, encoder, width):
        raise Unavailable(f"{path} holds format, encoder and width {found}, this run needs {(FORMAT, encoder, width)}")
    groups = [group for split in splits for group in dataset.groups(split).values() if modality in group.modalities]
    shards = [shard for group in groups for shard in group.shards]
    if missing := [shard for shard in shards if shard not in files]:
        raise Unavailable(f"{path} lacks {len(missing)} shards, the first being {missing[0]}")
    if place.local is None:
        place.stats(f"{name}/*/*/*")  # one listing, which `listed` then answers from
    for shard in shards:
        _check(place, files[shard])
    return Folder(modality, encoder, width, {shard: files[shard] for shard in shards})


def _check(place: Place, file: Item) -> None:
    try:
        size = place.listed(file.name).bytes
    except FileNotFoundError:
        raise ValueError(f"{place / file.name} is missing, {SUMMARY} names it; {AGAIN}") from None
    if size != file.bytes:
        raise ValueError(f"{place / file.name}: {size} bytes, {file.bytes} in {SUMMARY}; {AGAIN}")


class Stored:
    """The features that a run reads. folders: those of its modalities that are stored; others are encoded live.

    notes: modality → where its features come from, or why they are not read; for people.
    """

    def __init__(self, dataset: Dataset, folders: Sequence[Folder], notes: Mapping[Modality, str]) -> None:
        self.folders = {folder.modality: folder for folder in folders}
        self.notes = dict(notes)
        self._dataset = dataset
        self._files = dataset.files
        for folder in folders:
            self._files.items.update((file.name, file) for file in folder.files.values())
        self._layouts: dict[str, Layout] = {}

    @property
    def widths(self) -> dict[Modality, int]:
        """Modality → D, of the stored ones, in `Modality`'s order."""
        return {m: self.folders[m].width for m in Modality if m in self.folders}

    def files(self, shard: str) -> list[str]:
        """The files with features of a shard's samples."""
        return [folder.files[shard].name for folder in self.folders.values() if shard in folder.files]

    def sample(self, split: str, group: str, i: int) -> "Held":
        return Held(self, *self._dataset.splits[split][group].place(i))

    def rows(self, modality: Modality, shard: str, number: int, item: int) -> NDArray[np.uint16]:
        """[n, D] bfloat16 as its bits: item `item` of sample `number` of a shard. CorruptSample where they are damaged,
        ValueError where the file is not what the summary says."""
        folder = self.folders[modality]
        file = folder.files[shard].name
        layout = self._layouts.get(file) or self._open(folder, shard, file)
        if number >= layout.samples:
            raise ValueError(f"{self._dataset.place / file} has {layout.samples} samples, its shard more; {AGAIN}")
        first, stop = self._numbers(file, layout, "samples", number, "<qq")
        if not 0 <= first <= first + item < stop <= layout.items:
            raise CorruptSample(f"{file}: no item {item}, the sample has [{first}, {stop}) of {layout.items}")
        begin, end = self._numbers(file, layout, "items", first + item, "<qq")
        if not 0 <= begin <= end <= layout.rows:
            raise CorruptSample(f"{file}: item {first + item} has rows [{begin}, {end}) of {layout.rows}")
        (crc,) = self._numbers(file, layout, "crc", first + item, "<I")
        (unread,) = self._numbers(file, layout, "unread", first + item, "<H")
        size = layout.place("values", end) - layout.place("values", begin)
        span = self._files.read(file, layout.place("values", begin), size)
        if len(span) != size or checksum(number, item, unread, span) != crc:
            raise CorruptSample(
                f"{file}: item {item}: {len(span)} of {size} bytes read, checksum "
                f"{'is wrong' if len(span) == size else 'not taken'}"
            )
        if unread:
            raise CorruptSample(f"{file}: item {item} could not be read when features were made")
        return np.frombuffer(span, "<u2").reshape(-1, layout.width)

    def _numbers(self, file: str, layout: Layout, table: str, first: int, form: str) -> tuple[int, ...]:
        """An entry of a table, or two neighbours."""
        data = self._files.read(file, layout.place(table, first), struct.calcsize(form))
        if len(data) != struct.calcsize(form):
            raise CorruptSample(f"{file}: ends inside its table {table!r}")
        return struct.unpack(form, data)

    def _open(self, folder: Folder, shard: str, file: str) -> Layout:
        where = str(self._dataset.place / file)
        layout = Layout.parse(self._files.read(file, 0, MAX_HEADER + 8), where)
        entry = layout.about
        if (entry.get("encoder"), entry.get("shard"), layout.width) != (folder.encoder, shard, folder.width):
            raise ValueError(f"{where} says that it is of {dict(entry)}, width {layout.width}; {AGAIN}")
        self._layouts[file] = layout
        return layout


@dataclass(frozen=True)
class Held:
    """One sample's stored features: number `number` of a shard."""

    stored: Stored
    shard: str
    number: int

    @property
    def modalities(self) -> Collection[Modality]:
        return self.stored.folders

    def rows(self, modality: Modality, item: int, expected: int) -> NDArray[np.uint16]:
        """[expected, D] bfloat16 as its bits. Raises CorruptSample where the item has another number of rows."""
        found = self.stored.rows(modality, self.shard, self.number, item)
        if len(found) != expected:
            raise CorruptSample(
                f"{self.stored.folders[modality].files[self.shard].name}: {modality} {item} has {len(found)} rows, the "
                f"sample's own data {expected}"
            )
        return found


def choose(
    dataset: Dataset,
    encoders: Mapping[Modality, tuple[str, int]],
    splits: Iterable[str],
    mode: Mode,
    before: Collection[Modality] | None = None,
) -> Stored:
    """What a run reads and what it encodes. encoders: modality → (name, width) of the run's own.

    `live` encodes all. `stored` reads all, and raises ValueError, naming it, for what is not there. `auto` reads what
    is there; a run that goes on stays with what it read before (`before`), because stored and live differ in rounding,
    and a resumed run shall not. Damaged features are an error in either: encoding instead would hide the cost.
    """
    folders, notes, splits = [], {}, list(splits)
    for modality, (encoder, width) in encoders.items():
        if mode == "live" or (mode == "auto" and before is not None and modality not in before):
            notes[modality] = "encoded at every step" + ("" if mode == "live" else ", as this run began")
            continue
        try:
            folders.append(open_folder(dataset, modality, encoder, width, splits))
            notes[modality] = f"read from {FOLDER}/{encoder}"
        except Unavailable as error:
            if mode == "stored":
                raise ValueError(
                    f"data.features=stored, but there are no features of the {modality} encoder: {error}. "
                    "`fourfold encode CONFIG`, with this run's configuration, writes them; "
                    "data.features=auto does without"
                ) from None
            notes[modality] = f"encoded at every step: {error}"
    return Stored(dataset, folders, notes)
