"""The tasks of a preparation, each named by what its result follows from: what is done is known by its name."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_prep import provenance
from data_prep.job import Job
from data_prep.recipe import ENTRIES, PrepareConfig, Roots, identity, listing, ontology_file, slices, what
from data_prep.sources.files import Slice
from data_prep.tasks import Told
from pretrain.config import dump


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
        read = [*files, *(file for found in beside for file in found)]
        sizes.update({f"{number}/{name}": size for name, size, _ in read})
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


def done(job: Job, name: str) -> Told:
    """What a task told, which is known to have ended. Raises ValueError where its result cannot be seen from here."""
    told = job.done(name)
    if told is None:
        raise ValueError(
            f"a worker's result {name} is not in {job.work}: do all nodes see this folder? A cluster without a common "
            "disk needs --out on a store (s3://…)"
        )
    return told
