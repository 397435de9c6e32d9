"""Several positives for one row: proteins of which the same is said are not each other's negatives.

Rows are of one group where they have a code in common, and so are those that a chain of such rows leads to: two texts
of one protein say the same, so what has either of them is alike. Within a group all are each other's positives, and the
loss is SupCon's L_out (Khosla et al. 2020, eq. 2): of a row i with positives P(i), itself among them,

    −1/|P(i)| Σ_{p ∈ P(i)} log softmaxⱼ(sᵢⱼ)ₚ

That is a cross entropy with all of P(i) as equal targets: at its least when every positive scores the same. The other
choice, −log of the summed probability (L_in), is content with one positive that scores high, and lets the rest go.

As groups are classes, the mean over positives is a score with the group's mean: with s = l·r/t, L_out differs from the
loss of one positive by sᵢᵢ − lᵢ·r̄/t forth and sᵢᵢ − rᵢ·l̄/t back. Summed over a group, that is `spread`: the rows'
covariance within it. So the blocks of scores know nothing of groups, and several positives cost a few tables [S, D].
"""

import torch
from torch import Tensor


def groups(codes: Tensor) -> Tensor:
    """int64 [S], equal for rows of one group: the least of their numbers. codes: int64 [S, K], of each row; 0 is none.

    Every round takes the least label among the rows that share a code, and then that label's own: as many rounds as the
    logarithm of the longest chain.
    """
    size, labels = len(codes), torch.arange(len(codes), device=codes.device)
    _, shared = codes.unique(return_inverse=True)
    some = codes != 0
    while True:
        mine = labels.unsqueeze(1).expand_as(codes)[some]
        least = labels.new_full((size * codes.shape[1] + 1,), size).scatter_reduce(0, shared[some], mine, "amin")
        found = torch.where(some, least[shared], size).amin(1) if codes.shape[1] else labels
        found = torch.minimum(found, labels)
        found = found[found]
        if torch.equal(found, labels):
            return labels
        labels = found


def spread(left_SD: Tensor, right_SD: Tensor, both: Tensor, own: Tensor, temperature: Tensor, group: Tensor) -> Tensor:
    """The own rows' part of Σᵢ (lᵢ − l̄)·(rᵢ − r̄) / t: a float32, to be added to `contrastive.info_nce` of the same.

    group: int64 [S]; l̄ and r̄ are means over the rows of i's group that have both sides. A row alone in its group adds
    0. Parts sum to the whole in value and gradient: as Σ (rᵢ − r̄) over a group is 0, means are constants to it.
    """
    with torch.autocast(left_SD.device.type, enabled=False):
        rows = both.nonzero().squeeze(1)
        _, place, count = group[rows].unique(return_inverse=True, return_counts=True)
        several = count[place] > 1
        rows, place = rows[several], place[several]
        mine, live = rows[own[rows]], own[rows]
        sides = [_centred(table, rows, place, count, mine, live) for table in (left_SD, right_SD)]
        return (torch.einsum("nd,nd->n", *sides) / temperature.float()).sum()


def _centred(table_SD: Tensor, rows: Tensor, place: Tensor, count: Tensor, mine: Tensor, live: Tensor) -> Tensor:
    """float32 [n, D]: the table's rows `mine`, less the constant means of their groups. place: each of `rows`' group,
    of which `count` says the size; live: which of `rows` are in `mine`."""
    values = table_SD.detach()[rows].float()
    means = values.new_zeros(len(count), values.shape[1]).index_add(0, place, values) / count.unsqueeze(1)
    return table_SD[mine].float() - means[place[live]]
