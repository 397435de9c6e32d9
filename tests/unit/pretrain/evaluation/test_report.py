"""The page: whole with everything there, a sentence where a part is missing, never a request to a network."""

import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pretrain.embeddings import Hit
from pretrain.evaluation import figures
from pretrain.evaluation.facts import Facts
from pretrain.evaluation.figures import Scatter, Series, chart, number, scatter, thin, ticks
from pretrain.evaluation.history import History
from pretrain.evaluation.map import Map, Panel, Search, tsne
from pretrain.evaluation.report import render, write_report
from pretrain.sample import Modality

MANIFEST = {
    "format": 1,
    "name": "sample",
    "splits": {
        "train": {
            "sequence": {"samples": 11},
            "sequence_structure": {"samples": 14},
            "sequence_structure_function": {"samples": 31},
            "sequence_structure_function_image": {"samples": 6},
            "function": {"samples": 4},
            "image": {"samples": 3},
            "structure": {"samples": 5},
        },
        "valid": {"sequence_structure_function": {"samples": 12}, "sequence_function": {"samples": 4}},
        "test": {"sequence_structure_function": {"samples": 7}},
    },
    "rejected": {"identity_too_low": 2, "sequence_too_short": 1, "no_coordinates": 1},
    "sources": [
        {"kind": "uniprot", "path": "uniprot.dat.gz", "records": 97, "release": "2026_03", "licence": "CC BY 4.0"},
        {"kind": "images", "path": "images", "records": 9, "note": "The images are drawn procedurally, not taken <b>."},
    ],
    "config": {"split": {"method": "hash"}},
}
REJECTED = [
    {
        "reason": "identity_too_low",
        "key": "P00001",
        "detail": "identity 71 % of 88 residues, first mismatch at residue 4",
    },
    {"reason": "identity_too_low", "key": "P00002", "detail": "identity 12 %"},
    {"reason": "sequence_too_short", "key": "P00003", "detail": "<script>alert(1)</script>"},
    {"reason": "no_coordinates", "key": "P00004", "detail": "no atom in chain A"},
]
LOSSES = [f"reconstruction/{modality}" for modality in Modality]


def write_run(run: Path, steps: int = 60) -> None:
    """A log with a stop: steps 31–36 were done, lost and done again; the last line before the stop is half a line."""
    random.seed(0)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({"model": {"kind": "amma"}, "steps": steps}))
    with (run / "log.jsonl").open("w") as log:
        log.write(json.dumps({"event": "start", "step": 0, "world": 2}) + "\n")
        for step in [*range(1, 37), None, *range(31, steps + 1)]:
            if step is None:
                log.write('{"event": "step", "st\n')
                log.write(json.dumps({"event": "resume", "step": 30, "path": "step-00000030", "world": 2}) + "\n")
                continue
            losses = {name: (1.2 + i) * math.exp(-step / 40) + random.random() * 0.1 for i, name in enumerate(LOSSES)}
            record = {"event": "step", "step": step, "loss": sum(losses.values()), "losses": losses}
            record |= {"tokens_per_second": 4100 + 400 * random.random(), "gradient_norm": 1 + random.random()}
            log.write(json.dumps(record | {"learning_rate": 3e-4 * min(1, step / 10), "epoch": step / 9}) + "\n")
            if step % 20 == 0:
                held_out = {name: value * 1.1 for name, value in losses.items()}
                found = {
                    "k": 10,
                    "n": 16,
                    "forward": 0.7,
                    "backward": 0.6,
                    "recall": 0.65,
                    "chance": 0.62,
                    "median_rank": 7.5,
                }
                pairs = {"sequence-structure": found, "sequence-function": found | {"n": 12, "recall": 0.9}}
                cloud = {"n": 16, "width": 128, "uniformity": -1.25, "spread": 0.375, "effective_rank": 3.5}
                shape = {"alignment": {"sequence-structure": 0.625}, "embeddings": {"image": cloud}}
                record = {"event": "validation", "step": step, "losses": held_out, "retrieval": pairs, **shape}
                log.write(json.dumps(record) + "\n")


def facts(run: Path) -> Facts:
    write_run(run)
    rng = np.random.default_rng(0)
    classes = tuple(
        Scatter(
            str(m), rng.normal(i, 1, (40, 2)), f"--{m}", [f"P{j}, {m}" for j in range(40)], [j > 12 for j in range(40)]
        )
        for i, m in enumerate(Modality)
    )
    links = tuple((tuple(a), tuple(b)) for a, b in zip(classes[0].points[:12], classes[1].points[:12], strict=True))
    search = Search("P3", "Binds ATP & <zinc>.", (Hit("P9", 0.83), Hit("P3", 0.8)), 2, 40)
    identity = {
        "sequence": {"kind": "esm2", "weights": "random (seed 0)", "width": 64, "sha256": "ab" * 32},
        "function": {"kind": "text", "weights": "minilm", "width": 384, "sha256": "cd" * 32},
    }
    return Facts(
        manifest=MANIFEST,
        rejected=tuple(REJECTED),
        history=History.read(run),
        config=json.loads((run / "config.json").read_text()),
        model={"identity": identity, "parameters": {"model": 1_200_000, "encoders": 31_000_000}},
        map=Map((Panel("as they are", classes, links),), (search,), "A point is one modality of one protein."),
    )


