"""A public archive's server on this machine, with the faults that real ones have."""

import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

CHANGED = "Wed, 05 Aug 2026 10:00:00 GMT"


@dataclass(frozen=True)
class Fault:
    """How one request is answered instead.

    status: this one, with `headers` and `body`. cut: the connection ends after this many bytes of the body. pause:
    seconds between pieces of `piece` bytes. whole: Range is ignored. lie: the length announced is this much longer.
    """

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    cut: int | None = None
    pause: float = 0
    piece: int = 1
    whole: bool = False
    lie: int = 0
    chunked: bool = False


@dataclass
class Page:
    """A file: its content and validators, and the faults of the next requests, in order; `always` of all after them."""

    body: bytes
    etag: str = ""
    last_modified: str = CHANGED
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None


@dataclass(frozen=True)
class Asked:
    """A request as the server saw it. condition: of If-Range and its like. at: seconds of the monotonic clock."""

    path: str
    range: str
    condition: str
    status: int
    agent: str = ""
    at: float = 0.0


@dataclass
class Archive:
    """Pages by path. `asked` lists every request; `sent` counts the bytes of bodies by path."""

    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    most_at_once: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Archive":
        archive = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                archive.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda request, client_address: None  # a client that went away is no news
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def put(self, path: str, body: bytes, *faults: Fault, always: Fault | None = None, **about: str) -> Page:
        tag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()[:12]}"'
        page = Page(body, about.get("etag", tag), about.get("last_modified", CHANGED), list(faults), always)
        self.pages[path] = page
        return page

    def requests(self, path: str) -> list[Asked]:
        return [each for each in self.asked if each.path == path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            self._answer(handler)
        finally:
            with self._lock:
                self._open -= 1

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        page = self.pages.get(handler.path)
        with self._lock:
            fault = page.faults.pop(0) if page and page.faults else (page and page.always) or Fault()
        status, headers, body = _respond(handler, page, fault)
        name = next((n for n in ("If-Range", "If-None-Match", "If-Modified-Since") if handler.headers.get(n)), "")
        asked = Asked(
            handler.path,
            handler.headers.get("Range", ""),
            handler.headers.get(name, "") if name else "",
            status,
            handler.headers.get("User-Agent", ""),
            time.monotonic(),
        )
        with self._lock:
            self.asked.append(asked)
        handler.send_response(status)
        if fault.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        elif status != 304:
            handler.send_header("Content-Length", str(len(body) + fault.lie))
        for key, value in headers:
            handler.send_header(key, value)
        handler.end_headers()
        self._send(handler, body, fault)

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, fault: Fault) -> None:
        end = len(body) if fault.cut is None else fault.cut
        step = fault.piece if fault.pause else 1 << 16
        for at in range(0, end, step):
            piece = body[at : min(at + step, end)]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if fault.chunked else piece)
            with self._lock:
                self.sent[handler.path] = self.sent.get(handler.path, 0) + len(piece)
            if fault.pause:
                handler.wfile.flush()
                time.sleep(fault.pause)
        if fault.cut is not None or fault.lie:
            handler.wfile.flush()
            handler.close_connection = True
        elif fault.chunked:
            handler.wfile.write(b"0\r\n\r\n")


def _respond(
    handler: BaseHTTPRequestHandler, page: Page | None, fault: Fault
) -> tuple[int, list[tuple[str, str]], bytes]:
    if fault.status:
        return fault.status, list(fault.headers), fault.body or b""
    if page is None:
        return 404, [("Content-Type", "text/html")], b"<html><title>Not Found</title></html>"
    body = page.body if fault.body is None else fault.body
    about = [(n, v) for n, v in (("ETag", page.etag), ("Last-Modified", page.last_modified)) if v] + list(fault.headers)
    condition = handler.headers.get("If-None-Match") or handler.headers.get("If-Modified-Since")
    if condition and condition in (page.etag, page.last_modified):
        return 304, about, b""
    wanted, unless = handler.headers.get("Range", ""), handler.headers.get("If-Range", "")
    if not wanted or fault.whole or (unless and unless not in (page.etag, page.last_modified)):
        return 200, about, body
    first = int(wanted.removeprefix("bytes=").rstrip("-"))
    if first >= len(body):
        return 416, [("Content-Range", f"bytes */{len(body)}")], b""
    return 206, [*about, ("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")], body[first:]
