"""Samples → shards, index and manifest, the same bytes for the same samples.

A shard is a plain USTAR archive: no times, owners or padding to records, so that a member costs one header block and
nothing depends on the machine. One partition's samples go to one shard per split and modality subset.
"""

import hashlib
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.codec import encode
from pretrain.data.index import SUFFIX, ShardIndex
from pretrain.sample import Facet, Sample, canonical, group_name

BLOCK = tarfile.BLOCKSIZE
FORMAT = 1
PAYLOADS = ("sequence", "structure", "term", "text", "image", "about")


@dataclass(frozen=True)
class Shard:
    """One written shard. `counts`: samples by facet name, and bytes by what they hold (see `payload`).

    facets: samples by combination of facets (the number that the index has, as text), which planning a run needs.
    """

    split: str
    group: str
    path: str
    samples: int
    residues: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str
    counts: dict[str, int] = field(repr=False)
    facets: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def index_path(self) -> str:
        return self.path.removesuffix(".tar") + SUFFIX


@dataclass(frozen=True)
class Manifest:
    """What a data set is: `manifest.json`. Nothing in it depends on when, where or by how many workers it was made.

    joined: what became of records that are neither in a sample of their own nor rejected. files: SHA-256 of those
    beside the shards. split: how proteins came to their splits. input: a hash of all source files' names and sizes.
    """

    name: str
    partitions: int
    splits: dict[str, dict[str, dict[str, Any]]]
    totals: dict[str, Any]
    rejected: dict[str, int]
    joined: dict[str, int]
    files: dict[str, str]
    sources: list[dict[str, Any]]
    go: dict[str, Any]
    split: dict[str, Any]
    input: str
    config: dict[str, Any]
    versions: dict[str, str]

    def to_bytes(self) -> bytes:
        return (
            json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True, ensure_ascii=False).encode()
            + b"\n"
        )

    @staticmethod
    def from_bytes(data: bytes) -> "Manifest | None":
        """What `to_bytes` gave; None for anything else, another version's manifest too."""
        try:
            tree = json.loads(data)
            return Manifest(**tree) if tree.pop("format") == FORMAT else None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


class Shelf:
    """One partition's shards as they are written, one per split and modality subset. Samples come sorted by key.

    A sample goes to disk as it comes; what stays in memory is its row of the index.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self._open: dict[tuple[str, str], _Writer] = {}

    def add(self, split: str, sample: Sample, cluster: int | None = None) -> None:
        """cluster: the number of the sample's relatives; of all samples, or of none."""
        where = split, group_name(sample.modalities)
        if where not in self._open:
            self._open[where] = _Writer(self.folder, *where, self.number)
        self._open[where].add(sample, cluster)

    def close(self) -> list[Shard]:
        """What was written, sorted: `<split>/<group>/<number>.tar` below the folder, each with its index."""
        return [writer.close() for _, writer in sorted(self._open.items())]


class _Writer:
    def __init__(self, folder: Path, split: str, group: str, number: int) -> None:
        self.split, self.group, self.path = split, group, f"{split}/{group}/{number:05d}.tar"
        self._tar = folder / self.path
        self._tar.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._tar, "wb")  # noqa: SIM115  closed by close
        self._digest, self._size = hashlib.sha256(), 0
        self._keys: list[str] = []
        self._columns: list[tuple[int, ...]] = []
        self._clusters: list[int] = []
        self._counts: Counter[str] = Counter()
        self._facets: Counter[int] = Counter()

    def add(self, sample: Sample, cluster: int | None) -> None:
        members = encode(sample)
        self._clusters += [] if cluster is None else [cluster]
        span = b"".join(_member(name, data) for name, data in members)
        self._columns.append((self._size, len(span), zlib.crc32(span), *columns(sample)))
        self._keys.append(sample.key)
        self._counts.update(payload(sample, members[0][1]))
        self._counts.update(f.name.lower() for f in Facet if f in sample.facets and f.name)
        self._facets[int(sample.facets)] += 1
        self._write(span)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def close(self) -> Shard:
        self._write(bytes(2 * BLOCK))
        self._file.close()
        index = _index(self._keys, self._columns, self._clusters).to_bytes()
        self._tar.with_suffix(SUFFIX).write_bytes(index)
        return Shard(
            split=self.split,
            group=self.group,
            path=self.path,
            samples=len(self._keys),
            residues=sum(row[4] for row in self._columns),
            bytes=self._size,
            sha256=self._digest.hexdigest(),
            index_bytes=len(index),
            index_sha256=hashlib.sha256(index).hexdigest(),
            counts=dict(self._counts),
            facets=by_facets(self._facets),
        )


