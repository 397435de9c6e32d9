"""What a preparation is said to read and to cost is what it reads, and what it writes."""

import pytest

from data_prep import estimate
from data_prep.prepare import PrepareConfig, prepare
from pretrain.config import load

LETTERS = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"


@pytest.fixture
def config(tmp_path) -> PrepareConfig:
    (tmp_path / "raw").mkdir()
    for file in range(4):
        entries = (f">P{file}{n:03d}\n{LETTERS[n % 40 :]}{LETTERS}\n" for n in range(300))
        (tmp_path / "raw" / f"{file}.fasta").write_text("".join(entries))
    (tmp_path / "x.toml").write_text(
        f'name = "x"\nroot = "{tmp_path / "raw"}"\nworkers = 0\npartitions = 1\n'
        '[split]\nmethod = "hash"\nvalid = 0.0\ntest = 0.0\n[[sources]]\nkind = "fasta"\nfiles = "*.fasta"\n'
    )
    return load(PrepareConfig, tmp_path / "x.toml")


def test_a_dry_run_lists_what_is_there_and_writes_nothing(config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    (found,) = estimate.dry_run(config)
    size = sum(path.stat().st_size for path in (tmp_path / "raw").iterdir())
    assert (found.kind, found.files, found.bytes, found.tasks) == ("fasta", 4, size, 4)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_from_everything_is_what_is_then_written(config, tmp_path):
    found = estimate.plan(config, seconds=60)
    (source,) = found.sources
    manifest = prepare(config, tmp_path / "data", quiet=True)
    assert source.share == 1.0
    assert source.count == manifest.totals["samples"] == found.samples
    assert found.bytes == manifest.totals["bytes"]
    assert found.proteins == (1200, 1200)
    assert found.reading > 0 and found.writing > 0


def test_a_part_is_scaled_to_the_whole(config, monkeypatch):
    monkeypatch.setattr(estimate, "SPREAD", 2)
    found = estimate.plan(config, seconds=60)
    (source,) = found.sources
    assert source.count == 600
    assert source.share == pytest.approx(0.5)
    assert found.proteins == pytest.approx((1200, 1200))
    whole = estimate.plan(config, seconds=60, expect={"fasta": 1_200_000}, residues=source.residues / source.count * 2)
    assert whole.proteins == (1_200_000, 1_200_000)
    assert whole.bytes == pytest.approx(found.bytes * 1000 * 2)
    assert whole.partitions == pytest.approx(whole.bytes / estimate.SHARD, abs=0.5)


def test_a_file_that_is_not_read_to_its_end_counts_by_its_bytes(tmp_path, config, monkeypatch):
    (tmp_path / "raw" / "big.fasta").write_text("".join(f">Q{n:06d}\n{LETTERS * 4}\n" for n in range(60_000)))
    found = estimate.plan(config.model_copy(update={"sources": (type(config.sources[0])(files="big.fasta"),)}), 0.05)
    (source,) = found.sources
    assert 0 < source.count < 60_000 and 0 < source.share < 1
    assert 15_000 < source.whole < 75_000  # a megabyte is read ahead of the entries


def test_a_kind_that_is_no_source_is_named(config):
    with pytest.raises(ValueError, match=r"\['structure'\] are expected, but the sources are \['fasta'\]"):
        estimate.plan(config, expect={"structure": 5})
