"""Two towers, after ProtST (Xu et al. 2023): a protein language model that learns from texts about its proteins.

    L = α·contrastive + β·residue + γ·fused

- contrastive: the symmetric InfoNCE (`objectives.contrastive`) over a whole step's proteins between the mean of a
  protein's residues and that of its text's word pieces, each through a head of two layers and brought to length 1.
  Proteins of the same text are each other's positives, not negatives (`objectives.positives`).
- residue: masked language modelling, as `models.unimodal` does it: with the language model's own head, and not all of
  the residues that are asked for are hidden, where ProtST hides all and has a new head.
- fused: the same residues of proteins that have a text are told again. Their rows read the text in a small module of
  cross attention, the paper's multimodal mask prediction.

As in the paper the masked sequence is encoded once, for all three, so no loss has seen a hidden residue's letter. The
language model trains, the text encoder is frozen. ProtST also hides words and tells them from the residues; that is
left out: the text encoder comes without a head for it.

A sequence without a text trains the language model; a text without a sequence trains nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pretrain.batch import (
    Batch,
    Embeddings,
    Features,
    Latents,
    Loss,
    Losses,
    Sequences,
    Task,
    Tokens,
    check_announced,
    lengths_of,
    owners_of,
    protein_codes,
    text_codes,
)
from pretrain.config import Config
from pretrain.encoders.bundle import Encoder
from pretrain.encoders.esm import ALPHABET, HIDDEN, Esm, tokens_of
from pretrain.layers import flops
from pretrain.layers.projection import COLDEST, Head, Temperature, mean, on_sphere
from pretrain.layers.transformer import CrossBlock
from pretrain.masking import hide
from pretrain.objectives.contrastive import Negatives, Pair, Rows, gather
from pretrain.objectives.masked import changed, entropy
from pretrain.sample import Modality

SEQUENCE, FUNCTION = Modality.SEQUENCE, Modality.FUNCTION
PAIR: Pair = (SEQUENCE, FUNCTION)
CONTRASTIVE = "contrastive/sequence-function"


class TwoTowerConfig(Config):
    """width: of the space in which both are compared; hidden: of the heads' first layer. fusion: width of the rows that
    read a text, in `depth` blocks of `heads` heads.

    alpha, beta, gamma: weights of `contrastive`, `residue`, `fused`. masked: share of residues that are asked for.
    temperature: at the start.
    """

    kind: Literal["two_tower"] = "two_tower"
    width: PositiveInt = 512
    hidden: PositiveInt = 512
    fusion: PositiveInt = 512
    depth: PositiveInt = 1
    heads: PositiveInt = 8
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=1.0, ge=0)
    masked: float = Field(default=0.15, gt=0, lt=1)
    temperature: float = Field(default=0.07, gt=COLDEST)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return (SEQUENCE, FUNCTION)

    @property
    def trains(self) -> tuple[Modality, ...]:
        """Whose encoders the model trains."""
        return (SEQUENCE,)


class TwoTower(nn.Module):
    """widths: modality → width of its features. trained: has the language model; none in an exported model, whose
    encoders stand beside it."""

    contrastive = True

    def __init__(
        self, config: TwoTowerConfig, widths: Mapping[Modality, int], trained: Mapping[Modality, Encoder] | None = None
    ):
        super().__init__()
        if missing := [m for m in config.modalities if m not in widths]:
            raise ValueError(
                f"a two_tower model reads sequence and function, but encoders give only "
                f"{', '.join(widths) or 'nothing'}: configure encoders.{missing[0]}"
            )
        if config.fusion % config.heads:
            raise ValueError(f"model.fusion = {config.fusion} must be a multiple of model.heads = {config.heads}")
        self.config, self.modalities = config, config.modalities
        self.heads = nn.ModuleDict({m.value: Head(widths[m], config.hidden, config.width) for m in self.modalities})
        self.temperatures = nn.ModuleDict({"contrastive": Temperature(config.temperature)})
        self.trained = _with_head(trained[SEQUENCE]) if trained else None
        self.objective = Reading(config, widths) if trained else None

    def loss_names(self) -> tuple[str, ...]:
        """Every name that `forward` returns a loss for, always all of them."""
        return (CONTRASTIVE, "residue", "fused")

    def counts(self, batch: Batch) -> dict[str, int]:
        """Each loss's count, known before anything is encoded: proteins that have both; residues that are asked for;
        those among them whose protein has a text."""
        asked, texts = _per_protein(self._asked(batch)[0], batch), batch.lengths[FUNCTION].cpu()
        both = (batch.lengths[SEQUENCE].cpu() > 0) & (texts > 0)
        return {CONTRASTIVE: int(both.sum()), "residue": int(asked.sum()), "fused": int(asked[texts > 0].sum())}

    def flops(self, batch: Batch) -> int:
        """Of a training step on `batch`, as `pretrain.layers.flops` counts."""
        encoder, reading = self._parts()
        assert encoder.head is not None, "checked when the model was built"
        asked, texts = _per_protein(self._asked(batch)[0], batch), batch.lengths[FUNCTION].cpu()
        vectors = torch.tensor([len(batch)])
        compared = sum(self.heads[m].flops(vectors, trained=m is SEQUENCE) for m in self.modalities)  # type: ignore[operator]
        letters = flops.linear(encoder.head.dense, asked) + 2 * int(asked.sum()) * encoder.width * len(ALPHABET)
        told = letters + reading.flops(asked * (texts > 0), texts)
        return compared + flops.TRAINED * (encoder.flops(batch.sequence.offsets) + told)

    def forward(
        self, features: Features, batch: Batch | None = None, negatives: Negatives | None = None, task: Task = "losses"
    ) -> Losses | Rows | Embeddings | Latents:
        """The one entrance to the parameters, so that an engine around the model sees every use of them.

        losses: of `batch`, its proteins compared with `negatives`, or with the other ranks' rows where None. negatives:
        what is compared, of this batch, for `objectives.contrastive.collect`. embeddings: of whole proteins, from
        `batch`, or from `features` alone where the language model stands beside the model. latents: each token's
        features through its modality's head.
        """
        if task == "latents":
            return self._latents(features)
        if task == "embeddings":
            return self._embeddings({**features, SEQUENCE: self._residues(features, batch)})
        assert batch is not None, f"{task} need the batch: the language model is the model's own"
        encoder, _ = self._parts()
        asked, draw = (each.to(batch.sequence.letters.device) for each in self._asked(batch))
        trained = self.training or task == "negatives"  # those of a step are of what the step is shown
        shown = changed(batch.sequence.letters, asked, draw, HIDDEN, trained)
        residues = encoder(Sequences(shown, batch.sequence.offsets))
        rows = self._rows({SEQUENCE: residues.crop(batch.window), FUNCTION: features[FUNCTION]}, batch)
        if task == "negatives":
            return rows
        step = gather(rows) if negatives is None else negatives.with_own(rows, batch.slots)
        return {
            CONTRASTIVE: Loss(*step.info_nce(PAIR), self.config.alpha),
            **self._told(residues, asked, batch.sequence.letters, features[FUNCTION]),
        }

    def _told(self, residues: Tokens, asked: Tensor, letters: Tensor, texts: Tokens) -> Losses:
        """The letters of the residues asked for (bool [N]), from their rows; and from these with their text."""
        encoder, reading = self._parts()
        assert encoder.head is not None, "checked when the model was built"
        told = encoder.head(residues.values[asked], encoder.embed)
        with_text = asked & (texts.lengths > 0)[residues.owners]
        hidden = residues.select(with_text)
        read = reading(hidden.values, hidden.offsets, texts.values, texts.offsets)
        alone, fused = entropy(told, tokens_of(letters[asked])), entropy(read, tokens_of(letters[with_text]))
        return {"residue": replace(alone, weight=self.config.beta), "fused": replace(fused, weight=self.config.gamma)}

    def _rows(self, features: Features, batch: Batch) -> Rows:
        """Every protein and every text, where they are compared."""
        check_announced(batch, features, self.modalities)
        found, heat = self._embeddings(features), self.temperatures["contrastive"]()
        codes, proteins = (each.to(batch.slots.device) for each in (text_codes(batch), protein_codes(batch)))
        return Rows(found.values, found.present, [PAIR], heat, codes.unsqueeze(1), [PAIR], proteins)

    def _residues(self, features: Features, batch: Batch | None) -> Tokens:
        """Of whole proteins: as they are given, or what the model's own language model makes of the batch."""
        if self.trained is None:
            return features[SEQUENCE]
        assert batch is not None, "the language model is the model's own, and takes the batch"
        return self.trained(batch.sequence).crop(batch.window)

    def _embeddings(self, features: Features) -> Embeddings:
        values, present = {}, {}
        for m in self.modalities:
            present[m] = features[m].lengths > 0
            values[m] = on_sphere(self.heads[m](mean([features[m]]))) * present[m].unsqueeze(1)
        return Embeddings(values, present, on_sphere(torch.stack(list(values.values())).sum(0)))

    def _latents(self, features: Features) -> Latents:
        tokens = {m: replace(features[m], values=self.heads[m](features[m].values)) for m in self.modalities}
        return Latents(tokens, self._embeddings(features).fused)

    def _asked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(bool [N], the residues that are asked for; float64 [N], draws that say how each is shown), on the CPU."""
        lengths = lengths_of(batch.sequence.offsets).cpu()
        return hide(lengths, batch.seed, batch.step, batch.slots.cpu(), self.config.masked)

    def _parts(self) -> "tuple[Esm, Reading]":
        assert self.trained is not None and self.objective is not None, "an exported model has no losses"
        return self.trained, self.objective


class Reading(nn.Module):
    """Letters of residues whose rows read their protein's text."""

    def __init__(self, config: TwoTowerConfig, widths: Mapping[Modality, int]):
        super().__init__()
        self.enter = nn.Linear(widths[SEQUENCE], config.fusion)
        self.blocks = nn.ModuleList(
            CrossBlock(config.fusion, config.heads, widths[FUNCTION]) for _ in range(config.depth)
        )
        self.letter = Head(config.fusion, config.fusion, len(ALPHABET))

    def forward(self, rows: Tensor, offsets: Tensor, texts: Tensor, text_offsets: Tensor) -> Tensor:
        """Logits [R, 33] over `ALPHABET` of rows [R, W]; each protein's read its own text's word pieces [S, V]."""
        found = self.enter(rows)
        for block in self.blocks:
            found = block(found, texts.to(found.dtype), offsets, text_offsets)
        return self.letter(found)

    def flops(self, rows: Tensor, texts: Tensor) -> int:
        """Forward over int64 [B] rows and word pieces of each protein."""
        linears = [self.enter, *(each for each in self.letter if isinstance(each, nn.Linear))]
        blocks = [block for block in self.blocks if isinstance(block, CrossBlock)]
        return sum(flops.linear(each, rows) for each in linears) + sum(block.flops(rows, texts) for block in blocks)


def _with_head(encoder: Encoder) -> Esm:
    if not isinstance(encoder, Esm) or encoder.head is None:
        raise ValueError(
            "model.kind = two_tower asks its language model for masked residues, and encoders.sequence, weights "
            f"{encoder.config.weights}, has no language-model head; take weights with one (head = true)"
        )
    if encoder.depth > 1:
        raise ValueError(f"encoders.sequence.tiers = {encoder.depth}: the model asks the last layer; leave it out")
    return encoder


def _per_protein(asked: Tensor, batch: Batch) -> Tensor:
    """int64 [B]: how many of each protein's residues are asked for, bool [N]."""
    counts = torch.zeros(len(batch), dtype=torch.int64)
    return counts.index_add(0, owners_of(batch.sequence.offsets.cpu()), asked.long())
