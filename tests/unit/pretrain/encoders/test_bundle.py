"""The encoders together: what the loader, the trainer and the exporter ask of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from pretrain.config import dump, validate
from pretrain.data.collate import collate
from pretrain.data.draw import InputSpec
from pretrain.encoders.bundle import Encoders, EncodersConfig
from pretrain.sample import Function, Image, Modality, Sample, Structure, Text

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertTokenizer

    path = tmp_path_factory.mktemp("tokenizer")
    (path / "vocab.txt").write_text("\n".join([*SPECIAL, "binds", "zinc", "atp"]))
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    BertConfig(vocab_size=8, max_position_embeddings=64).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tree(tokenizer: Path) -> dict[str, Any]:
    return {
        "sequence": {"weights": "random", "seed": 1, "layers": 2, "width": 16, "heads": 2, "max_length": 50},
        "structure": {"kind": "gearnet", "weights": "random", "seed": 2, "layers": 2, "hidden": 8},
        "function": {
            "kind": "text", "weights": "random", "tokenizer": str(tokenizer), "layers": 1, "width": 12, "heads": 2,
            "max_length": 20,
        },
        "image": {"kind": "vit", "size": 16, "patch": 8, "width": 20, "layers": 1, "heads": 2},
        "crop": 12,
    }  # fmt: skip


def build(tree: dict[str, Any]) -> Encoders:
    return Encoders.build(validate(EncodersConfig, tree, "test"))


@pytest.fixture(scope="module")
def encoders(tree: dict[str, Any]) -> Encoders:
    return build(tree)


def samples() -> list[Sample]:
    """All four, sequence only, structure with a gap only, text only, image only, and a sequence beyond the maximum."""
    rng = np.random.default_rng(0)

    def structure(residue: np.ndarray, letters: str) -> Structure:
        points = rng.normal(size=(len(residue), 3, 3)).astype(np.float32) * 9
        return Structure("s", points, np.ones((len(residue), 3), bool), residue.astype(np.int32), letters)

    def picture() -> Image:
        data = io.BytesIO()
        Pillow.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8), "RGB").save(data, "PNG")
        return Image("i", data.getvalue(), ("protein", "nucleus", "microtubules"))

    sequence = "MKTAYIAKQRQISFVKSHFSRQLEER"
    text = Function(texts=(Text("binds zinc", "t"),))
    return [
        Sample("all", sequence, (structure(np.arange(4, 24), sequence[4:24]),), text, (picture(), picture())),
        Sample("sequence", sequence[:9]),
        Sample("structure", None, (structure(np.r_[2:12, 15:30], "A" * 25),)),
        Sample("text", function=text),
        Sample("image", images=(picture(),)),
        Sample("long", "ACDEFGHIKL" * 8),
    ]


def test_spec_says_what_the_encoders_take(encoders: Encoders) -> None:
    spec = encoders.spec()
    assert isinstance(spec, InputSpec) and spec.tokenize is not None and spec.tokenize("binds zinc") == [5, 6]
    assert (spec.sequence_max, spec.structure_max, spec.text_max, spec.crop) == (50, None, 20, 12)
    assert (spec.image_size, spec.image_patches, spec.max_images) == (16, 4, 196 // 4)
    assert spec.modalities == tuple(Modality)
    assert encoders.widths() == dict(zip(Modality, (16, 16, 12, 20), strict=True))


def test_features_are_what_the_batch_foretold_cropped_to_its_windows(encoders: Encoders) -> None:
    batch = collate(samples(), range(6), 0, 0, encoders.spec())
    features = encoders(batch)
    assert list(features) == list(Modality)
    for modality, tokens in features.items():
        assert torch.equal(tokens.lengths, batch.lengths[modality])
        assert len(tokens.values) == len(tokens.positions) == int(tokens.offsets[-1])
        assert tokens.values.dtype == torch.float32 and not tokens.values.requires_grad
    for modality in (Modality.SEQUENCE, Modality.STRUCTURE):
        window = batch.window[features[modality].owners]
        positions = features[modality].positions
        assert ((positions >= window[:, 0]) & (positions < window[:, 1])).all()
    assert features[Modality.SEQUENCE].lengths.tolist() == [12, 9, 0, 0, 0, 12]


def test_a_protein_does_not_depend_on_its_batch_mates(encoders: Encoders) -> None:
    proteins, spec = samples(), encoders.spec()
    together = encoders(collate(proteins, range(6), 0, 0, spec))
    for slot, protein in enumerate(proteins):
        alone = encoders(collate([protein], [slot], 0, 0, spec))
        for modality, tokens in alone.items():
            whole = together[modality]
            own = whole.values[whole.offsets[slot] : whole.offsets[slot + 1]]
            torch.testing.assert_close(own, tokens.values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("chosen", [[], [1], [3, 4]])
def test_what_nobody_has_gives_zero_rows(encoders: Encoders, chosen: list[int]) -> None:
    proteins = [samples()[i] for i in chosen]
    features = encoders(collate(proteins, range(len(proteins)), 0, 0, encoders.spec()))
    for modality, width in encoders.widths().items():
        present = any(modality in protein.modalities for protein in proteins)
        assert features[modality].values.shape[1] == width and bool(len(features[modality].values)) == present


def test_in_half_precision_as_on_a_gpu_features_are_near(tree: dict[str, Any], encoders: Encoders) -> None:
    spec, half = encoders.spec(), build(tree).to(torch.bfloat16)
    full = collate(samples(), range(6), 0, 0, spec)
    for modality, tokens in half(full).items():
        want = encoders(full)[modality].values
        assert tokens.values.dtype == torch.bfloat16
        assert (tokens.values.float() - want).norm() < 0.03 * want.norm(), modality
    assert all(tokens.values.shape[0] == 0 for tokens in half(collate([], [], 0, 0, spec)).values())


def test_it_stays_frozen(encoders: Encoders) -> None:
    encoders.train()
    assert not any(module.training for module in encoders.modules())
    assert not any(parameter.requires_grad for parameter in encoders.parameters())


def test_identity_names_seeds_and_hashes(tree: dict[str, Any], encoders: Encoders) -> None:
    found = encoders.identity()
    assert list(found) == ["sequence", "structure", "function", "image"]
    assert found["sequence"]["weights"] == "random (seed 1)" and found["sequence"]["width"] == 16
    assert found["structure"]["id"] == f"gearnet-{found['structure']['sha256'][:12]}"
    assert build(tree).identity() == found
    other = build({**tree, "sequence": {**tree["sequence"], "seed": 9}}).identity()
    assert other["sequence"]["sha256"] != found["sequence"]["sha256"] and other["image"] == found["image"]


def test_a_skeleton_and_a_state_make_the_same_encoders(
    tree: dict[str, Any], encoders: Encoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders.save_files(tmp_path / "model")
    gone = {**tree, "function": {**tree["function"], "tokenizer": "/nowhere"}}
    copy = Encoders.skeleton(validate(EncodersConfig, gone, "test"), tmp_path / "model")
    copy.load_state_dict(encoders.state_dict())
    assert copy.identity() == encoders.identity() and dump(copy.config) == dump(encoders.config)
    batch = collate(samples(), range(6), 0, 0, copy.spec())
    for modality, tokens in encoders(batch).items():
        torch.testing.assert_close(copy(batch)[modality].values, tokens.values, atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"encoders\.json is missing"):
        Encoders.skeleton(encoders.config, tmp_path)
    with pytest.raises(ValueError, match="is of another model"):
        Encoders.skeleton(encoders.config.model_copy(update={"image": None}), tmp_path / "model")


def test_the_paper_fits_on_the_meta_device(tokenizer: Path) -> None:
    tree = {
        "sequence": {"weights": "random", "layers": 33, "width": 1280, "heads": 20},
        "structure": {"kind": "gearnet", "weights": "random"},
        "function": {"weights": "random", "tokenizer": str(tokenizer), "layers": 12, "width": 768, "heads": 12,
                     "max_length": 62},
        "image": {"kind": "vit", "size": 224, "width": 768, "layers": 12, "heads": 12},
    }  # fmt: skip
    with torch.device("meta"):
        encoders = build(tree)
    assert all(tensor.is_meta for tensor in encoders.state_dict().values())
    assert list(encoders.widths().values()) == [1280, 3072, 768, 768]
    assert encoders.spec().max_images == 1
    assert encoders.sequence is not None
    assert sum(parameter.numel() for parameter in encoders.sequence.parameters()) == 651_042_593  # ESM-2 650M's own


def test_a_configuration_without_encoders_or_with_too_large_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of sequence, structure, function, image"):
        validate(EncodersConfig, {"crop": 64}, "test")
    with pytest.raises(ValueError, match="one image has 256 tokens, image_tokens allows 196"):
        build({"image": {"kind": "vit", "size": 64, "patch": 4, "width": 8, "layers": 1, "heads": 1}})
    with pytest.raises(ValueError, match="unknown key; did you mean 'weights'"):
        validate(EncodersConfig, {"sequence": {"weight": "random"}}, "test")
