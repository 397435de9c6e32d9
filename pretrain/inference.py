"""An exported model: proteins in, embeddings out, and search among them. Needs no deepspeed, no ray and no data set.

Nothing is drawn here. All tokens are visible, and of several structures, texts or images the first ones are taken; so
a protein's embedding depends on the protein alone, not on a seed, its neighbours or their number.

What encoders cannot take is cut as in training: the first `sequence_max` residues of a protein, and the structure's
residues among them; the first word pieces of a text. Proteins that lose residues are named, in log and result.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from pretrain import intake, models
from pretrain.batch import Tokens
from pretrain.config import Config, validate
from pretrain.data.collate import collate
from pretrain.data.draw import WHOLE, InputSpec, sees
from pretrain.embeddings import Embeddings, Hit, Residues, check_format, named
from pretrain.encoders.bundle import Encoders, EncodersConfig
from pretrain.encoders.weights import refuse_run
from pretrain.models.amma import Amma
from pretrain.models.bihierarchical import Bihierarchical
from pretrain.objectives.joint import Supervised
from pretrain.prediction import Predictions, Told
from pretrain.sample import Function, Modality, Sample, Text

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TRAINING_ONLY = (
    "decoders",
    "trained",
    "objective",
    "temperatures",
)  # what a model is trained with; an exported one does without, but for a head that tells labels
BATCH = 8192  # residues, word pieces and patches of one batch, by default
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Exported:
    """A trained model with the encoders it names, ready to use.

    config: the folder's `config.json`. centres: modality → [D], the mean embedding of training proteins.
    """

    model: models.Model
    encoders: Encoders
    config: Mapping[str, Any]
    device: torch.device
    centres: Mapping[Modality, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.model, Bihierarchical):
            self.model.borrow(self.encoders.share(self.model.modalities))

    @property
    def sha256(self) -> str:
        """Of the weights: the model's name."""
        return self.config["weights"]["sha256"]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return self.model.modalities

    def sees(self, sample: Sample) -> bool:
        """Whether the protein has anything that this model takes (function: a text, or GO terms if it reads these)."""
        return sees(sample, self.spec())

    def spec(self) -> InputSpec:
        """What the model takes of a protein."""
        return replace(self.encoders.spec(), terms=models.known_terms(self.model))

    def embed(self, samples: Sequence[Sample], per_residue: bool = False, batch: int = BATCH) -> Embeddings:
        """Embed proteins; the result has their order. batch: tokens that go through the model together.

        Raises ValueError for no proteins at all and, naming them, for repeated keys, for proteins with none of the
        model's modalities, and for embeddings that are not finite.
        """
        rows, truncated = self._each(partial(self._forward, per_residue=per_residue), samples, batch)
        return _join([sample.key for sample in samples], rows, self, truncated, per_residue)

    def _each(
        self, tell: Callable[[list[Sample], InputSpec], Iterable[T]], samples: Sequence[Sample], batch: int
    ) -> tuple[list[T], tuple[str, ...]]:
        """What `tell` makes of each protein, a batch of them at a time, in their order; and who loses residues."""
        spec = replace(self.spec(), crop=WHOLE)
        plain = [intake.first(sample, spec) for sample in samples]
        truncated = intake.check(plain, spec)
        parts: dict[int, T] = {}
        for chosen in intake.batches(plain, batch):
            parts |= zip(chosen, tell([plain[i] for i in chosen], spec), strict=True)
        return [parts[i] for i in range(len(plain))], truncated

    @torch.inference_mode()
    def _forward(self, samples: list[Sample], spec: InputSpec, per_residue: bool) -> list["_Row"]:
        """The rows of one batch; every draw that `collate` could make has been made."""
        batch = collate(samples, range(len(samples)), 0, 0, spec).to(self.device)
        features = self.encoders(batch)
        found: Any = self.model(features, batch, task="embeddings")
        latents: Any = self.model(features, batch, task="latents") if per_residue else None
        residues = _residues(latents.tokens) if per_residue else [None] * len(samples)
        alone = {m: values.float().cpu().numpy() for m, values in found.values.items()}
        present = {m: values.cpu().numpy() for m, values in found.present.items()}
        fused = found.fused.float().cpu().numpy()
        return [
            _Row(
                fused[i],
                {m: rows[i] for m, rows in alone.items()},
                {m: bool(rows[i]) for m, rows in present.items()},
                part,
            )
            for i, part in enumerate(residues)
        ]

    def predict(self, samples: Sequence[Sample], batch: int = BATCH) -> Predictions:
        """The labels of proteins, as a supervised model (`model.objective.kind`) has learnt to tell them.

        Raises ValueError for a model that has learnt none, and what `embed` raises.
        """
        head = getattr(self.model, "objective", None)
        if not isinstance(head, Supervised):
            raise ValueError(
                f"this model ({self.model.config.kind}) tells no labels; one that does is of kind bihierarchical, with "
                "model.objective.kind = supervised and data.labels; where this one is, export it again"
            )
        told, truncated = self._each(partial(self._tell, head), samples, batch)
        return Predictions.of_parts(tuple(sample.key for sample in samples), head.config.task, truncated, told)

    @torch.inference_mode()
    def _tell(self, head: Supervised, samples: list[Sample], spec: InputSpec) -> list[Told]:
        batch = collate(samples, range(len(samples)), 0, 0, spec).to(self.device)
        latents: Any = self.model(self.encoders(batch), batch, task="latents")
        if head.config.task != "residue":
            return [(values, None) for values in head.told(latents.global_token).cpu().numpy()]
        rows = ((torch.from_numpy(values).to(self.device), at) for values, at in _residues(latents.tokens))
        return [(head.told(values).cpu().numpy(), at) for values, at in rows]

    def search(
        self, query: Sample | str, embeddings: Embeddings, k: int = 10, by: Sequence[Modality] | None = None
    ) -> list[Hit]:
        """The k best of `embeddings` for a protein, or for a text (a `str`), best first; ties by key.

        Scores are those of `Embeddings.nearest`. By default a text is compared with what a protein is (all but its own
        function text), and a protein like with like.

        Raises ValueError for embeddings of another model, for a text that looks like a sequence, and for any text where
        the model has no function.
        """
        if embeddings.model != self.sha256:
            raise ValueError(
                f"the embeddings were made by the model {embeddings.model[:12]}…, this is {self.sha256[:12]}…; their "
                "spaces differ. Embed the proteins with this model"
            )
        if isinstance(query, str):
            if Modality.FUNCTION not in self.modalities:
                raise ValueError(f"this model reads no texts, only {', '.join(self.modalities)}; search for a protein")
            if by is None:
                by = [m for m in self.modalities if m is not Modality.FUNCTION]
            query = _text_query(query)
        own = self.embed([query])
        asked = {m: own.alone[m][0] for m, present in own.present.items() if present[0]}
        return embeddings.nearest(asked, k, by)

    @torch.inference_mode()
    def attention(self, sample: Sample, by: Modality = Modality.FUNCTION, of: Modality = Modality.SEQUENCE) -> Residues:
        """How much the tokens of `by` attend to each token of `of`: values [L, layers], with their positions.

        Raises ValueError for a model without both, or whose encoder has not learnt to join them (AMMA's has, but not in
        its contrastive variant), and for a sample that lacks one.
        """
        if not isinstance(self.model, Amma) or self.model.contrastive or not {by, of} <= set(self.modalities):
            variant = f" ({self.model.config.variant})" if isinstance(self.model, Amma) else ""
            raise ValueError(
                f"attention from {by} to {of} needs a model of kind amma that has both and learnt by reconstruction; "
                f"this one is {self.model.config.kind}{variant} with {', '.join(self.modalities)}"
            )
        spec = replace(self.encoders.spec(), crop=WHOLE)
        features = self.encoders(collate([intake.first(sample, spec)], [0], 0, 0, spec).to(self.device))
        if lacking := [m for m in (by, of) if not len(features[m].values)]:
            raise ValueError(f"{sample.key} has no {' and no '.join(lacking)}; attention from {by} to {of} needs both")
        found = self.model.looks(features, by, of)
        return Residues(*(part.cpu().numpy() for part in (found.values.float(), found.positions, found.offsets)))


