"""What a step of AMMA costs: its own count is torch's, absence is free, and only visible tokens reach the encoder."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.batch import Batch, Features
from pretrain.masking import MaskingConfig
from pretrain.models import AmmaConfig
from pretrain.models.amma import Amma, DecoderConfig
from pretrain.sample import Modality

SEQUENCE, STRUCTURE, FUNCTION, IMAGE = Modality
PAIRED = {SEQUENCE: [30, 41], STRUCTURE: [30, 25], FUNCTION: [12, 9], IMAGE: [16, 0]}
UNPAIRED = {SEQUENCE: [50, 0, 0], STRUCTURE: [0, 33, 0], FUNCTION: [0, 0, 0], IMAGE: [0, 0, 16]}


def model(variant: str, widths: dict[Modality, int], keep: float = 0.4) -> Amma:
    decoder = DecoderConfig(width=16, depth=2, heads=2)
    size = {"width": 32, "depth": 2, "heads": 4, "mlp_ratio": 2, "embedding": 8}
    return Amma(
        AmmaConfig.model_validate(
            {"variant": variant, "decoder": decoder, "masking": MaskingConfig(keep=keep), **size}
        ),
        widths,
    )


def counted(amma: Amma, features: Features, batch: Batch, backward: bool = True) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        total = torch.stack([loss.sum for loss in amma(features, batch).values()]).sum()
        if backward:
            total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", ["reconstruction", "contrastive"])
@pytest.mark.parametrize(
    "lengths", [PAIRED, UNPAIRED, {m: [] for m in Modality}], ids=["paired", "unpaired", "nothing"]
)
def test_the_count_is_torchs(variant: str, lengths: dict[Modality, list[int]], proteins, widths):
    amma = model(variant, widths)
    features, batch = proteins(lengths)
    assert amma.flops(batch) == pytest.approx(counted(amma, features, batch), rel=0.01)


def test_an_unpaired_protein_costs_its_own_tokens(proteins, widths):
    """To the operation: a batch of paired and unpaired proteins costs what both cost apart."""
    amma = model("reconstruction", widths)
    joined = proteins({m: PAIRED[m] + UNPAIRED[m] for m in Modality}, slots=range(5))
    apart = [proteins(PAIRED, slots=range(2)), proteins(UNPAIRED, slots=range(2, 5))]
    assert counted(amma, *joined) == sum(counted(amma, *part) for part in apart)
    assert amma.flops(joined[1]) == sum(amma.flops(batch) for _, batch in apart)


def test_the_encoder_runs_on_visible_tokens_only(proteins, widths):
    features, batch = proteins(PAIRED)
    seen = []
    for keep in (1 / 6, 1.0):
        amma = model("reconstruction", widths, keep)
        amma.encoder.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
        amma(features, batch)
    tokens = [sum(PAIRED[m][i] for m in Modality) for i in range(2)]
    assert seen == [sum(round(count / 6) + 1 for count in tokens), sum(count + 1 for count in tokens)]
