"""Splits for all proteins together: whatever is related is in one split.

One task, between parsing and writing. It goes through the facts of all partitions in the order of keys, so that a
protein's number is its place in that order and a component's smallest number its smallest key; neither the number of
partitions nor that of workers changes anything. It holds about 40 bytes per protein and 16 per link; the sequences
pass by, into a FASTA file for MMseqs2.
"""

import heapq
import logging
import shutil
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep import clusters, components
from data_prep.components import Numbers
from data_prep.split import DROPPED, SPLITS, TEST, TRAIN, VALID, Facts, SplitConfig, check, draw, parent, read, table
from pretrain.places import Place

HELD = 256 << 20  # bytes of all partitions' facts read ahead
SMALLEST = 64 << 10  # bytes of one partition's
LETTERS = "".join(chr(c).upper() if chr(c).isascii() and chr(c).isalpha() else "X" for c in range(256))
FASTA = "sequences.fasta"
HOMOLOGS, KEYS, ABSENT = "homologs", "keys", "absent"
log = logging.getLogger(__name__)
Splits = NDArray[np.uint8]


@dataclass(frozen=True)
class Summary:
    """What the manifest says of the splits. Numbers count proteins where nothing else is said.

    splits: proteins in each. shares: asked for and reached. mmseqs: version, commands and clusters, and what counts as
    relatives. joined: pairs, by what joins them. components: sets that nothing joins with another. sizes: of these.
    largest: the largest one's smallest key, and its size. to_train: components and proteins that SplitConfig.largest
    sent there. held_out: proteins of each held-out species, those held out by key, keys of nobody (`absent`), and
    homologs of the held-out ones in others.
    """

    method: str
    proteins: int
    with_sequence: int
    splits: dict[str, int]
    shares: dict[str, dict[str, float]]
    mmseqs: dict[str, Any]
    joined: dict[str, int]
    components: int
    sizes: dict[str, int]
    largest: dict[str, Any]
    to_train: dict[str, int]
    held_out: dict[str, int]


@dataclass(frozen=True, eq=False)
class Crowd:
    """All proteins, by number. partition: where each one's facts are. own: the split that its key alone would give.

    held: 1 for a protein that is held out, of a species or by its key. taxon: its own if that is held out, else 0.
    letters: a hash of its sequence, 0 without one. links: by kind, hashes of links and the numbers of proteins that
    have them. absent: keys to be held out that no protein has. isoforms: numbers of proteins that belong to the one
    before.
    """

    partition: "array[int]" = field(default_factory=lambda: array("I"))
    own: "array[int]" = field(default_factory=lambda: array("B"))
    held: "array[int]" = field(default_factory=lambda: array("B"))
    taxon: "array[int]" = field(default_factory=lambda: array("I"))
    letters: "array[int]" = field(default_factory=lambda: array("Q"))
    links: "dict[str, tuple[array[int], array[int]]]" = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    isoforms: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, eq=False)
class Drawn:
    """splits: uint8 [N], as stored. fixed: bool [N], of components that have something held out. to_train: as told."""

    splits: Splits
    fixed: NDArray[np.bool_]
    to_train: dict[str, int]


def assign(place: Place, facts: Sequence[str], config: SplitConfig, folder: Path, threads: int = 0) -> Summary:
    """Draw every protein's split; `folder` gets one table per partition, for `Assignment.read`.

    facts: names below `place` of what `split.write` wrote, in the order of partitions. folder: local, with room for
    about four times the sequences for the time of the call. threads: for MMseqs2, 0 for all there are.

    Raises ValueError where MMseqs2 is wanted and is not there, or fails.
    """
    check(config)
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    crowd = gather(place, facts, config, scratch / FASTA)
    there = np.unique(np.asarray(crowd.taxon))
    if missing := [str(taxon) for taxon in config.held_out_taxa if taxon not in there]:
        raise ValueError(
            f"split.held_out_taxa: no protein here is of NCBI taxon {', '.join(missing)}; correct the number, or read "
            "entries or tables that have taxon ids"
        )
    _check_keys(crowd, config)
    root = components.alone(len(crowd.own))
    joined = link(crowd, root)
    drawn, mmseqs = draw_components(root, crowd, config), {}
    if config.method == "cluster" and len(numbers := np.flatnonzero(np.asarray(crowd.letters))):
        joined["identical"] = together(root, *components.pairs(np.asarray(crowd.letters)[numbers], numbers))
        sequences = clusters.Sequences(scratch / FASTA, numbers, config, scratch / "mmseqs", threads)
        drawn, mmseqs = compare(sequences, crowd, root, joined, config)
    shutil.rmtree(scratch)
    write_tables(place, facts, crowd, drawn.splits, root if config.method == "cluster" else None, folder)
    splits = {name: int((drawn.splits == code).sum()) for code, name in enumerate(SPLITS)}
    return Summary(
        method=config.method,
        proteins=len(root),
        with_sequence=int(np.count_nonzero(np.asarray(crowd.letters))),
        splits=splits,
        shares=shares(splits, config),
        mmseqs=mmseqs,
        joined=joined,
        **sizes(root, place, facts, crowd),
        to_train=drawn.to_train,
        held_out=held_out(drawn, crowd, config),
    )


