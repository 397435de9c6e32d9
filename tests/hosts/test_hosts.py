"""Training over ssh on two hosts, and one of them lost: the other says whom it waits for, ends, and goes on alone."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.network import Host, missing, two
from tests.runs.conftest import sample_data as sample_data
from tests.runs.training import SMALL, log, losses, train, wait_for_step

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]
STEPS = 30
OFTEN = (f"steps={STEPS}", "checkpoint.every=5", "validation.every=999", "watch.silent=4", "watch.give_up=8")


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    if reason := missing():
        pytest.skip(reason)
    with two() as found:
        yield found


@pytest.fixture(scope="module")
def alone(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, uninterrupted, on one rank."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(sample_data, out, 1, *OFTEN)
    return out


def _start(host: Host, data: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """`fourfold train` on a host; what it prints goes to `out`.txt."""
    folder = Path(sys.executable).parent
    settings = {
        "PATH": f"{folder}:{os.environ['PATH']}", "GLOO_SOCKET_IFNAME": "eth0", "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd()), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    exported = out.parent / "environment"
    exported.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    command = host.within(
        sys.executable, "-m", "cluster.cli", "train", "configs/amma/tiny.toml", *SMALL, f"data.path={data}",
        f"out={out}", *OFTEN, *options,
    )  # fmt: skip
    environment = os.environ | settings | {"DS_ENV_FILE": str(exported)}
    with out.with_suffix(".txt").open("a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True)


def _hostfile(folder: Path, *hosts: Host) -> Path:
    path = folder / "hostfile"
    path.write_text("".join(f"{host.name} slots=1\n" for host in hosts))
    return path


def test_training_over_ssh_equals_one_rank(
    hosts: tuple[Host, Host], sample_data: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    launched = _start(hosts[0], sample_data, out, "--hostfile", str(_hostfile(tmp_path, *hosts)))
    assert launched.wait(timeout=400) == 0, out.with_suffix(".txt").read_text()[-4000:]
    assert log(out)[0]["world"] == 2
    want, got = losses(alone), losses(out)
    assert want.keys() == got.keys()
    for step in want:
        assert got[step] == pytest.approx(want[step], rel=1e-3, abs=1e-6), step


def test_a_lost_host_is_named_and_the_run_goes_on_without_it(
    hosts: tuple[Host, Host], sample_data: Path, alone: Path, tmp_path: Path
) -> None:
    alpha, beta = hosts
    out = tmp_path / "run"
    launched = _start(alpha, sample_data, out, "--hostfile", str(_hostfile(tmp_path, *hosts)))
    wait_for_step(out, 12, [launched])
    beta.lose()
    assert launched.wait(timeout=120) not in (0, 2), out.with_suffix(".txt").read_text()[-4000:]
    said = out.with_suffix(".txt").read_text()
    assert re.search(r"rank 1 \(process \d+ on beta\) has not been heard of for \d+ s; its last phase: \w+ of", said)
    assert re.search(r"rank 1 is given up after \d+ s of silence", said)
    assert [record["host"] for record in log(out) if record["event"] == "alarm" and "host" in record] == ["beta"]
    before = len(log(out))
    again = _start(alpha, sample_data, out, "--ranks", "1")
    assert again.wait(timeout=400) == 0, out.with_suffix(".txt").read_text()[-4000:]
    resumed = log(out)[before]
    assert (resumed["event"], resumed["world"]) == ("resume", 1) and resumed["step"] >= 10
    want, got = losses(alone), losses(out)
    for step in range(1, STEPS + 1):
        assert got[step] == pytest.approx(want[step], rel=1e-3, abs=1e-6), step
