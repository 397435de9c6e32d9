"""What follows from a run's configuration, and what of it must stay."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.checkpoint import Checkpoint, folder_of_run
from pretrain.config import dump, load, validate
from pretrain.run import RunConfig, check_identity


def test_only_the_models_modalities_are_encoded() -> None:
    run = load(RunConfig, "amma/tiny.toml", ["model.modalities=['sequence','image']"])
    assert run.frozen.structure is None and run.frozen.function is None
    assert run.frozen.sequence == run.encoders.sequence and run.frozen.image == run.encoders.image
    assert validate(RunConfig, dump(run), "dumped") == run


@pytest.mark.parametrize("folder", ["kept", "s3://bucket/kept", "file:///data/kept", "/data/kept"])
def test_checkpoints_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = load(RunConfig, "amma/tiny.toml", [f"checkpoint.folder={folder}"])
    assert run.checkpoints == (str(tmp_path / "kept") if folder == "kept" else folder)
    Path("config.json").write_text(json.dumps(dump(run)))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert str(folder_of_run(tmp_path)) == str(run.checkpoints).removeprefix("file://")
    assert validate(RunConfig, dump(run), "dumped") == run


def test_a_resume_names_what_changed_and_nothing_else() -> None:
    encoder = {"sha256": "ab", "weights": "a.pt"}
    stored = {"seed": 1, "model": {"width": 8, "depth": 2}, "encoders": {"sequence": encoder}, "limits": {"crop": 64}}
    found = Checkpoint(Path("runs/x/checkpoints/step-00000001"), 1, 1, 1, {}, {"identity": stored})
    check_identity(found, stored | {"encoders": {"sequence": encoder | {"weights": "elsewhere/a.pt"}}})
    now = stored | {"model": {"width": 8, "depth": 3}, "limits": {"crop": 32}}
    with pytest.raises(ValueError, match=r"another limits, model: .*crop was 64, is 32; .*depth was 2, is 3") as error:
        check_identity(found, now)
    assert "width" not in str(error.value) and "seed" not in str(error.value)
    with pytest.raises(ValueError, match=r"labels was sha256 abababababab…, is None"):
        check_identity(replace(found, state={"identity": stored | {"labels": "ab" * 32}}), stored | {"labels": None})


def test_a_resume_compares_what_no_weight_shows_where_it_was_recorded() -> None:
    def found(encoder: dict[str, str]) -> Checkpoint:
        return Checkpoint(Path("r/c/step-00000001"), 1, 1, 1, {}, {"identity": {"encoders": {"sequence": encoder}}})

    now = {"encoders": {"sequence": {"sha256": "ab", "features": "esm-1", "weights": "a.pt"}}}
    check_identity(found({"sha256": "ab", "features": "esm-1", "weights": "b.pt"}), now)
    check_identity(found({"sha256": "ab"}), now)  # begun before settings had a name
    with pytest.raises(ValueError, match=r"sequence\.features was 'esm-2', is 'esm-1'"):
        check_identity(found({"sha256": "ab", "features": "esm-2"}), now)
    with pytest.raises(ValueError, match=r"sequence\.sha256 was 'cd', is 'ab'"):
        check_identity(found({"sha256": "cd"}), now)
