"""The front door for users of an exported model.

    import fourfold
    model = fourfold.load("runs/demo/model")
    embeddings = model.embed(fourfold.read("proteins.fasta"))

Nothing here needs deepspeed, ray or the data it was trained on.
"""

from pretrain.inference import load

__all__ = ["load"]
