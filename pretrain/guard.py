"""What is done about steps that go wrong: they change nothing, and when several follow one another the run goes back.

One bad step (a broken protein, a flipped bit, a spike) costs itself. Several in a row mean that the weights have come
to a bad place: then the newest checkpoint's are taken again and those steps are left out of what follows, as Chowdhery
et al. (PaLM, 2022, §5.1) did by hand. All that decides is known to every rank, so all decide alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from pydantic import Field

from pretrain.config import Config
from pretrain.engine import StepResult

ENOUGH = 16  # good losses before one can be called a spike

Verdict = Literal["good", "skipped", "rewind"]


class GuardConfig(Config):
    """spike: a loss above so many times the median of the last `window` good ones is a bad step; 0 for none.

    in_row: bad steps after which the run goes back to its newest checkpoint. rewinds: how often it may, without a new
    checkpoint between, before it ends with an error.
    """

    spike: float = Field(default=10.0, ge=0)
    window: int = Field(default=64, ge=ENOUGH)
    in_row: int = Field(default=3, ge=1)
    rewinds: int = Field(default=3, ge=0)


@dataclass
class Guard:
    """losses: of the last good steps. bad: the steps in a row that went wrong. excluded: steps that are left out.

    rewinds: since a good step was last saved; good: whether there was one since the last rewind.
    """

    config: GuardConfig
    losses: list[float] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    excluded: set[int] = field(default_factory=set)
    rewinds: int = 0
    good: bool = False

    def admits(self, total: float) -> bool:
        """Whether a step of this loss may change the weights."""
        return math.isfinite(total) and total <= self.limit()

    def limit(self) -> float:
        """The loss above which a step is a spike."""
        if not self.config.spike or len(self.losses) < ENOUGH:
            return math.inf
        return self.config.spike * median(self.losses)

    def note(self, step: int, result: StepResult) -> Verdict:
        """What becomes of the run after step number `step`."""
        if result.applied:
            self.losses = [*self.losses, result.total][-self.config.window :]
            self.bad, self.good = [], True
            return "good"
        self.bad.append(step)
        return "skipped" if len(self.bad) < self.config.in_row else "rewind"

    def back(self, state: Mapping[str, Any] | None) -> "Guard":
        """The guard of the run after it has gone back to a checkpoint with this state; None: to its beginning."""
        guard = Guard.restored(self.config, state)
        guard.bad = []
        guard.excluded |= self.excluded | set(self.bad)
        guard.rewinds = self.rewinds + 1
        return guard

    def exhausted(self) -> bool:
        """Whether the run has gone back too often to go back again."""
        return self.rewinds >= self.config.rewinds

    def saved(self) -> None:
        """A checkpoint was made: with a good step in it, what went wrong before is over."""
        if self.good:
            self.rewinds = 0

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` steps must hold for the run to go on as if it had never stopped."""
        excluded = sorted(each for each in self.excluded if each > step)
        return {"losses": self.losses, "excluded": excluded, "bad": [*self.bad]}

    @staticmethod
    def restored(config: GuardConfig, state: Mapping[str, Any] | None) -> "Guard":
        state = state or {}
        losses = [float(loss) for loss in state.get("losses", ())][-config.window :]
        bad, excluded = ([int(step) for step in state.get(name, ())] for name in ("bad", "excluded"))
        return Guard(config, losses, bad, set(excluded))
