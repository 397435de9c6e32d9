"""`state.json`: that a run's first process lives. Whoever looks at the folder tells a run from what is left of one.

A thread replaces the file every few seconds. On the same machine the process itself is looked for; seen from another,
a file that is no longer replaced is a run that has died.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

STATE, LOCK = "state.json", ".lock"
BEAT = 5.0  # seconds
SILENT = 60.0  # seconds without a beat after which a process on another machine is taken for dead
log = logging.getLogger(__name__)


class Heartbeat:
    """Beats from its creation until `close`. A disk that is full or away is no reason to end a run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE
        self._about = {"pid": os.getpid(), "began": psutil.Process().create_time(), "machine": _machine()}
        self._about["host"] = socket.gethostname()
        self._ended = threading.Event()
        self._beat(ended=False)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._beat(ended=True)

    def _run(self) -> None:
        while not self._ended.wait(BEAT):
            self._beat(ended=False)

    def _beat(self, ended: bool) -> None:
        staged = self._path.with_name(f".{STATE}.partial")
        with contextlib.suppress(OSError):
            staged.write_text(json.dumps({**self._about, "time": round(time.time(), 3), "ended": ended}) + "\n")
            os.replace(staged, self._path)


def claim(folder: Path) -> Any:
    """The run's folder for this process alone, until it ends or lets go of what is returned.

    Raises ValueError, naming who has it, where another process trains there. The lock is the system's and ends with
    the process, whatever ends it; of a process on another machine, which may not see locks, beats are waited for. A
    file system without locks (NFS without lockd, Lustre without flock) leaves only the beats.
    """
    file = (folder / LOCK).open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: forked workers do not hold it
        taken = _beats(folder, locks=True)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes: another process holds it
        taken = True
    except OSError as error:
        log.warning(
            "%s cannot be locked (%s): of two runs that start in it at the same moment neither may see the other",
            folder,
            error.strerror,
        )
        taken = _beats(folder, locks=False)
    if not taken:
        return file
    file.close()
    who = ""
    if {"pid", "host"} <= (state := _state(folder)).keys():
        who = f" by process {state['pid']} on {state['host']}"
    raise ValueError(f"{folder} is in use{who}: wait for that run, end it, or give another `out`")


def _beats(folder: Path, locks: bool) -> bool:
    """Whether the process that wrote into the folder is still at it: one of another machine, or of this without locks.

    Another machine's clock may be off by any amount, so two of its own readings are compared, a few beats apart.
    """
    state = _state(folder)
    if state.get("ended", True):
        return False
    if state.get("machine") == _machine():
        return not locks and alive(folder)  # it would hold the lock
    time.sleep(3 * BEAT)
    return _state(folder).get("time") != state.get("time")


def _state(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((folder / STATE).read_text())
        return state if isinstance(state, dict) else {}
    return {}


def alive(folder: Path) -> bool:
    """Whether the process that wrote into a run's folder is still at it."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        if state["ended"]:
            return False
        if state["machine"] == _machine():
            process = psutil.Process(int(state["pid"]))  # numbers of processes come again; the time of one does not
            return abs(process.create_time() - float(state["began"])) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return time.time() - float(state["time"]) < SILENT
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return False


def _machine() -> list[str]:
    """What must be equal for a process number to mean the same process: the host's name, and its name space (two
    containers may have one name)."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return [socket.gethostname(), space]
