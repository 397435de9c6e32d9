"""GO terms as vectors that are trained: a term's is the sum of its own and of those of all terms above it.

So terms that GO calls kinds of one thing begin alike and learn together, and a rare one, whose own vector has seen few
proteins, is still told by its ancestors' (Gene Ontology's true-path rule, as a sum). What a model carries is the table
of terms (`pretrain.data.ontology`), beside the vectors: an exported one knows terms by their ids.
"""

import torch
from torch import Tensor, nn

from pretrain.batch import offsets_of
from pretrain.data.ontology import Vocabulary

SPREAD = 0.02


class TermEmbedding(nn.Module):
    """vocabulary: V terms. width: of a vector. Its three tables are int64 buffers and stay what they are."""

    numbers: Tensor
    starts: Tensor
    members: Tensor

    def __init__(self, vocabulary: Vocabulary, width: int):
        super().__init__()
        self.own = nn.EmbeddingBag(len(vocabulary), width, mode="sum")
        nn.init.normal_(self.own.weight, std=SPREAD)
        for name, table in vocabulary.tables().items():
            self.register_buffer(name, torch.from_numpy(table.copy()))

    def forward(self, ids: Tensor) -> Tensor:
        """[T, width] of the terms `ids`, int64 [T] rows of the vocabulary; T may be 0.

        The bags are summed as they are read: a term has up to some ninety ancestors, whose vectors are never laid out.
        """
        begins, ends = self.starts[ids], self.starts[ids + 1]
        offsets = offsets_of(ends - begins)
        shift = torch.repeat_interleave(begins - offsets[:-1], ends - begins)
        rows = self.members[torch.arange(int(offsets[-1]), device=ids.device) + shift]
        return self.own(rows, offsets[:-1])

    def matched(self, numbers: Tensor, vectors: Tensor) -> Tensor:
        """[V, width]: its own vectors, and for the terms that another table has as well, that one's. numbers: int64
        [U], strictly increasing; vectors: [U, width]."""
        place = torch.searchsorted(numbers, self.numbers).clamp(max=len(numbers) - 1)
        same = numbers[place] == self.numbers
        return torch.where(same.unsqueeze(1), vectors[place], self.own.weight.detach())
