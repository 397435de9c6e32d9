"""A checkpoint as another number of ranks would have written it, or as plain weights. Neither needs a GPU or deepspeed.

Resuming does not need this: any number of ranks reads any checkpoint. It is for moving a run (five hundred files into
eight), and for whoever wants the weights alone, as `zero_to_fp32` gives them.
"""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from uuid import uuid4

import torch
from safetensors.torch import save
from torch import Tensor

from pretrain.checkpoint import disk
from pretrain.checkpoint.content import ABOUT, BUFFERS, Checkpoint, rank_file
from pretrain.checkpoint.disk import Written
from pretrain.checkpoint.folders import FORMAT, Folder
from pretrain.checkpoint.snapshot import file_of
from pretrain.fragments import STATES, Fragment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def reshard(found: Checkpoint, folder: Folder, ranks: int) -> None:
    """Write the same checkpoint into another folder, as `ranks` files of about equal size. Memory: one file's content.

    Raises ValueError for a folder that has a checkpoint of this step already.
    """
    if ranks < 1:
        raise ValueError(f"{ranks} ranks; at least one is needed")
    if found.step in folder.steps():
        raise ValueError(f"{folder} has a checkpoint of step {found.step}; give another folder")
    attempt, files = f"convert-{uuid4().hex[:12]}", dict[str, Written]()
    folder.begin(found.step, attempt)
    table: dict[str, list[list[int]]] = {name: [] for name in found.parameters}
    for rank in range(ranks):
        runs, offset = list(_share(found, rank, ranks)), 0
        for run in runs:
            table[run.name].append([rank, offset, run.start, run.length])
            offset += run.length
        states = {state: torch.cat([torch.empty(0), *(found.slice(run, state) for run in runs)]) for state in STATES}
        files[rank_file(rank)] = folder.write(found.step, attempt, rank_file(rank), file_of(states))
    if (found.path / BUFFERS).is_file():
        files[BUFFERS] = folder.write(found.step, attempt, BUFFERS, [(found.path / BUFFERS).read_bytes()])
    about = {
        "format": FORMAT,
        "step": found.step,
        "world": ranks,
        "optimizer_steps": found.optimizer_steps,
        "parameters": {
            name: {"shape": entry["shape"], "fragments": table[name]} for name, entry in found.parameters.items()
        },
        "state": found.state,
    }
    files[ABOUT] = folder.write(found.step, attempt, ABOUT, [json.dumps(about, indent=1).encode()])
    folder.commit(found.step, attempt, files)


def consolidate(found: Checkpoint, out: Path, dtype: str = "fp32") -> None:
    """Write weights and buffers, whole, as one safetensors file. Raises ValueError for a file that is there already."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}; one of {', '.join(DTYPES)}")
    if out.exists():
        raise ValueError(f"{out} exists; give another name, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {name: value.to(DTYPES[dtype]) for name, value in found.weights().items()}
    tensors |= found.buffers()
    part = out.with_name(f".{out.name}.partial")
    disk.remove_file(part)
    disk.write_file(part, [save(tensors, {"format": "pt", "step": str(found.step)})])
    disk.rename(part, out)
    disk.sync_folder(out.parent)


def _share(found: Checkpoint, rank: int, ranks: int) -> Iterator[Fragment]:
    """What falls to a rank when all parameters, end to end, are cut evenly."""
    sizes = {name: prod(entry["shape"]) for name, entry in found.parameters.items()}
    total, begin = sum(sizes.values()), 0
    low, high = total * rank // ranks, total * (rank + 1) // ranks
    for name, size in sizes.items():
        first, last = max(low, begin), min(high, begin + size)
        if first < last:
            yield Fragment(name, first - begin, last - first)
        begin += size
