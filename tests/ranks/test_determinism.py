"""Two threads add up a gradient as one does, whatever their order: a run on several cores resumes to the bit."""

import torch
import torch.distributed as dist

from pretrain.engine import EngineConfig, start
from tests.ranks.processes import run


def _gradients(_: object) -> int:
    """How many different gradients twenty equal passes give, of rows that are taken many times."""
    start(EngineConfig.model_validate({"precision": "fp32"}))
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rows, upstream, taken = torch.randn(700, 48), torch.randn(11_000, 48), torch.randint(0, 700, (11_000,))
    found = set()
    for _ in range(20):
        leaf = rows.clone().requires_grad_()
        leaf[taken].backward(upstream)
        assert leaf.grad is not None
        found.add(leaf.grad.numpy().tobytes())
    dist.destroy_process_group()
    return len(found)


def test_threads_do_not_decide_a_gradient() -> None:
    assert run(_gradients, 1, None) == [1]
