"""What becomes of one wanted file: kept, fetched, absent at its source, or failed, with the reason."""

import json
import threading
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from data_prep.remote import checksums, replies
from data_prep.remote.checksums import Expected, Listing
from data_prep.remote.download import Begun, Part, download, unchanged
from data_prep.remote.ledger import Entry, Ledger
from data_prep.remote.wanted import LATEST, FetchConfig, Wanted, landing
from data_prep.remote.web import Refused, Web, moved
from pretrain.places import Place, sha256

ABSENT = ("not_found", "gone")
SERVERS = {"busy", "cut_off", "server_error", "timeout", "tls", "too_many_requests", "too_slow", "unreachable"}
DOUBTFUL = ("wrong_checksum", "wrong_size", "truncated")  # what two halves of different files may look like


@dataclass(frozen=True)
class Outcome:
    """What became of one file. what: fetched, kept, absent, failed or stopped. name: its path, or its address."""

    what: str
    item: str
    name: str
    bytes: int = 0
    reason: str = ""
    message: str = ""


@dataclass
class Errands:
    """Runs errands, from several threads. parts: where unfinished files grow."""

    config: FetchConfig
    out: Place
    parts: Path
    ledger: Ledger
    web: Web
    verify: bool = False
    refresh: bool = False
    _listings: dict[str, Listing | Refused] = field(default_factory=dict)
    _taken: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _in_a_row: int = 0

    def one(self, wanted: Wanted) -> list[Outcome]:
        """Everything that becomes of one wanted file; of several where a question has several answers."""
        try:
            if kept := self._kept(wanted):
                return kept
            if self.ledger.missed(wanted) and not self.refresh:
                return [Outcome("absent", wanted.item, wanted.ask or wanted.url)]
            addresses = self._addresses(wanted)
        except Refused as problem:
            return [self._failed(wanted, problem)]
        self.ledger.answered(wanted.ask, addresses)
        return [self._attempt(wanted, url, len(addresses)) for url in addresses]

    def _attempt(self, wanted: Wanted, url: str, of: int) -> Outcome:
        try:
            outcome = self._file(wanted, url, of)
        except Refused as problem:
            return self._failed(wanted, problem)
        self._in_a_row = 0
        return outcome

    def _failed(self, wanted: Wanted, problem: Refused) -> Outcome:
        source = wanted.ask or wanted.url
        if problem.reason == "stopped":
            return Outcome("stopped", wanted.item, source)
        if problem.reason in ABSENT and self.config.items[wanted.item].optional:
            self._in_a_row = 0
            about = {"item": wanted.item, "accession": wanted.accession, "reason": problem.reason, "date": _now()}
            self.ledger.miss(wanted, about)
            return Outcome("absent", wanted.item, source)
        with self._lock:
            self._in_a_row = self._in_a_row + 1 if problem.reason in SERVERS else 0
            if self._in_a_row >= self.config.give_up:
                self.web.stop.set()
        return Outcome("failed", wanted.item, wanted.path or source, 0, problem.reason, str(problem))

    def _kept(self, wanted: Wanted) -> list[Outcome]:
        """Outcomes of files that are there as they were written down; none if any is not."""
        entries = self.ledger.of(wanted)
        if any(entry.of != len(entries) for entry in entries.values()):  # not all that an answer named
            return []
        if (self.refresh and wanted.ask) or not all(self._intact(path, entry) for path, entry in entries.items()):
            return []
        return [Outcome("kept", wanted.item, path) for path in entries]

    def _intact(self, path: str, entry: Entry) -> bool:
        """Whether a file is there as it was written down, and, where that is asked, at its source too."""
        if not self.out.exists(path) or self.out.stat(path).bytes != entry.bytes:
            return False
        if self.verify and sha256(self.out.open(path)) != entry.sha256:
            return False
        begun = Begun(entry.url, entry.etag, entry.last_modified, entry.bytes)
        return not self.refresh or unchanged(self.web, begun)

    def _addresses(self, wanted: Wanted) -> list[str]:
        """Where the file is, or the files; asked of the source where it must be. Raises Refused."""
        resolve = self.config.items[wanted.item].resolve
        if wanted.url or not resolve:
            return [wanted.url]
        try:
            tree = json.loads(self.web.small(wanted.ask))
        except ValueError as error:
            if isinstance(error, Refused):
                raise
            raise Refused("error_reply", f"{wanted.ask}: no JSON came ({error})") from error
        answers = [each for each in (tree if isinstance(tree, list) else [tree]) if isinstance(each, dict)]
        fitting = [each for each in answers if all(str(each.get(key)) == value for key, value in wanted.where)]
        found = [each[resolve.field] for each in fitting if isinstance(each.get(resolve.field), str)]
        if not found:
            reason = "error_reply" if fitting else "not_found"
            fit = f"{len(fitting)} of {len(answers)} answers fit {dict(wanted.where)}"
            raise Refused(reason, f"{wanted.ask}: no {resolve.field!r} came; {fit}: {str(tree)[:160]}")
        urls = list(dict.fromkeys(moved(wanted.ask, each) for each in found))
        if wanted.path and len(urls) > 1:
            raise Refused("error_reply", f"{wanted.ask}: {len(urls)} addresses for one file; narrow `resolve.where`")
        return urls

    def _file(self, wanted: Wanted, url: str, of: int) -> Outcome:
        """Fetch one file, or finish what a killed run left. Raises Refused."""
        path = wanted.path or landing(wanted.into, url)
        with self._lock:
            if (other := self._taken.setdefault(path, url)) != url:
                raise Refused("unsafe_name", f"{url}: {path} is the name of {other} too; name them apart")
        if (known := self.ledger.files.get(path)) and known.url == url and wanted.ask and self._intact(path, known):
            return Outcome("kept", wanted.item, path)
        part = Part(self.parts / f"{path}.part")
        if (left := part.read().get("done")) and left["url"] == url and not part.path.exists():
            entry = Entry(**left)
            if self.out.exists(path) and self.out.stat(path).bytes == entry.bytes:
                return self._settle(path, part, entry)
        expected, release = self._expected(wanted, url)
        if self.out.exists(path) and path not in self.ledger.files:
            return self._adopt(wanted, url, path, expected, release)
        begun, digest = self._receive(wanted, url, path, part, expected)
        entry = self._entry(wanted, begun, part.size(), digest, expected, release, of)
        part.write(begun=asdict(begun), done=asdict(entry))
        if self.out.local == self.parts:
            part.path.replace(self.parts / path)
        else:
            self.out.put(part.path, path)
        return self._settle(path, part, entry)

    def _settle(self, path: str, part: Part, entry: Entry) -> Outcome:
        self.ledger.add(path, entry)
        part.discard()
        return Outcome("fetched", entry.item, path, entry.bytes)

    def _receive(self, wanted: Wanted, url: str, path: str, part: Part, expected: Expected) -> tuple[Begun, str]:
        """The whole file in `part`: what the server said of it, its SHA-256. Raises Refused; then nothing is left."""
        for again in (True, False):
            begun, resumed = download(self.web, url, part, bool(expected.best))
            try:
                return begun, self._inspect(wanted, url, path, part.path, expected)
            except Refused as problem:
                part.discard()  # so that the second time nothing is gone on with
                if not (again and resumed and problem.reason in DOUBTFUL):
                    raise
        raise AssertionError("the second time returns or raises")

    def _inspect(self, wanted: Wanted, url: str, path: str, file: Path, expected: Expected) -> str:
        """The file's SHA-256. Raises Refused if it is not what it should be."""
        kind = self.config.items[wanted.item].kind
        replies.check(file, Path(path).name, kind, False, url)
        size = file.stat().st_size
        if expected.bytes is not None and size != expected.bytes:
            raise Refused("wrong_size", f"{url}: {size} bytes, {expected.bytes} in {wanted.listing}")
        found = checksums.digests(file, {"sha256", expected.best} - {""})
        if expected.best and found[expected.best] != expected.digests[expected.best]:
            source = wanted.listing or "the configuration"
            wrong = f"{expected.best} {found[expected.best]}, {expected.digests[expected.best]} in {source}"
            raise Refused("wrong_checksum", f"{url}: {wrong}; a release may be on its way: try again later")
        if not expected.best:
            replies.check(file, Path(path).name, kind, True, url)
        return found["sha256"]

    def _entry(
        self, wanted: Wanted, begun: Begun, size: int, digest: str, expected: Expected, release: str, of: int = 1
    ) -> Entry:
        checked = f"{expected.best} of {wanted.listing or 'the configuration'}" if expected.best else ""
        return Entry(
            item=wanted.item,
            url=begun.url,
            bytes=size,
            sha256=digest,
            etag=begun.etag,
            last_modified=begun.last_modified,
            date=_now(),
            release=release or self.config.release or self.config.version.removeprefix(LATEST),
            licence=self.config.items[wanted.item].licence,
            accession=wanted.accession,
            ask=wanted.ask,
            checked=checked,
            of=of,
        )

    def _adopt(self, wanted: Wanted, url: str, path: str, expected: Expected, release: str) -> Outcome:
        """Write down a file that someone else put there, if its checksum is known and right. Raises Refused if not."""
        local = self.out.local
        if not expected.best or local is None:
            raise Refused("in_the_way", f"{path} is there, and not from an earlier run; move it away, or use --only")
        try:
            digest = self._inspect(wanted, url, path, local / path, expected)
        except Refused as problem:
            raise Refused("in_the_way", f"{path} is there, and is not {url} ({problem.reason}); move it away") from None
        size = (local / path).stat().st_size
        self.ledger.add(path, self._entry(wanted, Begun(url), size, digest, expected, release))
        return Outcome("kept", wanted.item, path)

    def _expected(self, wanted: Wanted, url: str) -> tuple[Expected, str]:
        """(what the file should be, the release that its listing names). Raises Refused."""
        if not wanted.listing:
            return Expected(wanted.digests), ""
        with self._lock:  # one thread asks for a listing, the others wait for it
            if wanted.listing not in self._listings:
                try:
                    data = self.web.small(wanted.listing)
                    self._listings[wanted.listing] = checksums.parse(data, wanted.listing)
                except Refused as problem:
                    self._listings[wanted.listing] = problem
            listing = self._listings[wanted.listing]
        if isinstance(listing, Refused):
            raise Refused("no_listing", f"{url}: its checksums could not be had: {listing}")
        found = listing.find(url)
        return Expected({**found.digests, **wanted.digests}, found.bytes), listing.release


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
