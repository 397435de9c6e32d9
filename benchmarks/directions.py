"""Do the systems' findings hold, in direction, for small models on the pack? Three seeds each, results with intervals.

    python benchmarks/chains.py PACK > held.toml                 # DeepFRI's test chains and their relatives held out
    FOURFOLD_PACK=PACK FOURFOLD_EXPANDED=EXPANDED fourfold prepare held.toml --out DATA
    python benchmarks/directions.py --data DATA --pack PACK --structures EXPANDED --runs FOLDER [--budget MINUTES]

Arms and claims are in `directions.toml`; `claims.py` reads it, and tells how they came out. Every arm trains for equal
steps, on features that are stored beside DATA first. Half of a step's proteins have sequence, structure and function;
the others are drawn from all else that the arm's model reads, by how many there are; `paired` arms have the first half
alone. So arms see as many triples, and what is unpaired comes on top.

Then its export embeds DeepFRI's chains, sequence and structure together, on which a probe is trained
(`pretrain.evaluation.probes`), and the held-out triples of DATA, for retrieval, less the mean of training proteins as
`Embeddings.nearest` takes it. Frozen encoders' features are those of training, in bfloat16, whichever model asks.
Proteins of DeepFRI's test chains are held out of training, with their relatives; those of its validation chains, by
which a probe stops, are not, and a model that reads functions may have read theirs.

What is finished stays in FOLDER, and in the file of `--json`: further sittings of the same settings go on, with that
file elsewhere too. After `--budget` no run begins; `--arms` limits what is begun, not what is told. Failures are named.

The papers' figures are of full-size models; only directions are compared, and nothing was tuned for one to agree: but
for steps and what a step holds the arms are the tiny configurations as they are, made for the sample's few proteins.
Steps are small for contrast: a protein with all three is compared with seven others, and with those of the other half
that have both sides, where papers compare hundreds. What an arm learns nothing from (texts alone, in two towers) takes
its share of the other half all the same. Both may hold back arms that only compare, and with them what is claimed over
them. AMMA and Fourfold read structures through GearNet; Align-Pro and Bi-Hierarchical through GVP, which tells hidden
residues better, and Bi-Hierarchical trains it further. `fourfold-gvp` has it too, but for one depth of it where GearNet
has two. self-SSGI trains its own. Align-Pro's are its first stage. `mean` is of EC, MF, BP and CC.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import chains
import rows
import torch
from claims import SEEDS, Arm, claims_of, compared, report
from safetensors.torch import load_file, save_file

from data_prep.proteins import read
from pretrain import config
from pretrain.batch import Batch, Tokens
from pretrain.data.dataset import Dataset
from pretrain.embeddings import Embeddings
from pretrain.encoders.bundle import TRAINED, Encoders, EncodersConfig, as_asked
from pretrain.evaluation.metrics import recall_at_k
from pretrain.evaluation.probes import Labelled, ProbeConfig, probe
from pretrain.export import UNNAMED, export
from pretrain.inference import Exported, load
from pretrain.models.unimodal import Unimodal, UnimodalConfig
from pretrain.run import RunConfig
from pretrain.sample import Modality, Sample, canonical

K = 10
TRIPLES = "sequence_structure_function"  # the group of those that have all three
# Of a configuration, what a run here sets itself, or what changes nothing of a figure.
OURS = {"out": True, "seed": True, "steps": True, "data": {"path"}, "checkpoint": True, "validation": True, "log": True}


@dataclass(frozen=True)
class Bench:
    """Where things are, and how much is done."""

    data: Path
    pack: Path
    structures: Path
    runs: Path
    steps: int
    batch: int
    most: int  # chains of a split, and held-out triples
    quick: bool = False  # nothing is stored first

    def out(self, arm: str, seed: int) -> Path:
        return self.runs / arm / str(seed)


def finish(bench: Bench, name: str, arm: Arm, seed: int) -> dict[str, float]:
    """Metric → value of one arm's run; read where it was finished before. ValueError where other settings began it."""
    out = bench.out(name, seed)
    out.mkdir(parents=True, exist_ok=True)
    _same(bench, arm, out)
    done = out / "found.json"
    if done.is_file():
        return json.loads(done.read_text())
    model = _alone(arm) if arm.alone else _trained(bench, arm, seed, out)
    _remember(model, bench.runs / "features")
    found = _probed(bench, model, seed, out) | (_retrieved(bench, model) if arm.retrieval else {})
    found["mean"] = statistics.mean(found[name] for name in ("EC", "MF", "BP", "CC"))
    done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def restore(bench: Bench, arms: Mapping[str, Arm], path: Path) -> None:
    """Put the runs that a file of results holds into the folder, where they are not there already. ValueError for ones
    of other settings."""
    for name, seeds in json.loads(path.read_text()).get("runs", {}).items():
        if name not in arms:
            raise ValueError(f"{path} has runs of {name!r}, which is no arm of directions.toml; give another --json")
        _unlike(seeds["made"], _made(bench, arms[name]), f"{path}: {name}")
        for seed, found in seeds["found"].items():
            (out := bench.out(name, int(seed))).mkdir(parents=True, exist_ok=True)
            if not (out / "found.json").is_file():
                (out / "made.json").write_text(json.dumps(seeds["made"]) + "\n")
                (out / "found.json").write_text(json.dumps(found, indent=1) + "\n")


