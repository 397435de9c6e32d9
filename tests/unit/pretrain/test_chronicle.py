"""What a step's record holds, and when an alarm is rung."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.chronicle import Chronicle
from pretrain.engine import StepResult
from pretrain.evaluation.evaluate import Validation
from pretrain.evaluation.metrics import Cloud, cloud
from pretrain.journal import Journal
from pretrain.models import AmmaConfig
from pretrain.sample import Modality

PLAN: Any = SimpleNamespace(epoch=lambda position: position.step / 10)
RUN: Any = SimpleNamespace(
    steps=9, log=SimpleNamespace(every=4), validation=SimpleNamespace(min_rank=2.0), engine=SimpleNamespace(stage=2),
    model=AmmaConfig(),
)  # fmt: skip
PARTS: Any = SimpleNamespace(identity={"encoders": {}}, stored=SimpleNamespace(widths={}), labels=None)


def step(number: int, waited: float) -> Any:
    batch = SimpleNamespace(lengths={"sequence": torch.tensor([100, 50]), "image": torch.tensor([16])})
    return SimpleNamespace(
        position=SimpleNamespace(step=number), waited=waited, batches=[batch], plan=SimpleNamespace(entries=[1, 2])
    )


def result(number: int) -> StepResult:
    return StepResult({"reconstruction/sequence": 0.5 * number}, 1.0 * number, {}, 0.25, 1e-3)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_step_is_logged_with_what_came_since_the_last_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path) as journal:
        chronicle = Chronicle(RUN, PLAN, journal)
        for number in range(1, 10):
            if number == 3:
                chronicle.saved(0.5)
            chronicle.step(step(number, waited=0.1 * (number == 2)), result(number), seconds=2.0)
    first, second, third, last = records(tmp_path)
    assert [each["step"] for each in (first, second, third, last)] == [1, 4, 8, 9]
    assert (second["tokens"], second["tokens_per_second"], second["tokens_per_second_per_device"]) == (166, 83.0, 83.0)
    assert second["waited_share"] == pytest.approx(0.1 / 6, abs=1e-4) and third["waited_share"] == 0
    assert second["blocked"] == 0.5 and not {"blocked"} & (first.keys() | third.keys() | last.keys())
    assert not {"flops", "mfu"} & second.keys() and second["epoch"] == 0.4
    assert "step 4/9  loss 4.0000  sequence 2.0000  83 tokens/s per device  waited 2%" in capsys.readouterr().err


@pytest.mark.parametrize(("peak", "mfu"), [(0.0, None), (1e12, 0.25)])
def test_work_is_told_where_it_is_counted_and_its_share_where_the_device_is_known(
    tmp_path: Path, peak: float, mfu: float | None
) -> None:
    with Journal(tmp_path) as journal:
        Chronicle(RUN, PLAN, journal, peak).step(step(4, 0.0), result(4), seconds=2.0, flops=lambda _: 500_000_000_000)
    (record,) = records(tmp_path)
    assert record["flops"] == 500_000_000_000 and record.get("mfu") == mfu


@pytest.mark.parametrize(
    ("truncated", "estimated", "says"),
    [
        (0, False, ""),
        (1234, False, "\n1,234 sequences are longer than the 1,022 residues that are seen"),
        (1234, True, "\nabout 1,234 sequences are longer than the 1,022 residues that are seen"),
    ],
)
def test_an_estimate_is_told_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], truncated: int, estimated: bool, says: str
) -> None:
    spec = SimpleNamespace(sequence_max=1022)
    plan: Any = SimpleNamespace(
        sizes={"a": 9}, given={}, left_out={}, truncated=truncated, estimated=estimated, spec=spec
    )
    with Journal(tmp_path) as journal:
        Chronicle(RUN, plan, journal).begin(PARTS, None)
    (record,) = records(tmp_path)
    assert (record["truncated"], record["truncated_is_estimate"]) == (truncated, estimated)
    said = capsys.readouterr().err
    assert says in said and ("sequences" in said) == bool(truncated)


def test_proteins_that_are_left_out_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = {"image": 1500, "sequence": 0, "function": 7}
    plan: Any = SimpleNamespace(sizes={"sequence": 9}, given={}, left_out=left, truncated=0, estimated=False)
    with Journal(tmp_path) as journal:
        Chronicle(RUN, plan, journal).begin(PARTS, None)
    assert (
        "\n1,507 are left out, having nothing that the model reads, or weight 0: 1,500 of image, 7 of function\n"
        in (capsys.readouterr().err)
    )


def test_proteins_that_teach_nothing_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = {"sequence": (Modality.SEQUENCE,), "sequence_function": (Modality.SEQUENCE, Modality.FUNCTION)}
    plan: Any = SimpleNamespace(
        sizes={"sequence": 1234, "sequence_function": 9}, left_out={}, truncated=0, estimated=False, given=groups
    )  # fmt: skip
    contrastive: Any = SimpleNamespace(**(vars(RUN) | {"model": AmmaConfig(variant="contrastive")}))
    for run, idle in ((RUN, []), (contrastive, ["sequence"])):
        with Journal(tmp_path) as journal:
            Chronicle(run, plan, journal).begin(PARTS, None)
        assert records(tmp_path)[-1]["idle"] == idle
        assert ("1,234 of them (sequence) have nothing that the model learns" in capsys.readouterr().err) == bool(idle)


def found(**clouds: Cloud) -> Validation:
    return Validation(1.5, {"a": 1.5}, {}, {}, {}, clouds, 64)


def test_a_modality_that_collapses_rings_an_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    whole, point = cloud(torch.randn(64, 8)), cloud(torch.ones(64, 8))
    with Journal(tmp_path) as journal:
        Chronicle(RUN, PLAN, journal).validation(40, found(sequence=whole, image=point))
    validation, alarm = records(tmp_path)
    assert validation["embeddings"]["image"]["effective_rank"] == 0 and validation["loss"] == 1.5
    assert (alarm["event"], alarm["step"], alarm["kind"], alarm["modality"]) == ("alarm", 40, "collapse", "image")
    said = capsys.readouterr().err
    assert "warning: step 40: embeddings of image have collapsed" in said and "of sequence" not in said
