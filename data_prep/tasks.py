"""What a worker does: parse a slice, gather what splits go by, write a partition. Each is a pure function of files.

A task leaves its result in the job's work folder and says what the driver must know; a task that is done is never done
again. Nothing else passes between tasks.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from data_prep import aliases, describe, ontology, shards, spill, split
from data_prep.assign import assign
from data_prep.filters import check
from data_prep.job import Job
from data_prep.join import join
from data_prep.recipe import ENTRIES, PrepareConfig, Roots, ontology_file
from data_prep.records import (
    EntryRecord,
    FileSeen,
    ImageRecord,
    Record,
    Rejection,
    SequenceRecord,
    StructureRecord,
)
from data_prep.sources.files import Slice
from data_prep.split import Facts
from pretrain.sample import KEY, MAX_KEY, Image, Sample, canonical

REJECTED = "rejected.jsonl"
ONTOLOGY = "ontology.json"
FACTS = "facts.tsv"
MERGED = "merged.run"
Told = dict[str, Any]


class Rejected:
    """A task's rejections: to its file as they come, counted by reason."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._file = open(folder / REJECTED, "w", encoding="utf-8")  # noqa: SIM115  closed by close

    def add(self, rejection: Rejection) -> None:
        self.counts[rejection.reason] += rejection.count
        told = {name: value for name, value in asdict(rejection).items() if (name, value) != ("count", 1)}
        self._file.write(canonical(told) + "\n")

    def close(self) -> dict[str, int]:
        self._file.close()
        return dict(sorted(self.counts.items()))


def store_ontology(config: PrepareConfig, roots: Roots, job: Job, name: str) -> Told:
    """Write the data set's `ontology.json`; an empty one where none is configured."""
    if done := job.done(name):
        return done
    stored, seen = ontology.Ontology(), None
    if config.ontology:
        stored, seen = ontology.parse(*ontology_file(config.ontology, roots))
    with job.task(name) as task:
        (task.folder / ONTOLOGY).write_bytes(stored.to_bytes())
        counts = {"terms": len(stored.terms), "obsolete": len(stored.obsolete), "alt_ids": len(stored.primary)}
        return task.finish({"counts": counts, "release": stored.release, "seen": seen and asdict(seen)})


def parse_slice(config: PrepareConfig, roots: Roots, job: Job, table: str, name: str, source: int, part: Slice) -> Told:
    """Parse a slice of a source: its records as runs, its rejections, and of entries their accessions.

    table: of secondary accessions; none while entries are parsed.
    """
    if done := job.done(name):
        return done
    files = config.sources[source]
    entries = files.kind in ENTRIES
    known = aliases.read(job.work, table) if table else None
    seen: list[FileSeen] = []
    counts: Counter[str] = Counter()
    with job.task(name) as task:
        out, rejected = spill.Spill(task.folder, config.partitions), Rejected(task.folder)
        listed = open(task.folder / aliases.NAMES, "w") if entries else None  # noqa: SIM115  closed below
        for item in files.read(roots[files.root or ""], part, roots[""]):
            if isinstance(item, FileSeen):
                seen.append(item)
            elif isinstance(item, Rejection):
                rejected.add(item)
            elif not KEY.fullmatch(item.key) or len(item.key) > MAX_KEY:
                problem = f"a key must match {KEY.pattern}, and have at most {MAX_KEY} characters"
                rejected.add(Rejection("bad_key", item.key[: 2 * MAX_KEY], item.source, problem, item.position))
            else:
                record = known.renamed(item) if known else item
                out.add(record)
                counts[type(item).__name__.removesuffix("Record").lower()] += 1
                counts["by_secondary_accession"] += record is not item
                counts["linked"] += isinstance(item, ImageRecord) and bool(item.image.gene or item.image.antibody)
                if listed and isinstance(item, EntryRecord):
                    listed.write(aliases.line(item))
        out.flush()
        if listed:
            listed.close()
        told = {"source": source, "seen": [asdict(each) for each in seen], "runs": out.runs}
        return task.finish({**told, "records": dict(sorted(counts.items())), "rejected": rejected.close()})


def collect_aliases(job: Job, table: str, entries: list[str]) -> None:
    """The table of secondary accessions, from the slices that have entries."""
    if not job.work.exists(table):
        found = aliases.collect(job.work, [f"{name}/{aliases.NAMES}" for name in entries])
        job.work.write(table, aliases.store(found))


def merge_runs(partitions: int, job: Job, name: str, runs: tuple[str, ...]) -> Told:
    """Many runs → one: each partition is read from every run, and thousands from thousands would take days."""
    if done := job.done(name):
        return done
    with job.task(name) as task:
        spill.combine(job.work, runs, partitions, task.folder / MERGED)
        return task.finish({"runs": len(runs)})


