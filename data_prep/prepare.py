"""Raw public files → a data set, the whole way on one page.

Files are parsed in slices, one task each; records go to disk by partition of their key; one task per partition joins
its records into samples and writes its shards. A task sees only files, the driver only paths, counts and hashes.
What is written depends on the input and the configuration alone, not on the number of workers. A data set appears
under its name when it is complete, by one rename.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import uuid4

import pydantic
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_prep import ontology, shards, spill
from data_prep.describe import DescribeConfig, describe
from data_prep.filters import FilterConfig, check
from data_prep.join import JoinConfig, join
from data_prep.places import Place
from data_prep.records import FileSeen, Record, Rejection
from data_prep.shards import Manifest, Shard
from data_prep.sources.files import Slice, find, resolve
from data_prep.sources.gene_ontology import Annotations, Gaf
from data_prep.sources.images import Images
from data_prep.sources.structures import Structures
from data_prep.sources.texts import Texts
from data_prep.sources.uniprot import Fasta, Uniprot
from data_prep.split import SplitConfig, split
from data_prep.workers import Workers
from pretrain.config import Config, dump
from pretrain.sample import KEY, MAX_KEY, Sample, canonical, group_name

Source = Annotated[
    Uniprot | Fasta | Structures | Gaf | Annotations | Texts | Images, pydantic.Field(discriminator="kind")
]
WHERE = {
    "root",
    "roots",
    "workers",
    "address",
    "overwrite",
}  # keys that say where and how, not what; not in the manifest
PACKAGES = ("fourfold", "numpy", "gemmi", "biopython", "pronto", "pillow")

Roots = dict[str, Place]  # by name under `[roots]`; the configuration's own root is ""
T = TypeVar("T")


class OntologyConfig(Config):
    """files: the Gene Ontology in OBO format (`.gz` too), one file. Without it no annotation can be resolved."""

    files: str
    root: str | None = None
    release: str = ""


class PrepareConfig(Config):
    """Everything a data set is made of.

    root: the folder that the sources' paths are relative to: a path (a relative one from the current directory),
    `$VARIABLE`, or `package:data_prep/sample` for files that are installed with a package. roots: more, by name.
    sources: the order is that of precedence (sequences). partitions: shards per split and modality subset.
    workers: Ray tasks at a time; 0 runs without Ray. address: of an existing Ray cluster that sees the same folders.
    overwrite: replace a data set that is there.
    """

    name: str
    root: str = "."
    roots: dict[str, str] = pydantic.Field(default_factory=dict)
    ontology: OntologyConfig | None = None
    sources: tuple[Source, ...] = pydantic.Field(min_length=1)
    join: JoinConfig = JoinConfig()
    filters: FilterConfig = FilterConfig()
    describe: DescribeConfig = pydantic.Field(default_factory=lambda: DescribeConfig.model_validate({}))
    split: SplitConfig = pydantic.Field(default_factory=lambda: SplitConfig.model_validate({}))
    partitions: int = pydantic.Field(16, ge=1)
    workers: int = pydantic.Field(2, ge=0)
    address: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Parsed:
    """What the driver learns of a parsed slice: which source, which files, how many records of which kind."""

    source: int
    seen: tuple[FileSeen, ...]
    records: dict[str, int] = field(default_factory=dict)


def prepare(config: PrepareConfig, out: Path, quiet: bool = False) -> Manifest:
    """Make the data set at `out`. Raises ValueError for input that is missing or damaged, and for an `out` in use."""
    roots = {"": resolve(config.root), **{name: resolve(root, f"roots.{name}") for name, root in config.roots.items()}}
    slices = plan(config, roots)
    with staging(out, config.overwrite) as folder, Workers(config.workers, config.address) as workers:
        with progress(quiet) as bars:
            store = partial(store_ontology, config, roots, folder)
            parse = [partial(parse_slice, config, roots, folder, number, *each) for number, each in enumerate(slices)]
            parsed = bars("reading sources", workers.run([store, *parse]), len(parse) + 1)
            write = [
                partial(write_partition, config, folder, len(slices), number) for number in range(config.partitions)
            ]
            written = [shard for some in bars("writing shards", workers.run(write), len(write)) for shard in some]
        return publish(config, folder, parsed, written)


def plan(config: PrepareConfig, roots: Roots) -> list[tuple[int, Slice]]:
    """(source, slice) of every unit of work. Raises ValueError for a file, folder or root that is missing."""
    unknown = sorted({source.root for source in config.sources if source.root and source.root not in roots})
    if unknown:
        raise ValueError(f"sources name the roots {unknown}, but [roots] has {sorted(config.roots)}; add them there")
    return [
        (number, part)
        for number, source in enumerate(config.sources)
        for part in source.slices(roots[source.root or ""])
    ]


def store_ontology(config: PrepareConfig, roots: Roots, folder: Path) -> Parsed:
    """Write `ontology.json`; an empty one where none is configured."""
    stored, seen = ontology.Ontology(), ()
    if config.ontology:
        root = roots[config.ontology.root or ""]
        (name, *more) = find(root, (config.ontology.files,))
        if more:
            raise ValueError(f"ontology.files matches {name} and {', '.join(more)}; a data set has one ontology")
        stored, file = ontology.parse(root, name)
        seen = (file,)
    (folder / "ontology.json").write_bytes(stored.to_bytes())
    counts = {"terms": len(stored.terms), "obsolete": len(stored.obsolete), "alt_ids": len(stored.primary)}
    return Parsed(-1, seen, counts)


def parse_slice(config: PrepareConfig, roots: Roots, folder: Path, number: int, source: int, part: Slice) -> Parsed:
    """Parse some files of one source; spill their records by partition, list their rejections."""
    work = folder / "work" / f"{number:05d}"
    out = spill.Spill(work, config.partitions)
    seen: list[FileSeen] = []
    counts: Counter[str] = Counter()
    rejected: list[Rejection] = []
    files = config.sources[source]
    for item in files.read(roots[files.root or ""], part, roots[""]):
        if isinstance(item, FileSeen):
            seen.append(item)
        elif isinstance(item, Rejection):
            rejected.append(item)
        elif not KEY.fullmatch(item.key) or len(item.key) > MAX_KEY:
            problem = f"a key must match {KEY.pattern}, and have at most {MAX_KEY} characters"
            rejected.append(Rejection("bad_key", item.key, item.source, problem))
        else:
            out.add(item)
            counts[type(item).__name__.removesuffix("Record").lower()] += 1
    out.flush()
    note(work, rejected)
    return Parsed(source, tuple(seen), dict(sorted(counts.items())))


def write_partition(config: PrepareConfig, folder: Path, slices: int, number: int) -> list[Shard]:
    """Join, filter, describe and write the proteins of one partition: one shard per split and modality subset."""
    terms = ontology.read(folder / "ontology.json")
    rejected: list[Rejection] = []
    shelves: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for key, records in sorted(gather(folder, slices, number).items()):
        sample, reasons = join(key, records, terms, config.join)
        rejected += reasons
        checked = sample and check(sample, records[0].source, config.filters)
        if isinstance(checked, Rejection):
            rejected.append(checked)
        elif checked:
            described = describe(checked, terms, config.describe)
            shelves[split(key, config.split), group_name(described.modalities)].append(described)
    note(folder / "work" / f"partition-{number:05d}", rejected)
    return [shards.write(folder, which, number, samples) for (which, _), samples in sorted(shelves.items())]


def gather(folder: Path, slices: int, number: int) -> dict[str, list[Record]]:
    """The records of one partition by key, in the order of sources and files."""
    found: defaultdict[str, list[Record]] = defaultdict(list)
    for each in range(slices):
        path = folder / "work" / f"{each:05d}" / str(number)
        for record in spill.read(path) if path.exists() else ():
            found[record.key].append(record)
    return found


def note(work: Path, rejected: list[Rejection]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    (work / "rejected.jsonl").write_text("".join(canonical(asdict(each)) + "\n" for each in rejected))


def publish(config: PrepareConfig, folder: Path, parsed: Sequence[Parsed], written: list[Shard]) -> Manifest:
    """Rejections and manifest, written last; then nothing but the data set is left in the folder."""
    work = folder / "work"
    lines = [json.loads(line) for path in work.glob("*/rejected.jsonl") for line in path.read_text().splitlines()]
    rejected = shards.write_rejections(folder / "rejected.jsonl", lines)
    if not written:
        raise ValueError(
            f"no sample is left after joining and filtering; rejected were {rejected}; "
            "see the limits under [join] and [filters]"
        )
    go = next(each for each in parsed if each.source < 0)
    manifest = Manifest(
        name=config.name,
        partitions=config.partitions,
        splits=shards.tree(written),
        totals=shards.totals(written),
        rejected=rejected,
        sources=[provenance(config, number, parsed) for number in range(len(config.sources))],
        go={"path": config.ontology.files, "release": _release(config, folder), **_hash(go.seen), **go.records}
        if config.ontology
        else {},
        config={key: value for key, value in dump(config).items() if key not in WHERE},
        versions={name: _version(name) for name in PACKAGES},
    )
    shutil.rmtree(work)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest


def provenance(config: PrepareConfig, number: int, parsed: Sequence[Parsed]) -> dict[str, Any]:
    """One source's entry in the manifest: what was read, and how many records of which kind it gave."""
    source = config.sources[number]
    mine = [each for each in parsed if each.source == number]
    records: Counter[str] = Counter()
    for each in mine:
        records.update(each.records)
    about = {"kind": source.kind, "path": list(source.patterns), "name": source.name, "release": source.release}
    about |= {"licence": source.licence, "note": source.note}
    return {**about, **_hash(file for each in mine for file in each.seen), "records": dict(sorted(records.items()))}


