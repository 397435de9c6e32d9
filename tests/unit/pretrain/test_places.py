"""Places: absolute wherever they are used, and few requests for many files."""

import copy
from pathlib import Path
from uuid import uuid4

import pytest

from data_prep.recipe import listing
from data_prep.words.language_model import LanguageModelConfig
from pretrain.places import Place, Stat


def test_a_relative_path_means_the_same_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    places = [Place("data"), Place("./data"), Place(".") / "data", Place(str(tmp_path / "here" / "data"))]
    model = LanguageModelConfig(model="data").model
    monkeypatch.chdir(tmp_path)
    assert {copy.copy(place) for place in places} == {Place(model)} == set(places)
    assert all(place.exists() and place.local == tmp_path / "here" / "data" for place in places)


@pytest.mark.parametrize("url", ["s3://bucket/x", "memory://x", "file:///data/x", "/data/x"])
def test_what_is_absolute_stays_as_it_is(url: str) -> None:
    assert Place(url).url == url


@pytest.mark.parametrize("model", ["~/models/x", "$MODELS/x", "/models/x"])
def test_a_model_that_is_named_by_home_or_variable_stays_so(model: str) -> None:
    assert LanguageModelConfig(model=model).model == model


def test_a_stores_files_are_listed_in_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    place, asked = Place(f"memory://places{uuid4().hex}"), list[str]()
    for number in range(20):
        place.write(f"raw/{number}.cif", b"x" * number)
    expected = {name: place.stat(name) for name in place.find("raw/*.cif")}
    stat = Place.stat

    def counted(self: Place, name: str) -> Stat:
        asked.append(name)
        return stat(self, name)

    monkeypatch.setattr(Place, "stat", counted)
    again = Place(place.url)
    assert again.stats("**/*.cif") == expected
    names = again.find("raw/*.cif")
    assert listing(again, names) == [(name, expected[name].bytes, expected[name].version) for name in names]
    assert not asked
    place.write("raw/late.cif", b"late")
    assert listing(again, ["raw/late.cif"])[0][1] == 4 and asked == ["raw/late.cif"]
    with pytest.raises(FileNotFoundError):
        again.listed("raw/never.cif")


def test_what_was_listed_does_not_travel_to_workers() -> None:
    place = Place(f"memory://places{uuid4().hex}")
    place.write("x", b"1")
    place.find("*")
    sent = copy.copy(place)  # by what pickle takes
    place.write("x", b"12")
    assert place.listed("x").bytes == 1 and sent.listed("x").bytes == 2 and place.stat("x").bytes == 2


def test_files_on_a_disk_have_their_sizes(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    place.write("a/b", b"123")
    assert {name: stat.bytes for name, stat in place.stats("**/*").items()} == {"a/b": 3}


def test_a_copy_within_a_store_is_the_same_files() -> None:
    place = Place(f"memory://places{uuid4().hex}")
    for number in range(3):
        place.write(f"one/d{number}/f", b"x" * number)
    (place / "one").copy((place / "one").find("**/*"), place / "two")
    assert [place.read(f"two/d{number}/f") for number in range(3)] == [b"", b"x", b"xx"]
