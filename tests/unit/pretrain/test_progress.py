"""The bar, drawn into a terminal of a given width."""

import io
import logging
import sys

import pytest
from rich.console import Console

from pretrain import progress
from pretrain.progress import Progress, _Console, packed, shown

LOSSES = {"reconstruction/sequence": 0.5, "reconstruction/structure": 0.25}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(width: int, bar: Progress) -> list[str]:
    """The bar's lines, plain."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(bar)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip("\n").split("\n")


def bar_at(step: int) -> Progress:
    bar = Progress(1000)
    bar.step(step, 1.25, LOSSES, 0.5)
    bar.note(**{"tokens/s": "12,345", "waited": "3%", "checkpoint": "200"})
    return bar


def test_everything_is_there_and_nothing_is_wider_than_the_terminal() -> None:
    for width in (120, 80, 46, 30):
        lines = drawn(width, bar_at(250))
        assert max(map(len, lines)) <= width, lines
        text = "  ".join(lines)
        for part in ("step 250/1,000", "25%", "loss 1.2500", "sequence 0.5000", "structure 0.2500", "epoch 0.50"):
            assert part in text, (width, part)
        assert "tokens/s 12,345" in text and "waited 3%" in text and "checkpoint 200" in text
    assert len(drawn(120, bar_at(250))) == 2 and "━" in drawn(120, bar_at(250))[0]
    assert "━" not in drawn(30, bar_at(250))[0]


def test_the_time_left_is_what_recent_steps_took_with_all_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bar = Progress(1000, done=100)
    assert bar.left() == ""
    for step in range(101, 401):
        now += 2.0
        bar.step(step, 1.0, {}, 0.0)
    assert bar.left() == "  left 0:20:00"
    now += 2.0
    bar.step(200, 1.0, {}, 0.0)  # gone back: it knows nothing of those steps yet
    assert bar.left() == ""
    now += 3.0
    bar.step(201, 1.0, {}, 0.0)
    assert bar.left() == "  left 0:39:57"


def test_what_is_going_on_is_shown_until_the_next_step() -> None:
    bar = bar_at(3)
    bar.doing("validating")
    assert "validating" in drawn(120, bar)[1]
    bar.step(4, 1.0, LOSSES, 0.5)
    assert "validating" not in drawn(120, bar)[1]


def test_lines_and_warnings_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log, handler = logging.getLogger("some.library"), logging.StreamHandler(terminal)
    log.addHandler(handler)
    try:
        bar = Progress(10, console=_Console(file=terminal, force_terminal=True, width=60))
        bar.open()
        bar.step(1, 1.0, {}, 0.0)
        bar.say("said [bold]plainly")
        log.warning("a library warns")
        assert handler.stream is not terminal
        bar.close()
        assert handler.stream is terminal and sys.stderr is terminal
    finally:
        log.removeHandler(handler)
    lines = terminal.getvalue().split("\n")
    said = next(i for i, line in enumerate(lines) if line.endswith("said [bold]plainly"))
    warned = next(i for i, line in enumerate(lines) if line.endswith("a library warns"))
    assert said < warned < max(i for i, line in enumerate(lines) if "step 1/10" in line)
    assert "\x1b[?25l" not in terminal.getvalue()  # the cursor is never hidden


@pytest.mark.parametrize(
    ("stream", "term", "expect"), [(Terminal, "xterm", True), (Terminal, "dumb", False), (io.StringIO, "xterm", False)]
)
def test_there_is_a_bar_in_terminals_alone(
    stream: type[io.StringIO], term: str, expect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert shown() is expect


def test_parts_are_packed_whole() -> None:
    assert packed(["aaa", "", "bb", "cccc"], 7) == ["aaa  bb", "cccc"]
    assert packed(["too long for it", "b"], 5) == ["too long for it", "b"]
