"""Published ESM weights: their alphabet, fair-esm's `.pt` files and transformers' folders, in our names.

ESM-2 turns queries and keys by position. ESM-1b (Rives et al. 2021), and ESM-1v by the same names, add a learned vector
per position instead, and ESM-1b a norm before the first layer; what a file has of these is found in its tensors.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.encoders import weights

ALPHABET = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
PADDING = ALPHABET.index("<pad>")  # the row of a table of positions that stands for padding; BOS has the next one
MASK = ALPHABET.index("<mask>")
ROBERTA = "roberta_large"  # what fair-esm calls the architecture of ESM-1b and ESM-1v


def read(path: Path, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(fields of `EsmConfig`, tensors by `Esm`'s names) of a file or a folder. ValueError for another model's."""
    geometry, state = _transformers(path, what) if path.is_dir() else _fair_esm(path, what)
    tensors = _renamed(state)
    geometry["head"] = any(name.startswith("head.") for name in tensors)
    return geometry, tensors


def _fair_esm(path: Path, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    data = weights.read(path, what)
    old = "args" in data
    try:
        model = data["args"] if old else data["cfg"]["model"]
        found = {name.removeprefix("encoder_"): value for name, value in _plain(model).items()}
        if old and found["arch"] != ROBERTA:
            raise ValueError(
                f"{what}: {path} is of fair-esm's architecture {found['arch']!r}; those of ESM-2, and of ESM-1b and "
                f"ESM-1v ({ROBERTA!r}), are read"
            )
        geometry = {
            "layers": found["layers"],
            "width": found["embed_dim"],
            "heads": found["attention_heads"],
            "token_dropout": bool(found.get("token_dropout", False) if old else found["token_dropout"]),
            "places": found["max_positions"] if old else 0,
        }
        prefix = re.compile(r"^encoder\.(sentence_encoder\.)?")
        state = {prefix.sub("", name): tensor for name, tensor in data["model"].items()}
        if old:  # as fair-esm does: a masked token is a vector of zeros, also without token dropout
            state["embed_tokens.weight"] = state["embed_tokens.weight"].clone()
            state["embed_tokens.weight"][MASK] = 0
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{what}: {path} is no ESM-2 or ESM-1b file of fair-esm (no {error}; its keys are {sorted(map(str, data))})"
        ) from error
    geometry["norm_before"] = any(name.startswith("emb_layer_norm_before.") for name in state)
    return geometry, state


def _plain(settings: Any) -> dict[str, Any]:
    return settings if isinstance(settings, dict) else vars(settings)


def _transformers(folder: Path, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{what}: {folder} has no config.json; a transformers EsmModel or EsmForMaskedLM was expected")
    found = json.loads((folder / "config.json").read_text())
    found.setdefault("position_embedding_type", "absolute")  # transformers' own default
    needed = {
        "model_type": ("esm",),
        "position_embedding_type": ("rotary", "absolute"),
        "layer_norm_eps": (1e-5,),
        "vocab_size": (len(ALPHABET),),
    }
    if other := [name for name, good in needed.items() if found.get(name) not in good]:
        seen = ", ".join(f"{n} = {found.get(n)!r} (there {' or '.join(map(repr, needed[n]))})" for n in other)
        raise ValueError(f"{what}: {folder} is no ESM-2 or ESM-1b: {seen}")
    learned = found["position_embedding_type"] == "absolute"
    geometry = {
        "layers": found["num_hidden_layers"],
        "width": found["hidden_size"],
        "heads": found["num_attention_heads"],
        "token_dropout": bool(found.get("token_dropout", False)),
        "places": found["max_position_embeddings"] - PADDING - 1 if learned else 0,
        "norm_before": bool(found.get("emb_layer_norm_before", False)),
    }
    state = {}
    for name, tensor in weights.read_folder(folder, what).items():
        name = re.sub(r"\bgamma$", "weight", re.sub(r"\bbeta$", "bias", name))  # as transformers 5 writes some norms
        name = re.sub(r"^encoder\.(layer\.)?", lambda m: "layers." if m[1] else "", name.removeprefix("esm."))
        for theirs, fair in _TRANSFORMERS_NAMES.items():
            name = re.sub(theirs, fair, name)
        if learned or not name.startswith("embed_positions."):  # rotary models can carry a table that nothing reads
            state[name] = tensor
    return geometry, state


_TRANSFORMERS_NAMES = {  # transformers' names, after `layers.<i>.`, as fair-esm's
    r"^embeddings\.word_embeddings\.": "embed_tokens.",
    r"^embeddings\.position_embeddings\.": "embed_positions.",
    r"^embeddings\.layer_norm\.": "emb_layer_norm_before.",
    r"\.attention\.self\.([qkv])\w+\.": r".self_attn.\1_proj.",
    r"\.attention\.output\.dense\.": ".self_attn.out_proj.",
    r"\.attention\.LayerNorm\.": ".self_attn_layer_norm.",
    r"\.intermediate\.dense\.": ".fc1.",
    r"\.output\.dense\.": ".fc2.",
    r"\.LayerNorm\.": ".final_layer_norm.",
}
_NAMES = {  # fair-esm's names as ours
    r"^embed_tokens\.": "embed.",
    r"^embed_positions\.": "places.",
    r"^emb_layer_norm_before\.": "norm_before.",
    r"^emb_layer_norm_after\.": "norm.",
    r"^lm_head\.layer_norm\.": "head.norm.",
    r"^lm_head\.": "head.",
    r"\.self_attn_layer_norm\.": ".attention_norm.",
    r"\.final_layer_norm\.": ".mlp_norm.",
    r"\.self_attn\.out_proj\.": ".out.",
    r"\.fc1\.": ".up.",
    r"\.fc2\.": ".down.",
}
# Contact prediction; what is tied to the embedding or computed.
_NOT_OURS = re.compile(r"^(contact_head|pooler)|inv_freq$|position_ids$|^lm_head\.(weight|decoder)|embed_out|^version$")


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """fair-esm's names as ours, with query, key and value joined into one matrix, and a table of positions without its
    first rows, which stand for padding."""
    tensors = {}
    for name, tensor in state.items():
        if _NOT_OURS.search(name) or re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue
        if match := re.fullmatch(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state.get(f"{match[1]}.self_attn.{part}_proj.{match[2]}") for part in "qkv"]
            tensors[f"{match[1]}.query_key_value.{match[2]}"] = torch.cat([part for part in parts if part is not None])
            continue
        for theirs, ours in _NAMES.items():
            name = re.sub(theirs, ours, name)
        tensors[name] = tensor[PADDING + 1 :] if name == "places.weight" else tensor
    return tensors
