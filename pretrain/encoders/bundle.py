"""A run's frozen encoders: `Batch` → `Features`, and what the loader, checkpoints and exports must know of them.

What the batch brings of stored features is taken as it is; the rest is encoded. So an encoder whose features are all
stored is not needed in training, and `release` lets go of it.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
import torch
from pydantic import Field, PositiveInt
from torch import nn

from pretrain.batch import Batch, Features, Tokens, of_view
from pretrain.config import Config, dump, validate
from pretrain.data import features
from pretrain.data.draw import WHOLE, InputSpec
from pretrain.encoders import weights
from pretrain.encoders.egnn import Egnn, EgnnConfig
from pretrain.encoders.esm import Esm, EsmConfig
from pretrain.encoders.gearnet import GearNet, GearNetConfig
from pretrain.encoders.gvp import Gvp, GvpConfig
from pretrain.encoders.image import Vision, VisionConfig, ViT, ViTConfig
from pretrain.encoders.text import TextConfig, TextEncoder
from pretrain.sample import Modality, canonical

CHOSEN = {"weights", "max_length", "tiers"}  # of an encoder; everything else is as its weights were trained
FILE = "encoders.json"  # of an exported model: the configuration with everything that was read from weights filled in

StructureEncoder = GearNet | Gvp | Egnn
Encoder = Esm | StructureEncoder | TextEncoder | ViT | Vision
ENCODERS: dict[str, type[Encoder]] = {
    "esm": Esm,
    "gearnet": GearNet,
    "gvp": Gvp,
    "egnn": Egnn,
    "text": TextEncoder,
    "vit": ViT,
    "vision": Vision,
}


FROM_SCRATCH = (Esm, GearNet, Gvp, Egnn, ViT)
TRAINED = "trained"  # in place of weights' name: they are in the exported model itself
LEARNED = "trained, from "  # before the name of the weights that a model's own encoder began with
SPREAD = 0.02  # of embeddings that are going to be trained


class EncodersConfig(Config):
    """One encoder per modality; a modality without one is not part of the model.

    crop: residues that fusion sees of a protein, a window. image_tokens: at most, of one protein.
    """

    sequence: EsmConfig | None = None
    structure: Annotated[GearNetConfig | GvpConfig | EgnnConfig, Field(discriminator="kind")] | None = None
    function: TextConfig | None = None
    image: Annotated[ViTConfig | VisionConfig, Field(discriminator="kind")] | None = None
    crop: PositiveInt = 512
    image_tokens: PositiveInt = 196

    @pydantic.model_validator(mode="after")
    def _some(self) -> Self:
        if not any(getattr(self, modality) for modality in Modality):
            raise ValueError(f"give an encoder for at least one of {', '.join(Modality)}")
        return self


def as_asked(config: EncodersConfig) -> dict[str, Any]:
    """Plain, JSON-ready tables that validate to the same again: of what is left to weights they do not speak."""
    found = dump(config)
    for modality, one in _configured(config):
        if one.weights != weights.RANDOM:
            found[modality] = {name: found[modality][name] for name in one.model_fields_set | {"kind"}}
    return found


class Encoders(nn.Module):
    """Frozen: no gradients, never in training mode. config: with everything that was read from weights filled in."""

    sequence: Esm | None
    structure: StructureEncoder | None
    function: TextEncoder | None
    image: ViT | Vision | None
    like: torch.Tensor

    def __init__(self, config: EncodersConfig, built: dict[Modality, Encoder]):
        super().__init__()
        self.config = config.model_copy(update={modality.value: encoder.config for modality, encoder in built.items()})
        for modality in Modality:
            setattr(self, modality, built.get(modality))
        image = self.image
        if image is not None and image.patches > config.image_tokens:
            raise ValueError(f"one image has {image.patches} tokens, image_tokens allows {config.image_tokens}")
        self._spec = self._specified()
        self._widths = {modality: encoder.width for modality, encoder in self.items()}
        self._identity: dict[str, dict[str, Any]] = {}
        self._lent: frozenset[Modality] = frozenset()
        self.register_buffer("like", torch.zeros(0), persistent=False)  # where features are wanted, and of which type
        self.requires_grad_(False).train(False)

    @classmethod
    def build(cls, config: EncodersConfig, trains: Collection[Modality] = ()) -> Self:
        """Load or draw the weights. ValueError for weights that are missing or do not fit. trains: see `to_train`."""
        frozen = {m: _built(m, one) for m, one in _configured(config) if m not in trains}
        return cls(config, frozen | to_train(config, trains))

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
        """Every configured modality, stored or encoded, residues cropped to the batch's windows; and its view's."""
        found = self._features(batch)
        if batch.view is not None:
            found |= {of_view(Modality(name)): tokens for name, tokens in self._features(batch.view).items()}
        return found

    def _features(self, batch: Batch) -> Features:
        found: Features = {}
        for modality in (modality for modality in self._widths if modality not in self._lent):
            tokens = batch.stored.get(modality)
            if tokens is not None:
                tokens = Tokens(tokens.values.to(self.like.dtype), tokens.offsets, tokens.positions)
            else:
                tokens = self.encode(batch, modality)
                if modality in (Modality.SEQUENCE, Modality.STRUCTURE):
                    tokens = tokens.crop(batch.window)
            assert torch.equal(tokens.lengths, batch.lengths[modality]), f"{modality}: {tokens.lengths} tokens"
            found[modality] = tokens
        return found

    @torch.no_grad()
    def encode(self, batch: Batch, modality: Modality) -> Tokens:
        """One modality's features of the whole proteins, not cropped."""
        encoder = getattr(self, modality)
        assert encoder is not None, f"the {modality} encoder was released: its features are stored"
        return encoder(getattr(batch, modality))

    def release(self, stored: Collection[Modality]) -> None:
        """Let go of the encoders whose features every batch will bring; identity, limits and widths stay known."""
        self.identity()
        for modality in stored:
            setattr(self, modality, None)

    def lend(self, modalities: Collection[Modality]) -> None:
        """Let go of the encoders that the model trains, as `release` does; their features are left to the model."""
        self.release(modalities)
        self._lent = frozenset(modalities)

    def share(self, modalities: Collection[Modality]) -> dict[Modality, Encoder]:
        """These encoders, for a model that runs them itself; their features are left to it, the modules stay here."""
        self._lent = frozenset(modalities)
        return {modality: encoder for modality, encoder in self.items() if modality in modalities}

    def adopt(self, trained: Mapping[Modality, Encoder]) -> None:
        """Take these instead: encoders that a model has trained, of the same configurations."""
        configs: dict[str, Any] = {}
        for modality, encoder in trained.items():
            one: Any = encoder
            one.config = configs[modality.value] = encoder.config.model_copy(update={"weights": TRAINED})
            setattr(self, modality, encoder)
        self.config, self._identity = self.config.model_copy(update=configs), {}
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def items(self) -> Iterator[tuple[Modality, Encoder]]:
        """(modality, encoder) of those there are (and not released), in `Modality`'s order."""
        for modality in Modality:
            encoder = getattr(self, modality)
            if encoder is not None:
                yield modality, encoder

    def widths(self) -> dict[Modality, int]:
        return dict(self._widths)

    def depths(self) -> dict[Modality, int]:
        """Of how many layers' rows, side by side, an encoder's features are."""
        return {modality: getattr(encoder, "depth", 1) for modality, encoder in self.items()}

    def spec(self) -> InputSpec:
        return self._spec

    def _specified(self) -> InputSpec:
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
        """By modality: what the encoder is, in plain values, down to the hash of its weights (taken once).

        features: the name of all that decides what it makes of a protein: besides the weights the settings that no
        weight shows, the limits, and the form in which features are stored. Equal names mean equal features.
        """
        if not self._identity:
            self._identity = {modality.value: self._identify(modality, encoder) for modality, encoder in self.items()}
        return {modality: dict(known) for modality, known in self._identity.items()}

    def _identify(self, modality: Modality, encoder: Encoder) -> dict[str, Any]:
        one, digest = encoder.config, weights.digest(encoder)
        seed = None if isinstance(one, VisionConfig) or one.weights != weights.RANDOM else one.seed
        decides: dict[str, Any] = {"format": features.FORMAT, "kind": one.kind, "weights": digest, **encoder.settings()}
        if modality is Modality.STRUCTURE and Modality.SEQUENCE in self._widths:
            decides["end"] = self._spec.sequence_max  # a structure is cut where its sequence is
        return {
            "id": f"{one.kind}-{digest[:12]}",
            "kind": one.kind,
            "weights": one.weights if seed is None else f"random (seed {seed})",
            "sha256": digest,
            "width": encoder.width,
            "features": f"{one.kind}-{sha256(canonical(decides).encode()).hexdigest()[:16]}",
        }


