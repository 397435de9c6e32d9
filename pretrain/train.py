"""The loop. Run it under a launcher (`deepspeed --module pretrain.train CONFIG [a.b=value …]`) or as one process.

A run that exists is resumed from its newest verified checkpoint, on however many ranks are there now. SIGTERM and
SIGINT make a checkpoint and end the run in order.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pretrain import checkpoint, config, distributed, models
from pretrain.batch import Batch, Losses
from pretrain.data.index import Dataset
from pretrain.data.loader import Loader, Step
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.data.stored import Stored, choose
from pretrain.encoders.bundle import Encoders
from pretrain.engine import Engine, StepResult, start
from pretrain.evaluation.evaluate import Embedded, Validation, validate
from pretrain.journal import Journal
from pretrain.run import RunConfig, check_identity, identity_of
from pretrain.sample import Modality

log = logging.getLogger(__name__)


def train(run: RunConfig) -> None:
    """Train to `run.steps`, from the newest checkpoint of `run.out` if there is one. Collective."""
    device = start(run.engine)
    found = _newest(run)
    parts = distributed.together(lambda: _prepare(run, found))
    _check_alike(parts.stored)
    engine, position = _begin(run, parts, found, device)
    encoders = parts.encoders.to(device)
    if device.type == "cuda" and run.engine.precision == "bf16":
        encoders = encoders.to(torch.bfloat16)  # frozen, and nothing accumulates in them
    with distributed.together(lambda: _open_journal(run, position.step)) as journal, _stop_signal() as stop:
        _announce(run, parts, found, journal)
        began = time.perf_counter()
        for step in parts.loader.steps(position) if position.step < run.steps else ():
            rate = run.optimizer.rate(position.step, run.steps)
            torch.manual_seed(_seed(run.seed, position.step))
            result = engine.step([batch.to(device) for batch in step.batches], encoders, rate)
            position, last = step.position, step.position.step >= run.steps
            stopping, tokens, skipped = _exchange(stop.requested, step)
            _log_step(run, step, result, tokens, time.perf_counter() - began, parts.loader.plan, journal)
            if skipped:
                journal.record("skipped", position.step, split="train", samples=skipped)
            _check_finite(result, position.step)
            if last or position.step % run.validation.every == 0:
                _validate(run, parts.held_out, engine, encoders, position.step, journal)
            if last or stopping or position.step % run.checkpoint.every == 0:
                _save(run, engine, position, parts, journal)
            if last or stopping:
                journal.record("end" if last else "stopped", position.step)
                break
            began = time.perf_counter()


@dataclass(frozen=True)
class _Parts:
    """What a run is made of before there is a model. Encoders are on the CPU yet, in float32; those whose features are
    stored were needed for their identity only, and are gone."""

    encoders: Encoders
    loader: Loader
    held_out: Loader
    identity: dict[str, Any]
    stored: Stored


def _prepare(run: RunConfig, found: checkpoint.Checkpoint | None = None) -> _Parts:
    """Everything that can be wrong with a configuration or its files is found here, before the first step."""
    dataset = Dataset.open(run.data.path)
    encoders = Encoders.build(run.frozen)
    spec, identity = encoders.spec(), identity_of(run, dataset, encoders)
    names = {
        modality: (identity["encoders"][modality]["features"], width) for modality, width in encoders.widths().items()
    }
    before = [Modality(name) for name in found.state.get("stored", ())] if found else None
    stored = choose(dataset, names, ("train", run.validation.split), run.data.features, before)
    encoders.release(stored.widths)
    place = distributed.rank(), distributed.world()

    def loader(split: str, how: PlanConfig, accumulate: int) -> Loader:
        plan = Plan(dataset, split, how, run.seed, spec)
        limit = run.data.max_damaged_in_row
        return Loader(dataset, plan, spec, *place, accumulate, run.data.workers, limit, stored)

    training = loader("train", run.data.plan, run.engine.accumulate)
    try:
        held_out = loader(run.validation.split, PlanConfig(samples=run.validation.batch), 1)
    except ValueError as error:
        raise ValueError(f"validation (its `split` and `batch`): {error}") from error
    return _Parts(encoders, training, held_out, identity, stored)


def _check_alike(stored: Stored) -> None:
    """Ranks see the data set through file systems of their own. All must read the same features, or a step would depend
    on how it is cut. Collective."""
    everyone = distributed.gather_objects({modality.value: note for modality, note in stored.notes.items()})
    read = distributed.gather_objects([modality.value for modality in stored.widths])
    if differ := [rank for rank, each in enumerate(read) if each != read[0]]:
        raise distributed.Everywhere(
            f"ranks 0 and {differ[0]} do not see the same stored features: {everyone[0]} and {everyone[differ[0]]}; "
            "give every host the whole data set, or set data.features=live"
        )


def _begin(
    run: RunConfig, parts: _Parts, found: checkpoint.Checkpoint | None, device: torch.device
) -> tuple[Engine, Position]:
    """The engine and the position: a fresh start, or exactly where the checkpoint left them."""

    def build() -> models.Model:
        torch.manual_seed(run.seed)
        model = models.build(run.model, parts.encoders.widths())
        if found:
            check_identity(found, parts.identity)
            found.load_model(model)
        return model

    engine = Engine(distributed.together(build), run.engine, run.optimizer, device)
    if found:
        found.load_engine(engine)
    return engine, Position.from_json(found.state["position"]) if found else Position()


def _newest(run: RunConfig) -> checkpoint.Checkpoint | None:
    """Rank 0 verifies hashes, the others open what it found."""
    found = distributed.together(lambda: checkpoint.latest(run.checkpoints) if distributed.rank() == 0 else None)
    name = distributed.gather_objects(found.path.name if found else None)[0]
    return distributed.together(lambda: checkpoint.Checkpoint.read(run.checkpoints / str(name))) if name else None


def _save(run: RunConfig, engine: Engine, position: Position, parts: _Parts, journal: Journal) -> None:
    started = time.perf_counter()
    stored = [modality.value for modality in parts.stored.widths]
    what = {"position": position.to_json(), "identity": parts.identity, "config": config.dump(run), "stored": stored}
    path = checkpoint.save(run.checkpoints, engine, position.step, what, run.checkpoint)
    journal.record("checkpoint", position.step, path=path.name, seconds=round(time.perf_counter() - started, 3))


def _check_finite(result: StepResult, step: int) -> None:
    """The result is of all ranks, so all raise. What is not finite has already reached the weights: none is saved."""
    if not (math.isfinite(result.total) and math.isfinite(result.gradient_norm)):
        raise distributed.Everywhere(
            f"training has diverged: at step {step} the loss is {result.total:g}, the gradient's norm "
            f"{result.gradient_norm:g}. It was not saved: lower optimizer.lr, warm up longer or clip harder, and start "
            "again; the run goes on from its newest checkpoint"
        )


def _validate(
    run: RunConfig, loader: Loader, engine: Engine, encoders: Encoders, step: int, journal: Journal
) -> Validation:
    """Held-out losses and retrieval, with the same masks at every validation."""

    def forward(batch: Batch) -> tuple[Losses, Embedded]:
        batch = batch.to(engine.device)
        features = encoders(batch)
        losses = engine.evaluate(batch, features, "losses")
        found = engine.evaluate(batch, features, "embeddings")
        return losses, {m: (values, found.present[m]) for m, values in found.values.items()}

    skipped: list[str] = []

    def batches() -> Iterator[Batch]:
        for held in loader.once(run.validation.samples):
            skipped.extend(held.skipped)
            yield from held.batches

    result = validate(forward, batches(), run.validation.k)
    journal.record("validation", step, **result.record())
    if names := _named(skipped):
        journal.record("skipped", step, split=run.validation.split, samples=names)
    shown = " · ".join(f"{pair} R@{r.k} {r.recall:.2f} (chance {r.chance:.2f})" for pair, r in result.retrieval.items())
    journal.say(f"step {step}: validation loss {result.loss:.4f}; {shown}")
    return result


def _exchange(stop: bool, step: Step) -> tuple[bool, int, list[str]]:
    """Over all ranks: whether any was asked to stop (all must take the same last step); the tokens that fusion saw;
    the samples that were skipped."""
    tokens = sum(int(lengths.sum()) for batch in step.batches for lengths in batch.lengths.values())
    local = torch.tensor([stop, tokens, len(step.skipped)], dtype=torch.int64, device=distributed.device())
    stops, tokens, skipped = distributed.add(local).tolist()
    return stops > 0, tokens, _named(step.skipped) if skipped else []


def _named(skipped: Sequence[str]) -> list[str]:
    """Every rank's. Collective."""
    everyone: list[Any] = distributed.gather_objects(list(skipped))
    return [name for part in everyone for name in part]


