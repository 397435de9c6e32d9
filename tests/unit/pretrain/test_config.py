"""Configuration: strict keys, one parent, dotted overrides, errors that name place and remedy."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from pretrain import config
from pretrain.config import Config


class Small(Config):
    kind: Literal["small"] = "small"
    width: int = Field(default=8, ge=1)


class Large(Config):
    kind: Literal["large"] = "large"
    width: int = 512
    heads: int = 8


class Train(Config):
    steps: int = 10
    rate: float = 0.1
    name: str | None = None


class Whole(Config):
    model: Annotated[Small | Large, Field(discriminator="kind")]
    train: Train = Train()
    out: Path = Path("runs/x")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "whole.toml", 'out = "runs/a"\n[model]\nkind = "large"\nheads = 4\n[train]\nsteps = 5\n')


def test_loads_what_the_file_says_and_defaults_elsewhere(file: Path) -> None:
    assert config.load(Whole, file) == Whole(model=Large(heads=4), train=Train(steps=5), out=Path("runs/a"))


def test_configurations_are_frozen(file: Path) -> None:
    loaded = config.load(Whole, file)
    with pytest.raises(ValidationError, match="frozen"):
        loaded.out = Path("elsewhere")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "meant"), [("train.stepss=3", "steps"), ("model.head=3", "heads"), ("trian.steps=3", "train")]
)
def test_an_unknown_key_is_an_error_that_names_the_close_match(file: Path, key: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown key; did you mean '{meant}'\?") as caught:
        config.load(Whole, file, [key])
    assert str(file) in str(caught.value)


def test_an_unknown_key_near_nothing_lists_the_known_ones(file: Path) -> None:
    with pytest.raises(ValueError, match=r"qqqq: unknown key; known keys: model, out, train$"):
        config.load(Whole, file, ["qqqq=1"])
    with pytest.raises(ValueError, match=r"train\.qqqq: unknown key; known keys: name, rate, steps$"):
        config.load(Whole, file, ["train.qqqq=1"])
    with pytest.raises(ValueError, match=r"model\.large\.qqqq: unknown key; known keys: heads, kind"):
        config.load(Whole, file, ["model.qqqq=1"])


def test_every_problem_is_listed_with_its_place_and_what_was_seen(file: Path) -> None:
    with pytest.raises(ValueError, match=r"2 problem") as caught:
        config.load(Whole, file, ["train.steps=many", "train.rate=fast"])
    text = str(caught.value)
    assert "train.steps" in text and "'many'" in text and "train.rate" in text and "'fast'" in text


def test_overrides_are_toml_values_or_bare_strings(file: Path) -> None:
    overrides = ["train.steps=40", "train.rate=1e-3", "train.name=a b/c", 'out="runs/with space"', "model.heads=2"]
    loaded = config.load(Whole, file, overrides)
    assert loaded.train == Train(steps=40, rate=1e-3, name="a b/c")
    assert loaded.out == Path("runs/with space") and loaded.model == Large(heads=2)


def test_an_override_may_open_a_table_and_contain_equals_signs(tmp_path: Path) -> None:
    loaded = config.load(Whole, write(tmp_path / "a.toml", '[model]\nkind = "small"\n'), ["train.name=a=b"])
    assert loaded.train.name == "a=b"


def test_an_override_reaches_an_item_of_a_list(tmp_path: Path) -> None:
    class Listed(Config):
        parts: tuple[Train, ...]

    path = write(tmp_path / "a.toml", "[[parts]]\nsteps = 1\n[[parts]]\nsteps = 2\n")
    assert [part.steps for part in config.load(Listed, path, ["parts.1.steps=7"]).parts] == [1, 7]
    for wrong in ("parts.2.steps=7", "parts.steps=7", "parts.-1.steps=7"):
        with pytest.raises(ValueError, match=r"is no item of a list of 2; they are numbered from 0"):
            config.load(Listed, path, [wrong])


def test_a_misspelt_kind_or_choice_is_answered_with_the_close_match(tmp_path: Path) -> None:
    class Chosen(Config):
        method: Literal["cluster", "hash"] = "hash"
        model: Annotated[Small | Large, Field(discriminator="kind")] = Small()

    with pytest.raises(ValueError, match="did you mean 'cluster'"):
        config.load(Chosen, write(tmp_path / "a.toml", 'method = "clusters"\n'))
    with pytest.raises(ValueError, match="did you mean 'small'"):
        config.load(Chosen, write(tmp_path / "b.toml", '[model]\nkind = "smal"\n'))


def test_a_kind_that_is_missing_and_a_key_of_another_table_are_said(file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model: `kind` is missing, which says what this table is of; got \{'heads': 2\}"
    ):
        config.load(Whole, write(tmp_path / "a.toml", "[model]\nheads = 2\n"))
    with pytest.raises(ValueError, match=r"train\.heads: unknown key here; other tables have one of this name"):
        config.load(Whole, file, ["train.heads=3"])


@pytest.mark.parametrize("override", ["train.steps", "=3", "out.deeper=3"])
def test_a_malformed_override_is_an_error(file: Path, override: str) -> None:
    with pytest.raises(ValueError, match="override"):
        config.load(Whole, file, [override])


def test_extends_merges_tables_key_by_key(file: Path) -> None:
    child = write(file.parent / "child.toml", 'extends = "whole.toml"\n[train]\nrate = 0.5\n[model]\nwidth = 64\n')
    loaded = config.load(Whole, child)
    assert loaded == Whole(model=Large(heads=4, width=64), train=Train(steps=5, rate=0.5), out=Path("runs/a"))


def test_a_table_of_another_kind_replaces_its_parents(file: Path) -> None:
    child = write(file.parent / "child.toml", 'extends = "whole.toml"\n[model]\nkind = "small"\n')
    assert config.load(Whole, child).model == Small()


def test_one_level_of_extends_is_the_limit(file: Path) -> None:
    write(file.parent / "child.toml", 'extends = "whole.toml"\n')
    grandchild = write(file.parent / "grandchild.toml", 'extends = "child.toml"\n')
    with pytest.raises(ValueError, match="one level is the limit"):
        config.load(Whole, grandchild)


def test_a_parent_may_be_a_shipped_one(tmp_path, monkeypatch):
    shipped = write(tmp_path / "configs" / "amma" / "base.toml", 'name = "base"\n')
    monkeypatch.setattr(config, "SHIPPED", (tmp_path / "configs",))
    child = write(tmp_path / "elsewhere" / "child.toml", 'extends = "amma/base.toml"\n')
    assert config.read(child) == {"name": "base"} == config.read(shipped)


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "base" / "a.toml", '[model]\nkind = "small"\nwidth = 3\n')
    child = write(tmp_path / "child" / "b.toml", 'extends = "../base/a.toml"\n')
    monkeypatch.chdir("/")
    assert config.load(Whole, child).model == Small(width=3)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("steps = = 3", "not valid TOML"),
        ("a = 1\na = 2", "not valid TOML"),
        ('extends = "gone.toml"', "no configuration file"),
        ("extends = 3", "extends"),
    ],
)
def test_a_bad_file_is_a_clear_error(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config.load(Whole, write(tmp_path / "bad.toml", text))


def test_bytes_that_are_not_text_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not valid TOML"):
        config.load(Whole, tmp_path / "bad.toml")


def test_a_missing_file_lists_the_shipped_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "amma" / "one.toml", "")
    monkeypatch.setattr(config, "SHIPPED", (tmp_path, tmp_path / "not there"))
    with pytest.raises(ValueError, match=r"no configuration file at nowhere\.toml.*amma/one\.toml"):
        config.find("nowhere.toml")


def test_a_shipped_file_is_found_by_either_name_and_a_local_one_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = write(tmp_path / "shipped" / "amma" / "one.toml", "")
    monkeypatch.setattr(config, "SHIPPED", (tmp_path / "shipped",))
    monkeypatch.chdir(tmp_path)
    assert config.find("amma/one.toml") == config.find("configs/amma/one.toml") == shipped
    local = write(tmp_path / "configs" / "amma" / "one.toml", "")
    assert config.find("configs/amma/one.toml").resolve() == local


def test_dump_is_plain_and_comes_back_equal(file: Path) -> None:
    import json

    loaded = config.load(Whole, file)
    assert config.validate(Whole, json.loads(json.dumps(config.dump(loaded))), "dump") == loaded
