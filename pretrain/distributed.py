"""Rank facts and the few collectives that the rest needs. One process without a process group is a world of one."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def add(values: Tensor) -> Tensor:
    """The sum over ranks of a tensor of equal shape on each; a new tensor, without gradient."""
    total = values.detach().clone()
    if world() > 1:
        dist.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """([sum of n, ...] every rank's rows in rank order, where this rank's begin). n may differ and may be 0.

    Gradient: this rank's own rows stay attached, the others' are constants. A loss over all rows that every rank
    computes in full then has, on each rank, exactly the gradient of that loss for the rank's own rows; summed over
    ranks it is the whole gradient, with no collective in the backward pass.
    """
    if world() == 1:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # gloo and nccl gather equal shapes; the padding ends here
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    every = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    every[rank()] = rows
    return torch.cat(every), sum(sizes[: rank()])


def gather_objects(value: object) -> list[object]:
    """Every rank's small JSON-like value, in rank order. For facts and messages between our own ranks only."""
    if world() == 1:
        return [value]
    values: list[object] = [None] * world()
    dist.all_gather_object(values, value)
    return values
