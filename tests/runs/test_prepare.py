"""The shipped sample, from its files to shards: what comes out, the same bytes whoever made it, readable by others."""

import filecmp
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.numpy import load as load_safetensors

from data_prep.job import Task
from data_prep.prepare import PrepareConfig, prepare
from data_prep.shards import Manifest
from pretrain.codec import decode
from pretrain.config import load
from pretrain.data.dataset import Dataset

SAMPLE = "prepare/sample.toml"
EXPECTED_REJECTIONS = {
    "bad_letters": 1,
    "contradicted_annotation": 1,
    "empty_file": 1,
    "empty_sequence": 1,
    "low_identity": 1,
    "missing_image": 1,
    "negated_annotation": 1,
    "no_atoms": 1,
    "obsolete_term": 6,
    "sequence_conflict": 1,
    "short_chain": 1,
    "too_short": 1,
    "truncated_gzip": 1,
    "unknown_term": 1,
    "unreadable_image": 1,
}


def make(out: Path, *overrides: str) -> Manifest:
    return prepare(load(PrepareConfig, SAMPLE, overrides), out, quiet=True)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_same(one: Path, other: Path) -> None:
    """The same files with the same bytes."""
    names = files(one)
    assert files(other) == names
    _, different, unreadable = filecmp.cmpfiles(one, other, names, shallow=False)
    assert (different, unreadable) == ([], [])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    make(out, "workers=0")
    return out


@pytest.fixture(scope="module")
def manifest(dataset) -> dict:
    return json.loads((dataset / "manifest.json").read_text())


def test_every_kind_of_pairing_and_every_kind_of_rejection(manifest):
    assert manifest["totals"]["samples"] == 118
    assert len(manifest["totals"]["groups"]) == 15  # every non-empty subset of four modalities
    assert manifest["rejected"] == EXPECTED_REJECTIONS
    assert manifest["totals"]["structure_bytes_per_residue"] <= 24
    assert manifest["go"]["release"] == "releases/2022-07-01"


def test_rejections_can_be_read_back(dataset, manifest):
    lines = [json.loads(line) for line in (dataset / "rejected.jsonl").read_text().splitlines()]
    assert Counter(line["reason"] for line in lines) == manifest["rejected"]
    assert all(line["source"] and not Path(line["source"]).is_absolute() for line in lines)


def test_the_manifest_says_nothing_of_where_when_or_how_many(dataset, manifest):
    text = (dataset / "manifest.json").read_text()
    assert str(Path.cwd()) not in text
    assert not {"workers", "root", "address"} & set(manifest["config"])
    assert all(source["files"] and len(source["sha256"]) == 64 for source in manifest["sources"])