def _check_keys(crowd: Crowd, config: SplitConfig) -> None:
    """Say which keys hold nobody out. ValueError where none does."""
    count, absent = len(set(config.held_out_keys)), sorted(crowd.absent)
    if not absent:
        return
    told = f"{', '.join(absent[:5])}{', …' if len(absent) > 5 else ''}"
    if len(absent) == count:
        raise ValueError(
            f"split.held_out_keys: no protein here has one of the {count} keys, {told}; give keys as samples have them "
            "(accessions)"
        )
    log.warning("split.held_out_keys: no protein here has %d of the %d keys: %s", len(absent), count, told)


def gather(place: Place, names: Sequence[str], config: SplitConfig, fasta: Path) -> Crowd:
    """Go through all facts once. Sequences go to `fasta`, under their proteins' numbers, if they are to be compared."""
    crowd, before = Crowd(), ""
    taxa, keys = set(config.held_out_taxa), set(config.held_out_keys)
    crowd.absent.update(keys)
    wanted = config.method == "cluster"
    with open(fasta, "w", encoding="ascii") as file:
        for number, (key, partition, each) in enumerate(merged(place, names)):
            crowd.partition.append(partition)
            crowd.own.append(draw(key, config))
            crowd.taxon.append(each.taxon if each.taxon in taxa else 0)
            crowd.held.append(each.taxon in taxa or key in keys)
            crowd.absent.discard(key)
            if parent(key) != key and parent(key) == parent(before):  # `P12345` comes just before `P12345-2`
                crowd.isoforms.append(number)
            for link in each.links:
                kind = link.partition(":")[0]
                if kind in config.together:
                    marks, numbers = crowd.links.setdefault(kind, (array("Q"), array("q")))
                    marks.append(_hash(link))
                    numbers.append(number)
            letters = (each.sequence or "").translate(LETTERS)
            crowd.letters.append(_hash(letters) if letters else 0)
            if letters and wanted:
                file.write(f">{number}\n{letters}\n")
            before = key
    return crowd


