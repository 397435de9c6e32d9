"""An exported model tells the labels that it has learnt as it was asked for them in training."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pretrain.batch import Labels, offsets_of
from pretrain.encoders.bundle import Encoders
from pretrain.inference import CONFIG, WEIGHTS, Exported, load
from pretrain.models import Model
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
    "residue": [[i % 2 for i in range(24)], [1] * 17, [1] * 20],
}
CLASSES = {"class": 3, "multilabel": 3}


def proteins() -> list[Sample]:
    """One with both, one of a sequence, one of a structure; of that one only residues 10 to 30 are there."""
    has = ((SEQUENCE, STRUCTURE), (SEQUENCE,), (STRUCTURE,))
    return [
        protein(key, *which, length=length, covered=(10, length))
        for which, (key, length) in zip(has, LENGTHS.items(), strict=True)
    ]


def told_of(task: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> tuple[Model, Encoders, Exported]:
    """A model of random weights, its head's too, and its export."""
    objective = {"kind": "supervised", "task": task, "classes": CLASSES.get(task, 0)}
    monkeypatch.setitem(MODELS, "told", ({**BIHIERARCHICAL, "objective": objective}, {"structure": GVP}))
    model, encoders = build("told")
    for parameter in model.objective.parameters():  # type: ignore[union-attr]
        nn.init.normal_(parameter, std=0.5)
    return model, encoders, load(exported("told", model, encoders, proteins(), folder, **how))


@pytest.mark.parametrize("task", LABELS)
def test_what_is_told_has_the_loss_of_training(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoders, loaded = told_of(task, tmp_path, monkeypatch)
    found = loaded.predict(every := proteins())
    assert found.keys == ("A", "B", "C") and found.task == task and found.truncated == ()
    what = f"{task} of 3 classes" if task in CLASSES else task
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"`model.predict(proteins)` tells the labels that it has learnt: {what}\n" in card

    given = LABELS[task]
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


@pytest.mark.parametrize("task", ["class", "residue"])
def test_a_cut_protein_is_named_and_batches_change_nothing(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, model = told_of(task, tmp_path, monkeypatch)
    every = [*proteins(), protein("long", SEQUENCE, length=60)]  # the encoder takes 40
    whole, parts = model.predict(every), model.predict(every, batch=1)
    assert whole.truncated == parts.truncated == ("long",) and whole.keys == ("A", "B", "C", "long")
    for i in range(4):
        assert np.abs(whole.of(i) - parts.of(i)).max() < 1e-6
        assert np.abs(whole.of(i) - model.predict(every[i : i + 1]).of(0)).max() < 1e-6
    if task == "residue":
        assert len(whole.of(3)) == 40


def test_half_the_bits_tell_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, whole = told_of("class", tmp_path / "whole", monkeypatch)
    *_, half = told_of("class", tmp_path / "half", monkeypatch, dtype="bfloat16")
    assert 0 < np.abs(whole.predict(proteins()).values - half.predict(proteins()).values).max() < 0.05


def test_an_export_from_before_heads_came_along_still_embeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told_of("class", tmp_path, monkeypatch)
    folder = tmp_path / "exported"
    tensors = {name: t for name, t in load_file(folder / WEIGHTS).items() if not name.startswith("model.objective.")}
    save_file(tensors, folder / WEIGHTS)
    about = json.loads((folder / CONFIG).read_text())
    about["weights"]["sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / CONFIG).write_text(json.dumps(about))
    old = load(folder)
    assert np.isfinite(old.embed(proteins()).fused).all()
    with pytest.raises(ValueError, match=r"tells no labels; .* where this one is, export it again"):
        old.predict(proteins())


def test_a_model_without_labels_says_so(tmp_path: Path) -> None:
    model, encoders = build("bihierarchical")
    loaded = load(exported("bihierarchical", model, encoders, proteins(), tmp_path))
    with pytest.raises(ValueError, match=r"\(bihierarchical\) tells no labels; .*model\.objective\.kind = supervised"):
        loaded.predict(proteins())
