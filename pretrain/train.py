"""The loop. Run it under a launcher (`deepspeed --module pretrain.train CONFIG [a.b=value …]`) or as one process.

A run that exists is resumed from its newest verified checkpoint, on however many ranks are there now. SIGTERM and
SIGINT make a checkpoint and end the run in order.
"""

import argparse
import hashlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pretrain import checkpoint, config, distributed
from pretrain.batch import Batch, Losses
from pretrain.checkpoint import Writer, folder_of
from pretrain.chronicle import Chronicle, open_journal
from pretrain.data.loader import Step
from pretrain.data.plan import Position
from pretrain.encoders.bundle import Encoders
from pretrain.engine import Engine, start
from pretrain.evaluation.evaluate import Best, Embedded, validate
from pretrain.guard import Guard, Verdict
from pretrain.journal import Journal
from pretrain.layers.flops import peak
from pretrain.run import RunConfig, record_of
from pretrain.setup import Parts, begin, check_alike, newest, prepare
from pretrain.watch import Watch

log = logging.getLogger(__name__)


def train(run: RunConfig) -> None:
    """Train to `run.steps`, from the newest checkpoint of the run if there is one. Collective."""
    device = start(run.engine)
    folder = folder_of(run.checkpoints, run.out / "fetched")
    found = newest(folder)
    hosts = distributed.hosts()
    parts = distributed.together(lambda: prepare(run, found, hosts))
    check_alike(parts.stored)
    encoders = parts.encoders.to(device)
    if device.type == "cuda" and run.engine.precision == "bf16":
        encoders = encoders.to(torch.bfloat16)  # frozen, and nothing accumulates in them
    guard = Guard.restored(run.guard, found.state.get("guard") if found else None)
    with (
        distributed.together(lambda: open_journal(run, found)) as journal,
        _stop_signal() as stop,
        Watch(run.watch, journal.alarm) as watch,
        closing(Writer(folder, run.checkpoint, 60 * run.engine.timeout_minutes)) as writer,
    ):
        chronicle = Chronicle(run, parts.loader.plan, journal, peak(device, run.engine.precision) or 0.0)
        chronicle.begin(parts, found)
        if found and found.step >= run.steps:
            journal.record("end", found.step)
            journal.say(f"nothing is left to do: all {run.steps} steps are taken; a larger `steps` goes on")
            return
        while True:
            engine, position = begin(run, parts, found, device)
            best = Best.restored(found.state.get("best") if found else None)
            sitting = _Sitting(run, parts, engine, encoders, guard, journal, chronicle, writer, watch, stop, best)
            if _sit(sitting, position):
                break
            writer.settle()
            engine.close()
            found = newest(folder, good=True)
            guard = _back(guard, found, journal)


@dataclass
class _Sitting:
    """All that takes part in a run from where it goes on to its end, a stop, or a return to a checkpoint."""

    run: RunConfig
    parts: Parts
    engine: Engine
    encoders: Encoders
    guard: Guard
    journal: Journal
    chronicle: Chronicle
    writer: Writer
    watch: Watch
    stop: "_Stop"
    best: Best


def _sit(s: _Sitting, position: Position) -> bool:
    """Steps from `position` on. True at the end or a stop; False where it must go back to its newest checkpoint."""
    run, journal = s.run, s.journal
    steps: Any = s.parts.loader.steps(position)  # a generator, whose workers end when it is closed
    owed = False  # a checkpoint, put off while steps go wrong: it would be one of weights that lead into trouble
    with closing(steps):
        while position.step < run.steps:
            began = time.perf_counter()
            step = _data(s, steps, position.step + 1)
            assert step is not None, "a plan is endless"
            position, last = step.position, step.position.step >= run.steps
            verdict = _step(s, step, began)
            stopping, failed = _exchange(s, step)
            if failed:
                s.writer.settle()
            if verdict == "rewind":
                return False
            improved = (last or position.step % run.validation.every == 0) and _validate(s, position.step)
            owed |= position.step % run.checkpoint.every == 0 or (improved and run.checkpoint.keep_best)
            if last or stopping or (owed and not s.guard.bad):
                _save(s, position)
                owed = False
            if last or stopping:
                s.watch.phase("save", position.step)
                s.writer.settle(final=True)
                s.chronicle.checkpoints(s.writer.news())
                journal.record("end" if last else "stopped", position.step)
                break
    return True


def _data(s: _Sitting, steps: Iterator[Step], number: int) -> Step | None:
    """The next step, None after the last one. Collective: where a rank cannot read its part, all raise with that one's
    words."""
    step = failure = None
    s.watch.phase("data", number)
    try:
        step = next(steps, None)
    except (ValueError, OSError) as error:
        failure = error
    s.watch.phase("exchange", number)  # who still is at its data keeps the others waiting here
    failed = torch.tensor([failure is not None], dtype=torch.int64, device=distributed.device())
    if int(distributed.add(failed)):
        distributed.together(lambda: _raise(failure))
    return step


def _raise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


