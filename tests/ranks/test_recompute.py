"""Activation checkpointing under DeepSpeed: the same losses, norms and weights, to the bit, at stages 0 and 3."""

from typing import Any

import torch
import torch.distributed as dist

from pretrain import distributed
from pretrain.engine import Engine, EngineConfig, OptimizerConfig, start
from pretrain.layers.transformer import Recomputable
from pretrain.models.amma import Amma, AmmaConfig, DecoderConfig
from tests.models import batch_of, build, sample
from tests.ranks.processes import run
from tests.ranks.test_engine import PROTEINS, WIDTHS, _batch


def _fused(config: EngineConfig, device: torch.device) -> tuple[Engine, list[Any]]:
    """AMMA, whose encoders stand around it, and what three steps of it take."""
    torch.manual_seed(0)
    decoder = DecoderConfig(width=8, depth=2, heads=2)
    model = Amma(AmmaConfig(width=16, depth=2, heads=2, decoder=decoder), WIDTHS)
    share = len(PROTEINS) // distributed.world()
    mine = range(distributed.rank() * share, (distributed.rank() + 1) * share)
    batches = (_batch(mine, step) for step in range(3))
    return Engine(model, config, OptimizerConfig(), device), [(one, lambda _, f=f: f) for one, f in batches]


def _inside(config: EngineConfig, device: torch.device) -> tuple[Engine, list[Any]]:
    """Bi-Hierarchical Fusion, whose layers run between those of the ESM that it trains."""
    model, encoders = build("bihierarchical")
    mine = range(2 * distributed.rank(), 2 * distributed.rank() + 2)
    samples = [sample(i, *model.modalities) for i in mine]
    batches = [batch_of(samples, encoders, step, list(mine)) for step in range(3)]
    return Engine(model, config, OptimizerConfig(), device), [(batch, encoders) for batch in batches]


def _trained(stages: list[int]) -> list[list[dict]]:
    """Per model and stage, without and with recomputation: three steps' losses and the rank's weights after them."""
    found: list[list[dict]] = []
    for make, stage in ((make, stage) for make in (_fused, _inside) for stage in stages):
        found.append([])
        for again in (False, True):
            config = EngineConfig.model_validate(
                {"stage": stage, "precision": "fp32", "activation_checkpointing": again}
            )
            engine, given = make(config, start(config))
            blocks = [part for part in engine.model.modules() if isinstance(part, Recomputable)]
            assert blocks and all(block.recompute == again for block in blocks)
            steps = []
            for batch, encode in given:
                result = engine.step([batch], encode, 1e-3)
                steps.append({**result.losses, "norm": result.gradient_norm})
            weights = {f"{f.name}@{f.start}": values["weight"] for f, values in engine.read_all()}
            found[-1].append({"steps": steps, "weights": weights})
    dist.destroy_process_group()
    return found


def test_recomputation_changes_no_bit() -> None:
    for rank in run(_trained, 2, [0, 3]):
        for plain, again in rank:
            assert plain["steps"] == again["steps"]
            assert plain["weights"].keys() == again["weights"].keys()
            assert all(torch.equal(plain["weights"][name], again["weights"][name]) for name in plain["weights"])
