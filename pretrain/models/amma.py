"""AMMA: one encoder over the visible tokens of every modality, one decoder per modality, and who may see whom.

Frozen features → linear → a share of the tokens stays visible (`pretrain.masking`) → one transformer over all visible
tokens of a protein and one global token → per modality a decoder that reconstructs the frozen features. Asymmetry is
which latents each decoder sees (`sees`). Ko, Lee, Kim & Hwang, "AMMA"; masking as MultiMAE (Bachmann et al. 2022).

The encoder itself mixes modalities: a latent *of* the sequence has attended to visible structure tokens. `sees` decides
whose latents a decoder reads, not which inputs they know; that is what makes a decoder that reads sequence latents
alone push structure and function into them. No masked feature reaches any decoder, by any path.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

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
    protein_codes,
    text_codes,
)
from pretrain.config import Config, refuse_idle
from pretrain.layers import flops
from pretrain.layers.decoder import Decoder, DecoderConfig, Sees
from pretrain.layers.projection import COLDEST, Projection, Temperature, check_encoded, mean
from pretrain.layers.transformer import Mark, Transformer, interleave
from pretrain.masking import MaskingConfig, Masks, draw_masks
from pretrain.objectives.contrastive import Negatives, Rows, gather
from pretrain.objectives.reconstruction import reconstruction
from pretrain.sample import Modality

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
ALL = tuple(Modality)
PRESETS: dict[str, dict[Modality, tuple[Modality, ...]]] = {
    "cumulative": {SEQUENCE: ALL[:1], STRUCTURE: ALL[:2], FUNCTION: ALL[:3], IMAGE: ALL},
    "sequence_only": {SEQUENCE: ALL[:1], STRUCTURE: ALL[:1], FUNCTION: ALL[:1], IMAGE: ALL},
    "symmetric": {SEQUENCE: ALL[:3], STRUCTURE: ALL[:3], FUNCTION: ALL[:3], IMAGE: ALL},
}


class Weights(Config):
    """Weight of each modality's reconstruction loss."""

    sequence: float = Field(default=1.0, ge=0)
    structure: float = Field(default=1.0, ge=0)
    function: float = Field(default=1.0, ge=0)
    image: float = Field(default=1.0, ge=0)


class AmmaConfig(Config):
    """Defaults are the paper's size.

    sees: a preset, or a row for each of `modalities`. loss_on: score masked tokens only, or all. normalize_targets:
    layer-norm each target token. confidence_weighted: a structure token's error counts pLDDT/100 times. variant
    "contrastive": the same encoder on each modality alone, pairwise InfoNCE in a space of width `embedding`, starting
    at `temperature`.
    """

    kind: Literal["amma"] = "amma"
    variant: Literal["reconstruction", "contrastive"] = "reconstruction"
    modalities: tuple[Modality, ...] = Field(default=ALL, min_length=1)
    width: int = Field(default=768, gt=0, multiple_of=2)
    depth: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    decoder: DecoderConfig = DecoderConfig()
    masking: MaskingConfig = MaskingConfig()
    sees: Literal["cumulative", "sequence_only", "symmetric"] | dict[Modality, Sees] = "cumulative"
    loss_on: Literal["masked", "all"] = "masked"
    normalize_targets: bool = False
    confidence_weighted: bool = False
    weights: Weights = Weights()
    temperature: float = Field(default=0.07, gt=COLDEST)
    embedding: int = Field(default=256, gt=0)

    @property
    def trains(self) -> tuple[Modality, ...]:
        """Whose encoders the model trains: none."""
        return ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, part in (("", self), ("decoder.", self.decoder)):
            if part.width % part.heads:
                raise ValueError(f"{name}width {part.width} must be a multiple of {name}heads {part.heads}")
        if list(self.modalities) != [m for m in Modality if m in self.modalities]:
            raise ValueError(f"modalities must be distinct and in the order {', '.join(Modality)}")
        if self.variant == "contrastive" and len(self.modalities) < 2:
            raise ValueError("the contrastive variant compares pairs; name at least two modalities")
        if self.variant == "contrastive":
            refuse_idle(self, "where variant = contrastive", "sees", "loss_on", "confidence_weighted", "weights")
        if STRUCTURE not in self.modalities:
            refuse_idle(self, "without structure", "confidence_weighted")
        if not isinstance(self.sees, str) and set(self.sees) != set(self.modalities):
            raise ValueError(f"sees must have a row for each of {', '.join(self.modalities)} and no other")
        for modality in self.modalities:
            row = self.row(modality)
            once = len(set(row.tokens)) == len(row.tokens)
            if not once or not set(row.tokens) <= set(self.modalities) or not (row.tokens or row.global_token):
                raise ValueError(
                    f"sees.{modality} must name some of {', '.join(self.modalities)}, each once, or the global token"
                )
        return self

    def row(self, modality: Modality) -> Sees:
        """What the decoder of `modality` sees. A preset's row is narrowed to the modalities that the model has."""
        if isinstance(self.sees, str):
            return Sees(tokens=tuple(m for m in PRESETS[self.sees][modality] if m in self.modalities))
        return self.sees[modality]


