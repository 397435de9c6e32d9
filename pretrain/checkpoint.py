"""What a checkpoint holds, how it becomes true, how it is found again on any number of ranks.

    step-00000040/
        rank-00000.safetensors …   each rank's runs of fp32 weights and AdamW moments, end to end
        buffers.safetensors        the model's buffers, where it has any
        checkpoint.json            parameter → [rank, offset, start, length] …, position, configuration
        COMMIT.json                size and SHA-256 of every file above, written last

A folder is staged under another name, every file is fsynced and hashed, and one rename commits it: a checkpoint either
has a COMMIT.json whose hashes hold, or it is none. Resharding is slicing: a rank reads the runs that it needs, whoever
wrote them. Nothing is pickled. The finding behind this (DeepSpeed's accessors at every stage) is in pretrain/README.md.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain import distributed
from pretrain.config import Config
from pretrain.engine import STATES, Engine, Fragment

FORMAT = 1
FOLDER = re.compile(r"step-(\d{8,})")
log = logging.getLogger(__name__)


class CheckpointConfig(Config):
    """every: steps between checkpoints. keep: how many of the newest stay; each `keep_every`-th step stays for good."""

    every: int = Field(default=500, ge=1)
    keep: int = Field(default=3, ge=1)
    keep_every: int | None = Field(default=None, ge=1)


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
            about = json.loads((path / "checkpoint.json").read_text())
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
            name: self.slice(Fragment(name, 0, _size(entry["shape"])), "weight").view(entry["shape"])
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
        path = self.path / "buffers.safetensors"
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


def save(folder: Path, engine: Engine, step: int, state: dict[str, Any], config: CheckpointConfig) -> Path:
    """Write and commit `folder/step-<step>`, then apply retention. Collective; returns the path on every rank.

    Raises ValueError on every rank where one of them cannot write (a full disk, a folder that not all hosts share).
    """
    final, staged = folder / f"step-{step:08d}", folder / f".step-{step:08d}.partial"

    def stage() -> None:
        if distributed.rank() == 0:
            for left in folder.glob(".step-*.partial"):  # by attempts that were interrupted
                shutil.rmtree(left)
            staged.mkdir(parents=True)

    def commit() -> None:
        if distributed.rank() == 0:
            files = {name: entry for _, part in everyone for name, entry in part.items()}
            files |= _write_shared(staged, engine, step, state, [table for table, _ in everyone])
            _write(staged / "COMMIT.json", json.dumps({"format": FORMAT, "files": files}, indent=1).encode())
            _sync_folder(staged)
            if final.exists():  # a broken one that resume passed over: the good one takes its place
                shutil.rmtree(final)
            os.rename(staged, final)
            _sync_folder(folder)
            _retain(folder, step, config)

    try:
        distributed.together(stage)
        part = distributed.together(lambda: _write_rank(staged, engine))
        everyone: list[Any] = distributed.gather_objects(part)
        distributed.together(commit)
    except distributed.Everywhere as error:
        raise distributed.Everywhere(
            f"the checkpoint of step {step} could not be written: {error}. Earlier ones are as they were"
        ) from error
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest committed checkpoint whose hashes hold. A broken one is named and passed over. Not collective."""
    for path in reversed(committed(folder)):
        problems = verify(path)
        if not problems:
            return Checkpoint.read(path)
        log.warning("checkpoint %s is broken and passed over: %s", path, "; ".join(problems))
    return None


def committed(folder: Path) -> list[Path]:
    """Folders named as checkpoints, oldest first. Staged ones have another name and are not seen."""
    found = [path for path in folder.glob("step-*") if FOLDER.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_step)


def verify(path: Path) -> list[str]:
    """What is wrong with a committed checkpoint: [] when every file is there with its committed size and SHA-256."""
    try:
        files = json.loads((path / "COMMIT.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"COMMIT.json: {type(error).__name__}: {error}"]
    problems = []
    for name, entry in sorted(files.items()):
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {file.stat().st_size} bytes, committed with {entry['bytes']}")
        elif _sha256(file) != entry["sha256"]:
            problems.append(f"{name} does not match its committed SHA-256")
    return problems


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _write_rank(staged: Path, engine: Engine) -> tuple[dict[str, list[list[int]]], dict[str, Any]]:
    """This rank's runs, and the table entries (parameter → [rank, offset, start, length]) that address them."""
    table: dict[str, list[list[int]]] = defaultdict(list)
    parts: dict[str, list[Tensor]] = {name: [] for name in STATES}
    offset = 0
    for fragment, values in engine.read_all():
        table[fragment.name].append([distributed.rank(), offset, fragment.start, fragment.length])
        for name in STATES:
            parts[name].append(values[name])
        offset += fragment.length
    path = staged / rank_file(distributed.rank())
    _save_file({name: torch.cat([*values, torch.empty(0)]) for name, values in parts.items()}, path)
    return dict(table), {path.name: _settle(path)}


def _write_shared(
    staged: Path, engine: Engine, step: int, state: dict[str, Any], tables: list[dict[str, list[list[int]]]]
) -> dict[str, Any]:
    """What rank 0 writes for all: the table, the run's state, the model's buffers."""
    fragments = {
        name: sorted((f for t in tables for f in t.get(name, [])), key=lambda f: f[2]) for name in engine.shapes
    }
    about = {
        "format": FORMAT,
        "step": step,
        "world": len(tables),
        "optimizer_steps": engine.optimizer_steps(),
        "parameters": {
            name: {"shape": list(shape), "fragments": fragments[name]} for name, shape in engine.shapes.items()
        },
        "state": state,
    }
    files = {"checkpoint.json": _write(staged / "checkpoint.json", json.dumps(about, indent=1).encode())}
    buffers = {name: buffer.detach().cpu().contiguous() for name, buffer in engine.model.named_buffers()}
    if buffers:
        _save_file(buffers, staged / "buffers.safetensors")
        files["buffers.safetensors"] = _settle(staged / "buffers.safetensors")
    return files


def _retain(folder: Path, step: int, config: CheckpointConfig) -> None:
    """Those after `step`, the newest one that is known to hold, are broken ones: they must not displace any."""
    for path in [path for path in committed(folder) if _step(path) <= step][: -config.keep]:
        if not (config.keep_every and _step(path) % config.keep_every == 0):
            shutil.rmtree(path)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # the library's own name for what the system said
        raise OSError(f"{path}: {error}") from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # the library writes for the owner alone


def _write(path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    return _settle(path)


def _settle(path: Path) -> dict[str, Any]:
    """fsync, and what COMMIT.json says of the file: read back, so that what is hashed is what was written."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(shape: list[int]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total
