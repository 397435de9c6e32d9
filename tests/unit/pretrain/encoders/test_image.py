"""Images: planes that are absent, images end to end, a vision model of transformers."""

from pathlib import Path

import pytest
import torch

from pretrain.batch import Images
from pretrain.encoders.image import Vision, VisionConfig, ViT, ViTConfig

SMALL = ViTConfig(size=16, patch=8, width=24, layers=2, heads=2)


def images(counts: list[int], size: int = 16) -> Images:
    random = torch.Generator().manual_seed(0)
    total = sum(counts)
    return Images(
        torch.rand(total, 4, size, size, generator=random),
        torch.ones(total, 4, dtype=torch.bool),
        torch.tensor([0, *torch.tensor(counts, dtype=torch.int64).cumsum(0).tolist()]),
    )


@pytest.fixture(scope="module")
def encoder() -> ViT:
    return ViT.build(SMALL).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig as TheirConfig
    from transformers import ViTModel

    path = tmp_path_factory.mktemp("vit")
    about = TheirConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ViTModel(about).save_pretrained(path)
    (path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}')
    return path


def test_patches_of_a_proteins_images_lie_end_to_end(encoder: ViT) -> None:
    got = encoder(images([2, 0, 1]))
    assert got.values.shape == (12, 24) and got.offsets.tolist() == [0, 8, 8, 12]
    assert got.positions.tolist() == [0, 1, 2, 3] * 3


def test_an_image_does_not_depend_on_its_batch_mates(encoder: ViT) -> None:
    batch = images([2, 1])
    together = encoder(batch).values.split(4)
    for i in range(3):
        alone = encoder(Images(batch.pixels[i : i + 1], batch.present[i : i + 1], torch.tensor([0, 1]))).values
        torch.testing.assert_close(together[i], alone, atol=1e-6, rtol=0)


def test_patches_are_told_apart_by_place_and_content(encoder: ViT) -> None:
    same = Images(torch.full((1, 4, 16, 16), 0.5), torch.ones(1, 4, dtype=torch.bool), torch.tensor([0, 1]))
    assert torch.cdist(encoder(same).values, encoder(same).values).add(torch.eye(4)).min() > 0.1
    marked = same.pixels.clone()
    marked[0, 2, 0:8, 8:16] = 1  # the second patch of the first row
    rows = encoder.embed(torch.stack([same.pixels[0, :, 0:8, 8:16].flatten(), marked[0, :, 0:8, 8:16].flatten()]))
    assert not torch.allclose(rows[0], rows[1])
    moved = (encoder(Images(marked, same.present, same.offsets)).values - encoder(same).values).norm(dim=1)
    assert moved.argmax() == 1


def test_an_absent_plane_is_marked_and_not_mistaken_for_a_dark_one(encoder: ViT) -> None:
    batch = images([1])
    dark = batch.pixels.clone()
    dark[:, 3] = 0
    absent = torch.tensor([[True, True, True, False]])
    seen = encoder(Images(dark, batch.present, batch.offsets)).values
    marked = encoder(Images(dark, absent, batch.offsets)).values
    assert (seen - marked).abs().max() > 0.1


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_no_rows_give_no_rows(encoder: ViT, folder: Path, counts: list[int]) -> None:
    for one in (encoder, Vision.build(VisionConfig(kind="vision", weights=str(folder)))):
        got = one(images(counts))
        assert got.values.shape == (0, 24) and len(got.offsets) == len(counts) + 1 and len(got.positions) == 0


