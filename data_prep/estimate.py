"""What a preparation will do (`--dry-run`), and what it will cost (`--plan`), before it is begun.

A plan is measured, not looked up: of every source some slices, spread over its files, are read for some seconds,
and what they gave is joined and written to a scratch folder, on one core. Then each source is scaled to its whole by
the share of its bytes that was read. Where the whole is not at hand yet, `expect` gives its number of records, and
`residues` their mean length, to which time and bytes are proportional. Comparing proteins for their splits and storing
features are not in it.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from data_prep import ontology, shards, spill
from data_prep.describe import describe_all
from data_prep.filters import check
from data_prep.join import join
from data_prep.metered import Metered
from data_prep.recipe import PrepareConfig, Roots, listing, ontology_file, roots_of
from data_prep.records import FileSeen, Rejection, SequenceRecord, StructureRecord
from data_prep.sources.files import Slice
from pretrain.places import Place
from pretrain.sample import KEY, MAX_KEY

SHARD = 256 << 20  # bytes that a shard should have: few enough files, and small enough to copy
SPREAD = 16  # slices of a source that a sample is taken from, at most


@dataclass(frozen=True)
class Listed:
    """One source of a dry run."""

    kind: str
    files: int
    bytes: int
    tasks: int


@dataclass
class Measured:
    """One source: what of it was read, and what that gave. seconds: of one core, reading and parsing.

    tasks: of the source as it lies there. share: of its bytes. residues: of sequences and structures. whole: records
    that the source has in all.
    """

    kind: str
    bytes: int
    tasks: int
    share: float = 0.0
    seconds: float = 0.0
    records: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    residues: int = 0
    spilled: int = 0
    expected: float = 0.0
    longer: float = 1.0

    @property
    def count(self) -> int:
        """Records that stand for a protein each: sequences or structures, or else the most numerous kind."""
        return self.records["structure"] or self.records["sequence"] or max(self.records.values(), default=0)

    @property
    def whole(self) -> float:
        return self.expected or (self.count / self.share if self.share else 0.0)

    @property
    def factor(self) -> float:
        """From what was measured to the whole source."""
        return self.whole / self.count * self.longer if self.count else 0.0


@dataclass(frozen=True)
class Plan:
    """The whole job, extrapolated, in seconds of one core. bytes: of shards and indices.

    spilled: bytes of parsed records, in runs. passes: times that these are copied, until few enough can be read side by
    side; all copies stay until the data set is whole. merging: seconds that the copying takes.
    proteins: at least, and at most (if no two sources share one). groups: modality subsets seen in the sample.
    """

    sources: tuple[Measured, ...]
    samples: int
    proteins: tuple[float, float]
    reading: float
    writing: float
    bytes: float
    spilled: float
    passes: int
    merging: float
    groups: int

    @property
    def core_hours(self) -> float:
        return (self.reading + self.merging + self.writing) / 3600

    @property
    def partitions(self) -> int:
        return max(1, round(self.bytes / SHARD))


def dry_run(config: PrepareConfig) -> list[Listed]:
    """What would be read, by source. Raises ValueError for files and roots that are missing."""
    roots = roots_of(config)
    found = []
    for source in config.sources:
        root = roots[source.root or ""]
        parts = source.slices(root)
        sizes = {name: size for part in parts for name, size, _ in listing(root, part.names)}
        found.append(Listed(source.kind, len(sizes), sum(sizes.values()), len(parts)))
    return found


def plan(
    config: PrepareConfig, seconds: float = 10.0, expect: Mapping[str, float] | None = None, residues: float = 0.0
) -> Plan:
    """Measure and extrapolate. seconds: of reading, per source. expect: kind → number of records of the whole."""
    roots, expect = roots_of(config), dict(expect or {})
    kinds = {source.kind for source in config.sources}
    if unknown := sorted(expect.keys() - kinds):
        raise ValueError(f"records of {unknown} are expected, but the sources are {sorted(kinds)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        out = spill.Spill(folder, 1)
        measured = [_read(config, roots, number, seconds, out) for number in range(len(config.sources))]
        out.flush()
        for each in measured:
            each.expected = expect.get(each.kind, 0.0) * (each.count / max(_total(measured, each.kind), 1))
            if residues and each.residues:
                each.longer = residues / (each.residues / each.count)
        terms = ontology.parse(*ontology_file(config.ontology, roots))[0] if config.ontology else ontology.Ontology()
        written, spent = list[shards.Shard](), 0.0
        for _ in range(2):  # what happens once in each worker is no part of the price per protein
            begun = time.process_time()
            written = _write(config, terms, folder, out.runs)
            spent = time.process_time() - begun
        begun = time.process_time()
        spill.combine(Place(scratch), out.runs, 1, folder / "merged")
        return _extrapolated(measured, written, spent, time.process_time() - begun)


def _total(measured: Iterable[Measured], kind: str) -> int:
    """Several sources of one kind share what is expected of it as they share what was read."""
    return sum(each.count for each in measured if each.kind == kind)


def _extrapolated(measured: list[Measured], written: list[shards.Shard], seconds: float, merging: float) -> Plan:
    """Time of joining is scaled as the number of records is, and bytes of shards as their bytes on the way.

    merging: seconds to copy what was measured, once.
    """
    spilled, count = (sum(getattr(each, name) for each in measured) for name in ("spilled", "count"))
    factor = sum(each.spilled * each.factor for each in measured) / spilled if spilled else 0.0
    times = sum(each.count * each.factor for each in measured) / count if count else 0.0
    wholes = [each.whole for each in measured]
    passes = spill.passes(max(sum(each.tasks for each in measured), int(spilled * factor / spill.HELD)))
    return Plan(
        sources=tuple(measured),
        samples=sum(shard.samples for shard in written),
        proteins=(max(wholes, default=0.0), sum(wholes)),
        reading=sum(each.seconds * each.factor for each in measured),
        writing=seconds * times,
        bytes=sum(shard.bytes + shard.index_bytes for shard in written) * factor,
        spilled=spilled * factor,
        passes=passes,
        merging=merging * factor * passes,
        groups=len({shard.group for shard in written}),
    )


def _read(config: PrepareConfig, roots: Roots, number: int, seconds: float, out: spill.Spill) -> Measured:
    """Read some of a source, for some seconds."""
    source = config.sources[number]
    root = roots[source.root or ""]
    parts = list(source.slices(root))
    sizes = {name: size for part in parts for name, size, _ in listing(root, part.names)}
    found, metered = Measured(source.kind, sum(sizes.values()), len(parts)), Metered(root.url)
    for _ in islice(source.read(root, parts[0], roots[""]), 2):  # what a process does once is no part of the price
        pass
    begun, done, weight = time.process_time(), 0.0, sum(_weight(part, sizes) for part in parts)
    for part in parts[:: max(1, len(parts) // SPREAD)]:
        left = seconds - (time.process_time() - begun)
        if left <= 0:
            break
        object.__setattr__(metered, "given", 0)  # a Place is frozen
        whole = _slice(source.read(metered, part, roots[""]), found, out, left)
        size = _weight(part, sizes)
        done += size if whole else min(metered.given, size)
    found.seconds = time.process_time() - begun
    found.share = min(done / weight, 1.0) if weight else 0.0
    return found


def _weight(part: Slice, sizes: dict[str, int]) -> int:
    return part.end - part.begin if part.end is not None else sum(sizes[name] for name in part.names)


def _slice(items: Any, found: Measured, out: spill.Spill, seconds: float) -> bool:
    """Take a slice's items until they end, or the time is up. Whether they ended."""
    end = time.process_time() + seconds
    before = out.spilled
    for item in items:
        if isinstance(item, Rejection):
            found.rejected += item.count
        elif not isinstance(item, FileSeen) and KEY.fullmatch(item.key) and len(item.key) <= MAX_KEY:
            found.records[type(item).__name__.removesuffix("Record").lower()] += 1
            if isinstance(item, StructureRecord):
                found.residues += len(item.letters)
            elif isinstance(item, SequenceRecord):
                found.residues += len(item.sequence)
            out.add(item)
        if time.process_time() > end:
            found.spilled += out.spilled - before
            return False
    found.spilled += out.spilled - before
    return True


