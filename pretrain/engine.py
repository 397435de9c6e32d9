"""DeepSpeed, and nothing else of the project imports it: what trains, how a step is normalised, whose slice is whose.

Losses arrive as sums and counts (`pretrain.batch.Loss`). A step divides each term by its count over all ranks and
micro-batches, known before the first forward pass, and multiplies away DeepSpeed's own averaging; so the gradient is
the one a single process would have on the joined step, whatever is missing on whichever rank.
"""

import contextlib
import gc
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pretrain import distributed
from pretrain.batch import Batch, Features, Losses
from pretrain.config import Config
from pretrain.fragments import STATES, Fragment, owned
from pretrain.layers.transformer import compiled, recompute
from pretrain.objectives.contrastive import collect


class OptimizerConfig(Config):
    """AdamW with linear warm-up and cosine decay to `final` × `lr`, which the step after the last one would have."""

    lr: float = Field(default=3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: int = Field(default=100, ge=0)
    final: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, ge=0)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of `step` (0-based) out of `steps`: a function of the step alone, so no state is saved."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        share = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * share, dtype=torch.float64)).item())
        return self.lr * (self.final + (1 - self.final) * cosine)


class EngineConfig(Config):
    """stage: ZeRO stage. precision: `bf16` keeps fp32 master weights (stage 0: fp32 weights, bf16 autocast).

    accumulate: micro-batches per rank and step. offload: optimizer states in host memory (stages 1–3).
    compile: transformer blocks by torch.compile (stages 0–2). activation_checkpointing: blocks keep their input only
    and run again in the backward pass; the same to the bit.
    """

    stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["fp32", "bf16"] = "bf16"
    accumulate: int = Field(default=1, ge=1)
    offload: bool = False
    compile: bool = False
    activation_checkpointing: bool = False
    timeout_minutes: float = Field(default=30.0, gt=0)

    @model_validator(mode="after")
    def _compilable(self) -> Self:
        if self.compile and self.stage == 3:
            raise ValueError("compile is for stages 0 to 2: at stage 3 parameters come and go around every layer")
        return self


@dataclass(frozen=True)
class StepResult:
    """losses: each term's mean over the whole step, of those that counted anything (a mean over nothing is no 0).

    total: their weighted sum. counts: the denominators. applied: whether the weights were changed; a step whose loss or
    gradient is not finite, or whose loss was not admitted, leaves them, and the moments, as they were. not_finite: the
    ranks whose own losses were not.
    """

    losses: dict[str, float]
    total: float
    counts: dict[str, int]
    gradient_norm: float
    learning_rate: float
    applied: bool = True
    not_finite: tuple[int, ...] = ()


def start(config: EngineConfig) -> torch.device:
    """Join the process group that the launcher's environment describes (a world of one without it)."""
    cuda = _cuda()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(distributed.free_port()))
    deepspeed = _deepspeed()
    timeout = timedelta(minutes=config.timeout_minutes)
    deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timeout, verbose=False)
    if not cuda:
        # The gradient of rows taken several times, x[i], is else added up by threads in whatever order they come.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


