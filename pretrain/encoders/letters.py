"""Residues' letters as numbers, for encoders that are ours to number."""

import torch
from torch import Tensor

LETTERS = "ACDEFGHIKLMNPQRSTVWY"  # any other is of the last kind
KINDS = len(LETTERS) + 1

_numbers = torch.full((256,), len(LETTERS))
_numbers[list(LETTERS.encode())] = torch.arange(len(LETTERS))


def kinds(letters: Tensor) -> Tensor:
    """int64 [N], 0 to KINDS − 1, of ASCII codes uint8 [N]."""
    return _numbers.to(letters.device)[letters.long()]
