"""Every rank says once a second what it is doing, to the first rank; who falls silent is named, with what it did last.

A rank that is stopped, swapped out or on a host that was lost leaves the others waiting in a collective, and those do
not say for whom. Beats are datagrams between threads, so they pass while training waits, and need nobody's answer.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from pretrain import distributed
from pretrain.config import Config

BEAT = 1.0  # seconds
LOST = 3  # exit code of a run that gave a silent rank up
STACK = 4000  # characters of a stack that are shown


class WatchConfig(Config):
    """silent: seconds without a beat after which a rank is named. stuck: seconds that a rank may take for its data
    while others wait for it. give_up: seconds of silence after which the run ends, so that it can be started anew
    without the lost host; 0: never, it waits until the collective's own timeout. A rank that was never heard is not
    given up: where datagrams do not pass, all are silent and well.
    """

    silent: float = Field(default=15.0, gt=BEAT)
    stuck: float = Field(default=120.0, gt=0)
    give_up: float = Field(default=600.0, ge=0)


@dataclass
class _Rank:
    """What is known of a rank: its last beat, and when something was heard of it or changed (this process's clock).

    met: whether it was ever heard. silent, stuck: whether it was named for that.
    """

    beat: dict[str, Any]
    heard: float
    changed: float
    met: bool = False
    silent: bool = False
    stuck: bool = False


class Watch:
    """Open it as a context, on every rank. tell: called with (text, facts), from a thread, where a rank is named."""

    def __init__(self, config: WatchConfig, tell: Callable[[str, dict[str, Any]], None]) -> None:
        self.config, self._tell = config, tell
        self._phase, self._step, self._ended = "start", 0, threading.Event()
        self._ranks: dict[int, _Rank] = {}

    def phase(self, name: str, step: int) -> None:
        """What this rank does from now on: `data` is its own affair, in everything else ranks wait for one another."""
        self._phase, self._step = name, step

    def __enter__(self) -> Self:
        if distributed.world() > 1:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.settimeout(BEAT / 4)
            first = distributed.rank() == 0
            self._socket.bind(("" if first else "0.0.0.0", 0))
            about = {"rank": distributed.rank(), "pid": os.getpid(), "host": socket.gethostname()}
            about |= {"port": self._socket.getsockname()[1], "token": secrets.token_hex(8)}
            everyone: list[Any] = distributed.gather_objects(about)
            port, self._token = everyone[0]["port"], everyone[0]["token"]
            now = time.monotonic()
            for beat in everyone[1:] if first else everyone[:1]:  # whoever never beats is missed, too
                self._ranks[beat["rank"]] = _Rank({**beat, "phase": self._phase, "step": self._step}, now, now)
            self._first = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(port)
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if distributed.world() > 1:
            self._thread.join(timeout=2 * BEAT)
            self._socket.close()

    def _run(self) -> None:
        sent = before = time.monotonic() - BEAT
        while not self._ended.is_set():
            now = time.monotonic()
            if now - before > 2 * BEAT:  # it was this process that was stopped: the silence was its own
                for known in self._ranks.values():
                    known.heard, known.changed = known.heard + now - before, known.changed + now - before
            before = now
            if now - sent >= BEAT:
                sent = now
                if distributed.rank():
                    self._send(self._first)
                self._look(now)
            try:
                data, address = self._socket.recvfrom(2048)
                beat = json.loads(data)
                if beat["token"] != self._token:
                    continue
            except (OSError, ValueError, KeyError, TypeError):  # nothing came, or a stranger's
                continue
            self._hear(beat, time.monotonic())
            if distributed.rank() == 0:
                self._send(address)  # by which the others know that this rank lives

    def _send(self, address: tuple[str, int]) -> None:
        beat = {
            "token": self._token, "rank": distributed.rank(), "phase": self._phase, "step": self._step,
            "pid": os.getpid(), "host": socket.gethostname(),
        }  # fmt: skip
        with contextlib.suppress(OSError):  # the network is away: then nothing will be heard either
            self._socket.sendto(json.dumps(beat).encode(), address)

    def _hear(self, beat: dict[str, Any], now: float) -> None:
        rank = int(beat["rank"])
        known = self._ranks.setdefault(rank, _Rank(beat, now, now))
        if known.silent:
            self._say(rank, f"rank {rank} is back after {now - known.heard:.0f} s", {"rank": rank})
        if (beat["phase"], beat["step"]) != (known.beat["phase"], known.beat["step"]):
            known.changed, known.stuck = now, False
        known.beat, known.heard, known.met, known.silent = beat, now, True, False

    def _look(self, now: float) -> None:
        """Name who is silent or stuck; end the run where one is given up."""
        for rank, known in sorted(self._ranks.items()):
            silence, unchanged = now - known.heard, now - known.changed
            if silence >= self.config.silent and not known.silent:
                known.silent = True
                never = "" if known.met else ", nor ever before; datagrams between hosts may be blocked"
                self._name(known, f"has not been heard of for {silence:.0f} s{never}")
            elif self._alone(known) and unchanged >= self.config.stuck and not known.stuck:
                known.stuck = True
                self._name(known, f"has kept the others waiting for its data for {unchanged:.0f} s")
            if self.config.give_up and silence >= self.config.give_up and known.met:
                self._say(rank, f"rank {rank} is given up after {silence:.0f} s of silence; start the run again", {})
                os._exit(LOST)

    def _alone(self, known: _Rank) -> bool:
        """Whether a rank is at its data while this one is at something for which it needs the other."""
        return known.beat["phase"] == "data" and self._phase != "data" and self._step >= known.beat["step"]

    def _name(self, known: _Rank, what: str) -> None:
        """In a thread where there is a stack to read: it takes seconds, in which this rank must not fall silent."""
        if not self._speaks(int(known.beat["rank"])):
            return
        if known.beat["host"] == socket.gethostname():
            threading.Thread(target=self._describe, args=(known.beat, what), daemon=True).start()
        else:
            self._describe(known.beat, what)

    def _describe(self, beat: dict[str, Any], what: str) -> None:
        facts = {key: beat[key] for key in ("rank", "host", "pid", "phase", "step")}
        where = f"its last phase: {beat['phase']} of step {beat['step']}"
        text = f"rank {beat['rank']} (process {beat['pid']} on {beat['host']}) {what}; {where}"
        if beat["host"] == socket.gethostname() and (stack := _stack(int(beat["pid"]))):
            text, facts = f"{text}\n{stack}", {**facts, "stack": stack}
        self._say(int(beat["rank"]), text, facts)

    def _say(self, rank: int, text: str, facts: dict[str, Any]) -> None:
        if self._speaks(rank):
            self._tell(text, facts)

    def _speaks(self, rank: int) -> bool:
        """The first rank speaks of the others; of the first, the second one does."""
        return distributed.rank() == (1 if rank == 0 else 0)


def _stack(pid: int) -> str:
    """What a process is doing, where py-spy is there and may read it; otherwise nothing."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.is_file() else shutil.which("py-spy")
    if program is None:
        return ""
    try:
        found = subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout[:STACK] if found.returncode == 0 else ""