def by_facets(counts: Mapping[int, int]) -> dict[str, int]:
    """As the manifest has it: JSON's keys are text."""
    return {str(facets): count for facets, count in sorted(counts.items())}


def write(folder: Path, split: str, number: int, samples: Iterable[Sample]) -> Shard:
    """Write one shard and its index. The samples are of one group, and sorted by key."""
    shelf = Shelf(folder, number)
    for sample in samples:
        shelf.add(split, sample)
    (shard,) = shelf.close()
    return shard


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def columns(sample: Sample) -> tuple[int, int, int, int, int]:
    """facets, residues, structure, text, images, as `ShardIndex` has them."""
    texts = sample.function.texts if sample.function else ()
    return (
        int(sample.facets),
        len(sample.sequence or ""),
        max((len(structure) for structure in sample.structures), default=0),
        max((len(text.text) for text in texts), default=0),
        len(sample.images),
    )


def _index(keys: list[str], columns: list[tuple[int, ...]], clusters: list[int]) -> ShardIndex:
    types = {
        "offset": "i8",
        "size": "i8",
        "crc": "u4",
        "facets": "u1",
        "residues": "i4",
        "structure": "i4",
        "text": "i4",
        "images": "i4",
    }
    table = np.array(columns, dtype=np.int64).reshape(len(keys), len(types))
    named = {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(types.items())}
    return ShardIndex(tuple(keys), **named, cluster=np.array(clusters, np.int32) if clusters else None)


def payload(sample: Sample, member: bytes) -> dict[str, int]:
    """Bytes that carry the protein itself. What a shard and its index hold beyond these is overhead."""
    header = int.from_bytes(member[:8], "little")
    sequence = len(sample.sequence or "")
    function = sample.function
    return {
        "sequence_bytes": sequence,
        "structure_bytes": len(member) - 8 - header - sequence,
        "about_bytes": len(canonical(asdict(sample.about))) if sample.about else 0,
        "term_bytes": sum(len(term.id) + len(term.evidence) for term in function.terms) if function else 0,
        "text_bytes": sum(len(text.text.encode()) for text in function.texts) if function else 0,
        "image_bytes": sum(len(image.data) for image in sample.images),
        "structures": len(sample.structures),
        "structure_residues": sum(len(structure) for structure in sample.structures),
        "images": len(sample.images),
        "texts": len(function.texts) if function else 0,
        "annotations": len(function.terms) if function else 0,
    }


def totals(shards: list[Shard]) -> dict[str, Any]:
    """Sums over all shards, with the overhead per sample that the format costs."""
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(shard.counts)
    samples = sum(shard.samples for shard in shards)
    written = sum(shard.bytes + shard.index_bytes for shard in shards)
    payload = sum(counts[f"{kind}_bytes"] for kind in PAYLOADS)
    facets = {facet.name.lower(): counts[facet.name.lower()] for facet in Facet if facet.name}
    rest = {name: count for name, count in sorted(counts.items()) if name not in facets}
    return {
        "samples": samples,
        "residues": sum(shard.residues for shard in shards),
        "facets": facets,
        "groups": dict(
            sorted(
                Counter({g: sum(s.samples for s in shards if s.group == g) for g in {s.group for s in shards}}).items()
            )
        ),
        **rest,
        "bytes": written,
        "overhead_bytes_per_sample": round((written - payload) / samples, 1) if samples else 0.0,
        "structure_bytes_per_residue": round(counts["structure_bytes"] / max(counts["structure_residues"], 1), 2),
    }


def tree(shards: list[Shard]) -> dict[str, dict[str, dict[str, Any]]]:
    """The manifest's `splits`: by split and group, samples, residues and the shards in order."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for shard in sorted(shards, key=lambda shard: shard.path):
        entry = out.setdefault(shard.split, {}).setdefault(shard.group, {"samples": 0, "residues": 0, "shards": []})
        entry["samples"] += shard.samples
        entry["residues"] += shard.residues
        about = ("path", "samples", "bytes", "sha256", "index_sha256", "facets")
        entry["shards"].append({name: getattr(shard, name) for name in about})
    return out
