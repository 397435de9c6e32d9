"""A data set on an S3 server that is really there: fetched to, validated, and looked into, without a copy here."""

from pathlib import Path

import pytest

from data_prep.fetch import fetch
from data_prep.remote.wanted import FetchConfig
from data_prep.validate import validate
from data_prep.views.lookup import find
from pretrain.places import Place
from tests.runs.store import Server
from tests.unit.data_prep.archive import Archive, Fault


def upload(data: Path, url: str) -> Place:
    place = Place(url)
    for path in data.rglob("*"):
        if path.is_file():
            place.write(path.relative_to(data).as_posix(), path.read_bytes())
    return place


def test_a_data_set_in_s3_is_read_where_it_is(server: Server, sample_data: Path) -> None:
    place = upload(sample_data, "s3://bucket/whole")
    found = validate(place, quiet=True)
    assert not found.damage and found.samples == 118
    assert find(place, "P00918").sample.about.name == "Carbonic anhydrase 2"
    with pytest.raises(ValueError, match="did you mean P00918"):
        find(place, "p00918")
    shard = find(place, "P00918").shard
    broken = bytearray(place.read(shard))
    broken[-2000] ^= 1
    place.write(shard, bytes(broken))
    place.write("train/stray.txt", b"x")
    place.remove("train/sequence")
    said = [str(each) for each in validate(place, quiet=True).damage]
    assert any(each.startswith(f"{shard}: SHA-256") for each in said)
    assert "train/stray.txt: is no file of the data set" in said
    assert sum("train/sequence/" in each and "not there" in each for each in said) == 2 * len(
        list((sample_data / "train/sequence").glob("*.tar"))
    )


def test_files_are_fetched_to_s3(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with Archive() as archive:
        archive.put("/big.bin", bytes(range(256)) * (30 << 12), Fault(cut=20 << 20))
        tree = {"name": "t", "base": archive.url, "items": {"it": {"url": "{base}/big.bin"}}, "web": {"backoff": 0.01}}
        config, out = FetchConfig.model_validate(tree), "s3://bucket/raw"
        assert fetch(config, out, parts=tmp_path, quiet=True).counts == {"fetched": 1}
        assert fetch(config, out, parts=tmp_path, verify=True, quiet=True).counts == {"kept": 1}
        assert len(archive.asked) == 2 and archive.asked[1].range == f"bytes={20 << 20}-"
    assert Place(out).stat("big.bin").bytes == 30 << 20 and Place(out).exists("fetched.json")
    assert not list(tmp_path.glob("*.part*"))
