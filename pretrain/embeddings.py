"""Embeddings of proteins: a table that is saved, loaded and searched without the model that made it. Numpy only."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pretrain.sample import Modality, canonical

FORMAT = 1
NAMED = 10  # proteins named in one message


@dataclass(frozen=True)
class Hit:
    """A protein found, and its score: a mean of cosines, −1 to 1."""

    key: str
    score: float


@dataclass(frozen=True, eq=False)
class Residues:
    """values: float32 [ΣL, D], the proteins' residues end to end. positions: int64 [ΣL], 0-based. offsets: [N + 1]."""

    values: NDArray[np.float32]
    positions: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def of(self, i: int) -> NDArray[np.float32]:
        """[L, D]: the residues of protein i; none for a protein with neither sequence nor structure."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a model says of N proteins.

    fused: float32 [N, D], all that a protein has, encoded together. alone: modality → float32 [N, D], that modality
    encoded alone, 0 where `present` (modality → bool [N]) is False. residues: the fused latent of each residue: the
    sequence's token where there is a sequence, the structure's otherwise; in models of towers (Align-Pro, two towers)
    other modalities have no part in it. truncated: keys of proteins that lost
    residues to an encoder's limit. model: SHA-256 of the weights; embeddings of different models do not compare.
    centres: modality → [D], the mean over the model's training proteins, which `nearest` subtracts; empty: none known.
    """

    keys: tuple[str, ...]
    fused: NDArray[np.float32]
    alone: dict[Modality, NDArray[np.float32]]
    present: dict[Modality, NDArray[np.bool_]]
    model: str
    truncated: tuple[str, ...] = ()
    residues: Residues | None = None
    centres: dict[Modality, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, complete or not at all: `fused`, `alone.<modality>`, `present.<modality>`, `keys`
        (UTF-8, a line each), `centres.<modality>`, and `residues.values`, `.positions` and `.offsets` where there are
        any."""
        path = Path(path)
        tensors: dict[str, NDArray[Any]] = {
            "fused": self.fused,
            "keys": _text(self.keys),
            "truncated": _text(self.truncated),
        }
        tensors |= {f"alone.{modality}": values for modality, values in self.alone.items()}
        tensors |= {f"present.{modality}": values.astype(np.uint8) for modality, values in self.present.items()}
        tensors |= {f"centres.{modality}": values for modality, values in self.centres.items()}
        if self.residues:
            tensors |= {f"residues.{name}": values for name, values in vars(self.residues).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.partial")
        about = canonical({"format": FORMAT, "model": self.model})
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, staged, {"embeddings": about}
        )
        staged.chmod(path.parent.stat().st_mode & 0o666)  # the library writes for the owner alone
        os.replace(staged, path)

    def nearest(
        self, query: Mapping[Modality, NDArray[np.float32]], k: int, by: Sequence[Modality] | None = None
    ) -> list[Hit]:
        """The k best for a query's vectors (modality → [D], each encoded alone), best first; ties in the order of keys.

        A score is the mean cosine over pairs (a modality of the query, one of the protein), each vector less its
        modality's centre: what all proteins of a modality have in common is by far the longest part of their vectors,
        and without subtracting it every query finds the same few proteins.

        By default like with like: sequence with sequence, …; a protein that shares no modality with the query is
        compared in all pairs. `by`: all pairs with these modalities of the protein. Proteins with nothing to compare
        are left out. Cosines between modalities run lower than within one, so a list which mixes proteins of different
        modalities mixes scales; name one modality in `by` where that matters.
        """
        like, like_pairs = self._cosines(query, [(m, m) for m in query if m in self.present] if by is None else [])
        every, every_pairs = self._cosines(
            query, [(m, n) for m in query for n in self.present if by is None or n in by]
        )
        total = np.where(like_pairs > 0, like, every)
        pairs = np.where(like_pairs > 0, like_pairs, every_pairs)
        scores = total / np.maximum(pairs, 1)
        order = sorted(np.flatnonzero(pairs), key=lambda i: (-scores[i], self.keys[i]))
        return [Hit(self.keys[i], float(scores[i])) for i in order[:k]]

    def _cosines(
        self, query: Mapping[Modality, NDArray[np.float32]], pairs: Sequence[tuple[Modality, Modality]]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(sum of cosines [N], how many [N]) over (query's, protein's) modalities, where the protein has its one."""
        total, count = np.zeros(len(self)), np.zeros(len(self), np.int64)
        for ours, theirs in pairs:
            items, asked = self.alone[theirs] - self._centre(theirs), query[ours][None] - self._centre(ours)
            cosine = _unit(items) @ _unit(asked)[0]
            total += np.where(self.present[theirs], cosine, 0)
            count += self.present[theirs]
        return total, count

    def _centre(self, modality: Modality) -> NDArray[np.float32] | float:
        return self.centres.get(modality, 0.0)

    @staticmethod
    def load(path: str | Path) -> "Embeddings":
        """Raises ValueError for a file that is not there, not embeddings, or of a newer format."""
        if not Path(path).is_file():
            raise ValueError(f"no embeddings at {path}; `fourfold embed` writes them")
        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {})["embeddings"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            check_format(about["format"], path)
            residues = {name: tensors.get(f"residues.{name}") for name in ("values", "positions", "offsets")}
            return Embeddings(
                keys=_lines(tensors["keys"]),
                fused=tensors["fused"],
                alone={m: tensors[f"alone.{m}"] for m in Modality if f"alone.{m}" in tensors},
                present={m: tensors[f"present.{m}"].astype(np.bool_) for m in Modality if f"present.{m}" in tensors},
                model=about["model"],
                truncated=_lines(tensors["truncated"]),
                centres={m: tensors[f"centres.{m}"] for m in Modality if f"centres.{m}" in tensors},
                residues=None if residues["values"] is None else Residues(**residues),  # type: ignore[arg-type]
            )
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no embeddings: {type(error).__name__}: {error}") from error


def named(keys: Sequence[str]) -> str:
    """The first few keys, and how many more there are."""
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def check_format(number: int, path: str | Path) -> None:
    if number != FORMAT:
        raise ValueError(
            f"{path}: format {number}; this version of Fourfold reads {FORMAT}"
            + ("; update it" if number > FORMAT else "")
        )


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _text(lines: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)


def _lines(data: NDArray[np.uint8]) -> tuple[str, ...]:
    text = data.tobytes().decode()
    return tuple(text.split("\n")) if text else ()
