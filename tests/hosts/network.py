"""Two hosts on one machine: network namespaces with a cable between them, an sshd in each, names of their own.

What a host has of its own in /etc lies in /etc/netns/<namespace>, which `ip netns exec` puts over /etc: its hosts file
and all of /etc/ssh, so nothing of the machine's own is touched.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("ip", "sshd", "ssh", "ssh-keygen", "pdsh", "unshare")
SSH = """\
Host *
  IdentityFile /etc/ssh/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""
SSHD = """\
HostKey /etc/ssh/key
AuthorizedKeysFile /etc/ssh/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""


@dataclass(frozen=True)
class Host:
    """name: also its host name. space: its network namespace, in which its cable is eth0."""

    name: str
    space: str
    address: str

    def within(self, *command: str) -> tuple[str, ...]:
        """The command as it is run on this host."""
        named = 'hostname "$0" && exec "$@"'
        return ("ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", named, self.name, *command)

    def processes(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True)
        return [int(each) for each in listed.stdout.split()]

    def lose(self) -> None:
        """The cable first, so that nobody is told; then all that runs there."""
        _ip("-n", self.space, "link", "set", "eth0", "down")
        self.kill()

    def kill(self) -> None:
        for process in self.processes():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue


def missing() -> str:
    """Why this machine cannot have hosts within, or nothing."""
    if os.geteuid():
        return "needs root, for network namespaces"
    if absent := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"needs {', '.join(absent)} (Debian: iproute2, openssh-server, openssh-client, pdsh)"
    probe = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"may not make network namespaces: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return ""


@contextmanager
def two() -> Iterator[tuple[Host, Host]]:
    """alpha and beta; nothing of them is left afterwards."""
    number = os.getpid() % 250
    hosts = tuple(
        Host(name, f"{name}{os.getpid()}", f"10.213.{number}.{place}")
        for place, name in enumerate(("alpha", "beta"), 1)
    )
    servers = []
    try:
        for host in hosts:
            _ip("netns", "add", host.space)
            _files(host, hosts)
        ends = [f"v{host.space[:1]}{os.getpid()}" for host in hosts]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end in zip(hosts, ends, strict=True):
            _ip("link", "set", end, "netns", host.space)
            _ip("-n", host.space, "link", "set", end, "name", "eth0")
            _ip("-n", host.space, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.space, "link", "set", "eth0", "up")
            _ip("-n", host.space, "link", "set", "lo", "up")
        Path("/run/sshd").mkdir(exist_ok=True)
        for host in hosts:
            sshd = shutil.which("sshd") or "sshd"
            servers.append(subprocess.Popen(host.within(sshd, "-D", "-E", os.devnull)))
        _reachable(*hosts)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.kill()
            subprocess.run(["ip", "netns", "del", host.space], capture_output=True)
            shutil.rmtree(f"/etc/netns/{host.space}", ignore_errors=True)
        for server in servers:
            server.wait()


def _files(host: Host, hosts: tuple[Host, ...]) -> None:
    ssh = Path("/etc/netns") / host.space / "ssh"
    ssh.mkdir(parents=True)
    lines = ["127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in hosts)]
    (ssh.parent / "hosts").write_text("\n".join(lines) + "\n")
    (ssh / "ssh_config").write_text(SSH)
    (ssh / "sshd_config").write_text(SSHD)
    first = Path("/etc/netns") / hosts[0].space / "ssh" / "key"
    if host is hosts[0]:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(first)], check=True)
    else:
        for name in ("key", "key.pub"):
            shutil.copy2(first.with_name(name), ssh / name)


def _reachable(one: Host, other: Host) -> None:
    end = time.monotonic() + 30
    while True:
        tried = subprocess.run(one.within("ssh", other.name, "hostname"), capture_output=True, text=True)
        if tried.stdout.strip() == other.name:
            return
        if time.monotonic() > end:
            raise OSError(f"{one.name} does not reach {other.name}: {tried.stderr.strip() or tried.stdout.strip()}")
        time.sleep(0.2)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
