"""One protein of a data set, found by its key: a few small reads, from a folder or an object store."""

import difflib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.spill import partition
from data_prep.views.card import CARD, CROISSANT, SUMS, card
from pretrain.codec import decode, whole
from pretrain.data.dataset import members
from pretrain.data.index import FORMAT, MANIFEST, SUFFIX, ShardIndex
from pretrain.places import Place
from pretrain.sample import CorruptSample, Modality, Sample, group_name

PATH = re.compile(r"[a-z]+/[a-z_]+/(\d+)\.tar")
LOOKED = 200_000  # keys among which close matches are sought
SHOWN = 6


@dataclass(frozen=True)
class Found:
    """A sample, and where it lies: bytes [offset, offset + size) of a shard."""

    sample: Sample
    name: str
    split: str
    group: str
    shard: str
    offset: int
    size: int


def find(place: Place, key: str) -> Found:
    """Raises ValueError for a key that is not there, naming those like it; CorruptSample for damage."""
    _, manifest = described(place)
    number = partition(key, manifest["partitions"])
    for split, group, entry in entries(manifest):
        if number_of(split, group, entry) == number:
            index = read_index(place, entry)
            if key in index.keys:
                i = index.keys.index(key)
                offset, size = int(index.offset[i]), int(index.size[i])
                sample = _sample(place.read(entry["path"], offset, size), int(index.crc[i]), key, entry["path"])
                return Found(sample, manifest["name"], split, group, entry["path"], offset, size)
    close = _close(place, manifest, key)
    hint = f"did you mean {', '.join(close)}?" if close else "no key in it is like that"
    raise ValueError(f"{place}: no protein {key!r} among {manifest['totals']['samples']:,}; {hint}")


def entries(manifest: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(split, group, shard's entry) of every shard of a manifest."""
    for split, tables in manifest["splits"].items():
        for group, table in tables.items():
            yield from ((split, group, entry) for entry in table["shards"])


def named(manifest: dict[str, Any]) -> set[str]:
    """The files of a data set, as its manifest names them; stored features are not among them."""
    known = {MANIFEST, CARD, CROISSANT, SUMS, *manifest["files"]}
    for _, _, entry in entries(manifest):
        known |= {entry["path"], entry["path"].removesuffix(".tar") + SUFFIX}
    return known


def read_index(place: Place, entry: dict[str, Any]) -> ShardIndex:
    path = entry["path"].removesuffix(".tar") + SUFFIX
    return ShardIndex.parse(place.read(path), f"{place}/{path}")


def _sample(span: bytes, crc: int, key: str, shard: str) -> Sample:
    try:
        if zlib.crc32(span) != crc:
            raise CorruptSample("its bytes fail their checksum")
        return whole(decode(members(span)))
    except CorruptSample as error:
        raise CorruptSample(f"{shard}: {key}: {error}; `fourfold validate` tells more") from error


def _close(place: Place, manifest: dict[str, Any], key: str) -> list[str]:
    """Keys that differ in case, then those that have it as a part, then those that are spelt much alike."""
    keys: list[str] = []
    for _, _, entry in entries(manifest):
        keys += read_index(place, entry).keys
        if len(keys) > LOOKED:
            break
    folded = key.casefold()
    same = [each for each in keys if each.casefold() == folded]
    inside = [each for each in keys if len(folded) > 2 and folded in each.casefold()]
    alike = difflib.get_close_matches(key, keys, SHOWN, 0.7)
    return list(dict.fromkeys([*same, *sorted(inside), *alike]))[:SHOWN]


def described(place: Place) -> tuple[bytes, dict[str, Any]]:
    """The manifest's bytes and content. Raises ValueError where there is none, or one that cannot be true."""
    if not place.exists(MANIFEST):
        raise ValueError(f"{place} has no {MANIFEST}: it is no data set, or its preparation was interrupted")
    data = place.read(MANIFEST)
    try:
        manifest = json.loads(data)
        if manifest["format"] != FORMAT:
            raise ValueError(
                f"{place / MANIFEST}: format {manifest['format']!r}; this version of Fourfold reads {FORMAT}"
            )
        for each in entries(manifest):
            number_of(*each)
        assert card(manifest)  # which reads all of it
        return data, manifest | {"partitions": int(manifest["partitions"]), "files": dict(manifest["files"])}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{place / MANIFEST} is damaged ({type(error).__name__}: {error})") from error


def number_of(name: str, group: str, entry: dict[str, Any]) -> int:
    """The partition that a shard's path names. Raises ValueError for a path that lies elsewhere."""
    found = PATH.fullmatch(entry["path"])
    if missing := {"samples", "bytes", "sha256", "index_sha256"} - entry.keys():
        raise KeyError(", ".join(sorted(missing)))
    if not found or not entry["path"].startswith(f"{name}/{group}/"):
        raise ValueError(f"{MANIFEST}: shard {entry['path']!r} does not lie in {name}/{group}")
    modalities = tuple(modality for modality in Modality if modality in group.split("_"))
    if not modalities or group_name(modalities) != group:
        raise ValueError(f"{MANIFEST}: {name}/{group} is no set of modalities")
    return int(found[1])
