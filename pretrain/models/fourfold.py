"""Fourfold: one model of sequence, structure, function and image that has what the other four have apart.

Frozen features → a share of the tokens stays visible → two branches, of sequence and structure, that exchange after
each round → one transformer over all visible tokens and a global one → decoders that tell what was hidden, and one
space in which modalities, each encoded alone, are compared.

Why each part is there:

- Masked asymmetric reconstruction (AMMA): every protein trains it, whatever it has. What a decoder may see says which
  latents must hold what it tells: the sequence's are told from the sequence alone, function's from all.
- Exchange by residue (Bi-Hierarchical Fusion): sequence and structure are two accounts of the same residues. A gate
  joins the two rows of one residue, attention all rows of a protein. It comes after masking, between layers of the
  model's own: were it inside the encoders, a hidden residue's structure would be in its letter's features, and telling
  it no task. What the encoders know at different depths enters round by round (`tiers`).
- One space (Align-Pro): reconstruction alone leaves modalities' clouds apart, and search needs them together. Texts in
  common are positives. It compares what the same visible tokens give, alone: no second draw, one more pass.
- Attention pooling (self-SSGI): which residues, words or patches a protein's vector is made of is learned; several
  images are one bag of patches.
- Absence is an empty segment throughout: a sequence without a structure goes through the same weights.

What was dropped before it was tried: exchange inside the encoders, as in Bi-Hierarchical Fusion, for it tells what is
hidden; a second draw of visible tokens to compare, for it costs a pass more. What was tried and dropped:

- The same residues shown of sequence and structure (`same_residues`), so that more rows meet than one in twenty-five:
  no better, so each shows its own.
- The comparison weighed 1 and not 0.1: no better.
- GVP in GearNet's place, though alone it is the better encoder: no better.

And what was tried and stays, though small models do not show its worth (66,851 proteins, 400 steps of 16, three seeds;
`benchmarks/results/directions.md`): without exchange EC is told as well, and without the comparison sequences and
structures find each other better, by their mean latents, than in its space; perhaps because that learns of the sixth of
the tokens that is visible, and is asked for whole proteins. Nor is the model above its structure encoder alone yet.
"""

from collections.abc import Mapping
from dataclasses import replace
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
    offsets_of,
    owners_of,
    protein_codes,
    text_codes,
)
from pretrain.config import Config, refuse_idle
from pretrain.layers import flops
from pretrain.layers.decoder import Decoder, DecoderConfig, Sees
from pretrain.layers.fusion import BRANCHES
from pretrain.layers.pooling import GatedPooling
from pretrain.layers.projection import COLDEST, Head, Temperature, check_encoded, mean, on_sphere
from pretrain.layers.rounds import Entry, Round, joint_of, spread
from pretrain.layers.transformer import Mark, Transformer, interleave
from pretrain.masking import MaskingConfig, Masks, draw_masks
from pretrain.models.amma import PRESETS, Weights
from pretrain.objectives.contrastive import Negatives, Rows, gather
from pretrain.objectives.reconstruction import reconstruction
from pretrain.sample import Modality

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality


