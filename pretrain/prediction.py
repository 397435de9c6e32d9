"""What a model's labels are, for proteins that have none: a supervised model's head over what it embeds. Numpy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.labels import Task


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

    def of(self, i: int) -> NDArray[np.float32]:
        """Protein i's: [classes], [] (one number), or [L]."""
        return self.values[i] if self.offsets is None else self.values[self.offsets[i] : self.offsets[i + 1]]
