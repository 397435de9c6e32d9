"""Hostile files of every kind of source: refused by name and within a gigabyte, or read; never a crash, never silence.

What is tried is made in `tests/runs/hostile`, by the kind of file; `trial.py` says what must not come of it.
"""

from collections.abc import Iterator

import pytest

from tests.runs.hostile.kinds import BY_NAME, KINDS
from tests.runs.hostile.matrix import drawn, named
from tests.runs.hostile.process import Trial

MEMORY = 1 << 30  # bytes, as data_prep/sources/files.py says


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    with Trial(tmp_path_factory.mktemp("hostile")) as running:
        yield running


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", BY_NAME)
def test_nothing_comes_of_a_hostile_file_but_what_may(trial: Trial, kind: str) -> None:
    found = trial.run(kind)
    assert {each["case"]: each["problems"] for each in found if each["problems"]} == {}
    assert {each["case"]: each["peak"] >> 20 for each in found if each["peak"] > MEMORY} == {}
    assert len(found) == sum(1 for _ in (*named(BY_NAME[kind]), *drawn(BY_NAME[kind])))


def test_there_are_enough_cases() -> None:
    names = {(kind.name, case.name) for kind in KINDS for case in named(kind)}
    assert len(names) >= 150, "the least that is promised"
    assert sum(1 for kind in KINDS for _ in drawn(kind)) >= 150
