"""Validation during training: loss by modality and retrieval between modalities, over all ranks' held-out proteins."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.batch import Batch, Losses
from pretrain.evaluation.metrics import Retrieval, recall_at_k
from pretrain.sample import Modality

Embedded = dict[Modality, tuple[Tensor, Tensor]]  # modality → embeddings [B, D], present bool [B]
Forward = Callable[[Batch], tuple[Losses, Embedded]]


@dataclass(frozen=True)
class Validation:
    """What one pass over held-out proteins found; equal on every rank.

    loss: Σ weight × mean over the terms. losses: term → mean over its elements on all ranks; a term that counted
        nothing is left out, because a mean over nothing is no result. retrieval: `sequence-structure` → recall over the
        proteins that have both. centred: the same after each modality's mean over those proteins is subtracted; it
        tells whether modalities agree although their clouds lie apart. samples: proteins seen.
    """

    loss: float
    losses: dict[str, float]
    retrieval: dict[str, Retrieval]
    centred: dict[str, Retrieval]
    samples: int

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

    @staticmethod
    def restored(state: Mapping[str, Any] | None) -> "Best":
        """From a checkpoint's state."""
        return Best(state["step"], float(state["loss"])) if state and state["step"] is not None else Best()


@dataclass
class _Rows:
    """This rank's embeddings of one modality so far, on the CPU."""

    values: list[Tensor] = field(default_factory=list)
    present: list[Tensor] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.values[0].shape[1] if self.values else 0


def validate(forward: Forward, batches: Iterable[Batch], k: int = 10) -> Validation:
    """Run `forward` over this rank's held-out batches, without gradient, and join what all ranks found.

    Ranks may have different numbers of batches, also none: nothing is communicated before the last batch is done, and
    then the same collectives run everywhere. (Whoever passes a `forward` that communicates owes it equal numbers.)
    Raises ValueError, naming the modality pair, for embeddings that are not finite.
    """
    terms: dict[str, list[float]] = {}  # name → [sum, count, weight]
    rows = {modality: _Rows() for modality in Modality}
    texts: list[Tensor] = []
    samples = 0
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
                rows[modality].values.append(values.detach().float().cpu())
                rows[modality].present.append(present.to("cpu", torch.uint8))
    means, weights = _join(terms)
    plain, centred = _retrieval(rows, texts, k)
    return Validation(
        loss=sum(weights[name] * mean for name, mean in means.items()),
        losses=means,
        retrieval=plain,
        centred=centred,
        samples=sum(int(n) for n in distributed.gather_objects(samples)),  # type: ignore[call-overload]
    )


def text_codes(batch: Batch) -> Tensor:
    """int64 [B], on the CPU: a hash of each protein's word pieces, equal for equal texts (0 for no text)."""
    ids, offsets = batch.function.ids.cpu().numpy(), batch.function.offsets.tolist()
    spans = [ids[start:stop] for start, stop in pairwise(offsets)]
    hashes = [int.from_bytes(blake2b(span.tobytes(), digest_size=8).digest(), "little", signed=True) for span in spans]
    return torch.tensor([code if len(span) else 0 for code, span in zip(hashes, spans, strict=True)], dtype=torch.int64)


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


def _retrieval(
    rows: dict[Modality, _Rows], texts: list[Tensor], k: int
) -> tuple[dict[str, Retrieval], dict[str, Retrieval]]:
    """Recall, plain and centred, for each pair of modalities that at least one protein has. Collective: the same calls
    on every rank."""
    every = {modality: found for modality, part in rows.items() if (found := _gather(part)) is not None}
    codes, _ = distributed.gather_rows(torch.cat([torch.zeros(0, dtype=torch.int64), *texts]).to(distributed.device()))
    pairs = [(a, b) for a, b in combinations(every, 2) if bool((every[a][1] & every[b][1]).any())]
    plain = {f"{a}-{b}": _recall(every, a, b, codes, k, centre=False) for a, b in pairs}
    return plain, {f"{a}-{b}": _recall(every, a, b, codes, k, centre=True) for a, b in pairs}


def _gather(part: _Rows) -> tuple[Tensor, Tensor] | None:
    """Every rank's (embeddings, present), in rank order; None where no rank has any. Collective."""
    width = max(int(w) for w in distributed.gather_objects(part.width))  # type: ignore[call-overload]
    if not width:
        return None
    place = distributed.device()  # a rank without a batch has no tensor to ask
    values, _ = distributed.gather_rows(torch.cat([torch.zeros(0, width), *part.values]).to(place))
    present, _ = distributed.gather_rows(torch.cat([torch.zeros(0, dtype=torch.uint8), *part.present]).to(place))
    return values, present.bool()


def _recall(every: Embedded, a: Modality, b: Modality, codes: Tensor, k: int, centre: bool) -> Retrieval:
    both = every[a][1] & every[b][1]
    rows = [every[m][0][both].double() for m in (a, b)]
    rows = [each - each.mean(0) for each in rows] if centre else rows
    texts = codes[both].tolist() if Modality.FUNCTION in (a, b) else None
    try:
        return recall_at_k(rows[0], rows[1], k, texts)
    except ValueError as error:
        raise ValueError(f"validation, {a}-{b}: {error}") from error
