"""Two branches over tokens that may be any of a protein's residues: what enters them, round by round, and where they
exchange (`pretrain.layers.fusion`)."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.batch import Tokens, lengths_of, offsets_of
from pretrain.layers import flops
from pretrain.layers.fusion import BRANCHES, Exchange, Joint
from pretrain.layers.projection import Projection
from pretrain.layers.transformer import SelfBlock, through
from pretrain.sample import Modality


class Entry(nn.Module):
    """Frozen features [N, source] → what of them enters at each round, the deepest tier last: rows [N, width] each.

    The first is a `Projection`, with position and mark. A round at which no tier enters adds nothing.
    """

    def __init__(self, modality: Modality, source: int, width: int, tiers: int, rounds: int):
        super().__init__()
        if source % tiers:
            raise ValueError(f"model.tiers.{modality} = {tiers}, but its features are {source} wide, no multiple of it")
        self.at = [tier * rounds // tiers for tier in range(tiers)]
        self.part, self.rounds = source // tiers, max(1, rounds)
        self.first = Projection(self.part, width)
        self.others = nn.ModuleList(nn.Linear(self.part, width) for _ in range(tiers - 1))

    def forward(self, values: Tensor, positions: Tensor) -> list[Tensor]:
        first, *others = values.to(self.first.linear.weight.dtype).split(self.part, 1)
        found = [self.first(first, positions)]
        found += [found[0].new_zeros(()) for _ in range(self.rounds - 1)]
        for at, linear, part in zip(self.at[1:], self.others, others, strict=True):
            found[at] = linear(part)
        return found

    def flops(self, rows: Tensor) -> int:
        """Forward."""
        return self.first.flops(rows) + sum(flops.linear(each, rows) for each in self.others)  # type: ignore[arg-type]


class Round(nn.Module):
    """One layer of each branch, and then what they tell each other."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, has: Collection[Modality], levels: Collection[str]):
        super().__init__()
        branches = [m for m in BRANCHES if m in has]
        self.blocks = nn.ModuleDict({m.value: SelfBlock(width, heads, mlp_ratio) for m in branches})
        both = len(branches) == len(BRANCHES) and levels
        widths = dict.fromkeys(BRANCHES, width)
        self.exchange = Exchange(widths, width, heads, levels, BRANCHES) if both else None

    def forward(self, *rows: Tensor, joint: Joint) -> tuple[Tensor, ...]:
        """rows: [N_m, width] of each branch that the model has, sequence first."""
        blocks = zip(self.blocks.items(), rows, strict=True)
        found = tuple(through(block, each, joint.rows[Modality(name)]) for (name, block), each in blocks)
        return found if self.exchange is None else self.exchange(*found, joint)

    def flops(self, joint: Joint) -> int:
        """Forward."""
        blocks: list[tuple[str, Any]] = list(self.blocks.items())
        alone = sum(block.flops(lengths_of(joint.rows[Modality(name)])) for name, block in blocks)
        return alone + (0 if self.exchange is None else self.exchange.flops(joint))


def joint_of(tokens: Mapping[Modality, Tokens], segments: int) -> Joint:
    """Where the two branches' tokens meet, each of `segments`; of a branch that the model lacks, there are none."""
    device = next(iter(tokens.values())).offsets.device
    nothing = torch.zeros(segments + 1, dtype=torch.int64, device=device)
    empty = Tokens(nothing[:0], nothing, nothing[:0])
    sequence, structure = (tokens.get(m, empty) for m in BRANCHES)
    return Joint.meeting(sequence, structure)


def spread(tokens: Tokens, place: int, segments: int) -> Tokens:
    """The tokens twice: in the first of the groups of segments, and in the one at `place`."""
    lengths = tokens.lengths.new_zeros(segments)
    for at in (0, place * len(tokens.lengths)):
        lengths[at : at + len(tokens.lengths)] = tokens.lengths
    twice = (torch.cat([part, part]) for part in (tokens.values, tokens.positions))
    values, positions = twice
    return Tokens(values, offsets_of(lengths), positions)
