"""GearNet (Zhang et al. 2023, §3): relational message passing over the residues of one structure.

Seven relations: five by residue offset −2 … 2 (0 is a residue's edge to itself), Cα within 10 Å, and the 10 nearest
Cα; the last two only between residues at least 5 apart in sequence. As in TorchDrug, the nearest are chosen before the
close in sequence are left out. Every layer's output is kept: the width is layers × hidden.

Norms. The published network has BatchNorm, whose training mode makes a protein's features depend on its batch mates.
Loaded weights therefore use their running statistics always, in `train()` too. Random weights have no statistics worth
using, and sums over neighbours would grow from layer to layer: there, each norm is a LayerNorm, which sees one residue
at a time.

What it does not have: the edge message passing of GearNet-Edge, and edge features. TorchDrug also ends a radius
neighbourhood at 32 by chance; here it is whole.
"""

import re
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from pretrain.batch import Structures, owners_of
from pretrain.config import Config
from pretrain.encoders import weights
from pretrain.encoders.graphs import GraphEncoder
from pretrain.encoders.neighbours import ALPHA, Pairs, near

RESIDUES = "GASPVTCILNDQKEMHFRYW"  # TorchDrug's order; any other letter is the 21st kind
REACH = 2  # residues along the chain
RADIUS = 10.0  # Å
NEAREST = 10
SEPARATION = 5  # residues along the chain, at least, between neighbours in space
RELATIONS = 2 * REACH + 3

_letters = torch.full((256,), len(RESIDUES))
_letters[list(RESIDUES.encode())] = torch.arange(len(RESIDUES))


class GearNetConfig(Config):
    """weights: `random`, or a state dict of TorchDrug's GearNet (BatchNorm, short cuts, no edge layers), in a `.pt`,
    `.pth` or `.safetensors` file.

    layers, hidden: 6 × 512 as published. max_length: structure residues seen, None for all. norm: read from the
    weights.
    """

    kind: Literal["gearnet"] = "gearnet"
    weights: str
    seed: int = 0
    layers: PositiveInt = 6
    hidden: PositiveInt = 512
    max_length: PositiveInt | None = None
    norm: Literal["layer", "batch"] | None = None


@dataclass(frozen=True, eq=False)
class State:
    """Residues between layers. rows: [N, hidden], before the first layer [N, 21], letters as one of 21. kept: what
    earlier layers gave."""

    rows: Tensor
    kept: tuple[Tensor, ...]
    graph: "Graph"

    def with_rows(self, rows: Tensor) -> "State":
        return replace(self, rows=rows.to(self.rows.dtype))


