"""Bi-Hierarchical Fusion: a protein language model and a graph network over the same residues, which exchange what they
know after every layer of the graph network ("Bidirectional Hierarchical Protein Multi-Modal Representation Learning").

The language model's layers fall into as many groups as the graph network has layers. After each pair of groups the rows
of both meet in `pretrain.layers.fusion`, by residue position, and what comes of it goes back into both. So the encoders
run inside the model, are trained with it, and see proteins whole: `encoders.crop` has no say here. What comes out are
rows of one width, one per residue, the mean of what both branches make of it (`parallel` and `cross` too; `serial`: the
graph network's, where there is one). Objectives read these alone, and so does a protein's vector, their mean.

Fusion otherwise, for comparison: `serial`, the language model's output is added to the graph network's first rows (of
GearNet, whose first are letters, to those after its first layer); `parallel`, both run alone, and the mean of two
linear maps is the one that a concatenation of their outputs would go through; `cross`, one cross-attention between
their outputs.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, assert_never

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from pretrain.batch import Batch, Embeddings, Features, Latents, Losses, Task, Tokens, lengths_of
from pretrain.config import Config
from pretrain.data.labels import LabelKind
from pretrain.encoders.bundle import Encoder, headless
from pretrain.encoders.egnn import Egnn
from pretrain.encoders.esm import Esm
from pretrain.encoders.gearnet import GearNet
from pretrain.encoders.gvp import Gvp
from pretrain.layers import flops
from pretrain.layers.fusion import BRANCHES, SEQUENCE, STRUCTURE, Cross, Exchange, Feed, Joint, Rows, joined
from pretrain.layers.projection import mean
from pretrain.objectives.joint import Given, Masked, MaskedConfig, Supervised, SupervisedConfig
from pretrain.sample import Modality

GraphNetwork = GearNet | Gvp | Egnn
INTO = {"both": BRANCHES, "to_sequence": (SEQUENCE,), "to_structure": (STRUCTURE,)}


class BihierarchicalConfig(Config):
    """width, heads: of what branches meet in, and of what comes out. levels: of the hierarchical fusion. direction:
    which branch gets what comes of it. freeze_plm: the language model's own weights stay as `encoders.sequence.weights`
    gave them; `start_from` brings no others.
    """

    kind: Literal["bihierarchical"] = "bihierarchical"
    fusion: Literal["hierarchical", "serial", "parallel", "cross"] = "hierarchical"
    levels: tuple[Literal["local", "global"], ...] = ("local", "global")
    direction: Literal["both", "to_sequence", "to_structure"] = "both"
    width: int = Field(default=256, gt=0, multiple_of=2)
    heads: int = Field(default=8, gt=0)
    freeze_plm: bool = False
    objective: Annotated[MaskedConfig | SupervisedConfig, Field(discriminator="kind")] = MaskedConfig()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return BRANCHES

    @property
    def trains(self) -> tuple[Modality, ...]:
        """Whose encoders are parts of the model."""
        return BRANCHES

    @property
    def labels(self) -> LabelKind | None:
        """Those that the objective needs."""
        return self.objective.labels

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels {list(self.levels)} must be local, global or both, each once")
        if self.fusion != "hierarchical" and set(self.levels) != {"local", "global"}:
            raise ValueError(f"levels are of the hierarchical fusion; fusion = {self.fusion} has none, leave them out")
        if self.fusion in ("serial", "parallel") and self.direction != "both":
            raise ValueError(f"direction is of hierarchical and cross; fusion = {self.fusion} has one, leave it out")
        return self


class Bihierarchical(nn.Module):
    """encoders: of sequence and structure. An exported model borrows them, see `borrow`."""

    contrastive = False

    def __init__(self, config: BihierarchicalConfig, encoders: Mapping[Modality, Encoder]):
        super().__init__()
        plm, gnn = (encoders.get(m) for m in BRANCHES)
        if not isinstance(plm, Esm) or not isinstance(gnn, GraphNetwork):
            raise ValueError(
                "the model joins encoders.sequence (esm) and encoders.structure (gvp, gearnet or egnn); there is "
                + (", ".join(f"{m}: {encoder.config.kind}" for m, encoder in encoders.items()) or "none")
            )
        if plm.depth > 1:
            raise ValueError(
                f"encoders.sequence.tiers = {plm.depth}: the model meets every group of layers; leave it out"
            )
        layers, groups = len(plm.layers), len(gnn.layers)
        if config.fusion == "hierarchical" and layers < groups:
            raise ValueError(f"{layers} layers of esm do not make {groups} groups, one per layer of {gnn.config.kind}")
        headless(plm).requires_grad_(not config.freeze_plm)  # residues are told from fused rows
        self.config, self.modalities = config, config.modalities
        self.groups = [range(*ends) for ends in pairwise(round(i * layers / groups) for i in range(groups + 1))]
        self.trained: nn.ModuleDict | None = nn.ModuleDict({SEQUENCE.value: plm, STRUCTURE.value: gnn})
        self._borrowed: dict[Modality, Any] = {}
        self.fusion = _fusion_of(config, plm, gnn)
        self.readout = nn.ModuleDict(
            {
                m.value: nn.Sequential(nn.LayerNorm(part.width), nn.Linear(part.width, config.width))
                for m, part in ((SEQUENCE, plm), (STRUCTURE, gnn))
            }
        )
        objective = config.objective
        self.objective: Masked | Supervised | None = (
            Masked(objective, config.width)
            if isinstance(objective, MaskedConfig)
            else Supervised(objective, config.width)
        )

    def borrow(self, encoders: Mapping[Modality, Encoder]) -> None:
        """Run these, which stand beside the model and are no parts of it."""
        self._borrowed = dict(encoders)

    def loss_names(self) -> tuple[str, ...]:
        """Every name that `forward` returns a loss for, always all of them."""
        return self._objective().names

    def counts(self, batch: Batch) -> dict[str, int]:
        """Each loss's count, known before anything is encoded."""
        return self._objective().counts(batch)

    def flops(self, batch: Batch) -> int:
        """Of a training step on `batch`, without the graph network: what its edges cost is known when they are made."""
        given = self._objective().given(batch)
        joint = _joint(given)
        back = self.config.fusion == "hierarchical" and self.config.direction != "to_structure"
        plm = (1 + back if self.config.freeze_plm else flops.TRAINED) * self._encoders()[0].flops(joint.rows[SEQUENCE])
        fused = sum(part.flops(joint) for part in self.fusion)  # type: ignore[operator]
        read = sum(flops.linear(self.readout[m][1], lengths_of(joint.rows[m])) for m in BRANCHES)  # type: ignore[index]
        return plm + flops.TRAINED * (fused + read)

    def forward(
        self, features: Features, batch: Batch | None = None, negatives: None = None, task: Task = "losses"
    ) -> Losses | Embeddings | Latents:
        """losses: of what the objective shows of `batch`. embeddings, latents: of whole proteins. Nothing is in
        `features`: the encoders are the model's to run."""
        assert batch is not None, "the model runs its encoders itself, and takes the batch"
        if task == "losses":
            objective = self._objective()
            given = objective.given(batch)
            return objective.losses(self._residues(given), given)
        return self._embeddings(batch) if task == "embeddings" else self._latents(batch)

    def _embeddings(self, batch: Batch) -> Embeddings:
        """Means over a protein's residues: of both branches, and of each with the other absent."""
        count, letters = len(batch.slots), len(batch.sequence.letters)
        apart = Given.whole(  # every protein twice: as its sequence, and as its structure
            replace(batch.sequence, offsets=pad(batch.sequence.offsets, (0, count), value=letters)),
            replace(batch.structure, offsets=pad(batch.structure.offsets, (count, 0))),
        )
        alone, together = (self._vectors(each) for each in (apart, Given.whole(batch.sequence, batch.structure)))
        present = {m: lengths_of(getattr(batch, m).offsets) > 0 for m in BRANCHES}
        return Embeddings({SEQUENCE: alone[:count], STRUCTURE: alone[count:]}, present, together)

    def _latents(self, batch: Batch) -> Latents:
        """The rows of residues, of both branches, by the branches that have them; and their means."""
        given = Given.whole(batch.sequence, batch.structure)
        rows, joint = self._residues(given), _joint(given)
        tokens = {m: Tokens(rows[given.places[m]], joint.rows[m], joint.positions[m]) for m in BRANCHES}
        return Latents(tokens, mean([Tokens(rows, given.offsets, given.offsets[:0])]))

    def _vectors(self, given: Given) -> Tensor:
        """float32 [B, width]."""
        return mean([Tokens(self._residues(given), given.offsets, given.offsets[:0])])

    def _residues(self, given: Given) -> Tensor:
        """[R, width], of the batch's residues, from what is shown; 0 of one that neither branch is shown."""
        joint, hierarchical = _joint(given), self.config.fusion == "hierarchical"
        ends = (self._fused if hierarchical else self._in_turn)(given, joint)
        rows: Rows = {m: self.readout[m](ends[m]) for m in BRANCHES}
        if self.config.fusion == "cross":
            rows = dict(zip(BRANCHES, self.fusion[0](rows[SEQUENCE], rows[STRUCTURE], joint), strict=True))
        return joined(rows, given.places, int(given.offsets[-1]), self.config.fusion == "serial")

    def _fused(self, given: Given, joint: Joint) -> Rows:
        """Both branches' last rows, after they met behind every group of layers."""
        plm, gnn = self._encoders()
        one, other = plm.begin(given.sequence), gnn.begin(given.structure)
        for i, (group, exchange) in enumerate(zip(self.groups, self.fusion, strict=True)):
            one, other = plm.run(one, group), gnn.run(other, range(i, i + 1))
            told, seen = exchange(one.rows, other.rows, joint)
            one, other = one.with_rows(told), other.with_rows(seen)
        return {SEQUENCE: plm.finish(one), STRUCTURE: gnn.finish(other)}

    def _in_turn(self, given: Given, joint: Joint) -> Rows:
        """Both branches' last rows; in serial fusion the structure's begin with the sequence's."""
        plm, gnn = self._encoders()
        told = plm(given.sequence).values
        state, first = gnn.begin(given.structure), 0
        if self.config.fusion == "serial":
            first = int(isinstance(gnn, GearNet))
            state = gnn.run(state, range(first))
            state = state.with_rows(self.fusion[0](told, state.rows, joint))
        return {SEQUENCE: told, STRUCTURE: gnn.finish(gnn.run(state, range(first, len(gnn.layers))))}

    def _encoders(self) -> tuple[Esm, Any]:
        """The language model and the graph network, parts of the model or beside it."""
        if self.trained is not None:
            return self.trained[SEQUENCE], self.trained[STRUCTURE]  # type: ignore[return-value]
        return self._borrowed[SEQUENCE], self._borrowed[STRUCTURE]

    def _objective(self) -> Any:
        assert self.objective is not None, "an exported model has no losses but those of labels"
        return self.objective


def _fusion_of(config: BihierarchicalConfig, plm: Esm, gnn: GraphNetwork) -> nn.ModuleList:
    between, into = {SEQUENCE: plm.between, STRUCTURE: gnn.between}, INTO[config.direction]
    match config.fusion:
        case "hierarchical":
            levels = (Exchange(between, config.width, config.heads, config.levels, into) for _ in gnn.layers)
            return nn.ModuleList(levels)
        case "serial":
            return nn.ModuleList([Feed(plm.width, gnn.between)])
        case "cross":
            return nn.ModuleList([Cross(config.width, config.heads, into)])
        case "parallel":
            return nn.ModuleList()
    assert_never(config.fusion)


def _joint(given: Given) -> Joint:
    """Of what is shown."""
    return Joint.of(given.sequence.offsets, given.structure.offsets, given.structure.positions)
