"""Whose slice is whose: where in DeepSpeed's partitions each rank's part of a parameter lies, at every ZeRO stage.

How these places were found, and which of DeepSpeed's accessors refuse to tell them, is in pretrain/README.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pretrain import distributed

STATES = ("weight", "exp_avg", "exp_avg_sq")  # what a fragment holds: fp32 master weight and AdamW's moments


@dataclass(frozen=True)
class Fragment:
    """A run of one flattened parameter that this rank's optimizer owns: elements [start, start + length)."""

    name: str
    start: int
    length: int


def owned(
    parameters: Mapping[str, Any], stage: int, optimizer: Any, whole: bool = False
) -> Iterator[tuple[Fragment, Tensor, int]]:
    """(fragment, the flat fp32 tensor that AdamW steps, the fragment's place in it), in a fixed order.

    optimizer: DeepSpeed's. Over all ranks every element occurs once; at stage 0, where every rank has all, `whole`
    gives it all.
    """
    if stage == 0:
        return _replicated(parameters, whole)
    return _weights(parameters, optimizer) if stage == 3 else _partition(parameters, optimizer)


def _replicated(parameters: Mapping[str, Any], whole: bool) -> Iterator[tuple[Fragment, Tensor, int]]:
    rank, world = (0, 1) if whole else (distributed.rank(), distributed.world())
    for name, parameter in parameters.items():
        start, end = (parameter.numel() * r // world for r in (rank, rank + 1))
        if end > start:
            yield Fragment(name, start, end - start), parameter, start


def _partition(parameters: Mapping[str, Any], optimizer: Any) -> Iterator[tuple[Fragment, Tensor, int]]:
    """Stages 1 and 2: `_hp_mapping` says which run of the rank's flat partition a parameter's run lies in."""
    for name, parameter in parameters.items():
        mapping = parameter._hp_mapping
        if mapping is not None:
            address = mapping.lp_fragment_address
            flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            yield Fragment(name, address.start, address.numel), flat, mapping.hp_fragment_address.start


def _weights(parameters: Mapping[str, Any], optimizer: Any) -> Iterator[tuple[Fragment, Tensor, int]]:
    """Stage 3: each parameter is cut evenly over the ranks, the last cut padded; padding is nobody's."""
    for name, parameter in parameters.items():
        group, place, cut = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = min(cut * distributed.rank(), parameter.ds_numel)
        length = min(cut, parameter.ds_numel - start)
        if length:
            yield Fragment(name, start, length), optimizer.fp32_partitioned_groups_flat[group], place
