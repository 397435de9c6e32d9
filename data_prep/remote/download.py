"""One file over HTTP, whole or to be gone on with.

Bytes go to a `.part` file, beside it a `.part.json` with what the server said of the file when they began to come. A
later request asks for the rest only, on the condition that the file is still that one (RFC 9110: `Range`, `If-Range`).
"""

import errno
import json
import os
import re
import shutil
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import requests
import urllib3.exceptions

from data_prep.remote.web import BLOCK, Refused, Web


@dataclass(frozen=True)
class Begun:
    """What a server said of a file: url, tag, time of change, size in bytes (None where it did not say)."""

    url: str
    etag: str = ""
    last_modified: str = ""
    bytes: int | None = None

    @staticmethod
    def of(url: str, answer: requests.Response, size: int | None) -> "Begun":
        return Begun(url, answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""), size)

    def validator(self, certain: bool) -> str:
        """For `If-Range`, which takes strong tags and times only; where a checksum will tell, the time.

        Mirrors behind one name give a file the same time and often different tags.
        """
        strong = "" if self.etag.startswith("W/") or (certain and self.last_modified) else self.etag
        return strong or self.last_modified

    def differs(self, other: "Begun", certain: bool) -> bool:
        """Whether the two are known to be of different content."""
        tags = (self.etag.removeprefix("W/"), other.etag.removeprefix("W/"))
        times = (self.last_modified, other.last_modified)
        pairs = (("", "") if certain and all(times) else tags, times, (self.bytes, other.bytes))
        return any(one and two and one != two for one, two in pairs)


@dataclass(frozen=True)
class Part:
    """The file that grows, and the note beside it."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def read(self) -> dict:
        """The note; empty where there is none that can be read."""
        try:
            note = json.loads(self.note.read_bytes())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def write(self, **note: object) -> None:
        fresh = self.note.with_name(self.note.name + ".new")
        fresh.write_text(json.dumps(note))
        fresh.replace(self.note)

    def begun(self, url: str) -> Begun | None:
        """What the bytes that are there belong to; None if there are none, or they are of another url."""
        try:
            begun = Begun(**self.read()["begun"])
        except (KeyError, TypeError):
            return None
        return begun if begun.url == url and self.path.exists() else None

    def begin(self, begun: Begun) -> None:
        """Emptied first: a note about new content must never stand beside old bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "wb"):
            pass
        self.write(begun=asdict(begun))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def download(web: Web, url: str, part: Part, certain: bool = False) -> tuple[Begun, bool]:
    """Bring the whole file into `part`: what the server said of it, and whether earlier bytes were gone on with.

    certain: a checksum will tell whether bytes fit together, so that a file without tag and time of change may be gone
    on with too. Raises Refused.
    """
    resumed = False

    def attempt() -> Begun:
        nonlocal resumed
        begun, resumed = _attempt(web, url, part, certain)
        return begun

    return web.persist(attempt, part.size), resumed


def unchanged(web: Web, begun: Begun) -> bool:
    """Whether the server says that a file is still the one that was fetched; False where it cannot. Raises Refused."""
    asked = {"If-None-Match": begun.etag} if begun.etag else {"If-Modified-Since": begun.last_modified}

    def ask() -> bool:
        with closing(web.open(begun.url, asked)) as answer:
            if answer.status_code == 304:
                return True
            new = Begun.of(begun.url, answer, _length(answer))
            return bool(new.etag or new.last_modified) and not begun.differs(new, False)

    return bool(begun.etag or begun.last_modified) and web.persist(ask)


def _attempt(web: Web, url: str, part: Part, certain: bool) -> tuple[Begun, bool]:
    begun = part.begun(url)
    at = part.size() if begun and (begun.validator(certain) or certain) else 0
    if begun and at and at == begun.bytes:
        return begun, True
    headers = {"Range": f"bytes={at}-"} if at else {}
    if begun and at and (validator := begun.validator(certain)):
        headers["If-Range"] = validator
    with closing(web.open(url, headers)) as answer:
        if at and begun and answer.status_code == 206:
            first, total = _range(answer)
            if first != at or begun.differs(Begun.of(url, answer, total), certain):
                part.discard()
                raise Refused("changed", f"{url}: the file changed between two requests", passing=True)
        elif answer.status_code == 200:
            at, begun = 0, Begun.of(url, answer, _length(answer))
            part.begin(begun)
            _room(part.path.parent, begun)
        else:  # 416: what is there is longer than the file; or an answer to a question that was not asked
            part.discard()
            raise Refused("changed", f"{url}: status {answer.status_code} for bytes from {at} on", passing=True)
        _receive(web, answer, url, part)
    _complete(url, part, begun)
    return begun, at > 0


def _room(folder: Path, begun: Begun) -> None:
    """Raise OSError where a file will not fit: better at its beginning than hours later."""
    free = shutil.disk_usage(folder).free
    if begun.bytes and begun.bytes > free:
        sizes = f"{begun.url} has {begun.bytes / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"
        raise OSError(errno.ENOSPC, f"{sizes} at", str(folder))


def _receive(web: Web, answer: requests.Response, url: str, part: Part) -> None:
    """Append the body. Unbuffered, so that what came survives a killed process."""
    since, came, patience = time.monotonic(), 0, web.config.timeout
    try:
        with open(part.path, "ab", buffering=0) as file:
            while block := answer.raw.read1(BLOCK, decode_content=False):
                file.write(block)
                web.arrived(len(block))
                came += len(block)
                if web.stop.is_set():
                    raise Refused("stopped", "stopped")
                if (passed := time.monotonic() - since) >= patience:
                    if came < web.config.slowest * passed:
                        raise Refused("too_slow", f"{url}: {came} bytes in {passed:.0f} s", passing=True)
                    since, came = time.monotonic(), 0
    except urllib3.exceptions.ReadTimeoutError as error:
        raise Refused("timeout", f"{url}: no byte in {patience:g} s", passing=True) from error
    except (urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise Refused("cut_off", f"{url}: cut off after {part.size()} bytes ({error.args[0]})", passing=True) from error


def _complete(url: str, part: Part, begun: Begun) -> None:
    """Raise Refused unless `part` is as long as the server announced."""
    size = part.size()
    if not size:
        part.discard()
        raise Refused("empty", f"{url}: an empty file came", passing=True)
    if begun.bytes is not None and size < begun.bytes:
        raise Refused("cut_off", f"{url}: {size} of {begun.bytes} bytes came", passing=True)
    if begun.bytes is not None and size > begun.bytes:
        part.discard()
        raise Refused("wrong_size", f"{url}: {size} bytes came, the server announced {begun.bytes}", passing=True)
    with open(part.path, "rb") as file:
        os.fsync(file.fileno())


def _length(answer: requests.Response) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and "Transfer-Encoding" not in answer.headers else None


def _range(answer: requests.Response) -> tuple[int, int | None]:
    """(first byte, size of the whole file) of a part; (-1, None) where it does not say."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    return (int(found[1]), None if found[2] == "*" else int(found[2])) if found else (-1, None)
