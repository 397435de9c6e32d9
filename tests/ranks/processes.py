"""Real processes for tests: run one function on several gloo ranks and collect what each returns."""

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from pretrain.distributed import free_port


def run(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """`function(*arguments)` on `world` ranks with a process group's environment; its results by rank.

    Results are saved with torch and loaded with weights_only, so they are tensors, numbers, strings and containers.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (world, free_port(), folder, function, arguments), nprocs=world, join=True)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(rank: int, world: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    except BaseException:
        traceback.print_exc()
        raise
