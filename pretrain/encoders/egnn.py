"""EGNN (Satorras, Hoogeboom & Welling 2021, eq. 3–6): messages that know distances, coordinates that move with them.

A graph of each residue and its nearest Cα. What comes out are the node features, which no rotation, translation or
reflection changes: a mirror image looks the same to it, unlike to GVP. Distances are taken in units of 10 Å, because
their squares enter as they are.

Legend: N residues, E edges, W hidden width.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from pretrain.batch import Structures
from pretrain.config import Config
from pretrain.encoders import neighbours
from pretrain.encoders.graphs import GraphEncoder
from pretrain.encoders.letters import KINDS, kinds
from pretrain.encoders.neighbours import ALPHA

UNIT = 10.0  # Å
REACH = 32  # residues along the chain; what is further apart is alike


class EgnnConfig(Config):
    """weights: `random`, the folder of an exported model, or a `.safetensors` file of ours. hidden: W. nearest:
    neighbours of a residue. max_length: structure residues seen, None for all.
    """

    kind: Literal["egnn"] = "egnn"
    weights: str
    seed: int = 0
    layers: PositiveInt = 4
    hidden: PositiveInt = 128
    nearest: PositiveInt = 30
    max_length: PositiveInt | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """Residues between layers. nodes: [N, W]. points: float32 [N, 3]. source, target: int64 [E]. along: int64 [E],
    source minus target in residues, clamped, from 0 up."""

    nodes: Tensor
    points: Tensor
    source: Tensor
    target: Tensor
    along: Tensor

    @property
    def rows(self) -> Tensor:
        """[N, W]: the nodes, which know nothing of directions."""
        return self.nodes

    def with_rows(self, rows: Tensor) -> "Graph":
        return replace(self, nodes=rows.to(self.nodes.dtype))


class Egnn(GraphEncoder):
    WHAT = "structure encoder (egnn)"
    config: EgnnConfig

    def __init__(self, config: EgnnConfig):
        super().__init__(config)
        self.width = config.hidden
        self.between = config.hidden  # of rows between layers
        self.letter = nn.Embedding(KINDS, config.hidden)
        self.layers = nn.ModuleList(Layer(config.hidden, i + 1 < config.layers) for i in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides the features: the graph, and how much of a structure is seen."""
        return {"nearest": self.config.nearest, "max_length": self.config.max_length}

    def begin(self, structures: Structures) -> Graph:
        source, target = neighbours.nearest(structures, self.config.nearest)
        along = (structures.positions[source] - structures.positions[target]).clamp(-REACH, REACH) + REACH
        points = structures.coordinates[:, ALPHA].float() / UNIT
        return Graph(self.letter(kinds(structures.letters)), points, source, target, along)

    def finish(self, state: Graph) -> Tensor:
        return self.norm(state.nodes)


class Layer(nn.Module):
    """m_ij = φ_e(h_i, h_j, ‖x_i − x_j‖², a_ij); x_i += mean_j (x_i − x_j) φ_x(m_ij); h_i += φ_h(h_i, Σ_j m_ij).

    a_ij is an embedding of the distance along the chain; φ_x ends in a tanh, so that nobody is thrown far. Nodes are
    normed before they are read, and the sum over neighbours is divided by the square root of their number, so that
    depth does not make them grow. moves: not in the last layer, after which nobody asks where residues are.
    """

    def __init__(self, width: int, moves: bool = True):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.along = nn.Embedding(2 * REACH + 1, width)
        self.ends = nn.Linear(2 * width + 1, width)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        step = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False), nn.Tanh())
        self.move = step if moves else None
        self.node = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, graph: Graph) -> Graph:
        source, target, normed = graph.source, graph.target, self.norm(graph.nodes)
        away = graph.points[target] - graph.points[source]
        square = away.square().sum(1, keepdim=True).to(normed.dtype)
        ends = torch.cat([normed[target], normed[source], square], 1)
        messages = self.message(self.ends(ends) + self.along(graph.along))
        edges = torch.zeros(len(normed), 1, device=normed.device)
        edges = edges.index_add(0, target, torch.ones(len(target), 1, device=normed.device)).clamp(min=1)
        heard = normed.new_zeros(len(normed), messages.shape[1], dtype=torch.float32)
        heard = (heard.index_add(0, target, messages.float()) / edges.sqrt()).to(normed.dtype)
        graph = replace(graph, nodes=graph.nodes + self.node(torch.cat([normed, heard], 1)))
        if self.move is None:
            return graph
        moved = torch.zeros_like(graph.points).index_add(0, target, away * self.move(messages).float())
        return replace(graph, points=graph.points + moved / edges)
