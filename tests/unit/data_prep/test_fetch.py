"""Fetching from a server that has every fault: nothing wrong stays, nothing is asked for twice, every failure named."""

import gzip
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.fetch import Report, fetch
from data_prep.remote.wanted import FetchConfig
from tests.unit.data_prep.archive import Archive, Fault

BODY = os.urandom(1 << 16)
WEB = {"timeout": 1.0, "retries": 2, "backoff": 0.01, "rate": 100, "slowest": 0}
METALINK = """<?xml version="1.0" encoding="utf-8"?>
<metalink version="3.0" xmlns="http://www.metalinker.org/"><version>2026_04</version>
<files><file name="complete/{name}"><size>{size}</size><verification>
<hash type="md5">{md5}</hash><pieces length="8" type="sha1"><hash piece="0">{md5}</hash></pieces>
</verification></file></files></metalink>"""


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as server:
        yield server


def config(archive: Archive, web: dict[str, Any] | None = None, give_up: int = 20, **item: Any) -> FetchConfig:
    tree = {"name": "test", "base": archive.url, "items": {"it": {"url": "{base}/{file}", **item}}}
    return FetchConfig.model_validate({**tree, "web": {**WEB, **(web or {})}, "give_up": give_up})


def get(archive: Archive, out: Path, *files: str, **more: Any) -> Report:
    options = {name: more.pop(name) for name in ("verify", "refresh") if name in more}
    return fetch(config(archive, file=files, **more), out, quiet=True, **options)


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "fetched.json").read_text())


def reasons(report: Report) -> list[str]:
    return [each.reason for each in report.failed]


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*.part*"))


def test_a_file_is_fetched_once_and_written_down(archive: Archive, tmp_path: Path) -> None:
    archive.put("/a/x.bin", BODY)
    first = get(archive, tmp_path, "a/x.bin", into="raw")
    assert first.complete and first.counts == {"fetched": 1} and first.bytes == len(BODY)
    assert (tmp_path / "raw/x.bin").read_bytes() == BODY and not leftovers(tmp_path)
    entry = record(tmp_path)["files"]["raw/x.bin"]
    assert entry["sha256"] == hashlib.sha256(BODY).hexdigest() and entry["bytes"] == len(BODY)
    assert entry["url"] == f"{archive.url}/a/x.bin" and entry["etag"] and entry["last_modified"] and entry["date"]
    again = get(archive, tmp_path, "a/x.bin", into="raw")
    assert again.counts == {"kept": 1} and len(archive.asked) == 1
    assert record(tmp_path)["files"]["raw/x.bin"] == entry


@pytest.mark.parametrize("cuts", [(1000,), (1, 2, 60_000), (0, len(BODY) - 1)])
def test_a_cut_connection_is_gone_on_with(archive: Archive, tmp_path: Path, cuts: tuple[int, ...]) -> None:
    archive.put("/x.bin", BODY, *(Fault(cut=cut) for cut in cuts))
    assert get(archive, tmp_path, "x.bin", web={"retries": 3}).complete
    assert (tmp_path / "x.bin").read_bytes() == BODY
    assert archive.sent["/x.bin"] == len(BODY), "no byte came twice"
    second = archive.asked[1]
    assert second.range == (f"bytes={cuts[0]}-" if cuts[0] else "") and bool(second.condition) == bool(cuts[0])


def test_a_part_of_an_earlier_run_is_gone_on_with(archive: Archive, tmp_path: Path) -> None:
    page = archive.put("/x.bin", BODY, always=Fault(cut=5000))
    assert reasons(get(archive, tmp_path, "x.bin", web={"retries": 0})) == ["cut_off"]
    assert leftovers(tmp_path) == ["x.bin.part", "x.bin.part.json"] and not (tmp_path / "x.bin").exists()
    page.always = None
    assert get(archive, tmp_path, "x.bin").complete and (tmp_path / "x.bin").read_bytes() == BODY
    assert archive.asked[-1].range == "bytes=5000-" and archive.asked[-1].status == 206


