"""What ends a run, and who says so."""

from types import SimpleNamespace
from typing import Any

import pytest

from pretrain import distributed
from pretrain.distributed import Everywhere
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
