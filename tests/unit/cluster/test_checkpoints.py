"""`fourfold checkpoint`: what a run has, whether it is whole, and what else it can be turned into."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cluster import cli
from pretrain import checkpoint
from pretrain.checkpoint.folders import Bucket
from tests.unit.pretrain.conftest import trained_run as trained_run


def _fourfold(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["checkpoint", *words])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_list_and_verify_say_what_there_is(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    for place in (run, run / "checkpoints", run / "checkpoints" / "step-00000007"):
        code, said = _fourfold("ls", str(place))
        assert code == 0 and said.splitlines()[1].split()[0] == "7", said
        assert _fourfold("verify", str(place)) == (0, f"{7:>10}  whole\n")
    file = run / "checkpoints" / "step-00000007" / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    code, said = _fourfold("verify", str(run))
    assert code == 1 and "rank-00000.safetensors does not match its committed SHA-256" in said
    code, said = _fourfold("convert", str(run), str(tmp_path / "out"), "--ranks", "2")
    assert code == 1 and "no checkpoint that is whole" in said


def test_another_number_of_ranks_and_plain_weights(trained_run: Path, tmp_path: Path) -> None:
    code, said = _fourfold("convert", str(trained_run), str(tmp_path / "three"), "--ranks", "3")
    assert code == 0, said
    was, now = checkpoint.latest(trained_run / "checkpoints"), checkpoint.latest(tmp_path / "three")
    assert was is not None and now is not None and now.world == 3
    weights, again = was.weights(), now.weights()
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    sizes = [(now.path / f"rank-{rank:05d}.safetensors").stat().st_size for rank in range(3)]
    assert max(sizes) - min(sizes) <= 16
    code, said = _fourfold("convert", str(tmp_path / "three"), str(tmp_path / "w.safetensors"), "--weights")
    assert code == 0, said
    plain = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(plain[name], value) for name, value in weights.items())
    code, said = _fourfold(
        "convert", str(trained_run), str(tmp_path / "half.safetensors"), "--weights", "--dtype", "bf16"
    )
    assert code == 0 and {v.dtype for n, v in load_file(tmp_path / "half.safetensors").items() if n in weights} == {
        torch.bfloat16
    }


@pytest.mark.parametrize("words", [("ls",), ("verify",), ("convert", "{out}", "--weights")])
def test_a_checkpoint_under_another_name_is_not_taken_for_the_one_beside_it(
    trained_run: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    verb, *rest = (word.format(out=tmp_path / "w.safetensors") for word in words)
    folder = Path(shutil.copytree(trained_run / "checkpoints", tmp_path / "run"))
    shutil.copytree(folder / "step-00000007", folder / "copied")
    code, said = _fourfold(verb, str(folder / "copied"), *rest)
    assert code == 1 and "holds the checkpoint of step 7: rename it to step-00000007" in said, said
    assert not (tmp_path / "w.safetensors").exists()
    (folder / "newest").symlink_to("step-00000007")
    code, said = _fourfold(verb, str(folder / "newest"), *rest)
    assert code == 0, said


def test_conversions_into_a_bucket_do_not_share_a_folder(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, begin = list[Path](), Bucket.begin

    def noting(bucket: Bucket, step: int, attempt: str) -> None:
        used.append(bucket.scratch)
        begin(bucket, step, attempt)

    monkeypatch.setattr(Bucket, "begin", noting)
    for number in range(2):
        out = f"memory://{tmp_path.name}/{number}"
        code, said = _fourfold("convert", str(trained_run), out, "--ranks", "2")
        assert code == 0, said
        assert _fourfold("verify", out) == (0, f"{7:>10}  whole\n")
    assert len(set(used)) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ls", "{empty}"), "no checkpoint in"),
        (("convert", "{run}", "{empty}/x"), "say what to write: --ranks N, or --weights"),
        (("convert", "{run}", "{empty}/x", "--ranks", "2", "--step", "3"), "no checkpoint of step 3; it has 7"),
        (("convert", "{run}", "{empty}/x", "--weights", "--dtype", "fp64"), "dtype 'fp64'; one of fp32, bf16, fp16"),
        (("convert", "{run}", "{run}/checkpoints", "--ranks", "2"), "has a checkpoint of step 7; give another folder"),
        (("convert", "{run}", "{run}/config.json", "--weights"), "exists; give another name"),
    ],
)
def test_mistakes_are_named(trained_run: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (trained_run / "config.json").write_text(json.dumps({}))
    code, said = _fourfold(*(word.format(run=trained_run, empty=tmp_path) for word in words))
    assert code == 1 and message in said, said