def test_a_vision_model_sees_three_planes_as_its_colours(folder: Path, tmp_path: Path) -> None:
    from transformers import ViTModel

    encoder = Vision.build(VisionConfig(kind="vision", weights=str(folder))).eval()
    batch = images([1, 2])
    mean, deviation = (torch.tensor(x)[:, None, None] for x in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    colours = (batch.pixels[:, [2, 0, 1]] - mean) / deviation  # microtubules, protein, nucleus
    with torch.no_grad():
        expected = ViTModel.from_pretrained(folder).eval()(pixel_values=colours).last_hidden_state[:, 1:].flatten(0, 1)
        got = encoder(batch)
        torch.testing.assert_close(got.values, expected, atol=1e-6, rtol=0)
        encoder.save_files(tmp_path)
        copy = Vision.skeleton(encoder.config, tmp_path)
        copy.load_state_dict(encoder.state_dict())
        torch.testing.assert_close(copy.eval()(batch).values, got.values, atol=0, rtol=0)
        half = copy.to(torch.bfloat16)(batch).values  # as on a GPU
        torch.testing.assert_close(half.float(), got.values, atol=0.1, rtol=0)
    assert encoder.size == 16 and encoder.patches == 4


def test_dinov2_gives_what_transformers_gives(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    about = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = Dinov2Model(about).eval()
    theirs.save_pretrained(tmp_path)
    encoder = Vision.build(VisionConfig(weights=str(tmp_path))).eval()
    batch = images([2, 0, 1], 28)
    with torch.no_grad():
        expected = theirs(pixel_values=(batch.pixels[:, [2, 0, 1]] - 0.5) / 0.5).last_hidden_state[:, 1:].flatten(0, 1)
        got = encoder(batch)
    torch.testing.assert_close(got.values, expected, atol=1e-6, rtol=0)
    assert got.offsets.tolist() == [0, 8, 8, 12] and encoder.size == 28


def test_a_model_of_four_channels_sees_the_planes_that_it_is_given(folder: Path, tmp_path: Path) -> None:
    """As SubCell, whose channels are the Atlas's four."""
    from transformers import ViTConfig as TheirConfig
    from transformers import ViTModel

    about = TheirConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8,
        num_channels=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = ViTModel(about).eval()
    theirs.save_pretrained(tmp_path)
    stated = tmp_path / "preprocessor_config.json"
    stated.write_text('{"image_mean": [0, 0.1, 0.2, 0.3], "image_std": [1, 0.9, 0.8, 0.7]}')
    order = ("microtubules", "er", "nucleus", "protein")
    encoder, batch = Vision.build(VisionConfig(weights=str(tmp_path), planes=order)).eval(), images([1, 2])
    mean, deviation = (torch.tensor(x)[:, None, None] for x in ([0, 0.1, 0.2, 0.3], [1, 0.9, 0.8, 0.7]))
    with torch.no_grad():
        pixels = (batch.pixels[:, [2, 3, 1, 0]] - mean) / deviation
        expected = theirs(pixel_values=pixels).last_hidden_state[:, 1:].flatten(0, 1)
        got = encoder(batch).values
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    encoder.save_files(tmp_path / "copy")
    copy = Vision.skeleton(encoder.config, tmp_path / "copy")
    copy.load_state_dict(encoder.state_dict())
    assert torch.equal(copy.eval()(batch).values, got)
    assert encoder.settings()["planes"] == order
    assert Vision.build(VisionConfig(weights=str(folder))).settings()["planes"] == (
        "microtubules",
        "protein",
        "nucleus",
    )
    with pytest.raises(ValueError, match="num_channels 4; `planes` names one for each channel, microtubules, protein"):
        Vision.build(VisionConfig(weights=str(tmp_path)))
    with pytest.raises(ValueError, match="planes are of protein, nucleus, microtubules, er"):
        VisionConfig(weights=str(tmp_path), planes=("red",))
    stated.write_text('{"image_mean": [0, 0, 0]}')
    with pytest.raises(ValueError, match="has 3 means and 4 deviations; the model has 4 planes"):
        Vision.build(VisionConfig(weights=str(tmp_path), planes=order))


def test_what_is_wrong_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patch 5 must divide size 16"):
        ViT.build(SMALL.model_copy(update={"patch": 5}))
    with pytest.raises(ValueError, match="looked for weights at"):
        Vision.build(VisionConfig(kind="vision", weights=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match='random weights are for `kind = "vit"`'):
        Vision.build(VisionConfig(kind="vision", weights="random"))
