"""Labels: what a file may say of a protein, what is refused, and what of it reaches a step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.data.dataset import Dataset
from pretrain.data.draw import WHOLE, draw
from pretrain.data.labels import LabelKind, LabelTable, read
from pretrain.data.loader import Loader
from pretrain.data.plan import Plan, PlanConfig
from pretrain.sample import Modality

RESIDUE, SEVEN = LabelKind("residue"), LabelKind("multilabel", 7)
FIRST, SECOND = "P0000", "P0001"  # 10 residues with a structure of them, and 47
TOLD, FOLDED = "P0003", "P0004"  # a function alone, and structures alone, of 78 residues


def table(folder: Path, text: str, kind: LabelKind, dataset: Dataset) -> LabelTable:
    (folder / "labels.tsv").write_text(text)
    return read(folder / "labels.tsv", kind, dataset)


@pytest.mark.parametrize(
    ("kind", "label", "values"),
    [
        (LabelKind("class", 384), "383", [383.0]),
        (SEVEN, "6,0,3", [6.0, 0.0, 3.0]),
        (SEVEN, "", []),
        (LabelKind("scalar"), "-1.5e-2", [-0.015]),
        (RESIDUE, "01-0000000", [0.0, 1.0, np.nan] + [0.0] * 7),
    ],
)
def test_a_label_is_read(tmp_path: Path, dataset: Dataset, kind: LabelKind, label: str, values: list[float]) -> None:
    found = table(tmp_path, f"# EC numbers\n\n{FIRST}\t{label}\r\nV0003\t{label}\n", kind, dataset)
    assert set(found.labels) == {FIRST, "V0003"}
    np.testing.assert_array_equal(found.labels[FIRST], np.array(values, np.float32))
    assert found.labelled == {"train": 1, "valid": 1} and found.of["train"] == 90
    assert found.note.startswith("proteins with a label: 1 of 90 in train, 1 of 20 in valid")


def test_the_mark_with_which_some_programs_begin_a_file_is_no_part_of_it(tmp_path: Path, dataset: Dataset) -> None:
    assert set(table(tmp_path, f"\ufeff{FIRST}\t1\n", LabelKind("class", 2), dataset).labels) == {FIRST}


def test_proteins_that_the_model_does_not_read_are_not_counted(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "labels.tsv").write_text(f"{FIRST}\t1\n{TOLD}\t0\n")
    found = read(tmp_path / "labels.tsv", LabelKind("class", 2), dataset, (Modality.SEQUENCE, Modality.STRUCTURE))
    assert found.labelled["train"] == 1 and found.of["train"] == 80 and set(found.labels) == {FIRST, TOLD}


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (SEVEN, f"{FIRST}\t7", r"line 1: P0000: '7' is no class of 0 to 6"),
        (SEVEN, f"{FIRST}\t1,1", r"'1,1' names a class twice"),
        (SEVEN, f"{FIRST}\t1,", r"'' is no class"),
        (LabelKind("class", 3), f"{FIRST}\t-1", r"'-1' is no class"),
        (LabelKind("class", 3), f"{FIRST}\t1.0", r"'1.0' is no class"),
        (LabelKind("scalar"), f"{FIRST}\tnan", r"'nan' is no finite number"),
        (LabelKind("scalar"), f"{FIRST}\thigh", r"'high' is no finite number"),
        (RESIDUE, f"{FIRST}\t0102", r"'2' is none of 0, 1 and -"),
        (RESIDUE, f"#\n{FIRST} 0101", r"line 2: 'P0000 0101' has no tab"),
        (RESIDUE, f"{FIRST}\t01\n{FIRST}\t01", r"line 2: P0000 has a label already, in line 1"),
        (RESIDUE, f"{SECOND}\t{'0' * 47}\n{FIRST}\t01", r"line 2: the label of P0000 has 2 residues, the protein 10"),
        (RESIDUE, "", "has no labels"),
        (
            RESIDUE, f"{FIRST}\t{'01' * 5}\nQ1\t1\nQ2\t1",
            r"line 2: Q1 is not in .*; 2 of 3 labels are of proteins that are not there",
        ),
    ],
)  # fmt: skip
def test_what_is_no_label_is_told(tmp_path: Path, dataset: Dataset, kind: LabelKind, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        table(tmp_path, text, kind, dataset)
    with pytest.raises(ValueError, match="cannot be read as text"):
        read(tmp_path / "none.tsv", kind, dataset)


def test_residues_are_those_that_are_seen(tmp_path: Path, dataset: Dataset, make_protein, make_spec) -> None:
    sample = make_protein(SECOND, Modality.SEQUENCE, Modality.STRUCTURE, length=47)
    found = table(tmp_path, f"{SECOND}\t{'01-1' * 11}000\n", RESIDUE, dataset)
    both = (Modality.SEQUENCE, Modality.STRUCTURE)
    row = draw(sample, 0, 0, 0, make_spec(sequence_max=9, modalities=both))
    np.testing.assert_array_equal(found.label(sample, row), np.array([0, 1, np.nan, 1] * 2 + [0], np.float32))
    alone = replace(sample, sequence=None)  # its structure is residues 11 to 46
    row = draw(alone, 0, 0, 0, make_spec(structure_max=4, crop=WHOLE, modalities=both))
    np.testing.assert_array_equal(found.label(alone, row), np.array([1, 0, 1, np.nan], np.float32))
    short = replace(found, labels={SECOND: np.zeros(4, np.float32)})
    for one in (sample, alone):
        with pytest.raises(ValueError, match=r"labels\.tsv: the label of P0001 has 4 residues, the protein 47"):
            short.label(one, row)
    assert short.label(make_protein("P0002", Modality.SEQUENCE), row) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_brings_them(tmp_path: Path, dataset: Dataset, make_spec, workers: int) -> None:
    """Of whichever proteins it has; one may have a label without values."""
    given = {key: [i % 7, (i + 2) % 7][: i % 3] for i, key in enumerate(f"P{i:04}" for i in range(0, 90, 2))}
    text = "".join(f"{key}\t{','.join(map(str, label))}\n" for key, label in given.items())
    found, spec = table(tmp_path, text, SEVEN, dataset), make_spec()
    plan = Plan(dataset, "train", PlanConfig(samples=40), 0, spec)
    loader = Loader(dataset, plan, spec, 0, 1, 1, workers, labels=found)
    seen = 0
    for step in loader.once(80):
        (batch,) = step.batches
        labels = batch.labels
        assert labels is not None
        assert labels.present.tolist() == [key in given for key in batch.keys]
        spans = [part.tolist() for part in labels.values.split(labels.offsets.diff().tolist())]
        assert spans == [given.get(key, []) for key in batch.keys]
        seen += int(labels.present.sum())
        assert torch.equal(batch.to("cpu").labels.values, labels.values)  # type: ignore[union-attr]
    assert seen > 30


def test_a_label_of_the_wrong_length_stops_the_run(tmp_path: Path, dataset: Dataset, make_spec) -> None:
    """How far the structures of a protein without a sequence reach is seen where it is read."""
    found, spec = table(tmp_path, f"{FOLDED}\t01\n", RESIDUE, dataset), make_spec()
    plan = Plan(dataset, "train", PlanConfig(samples=90), 0, spec)
    with pytest.raises(ValueError, match="the label of P0004 has 2 residues, the protein 78"):
        list(Loader(dataset, plan, spec, 0, 1, 1, labels=found).once())
