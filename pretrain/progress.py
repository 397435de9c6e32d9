"""The bar of a run, for whoever watches it in a terminal. It takes the place of the lines for steps."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

RECENT = 100  # steps over which the time left is foretold
BAR = 12  # columns, below which there is no bar but its numbers


class _Console(Console):
    """Leaves the cursor where it is seen: a run that is killed could not bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Progress:
    """Steps, losses, speed, the time left: two lines in a wide terminal, more in a narrow one. Open it as a context;
    while it is open, what is written to standard error, also by logging, stands above it."""

    def __init__(self, steps: int, done: int = 0, console: Console | None = None) -> None:
        """done: steps that earlier sittings took."""
        self.steps, self.done = steps, done
        self.console = console or _Console(stderr=True)
        self._times: deque[tuple[float, int]] = deque([(time.monotonic(), done)], maxlen=RECENT)
        self._now, self._losses, self._facts = "starting", dict[str, str](), dict[str, str]()
        self._live = Live(self, console=self.console, refresh_per_second=2, redirect_stdout=_terminal(sys.stdout))
        self._lent: list[tuple[logging.StreamHandler[Any], Any]] = []

    def open(self) -> None:
        before = sys.stdout, sys.stderr
        self._live.start()
        after = dict(zip(before, (sys.stdout, sys.stderr), strict=True))
        for handler in _handlers():
            if handler.stream in after and handler.stream is not after[handler.stream]:
                self._lent.append((handler, handler.setStream(after[handler.stream])))

    def close(self) -> None:
        for handler, stream in self._lent:
            handler.setStream(stream)
        self._lent, self._now = [], ""
        self._live.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, number: int, loss: float, losses: Mapping[str, float], epoch: float) -> None:
        """A step was taken (the same again, after the run went back)."""
        if number <= self.done:
            self._times.clear()
        self.done = number
        self._times.append((time.monotonic(), number))
        self._losses |= {name.rpartition("/")[2]: f"{value:.4f}" for name, value in {"loss": loss, **losses}.items()}
        self._facts["epoch"] = f"{epoch:.2f}"
        self._now = ""

    def doing(self, what: str) -> None:
        """What goes on until the next step."""
        self._now = what

    def note(self, **facts: str) -> None:
        """More to show, by name, until it is noted again."""
        self._facts |= facts

    def left(self) -> str:
        """The time that the steps left will take, as the recent ones did, all that came between them included; "" where
        there were none."""
        (began, first), (ended, last) = self._times[0], self._times[-1]
        if last <= first:
            return ""
        return "  left " + str(timedelta(seconds=round((ended - began) / (last - first) * (self.steps - last))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        numbers = f"step {self.done:,}/{self.steps:,}", f"{self.done / self.steps:4.0%}{self.left()}"
        room = width - sum(map(len, numbers)) - 2
        if room >= BAR:
            line = Table.grid(padding=(0, 1))
            line.add_row(numbers[0], ProgressBar(self.steps, self.done, width=min(room, 48)), numbers[1])
            yield line
        else:
            yield Text("  ".join(numbers), no_wrap=True, overflow="ellipsis")
        parts = [f"{name} {value}" for name, value in (self._losses | self._facts).items()]
        for text in packed([*parts, self._now], width):
            yield Text(text, no_wrap=True, overflow="ellipsis")


def packed(parts: Iterable[str], width: int, gap: str = "  ") -> list[str]:
    """The parts in lines of at most `width`, none of them torn."""
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and len(lines[-1]) + len(gap) + len(part) <= width:
            lines[-1] += gap + part
        else:
            lines.append(part)
    return lines


def shown() -> bool:
    """Whether somebody watches: standard error is a terminal that can move its cursor."""
    return _terminal(sys.stderr) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _terminal(stream: Any) -> bool:
    with suppress(ValueError, AttributeError):  # closed, or none at all
        return stream.isatty()
    return False


def _handlers() -> list[logging.StreamHandler[Any]]:
    """Of every logger: libraries write to the terminal by some of their own."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    handlers = {id(handler): handler for logger in loggers for handler in logger.handlers}
    return [handler for handler in handlers.values() if isinstance(handler, logging.StreamHandler)]