class FourfoldConfig(Config):
    """rounds: of the two branches, before `depth` layers over all. levels: of what branches tell each other (none: they
    stay apart until then). tiers: modality → into how many equal parts its features fall, by depth of its encoder
    (GearNet's layers, ESM's `encoders.sequence.tiers`); they must divide these. same_residues: sequence and structure
    show the same residues, as far as their shares go; otherwise each its own. sees: as AMMA's. align: weight of the
    comparison, 0 for none; embedding: width of its space.
    """

    kind: Literal["fourfold"] = "fourfold"
    modalities: tuple[Modality, ...] = Field(default=tuple(Modality), min_length=1)
    width: int = Field(default=768, gt=0, multiple_of=2)
    rounds: int = Field(default=4, ge=0)
    depth: int = Field(default=8, gt=0)
    heads: int = Field(default=12, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    levels: tuple[Literal["local", "global"], ...] = ("local", "global")
    tiers: dict[Modality, int] = Field(default_factory=dict)
    decoder: DecoderConfig = DecoderConfig()
    masking: MaskingConfig = MaskingConfig()
    same_residues: bool = False
    sees: Literal["cumulative", "sequence_only", "symmetric"] = "cumulative"
    normalize_targets: bool = True
    weights: Weights = Weights()
    align: float = Field(default=0.1, ge=0)
    embedding: int = Field(default=256, gt=0)
    temperature: float = Field(default=0.07, gt=COLDEST)

    @property
    def trains(self) -> tuple[Modality, ...]:
        """Whose encoders the model trains: none."""
        return ()

    @property
    def pairs(self) -> tuple[tuple[Modality, Modality], ...]:
        return tuple(combinations(self.modalities, 2)) if self.align else ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, part in (("", self), ("decoder.", self.decoder)):
            if part.width % part.heads:
                raise ValueError(f"{name}width {part.width} must be a multiple of {name}heads {part.heads}")
        if list(self.modalities) != [m for m in Modality if m in self.modalities]:
            raise ValueError(f"modalities must be distinct and in the order {', '.join(Modality)}")
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels {list(self.levels)} must be local, global, both or none, each once")
        if not self.rounds:
            refuse_idle(self, "without rounds", "levels")
        if not {*BRANCHES} <= {*self.modalities}:
            refuse_idle(self, "without both sequence and structure", "same_residues")
        most = max(1, self.rounds)
        if wrong := [m for m, count in self.tiers.items() if m not in BRANCHES or not 1 <= count <= most]:
            raise ValueError(
                f"tiers.{wrong[0]} = {self.tiers[wrong[0]]}: tiers are of sequence and structure, from 1 to as many as "
                f"there are rounds, {self.rounds}"
            )
        return self

    def row(self, modality: Modality) -> Sees:
        """What the decoder of `modality` sees: the preset's row, narrowed to the modalities that the model has."""
        return Sees(tokens=tuple(m for m in PRESETS[self.sees][modality] if m in self.modalities))


class Fourfold(nn.Module):
    """widths: modality → width of its frozen features."""

    def __init__(self, config: FourfoldConfig, widths: Mapping[Modality, int]):
        super().__init__()
        check_encoded(config.modalities, widths)
        self.config, self.modalities, width = config, config.modalities, config.width
        self.entries = nn.ModuleDict(
            {m.value: Entry(m, widths[m], width, config.tiers.get(m, 1), config.rounds) for m in self.modalities}
        )
        self.rounds = nn.ModuleList(
            Round(width, config.heads, config.mlp_ratio, self.modalities, config.levels) for _ in range(config.rounds)
        )
        self.global_token = Mark(width)
        self.encoder = Transformer(width, config.depth, config.heads, config.mlp_ratio)
        self.decoders = nn.ModuleDict(
            {
                m.value: Decoder(m, config.row(m), config.decoder, width, widths[m], config.mlp_ratio)
                for m in self.modalities
            }
        )
        compared = self.modalities if config.pairs else ()
        self.poolings = nn.ModuleDict({m.value: GatedPooling(width, max(1, width // 4)) for m in compared})
        self.heads = nn.ModuleDict({m.value: Head(width, width, config.embedding) for m in compared})
        self.temperatures = nn.ModuleDict({f"{a}-{b}": Temperature(config.temperature) for a, b in config.pairs})

    @property
    def contrastive(self) -> bool:
        """Whether losses compare proteins, so that every part of a step needs the whole step's rows."""
        return bool(self.config.pairs)

    def loss_names(self) -> tuple[str, ...]:
        """Every name that `forward` returns a loss for, always all of them."""
        told = (f"reconstruction/{m}" for m in self.modalities)
        return (*told, *(f"contrastive/{a}-{b}" for a, b in self.config.pairs))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Each loss's count, known before anything is encoded: hidden tokens, or proteins showing both of a pair."""
        masks = self._masks(batch)
        hidden = [int((~masks.visible[m]).sum()) for m in self.modalities]
        both = [int(((masks.kept[a] > 0) & (masks.kept[b] > 0)).sum()) for a, b in self.config.pairs]
        return dict(zip(self.loss_names(), hidden + both, strict=True))

    def flops(self, batch: Batch) -> int:
        """Of a training step on `batch`: `pretrain.layers.flops` has the convention."""
        masks, apart = self._masks(batch), self.contrastive
        shown = {m: each.select(masks.visible[m]) for m, each in self._places(batch).items()}
        segments = len(batch) * (1 + len(shown) * apart)
        every = self._segments(shown, segments, apart)
        lengths = {m: each.lengths for m, each in every.items()}
        entered = sum(self.entries[m].flops(lengths[m]) for m in every)  # type: ignore[operator]
        joint, total = joint_of(every, segments), torch.stack(list(lengths.values())).sum(0)
        inner = sum(each.flops(joint) for each in self.rounds) + self.encoder.flops(total + 1)  # type: ignore[operator]
        inner += sum(self.decoders[m].flops(batch.lengths[m], masks.kept) for m in every)  # type: ignore[operator]
        compared = sum(self.poolings[m].flops(masks.kept[m]) for m in self.poolings)  # type: ignore[operator, index]
        heads = sum(each.flops(torch.tensor([len(batch)]), trained=True) for each in self.heads.values())  # type: ignore[operator]
        return (flops.TRAINED - 1) * entered + flops.TRAINED * (inner + compared) + heads

    def forward(
        self, features: Features, batch: Batch | None = None, negatives: Negatives | None = None, task: Task = "losses"
    ) -> Losses | Rows | Embeddings | Latents:
        """The one entrance to the parameters, so that an engine around the model sees every use of them.

        losses: of `batch`'s masks; compared with `negatives`, or with the other ranks' rows where None. negatives: what
        is compared, of this batch, for `objectives.contrastive.collect`. embeddings, latents: of whole proteins.
        """
        every = {m: features[m] for m in self.modalities}
        if task == "latents":
            return self._encode(every)[0]
        if task == "embeddings":
            together, alone = self._encode(every, apart=True)
            return Embeddings(*self._vectors(alone), mean(list(together.tokens.values())))
        assert batch is not None, f"{task} need the batch: it keys the masks"
        check_announced(batch, features, self.modalities)
        visible = {m: mask.to(every[m].values.device) for m, mask in self._masks(batch).visible.items()}
        shown = {m: every[m].select(visible[m]) for m in self.modalities}
        together, alone = self._encode(shown, apart=self.contrastive)
        told = {} if task == "negatives" else self._reconstructed(together, every, visible)
        if not self.contrastive:
            assert task == "losses", "with align = 0 nothing is compared"
            return told
        rows = self._rows(alone, batch)
        if task == "negatives":
            return rows
        step = gather(rows) if negatives is None else negatives.with_own(rows, batch.slots)
        pairs = self.config.pairs
        return told | {f"contrastive/{a}-{b}": Loss(*step.info_nce((a, b)), self.config.align) for a, b in pairs}

    def _masks(self, batch: Batch) -> Masks:
        lengths = {m: batch.lengths[m] for m in self.modalities}
        residues = None
        if self.config.same_residues:
            residues = {m: each.positions for m, each in self._places(batch).items() if m in BRANCHES}
        return draw_masks(lengths, batch.seed, batch.step, batch.slots, self.config.masking, residues)

    def _places(self, batch: Batch) -> dict[Modality, Tokens]:
        """The tokens that `batch` announces, without values; positions of residues, as only these meet by them."""
        chain = batch.structure
        found = {m: offsets_of(batch.lengths[m]) for m in self.modalities}
        tokens = {}
        for m, offsets in found.items():
            start = batch.window[:, 0] if m is SEQUENCE else torch.zeros_like(batch.window[:, 0])
            along = torch.arange(int(offsets[-1]), device=offsets.device) - (offsets[:-1] - start)[owners_of(offsets)]
            tokens[m] = Tokens(along.new_zeros(len(along), 0), offsets, along)
        if STRUCTURE in tokens:
            tokens[STRUCTURE] = Tokens(chain.positions.unsqueeze(1), chain.offsets, chain.positions).crop(batch.window)
        return tokens

    @staticmethod
    def _segments(tokens: dict[Modality, Tokens], segments: int, apart: bool) -> dict[Modality, Tokens]:
        return {m: spread(each, 1 + i, segments) if apart else each for i, (m, each) in enumerate(tokens.items())}

    def _encode(self, tokens: dict[Modality, Tokens], apart: bool = False) -> tuple[Latents, dict[Modality, Tokens]]:
        """(latents of each protein's tokens together, each modality's of it alone), in one pass.

        apart: every protein is 1 + M segments, all of it and each modality by itself; without, there is no second.
        """
        proteins = len(next(iter(tokens.values())).offsets) - 1
        segments = proteins * (1 + len(tokens) * apart)
        every = self._segments(tokens, segments, apart)
        states = {m: self.entries[m](each.values, each.positions) for m, each in every.items()}
        rows = {m: each[0] for m, each in states.items()}
        branches, joint = [m for m in BRANCHES if m in rows], joint_of(every, segments)
        for i, each in enumerate(self.rounds):
            entered = [rows[m] + states[m][i] if i else rows[m] for m in branches]
            rows |= zip(branches, each(*entered, joint=joint), strict=True)
        latents, globals_ = self._joined({m: replace(each, values=rows[m]) for m, each in every.items()}, segments)
        own = {m: tokens[m].values.shape[0] for m in tokens}
        together = {m: replace(tokens[m], values=each[: own[m]]) for m, each in latents.items()}
        alone = {m: replace(tokens[m], values=each[own[m] :]) for m, each in latents.items()} if apart else {}
        return Latents(together, globals_[:proteins]), alone

    def _joined(self, tokens: dict[Modality, Tokens], segments: int) -> tuple[dict[Modality, Tensor], Tensor]:
        """(modality → latents, the global tokens'), through the transformer over all."""
        parts = [each.values for each in tokens.values()]
        parts.insert(0, self.global_token(parts[0].new_zeros(segments, self.config.width)))
        owners = [each.owners for each in tokens.values()]
        order, offsets = interleave([torch.arange(segments, device=parts[0].device), *owners], segments)
        encoded = self.encoder(torch.cat(parts)[order], offsets)[order.argsort()]
        globals_, *latents = encoded.split([len(part) for part in parts])
        return dict(zip(tokens, latents, strict=True)), globals_

    def _reconstructed(
        self, latents: Latents, features: dict[Modality, Tokens], visible: dict[Modality, Tensor]
    ) -> Losses:
        losses: Losses = {}
        for m in self.modalities:
            hidden = ~visible[m]
            told = self.decoders[m](latents, features[m].positions, features[m].offsets, visible[m])
            error = reconstruction(told, features[m].values, hidden, self.config.normalize_targets)
            losses[f"reconstruction/{m}"] = Loss(error, int(hidden.sum()), getattr(self.config.weights, m))
        return losses

    def _vectors(self, alone: dict[Modality, Tokens]) -> tuple[dict[Modality, Tensor], dict[Modality, Tensor]]:
        """(modality → [B, embedding] of length 1, 0 where it is absent; modality → bool [B]). With nothing compared,
        the mean latents."""
        present = {m: each.lengths > 0 for m, each in alone.items()}
        if not self.contrastive:
            return {m: mean([each]) for m, each in alone.items()}, present
        pooled = {m: self.poolings[m](each.values, each.offsets) for m, each in alone.items()}
        vectors = {m: on_sphere(self.heads[m](rows)) * present[m].unsqueeze(1) for m, rows in pooled.items()}
        return vectors, present

    def _rows(self, alone: dict[Modality, Tokens], batch: Batch) -> Rows:
        pairs = self.config.pairs
        grouped = [pair for pair in pairs if FUNCTION in pair]
        codes, proteins = (each.to(batch.slots.device) for each in (text_codes(batch), protein_codes(batch)))
        heat = torch.cat([each() for each in self.temperatures.values()])
        return Rows(*self._vectors(alone), pairs, heat, codes.unsqueeze(1) if grouped else None, grouped, proteins)
