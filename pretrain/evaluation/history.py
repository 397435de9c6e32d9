"""A run's log read back: `log.jsonl`, one JSON record per line, appended across stops and resumes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.sample import Modality

Record = dict[str, Any]


@dataclass(frozen=True)
class History:
    """What happened in a run, in order.

    steps, validations: the records that count, one per step, sorted. A step that was done again after a resume counts
    once, as the last time it was done; `repeated` is how many were. resumes: steps that the run went on from.
    others: every other record, in the log's order. damaged: lines that are no records (a killed process leaves one).
    """

    steps: tuple[Record, ...] = ()
    validations: tuple[Record, ...] = ()
    resumes: tuple[int, ...] = ()
    others: tuple[Record, ...] = ()
    repeated: int = 0
    damaged: int = 0

    @staticmethod
    def read(run: Path) -> "History":
        """The history of a run's folder; an empty one where there is no log yet."""
        path = run / "log.jsonl"
        steps: dict[int, Record] = {}
        validations: dict[int, Record] = {}
        resumes: list[int] = []
        others: list[Record] = []
        repeated = damaged = 0
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        for line in filter(str.strip, lines):
            record = _record(line)
            if record is None:
                damaged += 1
            elif record["event"] == "step":
                repeated += record["step"] in steps
                steps[record["step"]] = record
            elif record["event"] == "validation":
                validations[record["step"]] = record
            elif record["event"] == "resume":
                resumes.append(record["step"])
            else:
                others.append(record)
        return History(
            tuple(steps[step] for step in sorted(steps)),
            tuple(validations[step] for step in sorted(validations)),
            tuple(resumes),
            tuple(others),
            repeated,
            damaged,
        )

    def column(self, *path: str, validation: bool = False) -> list[tuple[float, float]]:
        """(step, value) where the records have a number at `path`: `column("losses", "structure")`."""
        return list(_numbers(self.validations if validation else self.steps, path))

    def losses(self) -> tuple[str, ...]:
        """The names of the loss terms, in the order of the modalities that they are about."""
        names = {name for record in (*self.steps, *self.validations) for name in record.get("losses", {})}
        return tuple(sorted(names, key=lambda name: ([m not in name for m in Modality], name)))

    def last(self, event: str) -> Record | None:
        """The newest of the other records of this kind."""
        return next((record for record in reversed(self.others) if record["event"] == event), None)


def _record(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    numbered = record["event"] in ("step", "validation", "resume")
    return record if not numbered or isinstance(record.get("step"), int) else None


def _numbers(records: tuple[Record, ...], path: tuple[str, ...]) -> Iterator[tuple[float, float]]:
    for record in records:
        value: Any = record
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            yield float(record["step"]), float(value)