class Engine:
    """A model under DeepSpeed. Every method is collective: all ranks call it, in the same order."""

    def __init__(self, model: nn.Module, config: EngineConfig, optimizer: OptimizerConfig, device: torch.device):
        self.config, self.optimizer, self.device = config, optimizer, device
        # Any: DeepSpeed hangs its own attributes on parameters.
        self.parameters: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        self.model = model
        if config.activation_checkpointing:
            recompute(model)
        if config.compile:
            compiled(model)
        self._adamw = adamw = _AdamW(
            _groups(self.parameters, optimizer.weight_decay), lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps
        )
        self.deepspeed, *_ = _deepspeed().initialize(
            model=model.to(device),
            optimizer=adamw,
            config=deepspeed_config(config, optimizer),
            dist_init_required=False,
        )

    def step(
        self,
        batches: Sequence[Batch],
        encode: Callable[[Batch], Features],
        rate: float,
        admit: Callable[[float], bool] = math.isfinite,
    ) -> StepResult:
        """One optimizer step over this rank's micro-batches, exactly `accumulate` of them, some possibly empty.

        admit: decides from the step's total loss, which every rank knows, whether its gradient is applied.
        """
        assert len(batches) == self.config.accumulate, (
            f"{len(batches)} micro-batches, expected {self.config.accumulate}"
        )
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate
        foreseen = [self.deepspeed.module.counts(batch) for batch in batches]
        names, counts = self._denominators(foreseen)
        sums = torch.zeros(len(names), dtype=torch.float64)
        weights, result = dict.fromkeys(names, 0.0), None
        for (batch, features, negatives), own in zip(self._prepared(batches, encode), foreseen, strict=True):
            losses = self._forward(features, batch, negatives=negatives)
            _check_counts(losses, own)
            self.deepspeed.backward(self._normalised(losses, counts))
            sums += torch.tensor([float(losses[name].sum.detach()) for name in names], dtype=torch.float64)
            weights = {name: losses[name].weight for name in names}
            if self.deepspeed.is_gradient_accumulation_boundary():
                means = self._means(names, sums, counts)
                total = sum(weights[name] * mean for name, mean in means.items())
                admitted = bool(means) and admit(total)  # a step without anything in it has no gradient
                result = StepResult(means, total, counts, self._gradient_norm(), rate, admitted, _whose(total, sums))
                self._adamw.applies = result.applied and not math.isinf(result.gradient_norm)
            self.deepspeed.step()
        assert result is not None
        norm = result.gradient_norm if self.config.stage == 0 else self._norm_after()
        return replace(result, gradient_norm=norm, applied=result.applied and math.isfinite(norm))

    def _means(self, names: list[str], sums: Tensor, counts: dict[str, int]) -> dict[str, float]:
        """Each term's mean over the whole step, from this rank's sums."""
        values = distributed.add(sums.to(self.device)).tolist()
        return {name: value / counts[name] for name, value in zip(names, values, strict=True) if counts[name]}

    def flops(self, batches: Sequence[Batch]) -> int:
        """Floating-point operations of the model on these micro-batches, forward and backward."""
        return sum(self.deepspeed.module.flops(batch) for batch in batches)

    def close(self) -> None:
        """Let go of all that DeepSpeed holds, so that another engine can take its place."""
        self.deepspeed.destroy()
        del self.deepspeed, self._adamw, self.model, self.parameters
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def evaluate(self, batch: Batch, features: Features, task: str) -> Any:
        """The model's `task` on one batch, without gradient."""
        self.deepspeed.eval()
        try:
            return self._forward(features, batch, task=task)
        finally:
            self.deepspeed.train()

    def _denominators(self, foreseen: Sequence[dict[str, int]]) -> tuple[list[str], dict[str, int]]:
        """The loss names, and each one's count over all ranks and micro-batches."""
        names = sorted(foreseen[0])
        local = torch.tensor([sum(counts[name] for counts in foreseen) for name in names], dtype=torch.int64)
        return names, dict(zip(names, distributed.add(local.to(self.device)).tolist(), strict=True))

    def _prepared(
        self, batches: Sequence[Batch], encode: Callable[[Batch], Features]
    ) -> Iterator[tuple[Batch, Features, Any]]:
        """(batch, features, negatives) per micro-batch. Contrastive terms see the whole step: with several
        micro-batches embeddings are gathered first, without gradient, and each is then run again with its own."""
        negatives = None
        if len(batches) > 1 and self.deepspeed.module.contrastive:
            parts = [self.evaluate(batch, encode(batch), "negatives") for batch in batches]
            negatives = collect(parts, [batch.slots for batch in batches])
        for batch in batches:
            yield batch, encode(batch), negatives

    def _forward(self, features: Features, batch: Batch, **extra: Any) -> Any:
        autocast = self.config.precision == "bf16" and self.config.stage == 0
        with torch.autocast(self.device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
            return self.deepspeed(features, batch, **extra)

    def _normalised(self, losses: Losses, counts: dict[str, int]) -> Tensor:
        """Σ weight × sum / global count, times what DeepSpeed will divide by: the world size and the micro-batches."""
        undo = distributed.world() * self.config.accumulate
        terms = [
            loss.weight * loss.sum.float() * (undo / max(1, counts[name])) for name, loss in sorted(losses.items())
        ]
        return torch.stack(terms).sum()

    def _gradient_norm(self) -> float:
        """Stage 0 in fp32 is a plain AdamW behind DeepSpeed, which reports no norm there: take it before the step. At
        the other stages DeepSpeed takes it in its own step, and applies nothing where it is not finite; 0 until then.
        """
        if self.config.stage > 0:
            return 0.0
        squares = [p.grad.float().pow(2).sum() for p in self.parameters.values() if p.grad is not None]
        norm = float(torch.stack(squares).sum().sqrt())
        return norm if math.isfinite(norm) else math.inf

    def _norm_after(self) -> float:
        norm = self.deepspeed.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def read_all(self) -> Iterator[tuple[Fragment, dict[str, Tensor | None]]]:
        """Every fragment that this rank owns, with views of its flat fp32 values by `STATES`, wherever they lie.

        A checkpoint of the rank must hold them; over all ranks every element occurs once. Moments are None before the
        first step, and mean 0.
        """
        for fragment, flat, place in self._owned(whole=False):
            state, cut = self._optimizer().state.get(flat, {}), slice(place, place + fragment.length)
            values = {"weight": flat.data, **{name: state.get(name) for name in STATES[1:]}}
            yield fragment, {name: None if value is None else value.view(-1)[cut] for name, value in values.items()}

    def write_all(self, source: Callable[[Fragment, str], Tensor], steps: int) -> None:
        """Set every owned fragment from `source(fragment, state)` (flat fp32) and AdamW's step count to `steps`.

        The model's own (possibly bf16) weights must already be the checkpoint's: load them before the engine is made.
        """
        whole = self.config.stage == 0  # replicated: every rank needs all of every parameter, not only what it saves
        for fragment, flat, place in self._owned(whole):
            state = self._optimizer().state[flat]
            if not state:
                state.update(
                    step=torch.tensor(float(steps)), exp_avg=torch.zeros_like(flat), exp_avg_sq=torch.zeros_like(flat)
                )
            for name in STATES:
                target = flat.data if name == "weight" else state[name]
                target.view(-1)[place : place + fragment.length].copy_(source(fragment, name))

    def optimizer_steps(self) -> int:
        """How many optimizer steps AdamW has taken."""
        return max((int(state["step"]) for state in self._optimizer().state.values() if "step" in state), default=0)

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.deepspeed.optimizer if self.config.stage == 0 else self.deepspeed.optimizer.optimizer

    def _owned(self, whole: bool) -> Iterable[tuple[Fragment, Tensor, int]]:
        return owned(self.parameters, self.config.stage, self.deepspeed.optimizer, whole)


class _AdamW(torch.optim.AdamW):
    """AdamW that can let a step pass. DeepSpeed does all around it as always: gradients are reduced, clipped, freed."""

    applies = True

    def step(self, closure: Any = None) -> Any:
        return super().step(closure) if self.applies else None


def deepspeed_config(config: EngineConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """DeepSpeed's configuration, computed from ours and never written twice."""
    zero: dict[str, Any] = {"stage": config.stage}
    if config.offload and config.stage > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": _cuda()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only logs it: our micro-batches are ragged
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": optimizer.clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.precision == "bf16" and config.stage > 0},
        "steps_per_print": 2**31,
    }


def _groups(parameters: dict[str, nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and single vectors do not."""
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def _check_counts(losses: Losses, counts: dict[str, int]) -> None:
    seen = {name: loss.count for name, loss in losses.items()}
    assert seen == counts, f"a model's counts() must foresee its losses: foreseen {counts}, seen {seen}"


def _deepspeed() -> Any:
    """deepspeed, quiet, and without the extensions that it would compile for a minute at first use on a CPU."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # deepspeed's older names
    import deepspeed
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    if _AdamW not in ZERO_SUPPORTED_OPTIMIZERS:  # it knows optimizers by their exact type, and warns of others
        ZERO_SUPPORTED_OPTIMIZERS.append(_AdamW)
    if not _cuda():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


def _whose(total: float, sums: Tensor) -> tuple[int, ...]:
    """The ranks that gave a loss which is not finite. Collective where the total is not, which every rank knows."""
    if math.isfinite(total):
        return ()
    finite = distributed.gather_objects(bool(sums.isfinite().all()))
    return tuple(rank for rank, well in enumerate(finite) if not well)


def _cuda() -> bool:
    """Whether to train on a GPU. DeepSpeed's DS_ACCELERATOR=cpu leaves one alone."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
