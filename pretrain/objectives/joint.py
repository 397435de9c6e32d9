"""What is asked of the residues of a sequence and a structure together: those that were hidden, or what labels say.

An objective says what the branches are shown (`given`), and takes back a row for each residue of the batch: those of
the sequence; where there is none, of the structure (`pretrain.layers.fusion.Joint`).

Legend: B proteins, R residues of the batch, N rows of a branch, D width.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pretrain.batch import (
    Batch,
    Labels,
    Loss,
    Losses,
    Sequences,
    Structures,
    Tokens,
    lengths_of,
    of_proteins,
    owners_of,
)
from pretrain.config import Config
from pretrain.data.labels import LabelKind, Task
from pretrain.encoders.esm import HIDDEN
from pretrain.layers.fusion import SEQUENCE, STRUCTURE, Joint, Rows
from pretrain.layers.projection import Head, mean
from pretrain.masking import Dropout, hide, mates, not_dropped
from pretrain.objectives.masked import UNKNOWN, Guesses, changed, entropy, known, measured, without


class MaskedConfig(Config):
    """masked: share of residues whose letters are hidden and asked for. coordinates: `hidden`, these residues are also
    taken from where they are, onto the line between their neighbours; or `seen`, they stay. Distances and angles are
    asked of all residues, in bins, of 0 to `farthest` Å and of 0 to 180°. dropout: probability that a branch is shown
    nothing of a protein, of which all is asked for as ever.
    """

    kind: Literal["masked"] = "masked"
    masked: float = Field(default=0.15, gt=0, lt=1)
    coordinates: Literal["hidden", "seen"] = "hidden"
    distances: PositiveInt = 30
    angles: PositiveInt = 18
    farthest: float = Field(default=40.0, gt=0)
    dropout: Dropout = Dropout()

    @property
    def labels(self) -> None:
        """Needs none."""
        return


class SupervisedConfig(Config):
    """task: what `data.labels` holds. classes: how many, for `class` and `multilabel`."""

    kind: Literal["supervised"] = "supervised"
    task: Task
    classes: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if (self.classes > 0) != (self.task in ("class", "multilabel")):
            raise ValueError(
                f"task {self.task} with classes = {self.classes}: class and multilabel have some, others 0"
            )
        return self

    @property
    def labels(self) -> LabelKind:
        """Those that it needs."""
        return LabelKind(self.task, self.classes)


@dataclass(frozen=True, eq=False)
class Given:
    """What the branches are shown. offsets: int64 [B + 1], counting the batch's residues. places: branch → int64 [N],
    the residue of each row that is shown."""

    sequence: Sequences
    structure: Structures
    offsets: Tensor
    places: Rows

    @staticmethod
    def whole(sequence: Sequences, structure: Structures) -> "Given":
        joint = Joint.of(sequence.offsets, structure.offsets, structure.positions)
        return Given(sequence, structure, joint.offsets, joint.places)


@dataclass(frozen=True, eq=False)
class Question(Given):
    """asked: bool [R], residues whose `letters` (uint8 [R]) are. triples: int64 [K, 3], residues whose distance to a
    second, and angle between that and a third, are; `measures`, in Å and radians."""

    asked: Tensor
    letters: Tensor
    triples: Tensor
    measures: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Labelled(Given):
    """rows: bool [B], or of residues bool [R], that count; targets: [K], or of several classes [K, C], theirs."""

    rows: Tensor
    targets: Tensor


class Masked(nn.Module):
    """The same residues are hidden in both branches, and shown alike where they are shown as others: neither branch
    tells what the other hides."""

    names = Guesses.names

    def __init__(self, config: MaskedConfig, width: int):
        super().__init__()
        self.config = config
        self.guesses = Guesses(width, config.distances, config.angles, config.farthest)

    def counts(self, batch: Batch) -> dict[str, int]:
        question = self.given(batch)
        return dict(zip(self.names, (int(question.asked.sum()), *[len(question.triples)] * 2), strict=True))

    def losses(self, rows: Tensor, question: Question) -> Losses:
        """rows: [R, D]."""
        asked = question.asked
        return self.guesses.losses(rows, asked, question.letters[asked], question.triples, question.measures)

    def given(self, batch: Batch) -> Question:
        sequence, structure = batch.sequence, batch.structure
        joint = Joint.of(sequence.offsets, structure.offsets, structure.positions)
        places, device, key = joint.places, joint.offsets.device, (batch.seed, batch.step, batch.slots.cpu())
        lengths = lengths_of(joint.offsets).cpu()
        asked, draw = (each.to(device) for each in hide(lengths, *key, self.config.masked))
        letters = torch.zeros(len(asked), dtype=torch.uint8, device=device)
        letters[places[STRUCTURE]] = structure.letters
        letters[places[SEQUENCE]] = sequence.letters  # where a chain's residue is another, the sequence's is asked for
        at = {m: (asked[each], draw[each]) for m, each in places.items()}
        pairs = mates(lengths_of(structure.offsets).cpu(), *key).to(device)
        there, seen = known(structure, pairs), structure
        if self.config.coordinates == "hidden":
            seen = without(structure, at[STRUCTURE][0])
        triples = places[STRUCTURE][torch.cat([there.nonzero(), pairs[there]], 1)]
        told = replace(sequence, letters=changed(sequence.letters, *at[SEQUENCE], HIDDEN, self.training))
        seen = replace(seen, letters=changed(structure.letters, *at[STRUCTURE], UNKNOWN, self.training))
        present = {m: lengths_of(joint.rows[m]) for m in places}
        shown = not_dropped(present, *key, self.config.dropout)
        places = {m: places[m][shown[m][owners_of(joint.rows[m])]] for m in places}
        met = torch.zeros_like(asked).index_fill(0, torch.cat(list(places.values())), True)
        return Question(
            of_proteins(told, shown[SEQUENCE]), of_proteins(seen, shown[STRUCTURE]), joint.offsets, places,
            asked & met, letters, triples, measured(structure, pairs[there], there),
        )  # fmt: skip


class Supervised(nn.Module):
    """A head over a protein's mean row, or over each residue's; the others have no label and count nothing.

    class: cross entropy. multilabel: binary cross entropy, its mean over the classes. scalar: squared error. residue:
    binary cross entropy.
    """

    def __init__(self, config: SupervisedConfig, width: int):
        super().__init__()
        self.config, self.names = config, (config.task,)
        self.head = Head(width, width, config.classes or 1)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {self.config.task: int(self.given(batch).rows.sum())}

    def losses(self, rows: Tensor, labelled: Labelled) -> Losses:
        """rows: [R, D]."""
        if self.config.task != "residue":
            rows = mean([Tokens(rows, labelled.offsets, labelled.offsets[:0])]).to(rows.dtype)
        guesses, targets = self.head(rows[labelled.rows]).float(), labelled.targets
        if self.config.task == "class":
            return {"class": entropy(guesses, targets)}
        if self.config.task == "scalar":
            return {"scalar": Loss((guesses.squeeze(1) - targets).square().sum(), len(targets))}
        guesses = guesses if self.config.task == "multilabel" else guesses.squeeze(1)
        found = binary_cross_entropy_with_logits(guesses, targets, reduction="sum")
        return {self.config.task: Loss(found / max(1, self.config.classes), len(targets))}

    def told(self, rows: Tensor) -> Tensor:
        """What labels are by `rows` [K, D], means of proteins or rows of residues: float32 [K, classes] or [K],
        probabilities, or numbers of a `scalar`."""
        guesses = self.head(rows).float()
        if self.config.task == "class":
            return guesses.softmax(1)
        if self.config.task == "multilabel":
            return guesses.sigmoid()
        return guesses.squeeze(1).sigmoid() if self.config.task == "residue" else guesses.squeeze(1)

    def given(self, batch: Batch) -> Labelled:
        assert batch.labels is not None, "a batch that was packed has labels, if only of no protein"
        whole, labels = Given.whole(batch.sequence, batch.structure), batch.labels
        rows, targets = (self._of_residues if self.config.task == "residue" else self._of_proteins)(
            labels, whole.offsets
        )
        return Labelled(whole.sequence, whole.structure, whole.offsets, whole.places, rows, targets)

    def _of_residues(self, labels: Labels, offsets: Tensor) -> tuple[Tensor, Tensor]:
        labelled = labels.present[owners_of(offsets)]
        found = labels.values.new_full((len(labelled),), torch.nan).masked_scatter(labelled, labels.values)
        return ~found.isnan(), found[~found.isnan()]

    def _of_proteins(self, labels: Labels, offsets: Tensor) -> tuple[Tensor, Tensor]:
        rows = labels.present & (lengths_of(offsets) > 0)
        if self.config.task == "multilabel":
            every = labels.values.new_zeros(len(rows), self.config.classes)
            every[owners_of(labels.offsets), labels.values.long()] = 1.0
            return rows, every[rows]
        values = labels.values[rows[labels.present]]
        return rows, values.long() if self.config.task == "class" else values