def _write(config: PrepareConfig, terms: ontology.Ontology, folder: Path, runs: list[str]) -> list[shards.Shard]:
    """Join and write what was read, as one partition of a data set without splits."""
    shelf = shards.Shelf(folder / "shards", 0)

    def samples() -> Any:
        for key, group in groupby(spill.merge(Place(str(folder)), runs, 0), key=lambda pair: pair[0]):
            records = [record for _, record in group]
            sample = join(key, records, terms, config.join).sample
            if sample and not isinstance(check(sample, records[0], config.filters), Rejection):
                yield sample

    for sample in describe_all(samples(), terms, config.describe):
        shelf.add("train", sample)
    return shelf.close()


def listed(found: Iterable[Listed]) -> Table:
    """A dry run, to be printed."""
    table = Table("source", "files", "bytes", "tasks")
    for each in found:
        table.add_row(each.kind, f"{each.files:,}", decimal(each.bytes), f"{each.tasks:,}")
    return table


def told(found: Plan, config: PrepareConfig) -> Iterator[Table | str]:
    """A plan, to be printed, with its arithmetic."""
    table = Table("source", "bytes", "read", "records", "core-s", "whole: records", "core-h")
    for each in found.sources:
        hours = each.seconds * each.factor / 3600
        table.add_row(
            each.kind, decimal(each.bytes), f"{each.share:.1%}", f"{each.count:,}", f"{each.seconds:.1f}",
            f"{each.whole:,.0f}", f"{hours:,.2f}",
        )  # fmt: skip
    yield table
    least, most = found.proteins
    yield f"proteins          {least:,.0f} (sources overlap wholly) to {most:,.0f} (not at all)"
    parts = (("reading", found.reading), ("merging", found.merging), ("joining and writing", found.writing))
    hours = ", ".join(f"{what} {seconds / 3600:,.2f}" for what, seconds in parts)
    yield f"core-hours        {found.core_hours:,.2f}: {hours}"
    yield f"data set          {decimal(int(found.bytes))}"
    copies = f" of records, copied {found.passes} times to merge {spill.FAN} runs at a time" if found.passes else ""
    held = f"{decimal(int(found.spilled))}{copies}"
    yield f"on the way        {decimal(int(found.spilled * (1 + found.passes)))} in the work folder" + (
        f": {held}" if copies else ""
    )
    each = decimal(int(found.bytes / found.partitions))
    most = f"up to {found.partitions * found.groups:,} shards for {found.groups} modality subsets, times the splits"
    yield f"partitions        {found.partitions:,} of {each}, in {most}"
    left = [what for what, there in (("comparing for splits", config.split.method == "cluster"),
                                     ("storing features", config.encode is not None)) if there]  # fmt: skip
    if left:
        yield f"not in it         {' and '.join(left)}"
    if config.partitions * 4 < found.partitions or config.partitions > found.partitions * 64:
        yield f"                  the configuration has partitions = {config.partitions}"
