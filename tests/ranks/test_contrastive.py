"""The parts of a contrastive step, on any ranks and in any micro-batches, sum to the step of one process."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from pretrain.distributed import rank, world
from pretrain.objectives.contrastive import Rows, collect, gather
from pretrain.sample import Modality
from tests.ranks.processes import run

A, B = Modality.SEQUENCE, Modality.STRUCTURE
STEP = 24


def _step() -> tuple[list[Tensor], Tensor, Tensor]:
    """(left and right rows, which are present [2, S], temperature). The last third has no right side at all."""
    draw = torch.Generator().manual_seed(0)
    present = torch.rand(2, STEP, generator=draw) < 0.8
    present[1, 2 * STEP // 3 :] = False
    tables = [normalize(torch.randn(STEP, 8, generator=draw), dim=1) * here.unsqueeze(1) for here in present]
    return tables, present, torch.tensor([0.1])


def _part(accumulate: int) -> dict[str, Tensor]:
    """This rank's share of the loss, of both sides' gradients, and of the temperature's."""
    dist.init_process_group("gloo")
    tables, present, temperature = _step()
    tables, temperature = [table.requires_grad_() for table in tables], temperature.requires_grad_()
    size = STEP // world()
    mine = torch.arange(rank() * size, (rank() + 1) * size)
    slots = [mine[g::accumulate] for g in range(accumulate)]
    parts = [
        Rows({A: tables[0][at], B: tables[1][at]}, {A: present[0][at], B: present[1][at]}, [(A, B)], temperature)
        for at in slots
    ]
    negatives = collect(parts, slots) if accumulate > 1 else None
    value = torch.zeros(())
    for part, at in zip(parts, slots, strict=True):
        step = gather(part) if negatives is None else negatives.with_own(part, at)
        loss, _ = step.info_nce((A, B))
        loss.backward()
        value += loss.detach()
    dist.destroy_process_group()
    found = {"left": tables[0].grad, "right": tables[1].grad, "temperature": temperature.grad}
    return {"value": value} | {name: grad for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (1, 4), (2, 1), (2, 4), (3, 1), (3, 4)])
def test_parts_on_ranks_sum_to_the_whole(ranks: int, accumulate: int) -> None:
    tables, present, temperature = _step()
    inputs = [each.double().requires_grad_() for each in (*tables, temperature)]
    both = present[0] & present[1]
    scores = inputs[0][both] @ inputs[1][both].T / inputs[2]
    whole = -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).sum() / 2
    wanted = {"value": whole.detach()}
    wanted |= dict(zip(("left", "right", "temperature"), torch.autograd.grad(whole, inputs), strict=True))
    found = run(_part, ranks, accumulate)
    for name, want in wanted.items():
        total = torch.stack([part[name].double() for part in found]).sum(0)
        assert float((total - want).abs().max()) <= 1e-6 * float(want.abs().max()), name
