"""`fourfold validate` on a prepared data set: whole it passes, and every kind of damage is named where it is."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import shards
from data_prep.spill import partition
from data_prep.validate import validate
from data_prep.views.card import CARD, CROISSANT, SUMS, card, sums
from data_prep.views.croissant import croissant
from pretrain.data.dataset import Dataset
from pretrain.data.index import MANIFEST, SUFFIX, ShardIndex
from pretrain.places import Place
from pretrain.sample import Function, Sample, Term

ROOT = Path(__file__).resolve().parents[2]
GROUP = "train/sequence_structure_function"


@pytest.fixture
def data(sample_data: Path, tmp_path: Path) -> Path:
    out = tmp_path / "data"
    shutil.copytree(sample_data, out)
    write(out, read(out))
    return out


def read(data: Path) -> dict[str, Any]:
    return json.loads((data / MANIFEST).read_text())


def write(data: Path, manifest: dict[str, Any]) -> None:
    """The manifest and what is made of it."""
    text = json.dumps(manifest).encode()
    (data / MANIFEST).write_bytes(text)
    (data / CARD).write_text(card(manifest))
    (data / CROISSANT).write_bytes(croissant(manifest, hashlib.sha256(text).hexdigest()))
    seal(data)


def seal(data: Path) -> None:
    (data / SUMS).write_bytes(sums({name: (data / name).read_bytes() for name in (MANIFEST, CARD, CROISSANT)}))


def damage(data: Path) -> list[str]:
    return [str(each) for each in validate(str(data), quiet=True).damage]


def first(data: Path, group: str = GROUP) -> tuple[Path, ShardIndex]:
    shard = sorted((data / group).glob("*.tar"))[0]
    return shard, ShardIndex.read(shard.with_suffix(SUFFIX))


def rewrite(data: Path, change: Callable[[list[Sample]], list[Sample]], number: int | None = None) -> Path:
    """A shard with other samples, and a manifest that agrees: only its content is wrong."""
    shard, index = first(data)
    split, group = GROUP.split("/")
    dataset = Dataset.open(data)
    samples = [dataset.read(split, group, i) for i in range(len(index))]
    shard.unlink()
    shard.with_suffix(SUFFIX).unlink()
    made = shards.write(data, split, int(shard.stem) if number is None else number, change(samples))
    return settle(data, shard, made)


def settle(data: Path, shard: Path, made: shards.Shard) -> Path:
    manifest = read(data)
    split, group = GROUP.split("/")
    entries = manifest["splits"][split][group]["shards"]
    (entry,) = (each for each in entries if each["path"].endswith(f"/{shard.name}"))
    entry.update({name: getattr(made, name) for name in ("samples", "bytes", "sha256", "index_sha256", "facets")})
    entry["path"] = f"{split}/{group}/{Path(made.path).name}"
    write(data, manifest)
    return data / entry["path"]


def test_a_whole_data_set_passes(data: Path) -> None:
    found = validate(str(data), quiet=True)
    manifest = read(data)
    assert not found.damage and found.samples == 118
    assert found.splits == manifest["splits"] and found.totals == manifest["totals"]
    table = list(found.lines())
    assert table[0].split() == ["modalities", "train", "valid", "test", "all", "residues"]
    row = next(line for line in table if line.startswith("sequence + structure + function  "))
    groups = [manifest["splits"][split].get("sequence_structure_function", {}) for split in ("train", "valid", "test")]
    assert [int(cell) for cell in row.split()[5:9]] == [*(g.get("samples", 0) for g in groups), 50]
    assert "samples and" in table[-2] and table[-1].startswith("whole: ")


def test_ray_and_a_store_find_the_same(data: Path) -> None:
    flip(first(data)[0], 700)
    here = validate(str(data), quiet=True)
    assert validate(str(data), workers=2, quiet=True).damage == here.damage
    away = Place(f"memory://validate{os.getpid()}")
    for path in data.rglob("*"):
        if path.is_file():
            away.write(path.relative_to(data).as_posix(), path.read_bytes())
    there = validate(away, quiet=True)
    assert there.damage == here.damage and there.samples == here.samples == 117 and there.splits == here.splits


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def test_a_flipped_bit_is_found_in_its_sample(data: Path) -> None:
    shard, index = first(data)
    flip(shard, int(index.offset[2]) + 600)
    name = shard.relative_to(data).as_posix()
    assert [each.partition("…")[0] for each in damage(data)] == [
        f"{name}: SHA-256 {hashlib.sha256(shard.read_bytes()).hexdigest()[:12]}",
        f"{name}: {index.keys[2]}: its bytes fail their checksum",
    ]


@pytest.mark.parametrize("size", [0, 100, 3000, -1024, -1])
def test_a_cut_shard_names_what_is_lost(data: Path, size: int) -> None:
    shard, index = first(data)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:size])
    name = shard.relative_to(data).as_posix()
    found = damage(data)
    assert f"{name}: {len(whole[:size])} bytes, {len(whole)} in the manifest" in found
    lost = [key for key, end in zip(index.keys, index.offset + index.size, strict=True) if end > len(whole[:size])]
    assert [each for each in found if each.endswith(": cut off")] == sorted(f"{name}: {key}: cut off" for key in lost)


def test_files_that_are_gone_or_too_many_are_named(data: Path) -> None:
    (one, _), (two, _) = first(data), first(data, "train/sequence")
    one.unlink()
    two.with_suffix(SUFFIX).unlink()
    (data / "train/sequence/notes.txt").write_text("mine")
    (data / ".hidden").write_text("")
    (data / "features/abc").mkdir(parents=True)
    (data / "features/abc/x.safetensors").write_text("")
    assert damage(data) == [
        ".hidden: is no file of the data set",
        "features/abc: has no features.json: encoding was interrupted, or goes on",
        "features/abc/x.safetensors: is no file of the data set",
        f"{two.relative_to(data).with_suffix(SUFFIX).as_posix()}: is in the manifest but not there",
        "train/sequence/notes.txt: is no file of the data set",
        f"{one.relative_to(data).as_posix()}: is in the manifest but not there",
    ]


def test_stored_features_are_checked_against_their_summary(data: Path) -> None:
    shard, _ = first(data)
    path = shard.relative_to(data).as_posix()
    folder = data / "features" / "abc"
    stored = folder / Path(path).with_suffix(".safetensors")
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"rows")
    text = (data / MANIFEST).read_bytes()
    summary = {
        "dataset": {"manifest_sha256": hashlib.sha256(text).hexdigest()},
        "shards": {path: {"sha256": hashlib.sha256(b"rows").hexdigest(), "bytes": 4}},
    }
    (folder / "features.json").write_text(json.dumps(summary))
    assert not damage(data)
    stored.write_bytes(b"rowz")
    (stored.parent / "00099.safetensors").write_bytes(b"")
    found = damage(data)
    assert sorted(found) == sorted(
        [
            f"features/abc/{GROUP}/00099.safetensors: is no file of the data set",
            f"{stored.relative_to(data).as_posix()}: SHA-256 is not that of features.json",
        ]
    )
    stored.unlink()
    summary["dataset"]["manifest_sha256"] = "0" * 64
    (folder / "features.json").write_text(json.dumps(summary))
    found = damage(data)
    assert "features/abc/features.json: belongs to another manifest" in found
    assert any("is in features.json but not there" in each for each in found)
    (folder / "features.json").write_text("{")
    assert any("features.json: is damaged" in each for each in damage(data))


def test_bytes_behind_the_end_are_found(data: Path) -> None:
    shard, _ = first(data)
    with open(shard, "ab") as file:
        file.write(bytes(512))
    assert any("bytes, " in each and "in the manifest" in each for each in damage(data))


def test_files_beside_the_shards(data: Path) -> None:
    flip(data / "ontology.json", 2)
    lines = (data / "rejected.jsonl").read_text().splitlines()
    (data / "rejected.jsonl").write_text("\n".join(lines[1:]) + "\n")
    (data / CARD).write_text("# another\n")
    flip(data / CROISSANT, 5)
    found = "\n".join(damage(data))
    assert "ontology.json: SHA-256 is not the manifest's" in found and "ontology.json: cannot be read" in found
    reason = json.loads(lines[0])["reason"]
    count = sum(json.loads(line)["reason"] == reason for line in lines)
    assert f"rejected.jsonl: counts differ from the manifest's: {reason}: {count - 1}, not {count}" in found
    assert "README.md: SHA-256 is not that of SHA256SUMS" in found
    assert "croissant.json: SHA-256 is not that of SHA256SUMS" in found


def test_what_tells_of_a_data_set_must_be_there(data: Path) -> None:
    (data / CARD).unlink()
    (data / CROISSANT).unlink()
    assert damage(data) == ["README.md: is not there", "croissant.json: is not there"]
    (data / SUMS).unlink()
    assert "SHA256SUMS: is not there" in "\n".join(damage(data))


def test_a_card_that_another_version_wrote_is_whole(data: Path) -> None:
    (data / CARD).write_text("# as it was worded once\n")
    seal(data)
    assert not damage(data)


def test_the_hashes_are_those_that_sha256sum_checks(sample_data: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=sample_data, capture_output=True, text=True)
    assert done.stdout == "README.md: OK\ncroissant.json: OK\nmanifest.json: OK\n" and not done.returncode


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "x"}', '{"reason": "x", "count": "many"}', "\udcff"])
def test_a_broken_rejection_is_found(data: Path, line: str) -> None:
    with open(data / "rejected.jsonl", "a", errors="surrogateescape") as file:
        file.write(line + "\n")
    manifest = read(data)
    manifest["files"]["rejected.jsonl"] = hashlib.sha256((data / "rejected.jsonl").read_bytes()).hexdigest()
    write(data, manifest)
    (found,) = damage(data)
    assert found.startswith("rejected.jsonl: ") and ("is no rejection" in found or "is no text" in found)


def test_counts_of_the_manifest_are_counted_again(data: Path) -> None:
    manifest = read(data)
    manifest["totals"]["residues"] += 1
    manifest["splits"]["train"]["sequence"]["samples"] += 1
    write(data, manifest)
    assert damage(data) == [
        "manifest.json: splits: train differ from what the shards hold",
        "manifest.json: totals: residues differ from what the shards hold",
    ]


@pytest.mark.parametrize("column", ["facets", "residues", "structure", "text", "images", "crc", "size", "offset"])
def test_a_column_that_is_not_true_is_found(data: Path, column: str) -> None:
    """With hashes that agree: whoever made the index made it wrongly."""
    shard, index = first(data)
    values = getattr(index, column).copy()
    values[1] += 1
    wrong = replace(index, **{column: values}).to_bytes()
    shard.with_suffix(SUFFIX).write_bytes(wrong)
    manifest = read(data)
    (entry,) = (each for each in manifest["splits"]["train"][GROUP[6:]]["shards"] if each["path"].endswith(shard.name))
    entry["index_sha256"] = hashlib.sha256(wrong).hexdigest()
    write(data, manifest)
    said = {"crc": "its bytes fail their checksum", "size": "do not lie end to end", "offset": "do not lie end to end"}
    found = damage(data)
    assert any(
        said.get(column, f"index says {column} {values[1]}, the sample has {values[1] - 1}") in each for each in found
    )
    assert len(found) == 1 and (column in ("size", "offset") or index.keys[1] in found[0])


def test_an_index_that_is_none_is_found(data: Path) -> None:
    shard, _ = first(data)
    flip(shard.with_suffix(SUFFIX), 3)
    path = shard.with_suffix(SUFFIX).relative_to(data).as_posix()
    found = damage(data)
    assert found[0].startswith(f"{path}: SHA-256 is not") or found[1].startswith(f"{path}: SHA-256 is not")
    assert any("not a shard index" in each for each in found)


def test_samples_in_the_wrong_place_are_found(data: Path) -> None:
    partitions, (shard, index) = read(data)["partitions"], first(data)
    stranger = next(key for n in range(99) if partition(key := f"zzzz{n}", partitions) != int(shard.stem))
    wrong = rewrite(data, lambda all: [all[0], all[2], all[1], *all[3:], replace(all[4], key=stranger)])
    name, keys, found = wrong.relative_to(data).as_posix(), index.keys, damage(data)
    assert f"{name}: {keys[1]}: stands after {keys[2]}: keys are not sorted" in found
    number = partition(stranger, partitions)
    assert f"{name}: {stranger}: belongs to partition {number}, not {int(shard.stem)}" in found


def test_a_protein_twice_or_among_others_is_found(data: Path) -> None:
    """A protein without its structure in the folder of those with one, and in the one where it belongs."""
    shard, _ = first(data)
    dataset = Dataset.open(data)
    sample = dataset.read("train", GROUP[6:], 0)
    made = shards.write(data, "valid", int(shard.stem) + 100, [replace(sample, structures=())])
    target = data / "valid/sequence_structure_function" / f"{int(shard.stem):05d}.tar"
    (data / made.path).replace(target)
    (data / made.path).with_suffix(SUFFIX).replace(target.with_suffix(SUFFIX))
    if not any((data / "valid/sequence_function").iterdir()):
        (data / "valid/sequence_function").rmdir()
    manifest = read(data)
    entries = manifest["splits"]["valid"]["sequence_structure_function"]["shards"]
    entries[:] = [each for each in entries if not each["path"].endswith(target.name)]
    about = {name: getattr(made, name) for name in ("samples", "bytes", "sha256", "index_sha256", "facets")}
    entries.append({"path": f"valid/sequence_structure_function/{target.name}", **about})
    write(data, manifest)
    found = "\n".join(damage(data))
    assert f"{sample.key}: has sequence_function, and lies in sequence_structure_function" in found
    assert f"{sample.key}: is in train/sequence_structure_function/{shard.name} too" in found


def test_splits_by_hash_are_drawn_again(data: Path) -> None:
    manifest = read(data)
    manifest["config"]["split"]["seed"] = 1
    write(data, manifest)
    images = any("image" in group for tables in manifest["splits"].values() for group in tables)
    found = damage(data)
    assert images and found and all("belongs to split " in each for each in found)


def test_terms_and_images_are_looked_into(data: Path) -> None:
    def change(samples: list[Sample]) -> list[Sample]:
        one, two, *rest = samples
        assert one.function and two.function
        unknown = Function((Term("GO:9999999", "IDA"), *one.function.terms), one.function.texts)
        return [replace(one, function=unknown), two, *rest]

    shard = rewrite(data, change)
    key = ShardIndex.read(shard.with_suffix(SUFFIX)).keys[0]
    name = shard.relative_to(data).as_posix()
    assert f"{name}: {key}: terms that are not in ontology.json: GO:9999999" in damage(data)


def test_a_broken_image_is_found(data: Path) -> None:
    dataset = Dataset.open(data)
    sample = dataset.read("train", "image", 0)
    shard = data / dataset.splits["train"]["image"].shard(0)
    broken = bytearray(sample.images[0].data)
    broken[len(broken) // 2] ^= 1
    images = (replace(sample.images[0], data=bytes(broken)), *sample.images[1:])
    made = shards.write(data, "train", int(shard.stem), [replace(sample, images=images)])
    manifest = read(data)
    (entry,) = manifest["splits"]["train"]["image"]["shards"]
    entry.update({name: getattr(made, name) for name in ("samples", "bytes", "sha256", "index_sha256", "facets")})
    write(data, manifest)
    (found,) = damage(data)
    assert f"{sample.key}: image {sample.images[0].id}: cannot be read" in found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["splits"]["train"]["sequence"]["shards"][0].update(path="../x/00000.tar"), "does not lie in"),
        (
            lambda m: m["splits"]["train"]["sequence"]["shards"][0].update(path="/train/sequence/00000.tar"),
            "not lie in",
        ),
        (lambda m: m["splits"]["train"]["sequence"]["shards"][0].pop("sha256"), "damaged (KeyError: 'sha256')"),
        (lambda m: m["splits"]["train"].update(sequence_dance=m["splits"]["train"]["sequence"]), "does not lie in"),
        (lambda m: m.pop("totals"), "damaged (KeyError"),
        (lambda m: m.update(format=9), "format 9"),
        (lambda m: m.update(splits=[]), "damaged (AttributeError"),
    ],
)
def test_a_manifest_that_is_none_is_an_error(data: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    manifest = read(data)
    change(manifest)
    (data / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError) as error:
        validate(str(data), quiet=True)
    assert says in str(error.value)


def test_any_byte_of_the_manifest_can_be_wrong(data: Path) -> None:
    """An error or a finding, never a traceback of another kind, and never a pass."""
    text = (data / MANIFEST).read_bytes()
    draw = np.random.default_rng(0)
    for at in draw.integers(0, len(text), 25):
        if text[at : at + 1].isspace():
            continue
        broken = bytearray(text)
        broken[at] ^= 1
        (data / MANIFEST).write_bytes(broken)
        with suppress(ValueError):
            assert validate(str(data), quiet=True).damage


def test_the_command_says_what_is_damaged_and_exits_with_1(data: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "validate", str(data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("as the manifest says\n")
    shard, index = first(data)
    flip(shard, 600)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    name = shard.relative_to(data).as_posix()
    assert f"damaged: {name}: {index.keys[0]}: its bytes fail their checksum\n" in done.stdout
    assert done.stdout.endswith("\n2 damaged\n") and "sequence + structure + function" in done.stdout
