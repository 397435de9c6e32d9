"""Validation during training, over all ranks' held-out proteins: loss by modality, retrieval between modalities, and
whether embeddings still tell proteins apart."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.batch import Batch, Losses, text_codes
from pretrain.evaluation.metrics import Cloud, Retrieval, alignment, cloud, recall_at_k
from pretrain.sample import Modality

# By a run's precision: how far embeddings of length 1 lie apart that are one but for their arithmetic, through a deep
# network. Embeddings come as float32 whatever the layers before computed in.
ROUNDING = {"fp32": 1e-6, "bf16": torch.finfo(torch.bfloat16).eps}
Embedded = dict[Modality, tuple[Tensor, Tensor]]  # modality → embeddings [B, D], present bool [B]
Forward = Callable[[Batch], tuple[Losses, Embedded]]


@dataclass(frozen=True)
class Validation:
    """What one pass over held-out proteins found; equal on every rank.

    loss: Σ weight × mean over the terms. losses: term → mean over its elements on all ranks; a term that counted
        nothing is left out, because a mean over nothing is no result. retrieval: `sequence-structure` → recall over the
        proteins that have both. centred: the same after each modality's mean over those proteins is subtracted; it
        tells whether modalities agree although their clouds lie apart. alignment: pair → how far the two lie apart.
        embeddings: modality → how its embeddings lie; of those that at least two proteins have. samples: proteins seen.
        not_finite: embeddings that were left out of all this because they are not numbers.
    """

    loss: float
    losses: dict[str, float]
    retrieval: dict[str, Retrieval]
    centred: dict[str, Retrieval]
    alignment: dict[str, float]
    embeddings: dict[str, Cloud]
    samples: int
    not_finite: int = 0

    def record(self) -> dict[str, object]:
        """Plain JSON, as the log holds it."""
        return asdict(self)


@dataclass
class Best:
    """The lowest validation loss so far, and the step that had it; none yet at step None."""

    step: int | None = None
    loss: float = math.inf

    def improve(self, step: int, loss: float) -> bool:
        """Take note of a validation; whether it is the best so far."""
        if not loss < self.loss:
            return False
        self.step, self.loss = step, loss
        return True

    def state(self) -> dict[str, Any]:
        """Plain JSON, which knows no infinity."""
        return {"step": self.step, "loss": None if self.step is None else self.loss}

    @staticmethod
    def restored(state: Mapping[str, Any] | None) -> "Best":
        """From a checkpoint's state."""
        return Best(state["step"], float(state["loss"])) if state and state["step"] is not None else Best()


@dataclass
class _Rows:
    """This rank's embeddings of one modality so far, on the CPU."""

    values: list[Tensor] = field(default_factory=list)
    present: list[Tensor] = field(default_factory=list)
    width: int = 0

    def add(self, values: Tensor, present: Tensor) -> int:
        """Take these rows in; those that are not finite are left out. Returns how many these were."""
        self.width = values.shape[1]
        values, present = values.detach().float().cpu(), present.cpu().bool()
        finite = values.isfinite().all(1)
        self.values.append(values.masked_fill(~finite.unsqueeze(1), 0.0))
        self.present.append((present & finite).to(torch.uint8))
        return int((present & ~finite).sum())


@dataclass(frozen=True)
class _Embeddings:
    """Every rank's embeddings of one modality, in rank order: values [N, D], present bool [N]."""

    values: Tensor
    present: Tensor

    def of(self, which: Tensor) -> Tensor:
        """float64 [n, D]: the rows where `which` [N] is true."""
        return self.values[which].double()


