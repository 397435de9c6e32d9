"""A bad step on one rank changes nothing on any; after several in a row a run is as if they had not been."""

import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrain import checkpoint, distributed
from pretrain.config import load
from pretrain.engine import Engine, EngineConfig, OptimizerConfig, start
from pretrain.guard import Guard
from pretrain.run import RunConfig
from pretrain.train import train
from tests.ranks.processes import run
from tests.ranks.toy import Toy, encode, share
from tests.runs.conftest import sample_data as sample_data
from tests.runs.training import SMALL, log

Case = tuple[int, str, int, bool]  # stage, precision, micro-batches, optimizer states in host memory
CASES: list[Case] = [(stage, "fp32", 1, False) for stage in range(4)] + [(0, "fp32", 2, False), (2, "bf16", 2, False)]
CASES += [(0, "bf16", 1, False), (1, "bf16", 1, False), (3, "bf16", 1, False), (2, "bf16", 1, True)]
MORE: list[Case] = [(2, "fp32", 2, False), (2, "bf16", 1, False), *((n, "bf16", 2, False) for n in (0, 1, 3))]
MORE += [(1, "bf16", 1, True), (2, "fp32", 1, True), (2, "bf16", 2, True), (3, "fp32", 1, True), (3, "bf16", 2, True)]
FAULTS = ("loss", "gradient", "spike")


