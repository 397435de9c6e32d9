"""Labels that a file of the user's gives to proteins of a data set. A line for each, `key<TAB>label`:

    class        3              one of `classes`, counted from 0
    multilabel   3,17,204       any of them; nothing after the tab says that the protein has none
    scalar       0.731
    residue      00101--0       of each residue 1, 0, or - where nobody knows: as many as the sequence has; without a
                                sequence, as its structures' numbering reaches (the last residue's position and one)

Empty lines and lines that begin with `#` are passed over. A protein without a line has no label. A protein may have one
and must be in the data set: a label for another key is an error, for it is likely to be meant for another data set.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from pretrain.data.dataset import Dataset
from pretrain.data.draw import Row
from pretrain.data.index import ShardIndex
from pretrain.sample import Facet, Modality, Sample

Task = Literal["class", "multilabel", "scalar", "residue"]
UNKNOWN = np.float32(np.nan)
_residue = {"0": 0.0, "1": 1.0, "-": UNKNOWN}


@dataclass(frozen=True)
class LabelKind:
    """classes: how many, for `class` and `multilabel`."""

    task: Task
    classes: int = 0


@dataclass(frozen=True, eq=False)
class LabelTable:
    """labels: key → float32 [n]: a class, the classes, a number, or a value per residue, NaN where it is not known.

    labelled, of: by split, of the proteins that the model reads those with a label, and all. sha256: of the file.
    """

    path: Path
    kind: LabelKind
    sha256: str
    labels: Mapping[str, NDArray[np.float32]] = field(repr=False)
    labelled: Mapping[str, int]
    of: Mapping[str, int]

    @property
    def note(self) -> str:
        counts = (f"{self.labelled[split]:,} of {count:,} in {split}" for split, count in self.of.items())
        return f"proteins with a label: {', '.join(counts) or 'none'}; the others are read and count nothing"

    def label(self, sample: Sample, row: Row) -> NDArray[np.float32] | None:
        """The sample's; of residues those that `row` shows, one for each. Raises ValueError for too few or too many."""
        found = self.labels.get(sample.key)
        if found is None or self.kind.task != "residue":
            return found
        ends = [int(structure.residue[-1]) + 1 for structure in sample.structures]
        expected = len(sample.sequence) if sample.sequence else max(ends, default=0)
        if len(found) != expected:
            raise ValueError(_wrong_length(str(self.path), sample.key, len(found), expected))
        if row.sequence is not None:
            return found[: len(row.sequence)]
        return found[row.structure.residue] if row.structure is not None else found[:0]


def read(
    path: str | Path, kind: LabelKind, dataset: Dataset, modalities: Collection[Modality] = tuple(Modality)
) -> LabelTable:
    """modalities: those that the model reads; proteins with none of them are not counted.

    Raises ValueError for a file that is not there or not UTF-8, and with its line for what is no label of `kind`, for a
    key that comes twice, for one that is not in the data set, and for residues that are not as many as a sequence's."""
    path = Path(path)
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.labels: {path} cannot be read as text: {error}") from error
    places: dict[str, int] = {}
    labels: dict[str, NDArray[np.float32]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, tab, label = line.partition("\t")
        where = f"{path}, line {number}"
        if not tab:
            raise ValueError(f"{where}: {line[:60]!r} has no tab; `key<TAB>label` is expected")
        if key in places:
            raise ValueError(f"{where}: {key} has a label already, in line {places[key]}")
        try:
            labels[key], places[key] = _parsed(label.strip(), kind), number
        except ValueError as error:
            raise ValueError(f"{where}: {key}: {error}") from error
    if not labels:
        raise ValueError(f"{path} has no labels; a line for each protein is expected, `key<TAB>label`")
    labelled, of, left = Counter[str](), Counter[str](), set(labels)
    for split, groups in dataset.splits.items():
        for group, index in ((each, each.index(i)) for each in groups.values() for i in range(len(each.shards))):
            here = left.intersection(index.keys)
            if {*group.modalities} & {*modalities}:
                labelled[split] += len(here)
                of[split] += len(index.keys)
            left -= here
            if kind.task == "residue" and here:
                _check_lengths(path, index, labels, places)
    if left:
        first = min(left, key=places.__getitem__)
        raise ValueError(
            f"{path}, line {places[first]}: {first} is not in {dataset.place}; {len(left):,} of {len(labels):,} labels "
            "are of proteins that are not there. Take these lines out, or name the data set that they are of"
        )
    return LabelTable(path, kind, hashlib.sha256(data).hexdigest(), labels, labelled, of)


def _check_lengths(path: Path, index: ShardIndex, labels: Mapping[str, Any], places: Mapping[str, int]) -> None:
    """Of proteins with a sequence. How far the structures of others reach is known where they are read: `label`."""
    for key, facets, residues in zip(index.keys, index.facets.tolist(), index.residues.tolist(), strict=True):
        if key in labels and facets & Facet.SEQUENCE and len(labels[key]) != residues:
            raise ValueError(_wrong_length(f"{path}, line {places[key]}", key, len(labels[key]), residues))


def _wrong_length(where: str, key: str, found: int, expected: int) -> str:
    return (
        f"{where}: the label of {key} has {found} residues, the protein {expected}; one of 0, 1 and - is expected for "
        "each"
    )


def _parsed(label: str, kind: LabelKind) -> NDArray[np.float32]:
    """Raises ValueError for what is no label of this kind."""
    match kind.task:
        case "class":
            found: list[float] = [_class(label, kind)]
        case "multilabel":
            found = [_class(part, kind) for part in label.split(",")] if label else []
            if len(set(found)) < len(found):
                raise ValueError(f"{label!r} names a class twice")
        case "scalar":
            try:
                found = [float(label)]
            except ValueError:
                found = [math.nan]
            if not math.isfinite(found[0]):
                raise ValueError(f"{label!r} is no finite number")
        case "residue":
            if other := sorted(set(label) - _residue.keys()):
                raise ValueError(f"{other[0]!r} is none of 0, 1 and -")
            found = [_residue[letter] for letter in label]
        case _:
            assert_never(kind.task)
    return np.array(found, dtype=np.float32)


def _class(text: str, kind: LabelKind) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < kind.classes):
        raise ValueError(f"{text!r} is no class of 0 to {kind.classes - 1}; classes are numbers, counted from 0")
    return int(text)
