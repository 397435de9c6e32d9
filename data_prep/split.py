"""Which split a protein belongs to. First form: by hash of its key.

A hash knows nothing of homology: relatives of a training protein can be in the test split, and a score on it is
optimistic. The method is therefore named in the configuration and in the manifest.
"""

from hashlib import blake2b
from typing import Literal

import pydantic

from pretrain.config import Config

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class SplitConfig(Config):
    """Shares of all samples; the rest is train. Another seed gives another split of the same sizes."""

    method: Literal["hash"] = "hash"
    valid: float = pydantic.Field(0.05, ge=0.0, le=1.0)
    test: float = pydantic.Field(0.05, ge=0.0, le=1.0)
    seed: int = 0


def split(key: str, config: SplitConfig) -> Split:
    """A pure function of the key: a protein keeps its split when the data set grows."""
    draw = int.from_bytes(blake2b(f"split:{config.seed}:{key}".encode(), digest_size=8).digest(), "big") / 2**64
    if draw < config.valid:
        return "valid"
    return "test" if draw < config.valid + config.test else "train"
