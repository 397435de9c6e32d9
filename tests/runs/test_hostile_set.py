"""A data set of hostile files: what is good is in it, and each refusal can be read back; or the command says why."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.prepare import PrepareConfig, prepare
from data_prep.views.lookup import find
from pretrain.places import Place
from tests.runs.hostile.files import Case
from tests.runs.hostile.kinds import BY_NAME, KINDS, Kind
from tests.runs.hostile.matrix import named
from tests.runs.hostile.trial import Seen, lay, read

OF_EACH = 8  # cases of a kind; all of them are tried one by one in test_hostile.py
GOOD = {"kind": "fasta", "files": "good.fasta", "root": "good"}
JOINED = {"empty_sequence"}  # what `read` counts for the join
CUES = re.compile(
    "on_error|correct|make|fetch|check|give|remove|leave|unpack|look|name|must|expected|write|set|only|install|split|"
    "take|use|see|mend|again"
)


def chosen(kind: Kind) -> Iterator[Case]:
    """Some of a kind's cases, spread over all of them, without what needs lowered limits or a minute."""
    cases = [case for case in named(kind) if not (case.heavy or case.limits) and case.must in ("refused", "told")]
    yield from cases[:: -(-len(cases) // OF_EACH)] if cases else ()


def test_what_is_refused_is_read_back_and_the_rest_is_a_data_set(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.prepare.check_given", lambda *_: None)  # most of these sources give nothing
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "good.fasta").write_text(">GOOD\nMKTAYIAKQRQISFVKSHFSRQLEERLG\n")
    roots, sources, expected, names = {"good": str(tmp_path / "good")}, [GOOD], Counter[tuple[str, str]](), set()
    for kind in KINDS:
        for number, case in enumerate(chosen(kind) if kind.source else ()):
            root = f"{kind.name.replace(' ', '-')}-{number}"
            (tmp_path / root).mkdir()
            lay(kind, case, tmp_path / root)
            seen: Seen = read(kind, case, tmp_path / root, "reject")
            if seen.error:  # such stops a run, whatever the configuration says
                continue
            roots[root] = str(tmp_path / root)
            sources.append({**kind.source, **case.settings, "on_error": "reject", "root": root, "name": root})
            expected.update({(name, reason): n for reason, n in seen.rejected.items() for name in [root]})
            names.add(kind.name)
    assert len(sources) >= 60 and len(names) >= 15, (len(sources), len(names))
    settings = {
        "name": "hostile",
        "roots": roots,
        "sources": sources,
        "workers": 0,
        "partitions": 2,
        "split": {"method": "hash"},
    }
    manifest = prepare(PrepareConfig.model_validate(settings), tmp_path / "data", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    read_back = Counter[str]()
    for line in lines:
        assert line["reason"] and line["source"] and line["position"], line
        read_back[line["reason"]] += line.get("count", 1)
    assert read_back == manifest.rejected
    wanted = Counter[str]()
    for (_, reason), count in expected.items():
        wanted[reason] += count * (reason not in JOINED)
    assert {reason: read_back[reason] for reason in wanted if read_back[reason] < wanted[reason]} == {}
    assert find(Place(str(tmp_path / "data")), "GOOD").sample.sequence


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if kind.source and not kind.again and kind.name != "pae"])
def test_what_stops_a_run_says_what_to_do_and_leaves_no_data_set(kind: str, tmp_path: Path) -> None:
    attacked, stopped = BY_NAME[kind], 0
    for number, case in enumerate(chosen(attacked)):
        folder, out = tmp_path / f"raw{number}", tmp_path / f"data{number}"
        folder.mkdir()
        lay(attacked, case, folder)
        source = {**attacked.source, **case.settings, "on_error": "stop"}
        settings = {"name": "x", "root": str(folder), "workers": 0, "partitions": 1, "sources": [source]}
        settings["split"] = {"method": "hash"}
        try:
            prepare(PrepareConfig.model_validate(settings), out, quiet=True)
        except ValueError as error:
            said = str(error)
            stopped += 1
            assert CUES.search(said), f"{case.name}: {said}"
            assert not out.exists()
    assert stopped, "no case of this kind stops a run"
