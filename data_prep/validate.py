"""Whether a data set is what its manifest says it is: `fourfold validate`.

Every file is read once, front to back, from a folder or an object store: its hash, then each sample in it, decoded and
held against the index, its folder, its partition and the ontology. What the manifest counts is counted again.
"""

import hashlib
import io
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track

from data_prep import ontology, shards
from data_prep.audit import ONTOLOGY, Damage, Read, read_partition
from data_prep.shards import Shard
from data_prep.split import SplitConfig
from data_prep.views.card import CARD, CROISSANT, SUMS, groups, ordered
from data_prep.views.lookup import described, entries, named, number_of
from data_prep.workers import Workers
from pretrain.data.features import FOLDER, SUMMARY, path_of
from pretrain.data.index import MANIFEST
from pretrain.places import Place, sha256

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Validation:
    """damage: sorted. samples, bytes: that were read, in `seconds`. splits, totals: of the shards that are whole."""

    place: str
    damage: tuple[Damage, ...]
    samples: int
    bytes: int
    seconds: float
    splits: dict[str, dict[str, dict[str, Any]]]
    totals: dict[str, Any]

    def lines(self) -> Iterator[str]:
        """For people: the coverage table, then the damage."""
        yield from coverage(self.splits, self.totals)
        seconds = max(self.seconds, 1e-9)
        rate = f"{self.samples / seconds:,.0f} samples and {self.bytes / 1e6 / seconds:,.1f} MB a second"
        yield f"{self.place}: {self.samples:,} samples read, {rate}"
        yield from (f"damaged: {each}" for each in self.damage)
        whole = "whole: every hash, sample and count is as the manifest says"
        yield f"{len(self.damage):,} damaged" if self.damage else whole


def validate(place: Place | str, workers: int = 0, address: str | None = None, quiet: bool = False) -> Validation:
    """Read a data set whole. Raises ValueError for a place that is none.

    workers: Ray tasks at a time, 0 for none. address: of an existing Ray cluster that sees the place; then 0 takes what
    it has.
    """
    place, started = Place(str(place)), time.monotonic()
    data, manifest = described(place)
    numbered: defaultdict[int, list[tuple[str, str, dict[str, Any]]]] = defaultdict(list)
    for name, group, entry in entries(manifest):
        numbered[number_of(name, group, entry)].append((name, group, entry))
    found = Read(damage=[*_beside(place, manifest, data), *_strays(place, manifest)])
    config = SplitConfig.model_validate(manifest["config"]["split"])
    with Workers(workers, address) as pool:
        reading = pool.run(read_partition, (place, manifest["partitions"], config), sorted(numbered.items()))
        for read in track(reading, "reading shards", len(numbered), console=Console(stderr=True), disable=quiet):
            found.add(read)
    found.damage += _astray(found, manifest["split"], config)
    if not found.damage:
        found.damage += _counts(manifest, found.shards)
    splits, totals = shards.tree(found.shards), shards.totals(found.shards)
    seconds = time.monotonic() - started
    return Validation(str(place), tuple(sorted(found.damage)), found.samples, found.bytes, seconds, splits, totals)


def coverage(splits: dict[str, dict[str, dict[str, Any]]], totals: dict[str, Any]) -> Iterator[str]:
    """Samples by modality subset and split, as lines of a table."""
    names = ordered(splits)
    rows: list[tuple[str, ...]] = [("modalities", *names, "all", "residues")]

    def row(name: str, counts: list[int]) -> None:
        rows.append((name, *(f"{count:,}" for count in counts)))

    for group in groups(splits):
        tables = [splits[name].get(group, {"samples": 0, "residues": 0}) for name in names]
        samples = [table["samples"] for table in tables]
        row(group.replace("_", " + "), [*samples, sum(samples), sum(table["residues"] for table in tables)])
    sums = [sum(table["samples"] for table in splits[name].values()) for name in names]
    row("all", [*sums, totals["samples"], totals["residues"]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *numbers])
    yield ", ".join(f"{totals.get(kind, 0):,} {kind}" for kind in ("structures", "annotations", "texts", "images"))


def _beside(place: Place, manifest: dict[str, Any], data: bytes) -> Iterator[Damage]:
    """What is wrong with the files beside the shards."""
    for name, digest in manifest["files"].items():
        if not place.exists(name):
            yield Damage(name, "", "is in the manifest but not there")
        elif sha256(place.open(name)) != digest:
            yield Damage(name, "", "SHA-256 is not the manifest's")
    if place.exists(REJECTED):
        yield from _rejections(place, manifest["rejected"])
    if place.exists(ONTOLOGY):
        try:
            ontology.read(place, ONTOLOGY)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield Damage(ONTOLOGY, "", f"cannot be read ({type(error).__name__}: {error})")
    yield from _told(place, data)
    for folder in place.list(FOLDER):
        yield from _features(place, f"{FOLDER}/{folder}", manifest, data)


