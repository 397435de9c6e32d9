"""The labels that a supervised model tells of proteins."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.labels import Task

# Of one protein: what is told, and of residues their positions.
Told = tuple[NDArray[np.float32], NDArray[np.int64] | None]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of N proteins. values: of `class`, float32 [N, classes], probabilities that add up to 1; of `multilabel`, the
    probability of each class by itself; of `scalar`, float32 [N], the number; of `residue`, float32 [ΣL], the
    probability of 1, protein i's from offsets[i] to offsets[i + 1] (int64 [N + 1]), `positions` (int64 [ΣL], 0-based)
    in its sequence, or of its structure's residues where it has none. truncated: keys of proteins that lost residues
    to an encoder's limit.
    """

    keys: tuple[str, ...]
    task: Task
    truncated: tuple[str, ...]
    values: NDArray[np.float32]
    positions: NDArray[np.int64] | None = None
    offsets: NDArray[np.int64] | None = None

    @staticmethod
    def of_parts(keys: tuple[str, ...], task: Task, truncated: tuple[str, ...], parts: Sequence[Told]) -> "Predictions":
        """parts: of each protein, in their order."""
        values, positions = zip(*parts, strict=True)
        if task != "residue":
            return Predictions(keys, task, truncated, np.stack(values))
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
        return Predictions(keys, task, truncated, np.concatenate(values), np.concatenate(positions), offsets)

    def of(self, i: int) -> NDArray[np.float32]:
        """Protein i's: [classes], [] (one number), or [L]."""
        return self.values[i] if self.offsets is None else self.values[self.offsets[i] : self.offsets[i + 1]]
