"""Residues that are asked for: what is shown in their place, and what is measured between them."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from pretrain.batch import Loss, Losses, Structures, owners_of
from pretrain.encoders.letters import KINDS, LETTERS, kinds
from pretrain.encoders.neighbours import ALPHA
from pretrain.layers.projection import Head

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
        self.letter = Head(width, width, KINDS)
        self.distance = Head(2 * width, width, distances)
        self.angle = Head(3 * width, width, angles)

    def forward(self, rows: Tensor, asked: Tensor, triples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of letters, distances and angles. asked: the rows whose letters are; triples: int64 [K, 3], rows of a
        residue and of two others."""
        here, one, other = (rows[triples[:, i]] for i in range(3))
        distance = self.distance(torch.cat([here * one, (here - one).abs()], 1))
        angle = self.angle(torch.cat([here, one * other, one + other], 1))
        return self.letter(rows[asked]), distance, angle

    def losses(
        self, rows: Tensor, asked: Tensor, letters: Tensor, triples: Tensor, measures: tuple[Tensor, Tensor]
    ) -> Losses:
        """letters: uint8 ASCII, those asked for. measures: `measured` of the triples."""
        letter, distance, angle = self(rows, asked, triples)  # tensors: ZeRO-3 sees nothing else of what a module gives
        far, turn = measures
        return {
            "residue": entropy(letter, kinds(letters)),
            "distance": entropy(distance, binned(far / self.farthest, self.distances)),
            "angle": entropy(angle, binned(turn / torch.pi, self.angles)),
        }


def changed(letters: Tensor, asked: Tensor, draw: Tensor, hidden: int, training: bool) -> Tensor:
    """uint8 [N], what is shown: of the residues in `asked` (bool [N]) most as `hidden`, some as another letter, some as
    they are, as `draw` (float64 [N], uniform) decides. Where nothing is trained all are hidden: to tell a letter that
    is shown is no feat, and a perplexity that counts such ones flatters."""
    if not training:
        return torch.where(asked, torch.full_like(letters, hidden), letters)
    other = _letters.to(letters.device)[(draw * 1e6).long() % len(_letters)]  # digits that thresholds do not look at
    shown = torch.where(asked & (draw < AS_HIDDEN), torch.full_like(letters, hidden), letters)
    return torch.where(asked & (draw >= AS_HIDDEN) & (draw < AS_CHANGED), other, shown)


def without(given: Structures, hidden: Tensor) -> Structures:
    """The chains with the residues in `hidden` (bool [N]) where nobody knows where they are: of their atoms only a Cα
    is left, on the line between those of the nearest residues before and after that are seen, by residue number; on
    the one there is at an end; nowhere, and so near nobody, in a chain that is all hidden.
    """
    seen = given.mask[:, ALPHA] & ~hidden
    rows, last = torch.arange(len(seen), device=seen.device), len(seen) - 1
    before = torch.where(seen, rows, -1).cummax(0).values
    after = torch.where(seen, rows, len(seen)).flip(0).cummin(0).values.flip(0)
    start, end = (each[owners_of(given.offsets)] for each in (given.offsets[:-1], given.offsets[1:]))
    has_before, has_after = before >= start, after < end
    before = torch.where(has_before, before, after).clamp(0, last)
    after = torch.where(has_after, after, before).clamp(0, last)
    low, here, high = (given.positions[each] for each in (before, rows, after))
    share = ((here - low) / (high - low).clamp(min=1)).unsqueeze(1)
    points = given.coordinates[:, ALPHA]
    between = points[before] + share * (points[after] - points[before])
    mask = given.mask & ~hidden.unsqueeze(1)
    coordinates = given.coordinates * mask.unsqueeze(2)
    mask[:, ALPHA] |= hidden & (has_before | has_after)
    coordinates[:, ALPHA] = torch.where((hidden & mask[:, ALPHA]).unsqueeze(1), between, coordinates[:, ALPHA])
    return replace(given, mask=mask, coordinates=coordinates)


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