def _step(s: _Sitting, step: Step, began: float) -> Verdict:
    """Take one step, unless it is one that is left out; log it."""
    run, number = s.run, step.position.step
    if number in s.guard.excluded:
        s.journal.record("excluded", number)
        return "good"
    s.watch.phase("step", number)
    torch.manual_seed(_seed(run.seed, number - 1))
    batches = [batch.to(s.engine.device) for batch in step.batches]
    result = s.engine.step(batches, s.encoders, run.optimizer.rate(number - 1, run.steps), s.guard.admits)
    if not result.losses:  # all of its samples were damaged, and named
        s.journal.record("empty", number)
        return "good"
    verdict = s.guard.note(number, result)
    s.chronicle.step(step, result, time.perf_counter() - began, s.engine.flops)
    if verdict != "good":
        facts = {"loss": result.total, "gradient_norm": result.gradient_norm, "limit": s.guard.limit()}
        s.journal.record("bad", number, **facts, ranks=list(result.not_finite))
        whose = f" (not finite on rank {', '.join(map(str, result.not_finite))})" if result.not_finite else ""
        s.journal.say(
            f"step {number} was not applied: loss {result.total:g}{whose} (limit {facts['limit']:g}), gradient's norm "
            f"{result.gradient_norm:g}"
        )
    return verdict


def _back(guard: Guard, found: checkpoint.Checkpoint | None, journal: Journal) -> Guard:
    """The guard with which the run goes back to `found`, or to its beginning. Raises Everywhere after too many."""
    where = f"step {found.step}" if found else "the beginning"
    if guard.exhausted():
        raise distributed.Everywhere(
            f"training has diverged: steps {guard.bad} had losses or gradients that are not finite, or losses above "
            f"{guard.limit():g}, and {guard.rewinds} returns to {where} did not help. Nothing of it was saved: lower "
            "optimizer.lr, warm up longer or clip harder (guard.spike=0 admits any finite loss), and start again; the "
            "run goes on from its newest checkpoint"
        )
    journal.record("rewind", found.step if found else 0, excluded=guard.bad)
    journal.say(f"steps {guard.bad} went wrong: going back to {where}, without them")
    return guard.back(found.state.get("guard") if found else None)


def _save(s: _Sitting, position: Position) -> None:
    """Begin a checkpoint; it is written while training goes on.

    One within a row of bad steps, as a stop asks for, is no place to go back to, and displaces none that is.
    """
    s.watch.phase("save", position.step)
    what = {
        "position": position.to_json(),
        "identity": s.parts.identity,
        "config": record_of(s.run),
        "stored": [modality.value for modality in s.parts.stored.widths],
        "guard": s.guard.state(position.step),
        "best": s.best.state(),
    }
    s.chronicle.saved(s.writer.save(s.engine, position.step, what, s.best.step, displaces=not s.guard.bad))
    s.guard.saved()


def _validate(s: _Sitting, step: int) -> bool:
    """Held-out losses and retrieval, with the same masks at every validation. True where the loss is the lowest yet."""
    run, engine, journal = s.run, s.engine, s.journal
    s.chronicle.doing("validating")

    def forward(batch: Batch) -> tuple[Losses, Embedded]:
        batch = batch.to(engine.device)
        features = s.encoders(batch)
        losses = engine.evaluate(batch, features, "losses")
        found = engine.evaluate(batch, features, "embeddings")
        return losses, {m: (values, found.present[m]) for m, values in found.values.items()}

    skipped: list[str] = []

    def batches() -> Iterator[Batch]:
        while (held := _data(s, steps, step)) is not None:
            s.watch.phase("validate", step)
            skipped.extend(held.skipped)
            yield from held.batches

    steps: Any = s.parts.held_out.once(run.validation.samples)
    with closing(steps):
        result = validate(forward, batches(), run.validation.k, run.engine.precision)
    s.chronicle.validation(step, result)
    if names := _named(skipped):
        journal.record("skipped", step, split=run.validation.split, samples=names)
    return not s.guard.bad and s.best.improve(step, result.loss)  # with bad steps about, no checkpoint is made


def _exchange(s: _Sitting, step: Step) -> tuple[bool, bool]:
    """Over all ranks: whether any was asked to stop (all must take the same last step), and whether a checkpoint has
    failed on any. Logs the samples that were skipped."""
    s.watch.phase("exchange", step.position.step)
    local = [s.stop.requested, s.writer.failed(), len(step.skipped)]
    flags = torch.tensor(local, dtype=torch.int64, device=distributed.device())
    stops, failed, skipped = distributed.add(flags).tolist()
    if skipped:
        s.journal.record("skipped", step.position.step, split="train", samples=_named(step.skipped))
    s.chronicle.checkpoints(s.writer.news())
    return stops > 0, failed > 0


def _named(skipped: Sequence[str]) -> list[str]:
    """Every rank's. Collective."""
    everyone: list[Any] = distributed.gather_objects(list(skipped))
    return [name for part in everyone for name in part]


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
