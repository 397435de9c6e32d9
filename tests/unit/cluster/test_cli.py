"""The command as people meet it: help, mistakes, and what each verb hands on."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster import cli
from data_prep.recipe import PrepareConfig

ROOT = Path(__file__).resolve().parents[3]
VERBS = (
    "fetch", "prepare", "validate", "inspect", "encode", "train", "runs", "checkpoint", "export", "embed", "search",
    "demo", "version",
)  # fmt: skip


def fourfold(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-m", "cluster.cli", *words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_help_names_every_verb() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0 and all(verb in result.output for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    result = CliRunner().invoke(cli.app, [verb, "--help"])
    assert result.exit_code == 0 and verb in result.output


def test_version_names_what_it_stands_on() -> None:
    result = CliRunner().invoke(cli.app, ["version"])
    assert result.exit_code == 0 and "deepspeed 0." in result.output and "torch 2." in result.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "nowhere.toml"), "no configuration file at nowhere.toml"),
        (("fetch", "nowhere.toml"), "no configuration file at nowhere.toml"),
        (("fetch", "fetch/alphafold.toml", "--only", "proteomes"), "give version=…"),
        (("prepare", "nowhere.toml"), "no configuration file at nowhere.toml"),
        (("prepare", "prepare/sample.toml", "--expect", "uniprot=9"), "belong to --plan"),
        (("prepare", "prepare/sample.toml", "--dry-run", "--residues", "330"), "belong to --plan"),
        (("train", "amma/tiny.toml", "stepss=3"), "did you mean 'steps'?"),
        (("encode", "amma/tiny.toml", "data.path=nowhere"), "nowhere is no data set"),
        (("encode", "amma/tiny.toml", "encoders.sequence.widht=8"), "did you mean 'width'?"),
        (("train", "amma/tiny.toml", "--ranks", "2", "--hostfile", "x"), "give one of them"),
        (("inspect", "nowhere", "P12345"), "nowhere has no manifest.json"),
        (("validate", "nowhere"), "nowhere has no manifest.json"),
        (("export", "nowhere", "out"), "no run at nowhere"),
        (("runs", "nowhere"), "no folder nowhere"),
        (("embed", "nowhere", "x.fasta", "y"), "nowhere is no exported model"),
        (("search", "nowhere", "x.fasta", "y"), "nowhere is no exported model"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(words: tuple[str, ...], says: str) -> None:
    done = fourfold(*words)
    assert done.returncode == 2 and done.stdout == ""
    last = done.stderr.strip().split("\n")
    assert says in done.stderr and any(line.startswith("error: ") for line in last)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "workers"),
    [
        ((), 2),
        (("--address", "auto"), 0),
        (("address=auto",), 0),
        (("--address", "auto", "--workers", "7"), 7),
        (("--address", "auto", "workers=2"), 2),
    ],
)
def test_the_default_number_of_workers_is_no_limit_on_a_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], workers: int
) -> None:
    (tmp_path / "x.toml").write_text('name = "x"\n[[sources]]\nkind = "fasta"\nfiles = "a"\n')
    seen: list[PrepareConfig] = []

    def prepare(config: PrepareConfig, out: str) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.prepare.prepare", prepare)
    CliRunner().invoke(cli.app, ["prepare", str(tmp_path / "x.toml"), *words])
    assert [config.workers for config in seen] == [workers]


def test_the_traceback_is_there_for_those_who_ask() -> None:
    done = fourfold("export", "nowhere", "out", FOURFOLD_TRACEBACK="1")
    assert done.returncode != 0 and "Traceback" in done.stderr and "no run at nowhere" in done.stderr