def _hash(seen: Any) -> dict[str, Any]:
    """Number, bytes and hash of some files: one file's own hash, or that of the sorted list of names and hashes."""
    files = sorted({(file.path, file.bytes, file.sha256) for file in seen})
    listing = "".join(f"{sha256}  {path}\n" for path, _, sha256 in files)
    sha256 = files[0][2] if len(files) == 1 else hashlib.sha256(listing.encode()).hexdigest()
    return {"files": len(files), "bytes": sum(size for _, size, _ in files), "sha256": sha256}


def _release(config: PrepareConfig, folder: Path) -> str:
    return (config.ontology and config.ontology.release) or ontology.read(folder / "ontology.json").release


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@contextmanager
def staging(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that takes the name `out` when all went well, and is removed when not. One run at a time has it."""
    base = out.parent / f".{out.name}.staging"
    with alone(base, out):
        old = base / "old"
        if old.is_dir() and not out.exists():
            old.rename(out)  # a run was killed between its last two steps
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
        if taken and not (out / "manifest.json").is_file():
            raise ValueError(f"{out} is there and is not a data set; give another folder")
        if taken and not overwrite:
            raise ValueError(f"{out} already holds a data set; give another folder, or overwrite=true to replace it")
        for leftover in base.iterdir():
            if leftover.is_dir():  # of a run that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        folder = base / uuid4().hex  # a killed run's tasks go on for seconds: they must not find their folder again
        folder.mkdir()
        yield folder.resolve()
        if taken:
            out.rename(old)
        folder.replace(out)


@contextmanager
def alone(base: Path, out: Path) -> Iterator[None]:
    """The folder `base`, held by no other run and removed in the end. Raises ValueError if another one has it."""
    base.mkdir(parents=True, exist_ok=True)
    path = base / "lock"
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when a process dies
        except BlockingIOError:
            raise ValueError(f"another run is preparing {out} now; wait for it, or give another folder") from None
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            raise ValueError(f"another run prepared {out} just now; look at it, and start again if need be")
        try:
            yield
        finally:
            shutil.rmtree(base, ignore_errors=True)


@contextmanager
def progress(quiet: bool) -> Iterator[Any]:
    """A function that lists an iterator's items while a bar on the terminal counts them."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bars:

        def count(what: str, items: Iterator[T], total: int) -> list[T]:
            bar = bars.add_task(what, total=total)
            done = []
            for item in items:
                done.append(item)
                bars.advance(bar)
            return done

        yield count