def validate(forward: Forward, batches: Iterable[Batch], k: int = 10, precision: str = "fp32") -> Validation:
    """Run `forward` over this rank's held-out batches, without gradient, and join what all ranks found. precision: that
    of `forward`, `fp32` or `bf16`.

    Ranks may have different numbers of batches, also none: nothing is communicated before the last batch is done, and
    then the same collectives run everywhere. (Whoever passes a `forward` that communicates owes it equal numbers.)
    Embeddings that are not finite are left out, and counted.
    """
    terms: dict[str, list[float]] = {}  # name → [sum, count, weight]
    rows = {modality: _Rows() for modality in Modality}
    texts: list[Tensor] = []
    samples = broken = 0
    with torch.no_grad():
        for batch in batches:
            losses, embedded = forward(batch)
            samples += len(batch)
            texts.append(text_codes(batch))
            for name, loss in losses.items():
                term = terms.setdefault(name, [0.0, 0.0, loss.weight])
                term[0] += float(loss.sum.detach())
                term[1] += int(loss.count)
            for modality, (values, present) in embedded.items():
                broken += rows[modality].add(values, present)
    means, weights = _join(terms)
    every = {modality: found for modality, part in rows.items() if (found := _gather(part)) is not None}
    codes, _ = distributed.gather_rows(torch.cat([torch.zeros(0, dtype=torch.int64), *texts]).to(distributed.device()))
    return Validation(
        loss=sum(weights[name] * mean for name, mean in means.items()),
        losses=means,
        **_between(every, codes, k),
        embeddings=_clouds(every, ROUNDING[precision]),
        samples=_sum(samples),
        not_finite=_sum(broken),
    )


def _sum(count: int) -> int:
    """Over all ranks."""
    return sum(int(n) for n in distributed.gather_objects(count))  # type: ignore[call-overload]


def _join(terms: dict[str, list[float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Every rank's terms as (name → mean, name → weight). A rank without batches knows no names, hence objects."""
    total: dict[str, list[float]] = {}
    for found in distributed.gather_objects(terms):
        assert isinstance(found, dict)
        for name, (value, count, weight) in found.items():
            term = total.setdefault(name, [0.0, 0.0, weight])
            term[0], term[1] = term[0] + value, term[1] + count
    counted = {name: total[name] for name in sorted(total) if total[name][1]}
    return {name: t[0] / t[1] for name, t in counted.items()}, {name: t[2] for name, t in counted.items()}


def _between(every: Mapping[Modality, _Embeddings], codes: Tensor, k: int) -> dict[str, Any]:
    """Recall, plain and centred, and alignment of each pair of modalities that at least one protein has."""
    found: dict[str, dict[str, Any]] = {"retrieval": {}, "centred": {}, "alignment": {}}
    for a, b in combinations(every, 2):
        both = every[a].present & every[b].present
        if not bool(both.any()):
            continue
        left, right = every[a].of(both), every[b].of(both)
        texts = _texts(codes[both]) if Modality.FUNCTION in (a, b) else None
        with _named(f"{a}-{b}"):
            found["retrieval"][f"{a}-{b}"] = recall_at_k(left, right, k, texts)
            found["centred"][f"{a}-{b}"] = recall_at_k(left - left.mean(0), right - right.mean(0), k, texts)
            found["alignment"][f"{a}-{b}"] = alignment(left, right)
    return found


def _texts(codes: Tensor) -> list[Hashable]:
    """What is equal where texts are: function may be GO terms without a text, and these have nothing in common."""
    return [code or ("no text", i) for i, code in enumerate(codes.tolist())]


def _clouds(every: Mapping[Modality, _Embeddings], rounding: float) -> dict[str, Cloud]:
    clouds = {}
    for modality, found in every.items():
        if int(found.present.sum()) >= 2:
            with _named(modality):
                clouds[modality.value] = cloud(found.of(found.present), rounding)
    return clouds


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"validation, {what}: {error}") from error


def _gather(part: _Rows) -> _Embeddings | None:
    """Every rank's embeddings; None where no rank has any. Collective."""
    widths: Any = distributed.gather_objects(part.width)
    width = max(widths)  # a rank without a batch does not know it
    if not width:
        return None
    place = distributed.device()
    values, _ = distributed.gather_rows(torch.cat([torch.zeros(0, width), *part.values]).to(place))
    present, _ = distributed.gather_rows(torch.cat([torch.zeros(0, dtype=torch.uint8), *part.present]).to(place))
    return _Embeddings(values, present.bool())
