"""Encoders trained by themselves: perplexity of masked residues in held-out proteins, against guessing by frequency.

    python benchmarks/encoders.py RUN [RUN …] [--data DATA]

RUN is a run of `model.kind = "unimodal"` over sequences or structures. Both guess the same residues: those that its
validation masks. The peer guesses each by how frequent it is in the training split. --quick takes a part of both.
"""

import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import rows
import torch

from pretrain import models
from pretrain.batch import Batch, lengths_of
from pretrain.config import validate
from pretrain.data.dataset import Dataset
from pretrain.encoders.bundle import to_train
from pretrain.export import chosen
from pretrain.masking import hide
from pretrain.run import RunConfig
from pretrain.sample import Facet, Modality
from pretrain.setup import prepare

QUICK, SMALLEST = 200, 1e-6  # proteins; a frequency where a letter was never seen


def claim(folder: Path, data: str | None, quick: bool) -> rows.Row:
    found = chosen(folder, "last")
    run = validate(RunConfig, found.state["config"], str(found.path))
    changed: dict[str, Any] = {"data": run.data.model_copy(update={"path": data or run.data.path, "workers": 0})}
    run = run.model_copy(update=changed)
    assert isinstance(run.model, models.UnimodalConfig), f"{folder} is a run of {run.model.kind}; give unimodal ones"
    modality = run.model.modality
    parts = prepare(run)
    model: Any = models.build(run.model, parts.encoders.widths(), to_train(run.frozen, run.model.trains))
    found.load_model(model)
    frequency = _frequencies(run.data.open(), modality, QUICK if quick else None)
    total = guessed = 0.0
    count = 0
    with torch.no_grad():
        for step in parts.held_out.once(QUICK if quick else 10**9):
            for batch in step.batches:
                loss = model.eval()({}, batch)["residue"]
                total, count = total + float(loss.sum), count + loss.count
                guessed += _guessed(batch, modality, run.model.masked, frequency)
    ours, peer = math.exp(total / count), math.exp(guessed / count)
    what = f"{run.encoders.model_dump()[modality.value]['kind']}: held-out perplexity of {count:,} masked residues"
    return rows.Row(what, ours, peer, "training frequencies", peer / ours, 1.0, "perplexity")


def _frequencies(dataset: Dataset, modality: Modality, most: int | None) -> dict[int, float]:
    """ASCII code → its share of the training split's residues."""
    counts: Counter[int] = Counter()
    facet = Facet.SEQUENCE if modality is Modality.SEQUENCE else Facet.STRUCTURE
    for name, group in dataset.groups("train").items():
        if facet.name is not None and facet.name.lower() not in name:
            continue
        for i in islice(range(len(group)), most):
            sample = dataset.read("train", name, i)
            letters = sample.sequence if modality is Modality.SEQUENCE else sample.structures[0].letters
            counts.update((letters or "").encode("ascii"))
    every = sum(counts.values())
    return {letter: count / every for letter, count in counts.items()}


def _guessed(batch: Batch, modality: Modality, share: float, frequency: dict[int, float]) -> float:
    """The cross entropy of the residues that the model was asked for, by frequency alone."""
    given = getattr(batch, modality)
    asked, _ = hide(lengths_of(given.offsets), batch.seed, batch.step, batch.slots, share)
    return sum(-math.log(max(frequency.get(letter, 0.0), SMALLEST)) for letter in given.letters[asked].tolist())


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", help="where the data set lies now")
    chosen_ = parser.parse_args()
    rows.report([claim(run, chosen_.data, chosen_.quick) for run in chosen_.runs], chosen_.json)


if __name__ == "__main__":
    main()
