"""What is known of a protein as a whole, and from there and its residues to one vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pretrain.batch import Batch, Features, Tokens, offsets_of, owners_of
from pretrain.data.ontology import Vocabulary
from pretrain.encoders.ontology import TermEmbedding
from pretrain.layers.pooling import GatedPooling
from pretrain.layers.projection import Head, Projection, mean, on_sphere
from pretrain.layers.transformer import CrossBlock, Mark, SelfBlock, interleave
from pretrain.sample import Modality


@dataclass(frozen=True, eq=False)
class Levels:
    """What is known of B proteins as wholes, by level: `terms`, `text`, `image`, those that there are.

    tokens: (rows [N, width], their proteins int64 [N]): each term, the text, each image. vectors: [B, embedding], in
    the compared space; of a protein that has nothing of a level, anything.
    """

    tokens: dict[str, tuple[Tensor, Tensor]]
    vectors: dict[str, Tensor]


class ProteinLevels(nn.Module):
    """widths: of the features of function and image, of those that the model has. vocabulary: GO's, None for no terms.

    A text is the mean of its word pieces, an image that of its patches. A protein's terms, and its images, are bags
    that `layers.pooling` makes one vector of.
    """

    def __init__(self, widths: Mapping[Modality, int], width: int, embedding: int, vocabulary: Vocabulary | None):
        super().__init__()
        self.projections = nn.ModuleDict({m.value: Projection(source, width) for m, source in widths.items()})
        self.ontology = None if vocabulary is None else TermEmbedding(vocabulary, width)
        if self.ontology is not None:
            self.norm, self.mark = nn.LayerNorm(width), Mark(width)
        there = (vocabulary is not None, Modality.FUNCTION in widths, Modality.IMAGE in widths)
        self.levels = tuple(level for level, has in zip(("terms", "text", "image"), there, strict=True) if has)
        bags = [level for level in self.levels if level != "text"]
        self.poolings = nn.ModuleDict({level: GatedPooling(width, width // 2) for level in bags})
        self.towers = nn.ModuleDict({level: Tower(width, embedding) for level in self.levels})

    def forward(self, features: Features, batch: Batch) -> Levels:
        tokens, bags = {}, {}
        if self.ontology is not None:
            assert batch.terms is not None, "the loader was given no vocabulary (InputSpec.terms)"
            terms = self.mark(self.norm(self.ontology(batch.terms.ids)))
            tokens["terms"] = terms, owners_of(batch.terms.offsets)
            bags["terms"] = self.poolings["terms"](terms, batch.terms.offsets)
        if "text" in self.levels:
            has = features[Modality.FUNCTION].lengths > 0
            bags["text"] = mean([self.rows(features, Modality.FUNCTION)])
            tokens["text"] = bags["text"][has], has.nonzero().squeeze(1)
        if "image" in self.levels:
            patches = self.rows(features, Modality.IMAGE)
            first = patches.positions == 0  # an image's patches come in their order
            begins = torch.cat([first.nonzero().squeeze(1), patches.offsets[-1:]])
            images, owners = mean([replace(patches, offsets=begins)]).to(patches.values.dtype), patches.owners[first]
            tokens["image"] = images, owners
            offsets = offsets_of(torch.bincount(owners, minlength=len(batch)))
            bags["image"] = self.poolings["image"](images, offsets)
        return Levels(tokens, {level: self.towers[level](bag) for level, bag in bags.items()})

    def rows(self, features: Features, modality: Modality) -> Tokens:
        """A modality's features in the model's width."""
        tokens = features[modality]
        return replace(tokens, values=self.projections[modality.value](tokens.values, tokens.positions))

    def present(self, batch: Batch) -> dict[str, Tensor]:
        """level → bool [B], known before anything is encoded."""
        there = {"text": batch.lengths[Modality.FUNCTION] > 0, "image": batch.lengths[Modality.IMAGE] > 0}
        if self.ontology is not None:
            assert batch.terms is not None, "the loader was given no vocabulary (InputSpec.terms)"
            there["terms"] = batch.terms.offsets.diff() > 0
        return {level: there[level] for level in self.levels}


class LevelFusion(nn.Module):
    """Cross-attention between levels: queries are a protein's tokens and a global token, keys and values its residues.

    Each of `depth` rounds reads the residues and then exchanges among the tokens; the global token's row comes out. A
    protein without residues reads nothing, and its tokens go through; one without tokens is what the global one reads.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.width = width
        self.token = Mark(width)
        self.reads = nn.ModuleList(CrossBlock(width, heads, width, mlp_ratio) for _ in range(depth))
        self.joins = nn.ModuleList(SelfBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Sequence[tuple[Tensor, Tensor]], residues: Tensor, offsets: Tensor) -> Tensor:
        """[B, width]. tokens: lists of rows [N, width] and their proteins, int64 [N]. residues: [R, width], by int64
        offsets [B + 1]."""
        proteins = len(offsets) - 1
        rows = [self.token(residues.new_zeros(proteins, self.width)), *(each for each, _ in tokens)]
        owners = [torch.arange(proteins, device=offsets.device), *(each for _, each in tokens)]
        order, bounds = interleave(owners, proteins)  # within a protein list by list: the global token comes first
        joined = torch.cat([each.to(rows[0].dtype) for each in rows])[order]
        for read, join in zip(self.reads, self.joins, strict=True):
            joined = join(read(joined, residues, bounds, offsets), bounds)
        return self.norm(joined[bounds[:-1]])


class Tower(nn.Module):
    """A level's vector [B, width] → the space in which levels are compared: float32 [B, size], of length 1."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.head = Head(width, width, size)

    def forward(self, rows: Tensor) -> Tensor:
        return on_sphere(self.head(rows))
