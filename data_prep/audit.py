"""A partition's shards, read whole: each sample decoded, and held against index, folder, partition and ontology.

This is the work of `fourfold validate`: a pure function of files, which any worker may run.
"""

import hashlib
import io
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import PIL.Image

from data_prep import ontology, shards
from data_prep.shards import Shard
from data_prep.spill import partition
from data_prep.split import SplitConfig, split
from pretrain.codec import decode, whole
from pretrain.data.dataset import members
from pretrain.data.index import SUFFIX, ShardIndex
from pretrain.places import Place, blocks
from pretrain.sample import CHANNELS, CorruptSample, Facet, Image, Sample, group_name

MANY = 20  # damaged samples of one shard that are named one by one
ONTOLOGY = "ontology.json"
COLUMNS = ("facets", "residues", "structure", "text", "images")


@dataclass(frozen=True, order=True)
class Damage:
    """What is wrong with a file, or with one sample in it."""

    path: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.key + ': ' if self.key else ''}{self.what}"


@dataclass
class Read:
    """What was read of some shards.

    shards: as they are found to be, the undamaged ones. astray: samples that are in another split than a hash of their
    key gives. links: `gene:…` and `antibody:…` of images → the splits that they were seen in.
    """

    shards: list[Shard] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    astray: list[Damage] = field(default_factory=list)
    links: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    samples: int = 0
    bytes: int = 0

    def add(self, other: "Read") -> None:
        self.shards += other.shards
        self.damage += other.damage
        self.astray += other.astray
        self.samples += other.samples
        self.bytes += other.bytes
        for link, splits in other.links.items():
            self.links[link] |= splits


def read_partition(
    place: Place, partitions: int, config: SplitConfig, number: int, entries: list[tuple[str, str, dict[str, Any]]]
) -> Read:
    """Read every shard of one partition: only there can a key stand twice. entries: (split, group, of the manifest)."""
    read, keys = Read(), dict[str, str]()
    terms = _terms(place)
    for name, group, entry in entries:
        one = _Shard(place, name, group, entry)
        for key, sample in one.samples():
            problems = list(_problems(sample, group, terms))
            if partition(key, partitions) != number:
                problems.append(f"belongs to partition {partition(key, partitions)}, not {number}")
            if other := keys.get(key):
                problems.append(f"is in {other} too")
            keys[key] = one.path
            one.damage += [Damage(one.path, key, problem) for problem in problems]
            if split(key, config) != name and len(read.astray) < MANY:
                read.astray.append(Damage(one.path, key, f"belongs to split {split(key, config)}, not {name}"))
            for image in sample.images:
                for link in filter(
                    None, (image.gene and f"gene:{image.gene}", image.antibody and f"antibody:{image.antibody}")
                ):
                    read.links[link].add(name)
        read.samples += one.count
        read.bytes += one.at
        read.damage += one.damage[:MANY]
        if len(one.damage) > MANY:
            read.damage.append(Damage(one.path, "", f"and {len(one.damage) - MANY:,} more like these"))
        if not one.damage:
            read.shards.append(one.seen())
    return read


def _terms(place: Place) -> Collection[str]:
    """Ids of the stored ontology; none where it cannot be read, which is told elsewhere."""
    try:
        return ontology.read(place, ONTOLOGY).terms.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