def _same(bench: Bench, arm: Arm, out: Path) -> None:
    """Refuse a folder that was begun with other settings: its figures are not of what is asked for."""
    made, path = _made(bench, arm), out / "made.json"
    if path.is_file():
        _unlike(json.loads(path.read_text()), made, str(out))
    path.write_text(json.dumps(made) + "\n")


def _unlike(before: dict[str, Any], made: dict[str, Any], what: str) -> None:
    if before != made:
        differ = ", ".join(
            f"{name} was {before.get(name)}, is {made[name]}" for name in made if before.get(name) != made[name]
        )
        raise ValueError(f"{what} was begun with other settings: {differ}. Give another place, or remove that one")


def _made(bench: Bench, arm: Arm) -> dict[str, Any]:
    """The settings that a run of any seed hangs on; of the configuration, what `_trained` leaves as it is."""
    run = _run(arm)
    own = run.model_dump(mode="json", exclude_unset=True, exclude=OURS)
    return {
        "run": _digest(own), "alone": arm.alone,
        "plan": "" if arm.alone else _digest(_plan(bench, arm)), "probe": ProbeConfig().model_dump(),
        "encoders": _weights(json.dumps(as_asked(run.frozen))),
        "tasks": _digest([task.chains for task in _tasks(bench)]),
        "steps": bench.steps, "batch": bench.batch, "most": bench.most, "data": Dataset.open(str(bench.data)).sha256,
    }  # fmt: skip


def _run(arm: Arm) -> RunConfig:
    return config.load(RunConfig, arm.config, list(arm.changes))


def _digest(told: Any) -> str:
    return sha256(canonical(told).encode()).hexdigest()


@cache
def _weights(encoders: str) -> str:
    """Of the encoders' weights as they are, which a configuration only names."""
    made = Encoders.build(EncodersConfig.model_validate_json(encoders))
    return _digest({modality: one["sha256"] for modality, one in made.identity().items()})


def _alone(arm: Arm) -> Exported:
    """The configuration's encoder of one modality, with nothing over it but the mean."""
    modality = Modality(arm.alone)
    run = _run(arm)
    encoders = EncodersConfig.model_validate({modality.value: getattr(run.encoders, modality)})
    model = Unimodal(UnimodalConfig.model_validate({"modality": modality}), None)
    return Exported(model.eval(), Encoders.build(encoders), UNNAMED, torch.device("cpu"))