class _Poison(torch.autograd.Function):
    """A value that is well and a gradient that is not."""

    @staticmethod
    def forward(_: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * math.nan


class _Sick(Toy):
    """Toy, of which one rank falls ill."""

    fault = ""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        losses = super().forward(*arguments, **options)
        if distributed.rank() != 1 or not self.fault:
            return losses
        cure = {"loss": lambda s: s * math.nan, "gradient": _Poison.apply, "spike": lambda s: s * 1e6}[self.fault]
        return {name: replace(loss, sum=cure(loss.sum)) for name, loss in losses.items()}


def _state(engine: Engine) -> dict[str, torch.Tensor]:
    """Everything that a step changes on this rank: fp32 weights, moments, their count, and the model's own weights."""
    found = {
        f"{fragment.name}@{fragment.start} {name}": value.clone()
        for fragment, values in engine.read_all()
        for name, value in values.items()
        if value is not None
    }
    own = {f"model {name}": _own(parameter).clone() for name, parameter in engine.model.named_parameters()}
    return found | own | {"steps": torch.tensor(engine.optimizer_steps())}


def _own(parameter: Any) -> torch.Tensor:
    """What this rank always has of a parameter: at stage 3 its cut, without the padding, which is nobody's."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    cut = parameter.ds_tensor.detach()
    return cut[: max(0, parameter.ds_numel - distributed.rank() * len(cut))]


def _sick_steps(cases: list[Case]) -> list[dict]:
    """For each case: a run in which each fault stands between two good steps, against one without them."""
    found = []
    for case in cases:
        settings = zip(("stage", "precision", "accumulate", "offload"), case, strict=True)
        config = EngineConfig.model_validate(dict(settings))
        device = start(config)
        well, sick = (_course(config, device, faults) for faults in ((), FAULTS))
        for place, fault in enumerate(FAULTS):
            before, bad, after = sick[2 * place], sick[2 * place + 1], sick[2 * place + 2]
            found.append(
                {
                    "case": [*case, fault],
                    "applied": [each["result"].applied for each in (before, bad, after)],
                    "not_finite": list(bad["result"].not_finite),
                    "kept": _alike(before, bad),
                    "moved": not _alike(bad, after),
                    "alike": _alike(well[place + 1], after),
                }
            )
    dist.destroy_process_group()
    return found


def _course(config: EngineConfig, device: torch.device, faults: Sequence[str]) -> list[dict[str, Any]]:
    """Good steps, with each fault in a step of its own after one of them: every step's result and what it left."""
    model, found = _Sick(), []
    engine = Engine(model, config, OptimizerConfig(), device)
    steps = [(0, ""), *((at, f) for at in (1, 2, 3) for f in (*faults[at - 1 : at], ""))]
    for number, model.fault in steps:
        batches = share(distributed.rank(), distributed.world(), config.accumulate, number)
        result = engine.step(batches, encode, 1e-2, lambda total: math.isfinite(total) and total < 100)
        found.append({"result": result, "state": _state(engine)})
    engine.close()
    return found


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Bitwise."""
    return all(torch.equal(value, other["state"][name]) for name, value in one["state"].items())


@pytest.mark.timeout(240)
@pytest.mark.parametrize("cases", [CASES, pytest.param(MORE, marks=pytest.mark.slow)], ids=["cases", "more"])
def test_a_bad_step_changes_nothing_on_any_rank(cases: list[Case]) -> None:
    zero, one = run(_sick_steps, 2, cases)
    assert len(zero) == len(one) == len(cases) * len(FAULTS)
    for each in (*zero, *one):
        assert each["applied"] == [True, False, True], each
        assert each["kept"] and each["moved"] and each["alike"], each
        assert each["not_finite"] == ([1] if each["case"][-1] == "loss" else []), each


BAD = {5: math.nan, 6: math.nan, 7: math.nan, 24: 1e4, 25: 1e4, 26: 1e4}


def _runs(data: str, folder: str) -> list[str]:
    """Four runs: told from the start what to leave out; one that finds out; one with one bad step; one beyond help."""
    forward, restored, said = Engine._forward, Guard.restored, []
    for name, bad, *overrides in (
        ("told", {}),
        ("rewound", BAD),
        ("one", {5: math.nan}, "steps=8"),
        ("lost", dict.fromkeys(range(5, 99), math.nan), "guard.rewinds=1"),
    ):
        tries = dict.fromkeys(bad, 0)

        def sick(self: Engine, features: Any, batch: Any, *, bad: Any = bad, tries: Any = tries, **extra: Any) -> Any:
            losses = forward(self, features, batch, **extra)
            number = batch.step + 1
            if distributed.rank() == 1 and "negatives" in extra and number in bad:
                tries[number] += 1
                return {name: replace(loss, sum=loss.sum * bad[number]) for name, loss in losses.items()}
            return losses

        def told(config: Any, state: Any, name: str = name) -> Guard:
            guard = restored(config, state)
            guard.excluded |= set(BAD) if name == "told" else set()
            return guard

        Engine._forward, Guard.restored = sick, staticmethod(told)  # type: ignore[assignment]
        settings = [*SMALL, f"data.path={data}", f"out={folder}/{name}", "steps=30", "checkpoint.every=4"]
        try:
            train(load(RunConfig, "amma/tiny.toml", [*settings, "validation.every=99", *overrides]))
            said.append("")
        except distributed.Everywhere as error:
            said.append(str(error))
        assert all(count <= 1 for count in tries.values()), tries  # what is left out is not even tried
    dist.destroy_process_group()
    return said


def _stopped(data: str, out: str) -> None:
    """A run whose steps 6 to 8 are bad, told to stop at the second of them, and started again."""
    real, order = Engine.step, signal.getsignal(signal.SIGTERM)
    for told in (True, False):

        def step(self: Engine, batches: Any, *given: Any, told: bool = told) -> Any:
            number = batches[0].step + 1
            if told and number == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, batches, *given[:2], (lambda _: False) if number in (6, 7, 8) else given[2])  # type: ignore[call-arg]

        Engine.step = step  # type: ignore[method-assign]
        settings = [*SMALL, f"data.path={data}", f"out={out}", "steps=10", "checkpoint.every=5", "checkpoint.keep=1"]
        train(load(RunConfig, "amma/tiny.toml", [*settings, "validation.every=99"]))
    signal.signal(signal.SIGTERM, order)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_stop_among_bad_steps_is_no_place_to_go_back_to(sample_data: Path, tmp_path: Path) -> None:
    run(_stopped, 1, str(sample_data), str(tmp_path))
    events = [(r["event"], r["step"]) for r in log(tmp_path) if r["event"] in ("stopped", "resume", "rewind", "end")]
    assert events == [("stopped", 7), ("resume", 7), ("rewind", 5), ("end", 10)]
    assert [path.name for path in checkpoint.committed(tmp_path / "checkpoints")] == ["step-00000010"]


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_run_that_went_back_is_one_that_never_took_those_steps(sample_data: Path, tmp_path: Path) -> None:
    zero, one = run(_runs, 2, str(sample_data), str(tmp_path))
    assert zero == one and zero[:3] == ["", "", ""]
    assert "training has diverged: steps [8, 9, 10]" in zero[3] and "1 returns to step 4 did not help" in zero[3]

    told, rewound = (checkpoint.latest(tmp_path / name / "checkpoints") for name in ("told", "rewound"))
    assert told is not None and rewound is not None and told.step == rewound.step == 30
    assert told.optimizer_steps == rewound.optimizer_steps == 24
    assert told.state["guard"] == rewound.state["guard"] and told.state["position"] == rewound.state["position"]
    for name, shape in told.parameters.items():
        whole = checkpoint.Fragment(name, 0, math.prod(shape["shape"]))
        for state in checkpoint.STATES:
            assert torch.equal(told.slice(whole, state), rewound.slice(whole, state)), (name, state)

    records = log(tmp_path / "rewound")
    assert [(r["step"], r["excluded"]) for r in records if r["event"] == "rewind"] == [
        (4, [5, 6, 7]),
        (20, [24, 25, 26]),
    ]
    bad = [r for r in records if r["event"] == "bad"]
    assert [(r["step"], r["ranks"]) for r in bad] == [(n, [1] if math.isnan(BAD[n]) else []) for n in BAD]
    assert all(r["loss"] > r["limit"] for r in bad[3:])
    ours, theirs = (
        {r["step"]: r["loss"] for r in log(tmp_path / n) if r["event"] == "step"} for n in ("told", "rewound")
    )
    assert ours == {step: loss for step, loss in theirs.items() if step not in BAD}
    alone = log(tmp_path / "one")
    assert [r["step"] for r in alone if r["event"] == "bad"] == [5] and not any(r["event"] == "rewind" for r in alone)
    assert json.loads((tmp_path / "one" / "log.jsonl").read_text().splitlines()[-1])["event"] == "end"