def _log_step(
    run: RunConfig, step: Step, result: StepResult, tokens: int, seconds: float, plan: Plan, journal: Journal
) -> None:
    """One record per logged step. seconds: of this step, its data included, validation and checkpoints not."""
    number = step.position.step
    if number % run.log.every == 0 or number in (1, run.steps):
        facts = {
            "loss": result.total,
            "losses": result.losses,
            "gradient_norm": result.gradient_norm,
            "learning_rate": result.learning_rate,
            "samples": len(step.plan.entries),
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "seconds": round(seconds, 4),
            "waited": round(step.waited, 4),
            "epoch": round(plan.epoch(step.position), 4),
        }
        journal.record("step", number, **facts)
        journal.say(
            f"step {number}/{run.steps}  loss {result.total:.4f}  "
            + "  ".join(f"{name.rpartition('/')[2]} {value:.4f}" for name, value in result.losses.items())
            + f"  {tokens / seconds:,.0f} tokens/s"
        )


def _open_journal(run: RunConfig, done: int) -> Journal:
    journal = Journal(run.out, run.log.tensorboard, done)
    if journal.writes:
        (run.out / "config.json").write_text(json.dumps(config.dump(run), indent=1) + "\n")
    return journal


def _announce(run: RunConfig, parts: _Parts, found: checkpoint.Checkpoint | None, journal: Journal) -> None:
    world, plan, identity = distributed.world(), parts.loader.plan, parts.identity
    journal.say(
        f"{sum(plan.sizes.values()):,} proteins in {len(plan.sizes)} groups, {world} rank(s), ZeRO {run.engine.stage}"
    )
    for modality, encoder in identity["encoders"].items():
        journal.say(f"encoder {modality}: {encoder['kind']}, weights {encoder['weights']}")
        journal.say(f"features of {modality}: {parts.stored.notes[Modality(modality)]}")
    stored = [modality.value for modality in parts.stored.widths]
    if found:
        journal.record("resume", found.step, path=found.path.name, world=world, stored=stored)
        journal.say(f"resumed from {found.path} at step {found.step}")
    else:
        facts = {"groups": plan.sizes, "left_out": plan.left_out, "truncated": plan.truncated}
        journal.record("start", 0, world=world, identity=identity, stored=stored, **facts)


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
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("pretrain.encoders").setLevel(logging.ERROR)  # the same on every rank: the first one says it
    try:
        train(config.load(RunConfig, options.config, options.overrides))
    except (ValueError, OSError) as error:
        _tell(error)
        return 2
    return 0


def _tell(error: Exception) -> None:
    """One rank speaks for all where all fail alike; what fails on one, that one says.

    Before there is a process group nobody knows, and the first rank of each host speaks.
    """
    rank, local = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    if rank == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    elif local == 0 if distributed.world() == 1 else not isinstance(error, distributed.Everywhere):
        print(f"error on rank {rank}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    code = main()
    if code:  # a rank whose peers have left aborts in the teardown of its process group, and the code would be lost
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
