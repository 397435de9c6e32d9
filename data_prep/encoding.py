"""What an encoding worker does: it builds the frozen encoders once, and makes the feature files of shard after shard.

Memory does not grow with a shard: its samples are read by offset as batches need them, and rows go to their places in
a file whose layout is known before anything is encoded.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.codec import decode, whole
from pretrain.data.collate import pack
from pretrain.data.dataset import members
from pretrain.data.draw import InputSpec, Row, alone, items, size
from pretrain.data.features import Layout, about, checksum, path_of, verify
from pretrain.data.index import SUFFIX, ShardIndex
from pretrain.encoders.bundle import Encoders, EncodersConfig
from pretrain.places import BLOCK, Place
from pretrain.sample import CorruptSample, Modality, Sample

log = logging.getLogger(__name__)

Item = tuple[int, int]  # (the sample's number in its shard, the item's in its sample)


@dataclass(frozen=True)
class Written:
    """One file of features. fresh: made now, not found there. unread: items that could not be encoded, named."""

    modality: str
    shard: str
    bytes: int
    sha256: str
    samples: int
    items: int
    rows: int
    unread: tuple[str, ...]
    fresh: bool


class Encoding:
    """encoders: as configured; what was left to weights stays so. trained: modalities whose encoders the model trains,
    whose features are worth nothing later. tokens: per batch. scratch: where files grow that appear later."""

    def __init__(
        self,
        place: Place,
        encoders: EncodersConfig,
        trained: tuple[str, ...],
        precision: str,
        tokens: int,
        scratch: Path | None,
    ) -> None:
        self.place, self.trained, self.tokens, self.scratch = place, trained, tokens, scratch
        self._asked = encoders
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums over more are added in another order
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        half = self.device.type == "cuda" and precision == "bf16"  # as in training
        self.computed = {"device": self.device.type, "precision": "bf16" if half else "fp32"}

    @cached_property
    def encoders(self) -> Encoders:
        """Built when first asked for: what an actor cannot build, it can say, and not only die of."""
        built = Encoders.build(self._asked)
        built.identity()  # of the weights as they are
        return built.to(self.device, torch.bfloat16 if self.computed["precision"] == "bf16" else torch.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads)

    def identity(self) -> dict[str, Any]:
        """What is encoded with: all workers must say the same."""
        told = {m: one for m, one in self.encoders.identity().items() if m not in self.trained}
        return {"encoders": told, "computed": self.computed}

    def shard(self, entry: dict[str, Any]) -> list[Written]:
        """The feature files of one shard of the manifest, made where they are not there already."""
        own, has = self.identity()["encoders"], entry["group"].split("_")
        names = {modality: own[modality]["features"] for modality in Modality if modality in own and modality in has}
        found = {modality: self._existing(modality, name, entry) for modality, name in names.items()}
        if any(each is None for each in found.values()):
            with _opened(self.place, entry, self.scratch) as shard:
                for modality, name in names.items():
                    if found[modality] is None:
                        found[modality] = self._write(shard, modality, name, entry)
        return [each for each in found.values() if each is not None]

    def _existing(self, modality: Modality, name: str, entry: dict[str, Any]) -> Written | None:
        path = path_of(name, entry["path"])
        if not self.place.exists(path):
            return None
        expected = about(name, modality, entry["path"], entry["sha256"])
        try:
            with self.place.open(path) as file:
                content = verify(file, f"{self.place}/{path}", expected)
        except ValueError as error:
            log.warning("encoded again: %s", error)
            return None
        return _written(modality, entry, content.layout, content.sha256, content.unread, fresh=False)

    def _write(self, shard: "_Shard", modality: Modality, name: str, entry: dict[str, Any]) -> Written:
        spec = self.encoders.spec()
        table = _Table.of(shard, modality, spec)
        layout = Layout.of(
            len(shard.index), len(table.places), int(table.starts[-1]), self.encoders.widths()[modality],
            about(name, modality, entry["path"], entry["sha256"]),
        )  # fmt: skip
        crc = np.zeros(layout.items, "<u4")
        part = Path(tempfile.mkdtemp(dir=self.scratch)) / "features"
        try:
            with open(part, "wb") as file:
                file.write(layout.header + table.samples.tobytes() + table.starts.tobytes())
                file.truncate(layout.size)
                for chosen in table.batches(self.tokens):
                    for k, rows in self._encoded(shard, modality, table, chosen, spec):
                        data = rows.tobytes()
                        crc[k] = checksum(*table.places[k], 0, data)
                        os.pwrite(file.fileno(), data, layout.place("values", int(table.starts[k])))
                for k in np.flatnonzero(table.unread | (np.diff(table.starts) == 0)).tolist():
                    nothing = bytes(2 * layout.width * table.rows(k))
                    crc[k] = checksum(*table.places[k], int(table.unread[k]), nothing)
                file.flush()
                os.pwrite(file.fileno(), crc.tobytes(), layout.place("crc"))
                os.pwrite(file.fileno(), table.unread.tobytes(), layout.place("unread"))
                os.fsync(file.fileno())
            sha256 = self.place.put(part, path_of(name, entry["path"]))
        finally:
            shutil.rmtree(part.parent, ignore_errors=True)
        unread = [table.places[k] for k in np.flatnonzero(table.unread).tolist()]
        return _written(modality, entry, layout, sha256, unread, fresh=True)

    def _encoded(
        self, shard: "_Shard", modality: Modality, table: "_Table", chosen: list[int], spec: InputSpec
    ) -> Iterator[tuple[int, NDArray[np.uint16]]]:
        """(item's number, its rows as bfloat16's bits) of one batch. What cannot be read is marked in the table."""
        rows: dict[int, Row] = {}
        for k in chosen:
            number, item = table.places[k]
            try:
                rows[k] = alone(shard.sample(number), modality, item, spec)
            except CorruptSample as error:
                table.mark(k, shard, modality, error)
        batch = pack(list(rows.values()), 0, 0, spec).to(self.device)
        tokens = self.encoders.encode(batch, modality)
        values = tokens.values.to(torch.bfloat16)
        finite, bits = values.isfinite().all(1).tolist(), values.cpu().view(torch.uint16).numpy()
        for i, k in enumerate(rows):
            span = slice(*tokens.offsets[i : i + 2].tolist())
            assert span.stop - span.start == table.rows(k), f"{shard.path}: item {k}: {span}, foretold {table.rows(k)}"
            if not all(finite[span]):
                raise ValueError(
                    f"{shard.path}: {shard.index.keys[table.places[k][0]]}: the {modality} encoder's features are not "
                    "finite; its weights or its precision do not hold"
                )
            yield k, bits[span]


@dataclass(eq=False)
class _Table:
    """A shard's items of one modality. places: item → (sample, item of it). samples, starts: as a file stores them."""

    places: list[Item]
    samples: NDArray[np.int64]
    starts: NDArray[np.int64]
    unread: NDArray[np.uint16]

    @staticmethod
    def of(shard: "_Shard", modality: Modality, spec: InputSpec) -> "_Table":
        counts, places, rows, failed = [], [], [], []
        for number in range(len(shard.index)):
            sample = shard.sample(number)
            counts.append(items(sample, modality))
            for item in range(counts[-1]):
                places.append((number, item))
                try:
                    rows.append(size(sample, modality, item, spec))
                except CorruptSample as error:
                    rows.append(0)
                    failed.append((len(places) - 1, error))
        samples, starts = (np.cumsum([0, *each], dtype="<i8") for each in (counts, rows))
        table = _Table(places, samples, starts, np.zeros(len(places), "<u2"))
        for k, error in failed:
            table.mark(k, shard, modality, error)
        return table

    def rows(self, k: int) -> int:
        return int(self.starts[k + 1] - self.starts[k])

    def mark(self, k: int, shard: "_Shard", modality: Modality, error: CorruptSample) -> None:
        self.unread[k] = 1
        number, item = self.places[k]
        log.warning("%s: %s: %s %d is not encoded: %s", shard.path, shard.index.keys[number], modality, item, error)

    def batches(self, tokens: int) -> Iterator[list[int]]:
        """The items that have rows, longest first, as many together as `tokens` hold, and one at least."""
        lengths = np.diff(self.starts)
        batch: list[int] = []
        total = 0
        for k in np.argsort(-lengths, kind="stable").tolist():
            length = int(lengths[k])
            if not length:
                break
            if batch and total + length > tokens:
                yield batch
                batch, total = [], 0
            batch.append(k)
            total += length
        if batch:
            yield batch


