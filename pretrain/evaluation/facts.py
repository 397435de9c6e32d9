"""What a report tells of, read once and held as plain data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.evaluation.history import History
from pretrain.evaluation.map import Map


@dataclass(frozen=True)
class Facts:
    """Everything the sections read: plain data. An empty table means that the part is not there."""

    manifest: dict[str, Any]
    rejected: tuple[dict[str, Any], ...]
    history: History
    config: dict[str, Any]
    model: dict[str, Any]
    map: Map | None

    @property
    def splits(self) -> dict[str, dict[str, int]]:
        """Split → group → samples."""
        splits = self.manifest.get("splits", {})
        return {split: {name: group["samples"] for name, group in groups.items()} for split, groups in splits.items()}

    @property
    def samples(self) -> int:
        return sum(sum(groups.values()) for groups in self.splits.values())

    @staticmethod
    def read(data: Path, run: Path, model: Path) -> "Facts":
        """From a data set's, a run's and an exported model's folder; what is missing there is empty here."""
        return Facts(
            manifest=_json(data / "manifest.json"),
            rejected=_rejected(data / "rejected.jsonl"),
            history=History.read(run),
            config=_json(run / "config.json"),
            model=_json(model / "config.json"),
            map=Map.draw(data, model),
        )


def _json(path: Path) -> dict[str, Any]:
    """A JSON table, or an empty one where there is no such file or it is damaged: a report shows what there is."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _rejected(path: Path) -> tuple[dict[str, Any], ...]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return tuple(json.loads(line) for line in lines if line.strip())
