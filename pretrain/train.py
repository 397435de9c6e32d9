"""The loop. Run it under a launcher (`deepspeed --module pretrain.train CONFIG [a.b=value …]`) or as one process.

A run that exists is resumed from its newest verified checkpoint, on however many ranks are there now. SIGTERM and
SIGINT make a checkpoint and end the run in order.
"""

import argparse
import hashlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pretrain import checkpoint, config, distributed, models
from pretrain.batch import Batch, Losses
from pretrain.data.index import Dataset
from pretrain.data.loader import Loader, Step
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.encoders.bundle import Encoders
from pretrain.engine import Engine, StepResult, start
from pretrain.evaluation.evaluate import Embedded, Validation, validate
from pretrain.journal import Journal
from pretrain.run import RunConfig

log = logging.getLogger(__name__)


def train(run: RunConfig) -> None:
    """Train to `run.steps`, from the newest checkpoint of `run.out` if there is one. Collective."""
    device = start(run.engine)
    dataset = Dataset.open(run.data.path)
    encoders = Encoders.build(run.encoders).to(device)
    identity = _identity(run, dataset, encoders)
    if device.type == "cuda" and run.engine.precision == "bf16":
        encoders = encoders.to(torch.bfloat16)  # frozen, and nothing accumulates in them
    plan = Plan(dataset, "train", run.data.plan, run.seed, encoders.spec())
    loader = _loader(run, dataset, plan, run.engine.accumulate)
    found = _newest(run)
    engine, position = _begin(run, encoders, found, identity, device)
    with Journal(run.out, run.log.tensorboard) as journal, _stop_signal() as stop:
        _announce(run, plan, identity, found, journal)
        clock = time.perf_counter()
        for step in loader.steps(position) if position.step < run.steps else ():
            rate = run.optimizer.rate(position.step, run.steps)
            torch.manual_seed(_seed(run.seed, position.step))
            result = engine.step([batch.to(device) for batch in step.batches], encoders, rate)
            position = step.position
            clock = _log_step(run, plan, step, result, journal, clock)
            last = position.step >= run.steps
            stopping = _agreed(stop.requested, device)
            if last or position.step % run.validation.every == 0:
                _validate(run, dataset, engine, encoders, position.step, journal)
            if last or stopping or position.step % run.checkpoint.every == 0:
                _save(run, engine, position, identity, journal)
            if last or stopping:
                journal.record("end" if last else "stopped", position.step)
                break


def _loader(run: RunConfig, dataset: Dataset, plan: Plan, accumulate: int) -> Loader:
    place = distributed.rank(), distributed.world()
    return Loader(dataset, plan, plan.spec, *place, accumulate, run.data.workers, run.data.max_damaged_in_row)


def _begin(
    run: RunConfig,
    encoders: Encoders,
    found: checkpoint.Checkpoint | None,
    identity: dict[str, Any],
    device: torch.device,
) -> tuple[Engine, Position]:
    """The engine and the position: a fresh start, or exactly where the checkpoint left them."""
    torch.manual_seed(run.seed)
    model = models.build(run.model, encoders.widths())
    if found:
        _check_identity(found, identity)
        found.load_model(model)
    engine = Engine(model, run.engine, run.optimizer, device)
    if found:
        found.load_engine(engine)
    return engine, Position.from_json(found.state["position"]) if found else Position()


def _newest(run: RunConfig) -> checkpoint.Checkpoint | None:
    """Rank 0 verifies hashes, the others open what it found."""
    found = checkpoint.latest(run.checkpoints) if distributed.rank() == 0 else None
    name = distributed.gather_objects(found.path.name if found else None)[0]
    return checkpoint.Checkpoint.read(run.checkpoints / str(name)) if name else None


def _identity(run: RunConfig, dataset: Dataset, encoders: Encoders) -> dict[str, Any]:
    """What must not change between two sittings of one run: the data, the frozen encoders, the model, the seed."""
    tree = config.dump(run)
    return {
        "data": {"name": dataset.manifest["name"], "manifest_sha256": dataset.sha256},
        "encoders": encoders.identity(),
        "model": tree["model"],
        "plan": tree["data"]["plan"],
        "seed": run.seed,
    }


def _check_identity(found: checkpoint.Checkpoint, identity: dict[str, Any]) -> None:
    stored = found.state["identity"]
    changed = [name for name in identity if _essence(name, identity[name]) != _essence(name, stored.get(name))]
    if changed:
        raise ValueError(
            f"{found.path.parent.parent} was trained with another {', '.join(changed)}: "
            + "; ".join(f"{name} was {stored.get(name)}, is {identity[name]}" for name in changed)
            + ". Give the original configuration, or another `out` for a new run."
        )


def _essence(name: str, value: Any) -> Any:
    """What of an identity must be equal: of encoders the weights themselves, wherever they lie now."""
    if name == "encoders" and isinstance(value, dict):
        return {modality: encoder["sha256"] for modality, encoder in value.items()}
    return json.loads(json.dumps(value))


