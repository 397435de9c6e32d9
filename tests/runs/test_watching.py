"""A run as someone watches it: the bar in a real terminal, what `runs` says of it, which checkpoints are left."""

import errno
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from cluster.runs import read
from pretrain import checkpoint
from pretrain.evaluation.history import History
from pretrain.export import chosen, export
from tests.runs.training import SMALL, finish, kill, log, start, train, wait_for_step

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_a_terminal(command: list[str], columns: int) -> tuple[int, str]:
    """Exit code, and all that the command wrote to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError as error:
            assert error.errno == errno.EIO  # the terminal's other side is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    return process.wait(60), written.decode(errors="replace")


def test_a_terminal_shows_a_bar_and_the_rest_above_it(sample_data: Path, tmp_path: Path) -> None:
    columns = 60
    settings = [*SMALL, f"data.path={sample_data}", f"out={tmp_path / 'run'}", "steps=20"]
    code, said = in_a_terminal([sys.executable, "-m", "pretrain.train", "amma/tiny.toml", *settings], columns)
    assert code == 0, said
    lines = [CODES.sub("", line).strip("\r").rpartition("\r")[2] for line in said.split("\n")]
    bars = [line for line in lines if re.search(r"step [\d,]+/20 .*%", line)]
    assert bars and all(len(line) <= columns for line in bars) and "step 20/20" in bars[-1]
    last = " ".join(lines[-6:])
    assert all(f"{name} " in last for name in ("loss", "sequence", "tokens/s", "waited", "epoch")), last
    assert "checkpoint 20" in last
    assert not any(re.match(r"step \d+/20  loss", line) for line in lines)  # the lines for steps are the bar's
    told = [line for line in lines if "validation loss" in line]
    assert told and all(line.startswith("step 20: validation loss") for line in told)
    assert "\x1b[?25l" not in said


@pytest.mark.slow
def test_runs_tells_what_became_of_a_run(sample_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = start(sample_data, out, 2, "steps=40")
    wait_for_step(out, 22, processes)
    assert read(out).state == "running"
    kill(processes)
    died = read(out)
    assert died.state == "died" and died.step >= 22 and died.checkpoint is not None and died.checkpoint[0] == 20
    finish(start(sample_data, out, 1, "steps=40", "model.depth=2"), out, expect=2)
    assert read(out).state == "died"  # what was refused is not told of it
    train(sample_data, out, 1, "steps=40")
    whole = read(out)
    assert (whole.state, whole.step, whole.steps, whole.notes) == ("finished", 40, 40, [])
    assert whole.best is not None and whole.retrieval and whole.checkpoint is not None and whole.checkpoint[0] == 40
    steps = [record for record in log(out) if record["event"] == "step"]
    assert all(0 <= record["waited_share"] <= 1 for record in steps) and any(record.get("blocked") for record in steps)


def test_the_best_and_the_last_checkpoint_are_left_and_either_is_exported(sample_data: Path, tmp_path: Path) -> None:
    """It learns, and then forgets: after step 8 the rate is out of all bounds."""
    out, often = tmp_path / "run", ("validation.every=4", "checkpoint.every=4", "checkpoint.keep=1")
    train(sample_data, out, 1, "steps=8", *often)
    wild = ("optimizer.lr=3", "optimizer.final=1", "optimizer.clip=0", "optimizer.warmup=0", "guard.spike=0")
    train(sample_data, out, 1, "steps=12", *often, *wild)
    losses = {record["step"]: record["loss"] for record in History.read(out).validations}
    assert losses[8] < min(losses[4], losses[12])
    assert [path.name for path in checkpoint.committed(out / "checkpoints")] == ["step-00000008", "step-00000012"]
    assert (chosen(out).step, chosen(out, "best").step, chosen(out, 8).step) == (12, 8, 8)
    with pytest.raises(ValueError, match=r"no whole checkpoint of step 4 .*steps 8, 12"):
        chosen(out, "4")
    model = export(out, tmp_path / "model", checkpoint="best")
    assert json.loads((model / "config.json").read_text())["step"] == 8
    card = (model / "README.md").read_text()
    assert "8 training steps, resumed 1 time(s); " in card
    assert f"the one with the lowest validation loss ({losses[8]:.4f})" in card
    assert "Validation at step 8" in card
