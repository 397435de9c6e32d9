"""GVP-GNN (Jing et al. 2021, "Learning from protein structure with geometric vector perceptrons"): residues that carry
scalars and vectors, so that what it knows of directions turns with the protein, and what it gives out does not.

A graph of each residue and its nearest Cα. Nodes begin with six scalars (sine and cosine of φ, ψ, ω) and three vectors
(to the next Cα, to the one before, to a virtual side chain), edges with distance, distance along the chain, and a
direction; §3.2 and appendix C of the paper. The residue's letter is a scalar embedding beside them, as in the paper's
model for quality assessment. Vectors are gated by scalars (Jing et al. 2021b, eq. 2–3), which also learns where the
original's norms would not. What is not known, an angle at a chain's break, an atom that is absent, is 0.

Legend: N residues, E edges, S scalar channels, V vector channels.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, silu

from pretrain.batch import Structures, owners_of
from pretrain.config import Config
from pretrain.encoders import neighbours
from pretrain.encoders.graphs import GraphEncoder
from pretrain.encoders.letters import KINDS, kinds
from pretrain.encoders.neighbours import ALPHA
from pretrain.sample import BACKBONE

N_ATOM, C_ATOM = BACKBONE.index("N"), BACKBONE.index("C")
RADIAL = 16  # bumps over 0–20 Å
FARTHEST = 20.0
ALONG = 16  # sines and cosines of the distance along the chain
TINY = 1e-8  # Å²


class GvpConfig(Config):
    """weights: `random`, the folder of an exported model, or a `.safetensors` file of ours. Defaults are the published
    size.

    nearest: neighbours of a residue. scalars, vectors: channels of a node; edge_scalars, edge_vectors: of an edge.
    max_length: structure residues seen, None for all.
    """

    kind: Literal["gvp"] = "gvp"
    weights: str
    seed: int = 0
    layers: PositiveInt = 3
    scalars: PositiveInt = 100
    vectors: PositiveInt = 16
    edge_scalars: PositiveInt = 32
    edge_vectors: PositiveInt = 1
    nearest: PositiveInt = 30
    max_length: PositiveInt | None = None


class Pair(NamedTuple):
    """scalars: [..., S], which no rotation changes. vectors: [..., V, 3], which turn with the coordinates."""

    scalars: Tensor
    vectors: Tensor


@dataclass(frozen=True, eq=False)
class Graph:
    """Residues between layers. nodes: of N. edges: of E. source, target: int64 [E], a message's way."""

    nodes: Pair
    edges: Pair
    source: Tensor
    target: Tensor

    @property
    def rows(self) -> Tensor:
        """[N, S]: the scalars, which may be changed without regard to directions."""
        return self.nodes.scalars

    def with_rows(self, rows: Tensor) -> "Graph":
        return replace(self, nodes=Pair(rows.to(self.nodes.scalars.dtype), self.nodes.vectors))