class GearNet(GraphEncoder):
    """The layers' outputs side by side. Names follow TorchDrug's, but for `norm`."""

    WHAT = "structure encoder (gearnet)"
    config: GearNetConfig

    def __init__(self, config: GearNetConfig):
        kind = config.norm or ("layer" if config.weights == weights.RANDOM else "batch")
        super().__init__(config.model_copy(update={"norm": kind}))
        self.depth = config.layers
        self.width = config.layers * config.hidden
        self.between = config.hidden  # of rows between layers
        norm = nn.LayerNorm if kind == "layer" else RunningNorm
        widths = [len(RESIDUES) + 1] + [config.hidden] * config.layers
        self.layers = nn.ModuleList(RelationalConv(before, after, norm(after)) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(norm(config.hidden) for _ in range(config.layers))

    @classmethod
    def named(cls, data: dict[str, Any], path: Path) -> dict[str, Tensor]:
        state = data["model"] if isinstance(data.get("model"), dict) else data
        if any(name.startswith("edge_layers.") for name in state):
            raise ValueError(f"{cls.WHAT}: {path} is a GearNet-Edge, whose edge messages are not here; give a GearNet")
        return {re.sub(r"\bbatch_norm(s?)\.", r"norm\1.", name): tensor for name, tensor in state.items()}

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides the features: the graph, and how much of a structure is seen."""
        graph = {"reach": REACH, "radius": RADIUS, "nearest": NEAREST, "separation": SEPARATION}
        return {**graph, "max_length": self.config.max_length}

    def begin(self, structures: Structures) -> State:
        from torch_geometric import EdgeIndex  # seconds to import, and a run without structures needs none of it

        source, target, relation = edges(structures)
        count = len(structures.letters)
        rows = target * RELATIONS + relation
        order = (rows * count + source).argsort()
        ordered = torch.stack([rows[order], source[order]])
        shape = (count * RELATIONS, count)
        graph = Graph(EdgeIndex(ordered, sparse_size=shape, sort_order="row"))  # pyright: ignore[reportCallIssue]
        kinds = _letters.to(source.device)[structures.letters.long()]
        return State(nn.functional.one_hot(kinds, len(RESIDUES) + 1).to(next(self.parameters()).dtype), (), graph)

    def run(self, state: State, layers: range) -> State:
        """Through these layers."""
        rows, kept = state.rows, state.kept
        for i in layers:
            kept = (*kept, rows) if i else ()
            after = self.layers[i](rows, state.graph)
            rows = self.norms[i](after + rows if after.shape == rows.shape else after)
        return replace(state, rows=rows, kept=kept)

    def finish(self, state: State) -> Tensor:
        return torch.cat([*state.kept, state.rows], dim=1)


@dataclass(frozen=True, eq=False)
class Graph:
    """sums: a torch-geometric EdgeIndex, [N · relations, N]. In a wrapping, because ZeRO-3 takes every tensor among a
    module's arguments through a function of its own, from which this one returns as a plain tensor."""

    sums: Any


class RelationalConv(nn.Module):
    """ReLU(norm(Σ_r W_r Σ_{j ∈ N_r(i)} h_j + W_0 h_i)), eq. 1 of the paper."""

    def __init__(self, before: int, after: int, norm: nn.Module):
        super().__init__()
        self.linear = nn.Linear(RELATIONS * before, after)
        self.self_loop = nn.Linear(before, after)
        self.norm = norm

    def forward(self, hidden: Tensor, graph: Graph) -> Tensor:
        """The sums come from one sparse product; messages per edge would be 25 times the features. It is in
        float32 whatever the weights are: the library's matrix is, and takes no other beside it.
        """
        with torch.sparse.check_sparse_tensor_invariants(False), warnings.catch_warnings():  # `edges` keeps them
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            sums = graph.sums.matmul(hidden.float()) if len(hidden) else hidden.float()
        sums = sums.to(hidden.dtype).view(len(hidden), RELATIONS * hidden.shape[1])
        return self.norm(self.linear(sums) + self.self_loop(hidden)).relu()


class RunningNorm(nn.BatchNorm1d):
    """BatchNorm that never looks at the batch: running statistics in every mode."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def edges(structures: Structures) -> tuple[Tensor, Tensor, Tensor]:
    """(source, target, relation), int64 [E] each, over the batch's residues; messages go from source to target."""
    spatial = [_apart(structures, *pairs) for pairs in near(structures, RADIUS, NEAREST)]
    along = [torch.full_like(source, 2 * REACH + 1 + i) for i, (source, _) in enumerate(spatial)]
    parts = [*_sequential(structures), *((*pairs, kind) for pairs, kind in zip(spatial, along, strict=True))]
    source, target, relation = (torch.cat(part) for part in zip(*parts, strict=True))
    return source, target, relation


def _sequential(structures: Structures) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Relation offset + 2 for target minus source = −2 … 2. By residue number, so that a gap in the chain is a gap."""
    owners, positions = owners_of(structures.offsets), structures.positions
    rows = torch.arange(len(positions), device=positions.device)
    found = []
    for shift in range(REACH + 1):  # positions increase strictly: what is 2 residues away is at most 2 rows away
        first, second = rows[: len(rows) - shift], rows[shift:]
        apart = positions[second] - positions[first]
        near = (owners[first] == owners[second]) & (apart <= REACH)
        first, second, apart = first[near], second[near], apart[near]
        found.append((first, second, REACH + apart))
        if shift:
            found.append((second, first, REACH - apart))
    return found


def _apart(structures: Structures, source: Tensor, target: Tensor) -> Pairs:
    """The pairs that count: not close along the chain, nor at one place (then a coordinate is a filler)."""
    far = (structures.positions[source] - structures.positions[target]).abs() >= SEPARATION
    source, target = source[far], target[far]
    x, y, z = structures.coordinates[:, ALPHA].unbind(1)
    moved = (x[source] != x[target]) | (y[source] != y[target]) | (z[source] != z[target])
    return source[moved], target[moved]