def _told(place: Place, manifest: bytes) -> Iterator[Damage]:
    """The manifest and what was made of it are the files that were written, whatever today's version would write."""
    found = {MANIFEST: manifest} | {name: place.read(name) for name in (CARD, CROISSANT) if place.exists(name)}
    yield from (Damage(name, "", "is not there") for name in (CARD, CROISSANT) if name not in found)
    if not place.exists(SUMS):
        command = f"`sha256sum {MANIFEST} {CARD} {CROISSANT} > {SUMS}` gives one to a data set that was made without"
        yield Damage(SUMS, "", f"is not there; {command}")
        return
    lines = (line.partition("  ") for line in place.read(SUMS).decode(errors="replace").splitlines())
    written = {name: digest for digest, _, name in lines}
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != written.get(name):
            yield Damage(name, "", f"SHA-256 is not that of {SUMS}")


def _rejections(place: Place, counted: dict[str, int]) -> Iterator[Damage]:
    counts: Counter[str] = Counter()
    with io.TextIOWrapper(io.BufferedReader(place.open(REJECTED)), encoding="utf-8") as lines:  # type: ignore[arg-type]
        try:
            for number, line in enumerate(lines, 1):
                try:
                    entry = json.loads(line)
                    counts[entry["reason"]] += int(entry.get("count", 1))
                except (ValueError, KeyError, TypeError) as error:
                    yield Damage(REJECTED, "", f"line {number} is no rejection ({error})")
                    return
        except UnicodeDecodeError as error:
            yield Damage(REJECTED, "", f"is no text ({error})")
            return
    wrong = [
        f"{name}: {counts[name]}, not {counted.get(name, 0)}"
        for name in sorted(counts.keys() | counted.keys())
        if counts[name] != counted.get(name, 0)
    ]
    if wrong:
        yield Damage(REJECTED, "", f"counts differ from the manifest's: {'; '.join(wrong[:5])}")


def _features(place: Place, folder: str, manifest: dict[str, Any], data: bytes) -> Iterator[Damage]:
    """Of one encoder's stored features: that they are of this data set, and their hashes."""
    summary = f"{folder}/{SUMMARY}"
    if not place.exists(summary):
        yield Damage(folder, "", f"has no {SUMMARY}: encoding was interrupted, or goes on")
        return
    try:
        tree = json.loads(place.read(summary))
        belongs, held = tree["dataset"]["manifest_sha256"], dict(tree["shards"])
    except (ValueError, KeyError, TypeError) as error:
        yield Damage(summary, "", f"is damaged ({type(error).__name__}: {error})")
        return
    if belongs != hashlib.sha256(data).hexdigest():
        yield Damage(summary, "", "belongs to another manifest")
    for shard, entry in held.items():
        path = path_of(folder.removeprefix(f"{FOLDER}/"), shard)
        if not place.exists(path):
            yield Damage(path, "", f"is in {SUMMARY} but not there")
        elif sha256(place.open(path)) != entry["sha256"]:
            yield Damage(path, "", f"SHA-256 is not that of {SUMMARY}")


def _held(place: Place, encoder: str) -> dict[str, Any]:
    """The shards whose features an encoder's summary lists; none of one that cannot be read: that is told elsewhere."""
    try:
        return dict(json.loads(place.read(f"{FOLDER}/{encoder}/{SUMMARY}"))["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _strays(place: Place, manifest: dict[str, Any]) -> Iterator[Damage]:
    """Files that nothing names."""
    known = named(manifest)
    for encoder in place.list(FOLDER):
        known |= {f"{FOLDER}/{encoder}/{SUMMARY}", *(path_of(encoder, shard) for shard in _held(place, encoder))}
    for name in place.find("**/*"):
        if name not in known:
            yield Damage(name, "", "is no file of the data set")


def _astray(found: Read, drawn: dict[str, Any], config: SplitConfig) -> Iterator[Damage]:
    """Samples in a split where they do not belong, as far as the samples themselves tell.

    drawn: what came of drawing splits for all proteins together; of a split by key alone there is only the method.
    """
    if drawn == {"method": "hash"}:
        yield from found.astray
    for link, splits in sorted(found.links.items()):
        kind, _, name = link.partition(":")
        if kind in config.together and len(splits) > 1:
            yield Damage(MANIFEST, "", f"images of {kind} {name} are in {' and '.join(ordered(splits))}")


def _counts(manifest: dict[str, Any], found: list[Shard]) -> Iterator[Damage]:
    """Where the manifest's sums are not those of its shards."""
    tree = shards.tree(found)
    if not any("facets" in entry for _, _, entry in entries(manifest)):  # as older versions wrote it
        for _, _, entry in entries({"splits": tree}):
            del entry["facets"]
    for name, made in (("splits", tree), ("totals", shards.totals(found))):
        if made != manifest[name]:
            wrong = [
                key for key in sorted(made.keys() | manifest[name].keys()) if made.get(key) != manifest[name].get(key)
            ]
            yield Damage(MANIFEST, "", f"{name}: {', '.join(wrong)} differ from what the shards hold")
