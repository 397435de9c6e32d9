"""What is computed for each place, and what `run` does with signals and ends."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from cluster import launch
from cluster.launch import Command, Local, Ssh, command, run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text("")
    return path


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def option(found: Command, name: str) -> str:
    return next(word.removeprefix(f"--{name}=") for word in found.argv if word.startswith(f"--{name}="))


def world(found: Command) -> dict[str, list[int]]:
    return json.loads(base64.urlsafe_b64decode(option(found, "world_info")))


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(("ranks", "expected"), [(None, 1), (1, 1), (2, 2), (5, 5)])
def test_local_without_gpu(config: Path, ranks: int | None, expected: int) -> None:
    found = command(Local(ranks=ranks), config, ["train.steps=3", "out=a b"])
    assert found.argv[:3] == (sys.executable, "-m", "deepspeed.launcher.launch")
    assert world(found) == {"localhost": list(range(expected))}
    assert found.argv[found.argv.index("--module") :] == (
        "--module",
        "pretrain.train",
        str(config),
        "train.steps=3",
        "out=a b",
    )
    cores = len(os.sched_getaffinity(0))
    assert found.environment == {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, cores // expected))}
    assert found.ranks


@pytest.mark.usefixtures("cpu")
def test_threads_that_someone_chose_stay(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert command(Local(ranks=2), config).environment == {"DS_ACCELERATOR": "cpu"}


def test_local_takes_every_gpu_and_no_more(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    found = command(Local(), config)
    assert world(found) == {"localhost": [0, 1, 2, 3]} and found.environment == {}
    assert world(command(Local(ranks=2), config)) == {"localhost": [0, 1]}
    with pytest.raises(ValueError, match="5 ranks on 4 GPU"):
        command(Local(ranks=5), config)


@pytest.mark.usefixtures("cpu")
def test_no_ranks_is_an_error(config: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        command(Local(ranks=0), config)


@pytest.mark.usefixtures("cpu")
def test_two_runs_get_two_ports(config: Path) -> None:
    ports = {option(command(Local(), config), "master_port") for _ in range(4)}
    assert len(ports) > 1 and all(1024 < int(port) < 65536 for port in ports)


def test_ssh_calls_deepspeed_with_the_hostfile(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "deepspeed").write_text("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\n")
    found = command(Ssh(hostfile=hosts), config, ["a=1"])
    assert found.argv[:3] == (str(tmp_path / "bin" / "deepspeed"), "--hostfile", str(hosts))
    assert found.argv[-4:] == ("--module", "pretrain.train", str(config), "a=1") and not found.ranks
    assert "ServerAliveInterval" in found.environment["PDSH_SSH_ARGS_APPEND"]


def test_ssh_without_hostfile_or_launcher_is_an_error(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no hostfile at"):
        command(Ssh(hostfile=tmp_path / "hosts"), config)
    (tmp_path / "hosts").write_text("a slots=1\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ValueError, match="no `deepspeed` beside"):
        command(Ssh(hostfile=tmp_path / "hosts"), config)


def test_a_configuration_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no configuration file at nowhere"):
        command(Local(), "nowhere.toml")


@pytest.mark.parametrize(
    ("program", "code"), [("pass", 0), ("raise SystemExit(7)", 7), ("os.kill(os.getpid(), 9)", 137)]
)
def test_run_returns_how_it_ended(program: str, code: int) -> None:
    assert run(Command((sys.executable, "-c", f"import os; {program}"))) == code


def test_run_adds_to_the_environment() -> None:
    program = "import os; raise SystemExit(int(os.environ['N']) + ('PATH' in os.environ))"
    assert run(Command((sys.executable, "-c", program), {"N": "40"})) == 41


RANK = """
import signal, sys, time
def ask(number, frame):
    open(sys.argv[1], "a").write(f"{number} ")
    if sys.argv[2] == "stop":
        sys.exit(0)
