"""`fourfold fetch` as a process: killed and begun again, twice at once, over TLS, with its exit codes."""

import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from data_prep.prepare import PrepareConfig, prepare
from data_prep.remote.download import Part
from data_prep.remote.ledger import JOURNAL
from tests.unit.data_prep.archive import Archive, Fault

ROOT = Path(__file__).resolve().parents[2]
BODY = os.urandom(4 << 20)
SLOW = Fault(pause=0.05, piece=1 << 17)  # 2.5 MB/s


def config(folder: Path, archive: Archive, *files: str) -> Path:
    path = folder / "fetch.toml"
    lines = [
        'name = "t"',
        f'base = "{archive.url}"',
        "[items.it]",
        'url = "{base}/{file}"',
        f"file = {json.dumps(files)}",
    ]
    path.write_text("\n".join([*lines, "[web]", "timeout = 5", "retries = 1", "backoff = 0.05", "rate = 100", ""]))
    return path


def start(config: Path, out: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.cli", "fetch", str(config), "--out", str(out), *more]
    around = {**os.environ, "NO_PROXY": "127.0.0.1,localhost", **environment}
    pipe = subprocess.PIPE
    # A shell starts what runs in its background deaf to Ctrl-C, and children inherit that.
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=ROOT, env=around, stdout=pipe, stderr=pipe, text=True, preexec_fn=hearing)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait(condition: object, process: subprocess.Popen[str], seconds: float = 60) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def test_a_killed_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with Archive() as archive:
        archive.put("/small.bin", BODY[:1000])
        archive.put("/big.bin", BODY, always=SLOW)
        path, out = config(tmp_path, archive, "small.bin", "big.bin"), tmp_path / "raw"
        sizes = [0]
        for more in (500_000, 700_000, 900_000):
            process = start(path, out)
            wait(lambda enough=sizes[-1] + more: Part(out / "big.bin.part").size() > enough, process)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            sizes.append(Part(out / "big.bin.part").size())
        code, said, _ = finish(start(path, out))
        assert code == 0 and "1  fetched" in said and "1  there already" in said
        assert (out / "big.bin").read_bytes() == BODY
        asked = archive.requests("/big.bin")
        assert [each.range for each in asked] == ["", *(f"bytes={size}-" for size in sizes[1:])]
        assert [each.status for each in asked] == [200, 206, 206, 206] and all(each.condition for each in asked[1:])
        assert len(archive.requests("/small.bin")) == 1, "what was finished before the kill is not asked for again"
        tree = json.loads((out / "fetched.json").read_text())
        assert tree["files"]["big.bin"]["sha256"] == hashlib.sha256(BODY).hexdigest()
        assert sorted(each.name for each in out.iterdir()) == [".fetched.lock", "big.bin", "fetched.json", "small.bin"]
        code, said, _ = finish(start(path, out, "--verify"))
        assert code == 0 and "2  there already" in said and len(archive.asked) == 5


@pytest.mark.parametrize("stage", ["whole part", "renamed", "torn journal"])
def test_a_kill_between_the_last_steps_costs_no_request(tmp_path: Path, stage: str) -> None:
    """The last steps take microseconds: what a kill between two of them leaves is put there by hand."""
    with Archive() as archive:
        archive.put("/x.bin", BODY)
        path, out = config(tmp_path, archive, "x.bin"), tmp_path / "raw"
        assert finish(start(path, out))[0] == 0
        entry = json.loads((out / "fetched.json").read_text())["files"]["x.bin"]
        (out / "fetched.json").unlink()
        part = Part(out / "x.bin.part")
        begun = {name: entry[name] for name in ("url", "etag", "last_modified", "bytes")}
        part.write(begun=begun, **({} if stage == "whole part" else {"done": entry}))
        if stage == "whole part":
            (out / "x.bin").rename(part.path)
        if stage == "torn journal":
            (out / JOURNAL).write_text('{"path": "x.bin", "entr')
        code, said, _ = finish(start(path, out))
        assert code == 0 and "1  fetched" in said and len(archive.asked) == 1
        assert (out / "x.bin").read_bytes() == BODY and not list(out.glob("*.part*"))
        assert json.loads((out / "fetched.json").read_text())["files"]["x.bin"]["sha256"] == entry["sha256"]