def merged(place: Place, names: Sequence[str]) -> Iterator[tuple[str, int, Facts]]:
    """(key, partition, facts) of all partitions, in the order of keys."""
    ahead = max(SMALLEST, HELD // max(len(names), 1))

    def one(partition: int, name: str) -> Iterator[tuple[str, int, Facts]]:
        return ((each.key, partition, each) for each in read(place, name, ahead))

    return heapq.merge(*(one(partition, name) for partition, name in enumerate(names)), key=lambda row: row[0])


def link(crowd: Crowd, root: Numbers) -> dict[str, int]:
    """Join what isoforms and links join; how many pairs of each kind there are."""
    isoforms = np.asarray(crowd.isoforms)
    joined = {"isoform": together(root, isoforms, isoforms - 1)}
    for kind, (marks, numbers) in sorted(crowd.links.items()):
        joined[kind] = together(root, *components.pairs(np.asarray(marks), np.asarray(numbers)))
    components.settle(root)
    return joined


def together(root: Numbers, a: NDArray[Any], b: NDArray[Any]) -> int:
    """Join pairs, and count those that are two proteins."""
    components.join(root, a, b)
    return int((a != b).sum())


def compare(
    sequences: clusters.Sequences, crowd: Crowd, root: Numbers, joined: dict[str, int], config: SplitConfig
) -> tuple[Drawn, dict[str, Any]]:
    """Join clusters and draw; then compare what is held out with everything, join what is related and draw again.

    So the relatives are found of those proteins for which it matters; that is some 13 % of the pack's if 10 % are held
    out. What a round holds out for the first time is compared in the next. Also told is what MMseqs2 did.

    Tried and left: putting held-out proteins with a relative in train there. It breaks up families until those held out
    are the ones without relatives.
    """
    joined["cluster"] = joined["search"] = 0
    for representatives, members in sequences.clusters():
        joined["cluster"] += together(root, representatives, members)
    count = len(sequences.numbers) - joined["cluster"]
    compared, rounds = np.zeros(len(root), dtype=bool), []
    while True:
        components.settle(root)
        drawn = draw_components(root, crowd, config)
        wanted = ((drawn.splits == VALID) | (drawn.splits == TEST)) & (np.asarray(crowd.letters) > 0) & ~compared
        if not (config.search and wanted.any()):
            break
        for one, other in sequences.relatives(wanted):
            joined["search"] += together(root, one, other)
        compared |= wanted
        rounds.append(int(wanted.sum()))
    how = {name: getattr(config, name) for name in clusters.ClusterConfig.model_fields}
    did = {"version": clusters.version(), "commands": list(sequences.commands), "clusters": count, "searched": rounds}
    return drawn, {**how, **did}


def draw_components(root: Numbers, crowd: Crowd, config: SplitConfig) -> Drawn:
    """Each component gets the split of its smallest key; but for large ones, and those that have something held out."""
    count = len(root)
    splits: Splits = np.asarray(crowd.own)[root]
    wanted = min((share for share in (config.valid, config.test) if share), default=1.0)
    size = np.bincount(root, minlength=count)
    large = (size > max(1, int(config.largest * wanted * count))) & (np.asarray(crowd.own) != TRAIN)
    splits[large[root]] = TRAIN
    itself = np.asarray(crowd.held, dtype=bool)
    held = np.zeros(count, dtype=bool)
    held[root[itself]] = True
    large &= ~held
    splits[held[root]] = TEST
    homologs = held[root] & ~itself
    if config.homologs == "drop":
        splits[homologs] = DROPPED
    return Drawn(splits, held[root], {"components": int(large.sum()), "proteins": int(size[large].sum())})


def held_out(drawn: Drawn, crowd: Crowd, config: SplitConfig) -> dict[str, int]:
    """Proteins of each held-out species, those held out by key, and others that went with them or were left out."""
    taxon, held = np.asarray(crowd.taxon), np.asarray(crowd.held, dtype=bool)
    told = {str(id): int((taxon == id).sum()) for id in config.held_out_taxa}
    if config.held_out_keys:
        told |= {KEYS: int((held & (taxon == 0)).sum()), ABSENT: len(crowd.absent)}
    return {**told, HOMOLOGS: int((drawn.fixed & ~held).sum())} if told else {}


def write_tables(
    place: Place, facts: Sequence[str], crowd: Crowd, splits: Splits, root: Numbers | None, folder: Path
) -> None:
    """One table per partition, in the order of its facts: key, split and, where sequences were compared, cluster.

    A cluster is a component, and its name is the number of its smallest key among all keys.
    """
    begins = np.concatenate([[0], np.cumsum(np.bincount(np.asarray(crowd.partition), minlength=len(facts)))])
    order = np.argsort(np.asarray(crowd.partition), kind="stable")
    columns = [splits, *([] if root is None else [root])]
    for number, name in enumerate(facts):
        mine = order[begins[number] : begins[number + 1]]
        rows = zip(read(place, name), *(column[mine].tolist() for column in columns), strict=True)
        with open(folder / table(number), "w", encoding="ascii") as file:
            file.writelines("\t".join([each.key, *map(str, told)]) + "\n" for each, *told in rows)


def shares(splits: dict[str, int], config: SplitConfig) -> dict[str, dict[str, float]]:
    """Asked for and reached. What was left out counts as part of the whole."""
    asked = {"train": 1 - config.valid - config.test, "valid": config.valid, "test": config.test}
    total = max(sum(splits.values()), 1)
    return {name: {"asked": round(asked[name], 6), "reached": round(splits[name] / total, 6)} for name in SPLITS}


def sizes(root: Numbers, place: Place, facts: Sequence[str], crowd: Crowd) -> dict[str, Any]:
    """Summary's components, sizes and largest."""
    size = np.bincount(root)
    number = int(size.argmax()) if len(root) else 0
    told: dict[str, int] = {}
    for found, times in zip(*np.unique(size[size > 0], return_counts=True), strict=True):
        low = 10 ** (len(str(found)) - 1)
        name = str(found) if found < 10 else f"{low}-{10 * low - 1}"
        told[name] = told.get(name, 0) + int(times)
    most = {"key": key_of(number, place, facts, crowd), "size": int(size[number])} if len(root) else {}
    return {"components": sum(told.values()), "sizes": told, "largest": most}


def key_of(number: int, place: Place, facts: Sequence[str], crowd: Crowd) -> str:
    partition = crowd.partition[number]
    row = crowd.partition[:number].count(partition)
    return next(islice(read(place, facts[partition]), row, None)).key


def _hash(text: str) -> int:
    """64 bits, never 0. Two of 10^8 texts share one with a chance of 1 in 4,000, and are then kept together."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") or 1
