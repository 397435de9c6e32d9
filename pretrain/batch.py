"""What flows through a step: a `Batch` before the encoders, `Features` after them, `Losses` or `Embeddings` at the end.

Nothing is padded. A modality's rows for the whole batch lie end to end, `offsets[B + 1]` says where each protein's
begin and end, and an absent modality is a segment of length zero. Before the encoders modalities differ, so `Batch` has
a field for each; after them all are `Tokens`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from pretrain.sample import Modality

HIDDEN = 0  # the ASCII code of a residue that is not told


def lengths_of(offsets: Tensor) -> Tensor:
    """int64 [B]: rows per protein."""
    return offsets[1:] - offsets[:-1]


def offsets_of(lengths: Tensor) -> Tensor:
    """int64 [B + 1]: 0 and the running sum of `lengths` [B]."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def owners_of(offsets: Tensor) -> Tensor:
    """int64 [N]: which protein of the batch each row belongs to."""
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), lengths_of(offsets))


@dataclass(frozen=True, eq=False)
class Sequences:
    """letters: uint8 [N], ASCII one-letter codes, or HIDDEN. offsets: int64 [B + 1]. Positions are 0..length−1 of each
    protein."""

    letters: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class Structures:
    """One drawn structure per protein that has any.

    coordinates: float32 [N, 4, 3] in Å, atoms as `pretrain.sample.BACKBONE`, 0 where `mask` [N, 4] bool is False.
    letters: uint8 [N], the chain's own residues. positions: int64 [N], 0-based residue in the full sequence.
    confidence: float32 [N], pLDDT 0–100; 100 for experiments. offsets: int64 [B + 1]. states: uint8 [N], letters of the
    3Di alphabet, 0 where the shard has none; None where nobody has asked.
    """

    coordinates: Tensor
    mask: Tensor
    letters: Tensor
    positions: Tensor
    confidence: Tensor
    offsets: Tensor
    states: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Texts:
    """ids: int64 [N], the text encoder's word pieces without BOS/EOS, a text per protein. offsets: int64 [B + 1]."""

    ids: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """pixels: float32 [I, 4, H, W] in 0..1, planes as `pretrain.sample.CHANNELS`, 0 where `present` [I, 4] is False.

    offsets: int64 [B + 1], counting images (a protein may have several).
    """

    pixels: Tensor
    present: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class Labels:
    """values: float32 [N], as `pretrain.data.labels` has them; of residues one for each of the protein's, NaN where it
    is not known. offsets: int64 [B + 1]. present: bool [B], for a label may have no values."""

    values: Tensor
    offsets: Tensor
    present: Tensor


@dataclass(frozen=True, eq=False)
class Terms:
    """ids: int64 [N], the direct GO terms' rows in the model's vocabulary. offsets: int64 [B + 1]."""

    ids: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch of B proteins, B ≥ 0.

    slots: int64 [B], each protein's place in its step; with `seed` and `step` it keys every random draw, so a draw is
        the same on whatever rank and micro-batch the protein lands.
    window: int64 [B, 2], the residues [start, stop) that fusion sees; cropping follows encoding.
    lengths: modality → int64 [B], tokens that fusion sees after encoding and cropping (0 where absent). Known before
        anything is encoded, so a step's loss denominators are too.
    stored: modality → its tokens, of those whose features are read and not computed: bfloat16, cropped to the window.
        The same modalities in every batch of a run.
    labels: of the proteins that have one; None where nobody packed a step.
    view: the same proteins drawn once more, where a model compares them with themselves (`pretrain.data.draw`). A
        modality has tokens there only if the protein has it here, too.
    terms: None where the model reads none.
    """

    keys: tuple[str, ...]
    seed: int
    step: int
    slots: Tensor
    window: Tensor
    lengths: Mapping[Modality, Tensor]
    sequence: Sequences
    structure: Structures
    function: Texts
    image: Images
    stored: Mapping[Modality, "Tokens"] = field(default_factory=dict)
    labels: Labels | None = None
    view: "Batch | None" = None
    terms: Terms | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> "Batch":
        return _to(self, device)


@dataclass(frozen=True, eq=False)
class Tokens:
    """values: [N, D]. offsets: int64 [B + 1]. positions: int64 [N], 0-based residue, word piece or patch position."""

    values: Tensor
    offsets: Tensor
    positions: Tensor

    @property
    def lengths(self) -> Tensor:
        return lengths_of(self.offsets)

    @property
    def owners(self) -> Tensor:
        return owners_of(self.offsets)

    def select(self, rows: Tensor) -> "Tokens":
        """The tokens where `rows` (bool [N]) is True, still grouped by protein."""
        kept = torch.zeros(len(self.offsets) - 1, dtype=torch.int64, device=rows.device)
        kept = kept.index_add(0, self.owners, rows.to(torch.int64))
        return Tokens(self.values[rows], offsets_of(kept), self.positions[rows])

    def crop(self, window: Tensor) -> "Tokens":
        """The tokens whose position lies in their protein's `window` (int64 [B, 2], [start, stop))."""
        bounds = window[self.owners]
        inside = (self.positions >= bounds[:, 0]) & (self.positions < bounds[:, 1])
        return self if bool(inside.all()) else self.select(inside)

    def to(self, device: torch.device | str) -> "Tokens":
        return _to(self, device)


