"""What ends a run, and who says so."""

import pytest

from pretrain.distributed import Everywhere
from pretrain.engine import StepResult
from pretrain.train import _check_finite, _tell


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf")), (float("inf"), float("nan"))])
def test_a_diverged_step_ends_the_run(loss: float, norm: float) -> None:
    with pytest.raises(Everywhere, match="diverged: at step 7"):
        _check_finite(StepResult({}, loss, {}, norm, 1e-3), 7)
    _check_finite(StepResult({}, 0.0, {}, 0.0, 1e-3), 7)


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
