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
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm, normalize

from pretrain.batch import Batch, Embeddings, Features, Latents, Loss, Losses, Sequences, Structures, lengths_of
from pretrain.config import Config
from pretrain.encoders.bundle import Encoder
from pretrain.encoders.egnn import Egnn
from pretrain.encoders.esm import HIDDEN, Esm, tokens_of
from pretrain.encoders.gearnet import GearNet
from pretrain.encoders.gvp import Gvp
from pretrain.encoders.image import ViT
from pretrain.encoders.letters import KINDS, LETTERS, kinds
from pretrain.encoders.neighbours import ALPHA
from pretrain.layers.projection import mean
from pretrain.layers.transformer import Mark
from pretrain.masking import hide, mates
from pretrain.sample import CHANNELS, Modality

AS_HIDDEN, AS_CHANGED = 0.8, 0.9  # running shares of what is asked for
UNKNOWN = ord("X")  # how a structure encoder is not told a residue
_letters = torch.tensor(list(LETTERS.encode()), dtype=torch.uint8)


class UnimodalConfig(Config):
    """modality: whose encoder, `encoders.<modality>`, is trained. masked: share of residues that are asked for.
    patches: share of an image's. distances, angles: bins, of 0 to `farthest` Å and of 0 to 180°.
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


Task = Literal["losses", "embeddings"]


class Unimodal(nn.Module):
    """encoder: None in an exported model, whose encoder stands beside it."""

    contrastive = False

    def __init__(self, config: UnimodalConfig, encoder: Encoder | None):
        super().__init__()
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
    ) -> Losses | Embeddings:
        """losses: of `batch`, of which the encoder sees a part. embeddings: of whole proteins, from `features` where
        the encoder stands beside the model."""
        if task == "embeddings":
            return self._embeddings(features, batch)
        assert batch is not None, "losses need the batch: the encoder is the model's own"
        return self._objective()(self.trained, batch)

    def embed(self, features: Features) -> Embeddings:
        """The mean of a protein's features."""
        return self._embeddings(features, None)

    def encode(self, features: Features) -> Latents:
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
        asked, letters = _changed(batch, given.letters, given.offsets, self.share, HIDDEN)
        logits = encoder.logits(Sequences(letters, given.offsets))
        return {"residue": _entropy(logits[asked], tokens_of(given.letters[asked]))}


class Geometry(nn.Module):
    """Residues' letters, distances and angles from what a structure encoder makes of each residue."""

    names = ("residue", "distance", "angle")

    def __init__(self, config: UnimodalConfig, width: int):
        super().__init__()
        self.share, self.farthest = config.masked, config.farthest
        self.distances, self.angles = config.distances, config.angles
        self.letter = _head(width, width, KINDS)
        self.distance = _head(2 * width, width, config.distances)
        self.angle = _head(3 * width, width, config.angles)

    def counts(self, batch: Batch) -> dict[str, int]:
        given = batch.structure
        asked, _ = _asked(batch, given.offsets, self.share)
        known = int(self._known(given, self._mates(batch)).sum())
        return {"residue": int(asked.sum()), "distance": known, "angle": known}

    def forward(self, encoder: GearNet | Gvp | Egnn, batch: Batch) -> Losses:
        given, pairs = batch.structure, self._mates(batch).to(batch.structure.offsets.device)
        asked, letters = _changed(batch, given.letters, given.offsets, self.share, UNKNOWN)
        rows = encoder(replace(given, letters=letters)).values
        known = self._known(given, pairs)
        here, one, other = rows[known], rows[pairs[known, 0]], rows[pairs[known, 1]]
        distance = self.distance(torch.cat([here * one, (here - one).abs()], 1))
        angle = self.angle(torch.cat([here, one * other, one + other], 1))
        far, turn = self._measured(given, pairs[known], known)
        return {
            "residue": _entropy(self.letter(rows[asked]), kinds(given.letters[asked])),
            "distance": _entropy(distance, _bin(far / self.farthest, self.distances)),
            "angle": _entropy(angle, _bin(turn / torch.pi, self.angles)),
        }

    def _mates(self, batch: Batch) -> Tensor:
        lengths = lengths_of(batch.structure.offsets).cpu()
        return mates(lengths, batch.seed, batch.step, batch.slots.cpu())

    def _known(self, given: Structures, pairs: Tensor) -> Tensor:
        """bool [N]: residues that have two others, all three with their Cα."""
        has = given.mask[:, ALPHA]
        pairs = pairs.to(has.device)
        return has & has[pairs[:, 0]] & has[pairs[:, 1]] & (pairs[:, 0] != pairs[:, 1])

    def _measured(self, given: Structures, pairs: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """(distance to the first, Å; angle between the first and the second, radians), [K] each."""
        points = given.coordinates[:, ALPHA]
        one, other = (points[pairs[:, i]] - points[known] for i in range(2))
        cosine = (normalize(one, dim=1) * normalize(other, dim=1)).sum(1)
        return one.norm(dim=1), cosine.clamp(-1, 1).arccos()


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


def _head(before: int, width: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(before), nn.Linear(before, width), nn.GELU(), nn.Linear(width, after))


def _asked(batch: Batch, offsets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(bool [N], the residues that are asked for; float64 [N], draws that say how each is shown), on the CPU."""
    return hide(lengths_of(offsets).cpu(), batch.seed, batch.step, batch.slots.cpu(), share)


def _changed(batch: Batch, letters: Tensor, offsets: Tensor, share: float, hidden: int) -> tuple[Tensor, Tensor]:
    """(bool [N] the residues that are asked for, uint8 [N] what is shown instead), on the letters' device."""
    asked, draw = _asked(batch, offsets, share)
    other = _letters[(draw * 1e6).long() % len(_letters)]  # digits that the thresholds do not look at
    asked, draw, other = asked.to(letters.device), draw.to(letters.device), other.to(letters.device)
    shown = torch.where(asked & (draw < AS_HIDDEN), torch.full_like(letters, hidden), letters)
    return asked, torch.where(asked & (draw >= AS_HIDDEN) & (draw < AS_CHANGED), other, shown)


def _entropy(logits: Tensor, targets: Tensor) -> Loss:
    return Loss(cross_entropy(logits.float(), targets, reduction="sum"), len(targets))


def _bin(share: Tensor, count: int) -> Tensor:
    """int64 [K]: which of `count` equal parts of [0, 1] a share lies in; what is larger, in the last."""
    return (share * count).long().clamp(0, count - 1)
