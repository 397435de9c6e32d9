"""An exported model tells the labels that it has learnt as it was asked for them in training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.batch import Labels, offsets_of
from pretrain.inference import load
from pretrain.sample import Modality, Sample
from tests.models import BIHIERARCHICAL, GVP, MODELS, batch_of, build
from tests.unit.datasets import protein
from tests.unit.pretrain.models.test_subsets import exported

SEQUENCE, STRUCTURE = Modality.SEQUENCE, Modality.STRUCTURE
LENGTHS = {"A": 24, "B": 17, "C": 30}
LABELS: dict[str, list[list[float]]] = {
    "class": [[2], [0], [1]],
    "multilabel": [[0, 2], [], [1]],
    "scalar": [[0.5], [-2.0], [3.0]],
    "residue": [[i % 2 for i in range(24)], [1] * 17, [float("nan")] * 10 + [1] * 20],
}
CLASSES = {"class": 3, "multilabel": 3}


def proteins(task: str) -> list[Sample]:
    """One with both, one of a sequence, one of a structure; of that one only residues 10 to 30 are there."""
    has = ((SEQUENCE, STRUCTURE), (SEQUENCE,), (STRUCTURE,))
    return [
        protein(key, *which, length=length, covered=(10, length))
        for which, (key, length) in zip(has, LENGTHS.items(), strict=True)
    ]


@pytest.mark.parametrize("task", LABELS)
def test_what_is_told_has_the_loss_of_training(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = {"kind": "supervised", "task": task, "classes": CLASSES.get(task, 0)}
    monkeypatch.setitem(MODELS, "told", ({**BIHIERARCHICAL, "objective": objective}, {"structure": GVP}))
    (model, encoders), every = build("told"), proteins(task)
    for parameter in model.objective.parameters():  # type: ignore[union-attr]
        nn.init.normal_(parameter, std=0.5)
    found = load(exported("told", model, encoders, every, tmp_path)).predict(every)
    assert found.keys == ("A", "B", "C") and found.task == task and found.truncated == ()
    what = f"{task} of 3 classes" if task in CLASSES else task
    assert (
        f"`model.predict(proteins)` tells the labels that it has learnt: {what}\n"
        in (tmp_path / "exported" / "README.md").read_text()
    )

    given = [label[10:] if task == "residue" and i == 2 else label for i, label in enumerate(LABELS[task])]
    values = torch.tensor([value for label in given for value in label], dtype=torch.float32)
    labels = Labels(values, offsets_of(torch.tensor([len(label) for label in given])), torch.ones(3, dtype=torch.bool))
    batch = replace(batch_of(every, encoders), labels=labels)
    with torch.no_grad():
        (loss,) = model.eval()(encoders(batch), batch).values()
    assert loss.sum.item() == pytest.approx(sum(map(_loss, [task] * 3, map(found.of, range(3)), given)), rel=1e-4)
    if task == "residue":
        assert found.positions is not None and found.offsets is not None
        assert found.offsets.tolist() == [0, 24, 41, 61] and found.positions[-20:].tolist() == list(range(10, 30))


def _loss(task: str, told: np.ndarray, label: list[float]) -> float:
    if task == "class":
        assert told.shape == (3,) and told.sum() == pytest.approx(1)
        return float(-np.log(told[int(label[0])]))
    if task == "scalar":
        return float((told - label[0]) ** 2)
    wanted = np.isin(np.arange(3), label) if task == "multilabel" else np.array(label) == 1
    return float(-np.log(np.where(wanted, told, 1 - told)).sum() / (3 if task == "multilabel" else 1))


def test_a_model_without_labels_says_so(tmp_path: Path) -> None:
    model, encoders = build("bihierarchical")
    every = proteins("class")
    loaded = load(exported("bihierarchical", model, encoders, every, tmp_path))
    with pytest.raises(
        ValueError, match=r"\(bihierarchical\) has learnt no labels; .*model\.objective\.kind = supervised"
    ):
        loaded.predict(every)