def _save(run: RunConfig, engine: Engine, position: Position, identity: dict[str, Any], journal: Journal) -> None:
    started = time.perf_counter()
    state = {"position": position.to_json(), "identity": identity, "config": config.dump(run)}
    path = checkpoint.save(run.checkpoints, engine, position.step, state, run.checkpoint)
    journal.record("checkpoint", position.step, path=path.name, seconds=round(time.perf_counter() - started, 3))


def _validate(
    run: RunConfig, dataset: Dataset, engine: Engine, encoders: Encoders, step: int, journal: Journal
) -> Validation:
    """Held-out losses and retrieval, with the same masks at every validation."""
    plan = Plan(dataset, run.validation.split, PlanConfig(samples=run.validation.batch), run.seed, encoders.spec())
    loader = _loader(run, dataset, plan, 1)

    def forward(batch: Batch) -> tuple[Losses, Embedded]:
        batch = batch.to(engine.device)
        features = encoders(batch)
        losses = engine.evaluate(batch, features, "losses")
        found = engine.evaluate(batch, features, "embeddings")
        return losses, {m: (values, found.present[m]) for m, values in found.values.items()}

    batches = (batch for held in loader.once(run.validation.samples) for batch in held.batches)
    result = validate(forward, batches, run.validation.k)
    journal.record("validation", step, **result.record())
    shown = " · ".join(f"{pair} R@{r.k} {r.recall:.2f} (chance {r.chance:.2f})" for pair, r in result.retrieval.items())
    journal.say(f"step {step}: validation loss {result.loss:.4f}; {shown}")
    return result


def _log_step(run: RunConfig, plan: Plan, step: Step, result: StepResult, journal: Journal, clock: float) -> float:
    """One record per logged step; tokens are those that fusion saw, over all ranks. Returns the time now."""
    number, now = step.position.step, time.perf_counter()
    seconds = now - clock
    tokens = sum(int(lengths.sum()) for batch in step.batches for lengths in batch.lengths.values())
    total = int(distributed.add(torch.tensor([tokens], device=_device())).item())
    if number % run.log.every == 0 or number in (1, run.steps):
        facts = {
            "loss": result.total,
            "losses": result.losses,
            "gradient_norm": result.gradient_norm,
            "learning_rate": result.learning_rate,
            "samples": len(step.plan.entries),
            "tokens": total,
            "tokens_per_second": round(total / seconds, 1),
            "seconds": round(seconds, 4),
            "waited": round(step.waited, 4),
            "epoch": round(plan.epoch(step.position), 4),
        }
        journal.record("step", number, **facts)
        journal.say(
            f"step {number}/{run.steps}  loss {result.total:.4f}  "
            + "  ".join(f"{name.rpartition('/')[2]} {value:.4f}" for name, value in result.losses.items())
            + f"  {total / seconds:,.0f} tokens/s"
        )
    if step.skipped:
        journal.record("skipped", number, samples=list(step.skipped))
    return now


def _announce(
    run: RunConfig, plan: Plan, identity: dict[str, Any], found: checkpoint.Checkpoint | None, journal: Journal
) -> None:
    world = distributed.world()
    if journal.writes:
        (run.out / "config.json").write_text(json.dumps(config.dump(run), indent=1) + "\n")
    journal.say(
        f"{sum(plan.sizes.values()):,} proteins in {len(plan.sizes)} groups, {world} rank(s), ZeRO {run.engine.stage}"
    )
    for modality, encoder in identity["encoders"].items():
        journal.say(f"encoder {modality}: {encoder['kind']}, weights {encoder['weights']}")
    if found:
        journal.record("resume", found.step, path=found.path.name, world=world)
        journal.say(f"resumed from {found.path} at step {found.step}")
    else:
        facts = {"groups": plan.sizes, "left_out": plan.left_out, "truncated": plan.truncated}
        journal.record("start", 0, world=world, identity=identity, **facts)


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """SIGTERM and SIGINT ask for an end in order; a second one is the usual end at once."""
    stop = _Stop()

    def ask(number: int, _: object) -> None:
        stop.requested = True
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _agreed(requested: bool, device: torch.device) -> bool:
    """Whether any rank was asked to stop: all must take the same last step."""
    return bool(distributed.add(torch.tensor([int(requested)], device=device)).item())


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _seed(seed: int, step: int) -> int:
    """The global generators' seed for a step (dropout, if a model has any): stateless, so there is none to save."""
    return int.from_bytes(
        hashlib.blake2b(f"{seed}/{step}/{distributed.rank()}".encode(), digest_size=7).digest(), "big"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pretrain.train", description="Train, or resume, one run.")
    parser.add_argument("config", help="a TOML file")
    parser.add_argument("overrides", nargs="*", help="a.b=value")
    parser.add_argument("--local_rank", type=int, help="set by the deepspeed launcher")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        train(config.load(RunConfig, options.config, options.overrides))
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":  # the launcher's, for errors before there is a process group
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
