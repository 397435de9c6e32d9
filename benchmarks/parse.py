"""Structure files per second, from bytes to backbone arrays: ours (gemmi) against biotite, on the same files.

python benchmarks/parse.py [FOLDER] [--quick]    FOLDER has *.cif or *.cif.gz; by default the sample inside the package
"""

import argparse
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np

from data_prep.records import StructureRecord
from data_prep.sources.files import load
from data_prep.sources.structures import Structures

SAMPLE = Path(__file__).resolve().parents[1] / "data_prep" / "sample" / "structures"


def ours(name: str, data: bytes) -> int:
    """Backbone atoms of every chain."""
    records = Structures(files=name).parse(name, data)
    return sum(int(record.mask.sum()) for record in records if isinstance(record, StructureRecord))


def theirs(name: str, data: bytes) -> int:
    """The columns of `_atom_site` that the same arrays need; not yet grouped by residue."""
    from biotite.structure.io.pdbx import CIFFile  # type: ignore[import-not-found]  # in .venv-bench only

    site = CIFFile.read(StringIO(data.decode())).block["atom_site"]
    coordinates = np.stack([site[f"Cartn_{axis}"].as_array(str).astype(np.float32) for axis in "xyz"], axis=1)
    return len(coordinates[np.isin(site["label_atom_id"].as_array(str), ("N", "CA", "C"))])


def timed(parse: Callable[[str, bytes], int], files: list[tuple[str, bytes]], rounds: int) -> tuple[float, int]:
    """(files per second in the best round, atoms)."""
    best, atoms = float("inf"), 0
    for _ in range(rounds):
        started = time.perf_counter()
        atoms = sum(parse(name, data) for name, data in files)
        best = min(best, time.perf_counter() - started)
    return len(files) / best, atoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--quick", action="store_true", help="twenty files, once")
    options = parser.parse_args()
    names = sorted(p.name for p in options.folder.glob("*.cif*") if not p.name.startswith("reject"))
    names = names[:20] if options.quick else names
    files = [(name, load(options.folder, name)[0]) for name in names]
    rounds = 1 if options.quick else 3
    (mine, atoms), (peer, other) = timed(ours, files, rounds), timed(theirs, files, rounds)
    print(f"{len(files)} mmCIF files, {sum(len(data) for _, data in files) / 1e6:.1f} MB decompressed")
    print(f"ours    {mine:8.1f} files/s   {atoms} backbone atoms kept")
    print(f"biotite {peer:8.1f} files/s   {other} backbone atoms read")
    print(f"ratio   {mine / peer:8.2f}")


if __name__ == "__main__":
    main()
