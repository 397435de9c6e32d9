"""A data set's manifest, held against the files that it names; what comes of it is numbers per shard.

A local folder is looked at whole: each shard's size, each index's bytes. Of a store the listing is, and indices are
read only where the manifest does not say what planning needs (`facets`, which older ones lack).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.cache import Cache, Item
from pretrain.data.files import Files
from pretrain.data.index import (
    COMBINATIONS,
    FORMAT,
    LONGEST,
    MANIFEST,
    OPEN,
    READ,
    Group,
    Indices,
    ShardIndex,
    combinations,
    index_path,
)
from pretrain.places import Place, Stat
from pretrain.sample import Modality, group_name


def read(place: Place, cache: Cache | None) -> tuple[dict[str, Any], str, dict[str, dict[str, Group]], Files]:
    """(the manifest, its SHA-256, split → group's name → group, the files), as `Dataset.open` says."""
    text, manifest = _manifest(place)
    listed = None if place.local is not None else place.stats("*/*/*")
    try:
        files = Files(place, OPEN, None if listed is None else cache)
        indices = Indices(files, READ)
        splits = {
            split: {
                name: _group(place, split, name, groups[name]["shards"], listed, indices)
                for name in sorted(groups)
                if groups[name]["shards"]
            }
            for split, groups in manifest["splits"].items()
        }
        if files.cache is not None:
            files.items.update(
                (item.name, item) for table in _tables(manifest) for shard in table for item in _items(shard)
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(_damaged(place, error)) from error
    return manifest, hashlib.sha256(text).hexdigest(), splits, files


def _manifest(place: Place) -> tuple[bytes, dict[str, Any]]:
    if place.local is not None and not place.local.is_dir():
        raise ValueError(f"no data set at {place}: there is no such folder; `fourfold prepare` writes one")
    try:
        text = place.read(MANIFEST)
    except FileNotFoundError:
        raise ValueError(
            f"{place} has no {MANIFEST}: its preparation was interrupted, or this is no data set; prepare it again"
        ) from None
    try:
        manifest = json.loads(text)
        if manifest["format"] == FORMAT:
            return text, manifest
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(_damaged(place, error)) from error
    raise ValueError(f"{place / MANIFEST}: format {manifest['format']!r}; this version of Fourfold reads {FORMAT}")


def _damaged(place: Place, error: Exception) -> str:
    return f"{place / MANIFEST} is damaged ({type(error).__name__}: {error}); prepare the data set again"


def _tables(manifest: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [table["shards"] for groups in manifest["splits"].values() for table in groups.values()]


def _items(shard: dict[str, Any]) -> tuple[Item, Item]:
    return (
        Item(shard["path"], shard["bytes"], shard["sha256"]),
        Item(index_path(shard["path"]), None, shard["index_sha256"]),
    )


def _group(
    place: Place,
    split: str,
    name: str,
    shards: list[dict[str, Any]],
    listed: Mapping[str, Stat] | None,
    indices: Indices,
) -> Group:
    """Check a group's files against the manifest and count what is in them. listed: a store's files."""
    subset = tuple(modality for modality in Modality if modality in name.split("_"))
    if not subset or group_name(subset) != name:
        raise ValueError(
            f"{place / MANIFEST}: {split}/{name} is not a set of modalities, of {', '.join(Modality)} in order"
        )
    facets = np.zeros((len(shards), COMBINATIONS), np.int32)
    lengths = np.zeros(LONGEST + 1, np.int64)
    unread = False
    for counts, shard in zip(facets, shards, strict=True):
        _check(place, split, name, shard, listed)
        told = _told(shard)
        if listed is not None and told is not None:
            counts[:], unread = told, True
            continue
        index = _index(place, shard)
        counts[:] = combinations(index)
        found = np.bincount(np.minimum(index.residues, LONGEST))
        lengths[: len(found)] += found
    starts = np.cumsum([0, *(shard["samples"] for shard in shards)], dtype=np.int64)
    paths = tuple(shard["path"] for shard in shards)
    return Group(name, subset, paths, starts, facets, None if unread else lengths, indices)


def _told(shard: dict[str, Any]) -> NDArray[np.int32] | None:
    """What the manifest says of a shard's samples; None where it does not, or not of all."""
    counts = np.zeros(COMBINATIONS, np.int32)
    for facets, count in shard.get("facets", {}).items():
        if 0 <= int(facets) < COMBINATIONS:
            counts[int(facets)] = count
    return counts if counts.sum() == shard["samples"] else None


def _check(place: Place, split: str, name: str, shard: dict[str, Any], listed: Mapping[str, Stat] | None) -> None:
    """That a shard and its index are there, and the shard as large as it was."""
    relative = Path(shard["path"])
    if relative.parts[:-1] != (split, name) or relative.suffix != ".tar":
        raise ValueError(f"{place / MANIFEST}: shard {shard['path']!r} does not lie in {split}/{name}")
    sizes = []
    for file in (shard["path"], index_path(shard["path"])):
        try:
            sizes.append((place.stat(file) if listed is None else listed[file]).bytes)
        except (FileNotFoundError, KeyError):
            raise ValueError(
                f"{place / file} is in the manifest but not in the folder; copy it again, or prepare the data set again"
            ) from None
    if sizes[0] != shard["bytes"]:
        raise ValueError(
            f"{place / shard['path']}: {sizes[0]} bytes, {shard['bytes']} in the manifest; copy it or prepare it again"
        )


def _index(place: Place, shard: dict[str, Any]) -> ShardIndex:
    """A shard's index, after checking that it is the one that was prepared."""
    path = index_path(shard["path"])
    data = place.read(path)
    where = place / path
    if hashlib.sha256(data).hexdigest() != shard["index_sha256"]:
        raise ValueError(f"{where}: not the file of the manifest (its SHA-256 differs); copy it or prepare it again")
    index = ShardIndex.parse(data, str(where))
    if len(index) != shard["samples"]:
        raise ValueError(f"{where}: {len(index)} samples, {shard['samples']} in the manifest; prepare it again")
    if len(index) and (
        index.offset.min() < 0 or index.size.min() < 0 or (index.offset + index.size).max() > shard["bytes"]
    ):
        raise ValueError(f"{where}: samples at bytes beyond the shard's {shard['bytes']}; prepare it again")
    return index
