"""Residues that are asked for: what is shown in their place, and what is measured between them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from pretrain.batch import Loss, Losses, Structures
from pretrain.encoders.letters import KINDS, LETTERS, kinds
from pretrain.encoders.neighbours import ALPHA

AS_HIDDEN, AS_CHANGED = 0.8, 0.9  # running shares of what is asked for (Devlin et al. 2019)
UNKNOWN = ord("X")  # how a structure encoder is not told a residue
_letters = torch.tensor(list(LETTERS.encode()), dtype=torch.uint8)


class Guesses(nn.Module):
    """What is told of residues from rows of theirs, [R, W]: letters, distances and angles, the latter two in bins, of 0
    to `farthest` Å and of 0 to 180°."""

    names = ("residue", "distance", "angle")

    def __init__(self, width: int, distances: int, angles: int, farthest: float):
        super().__init__()
        self.distances, self.angles, self.farthest = distances, angles, farthest
        self.letter = head(width, width, KINDS)
        self.distance = head(2 * width, width, distances)
        self.angle = head(3 * width, width, angles)

    def forward(
        self, rows: Tensor, asked: Tensor, letters: Tensor, triples: Tensor, measures: tuple[Tensor, Tensor]
    ) -> Losses:
        """asked: the rows whose letters, uint8 ASCII, are asked for. triples: int64 [K, 3], rows of a residue and of
        two others; measures: `measured` of them."""
        here, one, other = (rows[triples[:, i]] for i in range(3))
        distance = self.distance(torch.cat([here * one, (here - one).abs()], 1))
        angle = self.angle(torch.cat([here, one * other, one + other], 1))
        far, turn = measures
        return {
            "residue": entropy(self.letter(rows[asked]), kinds(letters)),
            "distance": entropy(distance, binned(far / self.farthest, self.distances)),
            "angle": entropy(angle, binned(turn / torch.pi, self.angles)),
        }


def head(before: int, width: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(before), nn.Linear(before, width), nn.GELU(), nn.Linear(width, after))


def changed(letters: Tensor, asked: Tensor, draw: Tensor, hidden: int) -> Tensor:
    """uint8 [N], what is shown: of the residues in `asked` (bool [N]) most as `hidden`, some as another letter, some as
    they are, as `draw` (float64 [N], uniform) decides."""
    other = _letters.to(letters.device)[(draw * 1e6).long() % len(_letters)]  # digits that thresholds do not look at
    shown = torch.where(asked & (draw < AS_HIDDEN), torch.full_like(letters, hidden), letters)
    return torch.where(asked & (draw >= AS_HIDDEN) & (draw < AS_CHANGED), other, shown)


def known(given: Structures, pairs: Tensor) -> Tensor:
    """bool [N]: residues that have two others, pairs int64 [N, 2], all three with their Cα."""
    has = given.mask[:, ALPHA]
    return has & has[pairs[:, 0]] & has[pairs[:, 1]] & (pairs[:, 0] != pairs[:, 1])


def measured(given: Structures, pairs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(distance of `rows` to the first, Å; angle between the first and the second, radians), [K] each.

    pairs: int64 [K, 2], of these rows. rows: bool [N], K of them."""
    points = given.coordinates[:, ALPHA]
    one, other = (points[pairs[:, i]] - points[rows] for i in range(2))
    cosine = (normalize(one, dim=1) * normalize(other, dim=1)).sum(1)
    return one.norm(dim=1), cosine.clamp(-1, 1).arccos()


def entropy(logits: Tensor, targets: Tensor) -> Loss:
    """Cross entropy of logits [K, C] with int64 targets [K]."""
    return Loss(cross_entropy(logits.float(), targets, reduction="sum"), len(targets))


def binned(share: Tensor, count: int) -> Tensor:
    """int64 [K]: which of `count` equal parts of [0, 1] a share lies in; what is larger, in the last."""
    return (share * count).long().clamp(0, count - 1)