class Gvp(GraphEncoder):
    WHAT = "structure encoder (gvp)"
    config: GvpConfig

    def __init__(self, config: GvpConfig):
        super().__init__(config)
        self.width = config.scalars
        self.between = config.scalars  # of rows between layers
        node, edge = (config.scalars, config.vectors), (config.edge_scalars, config.edge_vectors)
        self.letter = nn.Embedding(KINDS, config.scalars)
        self.node = Perceptron((6 + config.scalars, 3), node, active=False)
        self.node_norm = Norm(*node)
        self.edge = Perceptron((RADIAL + ALONG, 1), edge, active=False)
        self.edge_norm = Norm(*edge)
        self.layers = nn.ModuleList(Layer(node, edge) for _ in range(config.layers))
        self.norm = Norm(*node)
        self.out = Perceptron(node, (config.scalars, 0))

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides the features: the graph, and how much of a structure is seen."""
        return {"nearest": self.config.nearest, "max_length": self.config.max_length}

    def begin(self, structures: Structures) -> Graph:
        source, target = neighbours.nearest(structures, self.config.nearest)
        letter = self.letter(kinds(structures.letters))
        angles, directions = (each.to(letter.dtype) for each in described(structures))
        nodes = self.node_norm(self.node(Pair(torch.cat([angles, letter], 1), directions)))
        lengths, ways = (each.to(letter.dtype) for each in between(structures, source, target))
        return Graph(nodes, self.edge_norm(self.edge(Pair(lengths, ways))), source, target)

    def finish(self, state: Graph) -> Tensor:
        return self.out(self.norm(state.nodes)).scalars


class Perceptron(nn.Module):
    """A geometric vector perceptron, (S, V) → (S', V'), vectors gated by a sigmoid. active: SiLU on scalars."""

    def __init__(self, before: tuple[int, int], after: tuple[int, int], active: bool = True):
        super().__init__()
        (scalars, vectors), (scalars_after, vectors_after) = before, after
        inner = max(vectors, vectors_after)
        self.active = active
        self.hidden = nn.Linear(vectors, inner, bias=False)
        self.scalar = nn.Linear(scalars + inner, scalars_after)
        self.vector = nn.Linear(inner, vectors_after, bias=False) if vectors_after else None
        self.gate = nn.Linear(scalars_after, vectors_after) if vectors_after else None

    def forward(self, pair: Pair) -> Pair:
        hidden = self.hidden(pair.vectors.transpose(-1, -2))  # [..., 3, inner]
        scalars = self.scalar(torch.cat([pair.scalars, _length(hidden, -2)], -1))
        scalars = silu(scalars) if self.active else scalars
        if self.vector is None or self.gate is None:
            return Pair(scalars, pair.vectors[..., :0, :])
        vectors = self.vector(hidden).transpose(-1, -2)
        return Pair(scalars, vectors * self.gate(scalars).sigmoid().unsqueeze(-1))


class Norm(nn.Module):
    """LayerNorm of scalars; vectors over the root of their mean square, which keeps their directions."""

    def __init__(self, scalars: int, vectors: int):
        super().__init__()
        self.scalar = nn.LayerNorm(scalars)

    def forward(self, pair: Pair) -> Pair:
        square = pair.vectors.square().sum(-1, keepdim=True).clamp(min=TINY).mean(-2, keepdim=True)
        return Pair(self.scalar(pair.scalars), pair.vectors * square.rsqrt())


class Layer(nn.Module):
    """Messages of all neighbours, averaged, and then a step of each node by itself. Both are made of normed nodes and
    added to the nodes as they were; the paper norms after adding."""

    def __init__(self, node: tuple[int, int], edge: tuple[int, int]):
        super().__init__()
        joined = (2 * node[0] + edge[0], 2 * node[1] + edge[1])
        wide = (4 * node[0], 2 * node[1])
        self.norm = Norm(*node)
        self.message = nn.Sequential(
            Perceptron(joined, node), Perceptron(node, node), Perceptron(node, node, active=False)
        )
        self.step_norm = Norm(*node)
        self.step = nn.Sequential(Perceptron(node, wide), Perceptron(wide, node, active=False))

    def forward(self, graph: Graph) -> Graph:
        nodes, normed = graph.nodes, self.norm(graph.nodes)
        ends = (Pair(*(part[rows] for part in normed)) for rows in (graph.source, graph.target))
        nodes = _sum(nodes, _mean(self.message(_joined(*ends, graph.edges)), graph.target, len(nodes.scalars)))
        return replace(graph, nodes=_sum(nodes, self.step(self.step_norm(nodes))))


def described(structures: Structures) -> tuple[Tensor, Tensor]:
    """([N, 6] cosines and sines of φ, ψ, ω; [N, 3, 3] unit vectors to the next Cα, to the one before, and to the side
    chain). 0 where atoms are missing or the chain is broken."""
    points, has = structures.coordinates, structures.mask
    forward = _steps(structures)
    alpha = points[:, ALPHA]
    ahead = normalize(pad(alpha[1:] - alpha[:-1], (0, 0, 0, 1)), dim=-1)
    ahead = ahead * (forward & has[:, ALPHA] & pad(has[1:, ALPHA], (0, 1))).unsqueeze(-1)
    back = -pad(ahead[:-1], (0, 0, 1, 0)) if len(ahead) else ahead
    n, c = (normalize(points[:, atom] - alpha, dim=-1) for atom in (N_ATOM, C_ATOM))
    middle, across = normalize(n + c, dim=-1), normalize(torch.linalg.cross(c, n), dim=-1)
    side = -(math.sqrt(1 / 3) * middle + math.sqrt(2 / 3) * across)  # of an ideal tetrahedron
    side = side * has[:, [N_ATOM, ALPHA, C_ATOM]].all(1, keepdim=True)
    return _dihedrals(structures, forward), torch.stack([ahead, back, side], 1)


def between(structures: Structures, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """([E, 32] distance in radial bumps and distance along the chain in waves; [E, 1, 3] direction to the source)."""
    alpha = structures.coordinates[:, ALPHA]
    away = alpha[source] - alpha[target]
    centres = torch.linspace(0, FARTHEST, RADIAL, device=away.device)
    bumps = (-((away.norm(dim=-1, keepdim=True) - centres) / (FARTHEST / RADIAL)).square()).exp()
    apart = (structures.positions[source] - structures.positions[target]).float().unsqueeze(1)
    waves = apart * torch.exp(torch.arange(0, ALONG, 2, device=away.device) * (-math.log(10_000) / ALONG))
    return torch.cat([bumps, waves.cos(), waves.sin()], 1), normalize(away, dim=-1).unsqueeze(1)


def _steps(structures: Structures) -> Tensor:
    """bool [N]: whether the next row is the next residue of the same protein."""
    owners, positions = owners_of(structures.offsets), structures.positions
    return pad((owners[1:] == owners[:-1]) & (positions[1:] == positions[:-1] + 1), (0, 1))[: len(positions)]


def _dihedrals(structures: Structures, forward: Tensor) -> Tensor:
    """[N, 6]: cosines of φ, ψ, ω, then sines. φ needs the C before; ψ and ω the residue after."""
    atoms = [N_ATOM, ALPHA, C_ATOM]
    points, has = structures.coordinates[:, atoms], structures.mask[:, atoms]
    after, has_after = pad(points[1:], (0, 0, 0, 0, 0, 1))[: len(points)], pad(has[1:], (0, 0, 0, 1))[: len(points)]
    known = forward.unsqueeze(1)
    n, ca, c = points.unbind(1)
    n_after, ca_after, c_after = after.unbind(1)
    found = []
    for four, there in (
        ((c, n_after, ca_after, c_after), torch.cat([has[:, 2:], has_after], 1)),
        ((n, ca, c, n_after), torch.cat([has, has_after[:, :1]], 1)),
        ((ca, c, n_after, ca_after), torch.cat([has[:, 1:], has_after[:, :2]], 1)),
    ):
        found.append(_turn(*four) * (there.all(1, keepdim=True) & known))
    phi, psi, omega = found
    phi = pad(phi[:-1], (0, 0, 1, 0)) if len(phi) else phi  # φ belongs to the residue after
    return torch.stack([phi, psi, omega], 2).flatten(1)


def _turn(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[N, 2]: cosine and sine of the dihedral angle about b–c."""
    axis = normalize(c - b, dim=-1)
    left = (a - b) - ((a - b) * axis).sum(-1, keepdim=True) * axis
    right = (d - c) - ((d - c) * axis).sum(-1, keepdim=True) * axis
    left, right = normalize(left, dim=-1), normalize(right, dim=-1)
    cosine = (left * right).sum(-1)
    sine = (torch.linalg.cross(axis, left) * right).sum(-1)
    return torch.stack([cosine, sine], -1)


def _length(vectors: Tensor, dim: int) -> Tensor:
    return vectors.square().sum(dim).clamp(min=TINY).sqrt()  # at 0 a root has no slope


def _joined(*pairs: Pair) -> Pair:
    scalars, vectors = zip(*pairs, strict=True)
    return Pair(torch.cat(scalars, -1), torch.cat(vectors, -2))


def _sum(one: Pair, other: Pair) -> Pair:
    return Pair(*(a + b for a, b in zip(one, other, strict=True)))


def _mean(messages: Pair, target: Tensor, count: int) -> Pair:
    """Over each target's edges; 0 where it has none."""
    edges = torch.zeros(count, device=target.device).index_add(0, target, torch.ones_like(target, dtype=torch.float32))

    def averaged(values: Tensor) -> Tensor:
        total = values.new_zeros(count, *values.shape[1:], dtype=torch.float32).index_add(0, target, values.float())
        return (total / edges.clamp(min=1).view(-1, *[1] * (values.ndim - 1))).to(values.dtype)

    return Pair(*map(averaged, messages))
