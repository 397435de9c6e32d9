"""What ends a run, and who says so."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain import distributed, train
from pretrain.data.plan import Position
from pretrain.distributed import Everywhere
from pretrain.engine import StepResult
from pretrain.evaluation.evaluate import Best
from pretrain.guard import Guard, GuardConfig
from pretrain.sample import Modality
from pretrain.setup import check_alike
from pretrain.train import _tell


def test_ranks_that_see_other_stored_features_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: Any = SimpleNamespace(widths={Modality.IMAGE: 8}, notes={Modality.IMAGE: "read from features/vit-1"})
    check_alike(stored)
    other = {list: ["sequence"], dict: {"image": "encoded at every step"}}
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, other[type(value)]])
    with pytest.raises(Everywhere, match=r"ranks 0 and 1 do not see the same .*: .*read from features/vit-1"):
        check_alike(stored)


@pytest.mark.parametrize(
    ("rank", "local", "said"), [("0", "0", "error: no"), ("1", "1", ""), ("8", "0", "error on rank 8: no")]
)
def test_before_there_is_a_process_group_one_rank_of_a_host_speaks(
    rank: str, local: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local)
    _tell(ValueError("no"))
    assert capsys.readouterr().err.strip() == said


class _Engine:
    """Steps that go wrong where they are told to."""

    device = torch.device("cpu")

    def __init__(self, wrong: set[int]) -> None:
        self.wrong, self.number = wrong, 0

    def step(self, *_: Any) -> StepResult:
        self.number += 1
        well = self.number not in self.wrong
        return StepResult({"a": 1.0}, 1.0 if well else float("nan"), {"a": 1}, 1.0, 1e-3, well)


def _sitting(wrong: set[int], steps: int, stop: int = 0) -> tuple[Any, list[int]]:
    """A run of `steps` steps that saves every third, is asked to stop in step `stop`, and the steps that it saves."""
    saved: list[int] = []
    ended = SimpleNamespace(requested=False)

    def plan(position: Position) -> Any:
        for number in range(position.step + 1, 1000):
            ended.requested = number == stop
            yield SimpleNamespace(position=Position(number), batches=(), skipped=())

    nothing = SimpleNamespace
    run = nothing(
        steps=steps, seed=0, optimizer=nothing(rate=lambda *_: 1e-3), validation=nothing(every=10**6),
        checkpoint=nothing(every=3, keep_best=True), watch=None,
    )  # fmt: skip
    writer = nothing(settle=lambda final=False: None, news=list, failed=lambda: False)
    writer.save = lambda engine, step, what, best, displaces: saved.append(step) or 0.0
    quiet = nothing(record=lambda *_, **__: None, say=lambda _: None)
    chronicle = nothing(step=lambda *_: None, saved=lambda _: None, checkpoints=lambda _: None)
    parts = nothing(loader=nothing(steps=plan), identity={}, stored=nothing(widths={}))
    engine: Any = _Engine(wrong)
    engine.flops = None
    sitting = train._Sitting(
        run, parts, engine, None, Guard(GuardConfig()), quiet, chronicle, writer,  # type: ignore[arg-type]
        nothing(phase=lambda *_: None), ended, Best(),  # type: ignore[arg-type]
    )  # fmt: skip
    return sitting, saved


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "record_of", lambda _: {})
    monkeypatch.setattr(train, "_validate", lambda *_: False)


def test_a_checkpoint_that_bad_steps_put_off_is_made_after_them(plain: None) -> None:
    sitting, saved = _sitting({3, 6, 7}, steps=11)
    assert train._sit(sitting, Position())
    assert saved == [4, 8, 9, 11]


def test_a_stop_after_a_bad_step_saves(plain: None) -> None:
    sitting, saved = _sitting({4, 5}, steps=99, stop=5)
    assert train._sit(sitting, Position())
    assert saved == [3, 5] and sitting.guard.state(5)["bad"] == [4, 5]
    assert Guard.restored(GuardConfig(), sitting.guard.state(5)).bad == [4, 5]
