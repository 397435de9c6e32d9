"""What is told of a run while it goes on: how it began, its steps, validations and checkpoints, what looks wrong."""

import json
from collections.abc import Callable, Sequence

import torch

from pretrain import distributed
from pretrain.batch import Batch
from pretrain.checkpoint import Checkpoint, Failed, Saved
from pretrain.data.loader import Step
from pretrain.data.plan import Plan
from pretrain.engine import StepResult
from pretrain.evaluation.evaluate import Validation
from pretrain.heartbeat import claim
from pretrain.journal import Journal
from pretrain.progress import Progress, shown
from pretrain.run import RunConfig, record_of
from pretrain.sample import Modality
from pretrain.setup import Parts, idle
from pretrain.trackers import open_trackers


def open_journal(run: RunConfig, found: Checkpoint | None) -> Journal:
    """The run's journal; on the first rank with its trackers, and with a bar where somebody watches.

    Raises ValueError for a tracker that cannot be opened, and for a folder in which another process trains.
    """
    if distributed.rank():
        return Journal(run.out)
    done, settings = found.step if found else 0, record_of(run)
    held = claim(run.out) if run.out.is_dir() else None  # a tracker that cannot be opened leaves no folder
    trackers = open_trackers(run.out, done, settings, run.log.tensorboard, run.log.wandb, run.log.mlflow)
    held = held or claim(run.out)
    (run.out / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    return Journal(run.out, trackers, Progress(run.steps, done) if shown() else None, held)


class Chronicle:
    """Every rank has one; only the first one's journal writes. `step` is collective.

    peak: floating-point operations per second that one device could do at best in the run's precision; 0 where that is
    not known.
    """

    def __init__(self, run: RunConfig, plan: Plan, journal: Journal, peak: float = 0.0) -> None:
        self.run, self.plan, self.journal, self.peak = run, plan, journal, peak
        self._seconds = self._waited = self._blocked = 0.0  # since the last record of a step

    def begin(self, parts: Parts, found: Checkpoint | None) -> None:
        """What is trained on what, and where it goes on from."""
        journal, world, identity = self.journal, distributed.world(), parts.identity
        proteins, groups = sum(self.plan.sizes.values()), len(self.plan.sizes)
        journal.say(f"{proteins:,} proteins in {groups} groups, {world} rank(s), ZeRO {self.run.engine.stage}")
        if left := {name: count for name, count in self.plan.left_out.items() if count}:
            several = ", ".join(f"{count:,} of {name}" for name, count in left.items())
            journal.say(
                f"{sum(left.values()):,} are left out, having nothing that the model reads, or weight 0: {several}"
            )
        for modality, encoder in identity["encoders"].items():
            journal.say(f"encoder {modality}: {encoder['kind']}, weights {encoder['weights']}")
            note = parts.stored.notes.get(Modality(modality), "the model trains the encoder")
            journal.say(f"features of {modality}: {note}")
        if useless := idle(self.run, self.plan):
            count = sum(self.plan.sizes[name] for name in useless)
            journal.say(
                f"{count:,} of them ({', '.join(useless)}) have nothing that the model learns from, and take their "
                "places in steps; data.plan.weights can leave these groups out"
            )
        if self.plan.truncated:
            count = f"{'about ' if self.plan.estimated else ''}{self.plan.truncated:,}"
            journal.say(f"{count} sequences are longer than the {self.plan.spec.sequence_max:,} residues that are seen")
        if parts.labels:
            journal.say(parts.labels.note)
        stored = [modality.value for modality in parts.stored.widths]
        if found:
            journal.record("resume", found.step, path=found.path.name, world=world, stored=stored)
            journal.say(f"resumed from {found.path} at step {found.step}")
            self._note(checkpoint=f"{found.step:,}")
        else:
            facts = {"groups": self.plan.sizes, "left_out": self.plan.left_out, "truncated": self.plan.truncated}
            facts |= {"truncated_is_estimate": self.plan.estimated, "idle": useless}
            journal.record("start", 0, world=world, identity=identity, stored=stored, **facts)

    def step(
        self, step: Step, result: StepResult, seconds: float, flops: Callable[[Sequence[Batch]], int] = lambda _: 0
    ) -> None:
        """A step was taken. seconds: it took, its data included, validation and checkpoints not. flops: counts those of
        this rank's micro-batches, forward and backward. One record every `log.every` steps."""
        number, run = step.position.step, self.run
        self._seconds, self._waited = self._seconds + seconds, self._waited + step.waited
        epoch = round(self.plan.epoch(step.position), 4)
        if self.journal.bar:
            self.journal.bar.step(number, result.total, result.losses, epoch)
        if number % run.log.every and number not in (1, run.steps):
            return
        own = sum(int(lengths.sum()) for batch in step.batches for lengths in batch.lengths.values())
        tokens, work = distributed.add(torch.tensor([own, flops(step.batches)], device=distributed.device())).tolist()
        facts = {
            "loss": result.total,
            "losses": result.losses,
            "gradient_norm": result.gradient_norm,
            "learning_rate": result.learning_rate,
            "samples": len(step.plan.entries),
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "tokens_per_second_per_device": round(tokens / seconds / distributed.world(), 1),
            "seconds": round(seconds, 4),
            "waited": round(step.waited, 4),
            "waited_share": round(self._waited / self._seconds, 4),
            "epoch": epoch,
            **self._efficiency(work, seconds),
            **({"blocked": round(self._blocked, 4)} if self._blocked else {}),
        }
        self._seconds = self._waited = self._blocked = 0.0
        self.journal.record("step", number, **facts)
        self._note(**{"tokens/s": f"{tokens / seconds:,.0f}", "waited": f"{facts['waited_share']:.0%}"})
        if "mfu" in facts:
            self._note(MFU=f"{facts['mfu']:.1%}")
        if not self.journal.bar:
            rate = tokens / seconds / distributed.world()
            self.journal.say(
                f"step {number}/{run.steps}  loss {result.total:.4f}  "
                + "  ".join(f"{name.rpartition('/')[2]} {value:.4f}" for name, value in result.losses.items())
                + f"  {rate:,.0f} tokens/s per device  waited {facts['waited_share']:.0%}"
                + (f"  MFU {facts['mfu']:.1%}" if "mfu" in facts else "")
            )

    def _efficiency(self, flops: int, seconds: float) -> dict[str, float]:
        """flops: the whole step's. mfu: the share of what the devices could do, in the run's precision, that went into
        the model (Chowdhery et al., PaLM, 2022, appendix B); waiting for data counts as time."""
        if not flops:
            return {}
        possible = self.peak * distributed.world() * seconds
        return {"flops": flops, **({"mfu": round(flops / possible, 4)} if possible else {})}

    def saved(self, seconds: float) -> None:
        """A checkpoint was begun; training waited so long."""
        self._blocked += seconds

    def checkpoints(self, news: Sequence[Saved | Failed]) -> None:
        """What became of them."""
        for each in news:
            if isinstance(each, Saved):
                facts = {"path": each.path, "seconds": each.seconds, "blocked": each.blocked}
                self.journal.record("checkpoint", each.step, **facts)
                self._note(checkpoint=f"{each.step:,}")
            else:
                self.journal.record("unsaved", each.step, error=each.error)
                self.journal.say(f"warning: {each.error}; training goes on")

    def validation(self, step: int, found: Validation) -> None:
        """A validation's numbers, and an alarm for each modality whose embeddings no longer tell proteins apart."""
        self.journal.record("validation", step, **found.record())
        pairs = found.retrieval.items()
        shown = " · ".join(f"{pair} R@{r.k} {r.recall:.2f} (chance {r.chance:.2f})" for pair, r in pairs)
        self.journal.say(f"step {step}: validation loss {found.loss:.4f}" + (f"; {shown}" if shown else ""))
        if found.not_finite and self.journal.writes:
            text = f"step {step}: {found.not_finite} embeddings of held-out proteins are not finite, and left out"
            self.journal.alarm(text, {"step": step, "kind": "not_finite", "count": found.not_finite})
        for modality, cloud in found.embeddings.items():
            if self.journal.writes and cloud.collapsed(self.run.validation.min_rank):
                facts = {"modality": modality, "effective_rank": cloud.effective_rank, "spread": cloud.spread}
                self.journal.alarm(
                    f"step {step}: embeddings of {modality} have collapsed: those of {cloud.n} held-out proteins use "
                    f"{cloud.effective_rank:.1f} of {cloud.width} directions (effective rank; validation.min_rank is "
                    f"{self.run.validation.min_rank:g}). They hardly tell proteins apart; a lower learning rate, "
                    "other masking or loss weights may help",
                    {"step": step, "kind": "collapse", **facts},
                )

    def doing(self, what: str) -> None:
        """What goes on until the next step, for those who watch."""
        if self.journal.bar:
            self.journal.bar.doing(what)

    def _note(self, **facts: str) -> None:
        if self.journal.bar:
            self.journal.bar.note(**facts)
