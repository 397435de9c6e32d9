"""Rank facts and the few collectives that the rest needs. One process without a process group is a world of one."""

import socket
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Everywhere(ValueError):
    """What is wrong is known on every rank, and raised on every rank: one of them may speak for all."""


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def hosts() -> int:
    """Hosts, where their ranks are equal blocks in a row, as every launcher counts them; otherwise 1. Collective."""
    names = gather_objects(socket.gethostname())
    count = len(set(map(str, names)))
    each = world() // count
    blocks = [set(map(str, names[i * each : (i + 1) * each])) for i in range(count)]
    return count if world() % count == 0 and all(len(block) == 1 for block in blocks) else 1


def free_port() -> int:
    """A port that nobody listens on now (nor, likely, a few seconds later): two runs on a machine must not meet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def device() -> torch.device:
    """Where tensors must lie to be communicated."""
    nccl = dist.is_initialized() and "nccl" in dist.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def together(work: Callable[[], T]) -> T:
    """What `work` returns here, once it is done on every rank. Collective; `work` itself must not communicate.

    Where it fails on any rank, no rank goes on to wait for that one: all raise `Everywhere`, with the first one's words
    (a rank on which it failed as only a bug does raises that as it is).
    """
    result = failure = None
    try:
        result = work()
    except Exception as error:
        failure = error
    expected = failure is None or isinstance(failure, (ValueError, OSError))
    words = failure and (str(failure) if expected else f"{type(failure).__name__}: {failure}")
    found = [(number, said) for number, said in enumerate(gather_objects(words)) if said is not None]
    if failure is not None and not expected:
        raise failure
    if found:
        number, said = found[0]
        alone = f"rank {number} of {world()}: " if len(found) < world() else ""
        raise Everywhere(f"{alone}{said}") from failure
    return result  # type: ignore[return-value]  # nothing failed, so it is what `work` returned


def add(values: Tensor) -> Tensor:
    """The sum over ranks of a tensor of equal shape on each; a new tensor, without gradient."""
    total = values.detach().clone()
    if world() > 1:
        dist.all_reduce(total)
    return total


def add_logs(values: Tensor) -> Tensor:
    """log of the sum over ranks of exp(values), of equal shape on each; a new tensor, without gradient."""
    if world() == 1:
        return values.detach()
    most = values.detach().clone()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    most = most.nan_to_num(neginf=0.0)  # −∞ everywhere stays so
    return add((values - most).exp()).log() + most


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
