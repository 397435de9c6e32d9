"""One rank's share of a checkpoint, copied from the engine so that training goes on while it is written.

The copy goes into buffers that are kept from one checkpoint to the next: fresh memory costs more than copying into it.
On a GPU they are pinned. Price: 12 bytes of host memory for each parameter that the rank owns.
"""

import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from pretrain import distributed
from pretrain.engine import Engine
from pretrain.fragments import STATES


@dataclass(frozen=True, eq=False)
class Snapshot:
    """table: parameter → [[rank, offset, start, length], …], the runs in `states` (STATES → flat fp32).

    shapes, buffers: of the whole model. state: what the run wants remembered, JSON.
    """

    step: int
    rank: int
    world: int
    optimizer_steps: int
    table: dict[str, list[list[int]]]
    states: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    buffers: dict[str, Tensor]
    state: dict[str, Any]

    def buffers_file(self) -> bytes:
        return save(self.buffers)


def file_of(states: Mapping[str, Tensor]) -> Iterator[Any]:
    """A rank's safetensors file, piece by piece: its header, then the memory of each state (flat fp32)."""
    header, end = {}, 0
    for name, values in states.items():
        start, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for values in states.values():
        if len(values):  # an empty array's memory cannot be cast to bytes
            yield values.numpy()


class Camera:
    """Takes snapshots of one engine's state into memory that it keeps. One at a time: the next overwrites."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, engine: Engine, step: int, state: dict[str, Any]) -> Snapshot:
        """Nothing is communicated; the training process does nothing else meanwhile."""
        rank, table, runs, offset = distributed.rank(), defaultdict(list), [], 0
        for fragment, values in engine.read_all():
            table[fragment.name].append([rank, offset, fragment.start, fragment.length])
            runs.append((offset, fragment.length, values))
            offset += fragment.length
        if not self._memory or len(self._memory[STATES[0]]) != offset:
            pinned = any(value is not None and value.is_cuda for _, _, values in runs for value in values.values())
            self._memory = {name: torch.empty(offset, pin_memory=pinned) for name in STATES}
        for start, length, values in runs:
            for name, memory in self._memory.items():
                value = values[name]
                if value is None:
                    memory[start : start + length].zero_()
                else:
                    memory[start : start + length].copy_(value, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        buffers = {name: buffer.detach().cpu().clone().contiguous() for name, buffer in engine.model.named_buffers()}
        return Snapshot(
            step, rank, distributed.world(), engine.optimizer_steps(), dict(table), dict(self._memory), engine.shapes,
            buffers if rank == 0 else {}, deepcopy(state),  # training goes on, and changes what it holds
        )  # fmt: skip
