"""Activation checkpointing under DeepSpeed: the same losses, norms and weights, to the bit, at stages 0 and 3."""

import torch
import torch.distributed as dist

from pretrain import distributed
from pretrain.engine import Engine, EngineConfig, OptimizerConfig, start
from pretrain.models.amma import Amma, AmmaConfig, DecoderConfig
from tests.ranks.processes import run
from tests.ranks.test_engine import PROTEINS, WIDTHS, _batch


def _trained(stages: list[int]) -> list[list[dict]]:
    """Per stage, without and with recomputation: three steps' losses and the rank's weights after them."""
    found: list[list[dict]] = []
    for stage in stages:
        found.append([])
        for again in (False, True):
            config = EngineConfig.model_validate(
                {"stage": stage, "precision": "fp32", "activation_checkpointing": again}
            )
            device = start(config)
            torch.manual_seed(0)
            decoder = DecoderConfig(width=8, depth=2, heads=2)
            model = Amma(AmmaConfig(width=16, depth=2, heads=2, decoder=decoder), WIDTHS)
            engine = Engine(model, config, OptimizerConfig(), device)
            assert all(block.recompute == again for block in model.encoder.blocks)
            share = len(PROTEINS) // distributed.world()
            mine = range(distributed.rank() * share, (distributed.rank() + 1) * share)
            steps = []
            for step in range(3):
                batch, features = _batch(mine, step)
                result = engine.step([batch], lambda _, f=features: f, 1e-3)
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
