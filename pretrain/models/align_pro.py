"""Align-Pro: sequence, structure and function in one space, by contrast.

    L = α·L(sequence, structure) + β·L(sequence, function) + γ·L(structure, function) + ι·Σ_m L(m, m's view)

Each term is the symmetric InfoNCE (`objectives.contrastive`) over a whole step's proteins, at a learned temperature of
its own. A protein's vector in a modality is the mean of its encoder's features through a head of two layers, brought to
length 1. The last three terms keep proteins apart within a modality: a view is the same protein drawn once more
(`data.draw`). Where function takes part, proteins with a text in common are each other's positives, not negatives
(`objectives.positives`). A protein that lacks a side of a pair is in neither its numerator nor its denominator, so that
partial triples train as well.

Descriptions are varied when a data set is prepared (`data_prep.describe`, `paraphrases` of each protein); a step draws
one of a protein's texts, its view another. With one text each, there is no view of function.

Two stages: with frozen encoders only heads and temperatures train; with `train_encoders` all of it does, from what a
first run has found (`start_from`).
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pretrain.batch import (
    Batch,
    Embeddings,
    Features,
    Latents,
    Loss,
    Losses,
    Task,
    Tokens,
    check_announced,
    of_view,
    protein_codes,
    text_codes,
)
from pretrain.config import Config, refuse_idle
from pretrain.encoders.bundle import Encoder, headless
from pretrain.layers.projection import COLDEST, Head, Temperature, check_encoded, mean, on_sphere
from pretrain.masking import ViewConfig
from pretrain.objectives.contrastive import Negatives, Pair, Rows, gather
from pretrain.sample import Modality

SEQUENCE, STRUCTURE, FUNCTION, _ = Modality
TRIPLE = (SEQUENCE, STRUCTURE, FUNCTION)


class AlignProConfig(Config):
    """modalities: all three, or two of them. width: of the shared space; hidden: of the heads' first layer.

    alpha, beta, gamma: weights of sequence–structure, sequence–function, structure–function. intra: of each modality's
    comparison with its view; 0 for no views. temperature: at the start, of each term. train_encoders: whether the
    encoders train with the heads.
    """

    kind: Literal["align_pro"] = "align_pro"
    modalities: tuple[Modality, ...] = Field(default=TRIPLE, min_length=2)
    width: int = Field(default=512, gt=0)
    hidden: int = Field(default=1024, gt=0)
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=1.0, ge=0)
    intra: float = Field(default=0.1, ge=0)
    view: ViewConfig = ViewConfig()
    temperature: float = Field(default=0.07, gt=COLDEST)
    train_encoders: bool = False

    @property
    def trains(self) -> tuple[Modality, ...]:
        """Whose encoders the model trains."""
        return self.modalities if self.train_encoders else ()

    @property
    def views(self) -> ViewConfig | None:
        """How each protein is drawn once more, None where it is not."""
        return self.view if self.intra else None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if list(self.modalities) != [m for m in TRIPLE if m in self.modalities]:
            raise ValueError(f"modalities must be distinct, of {', '.join(TRIPLE)} and in this order")
        if not any(weight for _, weight in self.terms.values()):
            raise ValueError("the weights of all terms are 0 (alpha, beta, gamma, intra): there is nothing to learn")
        if not self.intra:
            refuse_idle(self, "without intra", "view")
        for name, pair in zip(("alpha", "beta", "gamma"), combinations(TRIPLE, 2), strict=True):
            if lacking := set(pair) - {*self.modalities}:
                refuse_idle(self, f"without {lacking.pop()}", name)
        return self

    @property
    def terms(self) -> dict[str, tuple[Pair, float]]:
        """Loss → what it compares, and its weight."""
        weights = dict(zip(combinations(TRIPLE, 2), (self.alpha, self.beta, self.gamma), strict=True))
        found = {f"contrastive/{a}-{b}": ((a, b), weights[a, b]) for a, b in combinations(self.modalities, 2)}
        own = {f"intra/{m}": ((m, of_view(m)), self.intra) for m in self.modalities if self.intra}
        return {**found, **own}


class AlignPro(nn.Module):
    """widths: modality → width of its features. trained: the encoders, where the model trains them."""

    contrastive = True

    def __init__(
        self, config: AlignProConfig, widths: Mapping[Modality, int], trained: Mapping[Modality, Encoder] | None = None
    ):
        super().__init__()
        check_encoded(config.modalities, widths)
        self.config, self.modalities, self.terms = config, config.modalities, config.terms
        self.heads = nn.ModuleDict({m.value: Head(widths[m], config.hidden, config.width) for m in self.modalities})
        self.temperatures = nn.ModuleDict({name: Temperature(config.temperature) for name in self.terms})
        self.trained = nn.ModuleDict({m.value: headless(trained[m]) for m in config.trains}) if trained else None

    def loss_names(self) -> tuple[str, ...]:
        """Every name that `forward` returns a loss for, always all of them."""
        return tuple(self.terms)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Each loss's count, known before anything is encoded: proteins that have both sides."""
        there: dict[str, Tensor] = {m: batch.lengths[m] > 0 for m in self.modalities}
        if self.config.intra:
            view = self._view_of(batch)
            there |= {of_view(m): view.lengths[m] > 0 for m in self.modalities}
        return {name: int((there[a] & there[b]).sum()) for name, ((a, b), _) in self.terms.items()}

    def flops(self, batch: Batch) -> int:
        """Of a training step on `batch`, as `pretrain.layers.flops` counts; 0, for unknown, where encoders train: what
        a graph's edges cost is known when it has been made."""
        if self.config.train_encoders:
            return 0
        vectors = [len(batch) * (2 if self.config.intra else 1)]
        return sum(self.heads[m].flops(torch.tensor(vectors)) for m in self.modalities)  # type: ignore[operator]

    def forward(
        self, features: Features, batch: Batch | None = None, negatives: Negatives | None = None, task: Task = "losses"
    ) -> Losses | Rows | Embeddings | Latents:
        """The one entrance to the parameters, so that an engine around the model sees every use of them.

        losses: of `batch` compared with `negatives`, or with the other ranks' rows where None. negatives: what is
        compared, of this batch, for `objectives.contrastive.collect`. embeddings: of `batch`, or of `features` alone
        where encoders stand beside the model. latents: each token's features through its modality's head.
        """
        if task == "latents":
            return self._latents(features)
        if task == "embeddings":
            return self._embeddings(self._features(features, batch))
        assert batch is not None, f"{task} need the batch: it keys the views"
        rows = self._rows(features, batch)
        if task == "negatives":
            return rows
        step = gather(rows) if negatives is None else negatives.with_own(rows, batch.slots)
        return {name: Loss(*step.info_nce(pair), weight) for name, (pair, weight) in self.terms.items()}

    def _features(self, features: Features, batch: Batch | None) -> Features:
        """As they are given; where the encoders are the model's own, what these make of the batch."""
        if self.trained is None:
            return {m: features[m] for m in self.modalities}
        assert batch is not None, "the encoders are the model's own, and take the batch"
        found = {m: self.trained[m.value](getattr(batch, m)) for m in self.modalities}
        return {m: each if m is FUNCTION else each.crop(batch.window) for m, each in found.items()}

    def _rows(self, features: Features, batch: Batch) -> Rows:
        """Every protein in each modality, and in each one's view, through one head."""
        once, again = self._means(self._features(features, batch), batch), []
        if self.config.intra:
            view = self._view_of(batch)
            given = {m.value: features[of_view(m)] for m in self.modalities if self.trained is None}
            again = self._means(self._features(given, view), view)
        embeddings, present = dict[str, Tensor](), dict[str, Tensor]()
        for i, m in enumerate(self.modalities):
            drawn = {m.value: once[i]} | ({of_view(m): again[i]} if again else {})
            heads = on_sphere(self.heads[m](torch.cat([values for values, _ in drawn.values()])))
            for (name, (_, there)), rows in zip(drawn.items(), heads.split([len(batch)] * len(drawn)), strict=True):
                embeddings[name], present[name] = rows * there.unsqueeze(1), there
        pairs = [pair for pair, _ in self.terms.values()]
        grouped = [pair for pair in pairs if FUNCTION in pair]
        heat = torch.cat([each() for each in self.temperatures.values()])
        proteins = protein_codes(batch).to(batch.slots.device)
        return Rows(embeddings, present, pairs, heat, self._codes(batch) if grouped else None, grouped, proteins)

    def _means(self, features: Features, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """([B, D], bool [B] whether it has any) of each modality."""
        check_announced(batch, features, self.modalities)
        return [(mean([features[m]]), features[m].lengths > 0) for m in self.modalities]

    def _codes(self, batch: Batch) -> Tensor:
        """int64 [B, K]: a protein's texts, those of its view too."""
        texts = [batch, self._view_of(batch)] if self.config.intra else [batch]
        return torch.stack([text_codes(each) for each in texts], 1).to(batch.slots.device)

    def _view_of(self, batch: Batch) -> Batch:
        assert batch.view is not None, "the model's view is part of InputSpec, so each batch has one"
        return batch.view

    def _embeddings(self, features: Features) -> Embeddings:
        values, present = {}, {}
        for m in self.modalities:
            present[m] = features[m].lengths > 0
            values[m] = on_sphere(self.heads[m](mean([features[m]]))) * present[m].unsqueeze(1)
        return Embeddings(values, present, on_sphere(torch.stack(list(values.values())).sum(0)))

    def _latents(self, features: Features) -> Latents:
        tokens = {
            m: Tokens(self.heads[m](features[m].values), features[m].offsets, features[m].positions)
            for m in self.modalities
        }
        return Latents(tokens, self._embeddings(features).fused)
