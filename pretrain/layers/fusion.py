"""What two branches over the same residues, a sequence's and a structure's, tell each other between their layers.

Local: a gate weighs the two rows of one residue. Global: all rows of a protein, of both branches, attend to each other.
Either way what comes of it is added back to the branches' own rows, through a map that begins at 0: pretrained branches
begin as they were. Rows of a residue that one branch lacks go through the gate unchanged.

Modules take and give tensors and tuples of them: ZeRO-3 puts functions of its own around those among a module's
arguments and results, in a dictionary in place, in the caller's too, and in nothing else.

Legend: B proteins, N_m rows of branch m, W_m its width, D the common width, P residues that both branches have.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.batch import Tokens, lengths_of, offsets_of, owners_of
from pretrain.layers import flops
from pretrain.layers.projection import Projection
from pretrain.layers.transformer import Attention, CrossBlock, interleave
from pretrain.sample import Modality

SEQUENCE, STRUCTURE = Modality.SEQUENCE, Modality.STRUCTURE
BRANCHES: tuple[Modality, ...] = (SEQUENCE, STRUCTURE)
OTHER = {SEQUENCE: STRUCTURE, STRUCTURE: SEQUENCE}
MET = ("owners", "positions")
Rows = Mapping[Modality, Tensor]  # branch → a tensor of its rows
Pair = tuple[Tensor, Tensor]  # the sequence's rows [N₁, W₁], and the structure's [N₂, W₂]


@dataclass(frozen=True, eq=False)
class Joint:
    """The residues of B proteins: those of the sequence; where there is none, those of the structure.

    offsets: int64 [B + 1], counting residues. Of each branch: rows, int64 [B + 1], its own offsets; positions,
    int64 [N_m], in the full sequence; places, int64 [N_m], the residue that each row is of; pairs, int64 [P], the rows
    of residues that both have.
    """

    offsets: Tensor
    rows: Rows
    positions: Rows
    places: Rows
    pairs: Rows

    @staticmethod
    def of(sequence: Tensor, structure: Tensor, positions: Tensor) -> "Joint":
        """sequence, structure: int64 [B + 1]. positions: int64 [N], of structure residues; where there is a sequence
        they lie in it."""
        told, seen = lengths_of(sequence), lengths_of(structure)
        offsets = offsets_of(torch.where(told > 0, told, seen))
        owners, folded = owners_of(sequence), owners_of(structure)
        along = torch.arange(len(owners), device=owners.device) - sequence[owners]
        both = told[folded] > 0
        assert bool((positions < told[folded])[both].all()), "a structure residue lies beyond its sequence"
        own = torch.arange(len(folded), device=folded.device) - structure[folded]
        return Joint(
            offsets,
            {SEQUENCE: sequence, STRUCTURE: structure},
            {SEQUENCE: along, STRUCTURE: positions},
            {SEQUENCE: offsets[owners] + along, STRUCTURE: offsets[folded] + torch.where(both, positions, own)},
            {SEQUENCE: (sequence[folded] + positions)[both], STRUCTURE: both.nonzero().squeeze(1)},
        )

    @staticmethod
    def meeting(sequence: Tokens, structure: Tokens) -> "Joint":
        """Of tokens that may be any of a protein's residues: those that either branch has."""
        owners, positions = (torch.cat([getattr(each, name) for each in (sequence, structure)]) for name in MET)
        far = int(positions.max()) + 1 if len(positions) else 1
        residues, places = (owners * far + positions).unique(return_inverse=True)
        told, seen = places.split([len(sequence.positions), len(structure.positions)])
        row = torch.full_like(residues, -1).index_copy(0, told, torch.arange(len(told), device=told.device))
        both = row[seen] >= 0
        return Joint(
            offsets_of(torch.bincount(residues // far, minlength=len(sequence.offsets) - 1)),
            {SEQUENCE: sequence.offsets, STRUCTURE: structure.offsets},
            {SEQUENCE: sequence.positions, STRUCTURE: structure.positions},
            {SEQUENCE: told, STRUCTURE: seen},
            {SEQUENCE: row[seen][both], STRUCTURE: both.nonzero().squeeze(1)},
        )


class Exchange(nn.Module):
    """After one group of layers: the levels that there are, local before global. into: who gets what comes of it."""

    def __init__(
        self,
        widths: Mapping[Modality, int],
        width: int,
        heads: int,
        levels: Collection[str],
        into: Collection[Modality],
    ):
        super().__init__()
        self.gate = Gate(widths, width, into) if "local" in levels else None
        self.attend = Attend(widths, width, heads, into) if "global" in levels else None

    def forward(self, sequence: Tensor, structure: Tensor, joint: Joint) -> Pair:
        rows = sequence, structure
        for level in (self.gate, self.attend):
            rows = rows if level is None else level(*rows, joint)
        return rows

    def flops(self, joint: Joint) -> int:
        """Forward."""
        return sum(level.flops(joint) for level in (self.gate, self.attend) if level is not None)


class Gate(nn.Module):
    """g = softmax(f(h¹) + f(h²)) of residue's two rows h, x̃ = g₁ h¹ + g₂ h²; every branch gets W_m x̃ added.

    h^m = V_m norm(x^m), of width D; f: D → 2, one for both branches.
    """

    def __init__(self, widths: Mapping[Modality, int], width: int, into: Collection[Modality]):
        super().__init__()
        self.norms = nn.ModuleDict({m.value: nn.LayerNorm(widths[m]) for m in BRANCHES})
        self.given = nn.ModuleDict({m.value: nn.Linear(widths[m], width) for m in BRANCHES})
        self.score = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, len(BRANCHES)))
        self.back = _back(widths, width, into)

    def forward(self, sequence: Tensor, structure: Tensor, joint: Joint) -> Pair:
        rows = {SEQUENCE: sequence, STRUCTURE: structure}
        one, other = (self.given[m](self.norms[m](rows[m]))[joint.pairs[m]] for m in BRANCHES)
        shares = (self.score(one) + self.score(other)).softmax(1)
        mixed = shares[:, :1] * one + shares[:, 1:] * other
        for m in BRANCHES:
            if m in self.back:
                rows[m] = _added(rows[m], self.back[m](mixed), joint.pairs[m])
        return rows[SEQUENCE], rows[STRUCTURE]

    def flops(self, joint: Joint) -> int:
        """Forward."""
        both = torch.tensor([len(joint.pairs[SEQUENCE])])
        given = sum(flops.linear(self.given[m], lengths_of(joint.rows[m])) for m in BRANCHES)  # type: ignore[arg-type]
        scored = 2 * sum(flops.linear(each, both) for each in self.score if isinstance(each, nn.Linear))
        return given + scored + sum(flops.linear(each, both) for each in self.back.values())  # type: ignore[arg-type]


