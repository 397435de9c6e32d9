"""Raw public files → a data set, the whole way on one page.

Files are parsed in slices, one task each; records go to disk by partition of their key; one task per partition joins
its records into samples and writes its shards. A task sees only files, the driver only paths, counts and hashes.
What is written depends on the input and the configuration alone, not on the number of workers or on what died on the
way. A data set is whole when its manifest is there, which is written last; until then the same command goes on.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep import aliases, encode, provenance, shards, spill, split, tasks
from data_prep.bars import Bars, progress
from data_prep.job import Job, clear, opened, publish
from data_prep.recipe import PrepareConfig, Roots, identity, roots_of, what
from data_prep.shards import Manifest, Shard
from data_prep.steps import Steps, done, plan
from data_prep.tasks import ONTOLOGY, REJECTED
from data_prep.views.card import CARD, CROISSANT, card
from data_prep.views.croissant import croissant
from data_prep.workers import Workers
from pretrain.data.index import MANIFEST
from pretrain.places import Place
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
        if manifest := already(config, place, steps):
            clear(place, steps.identity)
            bars.say(f"{place} is there already, of source files of these names and sizes: they are not read again")
        else:
            manifest = make(config, place, roots, steps, bars)
        if config.encode:
            with bars.each("storing features") as note:
                encode.run(place, config.encode, config.workers, config.address, note)
    return manifest


def make(config: PrepareConfig, out: Place, roots: Roots, steps: Steps, bars: Bars) -> Manifest:
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
        check_given(config, steps, job)
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


def already(config: PrepareConfig, out: Place, steps: Steps) -> Manifest | None:
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


def check_given(config: PrepareConfig, steps: Steps, job: Job) -> None:
    """Raises ValueError for a source that gave nothing: with `on_error = "reject"`, no error has said so."""
    given = [Counter[str]() for _ in config.sources]
    rejected = [Counter[str]() for _ in config.sources]
    for _, told in steps.parsed(job):
        given[told["source"]].update(told["records"])
        rejected[told["source"]].update(told["rejected"])
    for source, records, reasons in zip(config.sources, given, rejected, strict=True):
        if reasons and not records.total():
            raise ValueError(
                f"the {source.kind} source of {', '.join(source.patterns)} gave nothing; rejected were "
                f"{provenance.counted(reasons)}. Look at one of its files, or leave the source out"
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


def collect(job: Job, names: Iterable[str]) -> str:
    """All tasks' rejections in one file, beside the shards, task by task; returns its SHA-256."""
    with job.task("collect") as task:
        path = task.folder / REJECTED
        with open(path, "wb") as file:
            for name in names:
                file.write(job.work.read(name))
        return job.data.put(path, REJECTED)
