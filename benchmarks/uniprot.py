"""UniProt flat files: kilobytes per second, against Biopython.

    python benchmarks/uniprot.py [FILE] [--quick] [--json FILE]

FILE is repeated until there are some tens of megabytes. Without it: `$FOURFOLD_UNIPROT`, the pack's entries under
`$FOURFOLD_PACK`, or the sample inside the package. Both sides read from disk; ours verifies every sequence's checksum
too, which Biopython does not, and hashes the file where it makes records of a data set.

Two rows are of full records. "references and features parsed when read": every other field is parsed, these two are
cut out and kept as text, and nobody reads them. "every field read": these two are parsed as well, of every entry, so
that both sides have done all there is to do.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import rows
from Bio import SwissProt

from data_prep.sources.files import Slice, Stream
from data_prep.sources.uniprot import Uniprot
from data_prep.sources.uniprotkb import flat
from data_prep.sources.uniprotkb.entry import crc64
from pretrain.places import Place

SAMPLE = Path(__file__).resolve().parents[1] / "data_prep" / "sample" / "uniprot" / "entries.dat"
NAME = "entries.dat"


def entries() -> Path:
    """The file that the environment names, or the sample."""
    if named := os.environ.get("FOURFOLD_UNIPROT"):
        return Path(named)
    pack = Path(os.environ.get("FOURFOLD_PACK", "")) / "uniprot" / "uniprot_entries.dat"
    return pack if "FOURFOLD_PACK" in os.environ and pack.is_file() else SAMPLE


def claims(quick: bool, path: Path | None = None) -> list[rows.Row]:
    data = (path or entries()).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        size = (8 if quick else 40) << 20
        (Path(folder) / NAME).write_bytes(data * -(-size // len(data)))
        return _claims(Path(folder), 3 if quick else 7)


def _claims(folder: Path, rounds: int) -> list[rows.Row]:
    place = Place(str(folder))
    kilobytes = (folder / NAME).stat().st_size // 1000
    count = sum(1 for _ in _pieces(place))

    def through(parse: Callable[[bytes], object]) -> Callable[[], int]:
        def run() -> int:
            assert sum(1 for piece in _pieces(place) if parse(piece)) == count
            return kilobytes

        return run

    def biopython() -> int:
        with open(folder / NAME, encoding="utf-8") as file:
            assert sum(1 for record in SwissProt.parse(file) if record.sequence) == count
        return kilobytes

    def records(**settings: bool) -> Callable[[], int]:
        source = Uniprot.model_validate({"files": NAME, **settings})

        def run() -> int:
            assert sum(1 for _ in source.read(place, Slice((NAME,)), place)) > count
            return kilobytes

        return run

    def every(piece: bytes) -> bool:
        entry = flat.parse(piece)
        return len(entry.references) + len(entry.features) >= 0  # either is parsed whole when its length is asked for

    measured = [
        ("full records, references and features parsed when read", through(flat.parse), 4.0),
        ("full records, every field read", through(every), 4.0),
        ("scan of accession, sequence and GO", through(flat.scan), 12.0),
        ("flat file to what a data set takes of it: identifiers, GO, sentences", records(), 2.0),
        ("the same, accession, sequence and GO alone", records(scan=True), 8.0),
    ]
    found = [
        rows.faster(what, rows.race(ours, biopython, rounds), "Bio.SwissProt", target, "kB/s")
        for what, ours, target in measured
    ]
    return [*found, rows.within("share of the checksums in full records", _share(place), 0.05, "of the time")]


def _pieces(place: Place) -> Iterator[bytes]:
    """Entries as a worker reads them from its range of a big file."""
    with Stream.open(place, NAME, 0, place.stat(NAME).bytes) as stream:
        for _, piece in flat.pieces(stream):
            yield piece


def _share(place: Place) -> float:
    """Of the processor time that entries take, how much goes into CRC64."""
    pieces = list(_pieces(place))[:3000]
    begin = time.process_time()
    sequences = [flat.parse(piece).sequence.encode() for piece in pieces]
    middle = time.process_time()
    for sequence in sequences:
        crc64(sequence)
    return (time.process_time() - middle) / (middle - begin)


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    chosen = parser.parse_args()
    rows.report(claims(chosen.quick, chosen.file), chosen.json)


if __name__ == "__main__":
    main()
