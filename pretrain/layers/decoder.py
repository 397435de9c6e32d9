"""What fills in a modality's tokens from the latents of what was visible, and who may see whom (AMMA, Methodology)."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.batch import Latents
from pretrain.config import Config
from pretrain.layers import flops
from pretrain.layers.transformer import CrossBlock, Mark, Transformer, interleave, sinusoid
from pretrain.sample import Modality


class Sees(Config):
    """One decoder's row of the matrix: the modalities whose latents it reads, and whether it reads the global token."""

    tokens: tuple[Modality, ...]
    global_token: bool = True


class DecoderConfig(Config):
    width: int = Field(default=256, gt=0, multiple_of=2)
    depth: int = Field(default=2, gt=0)
    heads: int = Field(default=8, gt=0)


class Decoder(nn.Module):
    """All slots of one modality, filled in from the latents that its row of `sees` names.

    context: width of the latents. target: width of what is filled in.
    """

    def __init__(
        self, modality: Modality, sees: Sees, size: DecoderConfig, context: int, target: int, mlp_ratio: float = 4.0
    ):
        super().__init__()
        self.modality, self.sees, self.width = modality, sees, size.width
        width = self.width
        self.adopt = nn.Linear(context, width) if modality in sees.tokens else None
        self.mask = Mark(width)
        self.mark = Mark(width)
        self.cross = CrossBlock(width, size.heads, context, mlp_ratio)
        self.blocks = Transformer(width, size.depth, size.heads, mlp_ratio)
        self.out = nn.Linear(width, target)

    def forward(self, latents: Latents, positions: Tensor, offsets: Tensor, visible: Tensor) -> Tensor:
        """[N, target]. positions, visible: [N], of every slot; this modality's latents are those of the visible."""
        rows = self.mask(latents.global_token.new_zeros(len(positions), self.width))
        if self.adopt is not None:
            own = self.adopt(latents.tokens[self.modality].values)
            rows = rows.masked_scatter(visible.unsqueeze(1), own.to(rows.dtype))
        rows = self.mark(rows + sinusoid(positions, self.width).to(rows.dtype))
        context, context_offsets = self._context(latents)
        return self.out(self.blocks(self.cross(rows, context, offsets, context_offsets), offsets))

    def flops(self, lengths: Tensor, kept: Mapping[Modality, Tensor]) -> int:
        """Forward. lengths: int64 [B], this modality's slots; kept: by modality, the latents."""
        adopted = flops.linear(self.adopt, kept[self.modality]) if self.adopt is not None else 0
        context = sum((kept[m] for m in self.sees.tokens), torch.full_like(lengths, self.sees.global_token))
        crossed = self.cross.flops(lengths, context)
        return adopted + crossed + self.blocks.flops(lengths) + flops.linear(self.out, lengths)

    def _context(self, latents: Latents) -> tuple[Tensor, Tensor]:
        proteins = len(latents.global_token)
        parts = [(latents.tokens[m].values, latents.tokens[m].owners) for m in self.sees.tokens]
        if self.sees.global_token:
            parts.append((latents.global_token, torch.arange(proteins, device=latents.global_token.device)))
        order, offsets = interleave([owners for _, owners in parts], proteins)
        return torch.cat([values for values, _ in parts])[order], offsets