Features = dict[str, Tokens]  # by modality; those of a batch's view by `of_view`


def of_view(modality: Modality) -> str:
    """What a modality's features, vectors and so on are called that are of `Batch.view`."""
    return f"{modality}/view"


def text_codes(batch: Batch) -> Tensor:
    """int64 [B], on the CPU: a hash of each protein's word pieces, equal for equal texts (0 for no text)."""
    return _codes(batch.function, b"")


def term_codes(batch: Batch) -> Tensor:
    """int64 [B], on the CPU: a hash of each protein's GO terms, equal for the same ones (0 for none), unlike texts'."""
    assert batch.terms is not None, "the loader was given no vocabulary (InputSpec.terms)"
    return _codes(batch.terms, b"terms")


def protein_codes(batch: Batch) -> Tensor:
    """int64 [B], on the CPU: a hash of each protein's key."""
    return torch.tensor([_number(key.encode(), b"protein") for key in batch.keys], dtype=torch.int64)


def _number(data: bytes, kind: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8, person=kind).digest(), "little", signed=True)


def _codes(said: Texts | Terms, kind: bytes) -> Tensor:
    ids, offsets = said.ids.cpu().numpy(), said.offsets.tolist()
    spans = [ids[start:stop].tobytes() for start, stop in pairwise(offsets)]
    return torch.tensor([_number(span, kind) if span else 0 for span in spans], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Loss:
    """One term of one micro-batch: a sum over `count` elements, never a mean.

    The engine divides by the count over all ranks and micro-batches of the step, so a term means the same however the
    step is cut. `sum` is a scalar attached to the graph, exactly 0 when `count` is 0.
    """

    sum: Tensor
    count: int
    weight: float = 1.0


Losses = dict[str, Loss]
Task = Literal["losses", "negatives", "embeddings", "latents"]  # what a model's `forward` is asked for


def check_announced(batch: Batch, features: Features, modalities: Iterable[Modality]) -> None:
    """The encoders gave as many tokens as the batch said beforehand: a step's denominators are made of those."""
    for m in modalities:
        announced, found = batch.lengths[m].tolist(), features[m].lengths.tolist()
        assert announced == found, f"{m}: the batch announced tokens {announced}, the encoder gave {found}"


@dataclass(frozen=True, eq=False)
class Latents:
    """What a model makes of every token. tokens: modality → its latents, width D. global_token: [B, D]."""

    tokens: dict[Modality, Tokens]
    global_token: Tensor


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One vector per protein. values: modality → [B, D], that modality encoded alone; 0 where `present` [B] is False.

    fused: [B, D], all that a protein has encoded together.
    """

    values: Mapping[Modality, Tensor]
    present: Mapping[Modality, Tensor]
    fused: Tensor


T = TypeVar("T")
R = TypeVar("R", Sequences, Structures)


def of_proteins(record: R, shown: Tensor) -> R:
    """The rows of the proteins in `shown` (bool [B]); the others have none."""
    rows = shown[owners_of(record.offsets)]
    every = {f.name: getattr(record, f.name) for f in fields(record) if f.name != "offsets"}
    kept = {name: value[rows] for name, value in every.items() if value is not None}
    return replace(record, **kept, offsets=offsets_of(lengths_of(record.offsets) * shown))


def _to(record: T, device: torch.device | str) -> T:
    """The record with every tensor, nested ones too, on `device`."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, Mapping):
            return {key: move(item) for key, item in value.items()}
        return _to(value, device) if is_dataclass(value) else value

    return replace(record, **{f.name: move(getattr(record, f.name)) for f in fields(record)})  # type: ignore