class Amma(nn.Module):
    """widths: modality → width of its frozen features."""

    def __init__(self, config: AmmaConfig, widths: Mapping[Modality, int]):
        super().__init__()
        check_encoded(config.modalities, widths)
        self.config, self.modalities = config, config.modalities
        self.projections = nn.ModuleDict({m.value: Projection(widths[m], config.width) for m in self.modalities})
        self.global_token = Mark(config.width)
        self.encoder = Transformer(config.width, config.depth, config.heads, config.mlp_ratio)
        if config.variant == "reconstruction":
            self.decoders = nn.ModuleDict(
                {
                    m.value: Decoder(m, config.row(m), config.decoder, config.width, widths[m], config.mlp_ratio)
                    for m in self.modalities
                }
            )
        else:
            self.head = nn.Linear(config.width, config.embedding)
            self.temperature = Temperature(config.temperature)

    @property
    def contrastive(self) -> bool:
        """Whether losses compare proteins, so that every part of a step needs the whole step's rows."""
        return self.config.variant == "contrastive"

    @property
    def pairs(self) -> tuple[tuple[Modality, Modality], ...]:
        return tuple(combinations(self.modalities, 2))

    def loss_names(self) -> tuple[str, ...]:
        """Every name that `forward` returns a loss for, always all of them."""
        if not self.contrastive:
            return tuple(f"reconstruction/{m}" for m in self.modalities)
        return tuple(f"contrastive/{a}-{b}" for a, b in self.pairs)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Each loss's count, known before anything is encoded: scored tokens, or proteins showing both of a pair."""
        masks = self._masks(batch)
        if not self.contrastive:
            scored = (self._scored(masks.visible[m]) for m in self.modalities)
            return {name: int(rows.sum()) for name, rows in zip(self.loss_names(), scored, strict=True)}
        both = ((masks.kept[a] > 0) & (masks.kept[b] > 0) for a, b in self.pairs)
        return {name: int(rows.sum()) for name, rows in zip(self.loss_names(), both, strict=True)}

    def flops(self, batch: Batch) -> int:
        """Of a training step on `batch`: `pretrain.layers.flops` has the convention."""
        kept = self._masks(batch).kept
        projected = sum(self.projections[m].flops(kept[m]) for m in self.modalities)  # type: ignore[operator]
        if self.contrastive:
            encoded = sum(self.encoder.flops(kept[m] + 1) for m in self.modalities)
            rest = sum(flops.linear(self.head, torch.ones_like(kept[m])) for m in self.modalities)
        else:
            encoded = self.encoder.flops(torch.stack([kept[m] for m in self.modalities]).sum(0) + 1)
            rest = sum(self.decoders[m].flops(batch.lengths[m], kept) for m in self.modalities)  # type: ignore[operator]
        return (flops.TRAINED - 1) * projected + flops.TRAINED * (encoded + rest)

    def forward(
        self, features: Features, batch: Batch | None = None, negatives: Negatives | None = None, task: Task = "losses"
    ) -> Losses | Rows | Embeddings | Latents:
        """The one entrance to the parameters, so that an engine around the model sees every use of them.

        losses: of `batch`'s masks; contrastive ones compare with `negatives`, or with the other ranks' rows where None.
        negatives: what the contrastive variant compares, of this batch, for `objectives.contrastive.collect`.
        embeddings, latents: of whole proteins, nothing masked; no batch needed.
        """
        if task == "latents":
            return self._encode({m: features[m] for m in self.modalities})
        if task == "embeddings":
            return self._embeddings(features)
        assert batch is not None, f"{task} need the batch: it keys the masks"
        masks = self._masks(batch)
        visible = {m: mask.to(features[m].values.device) for m, mask in masks.visible.items()}
        check_announced(batch, features, self.modalities)
        if not self.contrastive:
            assert task == "losses", "only the contrastive variant has negatives"
            return self._reconstruct(features, batch, visible)
        alone = self._alone({m: features[m].select(visible[m]) for m in self.modalities})
        rows = self._rows(*alone, batch)
        return rows if task == "negatives" else self._contrast(rows, batch, negatives)

    def _rows(self, embeddings: dict[Modality, Tensor], present: dict[Modality, Tensor], batch: Batch) -> Rows:
        """Where function takes part, proteins with their text in common are each other's positives."""
        grouped = [pair for pair in self.pairs if FUNCTION in pair]
        codes, proteins = (each.to(batch.slots.device) for each in (text_codes(batch), protein_codes(batch)))
        said = codes.unsqueeze(1) if grouped else None
        return Rows(embeddings, present, self.pairs, self.temperature(), said, grouped, proteins)

    @torch.no_grad()
    def looks(self, features: Features, by: Modality = FUNCTION, of: Modality = SEQUENCE) -> Tokens:
        """How much the tokens of `by` attend to each token of `of`, all visible: values [N, depth], the mean over heads
        and over the tokens of `by`. Over a protein they sum to at most 1, as tokens of others are attended to as well;
        0 where it has none of `by`. The figure of AMMA's residues that function texts look at.
        """
        tokens = {m: features[m] for m in self.modalities}
        joined = self._joined(tokens)
        where = torch.cat([torch.full((len(part),), i) for i, part in enumerate(joined.parts)])[joined.order.cpu()]
        numbers = [0, *(1 + self.modalities.index(m) for m in (by, of))]
        kinds = where.split(joined.offsets.diff().tolist())
        found = []
        for layer in self.encoder.looks(torch.cat(joined.parts)[joined.order], joined.offsets):
            rows = [
                look.mean(0)[kind == numbers[1]][:, kind == numbers[2]].sum(0) / max(1, int((kind == numbers[1]).sum()))
                for look, kind in zip(layer, kinds, strict=True)
            ]
            found.append(torch.cat(rows))
        return replace(features[of], values=torch.stack(found, 1))

    def _masks(self, batch: Batch) -> Masks:
        lengths = {m: batch.lengths[m] for m in self.modalities}
        return draw_masks(lengths, batch.seed, batch.step, batch.slots, self.config.masking)

    def _scored(self, visible: Tensor) -> Tensor:
        return ~visible if self.config.loss_on == "masked" else torch.ones_like(visible)

    def _encode(self, tokens: dict[Modality, Tokens], alone: bool = False) -> Latents:
        """One pass of the encoder, over each protein's tokens and a global token; `alone`: over each modality's of it.

        Alone, a protein is as many segments as there are modalities, each with a global token, which are not returned.
        """
        proteins = len(next(iter(tokens.values())).offsets) - 1
        joined = self._joined(tokens, alone)
        encoded = self.encoder(torch.cat(joined.parts)[joined.order], joined.offsets)[joined.order.argsort()]
        globals_, *latents = encoded.split([len(part) for part in joined.parts])
        parts = {m: replace(each, values=part) for (m, each), part in zip(tokens.items(), latents, strict=True)}
        return Latents(parts, globals_[:proteins])

    def _joined(self, tokens: dict[Modality, Tokens], alone: bool = False) -> "_Joined":
        proteins = len(next(iter(tokens.values())).offsets) - 1
        segments = proteins * len(tokens) if alone else proteins
        rows = [self.projections[m](each.values, each.positions) for m, each in tokens.items()]
        rows.insert(0, self.global_token(rows[0].new_zeros(segments, self.config.width)))
        owners = [each.owners + (i * proteins if alone else 0) for i, each in enumerate(tokens.values())]
        owners.insert(0, torch.arange(segments, device=rows[0].device))
        return _Joined(rows, *interleave(owners, segments))

    def _reconstruct(self, features: Features, batch: Batch, visible: dict[Modality, Tensor]) -> Losses:
        latents = self._encode({m: features[m].select(visible[m]) for m in self.modalities})
        losses: Losses = {}
        for m in self.modalities:
            prediction = self.decoders[m](latents, features[m].positions, features[m].offsets, visible[m])
            scored = self._scored(visible[m])
            weights = _confidence(batch, features[m]) if m is STRUCTURE and self.config.confidence_weighted else None
            error = reconstruction(prediction, features[m].values, scored, self.config.normalize_targets, weights)
            losses[f"reconstruction/{m}"] = Loss(error, int(scored.sum()), getattr(self.config.weights, m))
        return losses

    def _alone(self, tokens: dict[Modality, Tokens]) -> tuple[dict[Modality, Tensor], dict[Modality, Tensor]]:
        """(modality → [B, D], 0 where a protein lacks it; modality → bool [B], whether it has it)."""
        latents = self._encode(tokens, alone=True).tokens
        present = {m: each.lengths > 0 for m, each in tokens.items()}
        vectors = {m: self._vector([each]) * present[m].unsqueeze(1) for m, each in latents.items()}
        return vectors, present

    def _vector(self, latents: list[Tokens]) -> Tensor:
        """float32 [B, D]: the mean of each protein's latents; in the contrastive variant, where they are compared."""
        means = mean(latents)
        if not self.contrastive:
            return means
        return normalize(self.head(means.to(self.head.weight.dtype)).float(), dim=1)

    def _contrast(self, rows: Rows, batch: Batch, negatives: Negatives | None) -> Losses:
        step = gather(rows) if negatives is None else negatives.with_own(rows, batch.slots)
        return {f"contrastive/{a}-{b}": Loss(*step.info_nce((a, b))) for a, b in self.pairs}

    def _embeddings(self, features: Features) -> Embeddings:
        tokens = {m: features[m] for m in self.modalities}
        together = self._encode(tokens)
        return Embeddings(*self._alone(tokens), self._vector(list(together.tokens.values())))


@dataclass(frozen=True, eq=False)
class _Joined:
    """What the encoder takes: global tokens' rows, each modality's, and the order that brings segments together."""

    parts: list[Tensor]
    order: Tensor
    offsets: Tensor


def _confidence(batch: Batch, tokens: Tokens) -> Tensor:
    """float32 [N]: pLDDT / 100 of each structure token, cropped as the tokens were."""
    structure = batch.structure
    confidence = Tokens(structure.confidence, structure.offsets, structure.positions).crop(batch.window)
    assert torch.equal(confidence.positions, tokens.positions), "the structure encoder must give a token per residue"
    return confidence.values / 100
