"""Several ranks are one: losses and gradients of AMMA's joined step, also where a rank lacks a modality altogether.

Every stage, precision, variant, number of micro-batches and ranks; cases share a process group, because starting one
takes longer than a case. The whole matrix is in `make test-all`.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrain import distributed, models
from pretrain.batch import Batch, Features, Images, Sequences, Structures, Texts, Tokens, offsets_of
from pretrain.engine import Engine, EngineConfig, OptimizerConfig, start
from pretrain.masking import MaskingConfig
from pretrain.models.amma import AmmaConfig, DecoderConfig
from pretrain.sample import Modality
from tests.ranks.processes import run

WIDTHS = {Modality.SEQUENCE: 6, Modality.STRUCTURE: 10, Modality.FUNCTION: 4, Modality.IMAGE: 8}
# Tokens of each protein by modality. The second half has neither structure nor image: on two ranks, rank 1 has none.
PROTEINS = [
    (9, 7, 5, 4),
    (6, 6, 0, 8),
    (0, 5, 4, 0),
    (4, 4, 3, 4),
    (8, 0, 3, 0),
    (5, 0, 0, 0),
    (0, 0, 6, 0),
    (7, 0, 2, 0),
]
WEIGHTS = {"sequence": 1.0, "structure": 0.5, "function": 2.0, "image": 0.25}
BETA = 0.9
Case = tuple[Any, ...]  # stage, precision, variant, accumulate, and "offload" where optimizer states lie in host memory


def _features(protein: int) -> dict[Modality, torch.Tensor]:
    draw = torch.Generator().manual_seed(protein)
    return {m: torch.randn(n, WIDTHS[m], generator=draw) for m, n in zip(WIDTHS, PROTEINS[protein], strict=True)}


def _batch(proteins: Sequence[int], step: int) -> tuple[Batch, Features]:
    lengths = {m: torch.tensor([PROTEINS[i][c] for i in proteins], dtype=torch.int64) for c, m in enumerate(WIDTHS)}
    rows = [_features(i) for i in proteins]
    features: Features = {
        m: Tokens(
            torch.cat([*(row[m] for row in rows), torch.zeros(0, WIDTHS[m])]),
            offsets_of(lengths[m]),
            torch.cat([*(torch.arange(int(n)) for n in lengths[m]), torch.zeros(0, dtype=torch.int64)]),
        )
        for m in WIDTHS
    }
    none, empty = torch.zeros(len(proteins) + 1, dtype=torch.int64), torch.zeros(0)
    raw = (
        Sequences(empty, none),
        Structures(empty, empty, empty, empty, empty, none),
        Texts(empty, none),
        Images(empty, empty, none),
    )
    slots = torch.tensor(proteins, dtype=torch.int64)
    batch = Batch(tuple(f"p{i}" for i in proteins), 7, step, slots, torch.zeros(len(proteins), 2), lengths, *raw)
    return batch, features


def _model(variant: str) -> models.Model:
    torch.manual_seed(0)
    size = {"width": 16, "depth": 2, "heads": 2}
    own = {"weights": WEIGHTS} if variant == "reconstruction" else {"embedding": 8}
    parts = {"decoder": DecoderConfig(width=8, depth=1, heads=2), "masking": MaskingConfig(keep=0.5)}
    return models.build(AmmaConfig.model_validate({"variant": variant, **parts, **size, **own}), WIDTHS)


def _plain(variant: str) -> dict[str, torch.Tensor]:
    """Parameter → gradient of Σ weight × sum / count over all proteins, as autograd has it, flat."""
    model, (batch, features) = _model(variant), _batch(range(len(PROTEINS)), 0)
    losses = model(features, batch)
    assert isinstance(losses, dict)
    weights = {name: WEIGHTS[name.partition("/")[2]] if variant == "reconstruction" else 1.0 for name in losses}
    torch.stack([weights[name] * loss.sum / loss.count for name, loss in losses.items()]).sum().backward()
    return {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}


def _steps(cases: list[Case]) -> list[dict]:
    """Per case: two steps' losses, and the gradient of the first as Adam saw it."""
    found = []
    for stage, precision, variant, accumulate, *offload in cases:
        config = EngineConfig.model_validate(
            {"stage": stage, "precision": precision, "accumulate": accumulate, "offload": bool(offload)}
        )
        device = start(config)
        model = _model(variant)
        engine = Engine(model, config, OptimizerConfig(betas=(BETA, 0.99), clip=0.0, weight_decay=0.0), device)
        rank, world = distributed.rank(), distributed.world()
        mine = range(len(PROTEINS) * rank // world, len(PROTEINS) * (rank + 1) // world)
        losses, gradients = [], {}
        for step in range(2):
            pairs = [_batch(mine[g::accumulate], step) for g in range(accumulate)]
            features = {batch.keys: tokens for batch, tokens in pairs}
            result = engine.step([batch for batch, _ in pairs], lambda batch, f=features: f[batch.keys], 1e-3)
            losses.append(result.losses | {"norm": result.gradient_norm})
            if step == 0:  # Adam's first moment after one step is (1 − β₁) × gradient
                first = {f"{f.name}@{f.start}": values["exp_avg"] for f, values in engine.read_all()}
                gradients = {place: m / (1 - BETA) for place, m in first.items() if m is not None}
        found.append({"losses": losses, "gradients": gradients})
    dist.destroy_process_group()
    return found


def _whole(ranks: list[list[dict]], case: int) -> dict[str, torch.Tensor]:
    """Parameter → its whole gradient, put together from every rank's fragments."""
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for rank in ranks:
        for place, value in rank[case]["gradients"].items():
            name, _, begin = place.rpartition("@")
            parts.setdefault(name, []).append((int(begin), value))
    return {name: torch.cat([value for _, value in sorted(found, key=lambda p: p[0])]) for name, found in parts.items()}


WAYS = [("reconstruction", 1), ("reconstruction", 2), ("contrastive", 1), ("contrastive", 2)]
FP32: list[Case] = [(stage, "fp32", *way) for stage in range(4) for way in WAYS]
BF16: list[Case] = [(stage, "bf16", "reconstruction", 1) for stage in range(4)]
MORE: list[Case] = [(stage, "bf16", *way) for stage in range(4) for way in WAYS[1:]]
OFFLOAD: list[Case] = [(stage, "fp32", *way, "offload") for stage in (1, 2, 3) for way in WAYS]
OFFLOAD += [(2, "fp32", "reconstruction", 1), (2, "fp32", "contrastive", 1)]  # what the gradients are compared with


@pytest.mark.parametrize(
    ("cases", "world", "close", "gradient"),
    [
        pytest.param(FP32, 2, 1e-5, 1e-5, id="fp32"),
        pytest.param(BF16, 2, 3e-2, 5e-2, id="bf16"),
        pytest.param(FP32, 3, 1e-5, 1e-5, id="fp32-3", marks=pytest.mark.slow),
        pytest.param(BF16, 3, 3e-2, 5e-2, id="bf16-3", marks=pytest.mark.slow),
        pytest.param(MORE, 2, 3e-2, 5e-2, id="bf16-more", marks=pytest.mark.slow),
        pytest.param(OFFLOAD, 2, 1e-5, 1e-5, id="offload", marks=pytest.mark.slow),
    ],
)
def test_several_ranks_equal_one(cases: list[Case], world: int, close: float, gradient: float) -> None:
    one, several = run(_steps, 1, cases), run(_steps, world, cases)
    exact = {c[2]: _whole(one, i) for i, c in enumerate(cases) if c[:2] == (2, "fp32") and c[3] == 1}
    for variant, found in exact.items():
        plain = _plain(variant)
        scale = max(float(value.abs().max()) for value in plain.values())
        assert plain.keys() == found.keys()
        assert all(float((found[name] - value).abs().max()) <= 1e-5 * scale for name, value in plain.items()), variant
    for i, case in enumerate(cases):
        assert all(rank[i]["losses"] == several[0][i]["losses"] for rank in several), case
        for step in range(2):
            want, got = one[0][i]["losses"][step], several[0][i]["losses"][step]
            assert want.keys() == got.keys() and len(want) > 4, (case, want)
            assert all(value > 0 for value in want.values()), (case, want)
            assert got == pytest.approx(want, rel=close, abs=1e-9), (case, step)
        whole = _whole(several, i)
        # In fp32 one reference serves every stage and cut, which must agree too; bf16 rounds differently at stage 0.
        reference = exact[case[2]] if case[1] == "fp32" else _whole(one, i)
        scale = max(float(value.abs().max()) for value in reference.values())
        for name, value in reference.items():
            difference = float((whole[name] - value).abs().max())
            assert difference <= gradient * scale, (case, name, difference, scale)