class Attend(nn.Module):
    """One multi-head self-attention over all rows of a protein; each branch gets its own rows' part added.

    A row enters as a linear map of its norm, its position and its branch's mark, of width D.
    """

    def __init__(self, widths: Mapping[Modality, int], width: int, heads: int, into: Collection[Modality]):
        super().__init__()
        self.norms = nn.ModuleDict({m.value: nn.LayerNorm(widths[m]) for m in BRANCHES})
        self.given = nn.ModuleDict({m.value: Projection(widths[m], width) for m in BRANCHES})
        self.attention = Attention(width, heads)
        self.back = _back(widths, width, into)

    def forward(self, sequence: Tensor, structure: Tensor, joint: Joint) -> Pair:
        rows = {SEQUENCE: sequence, STRUCTURE: structure}
        order, offsets = interleave([owners_of(joint.rows[m]) for m in BRANCHES], len(joint.offsets) - 1)
        given = [self.given[m](self.norms[m](rows[m]), joint.positions[m]) for m in BRANCHES]
        every = torch.cat(given)[order]
        heard = self.attention(every, every, offsets, offsets)[order.argsort()].split([len(part) for part in given])
        for m, part in zip(BRANCHES, heard, strict=True):
            if m in self.back:
                rows[m] = rows[m] + self.back[m](part).to(rows[m].dtype)
        return rows[SEQUENCE], rows[STRUCTURE]

    def flops(self, joint: Joint) -> int:
        """Forward."""
        lengths = {m: lengths_of(joint.rows[m]) for m in BRANCHES}
        given = sum(self.given[m].flops(lengths[m]) for m in BRANCHES)  # type: ignore[operator]
        every = lengths[SEQUENCE] + lengths[STRUCTURE]
        back = sum(flops.linear(self.back[m], lengths[m]) for m in BRANCHES if m in self.back)  # type: ignore[arg-type]
        return given + self.attention.flops(every, every) + back


