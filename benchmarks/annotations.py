"""Gene Ontology annotations: GAF lines per second, against Biopython.

    python benchmarks/annotations.py [--quick] [--json FILE]

The pack's annotations of human genes under `$FOURFOLD_PACK`, or those of the sample inside the package over and over.
Both sides read a plain file from disk. Biopython's iterator makes a dictionary of each line and no more; ours hashes
the file, looks at evidence and qualifiers, and gathers the lines of a protein into a record. Asserted is that both
read the same annotations.
"""

import gzip
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rows
from Bio.UniProt import GOA

from data_prep.records import AnnotationRecord
from data_prep.sources.files import Slice
from data_prep.sources.gene_ontology import Gaf
from pretrain.places import Place

SAMPLE = Path(__file__).resolve().parents[1] / "data_prep" / "sample" / "go" / "human.gaf"
NAME = "some.gaf"
LINES = 300_000


def claims(quick: bool) -> list[rows.Row]:
    pack = Path(os.environ.get("FOURFOLD_PACK", "")) / "go" / "human_gene2go_from_org.Hs.eg.db.gaf.gz"
    path = pack if "FOURFOLD_PACK" in os.environ and pack.is_file() else SAMPLE
    with tempfile.TemporaryDirectory() as folder:
        count = _repeated(path, Path(folder) / NAME, LINES // 8 if quick else LINES)
        return _claims(Path(folder), count, 3 if quick else 5)


def _claims(folder: Path, count: int, rounds: int) -> list[rows.Row]:
    place, gaf = Place(str(folder)), Gaf(files=NAME)

    def ours() -> Iterator[AnnotationRecord]:
        items = gaf.read(place, Slice((NAME,)), place)
        return (item for item in items if isinstance(item, AnnotationRecord))

    def theirs() -> Iterator[dict[str, Any]]:
        with open(folder / NAME, encoding="utf-8") as file:
            yield from GOA.gafiterator(file)

    read = {(record.key, *term) for record in ours() for term in record.terms}
    seen = {
        (line["DB_Object_ID"].partition("-")[0], line["GO_ID"], line["Evidence"])
        for line in theirs()
        if line["DB"] == "UniProtKB" and "NOT" not in line["Qualifier"]
    }
    assert read == seen, f"{len(read)} annotations, Biopython has {len(seen)}"

    def through() -> int:
        assert sum(len(record.terms) for record in ours())
        return count

    rates = rows.race(through, lambda: sum(1 for _ in theirs()), rounds)
    return [rows.faster("GAF to records of terms and evidence", rates, "Bio.UniProt.GOA", 0.5, "lines/s")]


def _repeated(path: Path, to: Path, count: int) -> int:
    """The first `count` annotations of a file, over again if it has fewer, into another. Returns how many it has."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        header, lines = [], []
        for line in file:
            (header if line.startswith("!") else lines).append(line)
            if len(lines) == count:
                break
    times = count // len(lines)
    to.write_text("".join([*header, *lines * times]), encoding="utf-8")
    return len(lines) * times


def main() -> None:
    chosen = rows.options(__doc__).parse_args()
    rows.report(claims(chosen.quick), chosen.json)


if __name__ == "__main__":
    main()
