"""One encoder, trained by itself to fill in what it was not shown: the encoders that fusion models then hold frozen.

- sequence (ESM-2; Lin et al. 2023): 15 % of the residues are asked for; of those 80 % are hidden, 10 % are another
  residue and 10 % are as they were (Devlin et al. 2019). Cross entropy over the alphabet.
- structure (GearNet, GVP, EGNN; after Zhang et al. 2023, §4.2): residues' letters are asked for in the same way, and
  for every residue two others are drawn: how far away the first one is, and the angle between the two, both in bins.
  The paper asks for edges of the graph and takes them out of it; any two residues leave the graph as it is, and most
  are no edge.
- image (a small ViT): most patches are replaced by one learned vector and their pixels asked for, each patch brought to
  mean 0 and variance 1 (Xie et al. 2022; He et al. 2022, §3). An absent plane's pixels are not asked for.

A text encoder is not trained here: published ones exist.
"""

from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from pretrain.batch import Batch, Embeddings, Features, Latents, Loss, Losses, Sequences, Task, lengths_of
from pretrain.config import Config, refuse_idle
from pretrain.encoders.bundle import Encoder
from pretrain.encoders.egnn import Egnn
from pretrain.encoders.esm import HIDDEN, Esm, tokens_of
from pretrain.encoders.gearnet import GearNet
from pretrain.encoders.gvp import Gvp
from pretrain.encoders.image import ViT
from pretrain.layers.projection import mean
from pretrain.layers.transformer import Mark
from pretrain.masking import hide, mates
from pretrain.objectives.masked import UNKNOWN, Guesses, changed, entropy, known, measured
from pretrain.sample import CHANNELS, Modality


class UnimodalConfig(Config):
    """modality: whose encoder, `encoders.<modality>`, is trained. masked: share of residues that are asked for.
    patches: share of an image's. distances, angles: bins, of 0 to `farthest` Å and of 0 to 180°.

    It sees proteins up to the encoder's `max_length` and is asked for all that it sees: `encoders.crop` cuts nothing.
    """

    kind: Literal["unimodal"] = "unimodal"
    modality: Literal[Modality.SEQUENCE, Modality.STRUCTURE, Modality.IMAGE]
    masked: float = Field(default=0.15, gt=0, lt=1)
    patches: float = Field(default=0.6, gt=0, lt=1)
    distances: PositiveInt = 30
    angles: PositiveInt = 18
    farthest: float = Field(default=40.0, gt=0)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return (self.modality,)

    @property
    def trains(self) -> tuple[Modality, ...]:
        """Whose encoders the model trains."""
        return (self.modality,)

    @model_validator(mode="after")
    def _read(self) -> Self:
        of_residues = self.modality is not Modality.IMAGE
        refuse_idle(self, f"where modality = {self.modality}", *(["patches"] if of_residues else ["masked"]))
        if self.modality is not Modality.STRUCTURE:
            refuse_idle(self, f"where modality = {self.modality}", "distances", "angles", "farthest")
        return self


class Unimodal(nn.Module):
    """encoder: None in an exported model, whose encoder stands beside it."""

    contrastive = False

    def __init__(self, config: UnimodalConfig, encoder: Encoder | None):
        super().__init__()
        if isinstance(encoder, Esm) and encoder.depth > 1:
            raise ValueError(f"encoders.sequence.tiers = {encoder.depth}: only the last layer is trained; leave it out")
        self.config, self.modalities, self.trained = config, config.modalities, encoder
        self.objective = None if encoder is None else _objective_of(config, encoder)

    def loss_names(self) -> tuple[str, ...]:
        """Every name that `forward` returns a loss for, always all of them."""
        return self._objective().names

    def counts(self, batch: Batch) -> dict[str, int]:
        """Each loss's count, known before anything is encoded."""
        return self._objective().counts(batch)

    def flops(self, batch: Batch) -> int:
        """0, for unknown: what a graph's edges cost is known when it has been made."""
        return 0

    def forward(
        self, features: Features, batch: Batch | None = None, negatives: None = None, task: Task = "losses"
    ) -> Losses | Embeddings | Latents:
        """losses: of `batch`, of which the encoder sees a part. embeddings: of whole proteins, from `features` where
        the encoder stands beside the model. latents: from `features`."""
        if task == "latents":
            return self._latents(features)
        if task == "embeddings":
            return self._embeddings(features, batch)
        assert batch is not None, "losses need the batch: the encoder is the model's own"
        return self._objective()(self.trained, batch)

    def _latents(self, features: Features) -> Latents:
        """The features themselves, and their mean."""
        tokens = features[self.config.modality]
        return Latents({self.config.modality: tokens}, mean([tokens]))

    def _embeddings(self, features: Features, batch: Batch | None) -> Embeddings:
        modality = self.config.modality
        if self.trained is None:
            tokens = features[modality]
        else:
            assert batch is not None, "the encoder is the model's own, and takes the batch"
            tokens = self.trained(getattr(batch, modality))
        vectors = mean([tokens])
        return Embeddings({modality: vectors}, {modality: tokens.lengths > 0}, vectors)

    def _objective(self) -> "Residues | Geometry | Patches":
        assert self.objective is not None, "an exported model has no losses"
        return self.objective