def _trained(bench: Bench, arm: Arm, seed: int, out: Path) -> Exported:
    """Trained, or further, to its last step, and exported."""
    settings = {
        "data.path": bench.data, "out": out / "run", "seed": seed, "steps": bench.steps,
        "checkpoint.every": bench.steps, "validation.every": bench.steps, **_plan(bench, arm),
    }  # fmt: skip
    _stored(bench, arm)
    changes = (*arm.changes, *(f"{k}={v}" for k, v in settings.items()))  # the later one holds
    with (out / "output.txt").open("a") as told:
        subprocess.run(
            [sys.executable, "-m", "pretrain.train", arm.config, *changes], check=True, stdout=told, stderr=told
        )
    return load(out / "model" if (out / "model").is_dir() else export(out / "run", out / "model"))


def _plan(bench: Bench, arm: Arm) -> dict[str, Any]:
    """The settings that say which proteins a step has."""
    groups, reads = Dataset.open(str(bench.data)).groups("train"), {*_run(arm).model.modalities}
    others = {name: len(group) if reads & {*group.modalities} else 0 for name, group in groups.items()}
    others[TRIPLES] = 0
    weights = dict.fromkeys(others, 0) | {TRIPLES: 1} if arm.paired else others | {TRIPLES: sum(others.values())}
    table = ", ".join(f"{name} = {weight}" for name, weight in weights.items())
    return {"data.plan.samples": bench.batch // (1 + arm.paired), "data.plan.weights": f"{{ {table} }}"}


@cache
def _stored(bench: Bench, arm: Arm) -> None:
    """Features of the arm's frozen encoders beside the data set: equal ones are there once for all arms and seeds."""
    if bench.quick or not storable(arm):
        return
    command = [sys.executable, "-m", "cluster.cli", "encode", arm.config, *arm.changes, "--data", str(bench.data)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def storable(arm: Arm) -> bool:
    """Whether any of its encoders stays as it is."""
    model = _run(arm).model
    return not set(model.modalities) <= set(model.trains)


@cache
def _tasks(bench: Bench) -> list[chains.Task]:
    return [task.first(bench.most) for task in chains.tasks(bench.pack, bench.data)]


@cache
def _chains(bench: Bench) -> list[Sample]:
    """Those of all tasks."""
    keys = sorted({key for task in _tasks(bench) for part in task.chains.values() for key in part})
    return [one for key in keys for one in read(bench.structures / f"{key}.cif.gz")]


def _probed(bench: Bench, model: Exported, seed: int, out: Path) -> dict[str, float]:
    tasks, samples = _tasks(bench), _chains(bench)
    if not (path := out / "chains.safetensors").is_file():
        save_file({"fused": torch.from_numpy(_embedded(model, samples).fused)}, path)
    embeddings = load_file(path)["fused"]
    place = {sample.key.lower(): i for i, sample in enumerate(samples)}
    found = {}
    for task in tasks:
        parts = [
            Labelled(embeddings[[place[key.lower()] for key in task.chains[split]]], task.labels[split])
            for split in chains.SPLITS
        ]
        result = probe(parts[0], parts[1], parts[2], seed=seed)
        found |= {task.name: result.fmax, f"{task.name} AUPR": result.aupr}
    return found


def _embedded(model: Exported, samples: list[Sample]) -> Embeddings:
    """Linear maps in bfloat16, which takes half the time; but for the encoders that stay as they are."""
    with torch.autocast("cpu", torch.bfloat16):
        return model.embed(samples)


def _remember(model: Exported, folder: Path) -> None:
    """Have frozen encoders run once over the same batches, whichever model asks; bfloat16, as data sets' features."""
    names, encode = model.encoders.identity(), model.encoders.encode

    def remembered(batch: Batch, modality: Modality) -> Tokens:
        if getattr(model.encoders.config, modality).weights == TRAINED:
            return encode(batch, modality)  # one arm's alone
        given = getattr(batch, modality)
        parts = (getattr(given, one.name) for one in fields(given))
        digest = sha256(b"".join(part.numpy().tobytes() for part in parts if part is not None)).hexdigest()
        path = folder / names[modality]["features"] / f"{digest}.safetensors"
        if not path.is_file():
            with torch.autocast("cpu", enabled=False):  # as training had them
                found = encode(batch, modality)
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = {"values": found.values.bfloat16(), "offsets": found.offsets, "positions": found.positions}
            save_file(whole, part := path.with_suffix(f".{os.getpid()}"))
            part.rename(path)
        tensors = load_file(path)
        return Tokens(tensors["values"].float(), tensors["offsets"], tensors["positions"])

    model.encoders.encode = remembered


def _naive(bench: Bench) -> dict[str, float]:
    """Task, its AUPR, and the mean of tasks → what label frequencies score."""
    tasks = _tasks(bench)
    found = {name: value for task in tasks for name, value in task.naive.items()}
    return found | {"mean": statistics.mean(found[task.name] for task in tasks)} if tasks else {}


def _retrieved(bench: Bench, model: Exported) -> dict[str, float]:
    """Recall at K among held-out proteins that have sequence, structure and function, for each pair the model has."""
    dataset = Dataset.open(str(bench.data))
    count = min(bench.most, len(dataset.groups("test")[TRIPLES]))
    samples = [dataset.read("test", TRIPLES, i) for i in range(count)]
    found = _embedded(model, samples)
    texts = [
        one.function.texts[0].text if one.function and one.function.texts else ("no text", i)
        for i, one in enumerate(samples)
    ]
    recall = {}
    for i, a in enumerate(model.modalities):
        for b in model.modalities[i + 1 :]:
            both = found.present[a] & found.present[b]
            if not both.any():
                continue
            one, other = (torch.from_numpy(found.alone[m][both] - found.centres.get(m, 0)) for m in (a, b))
            same = [text for text, has in zip(texts, both, strict=True) if has] if Modality.FUNCTION in (a, b) else None
            result = recall_at_k(one, other, K, same)
            recall |= {
                f"{a}-{b}": result.recall, f"{a}-{b} chance": result.chance, f"{a}-{b} N": result.n,
                f"{a}-{b} median rank": result.median_rank,
            }  # fmt: skip
    return recall


def main() -> None:
    parser = rows.options(__doc__)
    for name in ("data", "pack", "structures", "runs"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes; no run begins after them")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16, help="proteins a step")
    arms, directions = claims_of()
    parser.add_argument("--arms", nargs="*", choices=list(arms), help="of directions.toml; all, with --quick two")
    chosen, began = parser.parse_args(), time.monotonic()
    size = (
        {"steps": 4, "batch": 8, "most": 40}
        if chosen.quick
        else {"steps": chosen.steps, "batch": chosen.batch, "most": 10**9}
    )
    bench = Bench(chosen.data, chosen.pack, chosen.structures, chosen.runs, **size, quick=chosen.quick)
    if chosen.json and chosen.json.is_file():
        try:
            restore(bench, arms, chosen.json)
        except ValueError as error:
            sys.exit(str(error))
    found: dict[str, dict[int, dict[str, float]]] = {}
    told = list(arms)[:2] if chosen.quick and not chosen.arms else list(arms)
    left, failed = 0, []
    for seed in SEEDS[:1] if chosen.quick else SEEDS:
        for arm in told:
            out = bench.out(arm, seed)
            late = time.monotonic() - began > 60 * chosen.budget
            if (late or arm not in (chosen.arms or told)) and not (out / "found.json").is_file():
                left += 1
                continue
            try:
                found.setdefault(arm, {})[seed] = finish(bench, arm, arms[arm], seed)
            except (subprocess.CalledProcessError, ValueError) as error:
                failed.append(f"{arm}, seed {seed}: {error}; {out / 'output.txt'} has more")
    naive = _naive(bench)
    claims = [claim for direction in directions if (claim := compared(direction, found, naive))]
    sizes = {one.name: one.sizes for one in _tasks(bench)}
    settings = {
        "steps": bench.steps, "batch": bench.batch, "chains": sizes, "runs_left": left, "naive": naive,
        "runs": {arm: {"made": _made(bench, arms[arm]), "found": seeds} for arm, seeds in found.items()},
    }  # fmt: skip
    report(claims, settings, chosen.json)
    if failed:
        sys.exit("\n".join(["failed:", *failed]))


if __name__ == "__main__":
    main()
