"""What `directions.py` trains and claims, read from its table; and how each claim came out, of the seeds there are."""

import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rows
from rich.console import Console
from rich.table import Table

CLAIMS = Path(__file__).with_name("directions.toml")
SEEDS = (0, 1, 2)
T95 = {2: 4.303, 1: 12.706}  # Student's t, by degrees of freedom: half of a 95 % interval over the standard error


@dataclass(frozen=True)
class Arm:
    """A shipped configuration, and what is changed in it. alone: a modality, whose encoder is taken as it is.
    retrieval: whether its embeddings are compared across modalities, which takes as long again."""

    config: str
    changes: tuple[str, ...] = ()
    alone: str = ""
    retrieval: bool = True


@dataclass(frozen=True)
class Direction:
    """A claim: `better` beats `other` in `metric`. seed: the two figures of the source, None where it has none.
    seed_metric: what these are of, where that is not `metric`."""

    what: str
    better: str
    other: str
    metric: str
    seed: tuple[float, float] | None = None
    seed_metric: str = ""


def compared(direction: Direction, found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, Any] | None:
    """The claim as it came out: means, half-widths of 95 % intervals, and of the paired difference; None before both
    arms have a run of one seed in common."""
    better, other = (found.get(arm, {}) for arm in (direction.better, direction.other))
    seeds = [
        seed for seed in SEEDS if direction.metric in better.get(seed, {}) and direction.metric in other.get(seed, {})
    ]
    if not seeds:
        return None
    ours, theirs = ([arm[seed][direction.metric] for seed in seeds] for arm in (better, other))
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    gain, half = statistics.mean(gains), _half(gains)
    verdict = "agrees" if gain > 0 else "does not agree"
    return {
        **asdict(direction), "seeds": len(seeds), "ours": _mean(ours), "theirs": _mean(theirs),
        "difference": {"mean": gain, "half": half}, "verdict": verdict, "clear": half is not None and abs(gain) > half,
    }  # fmt: skip


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "half": _half(values), "values": list(values)}


def _half(values: Sequence[float]) -> float | None:
    """Half of a 95 % interval of the mean; None of one value."""
    if len(values) < 2:
        return None
    return T95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5


def report(claims: list[dict[str, Any]], naive: Mapping[str, float], left: int, path: Path | None) -> None:
    """naive: task → Fmax without any embedding, from how common its labels are."""
    table = Table("claim", "metric", "seed's", "ours", "difference", "direction", "seeds")
    for claim in claims:
        seed = "–" if claim["seed"] is None else "{:.3f} over {:.3f}".format(*claim["seed"])
        seed += f" ({claim['seed_metric']})" if claim["seed_metric"] else ""
        ours = f"{claim['ours']['mean']:.3f} over {claim['theirs']['mean']:.3f}"
        half = claim["difference"]["half"]
        gain = f"{claim['difference']['mean']:+.3f}" + ("" if half is None else f" ± {half:.3f}")
        verdict = claim["verdict"] + ("" if claim["clear"] else ", within noise")
        table.add_row(claim["what"], claim["metric"], seed, ours, gain, verdict, str(claim["seeds"]))
    Console(width=180).print(table)
    print("Fmax of label frequencies alone: " + ", ".join(f"{task} {value:.3f}" for task, value in naive.items()))
    if left:
        print(f"{left} runs are not done yet: run again with the same --runs to go on")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = [_row(claim) for claim in claims]
        path.write_text(
            json.dumps(rows.machine() | {"runs_left": left, "naive": dict(naive), "rows": made}, indent=1) + "\n"
        )


def _row(claim: dict[str, Any]) -> dict[str, Any]:
    """As of every benchmark, and what is more to say of means of few seeds."""
    metric, ours, theirs = claim["metric"], claim["ours"]["mean"], claim["theirs"]["mean"]
    unit = "recall" if "-" in metric else "Fmax"
    row = rows.Row(f"{claim['what']} ({metric})", ours, theirs, claim["other"], ours / max(theirs, 1e-9), 1.0, unit)
    more = {name: claim[name] for name in ("seed", "seed_metric", "seeds", "difference", "verdict", "clear")}
    return asdict(row) | more | {"ours_each": claim["ours"], "peer_each": claim["theirs"]}


def claims_of(path: Path = CLAIMS) -> tuple[dict[str, Arm], list[Direction]]:
    tree = tomllib.loads(path.read_text())
    arms = {name: Arm(**(one | {"changes": tuple(one.get("changes", ()))})) for name, one in tree["arms"].items()}
    made = [Direction(**(one | ({"seed": tuple(one["seed"])} if "seed" in one else {}))) for one in tree["directions"]]
    return arms, made
