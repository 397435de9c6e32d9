"""Structure files per second, from bytes to backbone arrays: ours (gemmi) against biotite, on the same files.

python benchmarks/parse.py [FOLDER] [--quick] [--json FILE]    FOLDER has *.cif or *.cif.gz; by default the sample
"""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import rows

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


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE)
    chosen = parser.parse_args()
    names = sorted(p.name for p in chosen.folder.glob("*.cif*") if not p.name.startswith("reject"))
    files = [(name, load(chosen.folder, name)[0]) for name in (names[:20] if chosen.quick else names)]

    def through(parse: Callable[[str, bytes], int]) -> int:
        assert all(parse(name, data) > 0 for name, data in files)
        return len(files)

    rates = rows.race(lambda: through(ours), lambda: through(theirs), rounds=3 if chosen.quick else 5)
    row = rows.faster("mmCIF bytes to backbone arrays by residue", rates, "biotite, columns only", 1.0, "files/s")
    rows.report([row], chosen.json)


if __name__ == "__main__":
    main()
