"""The front door for users of an exported model. Nothing here needs deepspeed, ray or the data it was trained on.

import fourfold

model = fourfold.load("runs/demo/model")
proteins = fourfold.read("proteins.fasta")
embeddings = model.embed(proteins)
hits = model.search("binds zinc", embeddings, k=5)
"""

from data_prep.proteins import read
from pretrain.embeddings import Embeddings, Hit
from pretrain.inference import Exported, load
from pretrain.sample import Function, Image, Sample, Structure, Term, Text

__all__ = ["Embeddings", "Exported", "Function", "Hit", "Image", "Sample", "Structure", "Term", "Text", "load", "read"]