@pytest.mark.parametrize("validators", ["etag", "time", "weak", "none"])
def test_a_file_that_changes_between_is_begun_anew(archive: Archive, tmp_path: Path, validators: str) -> None:
    new = os.urandom(len(BODY))
    pages = archive.put("/x.bin", BODY, always=Fault(cut=5000)), archive.put("/x.bin", new)
    for number, page in enumerate(pages):
        time_of_change = f"Wed, 05 Aug 2026 10:00:0{number} GMT"
        page.etag = {"etag": page.etag, "weak": f'W/"{number}"'}.get(validators, "")
        page.last_modified = time_of_change if validators in ("time", "weak") else ""
    archive.pages["/x.bin"] = pages[0]
    assert not get(archive, tmp_path, "x.bin", web={"retries": 0}).complete
    archive.pages["/x.bin"] = pages[1]
    assert get(archive, tmp_path, "x.bin").complete and (tmp_path / "x.bin").read_bytes() == new


def test_a_server_that_ignores_the_condition_is_seen_through(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", BODY, always=Fault(cut=5000), last_modified="")
    assert not get(archive, tmp_path, "x.bin", web={"retries": 0}).complete
    new = os.urandom(len(BODY))
    part = Fault(206, (("Content-Range", f"bytes 5000-{len(BODY) - 1}/{len(BODY)}"), ("ETag", '"new"')), new[5000:])
    archive.put("/x.bin", new, part)
    assert get(archive, tmp_path, "x.bin").complete and (tmp_path / "x.bin").read_bytes() == new
    assert [each.range for each in archive.asked[1:]] == ["bytes=5000-", ""]


@pytest.mark.parametrize("answer", ["bytes 0-9/65536", "bytes 4000-65535/65536", "nonsense"])
def test_a_part_that_was_not_asked_for_is_not_joined(archive: Archive, tmp_path: Path, answer: str) -> None:
    archive.put("/x.bin", BODY, Fault(cut=5000), Fault(206, (("Content-Range", answer),), BODY[:10]))
    assert get(archive, tmp_path, "x.bin").complete and (tmp_path / "x.bin").read_bytes() == BODY


def test_a_server_without_ranges_sends_all_again(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", BODY, Fault(cut=5000), always=Fault(whole=True))
    assert get(archive, tmp_path, "x.bin").complete and (tmp_path / "x.bin").read_bytes() == BODY
    assert [each.status for each in archive.asked] == [200, 200]


def test_a_file_that_shrank_is_begun_anew(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", BODY, always=Fault(cut=5000))
    assert not get(archive, tmp_path, "x.bin", web={"retries": 0}).complete
    archive.put("/x.bin", BODY[:100], Fault(416))
    assert get(archive, tmp_path, "x.bin").complete and (tmp_path / "x.bin").read_bytes() == BODY[:100]


def test_halves_of_two_files_are_told_by_the_checksum(archive: Archive, tmp_path: Path) -> None:
    """Of mirrors behind one name: the time is the same, the content is not."""
    archive.put("/x.bin", os.urandom(len(BODY)), always=Fault(cut=5000))
    wanted = {"sha256": hashlib.sha256(BODY).hexdigest()}
    assert not get(archive, tmp_path, "x.bin", web={"retries": 0}, **wanted).complete
    archive.put("/x.bin", BODY)
    assert get(archive, tmp_path, "x.bin", **wanted).complete and (tmp_path / "x.bin").read_bytes() == BODY
    assert [each.range for each in archive.asked[1:]] == ["bytes=5000-", ""]


@pytest.mark.parametrize(
    ("fault", "name", "says"),
    [
        (Fault(body=b""), "empty", "an empty file came; tried 3 times"),
        (Fault(body=b" \n"), "empty", "white space"),
        (Fault(body=b"<!DOCTYPE html>\n<html><title>Down for\n maintenance</title>"), "html", "'Down for maintenance'"),
        (Fault(body=b'\xef\xbb\xbf<?xml version="1.0"?><!doctype HTML >'), "html", "an HTML page"),
        (Fault(body=b'{"error": "no such proteome"}'), "error_reply", "no such proteome"),
        (Fault(body=gzip.compress(BODY)[:-9]), "truncated", "damaged gzip"),
        (Fault(body=gzip.compress(BODY)[:5000]), "truncated", "damaged gzip"),
        (Fault(body=b"plain text"), "wrong_kind", "no gzip file; it begins with b'plain text'"),
        (Fault(status=403, body=b"not from here"), "forbidden", "not from here"),
        (Fault(status=404), "not_found", "status 404"),
        (Fault(status=410), "gone", "status 410"),
        (Fault(status=500), "server_error", "status 500 Internal Server Error; tried 3 times"),
        (Fault(status=429), "too_many_requests", "tried 3 times"),
        (Fault(status=418), "bad_status", "status 418"),
        (Fault(status=503, headers=(("Retry-After", "86400"),)), "busy", "asks for a pause of 86400 s"),
        (Fault(cut=100), "cut_off", "cut off after 300 bytes"),
        (Fault(lie=10), "cut_off", "cut off"),
        (Fault(status=302, headers=(("Location", "/x.gz"),)), "redirects", "more than 5 redirects"),
        (Fault(status=302), "redirects", "not said where to"),
        (Fault(status=302, headers=(("Location", "file:///etc/passwd"),)), "redirects", "from http to 'file:///etc"),
        (Fault(status=301, headers=(("Location", "ftp://127.0.0.1/x.gz"),)), "redirects", "is not followed"),
        (Fault(pause=3), "timeout", "no byte in 1 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_the_file_is_named_and_not_kept(
    archive: Archive, tmp_path: Path, fault: Fault, name: str, says: str
) -> None:
    archive.put("/x.gz", gzip.compress(BODY), always=fault)
    report = get(archive, tmp_path, "x.gz")
    assert reasons(report) == [name] and says in report.failed[0].message and archive.url in report.failed[0].message
    assert not (tmp_path / "x.gz").exists()
    kept = ["x.gz.part", "x.gz.part.json"] if name in ("cut_off", "timeout") else []
    assert leftovers(tmp_path) == kept
    assert record(tmp_path)["failed"][0]["reason"] == name and not record(tmp_path)["files"]
    assert any(says in line for line in report.lines()) and not report.complete


def test_what_passes_is_waited_for(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", BODY, Fault(503), Fault(503), Fault(429, (("Retry-After", "1"),)))
    assert get(archive, tmp_path, "x.bin", web={"retries": 3}).complete
    times = [each.at for each in archive.asked]
    assert len(times) == 4 and times[3] - times[2] >= 1 and times[1] - times[0] < 1


def test_a_pause_that_is_asked_for_is_one_for_all(archive: Archive, tmp_path: Path) -> None:
    for name in "abcd":
        archive.put(f"/{name}.bin", BODY)
    archive.pages["/a.bin"].faults = [Fault(429, (("Retry-After", "1"),))]
    assert get(archive, tmp_path, "a.bin", "b.bin", "c.bin", "d.bin", web={"connections": 1}).complete
    first, *rest = (each.at for each in archive.asked)
    assert min(rest) - first >= 1


def test_a_drip_is_given_up_and_a_slow_file_is_not(archive: Archive, tmp_path: Path) -> None:
    archive.put("/drip.bin", BODY, always=Fault(pause=0.2, piece=1))
    archive.put("/slow.bin", BODY, always=Fault(pause=0.2, piece=1 << 13))
    report = get(archive, tmp_path, "drip.bin", "slow.bin", web={"timeout": 0.5, "slowest": 100, "retries": 1})
    assert reasons(report) == ["too_slow"] and (tmp_path / "slow.bin").read_bytes() == BODY


def test_steps_forward_are_no_failures(archive: Archive, tmp_path: Path) -> None:
    """A long file over a bad line: each try adds a megabyte or more, and there are more tries than retries."""
    body = os.urandom(5 << 20)
    archive.put("/x.bin", body, always=Fault(cut=(1 << 20) + 1))
    assert get(archive, tmp_path, "x.bin", web={"retries": 0}).complete
    assert (tmp_path / "x.bin").read_bytes() == body and len(archive.asked) == 5


def test_chunked_files_have_no_length_and_are_whole(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", BODY, Fault(chunked=True, cut=5000), Fault(chunked=True))
    assert get(archive, tmp_path, "x.bin").complete and (tmp_path / "x.bin").read_bytes() == BODY


def test_redirects_are_followed_within_the_scheme(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", b"", Fault(302, (("Location", "/b"),)))
    archive.put("/b", b"", Fault(307, (("Location", f"{archive.url}/c"),)))
    archive.put("/c", BODY)
    assert get(archive, tmp_path, "x.bin").complete and (tmp_path / "x.bin").read_bytes() == BODY


def test_connections_and_requests_are_limited(archive: Archive, tmp_path: Path) -> None:
    for n in range(12):
        archive.put(f"/{n}.bin", BODY, always=Fault(pause=0.02, piece=1 << 15))
    names = [f"{n}.bin" for n in range(12)]
    started = time.monotonic()
    assert get(archive, tmp_path, *names, web={"connections": 3, "rate": 20, "contact": "me@example.org"}).complete
    assert archive.most_at_once <= 3 and time.monotonic() - started >= 11 / 20
    assert {each.agent for each in archive.asked} == {"fourfold (me@example.org)"}


def test_a_dead_server_ends_the_run(archive: Archive, tmp_path: Path) -> None:
    for n in range(60):
        archive.put(f"/{n}.bin", BODY, always=Fault(500))
    names = [f"{n}.bin" for n in range(60)]
    report = get(archive, tmp_path, *names, give_up=5, web={"retries": 0, "connections": 2})
    assert report.counts["stopped"] >= 50 and not report.complete and set(reasons(report)) == {"server_error"}
    assert any("go on later" in line for line in report.lines())


def test_files_that_do_not_exist_do_not_end_a_run(archive: Archive, tmp_path: Path) -> None:
    names = [f"{n}.bin" for n in range(30)]
    report = get(archive, tmp_path, *names, give_up=5)
    assert report.counts == {"failed": 30}


def test_verify_finds_and_mends_damage(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", BODY)
    archive.put("/y.bin", BODY)
    assert get(archive, tmp_path, "x.bin", "y.bin").complete
    (tmp_path / "x.bin").write_bytes(bytes(len(BODY)))
    assert get(archive, tmp_path, "x.bin", "y.bin").counts == {"kept": 2}, "by size alone it is the same"
    assert get(archive, tmp_path, "x.bin", "y.bin", verify=True).counts == {"fetched": 1, "kept": 1}
    assert (tmp_path / "x.bin").read_bytes() == BODY
    (tmp_path / "y.bin").write_bytes(BODY[:-1])
    assert get(archive, tmp_path, "x.bin", "y.bin").counts == {"fetched": 1, "kept": 1}


def test_refresh_asks_whether_it_changed(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", BODY)
    assert get(archive, tmp_path, "x.bin").complete
    assert get(archive, tmp_path, "x.bin", refresh=True).counts == {"kept": 1}
    assert archive.asked[-1].status == 304 and archive.sent["/x.bin"] == len(BODY)
    new = os.urandom(100)
    archive.put("/x.bin", new)
    assert get(archive, tmp_path, "x.bin").counts == {"kept": 1}
    assert get(archive, tmp_path, "x.bin", refresh=True).counts == {"fetched": 1}
    assert (tmp_path / "x.bin").read_bytes() == new


def test_another_release_replaces_what_is_there(archive: Archive, tmp_path: Path) -> None:
    archive.put("/1/x.bin", BODY)
    archive.put("/2/x.bin", BODY[:100])
    for release, size in (("1", len(BODY)), ("2", 100)):
        settings = config(archive, url="{base}/{release}/x.bin").model_copy(update={"release": release})
        assert fetch(settings, tmp_path, quiet=True).counts == {"fetched": 1}
        assert (tmp_path / "x.bin").stat().st_size == size
        assert record(tmp_path)["files"]["x.bin"]["release"] == release


def test_a_strange_file_is_not_overwritten(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", BODY)
    (tmp_path / "x.bin").write_bytes(b"mine")
    report = get(archive, tmp_path, "x.bin")
    assert reasons(report) == ["in_the_way"] and (tmp_path / "x.bin").read_bytes() == b"mine"
    digest = hashlib.sha256(BODY).hexdigest()
    assert reasons(get(archive, tmp_path, "x.bin", sha256=digest)) == ["in_the_way"]
    (tmp_path / "x.bin").write_bytes(BODY)  # brought by other means, and right
    assert get(archive, tmp_path, "x.bin", sha256=digest).counts == {"kept": 1} and not archive.asked
    assert record(tmp_path)["files"]["x.bin"]["checked"] == "sha256 of the configuration"


def test_a_server_that_is_not_there_is_named(archive: Archive, tmp_path: Path) -> None:
    report = get(archive, tmp_path, "x.bin", base="http://127.0.0.1:1", web={"retries": 1})
    assert reasons(report) == ["unreachable"] and "tried 2 times" in report.failed[0].message


def test_a_full_disk_stops_the_run_at_once(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdef":
        archive.put(f"/{name}.bin", BODY)
    small = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: small)
        with pytest.raises(OSError, match=r"has 0\.0 GB, 0\.0 GB are free"):
            get(archive, tmp_path, *(f"{name}.bin" for name in "abcdef"), web={"connections": 1})
    assert len(archive.asked) < 6
    assert get(archive, tmp_path, *(f"{name}.bin" for name in "abcdef")).counts == {"fetched": 6}
