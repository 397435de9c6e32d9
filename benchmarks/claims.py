"""What `directions.py` trains and claims, read from its table; and how each claim came out, of the seeds there are.

Intervals are over seeds, of training and probe (of the probe, where an encoder is taken as it is); the test proteins
are the same. Among a hundred rows some differ clearly by chance alone.
"""

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
COLUMNS = ["claim", "metric", "paper's", "ours", "difference", "direction", "seeds"]
ABOUT = """Means over seeds, ± half of a 95 % interval; `{}` has the runs.

- direction: whether the first is above the second, as claimed; what no paper claims (–) is claimed by this table alone.
- within noise: the difference is less than its interval, or neither of the two is clearly above what knows nothing of
  proteins: the frequencies of labels (naive), a random order (chance, among N proteins)."""
T95 = {2: 4.303, 1: 12.706}  # Student's t, by degrees of freedom: half of a 95 % interval over the standard error


@dataclass(frozen=True)
class Arm:
    """A shipped configuration, and what is changed in it. paired: trained on proteins with sequence, structure and
    function alone. alone: a modality, whose encoder is taken as it is. retrieval: whether its embeddings are compared
    across modalities, which takes as long again."""

    config: str
    changes: tuple[str, ...] = ()
    paired: bool = False
    alone: str = ""
    retrieval: bool = True


@dataclass(frozen=True)
class Direction:
    """A claim: `better` beats `other` in `metric`. source: the two figures of its paper, None where it has none.
    source_metric: what these are of, where that is not `metric`."""

    what: str
    better: str
    other: str
    metric: str
    source: tuple[float, float] | None = None
    source_metric: str = ""


def compared(
    direction: Direction, found: Mapping[str, Mapping[int, Mapping[str, float]]], naive: Mapping[str, float]
) -> dict[str, Any] | None:
    """The claim as it came out: means, half-widths of 95 % intervals, and of the paired difference; of retrieval what
    chance gives, and among how many. None before both arms have a run of one seed in common.

    naive: metric → what label frequencies score. clear: of all seeds, the difference is more than its interval, and
    one of the two knows something: in retrieval more than two standard errors above chance, of a task with more than
    its interval above naive.
    """
    better, other = (found.get(arm, {}) for arm in (direction.better, direction.other))
    seeds = [
        seed for seed in SEEDS if direction.metric in better.get(seed, {}) and direction.metric in other.get(seed, {})
    ]
    if not seeds:
        return None
    ours, theirs = ([arm[seed][direction.metric] for seed in seeds] for arm in (better, other))
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    gain, half = statistics.mean(gains), _half(gains)
    first, floor = better[seeds[0]], naive.get(direction.metric)
    chance, n = (first.get(f"{direction.metric} {name}") for name in ("chance", "N"))
    if chance is not None and n is not None:
        knows = max(map(statistics.mean, (ours, theirs))) > chance + 2 * (chance * (1 - chance) / n) ** 0.5
    else:
        knows = floor is None or any(statistics.mean(one) - (_half(one) or 0.0) > floor for one in (ours, theirs))
    clear = len(seeds) == len(SEEDS) and half is not None and abs(gain) > half and knows
    return {
        **asdict(direction), "seeds": len(seeds), "ours": _mean(ours), "theirs": _mean(theirs),
        "difference": {"mean": gain, "half": half}, "verdict": "agrees" if gain > 0 else "does not agree",
        "clear": clear, "chance": chance, "n": n, "naive": floor,
        "median_ranks": [arm[seeds[0]].get(f"{direction.metric} median rank") for arm in (better, other)],
    }  # fmt: skip


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "half": _half(values), "values": list(values)}


def _half(values: Sequence[float]) -> float | None:
    """Half of a 95 % interval of the mean; None of one value."""
    if len(values) < 2:
        return None
    return T95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5


def report(claims: list[dict[str, Any]], settings: Mapping[str, Any], path: Path | None) -> None:
    """Print the claims; write them, with `settings` (`runs_left` among them) to `path`, and as a page beside it."""
    table = Table(*COLUMNS)
    for told in map(_told, claims):
        table.add_row(*told)
    Console(width=180).print(table)
    if left := settings["runs_left"]:
        print(f"{left} runs are not done yet: run again with the same --runs to go on")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = [_row(claim) for claim in claims]
        path.write_text(json.dumps(rows.machine() | dict(settings) | {"rows": made}, indent=1) + "\n")
        lines = [COLUMNS, ["---"] * len(COLUMNS), *map(_told, claims)]
        page = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        path.with_suffix(".md").write_text(f"# {path.stem}\n\n{ABOUT.format(path.name)}\n\n{page}\n")


def _told(claim: dict[str, Any]) -> list[str]:
    """A claim's line."""
    source = "–" if claim["source"] is None else "{:.3f} over {:.3f}".format(*claim["source"])
    source += f" ({claim['source_metric']})" if claim["source_metric"] else ""
    ours = f"{claim['ours']['mean']:.3f} over {claim['theirs']['mean']:.3f}"
    half = claim["difference"]["half"]
    gain = f"{claim['difference']['mean']:+.3f}" + ("" if half is None else f" ± {half:.3f}")
    if claim["chance"] is not None:
        ours += f" (chance {claim['chance']:.3f}, N {claim['n']:,})"
    if claim["naive"] is not None:
        ours += f" (naive {claim['naive']:.3f})"
    verdict = claim["verdict"] + ("" if claim["clear"] else ", within noise")
    return [claim["what"], claim["metric"], source, ours, gain, verdict, str(claim["seeds"])]


def _row(claim: dict[str, Any]) -> dict[str, Any]:
    """As of every benchmark, and what is more to say of means of few seeds."""
    metric, ours, theirs = claim["metric"], claim["ours"]["mean"], claim["theirs"]["mean"]
    unit = "recall" if "-" in metric else "AUPR" if metric.endswith("AUPR") else "Fmax"
    row = rows.Row(f"{claim['what']} ({metric})", ours, theirs, claim["other"], ours / max(theirs, 1e-9), 1.0, unit)
    more = {name: claim[name] for name in ("source", "source_metric", "seeds", "difference", "verdict", "clear")}
    if claim["chance"] is not None:
        more |= {name: claim[name] for name in ("chance", "n", "median_ranks")}
    if claim["naive"] is not None:
        more["naive"] = claim["naive"]
    return asdict(row) | more | {"ours_each": claim["ours"], "peer_each": claim["theirs"]}


def claims_of(path: Path = CLAIMS) -> tuple[dict[str, Arm], list[Direction]]:
    tree = tomllib.loads(path.read_text())
    arms = {name: Arm(**(one | {"changes": tuple(one.get("changes", ()))})) for name, one in tree["arms"].items()}
    return arms, [claim for one in tree["directions"] for claim in _each(**one)]


def _each(
    what: str,
    better: str,
    other: str,
    metrics: Sequence[str],
    source: Mapping[str, list[float]] | None = None,
    source_metric: Mapping[str, str] | None = None,
) -> list[Direction]:
    """A claim for each of its metrics. ValueError where the source has figures of one that is not among them."""
    source, source_metric = source or {}, source_metric or {}
    if wrong := {*source, *source_metric} - {*metrics}:
        raise ValueError(f"{what}: the paper's figures are of {', '.join(sorted(wrong))}; metrics are {metrics}")
    return [
        Direction(what, better, other, metric, (source[metric][0], source[metric][1]) if metric in source else None,
                  source_metric.get(metric, ""))
        for metric in metrics
    ]  # fmt: skip
