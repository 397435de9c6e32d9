"""Raw public files → a data set, the whole way on one page.

Files are parsed in slices, one task each; records go to disk by partition of their key; one task per partition joins
its records into samples and writes its shards. A task sees only files, the driver only paths, counts and hashes.
What is written depends on the input and the configuration alone, not on the number of workers or on what died on the
way. A data set is whole when its manifest is there, which is written last; until then the same command goes on.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_prep import aliases, encode, provenance, shards, spill, split, tasks
from data_prep.job import Job, opened, publish
from data_prep.places import Place
from data_prep.recipe import (
    ENTRIES,
    PrepareConfig,
    Roots,
    identity,
    listing,
    ontology_file,
    roots_of,
    slices,
    what,
)
from data_prep.shards import Manifest, Shard
from data_prep.sources.files import Slice
from data_prep.tasks import ONTOLOGY, REJECTED, Told
from data_prep.views.card import CARD, CROISSANT, card
from data_prep.views.croissant import croissant
from data_prep.workers import Workers
from pretrain.config import dump
from pretrain.data.index import MANIFEST
from pretrain.sample import canonical

__all__ = ["PrepareConfig", "prepare"]


def prepare(config: PrepareConfig, out: Path | str, quiet: bool = False) -> Manifest:
    """Make the data set at `out`, a folder or a URL, and its features if that is configured; what is there is kept.

    Raises ValueError for bad input, and for an `out` that is in use or has something else.
    """
    roots = roots_of(config)
    split.check(config.split)
    if config.encode:
        encode.check(config.encode)
    place, steps = Place(str(out)), plan(config, roots)
    with progress(quiet) as bars:
        manifest = already(config, place, steps) or make(config, place, roots, steps, bars)
        if config.encode:
            with bars.each("storing features") as note:
                encode.run(place, config.encode, config.workers, config.address, note)
    return manifest


def make(config: PrepareConfig, out: Place, roots: Roots, steps: "Steps", bars: "Bars") -> Manifest:
    """The data set itself, stage by stage."""
    with (
        opened(out, steps.identity, config.overwrite) as job,
        Workers(config.workers, config.address) as workers,
    ):
        tasks.store_ontology(config, roots, job, steps.terms)
        first, rest = ([step for step in steps.parse if step[0] in names] for names in (steps.entries, steps.others))
        bars("reading entries", workers.run(tasks.parse_slice, (config, roots, job, ""), first), len(first))
        tasks.collect_aliases(job, steps.aliases, steps.entries)
        bars("reading sources", workers.run(tasks.parse_slice, (config, roots, job, steps.aliases), rest), len(rest))
        runs = tuple(f"{name}/{run}" for name, told in steps.parsed(job) for run in told["runs"])
        while len(runs) > spill.FAN:
            groups = [runs[at : at + spill.FAN] for at in range(0, len(runs), spill.FAN)]
            merges = [(f"merge/{identity(group)}", group) for group in groups]
            bars("merging runs", workers.run(tasks.merge_runs, (config.partitions, job), merges), len(merges))
            runs = tuple(f"{name}/{tasks.MERGED}" for name, _ in merges)
        linked = any(told["records"].get("linked") for _, told in steps.parsed(job))
        splits = steps.splits if split.needs_all(config.split, linked) else ""
        if splits:
            facts = workers.run(tasks.gather_facts, (job, runs, linked), steps.facts)
            bars("comparing", facts, len(steps.facts))
            names = tuple(name for name, _ in steps.facts)
            bars("drawing splits", workers.run(tasks.draw_splits, (config, job), [(splits, names)]), 1)
        write = workers.run(tasks.write_partition, (config, job, steps.terms, runs, splits), steps.write)
        bars("writing shards", write, len(steps.write))
        return finish(config, job, roots, steps, splits)


def already(config: PrepareConfig, out: Place, steps: "Steps") -> Manifest | None:
    """The manifest of the data set at `out` if it is this one: of the same settings, from files of the same names and
    sizes. Raises ValueError, with what differs, if it is another one."""
    if config.overwrite or not out.exists(MANIFEST):
        return None
    manifest = Manifest.from_bytes(out.read(MANIFEST))
    if manifest is None:
        return None  # of another version; whether it may be replaced is asked when the job begins
    differ = list(differences(manifest.config, json.loads(canonical(what(config)))))
    if manifest.input != steps.input:
        differ.append("the source files, by name or size")
    if differ:
        few = f"{', '.join(differ[:5])}{', …' if len(differ) > 5 else ''}"
        raise ValueError(
            f"{out} already holds a data set, and these differ: {few}; give another folder, or overwrite=true to "
            "replace it"
        )
    return manifest


def differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """The settings in which two configurations differ: `split.method: "hash" there, "cluster" here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from differences(there.get(key), here.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for number, (one, other) in enumerate(zip(there, here, strict=True)):
            yield from differences(one, other, f"{path}.{number}")
    elif there != here:
        yield f"{path}: {canonical(there):.60} there, {canonical(here):.60} here"


@dataclass(frozen=True)
class Steps:
    """The tasks of a job, by the names of their results. parse: (name, source, slice). write: (name, partition).

    facts: (name, partition). terms, aliases, splits: the ontology, the secondary accessions, everybody's split.
    identity: of the whole. input: of all files' names and sizes.
    """

    parse: list[tuple[str, int, Slice]]
    entries: list[str]
    others: list[str]
    terms: str
    aliases: str
    facts: list[tuple[str, int]]
    splits: str
    write: list[tuple[str, int]]
    identity: str
    input: str

    def parsed(self, job: Job) -> Iterator[tuple[str, Told]]:
        """What each parsed slice told, in the order of sources and files."""
        for name, *_ in self.parse:
            yield name, done(job, name)


def plan(config: PrepareConfig, roots: Roots) -> Steps:
    """Name every task by what its result follows from. Raises ValueError for files that are missing."""
    made = provenance.versions()
    parts = slices(config, roots)

    sizes: dict[str, int] = {}

    def step(number: int, part: Slice, *more: str) -> tuple[str, int, Slice]:
        source = config.sources[number]
        root = roots[source.root or ""]
        files = listing(root, part.names)
        tables = source.companions(root, roots[""])  # a missing one is told by its source
        beside = [listing(place, [name]) for place, name in tables if place.exists(name)]
        sizes.update({f"{number}/{name}": size for name, size, _ in files})
        told = identity(made, dump(source), number, config.partitions, files, beside, part.begin, part.end, *more)
        return f"parse/{told}", number, part

    entries = [step(n, part) for n, part in parts if config.sources[n].kind in ENTRIES]
    aliases = f"aliases/{identity([name for name, *_ in entries])}.table"
    others = [step(n, part, aliases) for n, part in parts if config.sources[n].kind not in ENTRIES]
    place, name = ontology_file(config.ontology, roots) if config.ontology else (None, "")
    stored = listing(place, [name]) if place else []
    sizes.update({f"ontology/{name}": size for name, size, _ in stored})
    terms = f"ontology/{identity(made, stored)}"
    parse = sorted([*entries, *others], key=lambda each: each[1])
    whole = identity(made, what(config), [name for name, *_ in parse], terms)
    numbers = range(config.partitions)
    facts = [(f"facts/{identity([name for name, *_ in parse])}-{number:06d}", number) for number in numbers]
    return Steps(
        parse=parse,
        entries=[name for name, *_ in entries],
        others=[name for name, *_ in others],
        terms=terms,
        aliases=aliases,
        facts=facts,
        splits=f"splits/{identity([name for name, _ in facts], dump(config.split))}",
        write=[(f"write/{whole}-{number:06d}", number) for number in numbers],
        identity=whole,
        input=identity([(number, part.names) for number, part in parts], sizes),
    )


def finish(config: PrepareConfig, job: Job, roots: Roots, steps: Steps, splits: str) -> Manifest:
    """Rejections, ontology, card and manifest, which is written last."""
    rejected, joined = Counter[str](), Counter[str]()
    read = [provenance.Read() for _ in config.sources]
    for _, told in steps.parsed(job):
        read[told["source"]].add(told)
        rejected.update(told["rejected"])
    joined["ambiguous_accessions"] = aliases.read(job.work, steps.aliases).ambiguous
    written = []
    for name, _ in steps.write:
        told = done(job, name)
        written += [Shard(**shard) for shard in told["shards"]]
        rejected.update(told["rejected"])
        joined.update(told["joined"])
    if not written:
        raise ValueError(
            f"no sample is left after joining and filtering; rejected were {provenance.counted(rejected)}; "
            "see the limits under [join] and [filters]"
        )
    sha256 = collect(job, (f"{name}/{REJECTED}" for name, *_ in (*steps.parse, *steps.write)))
    stored = job.work.read(f"{steps.terms}/{ONTOLOGY}")
    job.data.write(ONTOLOGY, stored)
    manifest = Manifest(
        name=config.name,
        partitions=config.partitions,
        splits=shards.tree(written),
        totals=shards.totals(written),
        rejected=provenance.counted(rejected),
        joined=provenance.counted(joined),
        files={ONTOLOGY: hashlib.sha256(stored).hexdigest(), REJECTED: sha256},
        sources=provenance.sources(config, roots, read),
        go=provenance.gene_ontology(config, job.done(steps.terms) or {}),
        split=(job.done(splits) or {}) if splits else {"method": config.split.method},
        input=steps.input,
        config=what(config),
        versions=provenance.versions(),
    )
    data = manifest.to_bytes()
    tree = json.loads(data)
    job.data.write(CARD, card(tree).encode())
    job.data.write(CROISSANT, croissant(tree, hashlib.sha256(data).hexdigest()))
    publish(job, data)
    return manifest


def done(job: Job, name: str) -> Told:
    """What a task told, which is known to have ended. Raises ValueError where its result cannot be seen from here."""
    told = job.done(name)
    if told is None:
        raise ValueError(
            f"a worker's result {name} is not in {job.work}: do all nodes see this folder? A cluster without a common "
            "disk needs --out on a store (s3://…)"
        )
    return told


def collect(job: Job, names: Iterable[str]) -> str:
    """All tasks' rejections in one file, beside the shards, task by task; returns its SHA-256."""
    with job.task("collect") as task:
        path = task.folder / REJECTED
        with open(path, "wb") as file:
            for name in names:
                file.write(job.work.read(name))
        return job.data.put(path, REJECTED)


class Bars:
    """A bar on the terminal for every stage."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown

    def __call__(self, what: str, items: Iterator[Any], total: int) -> None:
        """Count items as they come. Nothing of them is kept: there may be millions."""
        with self.each(what) as note:
            for done, _ in enumerate(items, 1):
                note(done, total)

    @contextmanager
    def each(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A function that is told how many are done, of how many."""
        bar = self._shown.add_task(what, total=None)
        yield lambda done, of: self._shown.update(bar, completed=done, total=of)


@contextmanager
def progress(quiet: bool) -> Iterator[Bars]:
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as shown:
        yield Bars(shown)
