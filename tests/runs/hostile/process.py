"""Cases tried in another process, which may crash or hang: then that is what came of the case."""

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 120.0  # seconds without a word, on a machine that has much else to do


class Trial:
    """A context. `run` tries all cases of a kind, and begins a new process where one has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._said: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> "Trial":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, kind: str) -> list[dict[str, Any]]:
        """Of each case its name, what came of it, and its problems."""
        found: list[dict[str, Any]] = []
        self._ask(f"{kind}\t0")
        begun: dict[str, Any] = {}
        while True:
            try:
                told = json.loads(self._said.get(timeout=PATIENCE) or "{}")
            except queue.Empty:
                told = {}
            if "end" in told:
                return found
            if "begin" in told:
                begun = told
            elif "case" in told:
                found.append(told)
            else:
                problem = "no end after" if self._process and self._process.poll() is None else "the process ended in"
                self._end()
                assert begun, f"{kind}: its good file could not be read"
                found.append({"case": begun["begin"], "problems": [problem], "peak": 0, "seconds": PATIENCE})
                self._ask(f"{kind}\t{begun['number'] + 1}")

    def _ask(self, line: str) -> None:
        if self._process is None:
            command = [sys.executable, "-m", "tests.runs.hostile.trial", str(self.folder)]
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
            )
            self._said = queue.Queue()
            threading.Thread(target=_listen, args=(self._process.stdout, self._said), daemon=True).start()
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        self._process = None


def _listen(file: Any, said: queue.Queue[str]) -> None:
    for line in file:
        said.put(line)
    said.put("")
