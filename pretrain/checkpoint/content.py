"""What a checkpoint holds, and how it is read again on any number of ranks.

    step-00000040/
        rank-00000.safetensors …   each rank's runs of fp32 weights and AdamW moments, end to end
        buffers.safetensors        the model's buffers, where it has any
        checkpoint.json            parameter → [rank, offset, start, length] …, position, configuration
        COMMIT.json                size and SHA-256 of every file above, written last

Resharding is slicing: a rank reads the runs that it needs, whoever wrote them. Nothing is pickled. The finding behind
this (DeepSpeed's accessors at every stage) is in pretrain/README.md.
"""

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pretrain.checkpoint import disk
from pretrain.checkpoint.folders import COMMIT, FORMAT, Disk, Folder, committed_files, folder_of
from pretrain.engine import Engine
from pretrain.fragments import Fragment

ABOUT, BUFFERS = "checkpoint.json", "buffers.safetensors"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint on disk. `verify` says whether its bytes still are what was committed."""

    path: Path
    step: int
    world: int
    optimizer_steps: int
    parameters: dict[str, dict[str, Any]]
    state: dict[str, Any]

    @staticmethod
    def read(path: Path) -> "Checkpoint":
        """Raises ValueError for a folder that is not a checkpoint of a format this version knows."""
        try:
            about = json.loads((path / ABOUT).read_text())
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
            return Checkpoint(
                path, about["step"], about["world"], about["optimizer_steps"], about["parameters"], about["state"]
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a readable checkpoint: {type(error).__name__}: {error}") from error

    def weights(self) -> dict[str, Tensor]:
        """Every trained parameter in fp32, whole."""
        return {
            name: self.slice(Fragment(name, 0, prod(entry["shape"])), "weight").view(entry["shape"])
            for name, entry in self.parameters.items()
        }

    def slice(self, fragment: Fragment, state: str) -> Tensor:
        """fp32 [length]: any run of any parameter's `state` (one of STATES), joined from whoever wrote its parts."""
        out = torch.empty(fragment.length)
        end, filled = fragment.start + fragment.length, 0
        for rank, offset, start, length in self.parameters[fragment.name]["fragments"]:
            low, high = max(start, fragment.start), min(start + length, end)
            if low < high:
                at = offset + low - start
                out[low - fragment.start : high - fragment.start] = self._files[rank].get_slice(state)[
                    at : at + high - low
                ]
                filled += high - low
        if filled != fragment.length:
            raise ValueError(f"{self.path}: {fragment.name} has {filled} of the {fragment.length} elements asked for")
        return out

    def buffers(self) -> dict[str, Tensor]:
        path = self.path / BUFFERS
        return load_file(path) if path.exists() else {}

    def load_model(self, model: nn.Module) -> None:
        """Put weights and buffers into a plain module. Raises ValueError naming what does not fit."""
        own = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        stored = {name: entry["shape"] for name, entry in self.parameters.items()}
        if own != stored:
            differ = sorted(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
            raise ValueError(
                f"{self.path}: the model differs from the checkpoint's in {len(differ)} parameter(s), first "
                f"{differ[0]}: {own.get(differ[0])} in the model, {stored.get(differ[0])} in the checkpoint"
            )
        model.load_state_dict({**self.weights(), **self.buffers()}, strict=False)

    def load_engine(self, engine: Engine) -> None:
        """Put fp32 weights and moments into the slices that this rank owns now."""
        engine.write_all(self.slice, self.optimizer_steps)

    @cached_property
    def _files(self) -> list[Any]:
        return [safe_open(self.path / rank_file(rank), "pt") for rank in range(self.world)]


def latest(folder: Path | str | Folder) -> Checkpoint | None:
    """The newest committed checkpoint whose hashes hold. A broken one is named and passed over. Not collective."""
    folder = folder_of(folder) if isinstance(folder, (str, Path)) else folder
    for step in reversed(folder.steps()):
        found = whole(folder, step)
        if found:
            return found
    return None


def whole(folder: Folder, step: int) -> Checkpoint | None:
    """The checkpoint of a step if its hashes hold; otherwise None, and a warning that names what is wrong."""
    path = folder.local(step)
    try:
        folder.fetch(step)
    except (FileNotFoundError, ValueError, KeyError) as error:  # a store that is away is no broken checkpoint
        log.warning("checkpoint %s/%s is broken and passed over: %s", folder, path.name, error)
        return None
    if problems := verify(path):
        log.warning("checkpoint %s is broken and passed over: %s", path, "; ".join(problems))
        return None
    return Checkpoint.read(path)


def committed(folder: Path) -> list[Path]:
    """Folders of committed checkpoints, oldest first."""
    disk_folder = Disk(folder)
    return [disk_folder.local(step) for step in disk_folder.steps()]


def verify(path: Path) -> list[str]:
    """What is wrong with a committed checkpoint: [] when every file is there with its committed size and SHA-256."""
    try:
        files = committed_files((path / COMMIT).read_bytes())
    except OSError as error:
        return [f"{COMMIT}: {type(error).__name__}: {error}"]
    except ValueError as error:
        return [str(error)]
    if ABOUT not in files:
        return [f"{COMMIT} does not name {ABOUT}"]
    problems = []
    for name, entry in sorted(files.items()):
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {file.stat().st_size} bytes, committed with {entry['bytes']}")
        elif disk.hashed(file) != entry["sha256"]:
            problems.append(f"{name} does not match its committed SHA-256")
    return problems


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"