def to_train(config: EncodersConfig, modalities: Collection[Modality]) -> dict[Modality, Encoder]:
    """The configured encoders of these modalities, trainable, as their training begins: their weights loaded, or drawn
    for it. Raises ValueError as `build` does."""
    found: dict[Modality, Encoder] = {}
    for modality, one in _configured(config):
        if modality not in modalities:
            continue
        kind = ENCODERS[one.kind]
        if kind in FROM_SCRATCH and one.weights == weights.RANDOM:
            found[modality] = weights.draw(weights.empty(lambda kind=kind, one=one: kind(one)), one.seed, SPREAD)
        else:
            found[modality] = _built(modality, one)
        found[modality].requires_grad_(True)
    return found


def headless(encoder: Any) -> Any:
    """The encoder without its language-model head: where nothing asks it, it would get no gradient, and decay."""
    if isinstance(encoder, Esm) and encoder.head is not None:
        encoder.head, encoder.config = None, encoder.config.model_copy(update={"head": False})
    return encoder


def _built(modality: Modality, one: Any) -> Encoder:
    """An encoder with its weights; also those of a model that was exported, whose folder `weights` names then, and
    decides what the configuration leaves open."""
    what = f"{modality} encoder ({one.kind})"
    if one.weights == weights.RANDOM or not (folder := weights.locate(one.weights, what)).is_dir():
        return ENCODERS[one.kind].build(one)
    if not (folder / FILE).is_file():
        return ENCODERS[one.kind].build(one)
    theirs = getattr(validate(EncodersConfig, json.loads((folder / FILE).read_text()), str(folder / FILE)), modality)
    if theirs is None or theirs.kind != one.kind:
        todo = f"set encoders.{modality}.kind = {theirs.kind!r}" if theirs else "name a model's that has one"
        raise ValueError(f"{what}: {folder} holds {theirs.kind if theirs else 'none'} for {modality}; {todo}")
    told = {name: getattr(one, name) for name in one.model_fields_set - {"kind", "seed"}}
    asked = {name: value for name, value in told.items() if value is not None}
    for name in sorted(asked.keys() - CHOSEN):
        if asked[name] != getattr(theirs, name):
            raise ValueError(
                f"{what}: the configuration asks for {name} = {asked[name]}, {folder} has {getattr(theirs, name)}"
            )
    module = ENCODERS[one.kind].skeleton(theirs.model_copy(update=asked), folder)
    prefix = f"encoders.{modality}."
    tensors = weights.read(folder / "model.safetensors", what)
    named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return weights.fill(module, named, folder, what)


def _configured(config: EncodersConfig) -> list[tuple[Modality, Any]]:
    return [(modality, getattr(config, modality)) for modality in Modality if getattr(config, modality) is not None]
