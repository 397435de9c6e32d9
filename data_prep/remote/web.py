"""Servers, asked politely: what is busy is asked again, later each time and not for ever; nothing else is.

TLS certificates are verified, redirects are few and stay with http and https, proxies come from the environment
(`HTTPS_PROXY`, `NO_PROXY`), and a certificate authority of one's own from `REQUESTS_CA_BUNDLE`.
"""

import email.utils
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import pydantic
import requests
import urllib3.exceptions

from pretrain.config import Config

BLOCK = 1 << 18  # bytes read at once at most
PROGRESS = 1 << 20  # bytes that make a failed try count as a step forward
MAX_SMALL = 64 << 20  # bytes of a listing or of an answer that is read into memory
BUSY = (408, 425, 429, 500, 502, 503, 504)
MOVED = (301, 302, 303, 307, 308)
STATUS = {401: "forbidden", 403: "forbidden", 404: "not_found", 410: "gone", 429: "too_many_requests"}

T = TypeVar("T")


class Refused(ValueError):
    """A file that could not be had. reason: a short name. passing: trying again may help, not before `wait` seconds."""

    def __init__(self, reason: str, message: str, passing: bool = False, wait: float = 0) -> None:
        super().__init__(message)
        self.reason, self.passing, self.wait = reason, passing, wait


class WebConfig(Config):
    """How servers are treated. Public archives are shared: the defaults are what they ask of scripts.

    connections: at a time. rate: requests begun per second, over all connections. timeout: seconds without an answer or
    a byte. slowest: bytes per second, over `timeout` seconds, below which a connection is given up. retries: tries
    after the first that bring nothing new. backoff: seconds before the first of them, doubled each time. longest_wait:
    seconds; a server that asks for a longer pause is left. contact: an address that goes into the User-Agent, which
    UniProt and EMBL-EBI ask for.
    """

    connections: int = pydantic.Field(default=4, ge=1, le=16)
    rate: float = pydantic.Field(default=10, gt=0, le=100)
    timeout: float = pydantic.Field(default=60, gt=0)
    slowest: int = pydantic.Field(default=256, ge=0)
    retries: int = pydantic.Field(default=5, ge=0, le=20)
    backoff: float = pydantic.Field(default=1, ge=0)
    longest_wait: float = pydantic.Field(default=600, ge=0)
    redirects: int = pydantic.Field(default=5, ge=0, le=20)
    contact: str = ""


