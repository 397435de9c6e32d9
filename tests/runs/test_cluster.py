"""Preparing on Ray clusters whose workers and nodes die: the same bytes, and nothing that was done is done again."""

import filecmp
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from data_prep.prepare import PrepareConfig, prepare
from pretrain.config import load

RAY = Path(sys.executable).with_name("ray")
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
QUIET = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}  # what `ray start --head` asks for


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Forty FASTA files of 250 proteins, a slice each."""
    folder = tmp_path_factory.mktemp("source")
    draw = random.Random(0)
    for number in range(40):
        entries = (f">P{number:02d}{n:03d}\n{''.join(draw.choices(LETTERS, k=300))}\n" for n in range(250))
        (folder / f"{number:02d}.fasta").write_text("".join(entries))
    (folder / "x.toml").write_text(
        f'name = "x"\nroot = "{folder}"\npartitions = 6\nsplit.method = "hash"\n'
        '[[sources]]\nkind = "fasta"\nfiles = "*.fasta"\n'
    )
    return folder


@pytest.fixture(scope="module")
def expected(source) -> Path:
    out = source / "expected"
    prepare(load(PrepareConfig, source / "x.toml", ["workers=0"]), out, quiet=True)
    return out


def assert_same(out: Path, expected: Path) -> None:
    names = sorted(path.relative_to(expected).as_posix() for path in expected.rglob("*") if path.is_file())
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == names
    _, different, unreadable = filecmp.cmpfiles(out, expected, names, shallow=False)
    assert (different, unreadable) == ([], [])
    assert json.loads((out / "manifest.json").read_text())["totals"]["samples"] == 10_000


@contextmanager
def killing(root: int, every: float, most: int) -> Iterator[list[int]]:
    """Kill a random Ray worker below a process every so often; the list has the numbers of those that were."""
    killed: list[int] = []
    ended = threading.Event()

    def run() -> None:
        draw = random.Random(1)
        while not ended.wait(every) and len(killed) < most:
            found = []
            for process in psutil.Process(root).children(recursive=True):
                try:
                    name = " ".join(process.cmdline()[:1])
                    if name.startswith(("ray::parse_slice", "ray::write_partition", "ray::_call")):
                        found.append(process)
                except psutil.Error:
                    continue
            if found:
                victim = draw.choice(found)
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def command(source: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", "prepare", str(source / "x.toml"), "--out", str(out), *more]


def test_workers_that_are_killed_at_random_change_nothing(source, expected, tmp_path):
    line = command(source, tmp_path / "data", "--workers", "2")
    with subprocess.Popen(line, env=QUIET) as process, killing(process.pid, every=0.4, most=6) as killed:
        assert process.wait(timeout=240) == 0
    assert killed
    assert_same(tmp_path / "data", expected)


def test_a_driver_that_is_killed_goes_on_where_it_was(source, expected, tmp_path):
    work = tmp_path / ".data.work"
    with subprocess.Popen(command(source, tmp_path / "data", "--workers", "1"), env=QUIET) as process:
        while len(list(work.glob("parse/*/done.json"))) < 10:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    done = {path: path.stat().st_mtime_ns for path in work.glob("parse/*/done.json")}
    assert len(done) >= 10
    again: set[Path] = set()
    with subprocess.Popen(command(source, tmp_path / "data", "--workers", "0"), env=QUIET) as process:
        while process.poll() is None:
            again |= {path for path in done if path.exists() and path.stat().st_mtime_ns != done[path]}
            time.sleep(0.05)
        assert process.returncode == 0
    assert not again
    assert_same(tmp_path / "data", expected)


class Nodes:
    """A Ray cluster of our own: nodes as processes of this machine, ended by their numbers, never by `ray stop`."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ffc", dir="/tmp")
        self.processes: list[subprocess.Popen] = []
        with socket.create_server(("127.0.0.1", 0)) as gcs, socket.create_server(("127.0.0.1", 0)) as board:
            self.port, self.dashboard = gcs.getsockname()[1], board.getsockname()[1]
        head = ["--head", f"--port={self.port}", f"--temp-dir={self.folder}", "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard}", "--include-dashboard=true", "--num-cpus=1"]  # fmt: skip
        self.add(*head)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, *options: str) -> subprocess.Popen:
        options = options or (f"--address={self.address}", "--num-cpus=1")
        with socket.create_server(("127.0.0.1", 0)) as agent:  # which Ray would give the same port on every node
            port = agent.getsockname()[1]
        line = [RAY, "start", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--disable-usage-stats",
                "--block", f"--dashboard-agent-listen-port={port}", *options]  # fmt: skip
        process = subprocess.Popen(line, env=QUIET | TOKEN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def ready(self, cpus: int) -> None:
        """Wait until the cluster has so many cores."""
        code = (
            "import ray, sys, time\n"
            f"ray.init(address={self.address!r}, logging_level='ERROR', log_to_driver=False)\n"
            f"while ray.cluster_resources().get('CPU', 0) < {cpus}: time.sleep(0.2)\n"
        )
        end = time.monotonic() + 120
        while subprocess.run(
            [sys.executable, "-c", code], env=QUIET | TOKEN, timeout=120, capture_output=True
        ).returncode:
            assert time.monotonic() < end
            time.sleep(1)

    @staticmethod
    def kill(process: subprocess.Popen) -> None:
        """A node and all that runs on it, at once."""
        parents = [psutil.Process(process.pid)] if process.poll() is None else []
        for each in [*parents, *(child for parent in parents for child in parent.children(recursive=True))]:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait()

    def close(self) -> None:
        for process in self.processes[::-1]:
            self.kill(process)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    started = Nodes()
    try:
        started.ready(1)
        yield started
    finally:
        started.close()


def test_an_existing_cluster_that_loses_a_node_in_the_middle_gives_the_same(nodes, source, expected, tmp_path):
    second = nodes.add()
    nodes.ready(2)
    work = tmp_path / ".data.work"
    more = ("--address", nodes.address)
    with subprocess.Popen(command(source, tmp_path / "data", *more), env=QUIET | TOKEN) as process:
        while len(list(work.glob("parse/*/done.json"))) < 5:
            assert process.poll() is None
            time.sleep(0.05)
        nodes.kill(second)
        assert process.wait(timeout=240) == 0
    assert_same(tmp_path / "data", expected)


def test_as_a_job_that_is_submitted_to_a_cluster(nodes, source, expected, tmp_path):
    pytest.importorskip("aiohttp_cors", reason="`ray job submit` needs ray[default]")
    line = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{nodes.dashboard}", "--"]
    inside = command(source, tmp_path / "data", "--address", "auto")
    env = {**QUIET, **TOKEN, "RAY_ADDRESS": f"http://127.0.0.1:{nodes.dashboard}"}
    where = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [*line, "env", f"PYTHONPATH={where}", *inside], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert_same(tmp_path / "data", expected)
