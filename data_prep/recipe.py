"""What a data set is made of: the configuration of `fourfold prepare`, and the units of work that follow from it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import pydantic

from data_prep.describe import DescribeConfig
from data_prep.encode import EncodeConfig
from data_prep.filters import FilterConfig
from data_prep.join import JoinConfig
from data_prep.sources.files import Slice, find, resolve
from data_prep.sources.foldcomp import Foldcomp
from data_prep.sources.gene_ontology import Annotations, Gaf, Gpad
from data_prep.sources.images import Images
from data_prep.sources.structures import Structures
from data_prep.sources.texts import Texts
from data_prep.sources.uniprot import Fasta, Uniprot, UniprotTable
from data_prep.split import SplitConfig
from pretrain.config import Config, dump
from pretrain.places import Place
from pretrain.sample import canonical

Source = Annotated[
    Uniprot | UniprotTable | Fasta | Structures | Foldcomp | Gaf | Gpad | Annotations | Texts | Images,
    pydantic.Field(discriminator="kind"),
]
ENTRIES = {"uniprot"}  # kinds that know secondary accessions: parsed before all others
WHERE = {"root", "roots", "workers", "address", "overwrite", "encode"}  # keys that say where and how, not what

Roots = dict[str, Place]  # by name under `[roots]`; the configuration's own root is ""


class OntologyConfig(Config):
    """files: the Gene Ontology in OBO format (`.gz` too), one file. Without it no annotation can be resolved."""

    files: str
    root: str | None = None
    release: str = ""


class PrepareConfig(Config):
    """Everything a data set is made of.

    root: the folder that the sources' paths are relative to: a path (a relative one from the current directory), a URL
    (`s3://bucket/folder`), `$VARIABLE`, or `package:data_prep/sample` for files that are installed with a package.
    roots: more, by name. sources: the order is that of precedence (sequences). partitions: shards per split and
    modality subset; of a big data set so many that a shard has some 100 MB (`--plan` says how many).
    encode: store frozen encoders' features beside the shards when these are written.
    workers: Ray tasks at a time; 0 runs without Ray. address: of an existing Ray cluster that sees the same places, of
    which 0 workers take what it has.
    overwrite: replace a data set that is there, once the new one is complete; until then the old one can be read (on a
    store both lie there for that long). Anything else there, files in a data set that are not its own too, is refused.
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
    encode: EncodeConfig | None = None
    workers: int = pydantic.Field(2, ge=0)
    address: str | None = None
    overwrite: bool = False


def what(config: PrepareConfig) -> dict[str, Any]:
    """The configuration as a manifest has it: what the data set is, not where or by how many it was made."""
    tree = {key: value for key, value in dump(config).items() if key not in WHERE}
    writer = tree["describe"]["writer"]
    if "model" in writer:  # the origin of its texts has the hash of the model's files
        writer["model"] = Path(writer["model"]).name
    return tree


def roots_of(config: PrepareConfig) -> Roots:
    """Raises ValueError for a root that is missing, or that a source names and the configuration does not have."""
    named = {source.root for source in config.sources if source.root}
    named |= {config.ontology.root} if config.ontology and config.ontology.root else set()
    if unknown := sorted(named - config.roots.keys()):
        raise ValueError(f"sources name the roots {unknown}, but [roots] has {sorted(config.roots)}; add them there")
    return {"": resolve(config.root), **{name: resolve(root, f"roots.{name}") for name, root in config.roots.items()}}


def slices(config: PrepareConfig, roots: Roots) -> list[tuple[int, Slice]]:
    """(source, slice) of every unit of work, in order. Raises ValueError for files that are missing."""
    return [
        (number, part)
        for number, source in enumerate(config.sources)
        for part in source.slices(roots[source.root or ""])
    ]


def ontology_file(config: OntologyConfig, roots: Roots) -> tuple[Place, str]:
    """Where the one ontology file is. Raises ValueError if there is none, or more."""
    root = roots[config.root or ""]
    name, *more = find(root, (config.files,))
    if more:
        raise ValueError(f"ontology.files matches {name} and {', '.join(more)}; a data set has one ontology")
    return root, name


def identity(*parts: Any) -> str:
    """A name for whatever follows from the parts, which are plain values."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:20]


def listing(place: Place, names: Iterable[str]) -> list[tuple[str, int, str]]:
    """(name, bytes, version) of files: what tells one job's input from another's. Those that `place` has found cost no
    further request."""
    return [(name, stat.bytes, stat.version) for name in names for stat in (place.listed(name),)]