def load(folder: str | Path, device: str = "cpu") -> Exported:
    """Open an exported model, in float32. ValueError for a folder that is none, is damaged, or is of a newer format."""
    folder = Path(folder)
    config = read_config(folder)
    data = folder / WEIGHTS
    if not data.is_file():
        raise ValueError(f"{data} is missing: the folder was copied in part; copy it again, or export again")
    with data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != config["weights"]["sha256"]:
        raise ValueError(
            f"{data} is not the file that was exported (its SHA-256 differs); copy it again, or export again"
        )
    encoders = Encoders.skeleton(validate(EncodersConfig, config["encoders"], str(folder / CONFIG)), folder)
    asked = validate(_Asked, {"model": config["model"]}, str(folder / CONFIG))
    with safe_open(data, "pt") as file:
        own, frozen = _part(file, "model."), _part(file, "encoders.")
        beside = {m: encoder for m, encoder in encoders.items() if m in asked.model.trains}
        model = models.build(asked.model, encoders.widths(), beside, models.terms_of(asked.model, own))
        strip(model, told=any(name.startswith("objective.") for name in own))  # older exports have no head
        for tensors, module in ((own, model), (frozen, encoders)):
            _fill(module, tensors, data)
        stored = [m for m in Modality if f"centres.{m}" in file.keys()]  # noqa: SIM118
        centres = {m: file.get_tensor(f"centres.{m}").float().numpy() for m in stored}
    place = torch.device(device)
    return Exported(model.to(place).eval(), encoders.to(place).eval(), config, place, centres)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`, checked as far as a format goes."""
    refuse_run(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} is no exported model: there is no {CONFIG} in it; `fourfold export RUN OUT` writes one"
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
        check_format(config["format"], folder / CONFIG)
        _ = config["weights"]["sha256"], config["model"]["kind"], config["encoders"]  # what `load` will ask for
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder / CONFIG} is damaged ({type(error).__name__}: {error}); export the model again"
        ) from error
    return config


class _Asked(Config):
    model: models.ModelConfig


def strip(model: nn.Module, told: bool = True) -> None:
    """Take away, in place, what only training uses. told: keep the head that labels are told by."""
    for name in TRAINING_ONLY:
        if hasattr(model, name) and not (told and isinstance(getattr(model, name), Supervised)):
            setattr(model, name, None)


@dataclass(frozen=True, eq=False)
class _Row:
    """One protein's part of `Embeddings`. residues: (values, positions)."""

    fused: NDArray[np.float32]
    alone: dict[Modality, NDArray[np.float32]]
    present: dict[Modality, bool]
    residues: tuple[NDArray[np.float32], NDArray[np.int64]] | None


def _residues(latents: dict[Modality, Tokens]) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Per protein the latents of its sequence, or of its structure where there is no sequence, with their positions."""
    kinds = [latents[m] for m in (Modality.SEQUENCE, Modality.STRUCTURE) if m in latents]
    width, count = next(iter(latents.values())).values.shape[1], len(next(iter(latents.values())).lengths)
    found = []
    for i in range(count):
        spans = [(tokens, slice(*tokens.offsets[i : i + 2].tolist())) for tokens in kinds]
        part = next(
            ((tokens.values[span], tokens.positions[span]) for tokens, span in spans if span.stop > span.start), None
        )
        values, positions = part or (torch.zeros(0, width), torch.zeros(0, dtype=torch.int64))
        found.append((values.float().cpu().numpy(), positions.cpu().numpy()))
    return found


def _join(keys: list[str], rows: list[_Row], by: Exported, truncated: tuple[str, ...], per_residue: bool) -> Embeddings:
    broken = [key for key, row in zip(keys, rows, strict=True) if not np.isfinite(row.fused).all()]
    if broken:
        raise ValueError(
            f"{named(broken)}: the embedding is not finite; the model has diverged, or the input breaks it"
        )
    residues = None
    if per_residue:
        parts = [row.residues for row in rows if row.residues is not None]
        residues = Residues(
            np.concatenate([values for values, _ in parts]),
            np.concatenate([positions for _, positions in parts]),
            np.cumsum([0, *(len(positions) for _, positions in parts)], dtype=np.int64),
        )
    return Embeddings(
        keys=tuple(keys),
        fused=np.stack([row.fused for row in rows]),
        alone={m: np.stack([row.alone[m] for row in rows]) for m in by.modalities},
        present={m: np.array([row.present[m] for row in rows]) for m in by.modalities},
        model=by.sha256,
        truncated=truncated,
        residues=residues,
        centres=dict(by.centres),
    )


def _text_query(text: str) -> Sample:
    if not text.strip():
        raise ValueError("the text to search for is empty")
    if len(text) >= 20 and text.isalpha() and text.isupper():
        raise ValueError(
            f"{text[:20]}… looks like a sequence; search for it as a protein: Sample('query', sequence=...)"
        )
    return Sample("query", function=Function(texts=(Text(text, "query"),)))


def _part(file: Any, prefix: str) -> dict[str, torch.Tensor]:
    """The file's tensors of one module, floating ones in float32."""
    names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
    found = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def _fill(module: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights. Raises ValueError, naming the first that does not fit."""
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if differ := sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name)):
        name = differ[0]
        raise ValueError(
            f"{path}: {len(differ)} tensor(s) do not fit {CONFIG}, first {name}: {found.get(name)} in the file, "
            f"{own.get(name)} expected"
        )
    module.load_state_dict(tensors)
