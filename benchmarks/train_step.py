"""Training steps without padding: the same model padded, AMMA with its encoder on all tokens, ESM-2 650M on a GPU.

    [FOURFOLD_PACK=PACK] python benchmarks/train_step.py [--quick] [--json FILE]

Lengths are Swiss-Prot's: of the pack's sequences, or without it lognormal with the same mean of 360. Tokens are real
ones, never padding. Asserted: that padded and ragged models agree on every real row. On a CPU the models are small and
float32; a GPU adds the row at ESM-2 650M's geometry in bf16, against transformers' EsmForMaskedLM.
"""

import gzip
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rows
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from pretrain import models
from pretrain.batch import Batch, Features, Images, Sequences, Structures, Texts, Tokens, offsets_of
from pretrain.encoders.esm import ALPHABET, Esm, EsmConfig
from pretrain.layers import flops
from pretrain.layers.transformer import SelfBlock, Transformer
from pretrain.masking import MaskingConfig
from pretrain.models.amma import Amma, AmmaConfig
from pretrain.sample import Modality

LONGEST = 1022  # residues
GEOMETRY = {"layers": 33, "width": 1280, "heads": 20}  # ESM-2 650M
RAGGED = {"cpu": 2.5, "cuda": 2.4}  # targets
VISIBLE = 3.0
FEATURES = {Modality.SEQUENCE: 1280, Modality.STRUCTURE: 512, Modality.FUNCTION: 768, Modality.IMAGE: 768}


def lengths(count: int, seed: int = 0) -> Tensor:
    """int64 [count], residues of proteins drawn from Swiss-Prot's distribution, cut to what an encoder sees."""
    draw = torch.Generator().manual_seed(seed)
    if pack := os.environ.get("FOURFOLD_PACK"):
        with gzip.open(Path(pack) / "uniprot" / "uniprot_sample_20000.fasta.gz", "rt") as file:
            entries = file.read().split(">")[1:]
        known = torch.tensor([sum(map(len, entry.splitlines()[1:])) for entry in entries])
        found = known[torch.randint(len(known), (count,), generator=draw)]
    else:
        found = (5.66 + 0.68 * torch.randn(count, generator=draw)).exp().round().long()  # mean 360
    return found.clamp(2, LONGEST)


def padded(model: Transformer, rows_BLW: Tensor, real_BL: Tensor) -> Tensor:
    """The same model and weights over a padded batch, as torch offers it: fused attention under a boolean mask."""
    for block in model.blocks:
        assert isinstance(block, SelfBlock)
        part, normed = block.attention, block.attention_norm(rows_BLW)
        query, key, value = (
            layer(normed).unflatten(2, (part.heads, -1)).transpose(1, 2) for layer in (part.query, part.key, part.value)
        )
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=real_BL[:, None, None, :])
        rows_BLW = rows_BLW + part.out(mixed.transpose(1, 2).flatten(2))
        rows_BLW = rows_BLW + block.mlp(block.mlp_norm(rows_BLW))
    return model.norm(rows_BLW)


def unpadded(device: str, proteins: int, size: tuple[int, int, int], rounds: int) -> list[rows.Row]:
    """Ragged against padded, forward alone and with its backward pass."""
    width, depth, heads = size
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    model, counts = Transformer(width, depth, heads).to(device, dtype), lengths(proteins)
    values = torch.randn(int(counts.sum()), width, device=device, dtype=dtype)
    offsets = offsets_of(counts).to(device)
    dense = pad_sequence(list(values.split(counts.tolist())), batch_first=True)
    real = torch.arange(int(counts.max()), device=device) < counts.to(device).unsqueeze(1)
    with torch.no_grad():
        apart = (padded(model, dense, real)[real] - model(values, offsets)).abs().max()
    assert apart < (1e-4 if device == "cpu" else 0.1), f"padded and ragged differ by {float(apart)}"

    def step(forward: Callable[[], Tensor], backward: bool) -> int:
        with torch.set_grad_enabled(backward):
            out = forward()
            if backward:
                out.float().square().sum().backward()
                model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return len(values)

    found = []
    for name, backward in (("forward", False), ("forward and backward", True)):
        rates = rows.race(
            lambda grad=backward: step(lambda: model(values, offsets), grad),
            lambda grad=backward: step(lambda: padded(model, dense, real)[real], grad),
            rounds,
        )
        share = len(values) / real.numel()
        what = f"{name}, {proteins} proteins, {share:.0%} of the padded batch is real"
        found.append(rows.faster(what, rates, "padded, masked SDPA", RAGGED[device], "tokens/s"))
    return found


def proteins(counts: dict[Modality, list[int]], device: str) -> tuple[Features, Batch]:
    """Features as they would be read from disk, and the batch that announced them."""
    features, sizes = {}, {m: torch.tensor(each) for m, each in counts.items()}
    for m, each in sizes.items():
        positions = torch.cat([torch.arange(n) for n in each.tolist()])
        features[m] = Tokens(torch.randn(int(each.sum()), FEATURES[m]), offsets_of(each), positions).to(device)
    number, nothing = len(sizes[Modality.SEQUENCE]), torch.zeros(0)
    none = torch.zeros(number + 1, dtype=torch.int64)
    batch = Batch(
        tuple(map(str, range(number))), 0, 0, torch.arange(number), torch.zeros(number, 2), sizes,
        Sequences(nothing, none), Structures(nothing, nothing, nothing, nothing, nothing, none),
        Texts(nothing, none), Images(nothing, nothing, none),
    )  # fmt: skip
    return features, batch


