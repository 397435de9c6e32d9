"""What lies where: the index beside each shard, and a data set's folder seen as groups of addressed samples.

Layout of a data set: `<split>/<modalities>/00042.tar` with `00042.index.safetensors` beside it, `manifest.json`,
`rejected.jsonl` and `ontology.json` at the top. Position → bytes is arithmetic: no shard is opened to plan.
Imports numpy and safetensors only.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

SUFFIX = ".index.safetensors"


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """One row per sample of a shard, in the shard's order (keys sorted).

    offset, size: int64 [n], the byte span of the sample's members in the tar, headers and padding included.
    crc: uint32 [n], CRC-32 of that span. facets: uint8 [n], bits of `pretrain.sample.Facet`.
    residues: int32 [n], sequence length. structure: int32 [n], residues of its longest structure. text: int32 [n],
    characters of its longest text. images: int32 [n], number of images. 0 where absent.
    """

    keys: tuple[str, ...]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc: NDArray[np.uint32]
    facets: NDArray[np.uint8]
    residues: NDArray[np.int32]
    structure: NDArray[np.int32]
    text: NDArray[np.int32]
    images: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)

    def to_bytes(self) -> bytes:
        """The index file: columns by name, the keys as one text with a line each. Equal indices give equal bytes."""
        columns = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self) if f.name != "keys"}
        return save({**columns, "keys": np.frombuffer("\n".join(self.keys).encode(), dtype=np.uint8)})

    @staticmethod
    def read(path: Path) -> "ShardIndex":
        """Raises ValueError for a file that is damaged or lacks a column."""
        try:
            columns = load_file(path)
            keys = columns.pop("keys").tobytes().decode()
            index = ShardIndex(tuple(keys.split("\n")) if keys else (), **columns)
        except Exception as error:  # the format's library raises a type of its own, and missing columns a TypeError
            raise ValueError(f"{path}: not a shard index: {error}") from error
        lengths = {f.name: len(getattr(index, f.name)) for f in fields(index)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{path}: columns of unequal length: {lengths}")
        return index