def test_a_dataset_opens_and_its_proteins_are_whole(dataset):
    opened = Dataset.open(dataset)
    count = 0
    for split, groups in opened.splits.items():
        for name, group in groups.items():
            for i in range(len(group)):
                sample = opened.read(split, name, i)
                count += 1
                assert "_".join(sample.modalities) == name
                for structure in sample.structures:
                    if sample.sequence:
                        assert structure.mismatch(sample.sequence).mean() <= 0.05
    assert count == 118


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_writes_the_same_bytes(dataset, tmp_path, workers):
    make(tmp_path / "data", f"workers={workers}")
    assert_same(dataset, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # nothing else left


def test_stock_webdataset_reads_the_shards(dataset):
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(str(path) for path in dataset.rglob("*.tar"))
    stock = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    seen = 0
    for raw in stock:
        key = raw["__key__"]
        assert isinstance(load_safetensors(raw["safetensors"]), dict)
        members = {f"{key}.{name}": data for name, data in raw.items() if not name.startswith("__")}
        assert decode(members).key == key
        seen += 1
    assert seen == 118


def test_a_data_set_in_the_way_is_not_touched_unless_told(dataset, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    made = make(dataset, "workers=0")  # it is what is asked for: there is nothing to do
    assert made.to_bytes() == (dataset / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match=r"already holds .* differ: filters\.min_length: \d+ there, 31 here; give"):
        make(dataset, "workers=0", "filters.min_length=31")
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there and is not a data set"):
        make(tmp_path, "workers=0", "overwrite=true")
    make(tmp_path / "again", "workers=0")
    make(tmp_path / "again", "workers=0", "overwrite=true", "name=other")
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["name"] == "other"


def test_a_failed_run_leaves_only_what_a_later_one_can_use(tmp_path):
    with pytest.raises(ValueError, match="no folder at"):
        make(tmp_path / "data", "workers=0", "root=nowhere")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no sample is left"):
        make(tmp_path / "data", "workers=0", "filters.min_length=3000", "join.keep_unpaired_function=false",
             "join.min_aligned=1.1", "join.max_images=0", "join.max_structures=0")  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == [".data.work"]
    make(tmp_path / "data", "workers=0")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_is_done_is_not_done_again(dataset, tmp_path, monkeypatch):
    """Broken off again and again; in the end every task was done once, and the bytes are the same."""
    done: Counter[str] = Counter()
    finish = Task.finish

    def counted(limit: int):
        def run(self: Task, told: dict) -> dict:
            if sum(done.values()) >= limit:
                raise KeyboardInterrupt
            done[self.name] += 1
            return finish(self, told)

        return run

    for limit in (2, 5, 9):
        monkeypatch.setattr(Task, "finish", counted(limit))
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "data", "workers=0")
        assert sum(done.values()) == limit
    monkeypatch.setattr(Task, "finish", counted(10**6))
    make(tmp_path / "data", "workers=0")
    assert set(done.values()) == {1}
    assert {name.partition("/")[0] for name in done} == {"ontology", "parse", "write"}
    assert_same(dataset, tmp_path / "data")


def test_a_changed_file_is_read_again_and_the_others_are_not(tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    for name in "abc":
        (tmp_path / "raw" / f"{name}.fasta").write_text(f">P{name}\nMKTAYIAKQRQISFVKSHFSRQLEERLG\n")
    (tmp_path / "x.toml").write_text(
        'name = "x"\nsplit.method = "hash"\n[[sources]]\nkind = "fasta"\nfiles = "*.fasta"\n'
    )
    config = load(PrepareConfig, tmp_path / "x.toml", [f"root={tmp_path / 'raw'}", "workers=0", "partitions=1"])
    read: list[str] = []
    finish = Task.finish

    def watched(self: Task, told: dict) -> dict:
        read.extend(seen["path"] for seen in told.get("seen", []) or [])
        if self.name.startswith("write/") and len(read) == 3:
            raise KeyboardInterrupt
        return finish(self, told)

    monkeypatch.setattr(Task, "finish", watched)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, tmp_path / "data", quiet=True)
    assert sorted(read) == ["a.fasta", "b.fasta", "c.fasta"]
    (tmp_path / "raw" / "b.fasta").write_text(">Pb\nMKTAYIAKQRQISFVKSHFSRQLEERLGA\n")
    assert prepare(config, tmp_path / "data", quiet=True).totals["residues"] == 28 + 29 + 28
    assert read[3:] == ["b.fasta"]


def test_a_data_set_is_made_again_when_a_companion_of_its_sources_changes(tmp_path):
    (tmp_path / "go.gpa").write_text(
        "!gpa-version: 1.1\nMGI\t1\tenables\tGO:0005515\tPMID:1\tECO:0000314\t\t\t20200101\tX\t\t\n"
    )
    (tmp_path / "ids.gpi").write_text("!gpi-version: 1.2\nMGI\t1\tS\tn\t\tprotein\ttaxon:1\t\tUniProtKB:P1\t\n")
    (tmp_path / "a.fasta").write_text(">P1\nMKTAYIAKQRQISFVKSHFSRQLEERLG\n")
    sources = [{"kind": "fasta", "files": "a.fasta"}, {"kind": "gpad", "files": "go.gpa", "gpi": "ids.gpi"}]
    tree = {"name": "x", "root": str(tmp_path), "sources": sources, "split": {"method": "hash"}, "workers": 0}
    config = PrepareConfig.model_validate(tree)
    prepare(config, tmp_path / "data", quiet=True)
    (tmp_path / "ids.gpi").write_text("!gpi-version: 1.2\nMGI\t1\tS\tn\t\tprotein\ttaxon:1\t\tUniProtKB:P12\t\n")
    with pytest.raises(ValueError, match="already holds a data set, and these differ: the source files"):
        prepare(config, tmp_path / "data", quiet=True)


def test_what_a_killed_job_left_of_a_whole_data_set_is_cleared(tmp_path, monkeypatch):
    import data_prep.job

    out, work = tmp_path / "data", tmp_path / ".data.work"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data_prep.job, "_clear", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        make(out, "workers=0")
    assert (out / "manifest.json").is_file() and list(work.rglob("*.run"))
    make(out, "workers=0")
    assert not list(work.rglob("*.run"))


def test_what_is_there_already_is_said_to_be_not_read_again(dataset, capsys):
    prepare(load(PrepareConfig, SAMPLE, ["workers=0"]), dataset)
    assert "is there already, of source files of these names and sizes" in " ".join(capsys.readouterr().err.split())


def test_a_source_of_which_nothing_could_be_read_is_an_error(tmp_path):
    (tmp_path / "a.fasta").write_text(">P1\nMKTAYIAKQRQISFVKSHFSRQLEERLG\n")
    for number in range(3):
        (tmp_path / f"{number}.cif").write_text("<!DOCTYPE html><html>gone</html>")
    sources = [{"kind": "fasta", "files": "a.fasta"}, {"kind": "structures", "files": "*.cif", "on_error": "reject"}]
    tree = {"name": "x", "root": str(tmp_path), "sources": sources, "split": {"method": "hash"}, "workers": 0}
    with pytest.raises(ValueError, match=r"structures source of \*\.cif gave nothing; rejected were .*'html_reply': 3"):
        prepare(PrepareConfig.model_validate(tree), tmp_path / "data", quiet=True)


def test_names_that_no_archive_can_hold_are_rejected(tmp_path):
    (tmp_path / "raw").mkdir()
    sequence = "MKTAYIAKQRQISFVKSHFSRQLEERLG"
    headers = ("P1", "A" * 200, "NP_000001.1", "", "sp||X")
    (tmp_path / "raw" / "x.fasta").write_text("".join(f">{header}\n{sequence}\n" for header in headers))
    (tmp_path / "x.toml").write_text(
        'name = "x"\nsplit.method = "hash"\n[[sources]]\nkind = "fasta"\nfiles = "*.fasta"\n'
    )
    overrides = [f"root={tmp_path / 'raw'}", "workers=0"]
    manifest = prepare(load(PrepareConfig, tmp_path / "x.toml", overrides), tmp_path / "data", quiet=True)
    assert (manifest.totals["samples"], manifest.rejected) == (1, {"bad_key": 4})
    with pytest.raises(ValueError, match=r"no sample is left .* \{'bad_key': 4, 'too_short': 1\}"):
        prepare(
            load(PrepareConfig, tmp_path / "x.toml", [*overrides, "filters.min_length=30"]),
            tmp_path / "none",
            quiet=True,
        )


def test_a_damaged_source_stops_a_run_on_ray_with_its_own_error(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.fasta").write_bytes(b"\x1f\x8bdamaged")
    (tmp_path / "x.toml").write_text(
        'name = "x"\nroot = "."\nsplit.method = "hash"\n[[sources]]\nkind = "fasta"\nfiles = "*.fasta"\n'
    )
    config = load(PrepareConfig, tmp_path / "x.toml", [f"root={tmp_path / 'raw'}", "workers=1"])
    with pytest.raises(ValueError, match=r"x\.fasta: gzip stream is damaged after 9 bytes"):
        prepare(config, tmp_path / "data", quiet=True)
    assert not (tmp_path / "data").exists()


def test_unknown_keys_and_roots_are_named(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'min_length'"):
        load(PrepareConfig, SAMPLE, ["filters.min_lenght=3"])
    (tmp_path / "x.toml").write_text(
        'name = "x"\nsplit.method = "hash"\n[[sources]]\nkind = "fasta"\nfiles = "a"\nroot = "more"\n'
    )
    with pytest.raises(ValueError, match=r"sources name the roots \['more'\]"):
        prepare(load(PrepareConfig, tmp_path / "x.toml", ["workers=0"]), tmp_path / "data", quiet=True)


def test_preparing_needs_neither_torch_nor_deepspeed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from data_prep.prepare import PrepareConfig, prepare; "
        "from pretrain.config import load; "
        f"prepare(load(PrepareConfig, {SAMPLE!r}, ['workers=0']), Path({str(tmp_path / 'data')!r}), quiet=True); "
        "print([name for name in ('torch', 'deepspeed', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
