"""Structure files to records: against Bio.PDB, against gemmi's bare read, and format against format.

    python benchmarks/structures.py [FOLDER] [--quick] [--json FILE]

FOLDER holds `*.cif`, `*.bcif` and `*.pdb` files, `.gz` or not. Without it: AlphaFold models and PDB entries of the pack
under `$FOURFOLD_PACK`, or the whole entries in the sample inside the package. All sides have the decompressed bytes.
Ours ends with records: one conformer per residue, letters, numbers, whose protein it is. The peers end with their own
model of all atoms.
"""

import gzip
import io
import os
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import gemmi
import rows

from data_prep.records import StructureRecord
from data_prep.sources.coordinates.chains import Wanted, records
from data_prep.sources.files import Slice
from data_prep.sources.structures import Structures, opened
from pretrain.places import Place

SAMPLE = Path(__file__).resolve().parents[1] / "data_prep" / "sample" / "structures"
WANTED = Wanted(("N", "CA", "C"), 1, states=False)
LIMIT = 512 << 20
BUDGET = 1000 * 3600 * 1000 / 214e6  # ms: 1,000 core-hours for 214 million models, of 300 residues on average
MEAN = 300
Files = list[tuple[str, bytes]]


def found(folder: Path | None, pattern: str) -> Files:
    """The decompressed files."""
    folders = [folder] if folder else [SAMPLE]
    if not folder and (pack := os.environ.get("FOURFOLD_PACK")):
        folders = [Path(pack) / "afdb", Path(pack) / "pdb"]
    paths = [path for each in folders for path in sorted(each.glob(pattern)) if not path.name.startswith("reject")]
    files = [(path.name, _plain(path.read_bytes())) for path in paths]
    return [(name, data) for name, data in files if folder or len(data) > 80_000]  # the sample's smaller ones are cuts


def _plain(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def claims(quick: bool, folder: Path | None = None) -> list[rows.Row]:
    rounds = 5 if quick else 15
    text, binary, lines = (found(folder, pattern) for pattern in ("*.cif*", "*.bcif*", "*.pdb*"))
    models = [(name, data) for name, data in text if name.startswith("AF-")]
    entries = [(name, data) for name, data in text if not name.startswith("AF-")]
    told: list[rows.Row] = []
    for what, files in (("AlphaFold models", models), ("PDB entries", entries)):
        if files:
            told += _against_peers(f"mmCIF of {len(files)} {what} to records", files, rounds, quick)
    if binary:
        same = [(name, data) for name, data in text if f"{name.partition('.')[0]}.bcif" in dict(binary)]
        rates = rows.race(_through(binary, ours), _through(same, ours), rounds)
        told.append(rows.faster(f"BinaryCIF of {len(binary)} entries", rates, "ours, mmCIF", 1.0, "files/s"))
    if lines:
        rates = rows.race(_through(lines, ours), _through(lines, gemmi.read_pdb_string), rounds)
        told.append(rows.faster(f"PDB format of {len(lines)} files", rates, "gemmi.read_pdb_string", 0.2, "files/s"))
    return [*told, _archive(models or entries)] if text else told


def _against_peers(what: str, files: Files, rounds: int, quick: bool) -> list[rows.Row]:
    slow = rows.race(_through(files, ours), _through(files, biopython), 1 if quick else 3)
    bare = rows.race(_through(files, ours), _through(files, whole), rounds)
    read = rows.race(_through(files, ours), _through(files, gemmi.cif.read_string), rounds)
    return [
        rows.faster(what, slow, "Bio.PDB.MMCIFParser", 15.0, "files/s"),
        rows.faster(what, bare, "gemmi, bare read to its model", 1 / 1.3, "files/s"),
        rows.faster(what, read, "gemmi.cif.read_string alone", 0.5, "files/s"),
    ]


def _through(files: Files, read: Callable[[bytes], object]) -> Callable[[], int]:
    def run() -> int:
        assert all(read(data) for _, data in files)
        return len(files)

    return run


def ours(data: bytes) -> int:
    return len(list(records("x", *opened("x", data, LIMIT), WANTED)))


def whole(data: bytes) -> gemmi.Structure:
    return gemmi.make_structure_from_block(gemmi.cif.read_string(data)[0])


def biopython(data: bytes) -> object:
    from Bio.PDB.MMCIFParser import MMCIFParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MMCIFParser(QUIET=True).get_structure("x", io.StringIO(data.decode()))


def _archive(files: Files) -> rows.Row:
    """From an archive's bytes on disk to records with 3Di states: all that a model costs before it is joined."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(Path(folder) / "proteome.tar", "w") as archive:
            for name, data in files:
                packed = gzip.compress(data, 6)
                info = tarfile.TarInfo(f"{name.removesuffix('.gz')}.gz")
                info.size = len(packed)
                archive.addfile(info, io.BytesIO(packed))
        place, source = Place(folder), Structures(files="proteome.tar", min_residues=1)

        def run() -> int:
            read = source.read(place, Slice(("proteome.tar",)), place)
            return sum(len(item.letters) for item in read if isinstance(item, StructureRecord))

        rate, _ = rows.race(run, lambda: 0, 5)
    what = "archive of models to records with 3Di states, per 300 residues"
    return rows.within(what, MEAN / rate * 1000, BUDGET / 2, "ms")


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    chosen = parser.parse_args()
    rows.report(claims(chosen.quick, chosen.folder), chosen.json)


if __name__ == "__main__":
    main()
