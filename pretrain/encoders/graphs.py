"""What networks over a structure's residues have in common: GearNet, GVP-GNN, EGNN."""

from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from pretrain.batch import Structures, Tokens
from pretrain.encoders import weights


class GraphEncoder(nn.Module):
    """Frozen or trainable. `begin`, `run` and `finish` are what `forward` does, for models that come in between.

    WHAT: the encoder's name in messages. config: with `weights` and `seed`. layers: from a state to the next.
    """

    WHAT: ClassVar[str]
    config: Any
    layers: nn.ModuleList

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @classmethod
    def build(cls, config: Any) -> Self:
        """Drawn, or read from a file. ValueError for weights that are missing or do not fit."""
        module = weights.empty(lambda: cls(config))
        if config.weights == weights.RANDOM:
            return weights.initialise(module, config.seed, cls.WHAT)
        path = weights.locate(config.weights, cls.WHAT)
        return weights.fill(module, cls.named(weights.read(path, cls.WHAT), path), path, cls.WHAT)

    @classmethod
    def skeleton(cls, config: Any, folder: Path) -> Self:
        """Without values, for a state dict to fill."""
        return weights.empty(lambda: cls(config))

    @classmethod
    def named(cls, data: dict[str, Any], path: Path) -> dict[str, Tensor]:
        """A file's tensors by the names that they have here."""
        return data

    def save_files(self, folder: Path) -> None:
        """Nothing: the configuration says it all."""

    def forward(self, structures: Structures) -> Tokens:
        """One row per structure residue; the same wherever the protein lies and however it is turned."""
        state = self.run(self.begin(structures), range(len(self.layers)))
        return Tokens(self.finish(state), structures.offsets, structures.positions)

    def begin(self, structures: Structures) -> Any:
        """The residues before the first layer. Its `with_rows` replaces what of them knows nothing of directions."""
        raise NotImplementedError

    def run(self, state: Any, layers: range) -> Any:
        """Through these layers."""
        for i in layers:
            state = self.layers[i](state)
        return state

    def finish(self, state: Any) -> Tensor:
        """[N, width]."""
        raise NotImplementedError