def visible(device: str, number: int, rounds: int) -> rows.Row:
    """AMMA at the paper's size, its encoder on visible tokens, against the same model that encodes all tokens."""
    torch.manual_seed(0)
    residues = lengths(number).clamp(max=400).tolist()
    counts = dict.fromkeys((Modality.SEQUENCE, Modality.STRUCTURE), residues)
    counts |= {Modality.FUNCTION: [60] * number, Modality.IMAGE: [0] * number}
    features, batch = proteins(counts, device)
    built = {}
    for keep, scored in ((MaskingConfig().keep, "masked"), (1.0, "all")):
        config = AmmaConfig.model_validate({"masking": {"keep": keep}, "loss_on": scored})
        built[keep] = models.build(config, FEATURES).to(device)

    def step(model: Amma) -> int:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            losses: Any = model(features, batch)
        torch.stack([loss.sum for loss in losses.values()]).sum().backward()
        model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return number

    ours, full = built.values()
    rates = rows.race(lambda: step(ours), lambda: step(full), rounds)
    return rows.faster("AMMA steps, paper size, 1/6 visible", rates, "encoder on all tokens", VISIBLE, "proteins/s")


def language_model(geometry: dict[str, int], device: str, number: int, steps: int) -> list[rows.Row]:
    """Masked-language-model steps with AdamW in bf16: ours against transformers' EsmForMaskedLM, padded."""
    from transformers import EsmConfig as TheirConfig
    from transformers import EsmForMaskedLM

    counts = lengths(number)
    letters = torch.tensor([ord(c) for c in "ACDEFGHIKLMNPQRSTVWY"], dtype=torch.uint8)
    residues = letters[torch.randint(20, (int(counts.sum()),))].to(device)
    targets = torch.tensor([ALPHABET.index(chr(code)) for code in residues.tolist()], device=device)
    sequences = Sequences(residues, offsets_of(counts).to(device))
    ours = Esm.build(EsmConfig.model_validate({"weights": "random", **geometry})).to(device, torch.bfloat16)
    found = {"ours": _pace(ours, lambda: cross_entropy(ours.logits(sequences).float(), targets), steps)}

    bos, eos = (torch.tensor([ALPHABET.index(name)], device=device) for name in ("<cls>", "<eos>"))
    parts = [torch.cat([bos, part, eos]) for part in targets.split(counts.tolist())]
    ids = pad_sequence(parts, batch_first=True, padding_value=ALPHABET.index("<pad>"))
    real = ids != ALPHABET.index("<pad>")
    labels = ids.masked_fill(~real, -100)
    kernels = ["sdpa"] + (["flash_attention_2"] if importlib.util.find_spec("flash_attn") else [])
    for kernel in kernels:
        about: Any = TheirConfig(
            vocab_size=len(ALPHABET), hidden_size=geometry["width"], num_hidden_layers=geometry["layers"],
            num_attention_heads=geometry["heads"], intermediate_size=4 * geometry["width"], pad_token_id=1,
            mask_token_id=32, position_embedding_type="rotary", max_position_embeddings=1026, token_dropout=True,
            attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
        )  # fmt: skip
        model: Any = EsmForMaskedLM._from_config(about, attn_implementation=kernel)
        model = model.to(device, torch.bfloat16)
        found[kernel] = _pace(model, lambda m=model: m(ids, attention_mask=real.long(), labels=labels).loss, steps)
        del model
    tokens, work = int(counts.sum()), _work(ours, counts + 2)
    rates = {name: tokens / seconds for name, seconds in found.items()}
    what = f"ESM-2 {geometry['layers']} × {geometry['width']}, training steps in bf16, {number} proteins"
    name, target = "EsmForMaskedLM, padded, ", RAGGED["cuda"]
    table = [rows.faster(what, (rates["ours"], rates[k]), name + k, target, "tokens/s") for k in kernels]
    best = flops.peak(torch.device(device))
    if best:
        shares = [work / seconds / best for seconds in (found["ours"], found["sdpa"])]
        table.append(
            rows.Row(f"{what}: MFU", shares[0], shares[1], f"{name}sdpa", shares[0] / shares[1], target, "of peak")
        )
    return table


def _pace(model: nn.Module, loss: Callable[[], Tensor], steps: int) -> float:
    """Median seconds of a training step, the first two left out."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5, fused=True)
    seconds = []
    for _ in range(steps + 2):
        started = time.perf_counter()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def _work(model: Esm, counts: Tensor) -> int:
    """FLOPs of a training step on sequences of these lengths, BOS and EOS included; the tied last matrix too."""
    dense = sum(flops.linear(each, counts) for each in model.modules() if isinstance(each, nn.Linear))
    attended = len(model.layers) * flops.attended(counts, counts, model.width)
    return flops.TRAINED * (dense + attended + 2 * int(counts.sum()) * model.width * len(ALPHABET))


def main() -> None:
    chosen = rows.options(__doc__).parse_args()
    device, quick = "cuda" if torch.cuda.is_available() else "cpu", chosen.quick
    if device == "cpu":
        torch.set_num_threads(1)
        found = unpadded(device, 16 if quick else 32, (320, 2 if quick else 6, 20), 2 if quick else 3)
        found.append(visible(device, 1 if quick else 4, 1 if quick else 3))
    else:
        found = unpadded(device, 64, (1280, 6, 20), 10)
        found.append(visible(device, 64, 10))
        found += language_model(GEOMETRY, device, 32, 3 if quick else 10)
    rows.report(found, chosen.json)


if __name__ == "__main__":
    main()
