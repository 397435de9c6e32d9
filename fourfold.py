"""The front door for users of an exported model. Nothing here needs deepspeed, ray or the data it was trained on.

import fourfold

model = fourfold.load("runs/demo/model")
embeddings = fourfold.embed(model, "proteins.fasta")
hits = model.search("binds zinc", embeddings, k=5)
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep.proteins import read
from pretrain.embeddings import Embeddings, Hit
from pretrain.inference import Exported, load
from pretrain.sample import Function, Image, Sample, Structure, Term, Text

__all__ = [
    "Embeddings",
    "Exported",
    "Function",
    "Hit",
    "Image",
    "Sample",
    "Structure",
    "Term",
    "Text",
    "embed",
    "load",
    "read",
]


def embed(
    model: Exported | str | Path, proteins: str | Path | Sequence[Sample], per_residue: bool = False
) -> Embeddings:
    """Embeddings of proteins: a FASTA file, a structure, a folder of them, a prepared data set, or samples in memory.

    model: what `load` gave, or the exported folder. Raises ValueError, saying what is wrong, for input that is none.
    """
    exported = model if isinstance(model, Exported) else load(model)
    samples = read(proteins) if isinstance(proteins, str | Path) else proteins
    return exported.embed(samples, per_residue=per_residue)
