"""Tiny data sets of random proteins, written the way prepare writes them: USTAR shards, an index each, a manifest."""

import hashlib
import io
import json
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from pretrain.codec import encode
from pretrain.data.index import SUFFIX, ShardIndex
from pretrain.sample import Function, Image, Modality, Sample, Structure, Term, Text, group_name

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
ALPHABET = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)


def _png(random: np.random.Generator, bands: int, size: int = 8) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(random.integers(0, 256, (size, size, bands), np.uint8).squeeze()).save(out, "PNG")
    return out.getvalue()


def protein(
    key: str,
    *has: Modality,
    length: int = 30,
    covered: tuple[int, int] | None = None,
    structures: int = 1,
    texts: int = 2,
    images: int = 1,
    bands: int = 4,
) -> Sample:
    """A random protein with the modalities `has`; its structures cover residues [start, stop)."""
    random = np.random.default_rng(zlib.crc32(key.encode()))
    sequence = ALPHABET[random.integers(0, 20, length)].tobytes().decode()
    start, stop = covered or (length // 4, length)
    chains = tuple(
        Structure(
            id=f"{key}_{i}",
            coordinates=np.round(random.normal(size=(stop - start, 3, 3)) * 5, 2).astype(np.float32),
            mask=np.ones((stop - start, 3), bool),
            residue=np.arange(start, stop, dtype=np.int32),
            letters=sequence[start:stop],
            confidence=None if i else np.full(stop - start, 50 + i, np.float32),
        )
        for i in range(structures)
    )
    described = tuple(Text(f"protein {key} does thing {i}", "template:0") for i in range(texts))
    return Sample(
        key,
        sequence if SEQUENCE in has else None,
        chains if STRUCTURE in has else (),
        Function((Term("GO:0005524", "IDA"),), described) if FUNCTION in has else None,
        tuple(Image(f"{key}_{i}", _png(random, bands)) for i in range(images)) if IMAGE in has else (),
    )


def write(
    folder: Path,
    splits: dict[str, Iterable[Sample]],
    partitions: int = 4,
    cluster: Callable[[str], int] | None = None,
) -> Path:
    """The data set of these samples, in the layout of `pretrain.data.index`. cluster: of a key."""
    manifest: dict = {"format": 1, "name": "tiny", "partitions": partitions, "splits": {}}
    for split, samples in splits.items():
        shards: dict[tuple[str, int], list[Sample]] = defaultdict(list)
        for sample in sorted(samples, key=lambda sample: sample.key):
            shards[group_name(sample.modalities), zlib.crc32(sample.key.encode()) % partitions].append(sample)
        groups: dict = {}
        for (group, partition), held in sorted(shards.items()):
            table = groups.setdefault(group, {"samples": 0, "residues": 0, "shards": []})
            table["samples"] += len(held)
            table["residues"] += sum(len(sample.sequence or "") for sample in held)
            table["shards"].append(_shard(folder, f"{split}/{group}/{partition:05d}.tar", held, cluster))
        manifest["splits"][split] = groups
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _shard(folder: Path, name: str, samples: list[Sample], cluster: Callable[[str], int] | None) -> dict:
    tar = io.BytesIO()
    spans = []
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as writer:
        for sample in samples:
            begin = tar.tell()
            for member, data in encode(sample):
                about = tarfile.TarInfo(member)
                about.size = len(data)
                writer.addfile(about, io.BytesIO(data))
            spans.append((begin, tar.tell() - begin))
    data = tar.getvalue()
    columns = np.array([_lengths(sample) for sample in samples], dtype=np.int32).T
    index = ShardIndex(
        tuple(sample.key for sample in samples),
        np.array([offset for offset, _ in spans], np.int64),
        np.array([size for _, size in spans], np.int64),
        np.array([zlib.crc32(data[offset : offset + size]) for offset, size in spans], np.uint32),
        np.array([sample.facets for sample in samples], np.uint8),
        *columns,
        cluster=np.array([cluster(sample.key) for sample in samples], np.int32) if cluster else None,
    ).to_bytes()
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.with_suffix(SUFFIX).write_bytes(index)
    hashes = {"sha256": hashlib.sha256(data).hexdigest(), "index_sha256": hashlib.sha256(index).hexdigest()}
    facets = Counter(str(int(sample.facets)) for sample in samples)
    return {"path": name, "samples": len(samples), "bytes": len(data), "facets": facets, **hashes}


def _lengths(sample: Sample) -> tuple[int, int, int, int]:
    texts = sample.function.texts if sample.function else ()
    return (
        len(sample.sequence or ""),
        max((len(structure) for structure in sample.structures), default=0),
        max((len(text.text) for text in texts), default=0),
        len(sample.images),
    )


def mixed(count: int, prefix: str = "P") -> list[Sample]:
    """Proteins of six kinds of pairing and many lengths."""
    kinds = (
        (SEQUENCE, STRUCTURE, FUNCTION),
        (SEQUENCE,),
        (SEQUENCE, STRUCTURE),
        (FUNCTION,),
        (STRUCTURE,),
        (SEQUENCE, STRUCTURE, FUNCTION, IMAGE),
    )
    return [
        protein(f"{prefix}{i:04d}", *kinds[min(i % 9, 5)], length=10 + (i * 37) % 80, structures=1 + i % 3)
        for i in range(count)
    ]
