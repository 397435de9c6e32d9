"""A run's frozen encoders: `Batch` → `Features`, and what the loader, checkpoints and exports must know of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
import torch
from pydantic import Field, PositiveInt
from torch import nn

from pretrain.batch import Batch, Features
from pretrain.config import Config, dump, validate
from pretrain.data.collate import WHOLE, InputSpec
from pretrain.encoders import weights
from pretrain.encoders.esm import Esm, EsmConfig
from pretrain.encoders.gearnet import GearNet, GearNetConfig
from pretrain.encoders.image import Vision, VisionConfig, ViT, ViTConfig
from pretrain.encoders.text import TextConfig, TextEncoder
from pretrain.sample import Modality

FILE = "encoders.json"  # of an exported model: the configuration with everything that was read from weights filled in

Encoder = Esm | GearNet | TextEncoder | ViT | Vision
ENCODERS: dict[str, type[Encoder]] = {"esm": Esm, "gearnet": GearNet, "text": TextEncoder, "vit": ViT, "vision": Vision}


class EncodersConfig(Config):
    """One encoder per modality; a modality without one is not part of the model.

    crop: residues that fusion sees of a protein, a window. image_tokens: at most, of one protein.
    """

    sequence: EsmConfig | None = None
    structure: GearNetConfig | None = None
    function: TextConfig | None = None
    image: Annotated[ViTConfig | VisionConfig, Field(discriminator="kind")] | None = None
    crop: PositiveInt = 512
    image_tokens: PositiveInt = 196

    @pydantic.model_validator(mode="after")
    def _some(self) -> Self:
        if not any(getattr(self, modality) for modality in Modality):
            raise ValueError(f"give an encoder for at least one of {', '.join(Modality)}")
        return self


class Encoders(nn.Module):
    """Frozen: no gradients, never in training mode. config: with everything that was read from weights filled in."""

    sequence: Esm | None
    structure: GearNet | None
    function: TextEncoder | None
    image: ViT | Vision | None

    def __init__(self, config: EncodersConfig, built: dict[Modality, Encoder]):
        super().__init__()
        self.config = config.model_copy(update={modality.value: encoder.config for modality, encoder in built.items()})
        for modality in Modality:
            setattr(self, modality, built.get(modality))
        image = self.image
        if image is not None and image.patches > config.image_tokens:
            raise ValueError(f"one image has {image.patches} tokens, image_tokens allows {config.image_tokens}")
        self._digests: dict[Modality, str] = {}
        self.requires_grad_(False).train(False)

    @classmethod
    def build(cls, config: EncodersConfig) -> Self:
        """Load or draw the weights. ValueError for weights that are missing or do not fit."""
        return cls(config, {m: ENCODERS[one.kind].build(one) for m, one in _configured(config)})

    @classmethod
    def skeleton(cls, config: EncodersConfig, folder: Path) -> Self:
        """The same modules without their weights, from what `save_files` wrote; `load_state_dict` makes them whole."""
        path = folder / FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing: the folder was copied in part; copy it again, or export again")
        complete = validate(EncodersConfig, json.loads(path.read_text()), str(path))
        if [m for m, _ in _configured(complete)] != [m for m, _ in _configured(config)]:
            raise ValueError(f"{path} is of another model than the configuration beside it; export again")
        return cls(complete, {m: ENCODERS[one.kind].skeleton(one, folder) for m, one in _configured(complete)})

    def save_files(self, folder: Path) -> None:
        """What `skeleton` needs besides the weights: the completed configuration, and tokenizers and the like."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(dump(self.config), indent=1) + "\n")
        for _, encoder in self.items():
            encoder.save_files(folder)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Features:
        """Every configured modality, residues cropped to the batch's windows."""
        features = {}
        for modality, encoder in self.items():
            tokens = encoder(getattr(batch, modality))
            if modality in (Modality.SEQUENCE, Modality.STRUCTURE):
                tokens = tokens.crop(batch.window)
            assert torch.equal(tokens.lengths, batch.lengths[modality]), f"{modality}: {tokens.lengths} tokens"
            features[modality] = tokens
        return features

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def items(self) -> Iterator[tuple[Modality, Encoder]]:
        """(modality, encoder) of those there are, in `Modality`'s order."""
        for modality in Modality:
            encoder = getattr(self, modality)
            if encoder is not None:
                yield modality, encoder

    def widths(self) -> dict[Modality, int]:
        return {modality: encoder.width for modality, encoder in self.items()}

    def spec(self) -> InputSpec:
        sequence, structure, function, image = self.sequence, self.structure, self.function, self.image
        return InputSpec(
            sequence_max=sequence.config.max_length if sequence else WHOLE,
            structure_max=structure.config.max_length if structure else None,
            tokenize=function.tokenize if function else None,
            text_max=function.config.max_length if function else 1,
            image_size=image.size if image else 1,
            image_patches=image.patches if image else 1,
            crop=self.config.crop,
            max_images=self.config.image_tokens // image.patches if image else 1,
            modalities=tuple(modality for modality, _ in self.items()),
        )

    def identity(self) -> dict[str, dict[str, Any]]:
        """By modality: what the encoder is, in plain values, down to the hash of its weights (taken once)."""
        found = {}
        for modality, encoder in self.items():
            one = encoder.config
            if modality not in self._digests:
                self._digests[modality] = weights.digest(encoder)
            seed = None if isinstance(one, VisionConfig) or one.weights != weights.RANDOM else one.seed
            found[modality.value] = {
                "id": f"{one.kind}-{self._digests[modality][:12]}",
                "kind": one.kind,
                "weights": one.weights if seed is None else f"random (seed {seed})",
                "sha256": self._digests[modality],
                "width": encoder.width,
            }
        return found


def _configured(config: EncodersConfig) -> list[tuple[Modality, Any]]:
    return [(modality, getattr(config, modality)) for modality in Modality if getattr(config, modality) is not None]