class Cross(nn.Module):
    """One cross-attention, at the end: each branch of `into` reads the other's rows, both [N_m, D]."""

    def __init__(self, width: int, heads: int, into: Collection[Modality]):
        super().__init__()
        self.blocks = nn.ModuleDict({m.value: CrossBlock(width, heads, width) for m in into})

    def forward(self, sequence: Tensor, structure: Tensor, joint: Joint) -> Pair:
        rows = {SEQUENCE: sequence, STRUCTURE: structure}
        found = dict(rows)
        for m, block in self._reading():
            found[m] = block(rows[m], rows[OTHER[m]], joint.rows[m], joint.rows[OTHER[m]])
        return found[SEQUENCE], found[STRUCTURE]

    def flops(self, joint: Joint) -> int:
        """Forward."""
        lengths = {m: lengths_of(joint.rows[m]) for m in BRANCHES}
        return sum(block.flops(lengths[m], lengths[OTHER[m]]) for m, block in self._reading())

    def _reading(self) -> Iterator[tuple[Modality, CrossBlock]]:
        for name, block in self.blocks.items():
            assert isinstance(block, CrossBlock)
            yield Modality(name), block


class Feed(nn.Module):
    """The sequence's last rows added to the structure's first ones, W norm(x¹), where a residue has both."""

    def __init__(self, source: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(source)
        self.back = nn.Linear(source, width)

    def forward(self, sequence: Tensor, structure: Tensor, joint: Joint) -> Tensor:
        """[N, width], the structure's."""
        told = self.back(self.norm(sequence))[joint.pairs[SEQUENCE]]
        return _added(structure, told, joint.pairs[STRUCTURE])

    def flops(self, joint: Joint) -> int:
        """Forward."""
        return flops.linear(self.back, lengths_of(joint.rows[SEQUENCE]))


def joined(rows: Rows, places: Rows, count: int, structure_first: bool = False) -> Tensor:
    """[count, D]: what is known of each residue, the mean of its rows; 0 where no branch has it.

    places: branch → int64 [N_m], the residue of each row. structure_first: the structure's row alone where it has one.
    """
    total = rows[SEQUENCE].new_zeros(count, rows[SEQUENCE].shape[1])
    many = total.new_zeros(count, 1, dtype=torch.float32)
    for m in reversed(BRANCHES):
        free = (many[places[m]] == 0).to(total.dtype) if structure_first else total.new_ones(len(places[m]), 1)
        total = total.index_add(0, places[m], (rows[m] * free).to(total.dtype))
        many = many.index_add(0, places[m], free.float())
    return total / many.clamp(min=1).to(total.dtype)


def _back(widths: Mapping[Modality, int], width: int, into: Collection[Modality]) -> nn.ModuleDict:
    """Branch → the map of what came of it to the branch's own width; 0 at first."""
    maps = nn.ModuleDict({m.value: nn.Linear(width, widths[m]) for m in BRANCHES if m in into})
    for parameter in maps.parameters():
        nn.init.zeros_(parameter)
    return maps


def _added(rows: Tensor, more: Tensor, places: Tensor) -> Tensor:
    return rows.index_add(0, places, more.to(rows.dtype))
