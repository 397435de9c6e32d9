"""Channel files of a cell become one PNG whose bands are channels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from data_prep.records import FileSeen, ImageRecord, Rejection
from data_prep.sources.images import ImageColumns, Images

HEADER = "path\tuniprot\tcell\tchannel\n"


def save(path: Path, pixels: np.ndarray) -> None:
    Picture.fromarray(pixels).save(path)


def read(tmp_path: Path, rows: list[str], **options) -> list:
    (tmp_path / "m.tsv").write_text(HEADER + "".join(row + "\n" for row in rows))
    source = Images(files="m.tsv", **{"size": 8, "parts": 2, **options})
    items = [item for names in source.slices(tmp_path) for item in source.read(tmp_path, names)]
    return [item for item in items if not isinstance(item, FileSeen)]


def bands(record: ImageRecord) -> np.ndarray:
    return np.asarray(Picture.open(io.BytesIO(record.image.data)))


def test_channels_are_stacked_in_order_with_black_for_the_absent(tmp_path):
    save(tmp_path / "g.png", np.full((8, 8), 10, dtype=np.uint8))
    save(tmp_path / "y.png", np.full((8, 8), 40, dtype=np.uint8))
    (record,) = read(tmp_path, ["y.png\tP1\tc1\tyellow", "g.png\tP1\tc1\tgreen"])
    assert (record.key, record.image.id, record.image.present) == ("P1", "image_c1", ("protein", "er"))
    assert bands(record)[0, 0].tolist() == [10, 0, 0, 40]


@pytest.mark.parametrize(
    ("pixels", "options", "value"),
    [
        (np.full((8, 8), 257 * 77, dtype=np.uint16), {}, 77),
        (np.full((8, 8), 4095, dtype=np.uint16), {"depth": 12}, 255),
        (np.full((8, 8), 0.5, dtype=np.float32), {}, 128),
        (np.full((8, 8), True), {}, 255),
    ],
)
def test_deeper_pixels_are_scaled_to_eight_bits(tmp_path, pixels, options, value):
    save(tmp_path / "g.tif", pixels)
    (record,) = read(tmp_path, ["g.tif\tP1\tc1\tgreen"], **options)
    assert np.unique(bands(record)).tolist() == [value]
    assert record.image.present == ("protein",)


def test_resizing_does_not_let_the_fourth_band_weigh_the_others(tmp_path):
    """A picture library treats the fourth band as transparency, and would blacken what lies under 0."""
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[..., 0] = 100
    pixels[:8, :, 3] = 255
    save(tmp_path / "rgba.png", pixels)
    (record,) = read(tmp_path, ["rgba.png\tP1\tc1\tbands"])
    assert (bands(record)[..., 0] == 100).all()
    assert len(record.image.present) == 4


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK"])
def test_opacity_is_no_signal_in_the_file_of_one_channel(tmp_path, mode):
    grey = Picture.fromarray(np.full((8, 8), 77, dtype=np.uint8))
    grey.convert("RGB").convert(mode).save(tmp_path / "g.tif")
    (record,) = read(tmp_path, ["g.tif\tP1\tc1\tgreen"])
    assert np.unique(bands(record)).tolist() == [77]


def test_a_field_that_is_not_square_is_cut_to_its_centre(tmp_path):
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 200
    save(tmp_path / "g.png", pixels)
    (record,) = read(tmp_path, ["g.png\tP1\tc1\tgreen"])
    assert (bands(record) == 200).all()


def test_no_accession_is_an_unpaired_image(tmp_path):
    save(tmp_path / "g.png", np.zeros((8, 8), dtype=np.uint8))
    (record,) = read(tmp_path, ["g.png\t\tc1\tgreen"], name="hpa")
    assert record.key == "hpa_c1"


def test_equal_pixels_are_equal_bytes(tmp_path):
    save(tmp_path / "g.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    rows = ["g.png\tP1\tc1\tgreen", "g.png\tP1\tc2\tgreen"]
    first, second = read(tmp_path, rows)
    assert first.image.data == second.image.data


def test_what_is_missing_damaged_or_not_mapped(tmp_path):
    save(tmp_path / "g.png", np.zeros((8, 8), dtype=np.uint8))
    (tmp_path / "bad.png").write_bytes((tmp_path / "g.png").read_bytes()[:40])
    rows = ["no.png\tP1\tc1\tgreen", "bad.png\tP2\tc2\tgreen", "g.png\tP3\tc3\trfp"]
    channels = {"green": "protein", "rfp": ""}
    items = read(tmp_path, rows, channels=channels)
    assert all(isinstance(item, Rejection) for item in items)
    assert {(r.key, r.reason) for r in items} == {
        ("P1", "missing_image"),
        ("P2", "unreadable_image"),
        ("P3", "unmapped_channel"),
    }
    with pytest.raises(ValueError, match=r"no\.png: No such file"):
        read(tmp_path, rows[:1], on_error="stop")
    with pytest.raises(ValueError, match="line 2: channel 'rfp'; map it in `channels`"):
        read(tmp_path, rows[2:])


def test_no_damage_stops_a_run_and_what_is_said_of_it_never_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(Picture, "MAX_IMAGE_PIXELS", 30)
    save(tmp_path / "large.png", np.zeros((8, 8), dtype=np.uint8))
    (tmp_path / "text.png").write_text("no image")
    rows = ["large.png\tP1\tc1\tgreen", "text.png\tP2\tc2\tgreen"]
    refused = read(tmp_path, rows)
    assert [(r.key, r.reason) for r in refused] == [("P1", "unreadable_image"), ("P2", "unreadable_image")]
    assert not any(" at 0x" in r.detail for r in refused)


def test_a_cell_with_two_files_of_one_channel_is_refused(tmp_path):
    save(tmp_path / "g.png", np.zeros((8, 8), dtype=np.uint8))
    (refused,) = read(tmp_path, ["g.png\tP1\tc1\tgreen", "g.png\tP1\tc1\tgreen"])
    assert (refused.reason, refused.key) == ("duplicate_channel", "P1")


def test_columns_may_have_other_names(tmp_path):
    save(tmp_path / "g.png", np.zeros((8, 8), dtype=np.uint8))
    (tmp_path / "m.csv").write_text("file,acc,id,stain\ng.png,P1,c1,green\n")
    columns = ImageColumns(path="file", accession="acc", cell="id", channel="stain")
    source = Images(files="m.csv", columns=columns, parts=1)
    records = [item for item in source.read(tmp_path, ("m.csv", "0")) if isinstance(item, ImageRecord)]
    assert [record.key for record in records] == ["P1"]
