"""Where training runs: a place computes a command for a launcher that exists; `run` executes it and passes signals on.

Local runs call DeepSpeed's launcher for one host as `deepspeed --num_gpus N` would, without the process in front. That
front process costs a second import of everything (6.3 s to the ranks' first line instead of 2.3 s on two cores), dies
of a SIGTERM without telling its children, and reports success when its child is killed by a signal.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal, assert_never

import psutil

from pretrain.config import Config, find
from pretrain.distributed import free_port

MODULE = "pretrain.train"
AT_ONCE = 128 + signal.SIGINT  # how shells call the end by Ctrl-C: `run` was signalled twice
ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=4"  # without it pdsh waits for ever for a host that was lost


class Local(Config):
    """This machine. `ranks`: processes; by default one for each GPU, and one where there is none."""

    kind: Literal["local"] = "local"
    ranks: int | None = None


class Ssh(Config):
    """The hosts of a DeepSpeed hostfile (`name slots=N`, a line each), reached with ssh and without a password."""

    kind: Literal["ssh"] = "ssh"
    hostfile: Path


Place = Local | Ssh


@dataclass(frozen=True)
class Command:
    """argv and what to add to the environment. `ranks` tells whether its child processes are the ranks themselves."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    ranks: bool = False


def command(place: Place, config: str | Path, overrides: Sequence[str] = ()) -> Command:
    """What trains `config` at `place`. Nothing is started. Raises ValueError for a place that cannot be."""
    arguments = [str(find(config).resolve()), *overrides]
    match place:
        case Local():
            return _local(place, arguments)
        case Ssh():
            return _ssh(place, arguments)
        case _:
            assert_never(place)


def run(command: Command, **popen: object) -> int:
    """Run to the end; returns the exit code, 128 + n for a death by signal n, and AT_ONCE where we killed.

    The first SIGTERM or SIGINT goes to the ranks, all of them at once, which write a checkpoint and end; through the
    launcher they would get it one after the other, with 30 s each. The second kills.
    """
    process = start(command, **popen)
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            _tell(process, command, number)
        else:
            kill(process)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if len(received) > 1 and code == -signal.SIGKILL:
        return AT_ONCE
    return code if code >= 0 else 128 - code


def ending(code: int) -> str:
    """An exit code of `run`, other than 0, in words. DeepSpeed's launcher makes 256 − n of a rank's death by signal n,
    and its own is 128 + n."""
    if code == AT_ONCE:
        return f"exit code {code}: ended at once, as asked; the last checkpoint stands"
    who, number = ("a rank", 256 - code) if 192 < code < 255 else ("the launcher", code - 128)
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit code {code}; what was wrong is above"
    why = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    return f"exit code {code}: {who} was ended by {name}{why}"


def start(command: Command, **popen: object) -> subprocess.Popen[bytes]:
    """The command's process, leader of a group of its own: a Ctrl-C reaches the ranks through us, and once."""
    environment = {**os.environ, **command.environment}
    return subprocess.Popen(command.argv, env=environment, start_new_session=True, **popen)  # type: ignore[call-overload]


def kill(process: subprocess.Popen[bytes]) -> None:
    """`kill -9` for the launcher and every rank at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _local(place: Local, arguments: list[str]) -> Command:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ranks = place.ranks if place.ranks is not None else max(gpus, 1)
    if ranks < 1:
        raise ValueError(f"{ranks} ranks; at least one is needed")
    if gpus and ranks > gpus:
        raise ValueError(f"{ranks} ranks on {gpus} GPU(s); give --ranks {gpus} or fewer, or DS_ACCELERATOR=cpu")
    environment: dict[str, str] = {}
    if not gpus:
        environment["DS_ACCELERATOR"] = "cpu"
        if "OMP_NUM_THREADS" not in os.environ:  # the default, every core for every rank, makes them fight
            environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
    launcher = ["-m", "deepspeed.launcher.launch", f"--world_info={world}", "--master_addr=127.0.0.1"]
    # All that the launcher would log is that a rank has ended, with the whole command line: `fourfold train` says it.
    options = [f"--master_port={free_port()}", "--no_local_rank", "--log_level=critical", "--module", MODULE]
    return Command((sys.executable, *launcher, *options, *arguments), environment, ranks=True)


def _ssh(place: Ssh, arguments: list[str]) -> Command:
    if not place.hostfile.is_file():
        raise ValueError(f"no hostfile at {place.hostfile}; it has a line `name slots=N` for each host")
    deepspeed = Path(sys.executable).with_name("deepspeed")
    if not deepspeed.is_file():
        raise ValueError(f"no `deepspeed` beside {sys.executable}; install it into the same environment")
    options = ["--hostfile", str(place.hostfile), f"--master_port={free_port()}", "--no_local_rank"]
    alive = {"PDSH_SSH_ARGS_APPEND": f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {ALIVE}".strip()}
    return Command((str(deepspeed), *options, "--module", MODULE, *arguments), alive)


def _tell(process: subprocess.Popen[bytes], command: Command, number: int) -> None:
    """The signal to the ranks if they are there, to the launcher if it is all there is."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself
        launcher = psutil.Process(process.pid)
        for target in (launcher.children() if command.ranks else []) or [launcher]:
            target.send_signal(number)