class _Shard:
    """One shard as it is read. at: bytes that were read. count: samples that were decoded."""

    def __init__(self, place: Place, name: str, group: str, entry: dict[str, Any]) -> None:
        self.place, self.split, self.group, self.entry = place, name, group, entry
        self.path: str = entry["path"]
        self.damage: list[Damage] = []
        self.at = self.count = self.residues = self.index_bytes = 0
        self.counts: Counter[str] = Counter()
        self.facets: Counter[int] = Counter()
        self._digest = hashlib.sha256()

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """(key, sample) of every sample that can be decoded, in order; what is wrong goes to `damage`."""
        index = self._index()
        try:
            with self.place.open(self.path) as file:
                if index is not None:
                    yield from self._spans(file, index)
                rest = bytes(self._take(file, 2 * shards.BLOCK))
                if index is not None and rest != bytes(2 * shards.BLOCK):
                    self._wrong("does not end with two blocks of zeros behind its last sample")
                for block in blocks(file):
                    self._seen(block)
        except FileNotFoundError:
            self._wrong("is in the manifest but not there")
            return
        except OSError as error:
            self._wrong(f"cannot be read: {error}")
            return
        if self.at != self.entry["bytes"]:
            self._wrong(f"{self.at} bytes, {self.entry['bytes']} in the manifest")
        elif self._digest.hexdigest() != self.entry["sha256"]:
            self._wrong(f"SHA-256 {self._digest.hexdigest()[:12]}…, {self.entry['sha256'][:12]}… in the manifest")

    def seen(self) -> Shard:
        """The shard as it was found to be."""
        return Shard(
            self.split, self.group, self.path, self.count, self.residues, self.at, self._digest.hexdigest(),
            self.index_bytes, self.entry["index_sha256"], dict(self.counts),
            shards.by_facets(self.facets),
        )  # fmt: skip

    def _index(self) -> ShardIndex | None:
        path = self.path.removesuffix(".tar") + SUFFIX
        try:
            data = self.place.read(path)
        except OSError as error:
            there = (
                "is in the manifest but not there"
                if isinstance(error, FileNotFoundError)
                else f"cannot be read: {error}"
            )
            self.damage.append(Damage(path, "", there))
            return None
        self.index_bytes = len(data)
        if hashlib.sha256(data).hexdigest() != self.entry["index_sha256"]:
            self.damage.append(Damage(path, "", "SHA-256 is not the manifest's"))
        try:
            index = ShardIndex.parse(data, path)
        except ValueError as error:
            self.damage.append(Damage(path, "", str(error).removeprefix(f"{path}: ")))
            return None
        ends = np.cumsum(index.size, dtype=np.int64)
        if len(index) != self.entry["samples"]:
            self.damage.append(Damage(path, "", f"{len(index)} samples, {self.entry['samples']} in the manifest"))
        if len(index) and ((index.size <= 0).any() or (index.offset != ends - index.size).any()):
            self.damage.append(Damage(path, "", "its samples do not lie end to end"))
            return None
        return index

    def _spans(self, file: IO[bytes], index: ShardIndex) -> Iterator[tuple[str, Sample]]:
        before = ""
        for i, key in enumerate(index.keys):
            size = int(index.size[i])
            if self.at + size > self.entry["bytes"]:
                self._wrong(f"{len(index) - i} samples lie beyond its end, the first being {key}")
                return
            span = self._take(file, size)
            if key <= before:
                self._wrong(f"stands after {before}: keys are not sorted", key)
            before = key
            if len(span) != size or zlib.crc32(span) != index.crc[i]:
                self._wrong("its bytes fail their checksum" if len(span) == size else "cut off", key)
                continue
            try:
                found = members(span)
                sample = whole(decode(found))
            except CorruptSample as error:
                self._wrong(str(error).removeprefix(f"{key}.safetensors: "), key)
                continue
            self._compare(sample, key, index, i)
            self.counts.update(shards.payload(sample, found[f"{sample.key}.safetensors"]))
            self.counts.update(f.name.lower() for f in Facet if f in sample.facets and f.name)
            self.facets[int(sample.facets)] += 1
            self.count += 1
            self.residues += len(sample.sequence or "")
            yield key, sample

    def _compare(self, sample: Sample, key: str, index: ShardIndex, i: int) -> None:
        if sample.key != key:
            self._wrong(f"the shard holds {sample.key} here", key)
        for name, value in zip(COLUMNS, shards.columns(sample), strict=True):
            if (said := int(getattr(index, name)[i])) != value:
                self._wrong(f"index says {name} {said}, the sample has {value}", key)

    def _take(self, file: IO[bytes], size: int) -> bytes:
        parts, left = [], size
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._seen(data)
        return data

    def _seen(self, data: bytes) -> None:
        self._digest.update(data)
        self.at += len(data)

    def _wrong(self, what: str, key: str = "") -> None:
        self.damage.append(Damage(self.path, key, what))


def _problems(sample: Sample, group: str, terms: Collection[str]) -> Iterator[str]:
    """What is wrong with a sample by itself."""
    if group_name(sample.modalities) != group:
        yield f"has {group_name(sample.modalities)}, and lies in {group}"
    if terms and sample.function and (unknown := [term.id for term in sample.function.terms if term.id not in terms]):
        yield f"terms that are not in {ONTOLOGY}: {' '.join(unknown[:5])}"
    for image in sample.images:
        if problem := _picture(image):
            yield f"image {image.id}: {problem}"


def _picture(image: Image) -> str:
    try:
        with PIL.Image.open(io.BytesIO(image.data)) as picture:
            bands = len(picture.getbands())
            picture.verify()
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: of a broken PNG chunk
        return f"cannot be read ({error})"
    wrong = bands > len(CHANNELS) or not set(image.present) <= set(CHANNELS[:bands])
    return f"{bands} bands for {', '.join(image.present)}" if wrong else ""