def gather_facts(job: Job, runs: tuple[str, ...], linked: bool, name: str, number: int) -> Told:
    """What the splits of one partition's proteins depend on. linked: whether images name genes or antibodies."""
    if done := job.done(name):
        return done
    with job.task(name) as task:
        wanted = SequenceRecord, EntryRecord, ImageRecord, StructureRecord
        groups = groupby(spill.skim(job.work, runs, number, wanted), key=lambda pair: pair[0])
        facts = (facts_of(key, [record for _, record in group if record], linked) for key, group in groups)
        return task.finish({"proteins": split.write(task.folder / FACTS, facts)})


def facts_of(key: str, records: list[Record], linked: bool) -> Facts:
    sequences = [record.sequence for record in records if isinstance(record, SequenceRecord) and record.sequence]
    chains = [record.letters for record in records if isinstance(record, StructureRecord)]
    letters = sequences[0] if sequences else max(chains, key=len, default=None)
    entries = [record.about for record in records if isinstance(record, EntryRecord)]
    links = {f"gene:{image.gene.upper()}" for image in images_of(records) if image.gene}
    links |= {f"antibody:{image.antibody.upper()}" for image in images_of(records) if image.antibody}
    links |= {f"gene:{gene.partition('.')[0].upper()}" for about in entries for gene in about.genes if linked}
    if letters is not None and not (letters.isascii() and letters.isalpha()):
        letters = "".join(letter if letter.isascii() and letter.isalpha() else "X" for letter in letters)
    return Facts(key, letters, next((about.taxon for about in entries if about.taxon), 0), tuple(sorted(links)))


def images_of(records: list[Record]) -> list[Image]:
    return [record.image for record in records if isinstance(record, ImageRecord)]


def draw_splits(config: PrepareConfig, job: Job, name: str, facts: tuple[str, ...]) -> Told:
    """Every protein's split, where that depends on other proteins."""
    if done := job.done(name):
        return done
    with job.task(name) as task:
        summary = assign(job.work, [f"{each}/{FACTS}" for each in facts], config.split, task.folder)
        return task.finish(asdict(summary))


def write_partition(
    config: PrepareConfig, job: Job, terms: str, runs: tuple[str, ...], splits: str, name: str, number: int
) -> Told:
    """Join, filter, describe and write the proteins of one partition: a shard per split and modality subset.

    terms: the task that stored the ontology. splits: the one that drew splits; none where the key alone decides.
    """
    if done := job.done(name):
        return done
    with job.task(name) as task:
        rejected, counts = Rejected(task.folder), Counter[str]()
        go = ontology.read(job.work, f"{terms}/{ONTOLOGY}")
        shelf = shards.Shelf(task.folder, number)
        drawn = split.Assignment.read(job.work / splits, number) if splits else None
        kept = samples(config, job, runs, number, go, drawn, rejected, counts)
        for sample in describe.describe_all(kept, go, config.describe):
            where = drawn.of(sample.key) if drawn else split.split(sample.key, config.split)
            assert where, "samples leaves out what has no split"
            counts.update({f"texts/{origin}": number for origin, number in describe.count(sample).items()})
            shelf.add(where, sample, drawn.cluster(sample.key) if drawn else None)
        written = shelf.close()
        for shard in written:
            for path in (shard.path, shard.index_path):
                job.data.put(task.folder / path, path)
        for split_folder in {shard.split for shard in written}:
            _remove_empty(task.folder / split_folder)
        told = {"shards": [asdict(shard) for shard in written], "joined": dict(sorted(counts.items()))}
        return task.finish({**told, "rejected": rejected.close()})


def samples(
    config: PrepareConfig,
    job: Job,
    runs: tuple[str, ...],
    number: int,
    terms: ontology.Ontology,
    drawn: split.Assignment | None,
    rejected: Rejected,
    counts: Counter[str],
) -> Iterator[Sample]:
    """The partition's proteins that pass the filters, by key; what does not goes to `rejected`."""
    merged = spill.merge(job.work, runs, number)
    for key, group in groupby(merged, key=lambda pair: pair[0]):
        records = [record for _, record in group]
        joined = join(key, records, terms, config.join)
        counts.update(joined.counts)
        for rejection in joined.rejected:
            rejected.add(rejection)
        checked = joined.sample and check(joined.sample, records[0], config.filters)
        if isinstance(checked, Rejection):
            rejected.add(checked)
        elif checked and drawn and drawn.of(key) is None:
            told = "another species' relative of a held-out protein"
            rejected.add(Rejection(split.DROP, key, records[0].source, told, records[0].position))
        elif checked:
            yield checked


def _remove_empty(folder: Path) -> None:
    """What is left of a shelf when its shards have gone to their place."""
    for group in folder.iterdir():
        group.rmdir()
    folder.rmdir()