def test_ctrl_c_keeps_what_came(tmp_path: Path) -> None:
    with Archive() as archive:
        archive.put("/small.bin", BODY[:1000])
        archive.put("/big.bin", BODY, always=SLOW)
        path, out = config(tmp_path, archive, "small.bin", "big.bin"), tmp_path / "raw"
        process = start(path, out)
        wait(lambda: Part(out / "big.bin.part").size() > 500_000, process)
        process.send_signal(signal.SIGINT)
        code, _, said = finish(process)
        assert code not in (0, 2) and "Traceback" not in said
        assert list(json.loads((out / "fetched.json").read_text())["files"]) == ["small.bin"]
        assert Part(out / "big.bin.part").size() > 500_000


def test_two_runs_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    with Archive() as archive:
        archive.put("/big.bin", BODY, always=Fault(pause=1, piece=1 << 16))
        path, out = config(tmp_path, archive, "big.bin"), tmp_path / "raw"
        first = start(path, out)
        wait(lambda: Part(out / "big.bin.part").size() > 0, first)
        code, _, said = finish(start(path, out))
        assert code == 2 and "another run is fetching to" in said and "Traceback" not in said
        assert first.poll() is None and len(archive.asked) == 1
        first.kill()
        first.communicate()


def test_failures_are_a_table_and_an_exit_code(tmp_path: Path) -> None:
    with Archive() as archive:
        archive.put("/good.bin", BODY)
        archive.put("/page.tsv", b"<!DOCTYPE html><title>Sign in</title>")
        code, said, _ = finish(start(config(tmp_path, archive, "good.bin", "page.tsv", "gone.bin"), tmp_path / "raw"))
        assert code == 1
        lines = said.splitlines()
        assert lines[0].split() == ["1", "fetched,", "4.2", "MB"] and lines[1].split() == ["2", "failed"]
        assert lines[2].startswith("html       http://") and "'Sign in'" in lines[2]
        assert lines[3].startswith("not found  http://") and "status 404" in lines[3]


def test_what_is_made_of_fetched_files_says_where_they_are_from(tmp_path: Path) -> None:
    with Archive() as archive:
        archive.put("/a.fasta", b">P1\nMKTAYIAKQRQISFVKSHFSRQLEERLG\n")
        text = config(tmp_path, archive, "a.fasta").read_text().replace("[web]", 'licence = "CC BY 4.0"\n[web]')
        (tmp_path / "fetch.toml").write_text('release = "2026_03"\n' + text)
        assert finish(start(tmp_path / "fetch.toml", tmp_path / "raw"))[0] == 0
    source = {"kind": "fasta", "files": "*.fasta"}
    settings = PrepareConfig.model_validate(
        {"name": "x", "root": str(tmp_path / "raw"), "sources": [source], "split": {"method": "hash"}}
    )
    settings = settings.model_copy(update={"workers": 0})
    (told,) = prepare(settings, tmp_path / "data", quiet=True).sources
    assert (told["release"], told["licence"]) == ("2026_03", "CC BY 4.0")
    (tmp_path / "raw" / "a.fasta").write_text(">P1\nMKTAYIAKQRQISFVKSHFSRQLEERLA\n")  # no longer what was fetched
    (told,) = prepare(settings, tmp_path / "changed", quiet=True).sources
    assert (told["release"], told["licence"]) == ("", "")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_certificates_are_verified(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    with Archive() as archive:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        archive.server.socket = context.wrap_socket(archive.server.socket, server_side=True)
        archive.put("/x.bin", BODY)
        path = config(tmp_path, archive, "x.bin")
        path.write_text(path.read_text().replace("http://", "https://"))
        code, said, _ = finish(start(path, tmp_path / "raw"))
        assert code == 1 and "tls  https://" in said and "CERTIFICATE_VERIFY_FAILED" in said and not archive.asked
        code, said, _ = finish(start(path, tmp_path / "raw", REQUESTS_CA_BUNDLE=str(certificate)))
        assert code == 0 and (tmp_path / "raw/x.bin").read_bytes() == BODY