class Tags(HTMLParser):
    """Checks that tags close in order; keeps what could load something."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]
        assert tag not in ("script", "link", "iframe", "img")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text: str) -> None:
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.loads == []
    assert not re.search(r"https?://|url\(|@import", text)
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing.lower() and "inf" not in drawing.lower()


def test_the_whole_page(tmp_path):
    text = render(facts(tmp_path / "run"))
    check(text)
    for part in [
        "97 proteins, each with any of four modalities; AMMA trained for 60 steps",
        "sequence + structure + function + image",
        "first mismatch at residue 4",
        "CC BY 4.0",
        "drawn procedurally, not taken &lt;b&gt;.",
        "stopped and resumed at step 30",
        "resumed</text>",
        "random (seed 0)",
        "Random weights were never trained",
        "65%",
        "Binds ATP &amp; &lt;zinc&gt;.",
        "2 of 40",
        "Steps done again after a stop, shown once: 6.",
        "no records, left out: 1.",
        "by hash of the key",
    ]:
        assert part in text, part
    assert "<script>" not in text


def test_the_shape_of_embeddings_is_shown_where_it_was_measured(tmp_path):
    whole = render(facts(tmp_path))
    assert "effective rank 3.5 of at most 15" in whole and "3.5 of 15" in whole and "-1.25" in whole and "0.62" in whole
    log = tmp_path / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    old = [{name: value for name, value in r.items() if name not in ("alignment", "embeddings")} for r in records]
    log.write_text("".join(json.dumps(record) + "\n" for record in old))
    before = render(replace(facts(tmp_path / "other"), history=History.read(tmp_path)))
    assert "effective rank" not in before and "alignment" in before


def test_nothing_there_yet_is_said_in_sentences(tmp_path):
    path = write_report(tmp_path / "new" / "report.html", tmp_path / "data", tmp_path / "run", tmp_path / "model")
    text = path.read_text()
    check(text)
    for sentence in (
        "not been prepared yet",
        "logged no step yet",
        "No retrieval was measured",
        "no exported model yet",
    ):
        assert sentence in text


def test_a_run_before_its_first_validation(tmp_path):
    (tmp_path / "run").mkdir()
    record = {"event": "step", "step": 1, "loss": 2.0, "losses": {"reconstruction/sequence": math.nan}}
    (tmp_path / "run" / "log.jsonl").write_text(json.dumps(record) + "\n")
    text = write_report(tmp_path / "report.html", tmp_path / "data", tmp_path / "run", tmp_path / "model").read_text()
    check(text)
    assert "No validation has been logged yet" in text and "nothing was logged" in text


def test_history_counts_a_repeated_step_once(tmp_path):
    write_run(tmp_path)
    history = History.read(tmp_path)
    assert [record["step"] for record in history.steps] == list(range(1, 61))
    assert (history.repeated, history.damaged, history.resumes) == (6, 1, (30,))
    assert history.losses() == tuple(LOSSES)
    assert len(history.column("losses", "reconstruction/image")) == 60
    assert history.column("losses", "reconstruction/image", validation=True)[-1][0] == 60
    assert history.last("start") == {"event": "start", "step": 0, "world": 2} and history.last("end") is None


def test_lines_that_are_no_records_are_counted(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'[1]\n{"step": 3}\n{"event": "step"}\n\xff\xfe\n\n{"event": "other"}\n')
    history = History.read(tmp_path)
    assert (history.damaged, history.steps, len(history.others)) == (4, (), 1)


def test_ticks_are_round_and_cover_the_range():
    assert ticks(0, 40, 5) == [0, 10, 20, 30, 40]
    assert ticks(0.13, 0.92, 4) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(1, 3, 5, whole=True) == [1, 2, 3]
    for low, high in [(5, 5), (0, 0), (-3e-7, 2e-7), (1e9, 1e9 + 1), (3e-4, 3e-4)]:
        found = ticks(low, high, 4)
        assert found[0] <= low and found[-1] >= high and len(found) <= 9


def test_numbers_are_short():
    values = [0.000312, 0.25, 3.14159, 40, 1240, 34_600, 2_130_000, 999_600]
    assert [number(value) for value in values] == ["0.00031", "0.25", "3.14", "40", "1,240", "34.6k", "2.13M", "1M"]


def test_long_lines_are_thinned_without_moving_the_mean():
    points = [(float(i), math.sin(i)) for i in range(100_000)]
    short = thin(points)
    assert len(short) == figures.POINTS
    assert np.mean([y for _, y in short]) == pytest.approx(np.mean([y for _, y in points]), abs=1e-9)
    assert len(chart("long", [Series("a", points, "--plain")])) < 12_000


def test_charts_of_few_or_equal_points():
    for points in [[(1, 2.0)], [(1, 0.0), (2, 0.0)], [(1, math.inf), (2, 1.0)]]:
        ElementTree.fromstring(chart("few", [Series("a", points, "--plain")], marks=[(1, "resumed")]))
    one = Scatter("a", np.zeros((1, 2)), "--plain", ["only <one>"], [False])
    assert "nan" not in scatter("one", [one])


def test_tsne_is_the_same_twice_and_keeps_neighbours():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 12)) * 4
    rows = np.concatenate([centre + 0.05 * rng.normal(size=(15, 12)) for centre in centres])
    points = tsne(rows)
    assert np.array_equal(points, tsne(rows))
    near = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert near[:15, :15].mean() < 0.5 * near[:15, 15:].mean()
