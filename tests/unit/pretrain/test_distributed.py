"""One process is a world of one, and its collectives are the identity. Several processes: tests/ranks."""

import pytest
import torch

from pretrain import distributed


def test_without_a_process_group_there_is_one_rank() -> None:
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert distributed.device() == torch.device("cpu")


def test_add_is_a_new_tensor_without_gradient() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    total = distributed.add(values)
    assert total.tolist() == [1.0, 2.0] and not total.requires_grad
    total += 1
    assert values.tolist() == [1.0, 2.0]


def test_gathered_rows_of_one_rank_are_its_own_with_gradient() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    every, start = distributed.gather_rows(rows)
    every.sum().backward()
    assert start == 0 and rows.grad is not None and torch.equal(rows.grad, torch.ones(3, 2))


def test_gathered_objects_of_one_rank() -> None:
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]


def test_what_is_done_together_returns_or_fails_everywhere() -> None:
    assert distributed.together(lambda: 3) == 3

    def full() -> None:
        raise OSError("no space")

    with pytest.raises(distributed.Everywhere, match=r"^no space$"):
        distributed.together(full)
    with pytest.raises(ZeroDivisionError):  # a bug keeps its name and its traceback
        distributed.together(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("names", "count"),
    [(["a"], 1), (["a", "a", "b", "b"], 2), (["a", "b", "c"], 3), (["a", "b", "a", "b"], 1), (["a", "a", "b"], 1)],
)
def test_hosts_are_counted_where_their_ranks_are_equal_blocks(monkeypatch, names, count):
    monkeypatch.setattr(distributed, "gather_objects", lambda _: names)
    monkeypatch.setattr(distributed, "world", lambda: len(names))
    assert distributed.hosts() == count
