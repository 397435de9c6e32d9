"""Hostile cases tried one by one, in a process of their own that says what became of each.

`python -m tests.runs.hostile.trial FOLDER` reads names of kinds, a line each, and answers with a line of JSON before
and after each case: whoever reads knows which case the process did not survive, or did not come back from.
"""

import ctypes
import json
import os
import re
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import pytest

from data_prep import ontology, spill
from data_prep.recipe import Source
from data_prep.records import FileSeen, Item, Rejection, SequenceRecord
from pretrain.places import Place
from tests.runs.hostile.files import MARKER, Case
from tests.runs.hostile.kinds import BY_NAME, Kind
from tests.runs.hostile.matrix import cases

SPACE = 6 << 30  # bytes of address space, so that a case without a bound fails and does not end the machine
LONGEST = 2_000  # characters of a message
SOURCES: pydantic.TypeAdapter = pydantic.TypeAdapter(Source)
REASON = re.compile(r"[a-z][a-z0-9_]{2,40}")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
ADDRESS = re.compile(r"0x[0-9a-f]{8,}")


@dataclass
class Seen:
    """What came of reading a case once. records: as they are spilled. problems: what must not be."""

    records: list[bytes] = field(default_factory=list)
    count: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    error: str = ""
    message: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def told(self) -> bool:
        return bool(self.error or self.rejected)


def lay(kind: Kind, case: Case, folder: Path) -> None:
    files = kind.good() | case.more
    if case.data is not None:
        files[kind.target] = case.data()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if case.lay:
        case.lay(folder)


def items(kind: Kind, case: Case, place: Place, on_error: str) -> Iterator[Item]:
    if not kind.source:
        found, seen = ontology.parse(place, kind.target)
        yield from (seen, *(_Terms(found.to_bytes()) for _ in range(bool(found.terms))))  # type: ignore[misc]
        return
    source = SOURCES.validate_python({**kind.source, **case.settings, "on_error": on_error})
    for part in source.slices(place):
        yield from source.read(place, part, place)


@dataclass(frozen=True)
class _Terms:
    """The ontology in place of a record."""

    data: bytes


def read(kind: Kind, case: Case, folder: Path, on_error: str) -> Seen:
    seen = Seen()
    try:
        for item in items(kind, case, Place(str(folder)), on_error):
            if isinstance(item, FileSeen):
                continue
            if isinstance(item, Rejection):
                seen.rejected[item.reason] += 1
                if sum(seen.rejected.values()) < 1000:
                    seen.problems += wrong(item, folder)
                continue
            seen.count += 1
            if isinstance(item, SequenceRecord) and not item.sequence:
                seen.rejected["empty_sequence"] += 1  # as the join will
            if seen.count < 1000:
                seen.records.append(item.data if isinstance(item, _Terms) else _spilled(item))
    except ValueError as error:
        seen.error, seen.message = getattr(error, "reason", type(error).__name__), str(error)
        seen.problems += unclear(error, kind, case, folder)
    except BaseException as error:
        seen.error, seen.message = type(error).__name__, str(error)
        seen.problems.append(f"{type(error).__name__}: {str(error)[:200]}")
    return seen


def _spilled(item: Any) -> bytes:
    data = spill.dumps(item)
    assert spill.dumps(spill.loads(data)) == data
    return data


def wrong(rejection: Rejection, folder: Path) -> list[str]:
    """What a rejection lacks."""
    found = []
    if not REASON.fullmatch(rejection.reason):
        found.append(f"a reason {rejection.reason!r:.80}")
    if not rejection.source or not (folder / rejection.source).is_file():
        found.append(f"{rejection.reason}: no source file {rejection.source!r:.80}")
    if not rejection.position:
        found.append(f"{rejection.reason}: no position")
    longest = max(len(each) for each in (rejection.key, rejection.detail, rejection.position))
    if longest > LONGEST:
        found.append(f"{rejection.reason}: {longest} characters of key, detail or position")
    if ADDRESS.search(rejection.detail):
        found.append(f"{rejection.reason}: an address in memory, {rejection.detail[:200]!r}")
    return found


