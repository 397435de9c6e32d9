"""Term vectors: the sum over a term and its ancestors, against a loop; its gradient; no terms."""

import torch

from pretrain.data.ontology import Vocabulary
from pretrain.encoders.ontology import TermEmbedding
from tests.unit.pretrain.data.test_ontology import random_ontology


def made(count: int, width: int) -> tuple[TermEmbedding, Vocabulary, dict[str, set[str]]]:
    torch.manual_seed(0)
    ontology = random_ontology(count)
    parents = {id: ontology.parents(id) for id in ontology.terms}
    vocabulary = Vocabulary.of(parents)
    return TermEmbedding(vocabulary, width), vocabulary, {id: {id, *ontology.ancestors(id)} for id in parents}


def test_a_terms_vector_is_the_sum_of_its_own_and_its_ancestors() -> None:
    module, vocabulary, members = made(60, 5)
    names = sorted(members)
    ids = torch.tensor([17, 3, 59, 3, 0])
    found = module(ids)
    own = {id: module.own.weight[vocabulary.rows([id])[0]] for id in names}
    for row, id in zip(found, ids.tolist(), strict=True):
        slow = torch.zeros(5)
        for member in members[names[id]]:
            slow = slow + own[member]
        torch.testing.assert_close(row, slow)
    assert torch.equal(found[1], found[3])


def test_every_ancestor_learns_from_a_term_and_no_other_does() -> None:
    module, vocabulary, members = made(60, 3)
    name = max(members, key=lambda id: len(members[id]))
    module(torch.tensor(vocabulary.rows([name]))).sum().backward()
    grad = module.own.weight.grad
    assert grad is not None
    assert grad.any(1).nonzero().squeeze(1).tolist() == vocabulary.rows(members[name])


def test_the_gradient_is_that_of_finite_differences() -> None:
    module, _, _ = made(8, 3)
    module = module.double()
    ids, weight = torch.tensor([7, 2, 7]), module.own.weight

    def run(values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"own.weight": values}, (ids,))

    assert torch.autograd.gradcheck(run, (weight.detach().requires_grad_(True),))


def test_no_terms_are_no_rows_and_hang_on_the_graph() -> None:
    module, _, _ = made(8, 3)
    found = module(torch.zeros(0, dtype=torch.int64))
    assert found.shape == (0, 3)
    found.sum().backward()
    assert module.own.weight.grad is not None and not module.own.weight.grad.any()


def test_the_tables_travel_with_the_state_in_half_precision_too() -> None:
    module, vocabulary, _ = made(30, 4)
    state = module.to(torch.bfloat16).state_dict()
    assert {name for name in state if state[name].dtype == torch.int64} == {"numbers", "starts", "members"}
    assert Vocabulary.from_tables(state).sha256 == vocabulary.sha256