class Residues(nn.Module):
    """Masked language modelling."""

    names = ("residue",)

    def __init__(self, config: UnimodalConfig):
        super().__init__()
        self.share = config.masked

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"residue": int(_asked(batch, batch.sequence.offsets, self.share)[0].sum())}

    def forward(self, encoder: Esm, batch: Batch) -> Losses:
        given = batch.sequence
        asked, draw = (each.to(given.letters.device) for each in _asked(batch, given.offsets, self.share))
        shown = changed(given.letters, asked, draw, HIDDEN, self.training)
        logits = encoder.logits(Sequences(shown, given.offsets))
        return {"residue": entropy(logits[asked], tokens_of(given.letters[asked]))}


class Geometry(nn.Module):
    """Residues' letters, distances and angles from what a structure encoder makes of each residue."""

    names = Guesses.names

    def __init__(self, config: UnimodalConfig, width: int):
        super().__init__()
        self.share = config.masked
        self.guesses = Guesses(width, config.distances, config.angles, config.farthest)

    def counts(self, batch: Batch) -> dict[str, int]:
        given = batch.structure
        asked, _ = _asked(batch, given.offsets, self.share)
        count = int(known(given, self._mates(batch)).sum())
        return {"residue": int(asked.sum()), "distance": count, "angle": count}

    def forward(self, encoder: GearNet | Gvp | Egnn, batch: Batch) -> Losses:
        given, pairs = batch.structure, self._mates(batch)
        asked, draw = (each.to(given.letters.device) for each in _asked(batch, given.offsets, self.share))
        rows = encoder(replace(given, letters=changed(given.letters, asked, draw, UNKNOWN, self.training))).values
        there = known(given, pairs)
        triples = torch.cat([there.nonzero(), pairs[there]], 1)
        measures = measured(given, pairs[there], there)
        return self.guesses.losses(rows, asked, given.letters[asked], triples, measures)

    def _mates(self, batch: Batch) -> Tensor:
        lengths = lengths_of(batch.structure.offsets)
        return mates(lengths.cpu(), batch.seed, batch.step, batch.slots.cpu()).to(lengths.device)


class Patches(nn.Module):
    """Pixels of hidden patches."""

    names = ("patch",)

    def __init__(self, config: UnimodalConfig, encoder: ViT):
        super().__init__()
        self.share, self.patches = config.patches, encoder.patches
        self.mark = Mark(encoder.width)
        self.out = nn.Linear(encoder.width, len(CHANNELS) * encoder.config.patch**2)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"patch": int(self._asked(batch).sum())}

    def forward(self, encoder: ViT, batch: Batch) -> Losses:
        asked = self._asked(batch).to(batch.image.offsets.device)

        def shown(rows: Tensor) -> Tensor:
            return torch.where(asked.view(*rows.shape[:2], 1), self.mark(torch.zeros_like(rows)), rows)

        rows = self.out(encoder(batch.image, shown).values[asked]).unflatten(1, (len(CHANNELS), -1)).float()
        cells = encoder.cells(batch.image).flatten(0, 1)[asked].unflatten(1, (len(CHANNELS), -1)).float()
        there = batch.image.present.repeat_interleave(self.patches, 0)[asked].unsqueeze(2)
        error = (rows - layer_norm(cells, cells.shape[2:])).square() * there
        per_patch = error.sum((1, 2)) / (there.sum(1).clamp(min=1) * cells.shape[2]).squeeze(1)
        return {"patch": Loss(per_patch.sum(), len(rows))}

    def _asked(self, batch: Batch) -> Tensor:
        """bool [I · P], on the CPU."""
        lengths = lengths_of(batch.image.offsets).cpu() * self.patches
        return hide(lengths, batch.seed, batch.step, batch.slots.cpu(), self.share)[0]


def _objective_of(config: UnimodalConfig, encoder: Encoder) -> Residues | Geometry | Patches:
    match encoder:
        case Esm() if encoder.head is not None:
            return Residues(config)
        case GearNet() | Gvp() | Egnn():
            return Geometry(config, encoder.width)
        case ViT():
            return Patches(config, encoder)
    lacks = " without its language-model head" if isinstance(encoder, Esm) else ""
    raise ValueError(
        f"model.modality = {config.modality}: an encoder of kind {encoder.config.kind}{lacks} is not trained alone; "
        "take esm (with head), gearnet, gvp, egnn or vit"
    )


def _asked(batch: Batch, offsets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(bool [N], the residues that are asked for; float64 [N], draws that say how each is shown), on the CPU."""
    return hide(lengths_of(offsets).cpu(), batch.seed, batch.step, batch.slots.cpu(), share)