def unclear(error: ValueError, kind: Kind, case: Case, folder: Path) -> list[str]:
    """What is wrong with an error's message: it must name a file, be short, and hold nothing for a terminal."""
    said, found = str(error), []
    if type(error) is not ValueError and not type(error).__module__.startswith("data_prep"):
        found.append(f"{type(error).__name__} instead of an error of ours: {said[:200]!r}")
    files = {*kind.good(), *case.more, str(folder)} | {Path(name).name for name in kind.good()}
    files |= {ascii(name)[1:-1] for name in files}
    files |= {name for name in case.settings.values() if isinstance(name, str)}
    if not any(name in said for name in files):
        found.append(f"a message without a file: {said[:200]!r}")
    if len(said) > LONGEST:
        found.append(f"a message of {len(said)} characters: {said[:100]!r}")
    if control := CONTROL.search(said):
        found.append(f"a message with {control[0]!a}: {said[:200]!a}")
    if ADDRESS.search(said):
        found.append(f"a message with an address in memory: {said[:200]!r}")
    return found


def judge(kind: Kind, case: Case, seen: Seen, good: Seen, on_error: str) -> list[str]:
    """What is wrong with what came of a case."""
    problems = list(seen.problems)
    if seen.error and on_error == "reject" and not (kind.always or case.settings):
        problems.append(f'raised {seen.error} with on_error = "reject": {seen.message[:200]!r}')
    if not seen.told and not seen.count:
        problems.append("silence: neither a record nor a rejection nor an error")
    if case.must == "refused":
        if not seen.told:
            problems.append("it is not refused")
        elif kind.entries and seen.count:
            problems.append(f"{seen.count} records of what is none")
    if case.must == "told" and not seen.told:
        problems.append(f"not a word, {seen.count} records")
    same = seen.records == good.records and seen.rejected == good.rejected and not seen.error
    if case.must == "same" and not same:
        problems.append(f"{seen.count} records and {dict(seen.rejected)} {seen.message[:200]}, not as of the good file")
    if case.must == "told or same" and not seen.told and not same:
        problems.append(f"{seen.count} records that are not the good file's, and not a word")
    if case.must != "same" and seen.told and case.names:
        reasons = {seen.error, *seen.rejected} - {""}
        if not reasons & {*case.names}:
            problems.append(f"the reason is {sorted(reasons)}, not {case.names}")
    return problems


def tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def peak(reset: bool = False) -> int:
    """Bytes of memory at most, since the last reset where the system can tell."""
    try:
        if reset:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) << 10 if found else 0
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def apart(kind: Kind, case: Case, folder: Path, good: Seen) -> dict[str, Any]:
    """The same in a process of its own, whose memory is its own too."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        told = one(kind, case, folder, good)
        with os.fdopen(writing, "w") as file:
            json.dump(told, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = file.read()
    _, status = os.waitpid(child, 0)
    if not told:
        problem = f"the process ended with {os.waitstatus_to_exitcode(status)}"
        return {
            "seconds": 0.0,
            "peak": 0,
            "problems": [problem],
            "records": 0,
            "rejected": {},
            "error": "",
            "message": "",
        }
    return json.loads(told)


def one(kind: Kind, case: Case, folder: Path, good: Seen) -> dict[str, Any]:
    folder.mkdir()
    lay(kind, case, folder)
    before = tree(folder)
    if case.heavy:
        peak(reset=True)
    start, problems, seen = time.monotonic(), [], Seen()
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in case.limits.items():
            patch.setattr(f"data_prep.{name}" if name.startswith("ontology") else f"data_prep.sources.{name}", limit)
        for on_error in ("reject",) if case.heavy else ("stop", "reject"):
            seen = read(kind, case, folder, on_error)
            problems += [f"{on_error}: {each}" for each in judge(kind, case, seen, good, on_error)]
    if changed := tree(folder) ^ before:
        problems.append(f"files came or went: {sorted(changed)[:3]}")
    if Path(MARKER).exists():
        problems.append("it was unpickled")
    told = {"seconds": round(time.monotonic() - start, 3), "peak": peak(), "problems": problems[:6]}
    outcome = {"records": seen.count, "rejected": dict(seen.rejected.most_common(5)), "error": seen.error}
    shutil.rmtree(folder)
    return told | outcome | {"message": seen.message[:300]}


def main(base: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
    root = base / "root"
    for line in sys.stdin:
        name, _, skip = line.rstrip("\n").partition("\t")
        kind = BY_NAME[name]
        shutil.rmtree(root, ignore_errors=True)
        (root / "good").mkdir(parents=True)
        os.chdir(root)
        plain = Case("good", None)
        lay(kind, plain, root / "good")
        good = read(kind, plain, root / "good", "stop")
        assert good.records and not good.error and not good.problems, asdict(good)
        for number, case in enumerate(cases(kind)):
            if number < int(skip or 0):
                continue
            _say({"begin": case.name, "number": number})
            _say({"case": case.name} | (apart if case.heavy else one)(kind, case, root / str(number), good))
        _say({"end": name})


def _say(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
