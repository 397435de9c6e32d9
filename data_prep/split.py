"""Which split a protein belongs to: by hash of its key, or together with everything that it is related to.

A hash knows nothing of homology: relatives of a training protein can be in the test split, and a score on it is
optimistic. `method = "cluster"` puts a whole component into one split: what sequence clusters, genes, antibodies,
isoforms and identical sequences join. A component's split is drawn by a hash of its smallest key, so that it depends on
neither the order of the input nor the number of partitions or workers. That needs all proteins at once (`assign`, one
task between parsing and writing); a hash of the key alone does not (`split`), and keeps a protein where it is when the
data set grows.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from data_prep import clusters
from data_prep.clusters import ClusterConfig
from pretrain.places import Place

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
TRAIN, VALID, TEST, DROPPED = 0, 1, 2, 3  # as stored; DROPPED is in no split
DROP = "homolog_of_held_out"  # the reason of a rejection
AHEAD = 1 << 20  # bytes of a partition's facts read at once
ACCESSION = r"(?:[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2})"
ISOFORM = re.compile(rf"({ACCESSION})-[0-9]+")


class SplitConfig(ClusterConfig):
    """valid, test: shares of all samples; the rest is train. seed: another one gives another split of the same sizes.

    method: `cluster` keeps relatives together, as ClusterConfig says, and needs MMseqs2; `hash` does not.
    together: links that are kept in one split with either method: images' genes and antibodies. Isoforms always are.
    largest: a component with more than this share of the smaller of valid and test goes to train: it would fill a split
    by itself.
    held_out_taxa: NCBI ids of species whose proteins are all in test. held_out_keys: proteins that are in test, as
    those of a benchmark on which models will be judged. homologs: what becomes of other proteins in the components of
    either: `test` puts them there too, `drop` leaves them out.
    search: of method `cluster`: clusters leave relatives apart. So compare the held-out proteins with all others, join
    what is related and draw again, until none of them has a relative outside of its component. Without it, at 30 %
    identity, 45 % of the pack's held-out proteins have one in train (`mode = "cluster"`: 8 %; a split by hash: 67 %).
    """

    method: Literal["cluster", "hash"] = "cluster"
    valid: float = pydantic.Field(0.05, ge=0.0, le=1.0)
    test: float = pydantic.Field(0.05, ge=0.0, le=1.0)
    seed: int = 0
    together: tuple[Literal["gene", "antibody"], ...] = ("gene", "antibody")
    largest: float = pydantic.Field(0.1, gt=0.0, le=1.0)
    held_out_taxa: tuple[int, ...] = ()
    held_out_keys: tuple[str, ...] = ()
    homologs: Literal["test", "drop"] = "test"
    search: bool = True

    @pydantic.model_validator(mode="after")
    def _sum(self) -> "SplitConfig":
        if self.valid + self.test > 1:
            raise ValueError(f"valid = {self.valid} and test = {self.test} are more than all; lower one of them")
        if self.method == "hash":
            fields = {name: SplitConfig.model_fields[name].default for name in (*ClusterConfig.model_fields, "search")}
            if unused := [name for name, default in fields.items() if getattr(self, name) != default]:
                raise ValueError(
                    f"{', '.join(unused)} would do nothing with method = 'hash', which compares no sequences; choose "
                    "method = 'cluster', or leave them out"
                )
        return self


def check(config: SplitConfig) -> None:
    """To be called before any work. Raises ValueError where MMseqs2 is wanted and not there."""
    if config.method == "cluster":
        clusters.version()


def split(key: str, config: SplitConfig) -> Split:
    """By hash: a pure function of the key, the same for all isoforms of a protein."""
    return SPLITS[draw(key, config)]


def draw(key: str, config: SplitConfig) -> int:
    seed = f"split:{config.seed}:{parent(key)}".encode()
    drawn = int.from_bytes(blake2b(seed, digest_size=8).digest(), "big") / 2**64
    if drawn < config.valid:
        return VALID
    return TEST if drawn < config.valid + config.test else TRAIN


def parent(key: str) -> str:
    """The accession of the protein that an isoform (`P12345-2`) is one of; any other key as it is."""
    isoform = ISOFORM.fullmatch(key)
    return isoform[1] if isoform else key


def needs_all(config: SplitConfig, links: bool) -> bool:
    """Whether splits have to be drawn for all proteins together, by `assign`. links: whether any protein has some."""
    return (
        config.method == "cluster"
        or bool(config.held_out_taxa or config.held_out_keys)
        or (links and bool(config.together))
    )


@dataclass(frozen=True)
class Facts:
    """What a protein's split may depend on. sequence: its own, or else its best structure's letters, or None.

    taxon: NCBI's id, 0 where unknown. links: `kind:name`, as `gene:ENSG00000141510` or `antibody:HPA051244`; proteins
    that share one are kept together, if SplitConfig.together has the kind.
    """

    key: str
    sequence: str | None = None
    taxon: int = 0
    links: tuple[str, ...] = ()


def write(path: Path, facts: Iterable[Facts]) -> int:
    """One partition's facts, which must come in the order of keys, one a line. Returns how many."""
    count, last = 0, ""
    with open(path, "w", encoding="ascii", newline="\n") as file:
        for count, each in enumerate(facts, 1):  # noqa: B007  count is the last one
            assert each.key > last, f"{each.key} after {last}: facts are written in the order of keys"
            links = json.dumps(each.links) if each.links else ""
            file.write(f"{each.key}\t{each.taxon}\t{links}\t{each.sequence or ''}\n")
            last = each.key
    return count


