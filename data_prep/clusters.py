"""Which sequences are relatives: MMseqs2, called as a program, on sequences that are named by numbers.

Its clusters are connected components (`--cluster-mode 1`): everything that a found relative leads to is one cluster.
Its default, the greedy set cover, takes only what the representative itself is related to, and leaves relatives apart.
The same sequences in the same order give the same relatives whatever the number of threads. They depend on MMseqs2's
version, and on `memory` where the work has to be done in parts; both are recorded.
"""

import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from data_prep.components import Numbers
from pretrain.config import Config

PROGRAM = "mmseqs"
BLOCK = 16 << 20  # bytes of a table read at once
LAST = 12  # lines of a failed program's output that are told
COVERAGE = {"both": "0", "shorter": "1"}
MANY = "1000"  # sequences that each one is aligned with at most; the usual 300 are not all of a large family
NOTHING = "No k-mer could be extracted"  # what a search dies of if all sequences are short, or of one letter
Pairs = Iterator[tuple[Numbers, Numbers]]


class ClusterConfig(Config):
    """Relatives are two sequences of which an alignment has at least this identity and coverage, and E ≤ 0.001.

    identity: of the aligned residues. coverage: share of residues that are aligned, of both sequences or of the shorter
    (so that a fragment or a domain counts as a relative of the whole).
    mode: how clusters are found. `linclust` takes time in proportion to the number of sequences, also of hundreds of
    millions, and finds what shares k-mers. `cluster` goes on from there, comparing representatives, some ten times as
    long. sensitivity: of all comparisons but linclust's, 1 to 7.5. memory: what MMseqs2 may use (`8G`).
    """

    mode: Literal["linclust", "cluster"] = "linclust"
    identity: float = pydantic.Field(0.3, ge=0.0, le=1.0)
    coverage: float = pydantic.Field(0.8, ge=0.0, le=1.0)
    coverage_mode: Literal["both", "shorter"] = "both"
    sensitivity: float = pydantic.Field(5.7, ge=1.0, le=7.5)
    memory: str = pydantic.Field("8G", pattern=r"[1-9][0-9]*[KMGT]")


def version() -> str:
    """Raises ValueError where MMseqs2 is not installed."""
    if not shutil.which(PROGRAM):
        raise ValueError(
            "split.method is 'cluster', and MMseqs2 is not installed here: there is no `mmseqs` in PATH. Install it "
            "(`apt-get install mmseqs2`, `conda install -c bioconda mmseqs2` or `brew install mmseqs2`), or choose "
            "split.method=hash, which keeps no relatives apart: held-out figures are then flattered by homologs"
        )
    return _run([PROGRAM, "version"], Path.cwd()).strip()


class Sequences:
    """Sequences to be compared, one at least, in a folder on this machine with room for about three times their size.

    fasta: each on one line, under its number, from small to large. numbers: int64, these. threads: 0 for all that this
    process may use. `commands`: those run so far. Calls raise ValueError, with the last lines of MMseqs2's output, if
    that fails.
    """

    def __init__(self, fasta: Path, numbers: Numbers, config: ClusterConfig, folder: Path, threads: int = 0) -> None:
        self.numbers, self.config, self.folder = numbers, config, folder
        self.threads = threads or len(os.sched_getaffinity(0))
        self.commands: dict[str, None] = {}  # in their order, each once
        folder.mkdir(parents=True)
        # As proteins even where all letters may be DNA's; in order; the letters stay in the FASTA file.
        how = ("--dbtype", "1", "--shuffle", "0", "--createdb-mode", "1")
        self._call("createdb", os.path.relpath(fasta, folder), "db", *how, threads=False)

    def clusters(self) -> Pairs:
        """(representative, member), blocks of both; each sequence is once a member, if any has a relative at all."""
        how = ["--cluster-mode", "1", *self._limits()]
        how += ["-s", f"{self.config.sensitivity:g}"] if self.config.mode == "cluster" else []
        return self._result("db", self.config.mode, *how)

    def relatives(self, of: NDArray[np.bool_]) -> Pairs:
        """(one of these, a relative among all), blocks of both. of: by number."""
        ids = np.flatnonzero(of[self.numbers])
        (self.folder / "ids").write_text("".join(f"{id}\n" for id in ids.tolist()))
        self._call("createsubdb", "ids", "db", "some", threads=False)
        return self._result("some", "search", "--max-seqs", MANY, *self._limits(), "-s", f"{self.config.sensitivity:g}")

    def _result(self, query: str, program: str, *how: str) -> Pairs:
        """Of a search or of clustering; its files are replaced by the next one's."""
        table = self.folder / "result.tsv"
        for path in (*self.folder.glob("result*"), self.folder / "tmp"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        databases = ("db",) if program in ("linclust", "cluster") else (query, "db")
        try:
            self._call(program, *databases, "result", "tmp", *how)
        except ValueError as error:
            if NOTHING not in str(error):
                raise
            return iter(())
        self._call("createtsv", query, "db", "result", table.name)
        return rows(table)

    def _limits(self) -> list[str]:
        config = self.config
        limits = ["--min-seq-id", f"{config.identity:g}", "-c", f"{config.coverage:g}"]
        limits += ["--cov-mode", COVERAGE[config.coverage_mode], "--alignment-mode", "3", "-e", "0.001"]
        return [*limits, "--split-memory-limit", config.memory]

    def _call(self, *words: str, threads: bool = True) -> None:
        command = [PROGRAM, *words]
        self.commands[" ".join(command)] = None
        _run([*command, *(("--threads", str(self.threads)) if threads else ())], self.folder)


def rows(table: Path) -> Pairs:
    """The first two columns of a table of numbers, a block of lines at a time."""
    with open(table, "rb") as file:
        while block := file.read(BLOCK):
            block += file.readline()
            numbers = np.loadtxt(io.BytesIO(block), dtype=np.int64, usecols=(0, 1), ndmin=2)
            yield numbers[:, 0], numbers[:, 1]


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
