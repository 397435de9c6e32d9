"""Weights named on the Hugging Face hub, asked of a server on this machine that answers as the hub does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from transformers import EsmConfig as TheirConfig
from transformers import EsmForMaskedLM

from pretrain.encoders import weights
from pretrain.encoders.esm import Esm, EsmConfig

COMMIT = "4" * 40
ASKS = """
import sys
from pretrain.encoders import weights
from pretrain.encoders.esm import Esm, EsmConfig
try:
    if sys.argv[1].startswith("hub:lab/bert"):
        print(*sorted(path.name for path in weights.locate(sys.argv[1], "text encoder").iterdir()))
    else:
        print(weights.digest(Esm.build(EsmConfig(weights=sys.argv[1]))))
except ValueError as error:
    print("refused:", error)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub has: a small ESM-2, with a pickle that nobody asks for, and a BERT that has no other file."""
    path = tmp_path_factory.mktemp("hub") / "esm"
    about = TheirConfig(
        vocab_size=33, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False, layer_norm_eps=1e-5,
        mask_token_id=32, pad_token_id=1,
    )  # fmt: skip
    EsmForMaskedLM(about).save_pretrained(path)
    (path / "pytorch_model.bin").write_bytes(b"code")
    (bert := path.with_name("bert")).mkdir()
    for name in ("config.json", "vocab.txt", "pytorch_model.bin", "modeling.py"):
        (bert / name).write_text(name)
    return path.parent


@pytest.fixture
def hub(models: Path) -> Iterator[tuple[str, list[str]]]:
    """(address, the paths that were asked for)."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, whole: bool) -> None:
            asked.append(self.path)
            name = self.path.rpartition("/")[2]
            model = "bert" if "/lab/bert/" in self.path else "esm"
            folder = models / model
            if self.path.startswith(f"/api/models/lab/{model}/revision/"):
                files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                body = json.dumps({"id": f"lab/{model}", "sha": COMMIT, "siblings": files}).encode()
            elif self.path.startswith(f"/api/models/lab/{model}/tree/{COMMIT}?"):
                tree = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                    for file in sorted(folder.iterdir())
                ]
                body = json.dumps(tree).encode()
            elif self.path == f"/lab/{model}/resolve/{COMMIT}/{name}" and (folder / name).is_file():
                body = (folder / name).read_bytes()
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if whole:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def ask(name: str, address: str, cache: Path) -> str:
    env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", ASKS, name], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_model_is_fetched_once_and_no_pickle_of_it(hub: tuple[str, list[str]], models: Path, tmp_path: Path) -> None:
    address, asked = hub
    wanted = weights.digest(Esm.build(EsmConfig(weights=str(models / "esm"))))
    assert ask("hub:lab/esm", address, tmp_path) == wanted, asked
    assert any(path.endswith("/revision/main") for path in asked)
    assert any(path.endswith("model.safetensors") for path in asked)
    assert not any(path.endswith(".bin") for path in asked)
    assert ask("hub:lab/esm", "http://127.0.0.1:9", tmp_path) == wanted, "it is in the cache"
    assert ask("hub:lab/esm@v2", address, tmp_path / "other") == wanted
    assert any(path.endswith("/revision/v2") for path in asked)


def test_an_older_file_is_fetched_where_there_is_no_other(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    assert ask("hub:lab/bert", hub[0], tmp_path) == "config.json pytorch_model.bin vocab.txt", hub[1]


@pytest.mark.parametrize("name", ["hub:lab/none", "hub:lab/none@v1", "hub:a/b/c", "hub:"])
def test_one_that_is_not_to_be_had_is_said(hub: tuple[str, list[str]], tmp_path: Path, name: str) -> None:
    said = ask(name, hub[0], tmp_path)
    assert said.startswith(f"refused: sequence encoder (esm): {name} could not be had from the hub: "), said
    assert "copy the model's folder here" in said