@dataclass(frozen=True)
class _Shard:
    """A shard that is the manifest's, open. path: below the data set."""

    path: str
    descriptor: int
    index: ShardIndex

    def sample(self, number: int) -> Sample:
        span = os.pread(self.descriptor, int(self.index.size[number]), int(self.index.offset[number]))
        try:
            return whole(decode(members(span)))
        except CorruptSample as error:  # and yet the shard's hash is right
            raise ValueError(f"{self.path}: {self.index.keys[number]}: {error}; prepare the data set again") from error


@contextmanager
def _opened(place: Place, entry: dict[str, Any], scratch: Path | None) -> Iterator[_Shard]:
    """The shard, on a local disk. Raises ValueError unless it and its index are those that were prepared."""
    path = entry["path"]
    listing = place.read(path.removesuffix(".tar") + SUFFIX)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        with place.open(path) as file, open(folder / "shard", "wb") as copy:
            digest = hashlib.sha256()
            while block := file.read(BLOCK):
                digest.update(block)
                if place.local is None:
                    copy.write(block)
        if (digest.hexdigest(), hashlib.sha256(listing).hexdigest()) != (entry["sha256"], entry["index_sha256"]):
            raise ValueError(
                f"{place}/{path} or its index is not the file of the manifest (its SHA-256 differs); copy it or "
                "prepare it again"
            )
        with open(folder / "shard" if place.local is None else place.local / path, "rb") as file:
            yield _Shard(path, file.fileno(), ShardIndex.parse(listing, f"{place}/{path}"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _written(
    modality: Modality, entry: dict[str, Any], layout: Layout, sha256: str, unread: Sequence[Item], fresh: bool
) -> Written:
    names = tuple(f"{entry['path']}: sample {number}, item {item}" for number, item in unread)
    return Written(
        modality.value, entry["path"], layout.size, sha256, layout.samples, layout.items, layout.rows, names, fresh
    )