def read(place: Place, name: str, ahead: int = AHEAD) -> Iterator[Facts]:
    """The facts of one partition, in the order of keys."""
    for line in _lines(place, name, ahead):
        key, taxon, links, sequence = line.decode("ascii").split("\t")
        yield Facts(key, sequence or None, int(taxon), tuple(json.loads(links)) if links else ())


def _lines(place: Place, name: str, ahead: int) -> Iterator[bytes]:
    """A file's lines, read `ahead` bytes at a time, so that thousands can be gone through side by side."""
    at, rest = 0, b""
    while block := place.read(name, at, ahead):
        at += len(block)
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    assert not rest, f"{place / name} does not end with a line's end"


@dataclass(frozen=True, eq=False)
class Assignment:
    """The splits of one partition's proteins. keys: bytes [N], sorted. splits: uint8 [N]. clusters: int64 [N], equal
    for relatives; None where no sequences were compared."""

    keys: NDArray[np.bytes_]
    splits: NDArray[np.uint8]
    clusters: NDArray[np.int64] | None = None

    @staticmethod
    def read(place: Place, partition: int) -> "Assignment":
        """What `assign` wrote into a folder for the partition whose facts were the `partition`-th."""
        lines = [line.split(b"\t") for line in place.read(table(partition)).splitlines()]
        keys = np.array([key for key, *_ in lines], dtype=np.bytes_)
        splits = np.array([int(code) for _, code, *_ in lines], dtype=np.uint8)
        known = [int(cluster) for _, _, *rest in lines for cluster in rest]
        return Assignment(keys, splits, np.array(known) if known else None)

    def of(self, key: str) -> Split | None:
        """None for a protein that is to be left out (reason DROP). Raises KeyError for one that is not there."""
        code = int(self.splits[self._at(key)])
        return None if code == DROPPED else SPLITS[code]

    def cluster(self, key: str) -> int | None:
        return None if self.clusters is None else int(self.clusters[self._at(key)])

    def _at(self, key: str) -> int:
        at = int(np.searchsorted(self.keys, key.encode()))
        if at == len(self.keys) or self.keys[at] != key.encode():
            raise KeyError(f"{key} was not among the proteins that splits were drawn for")
        return at


def table(partition: int) -> str:
    """The name of one partition's table."""
    return f"{partition:05d}.tsv"