@dataclass
class Web:
    """Servers, asked politely: so many connections, so many requests a second, a pause for all when one is asked for.

    stop: set by whoever wants the threads to end. arrived: is told the number of bytes that came.
    """

    config: WebConfig
    stop: threading.Event = field(default_factory=threading.Event)
    arrived: Callable[[int], None] = lambda count: None
    _local: threading.local = field(default_factory=threading.local)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _next: float = 0.0

    def small(self, url: str) -> bytes:
        """A listing or an answer, in memory. Raises Refused."""
        return self.persist(lambda: self._whole(url))

    def open(self, url: str, headers: dict[str, str]) -> requests.Response:
        """The answer to a GET, after redirects, body unread; 200, 206, 304 or 416. Raises Refused for any other."""
        for _ in range(self.config.redirects + 1):
            answer = self._get(url, headers)
            if answer.status_code not in MOVED:
                _raise_for(answer, url, self.config.longest_wait)
                return answer
            answer.close()
            url = moved(url, answer.headers.get("Location", ""))
        raise Refused("redirects", f"more than {self.config.redirects} redirects, the last to {url}")

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        if urlsplit(url).scheme not in ("http", "https"):
            raise Refused("bad_url", f"{url}: http and https are fetched, nothing else")
        self._take_turn()
        wanted = {"Accept-Encoding": "identity", "User-Agent": agent(self.config.contact), **headers}
        limits = (self.config.timeout, self.config.timeout)
        try:
            return self._session().get(url, headers=wanted, stream=True, timeout=limits, allow_redirects=False)
        except requests.exceptions.SSLError as error:
            certain = "CERTIFICATE_VERIFY_FAILED" in str(error)
            raise Refused("tls", f"{url}: no trusted connection: {error}", passing=not certain) from error
        except requests.exceptions.Timeout as error:
            raise Refused("timeout", f"{url}: no answer in {self.config.timeout:g} s", passing=True) from error
        except requests.exceptions.ConnectionError as error:
            raise Refused("unreachable", f"{url}: {error}", passing=True) from error
        except (requests.exceptions.RequestException, ValueError) as error:
            raise Refused("bad_url", f"{url}: {error}") from error

    def _session(self) -> requests.Session:
        """One for each thread: it keeps its connections, and no cookies are to be shared."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session

    def _take_turn(self) -> None:
        with self._turn:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + 1 / self.config.rate
        self.sleep(at - now)

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(max(seconds, 0)):
            raise Refused("stopped", "stopped")

    def persist(self, action: Callable[[], T], reached: Callable[[], int] = int) -> T:
        """`action`, tried again while that may help. reached: bytes that are there; a try that adds many is no failure.

        A file's size bounds how often tries can add to the most that was ever reached, so this ends.
        """
        failures, most = 0, reached()
        while True:
            try:
                return action()
            except Refused as problem:
                failures = 0 if reached() >= most + PROGRESS else failures + 1
                most = max(most, reached())
                if not problem.passing:
                    raise
                if failures > self.config.retries:
                    raise Refused(problem.reason, f"{problem}; tried {failures} times") from problem
                pause = max(problem.wait, self.config.backoff * 2 ** max(failures - 1, 0))
                if problem.wait:  # asked of this connection, meant for all
                    with self._turn:
                        self._next = max(self._next, time.monotonic() + problem.wait)
                self.sleep(min(pause, self.config.longest_wait))

    def _whole(self, url: str) -> bytes:
        with closing(self.open(url, {})) as answer:
            parts, size = [], 0
            try:
                while block := answer.raw.read(BLOCK, decode_content=True):
                    parts.append(block)
                    size += len(block)
                    if size > MAX_SMALL:
                        raise Refused("too_large", f"{url}: over {MAX_SMALL >> 20} MiB; a listing or an answer is less")
            except (urllib3.exceptions.HTTPError, ConnectionError) as error:
                raise Refused("cut_off", f"{url}: cut off after {size} bytes ({error})", passing=True) from error
        if not size:
            raise Refused("empty", f"{url}: an empty answer came", passing=True)
        return b"".join(parts)


def agent(contact: str) -> str:
    return f"fourfold ({contact})" if contact else "fourfold"


def _raise_for(answer: requests.Response, url: str, longest: float) -> None:
    """Raise Refused for a status that brings no file."""
    code = answer.status_code
    if code in (200, 206, 304, 416):
        return
    try:
        said = " ".join(answer.raw.read(300, decode_content=True).decode("utf-8", "replace").split())
    except (urllib3.exceptions.HTTPError, OSError):
        said = ""
    answer.close()
    wait = _pause(answer.headers.get("Retry-After", ""))
    message = f"{url}: status {code} {answer.reason or ''}".rstrip() + (f": {said[:160]}" if said else "")
    if wait > longest:
        raise Refused("busy", f"{message}; it asks for a pause of {wait:.0f} s, over web.longest_wait; go on later")
    reason = STATUS.get(code) or ("server_error" if code >= 500 else "bad_status")
    raise Refused(reason, message, passing=code in BUSY, wait=wait)


def _pause(header: str) -> float:
    """Seconds of a `Retry-After`: a number, or a time of day."""
    if header.strip().isdigit():
        return float(header)
    try:
        return max((email.utils.parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0)
    except (TypeError, ValueError):
        return 0.0


def moved(url: str, location: str) -> str:
    """Where a redirect, or an answer, leads: by the same scheme, or from http to https, and nowhere else."""
    if not location:
        raise Refused("redirects", f"{url}: redirected, and not said where to")
    target = urljoin(url, location)
    old, new = urlsplit(url).scheme, urlsplit(target).scheme
    if new != old and (old, new) != ("http", "https"):
        raise Refused("redirects", f"{url}: leads from {old} to {target!r:.200}; that is not followed")
    return target
