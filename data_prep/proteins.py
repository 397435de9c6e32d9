"""What someone points at, as samples: a FASTA file, a structure or a folder of them, or a prepared data set.

This is the way in for embedding and search, where a file is all there is. Nothing is joined, split or written, and what
cannot be read is an error: whoever names a file wants that file.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.records import Rejection, SequenceRecord, StructureRecord
from data_prep.sources.files import Stream, find
from data_prep.sources.structures import UNSAFE, Structures
from data_prep.sources.uniprot import Fasta
from pretrain.data.dataset import Dataset
from pretrain.data.index import MANIFEST
from pretrain.places import Place
from pretrain.sample import Sample, Structure

FASTA = (".fasta", ".fa", ".faa", ".fas")
STRUCTURE = (".cif", ".mmcif", ".bcif", ".pdb", ".ent")


def read(path: str | Path) -> list[Sample]:
    """The proteins at `path`. Keys: accessions of a FASTA's headers, `<entry>_<chain>` of structures, a data set's own.

    Raises ValueError for what is not there, is none of these, or is damaged.
    """
    if not str(path):
        raise ValueError("an empty path; give a FASTA file, a structure, a folder of structures or a data set")
    path = Path(path)
    if path.is_dir() and (path / MANIFEST).is_file():
        return list(_prepared(path))
    if path.is_dir():
        return list(_structures(path, find(Place(str(path)), tuple(_present(path)))))
    if not path.is_file():
        raise ValueError(f"nothing at {path}; give a FASTA file, a structure, a folder of structures or a data set")
    if _suffix(path) in FASTA:
        return list(_fasta(path))
    if _suffix(path) in STRUCTURE:
        return list(_structures(path.parent, [path.name]))
    known = ", ".join(FASTA + STRUCTURE)
    raise ValueError(f"{path}: of the formats read here ({known}, also with .gz) this is none, by its name")


def _prepared(path: Path) -> Iterator[Sample]:
    dataset = Dataset.open(path)
    for split, groups in dataset.splits.items():
        for name, group in groups.items():
            for i in range(len(group)):
                yield dataset.read(split, name, i)


def _fasta(path: Path) -> Iterator[Sample]:
    with Stream.open(Place(str(path.parent)), path.name) as stream:
        for item in Fasta(files=path.name).parse(stream):
            if isinstance(item, SequenceRecord):
                yield Sample(_key(item.key, path), sequence=_sequence(item.sequence, f"{path}: {item.key}"))


def _structures(root: Path, names: list[str]) -> Iterator[Sample]:
    source = Structures(files=tuple(names), min_residues=1, states=False, pae="ignore")
    for name in names:
        with Stream.open(Place(str(root)), name) as stream:
            for item in source.parse(stream):
                if isinstance(item, Rejection):
                    raise ValueError(f"{root / name}: {item.detail or item.reason}")
                if isinstance(item, StructureRecord):
                    yield _chain(item, root)


def _chain(record: StructureRecord, root: Path) -> Sample:
    """Chain and sequence of one record. Residues that its numbering skips are unresolved: `X` in the sequence."""
    residue = record.number - record.number[0]
    letters = np.full(int(residue[-1]) + 1, "X")
    letters[residue] = list(record.letters)
    structure = Structure(
        id=record.id,
        coordinates=_centred(record),
        mask=record.mask,
        residue=residue,
        letters=record.letters,
        atoms=record.atoms,
        confidence=record.confidence,
        resolution=record.resolution,
        identity=1.0,
    )
    return Sample(_key(record.id, root / record.source), sequence="".join(letters), structures=(structure,))


def _centred(record: StructureRecord) -> np.ndarray:
    centre = record.coordinates[record.mask].mean(axis=0)
    return np.where(record.mask[..., None], record.coordinates - centre, 0).astype(np.float32)


def _key(name: str, origin: Path) -> str:
    key = UNSAFE.sub("-", name).strip("-")
    if not key:
        raise ValueError(f"{origin}: an entry without a name; every protein needs one")
    return key


def _sequence(letters: str, origin: str) -> str:
    if not letters:
        raise ValueError(f"{origin} has no sequence")
    if strange := sorted({letter for letter in letters if not ("A" <= letter <= "Z")}):
        raise ValueError(f"{origin}: {' '.join(map(repr, strange))} in a sequence; one-letter codes are expected")
    return letters


def _present(folder: Path) -> list[str]:
    """Patterns of the structure formats that the folder has."""
    patterns = [f"*{suffix}{packed}" for suffix in STRUCTURE for packed in ("", ".gz")]
    if present := [pattern for pattern in patterns if any(folder.glob(pattern))]:
        return present
    named = f"the current folder, {folder.resolve()}," if folder == Path() else folder  # an empty path is that too
    raise ValueError(f"{named} has neither structures ({', '.join(STRUCTURE)}, also with .gz) nor a {MANIFEST}")


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix
