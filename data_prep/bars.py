"""A bar on the terminal for every stage of a preparation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bars:
    """A bar on the terminal for every stage."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown

    def __call__(self, what: str, items: Iterator[Any], total: int) -> None:
        """Count items as they come. Nothing of them is kept: there may be millions."""
        with self.each(what) as note:
            for done, _ in enumerate(items, 1):
                note(done, total)

    def say(self, what: str) -> None:
        if not self._shown.disable:
            self._shown.console.print(what, soft_wrap=True)

    @contextmanager
    def each(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A function that is told how many are done, of how many."""
        bar = self._shown.add_task(what, total=None)
        yield lambda done, of: self._shown.update(bar, completed=done, total=of)


@contextmanager
def progress(quiet: bool) -> Iterator[Bars]:
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as shown:
        yield Bars(shown)
