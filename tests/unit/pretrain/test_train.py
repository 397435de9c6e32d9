"""What ends a run, and who says so."""

from pathlib import Path

import pytest

from pretrain.checkpoint import Checkpoint
from pretrain.distributed import Everywhere
from pretrain.engine import StepResult
from pretrain.train import _check_finite, _check_identity, _tell


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf")), (float("inf"), float("nan"))])
def test_a_diverged_step_ends_the_run(loss: float, norm: float) -> None:
    with pytest.raises(Everywhere, match="diverged: at step 7"):
        _check_finite(StepResult({}, loss, {}, norm, 1e-3), 7)
    _check_finite(StepResult({}, 0.0, {}, 0.0, 1e-3), 7)


def test_a_resume_names_what_changed_and_nothing_else() -> None:
    encoder = {"sha256": "ab", "weights": "a.pt"}
    stored = {"seed": 1, "model": {"width": 8, "depth": 2}, "encoders": {"sequence": encoder}, "limits": {"crop": 64}}
    found = Checkpoint(Path("runs/x/checkpoints/step-00000001"), 1, 1, 1, {}, {"identity": stored})
    _check_identity(found, stored | {"encoders": {"sequence": encoder | {"weights": "elsewhere/a.pt"}}})
    now = stored | {"model": {"width": 8, "depth": 3}, "limits": {"crop": 32}}
    with pytest.raises(ValueError, match=r"another limits, model: .*crop was 64, is 32; .*depth was 2, is 3") as error:
        _check_identity(found, now)
    assert "width" not in str(error.value) and "seed" not in str(error.value)


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