signal.signal(signal.SIGTERM, ask)
signal.signal(signal.SIGINT, ask)
open(sys.argv[1], "a").write("ready ")
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[1], path, sys.argv[2]]) for path in sys.argv[3:]]
sys.exit(max(rank.wait() for rank in ranks))
"""
RUN = """
import sys
from cluster.launch import Command, run
sys.exit(run(Command((sys.executable, *sys.argv[1:]), ranks=True)))
"""


def launched(tmp_path: Path, manner: str) -> tuple[subprocess.Popen[bytes], list[Path]]:
    """A process in `run`, over a launcher (which forwards nothing) of two ranks that note what they are told."""
    notes = [tmp_path / "0", tmp_path / "1"]
    words = ["-c", LAUNCHER, RANK, manner, *map(str, notes)]
    process = subprocess.Popen([sys.executable, "-c", RUN, *words], cwd=Path(__file__).resolve().parents[3])
    wait(lambda: all(note.exists() and note.read_text() for note in notes))
    return process, notes


def wait(condition: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_and_their_end_is_ours(tmp_path: Path, number: signal.Signals) -> None:
    process, notes = launched(tmp_path, "stop")
    process.send_signal(number)
    assert process.wait(30) == 0
    assert [note.read_text() for note in notes] == [f"ready {int(number)} "] * 2


def test_a_second_signal_kills_what_does_not_end(tmp_path: Path) -> None:
    process, notes = launched(tmp_path, "stay")
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    wait(lambda: all("15" in note.read_text() for note in notes))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == launch.AT_ONCE
    _, alive = psutil.wait_procs(below, timeout=10)
    assert len(below) == 3 and not alive


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (1, "exit code 1; what was wrong is above"),
        (launch.AT_ONCE, "exit code 130: ended at once, as asked; the last checkpoint stands"),
        (137, "exit code 137: the launcher was ended by SIGKILL, as the system does where memory runs out"),
        (245, "exit code 245: a rank was ended by SIGSEGV"),
        (255, "exit code 255; what was wrong is above"),  # as ssh ends where it cannot connect
    ],
)
def test_an_exit_code_in_words(code: int, says: str) -> None:
    assert launch.ending(code) == says


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(("end", "code"), [("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", 247)])
def test_the_launcher_adds_nothing_to_what_a_rank_says(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, end: str, code: int
) -> None:
    """Neither a line of its own nor the command line: `ending` has what its exit code tells."""
    said = "print('error: no such thing', file=sys.stderr, flush=True)"
    waits = "if os.environ['RANK'] == '1': time.sleep(60)"
    (tmp_path / "failing.py").write_text(f"import os, sys, time\n{waits}\n{said}\n{end}\n")
    monkeypatch.setattr(launch, "MODULE", "failing")
    with (tmp_path / "said").open("wb") as output:
        assert run(command(Local(ranks=2), config, ["a=1"]), cwd=tmp_path, stdout=output, stderr=output) == code
    assert (tmp_path / "said").read_text() == "error: no such thing\n"


@pytest.mark.usefixtures("cpu")
def test_deepspeeds_launcher_takes_the_command(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real launcher, on a module that only says where it is."""
    module = tmp_path / "where.py"
    module.write_text(
        "import json, os, sys\n"
        "names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'OMP_NUM_THREADS', 'DS_ACCELERATOR')\n"
        "json.dump([sys.argv[1:], {n: os.environ[n] for n in names}], open('rank' + os.environ['RANK'], 'w'))\n"
    )
    monkeypatch.setattr(launch, "MODULE", "where")
    assert run(command(Local(ranks=2), config, ["a=1"]), cwd=tmp_path) == 0
    for rank in range(2):
        arguments, environment = json.loads((tmp_path / f"rank{rank}").read_text())
        assert arguments == [str(config), "a=1"]
        assert (environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == (
            str(rank),
            str(rank),
            "2",
        )
        assert environment["DS_ACCELERATOR"] == "cpu"
