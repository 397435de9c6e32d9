"""Microscope images as patch tokens: a small vision transformer over the four planes, or a `transformers` vision model.

A protein's images lie end to end; a token's position is its patch, row by row, within its own image.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt, field_validator
from torch import Tensor, nn

from pretrain.batch import Images, Tokens
from pretrain.config import Config
from pretrain.encoders import weights
from pretrain.layers.transformer import Transformer
from pretrain.sample import CHANNELS

FILES = "image"  # the folder of an exported model that holds a vision model's configuration
RGB = (
    "microtubules",
    "protein",
    "nucleus",
)  # red, green, blue, as the Human Protein Atlas colours them; ER is left out


class ViTConfig(Config):
    """A small vision transformer. weights: `random`, or a model of ours, as no published one reads these four planes.

    size: pixels a side; patch: pixels a side of a patch, dividing it.
    """

    kind: Literal["vit"] = "vit"
    weights: str = "random"
    seed: int = 0
    size: PositiveInt = 112
    patch: PositiveInt = 16
    width: PositiveInt = 192
    layers: PositiveInt = 4
    heads: PositiveInt = 3


class VisionConfig(Config):
    """A vision model of `transformers` (ViT, DINOv2, …). weights: its folder, `package:NAME/FOLDER`
    or `hub:ORG/NAME`.

    planes: which of an image's are the model's channels, in their order: as many as it has. By default three are its
    colours: red microtubules, green the protein, blue the nucleus; the ER is not seen. SubCell's order is microtubules,
    er, nucleus, protein. An absent plane is black: a model trained elsewhere has no mark for absence. Pixels, 0 to 1,
    less `image_mean` over `image_std` of the folder's preprocessor_config.json (0.5 each where it states none).
    """

    kind: Literal["vision"] = "vision"
    weights: str
    planes: tuple[str, ...] = RGB

    @field_validator("planes")
    @classmethod
    def _known(cls, planes: tuple[str, ...]) -> tuple[str, ...]:
        if not planes or not set(planes) <= set(CHANNELS):
            raise ValueError(f"planes are of {', '.join(CHANNELS)}")
        return planes


class ViT(nn.Module):
    """Frozen or trainable. An absent plane's pixels are 0 and add nothing; a vector of its own marks its absence."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        if config.size % config.patch or config.width % config.heads:
            raise ValueError(
                f"image encoder (vit): patch {config.patch} must divide size {config.size}, and {config.heads} heads "
                f"the width {config.width}"
            )
        self.config = config
        self.width, self.size = config.width, config.size
        self.patches = (config.size // config.patch) ** 2
        self.embed = nn.Linear(len(CHANNELS) * config.patch**2, config.width, bias=False)
        self.place = nn.Embedding(self.patches, config.width)
        self.absent = nn.Embedding(len(CHANNELS), config.width)
        self.transformer = Transformer(config.width, config.layers, config.heads)

    @classmethod
    def build(cls, config: ViTConfig) -> Self:
        if config.weights != weights.RANDOM:
            raise ValueError(
                f"image encoder (vit): weights = {config.weights!r} is neither `random` nor an exported model's folder"
            )
        return weights.initialise(weights.empty(lambda: cls(config)), config.seed, "image encoder (vit)")

    @classmethod
    def skeleton(cls, config: ViTConfig, folder: Path) -> Self:
        """Without values, for a state dict to fill."""
        return weights.empty(lambda: cls(config))

    def save_files(self, folder: Path) -> None:
        """Nothing: the configuration says it all."""

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides the features."""
        return {"size": self.size, "patch": self.config.patch, "heads": self.config.heads}

    def forward(self, images: Images, change: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tokens:
        """Patches after the last norm. change: what becomes of the embedded patches [I, P, W], before their places."""
        count = len(images.pixels)
        rows = change(self.embed(self.cells(images).to(self.embed.weight.dtype)))
        planes, places = (torch.arange(size, device=rows.device) for size in (len(CHANNELS), self.patches))
        absent = (~images.present).to(rows.dtype) @ self.absent(planes)
        rows = rows + self.place(places) + absent[:, None]
        offsets = torch.arange(count + 1, device=rows.device) * self.patches
        return _tokens(self.transformer(rows.flatten(0, 1), offsets), images, self.patches)

    def cells(self, images: Images) -> Tensor:
        """float32 [I, P, 4 · patch²]: each image's patches, row by row, a patch's pixels plane by plane."""
        assert images.pixels.shape[1:] == (len(CHANNELS), self.size, self.size), f"images {images.pixels.shape}"
        side = self.config.patch
        cells = images.pixels.unfold(2, side, side).unfold(3, side, side)  # [I, 4, rows, columns, side, side]
        return cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class Vision(nn.Module):
    """Frozen or trainable. model: the `transformers` module; its last hidden states end with the patches."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: VisionConfig, model: Any, mean: list[float], deviation: list[float]):
        super().__init__()
        self.config = config
        found = model.config
        size, patch = getattr(found, "image_size", None), getattr(found, "patch_size", None)
        channels, planes = getattr(found, "num_channels", 3), len(config.planes)
        if not isinstance(size, int) or not isinstance(patch, int) or channels != planes:
            raise ValueError(
                f"image encoder (vision): {config.weights} is no model of square patches over {planes} planes: it has "
                f"image_size {size!r}, patch_size {patch!r}, num_channels {channels!r}; `planes` names one for each "
                f"channel, {', '.join(config.planes)} now"
            )
        if (len(mean), len(deviation)) != (planes, planes):
            raise ValueError(
                f"image encoder (vision): the preprocessor_config.json of {config.weights} has {len(mean)} means and "
                f"{len(deviation)} deviations; the model has {planes} planes"
            )
        if hasattr(model, "pooler"):
            model.pooler = None
        self.model = model
        self.width: int = found.hidden_size
        self.size, self.patches = size, (size // patch) ** 2
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None])

    @classmethod
    def build(cls, config: VisionConfig) -> Self:
        from transformers import AutoModel

        what = "image encoder (vision)"
        if config.weights == weights.RANDOM:
            raise ValueError(f'{what}: random weights are for `kind = "vit"`')
        folder = weights.locate(config.weights, what)
        try:
            with weights.quiet_transformers():
                model, report = AutoModel.from_pretrained(
                    folder, local_files_only=True, dtype=torch.float32, weights_only=True, output_loading_info=True
                )
        except (OSError, ValueError) as error:
            raise ValueError(f"{what}: {folder} does not load as a folder of transformers: {error}") from error
        if missing := sorted(name for name in report["missing_keys"] if "pooler." not in name):
            raise ValueError(f"{what}: {folder} lacks {len(missing)} of its weights, the first being {missing[0]}")
        return cls(config, model, *_colours(folder, len(config.planes)))

    @classmethod
    def skeleton(cls, config: VisionConfig, folder: Path) -> Self:
        """The same module from `save_files`' folder, its values to be filled by a state dict."""
        from transformers import AutoConfig, AutoModel

        described, planes = AutoConfig.from_pretrained(folder / FILES, local_files_only=True), len(config.planes)
        with torch.random.fork_rng(devices=[]), weights.quiet_transformers():
            return cls(config, AutoModel.from_config(described, dtype=torch.float32), [0.0] * planes, [1.0] * planes)

    def save_files(self, folder: Path) -> None:
        """The model's configuration; the colours' statistics are in the state."""
        self.model.config.save_pretrained(folder / FILES)

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides the features."""
        return {"size": self.size, "planes": self.config.planes, "model": weights.described(self.model.config)}

    def forward(self, images: Images) -> Tokens:
        """The patches' last hidden states; class and register tokens stay behind."""
        values = self.mean.new_zeros(0, self.width)
        if len(images.pixels):
            colours = images.pixels[:, [CHANNELS.index(name) for name in self.config.planes]]
            scaled = ((colours - self.mean) / self.deviation).to(self.mean.dtype)  # the weights' own
            hidden = self.model(pixel_values=scaled).last_hidden_state
            values = hidden[:, -self.patches :].flatten(0, 1)
        return _tokens(values, images, self.patches)


def _tokens(values: Tensor, images: Images, patches: int) -> Tokens:
    positions = torch.arange(patches, device=values.device).repeat(len(images.pixels))
    return Tokens(values, images.offsets * patches, positions)


def _colours(folder: Path, planes: int) -> tuple[list[float], list[float]]:
    """(mean, deviation) of each plane that the folder's preprocessor states; 0.5 and 0.5 where it states none."""
    path = folder / "preprocessor_config.json"
    stated = json.loads(path.read_text()) if path.is_file() else {}
    return stated.get("image_mean", [0.5] * planes), stated.get("image_std", [0.5] * planes)
