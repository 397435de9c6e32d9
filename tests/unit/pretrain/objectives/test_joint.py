"""What residues and proteins are held against, hidden residues or labels: each loss by hand, and what counts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pretrain.batch import Batch, Labels, offsets_of
from pretrain.encoders.letters import LETTERS as ORDER
from pretrain.masking import hide, mates
from pretrain.objectives.joint import Masked, MaskedConfig, Supervised, SupervisedConfig
from pretrain.sample import Modality
from tests.unit.pretrain.encoders.test_graphs import without as lacking
from tests.unit.pretrain.models.test_bihierarchical import losses_of, model_of, proteins
from tests.unit.pretrain.models.test_unimodal import by_hand

NAN = math.nan
# Of proteins with 6, 5, 0 and 4 residues; None: no label.
LABELS: dict[str, list[list[float] | None]] = {
    "class": [[2], None, [1], [0]],
    "multilabel": [[0, 2], [], [1], None],
    "scalar": [[0.5], None, [3.0], [-2.0]],
    "residue": [[1, 0, NAN, 1, 0, 0], [NAN] * 5, [], None],
}
CLASSES = {"class": 3, "multilabel": 3, "scalar": 0, "residue": 0}
COUNTS = {"class": 2, "multilabel": 2, "scalar": 2, "residue": 5}


def labelled(task: str) -> Batch:
    """The second protein has a structure of a part of it, the last one a structure alone."""
    batch, given = proteins(6, 5, 0, 4, chains=(6, 3, 0, 4)), LABELS[task]
    sequence = replace(batch.sequence, letters=batch.sequence.letters[:11], offsets=torch.tensor([0, 6, 11, 11, 11]))
    values = torch.tensor([value for label in given for value in label or []], dtype=torch.float32)
    lengths = torch.tensor([len(label or []) for label in given])
    present = torch.tensor([label is not None for label in given])
    return replace(batch, sequence=sequence, labels=Labels(values, offsets_of(lengths), present))


def head_of(task: str) -> Supervised:
    torch.manual_seed(1)
    return Supervised(SupervisedConfig.model_validate({"task": task, "classes": CLASSES[task]}), 8)


@pytest.mark.parametrize("task", LABELS)
def test_each_loss_is_its_equation(task: str) -> None:
    batch, supervised = labelled(task), head_of(task)
    given = supervised.given(batch)
    rows = torch.randn(15, 8, requires_grad=True)
    losses = supervised.losses(rows, given)
    assert supervised.names == (task,) == tuple(losses)
    assert supervised.counts(batch) == {task: COUNTS[task]} == {task: losses[task].count}
    spans, expected = [(0, 6), (6, 11), (11, 11), (11, 15)], torch.zeros(())
    for (start, stop), label in zip(spans, LABELS[task], strict=True):
        if label is None or start == stop:
            continue
        if task == "residue":
            for i, value in enumerate(label):
                odds = supervised.head(rows[start + i]).squeeze().sigmoid()
                expected = expected - (0 if math.isnan(value) else (odds if value else 1 - odds).log())
            continue
        guess = supervised.head(rows[start:stop].mean(0))
        if task == "class":
            expected = expected - guess.softmax(0)[int(label[0])].log()
        elif task == "scalar":
            expected = expected + (guess[0] - label[0]) ** 2
        else:
            each: list[Tensor] = [guess[c].sigmoid() if c in label else 1 - guess[c].sigmoid() for c in range(3)]
            expected = expected - sum(odds.log() for odds in each) / 3
    torch.testing.assert_close(losses[task].sum, expected)
    (touched,) = torch.autograd.grad(losses[task].sum, rows)
    without = [span for span, label in zip(spans, LABELS[task], strict=True) if label is None]
    assert without and not any(touched[start:stop].any() for start, stop in without) and touched.any()


@pytest.mark.parametrize("task", LABELS)
def test_without_a_label_there_is_no_loss_and_every_parameter_has_a_gradient(task: str) -> None:
    model = model_of(objective={"kind": "supervised", "task": task, "classes": CLASSES[task]})
    batch = labelled(task)
    assert batch.labels is not None
    absent = Labels(torch.zeros(0), torch.zeros(5, dtype=torch.int64), torch.zeros(4, dtype=torch.bool))
    none = replace(batch, labels=absent)
    (loss,) = losses_of(model, none).values()
    assert loss.item() == 0 and model.counts(none) == {task: 0}
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    model.zero_grad()
    (loss,) = losses_of(model, batch).values()
    loss.backward()
    assert loss.item() > 0 and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("task", LABELS)
def test_it_learns_them(task: str) -> None:
    asked = {"kind": "supervised", "task": task, "classes": CLASSES[task]}
    model = model_of("egnn", drawn=False, objective=asked)
    batch, found = labelled(task), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        (loss,) = losses_of(model, batch).values()
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found[-1] < 0.3 * found[0]


def test_losses_of_hidden_residues_are_those_of_a_slow_twin() -> None:
    """A chain that lacks a Cα; one of a part of its sequence, with a letter of its own at a residue that is asked for;
    and a structure alone, whose numbers begin at 3. Bins: 7 of 0 to 10 Å, what is farther in the last; 5 of 0 to 180°.
    """
    residues, rows, seed = (12, 9, 5), (12, 6, 5), (3, 0, torch.arange(3))
    batch = proteins(12, 9, 8, chains=rows)
    sequence = replace(batch.sequence, letters=batch.sequence.letters[:21], offsets=torch.tensor([0, 12, 21, 21]))
    place = [*range(12), *range(15, 21), *range(21, 26)]  # the residue that each row of a structure is of
    assert batch.structure.positions.tolist() == [*range(12), *range(3, 9), *range(3, 8)]
    asked = hide(torch.tensor(residues), *seed, 0.4)[0].nonzero().flatten().tolist()
    own = next(row for row in range(12, 18) if place[row] in asked)
    folded = batch.structure.letters.clone()
    folded[:18] = sequence.letters[place[:18]]
    folded[own] = ord("W") if folded[own] != ord("W") else ord("A")
    batch = replace(batch, sequence=sequence, structure=lacking(replace(batch.structure, letters=folded), [4], 1))

    letter = dict(enumerate(bytes(sequence.letters.tolist()).decode()))
    for row, code in enumerate(folded.tolist()):
        letter.setdefault(place[row], chr(code))
    targets: dict[str, list[int]] = {"residue": [], "distance": [], "angle": []}
    for residue in asked:
        targets["residue"].append(ORDER.index(letter[residue]) if letter[residue] in ORDER else 20)
    points, triples = batch.structure.coordinates[:, 1].double(), []
    for row, (one, other) in enumerate(mates(torch.tensor(rows), *seed).tolist()):
        if 4 in (row, one, other):
            continue
        a, b = points[one] - points[row], points[other] - points[row]
        degrees = math.degrees(math.acos(float(a @ b / a.norm() / b.norm())))
        targets["distance"].append(min(6, int(float(a.norm()) / 10 * 7)))
        targets["angle"].append(min(4, int(degrees / 36)))
        triples.append((place[row], place[one], place[other]))
    assert len(asked) == 11 and 15 < len(triples) < 23 and len(set(targets["distance"])) > 3

    torch.manual_seed(1)
    masked, values = Masked(MaskedConfig(masked=0.4, distances=7, angles=5, farthest=10.0), 8), torch.randn(26, 8)
    given = masked.given(batch)
    assert {m: each.tolist() for m, each in given.places.items()} == {
        Modality.SEQUENCE: [*range(21)],
        Modality.STRUCTURE: place,
    }
    guesses, told = masked.guesses, dict(enumerate(values))
    gave: dict[str, list[Tensor]] = {"residue": [guesses.letter(told[i]) for i in asked], "distance": [], "angle": []}
    for i, j, k in triples:
        here, one, other = told[i], told[j], told[k]
        gave["distance"].append(guesses.distance(torch.cat([here * one, (here - one).abs()])))
        gave["angle"].append(guesses.angle(torch.cat([here, one * other, one + other])))
    losses = masked.losses(values, given)
    assert masked.counts(batch) == {name: len(each) for name, each in targets.items()}
    for name, loss in losses.items():
        assert loss.sum.item() == pytest.approx(by_hand(torch.stack(gave[name]), targets[name]), rel=1e-5), name
        assert loss.count == len(targets[name])
