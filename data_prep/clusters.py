"""Which sequences are relatives: MMseqs2, called as a program, on a FASTA file whose names are numbers.

Its clusters are connected components (`--cluster-mode 1`): everything that a found relative leads to is one cluster.
Its default, the greedy set cover, takes only what the representative itself is related to, and leaves relatives apart.

The same sequences in the same order give the same clusters whatever the number of threads. They depend on MMseqs2's
version, and on `memory` where the work has to be done in parts; both are therefore recorded.
"""

import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from pretrain.config import Config

PROGRAM = "mmseqs"
BLOCK = 16 << 20  # bytes of a table read at once
LAST = 12  # lines of a failed program's output that are told
COVERAGE = {"both": "0", "shorter": "1"}
MODES = {
    "linclust": ("linclust", "--cluster-mode", "1"),
    "cluster": ("cluster", "--cluster-mode", "1"),
    "search": ("cluster", "--cluster-mode", "1", "--single-step-clustering", "1", "--max-seqs", "1000"),
}


class ClusterConfig(Config):
    """Relatives are two sequences of which an alignment has at least this identity and coverage, and E ≤ 0.001.

    identity: of the aligned residues. coverage: share of residues that are aligned, of both sequences or of the shorter
    (so that a fragment or a domain counts as a relative of the whole).
    mode: how relatives are looked for. `linclust` takes time in proportion to the number of sequences and finds what
    shares k-mers, `cluster` goes on among the representatives, `search` compares each with each that it may resemble.
    sensitivity: 1 to 7.5, of `cluster` and `search`. memory: what MMseqs2 may use (`8G`).
    """

    mode: Literal["linclust", "cluster", "search"] = "cluster"
    identity: float = pydantic.Field(0.3, ge=0.0, le=1.0)
    coverage: float = pydantic.Field(0.8, ge=0.0, le=1.0)
    coverage_mode: Literal["both", "shorter"] = "both"
    sensitivity: float = pydantic.Field(5.7, ge=1.0, le=7.5)
    memory: str = pydantic.Field("8G", pattern=r"[1-9][0-9]*[KMGT]")


@dataclass(frozen=True)
class Clusters:
    """commands: as run, without folders. count: of clusters. table: lines of two numbers, a representative and a member
    of its cluster; every sequence is some line's member.
    """

    version: str
    commands: tuple[str, ...]
    count: int
    table: Path


def version() -> str:
    """Raises ValueError where MMseqs2 is not installed."""
    if not shutil.which(PROGRAM):
        raise ValueError(
            "split.method is 'cluster', and MMseqs2 is not installed here: there is no `mmseqs` in PATH. Install it "
            "(`apt-get install mmseqs2`, `conda install -c bioconda mmseqs2` or `brew install mmseqs2`), or choose "
            "split.method=hash, which keeps no relatives apart: held-out figures are then flattered by homologs"
        )
    return _run([PROGRAM, "version"], Path.cwd()).strip()


def cluster(fasta: Path, config: ClusterConfig, scratch: Path, threads: int = 0) -> Clusters:
    """Clusters of the sequences in `fasta`, each on one line. scratch: an empty folder on this machine; about three
    times the file's size, more in mode `search`. threads: 0 for all that this process may use.

    Raises ValueError, with the last lines of MMseqs2's output, if it fails.
    """
    program, *how = MODES[config.mode]
    ran = Runs(scratch, threads or len(os.sched_getaffinity(0)))
    ran(
        "createdb", str(fasta.resolve()), "db", "--dbtype", "1", "--shuffle", "0", "--createdb-mode", "1", threads=False
    )
    ran(program, "db", "clusters", "tmp", *how, *_limits(config, program))
    ran("createtsv", "db", "db", "clusters", "clusters.tsv")
    shutil.rmtree(scratch / "tmp", ignore_errors=True)
    table = scratch / "clusters.tsv"
    return Clusters(version(), tuple(ran.commands), sum(int((a == b).sum()) for a, b in rows(table)), table)


def relatives(of: Path, among: Path, config: ClusterConfig, scratch: Path, threads: int = 0) -> tuple[str, int]:
    """How many sequences of one FASTA file have a relative in another, and the command that looked for them."""
    ran = Runs(scratch, threads or len(os.sched_getaffinity(0)))
    for fasta, name in ((of, "query"), (among, "target")):
        ran("createdb", str(fasta.resolve()), name, "--dbtype", "1", "--shuffle", "0", threads=False)
    ran("search", "query", "target", "hits", "tmp", "--max-seqs", "1000", *_limits(config, "search"))
    ran("createtsv", "query", "target", "hits", "hits.tsv")
    found: set[int] = set()
    for query, _ in rows(scratch / "hits.tsv"):
        found.update(np.unique(query).tolist())
    return ran.commands[2], len(found)


def rows(table: Path) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The first two columns of a table of numbers, some lines at a time."""
    with open(table, "rb") as file:
        while block := file.read(BLOCK):
            block += file.readline()
            numbers = np.loadtxt(io.BytesIO(block), dtype=np.int64, usecols=(0, 1), ndmin=2)
            yield numbers[:, 0], numbers[:, 1]


def _limits(config: ClusterConfig, program: str) -> list[str]:
    limits = ["--min-seq-id", f"{config.identity:g}", "-c", f"{config.coverage:g}"]
    limits += ["--cov-mode", COVERAGE[config.coverage_mode], "--alignment-mode", "3", "-e", "0.001"]
    limits += ["--split-memory-limit", config.memory]
    return limits if program == "linclust" else [*limits, "-s", f"{config.sensitivity:g}"]


class Runs:
    """Runs MMseqs2 in one folder, and remembers how."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.commands: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, *words: str, threads: bool = True) -> None:
        self.commands.append(" ".join([PROGRAM, *(Path(w).name if w.startswith("/") else w for w in words)]))
        _run([PROGRAM, *words, *(("--threads", str(self.threads)) if threads else ())], self.folder)


def _run(command: list[str], folder: Path) -> str:
    """Its output. What MMseqs2 says of an error may be in either stream, and far from the end of a script's output."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
    if done.returncode:
        lines = [re.sub(r"\s+", " ", line) for line in done.stdout.splitlines() if line.strip()]
        raise ValueError(
            f"`{' '.join(command)}` failed with exit code {done.returncode} in {folder}; it said last:\n  "
            + "\n  ".join(lines[-LAST:])
        )
    return done.stdout
