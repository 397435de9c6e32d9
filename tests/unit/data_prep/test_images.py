"""Image files → one image per cell: by manifest, by name, whose it is, and what is refused by which name."""

import csv
import gzip
import io
import os
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from data_prep.records import FileSeen, ImageRecord, Rejection
from data_prep.sources.files import SourceError
from data_prep.sources.genes import GeneTable
from data_prep.sources.images import Channel, Images, unpaired
from data_prep.sources.shots import ImageColumns
from pretrain.places import Place
from pretrain.sample import KEY, MAX_KEY
from tests.pack import PACK

PACKED = pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not beside this checkout")
HEADER = "path\tuniprot\tcell\tchannel\n"
YEAST: dict[str, Channel] = {
    "green": "protein",
    "blue": "nucleus",
    "red": "microtubules",
    "gfp": "protein",
    "rfp": "",
}
GENES = GeneTable(
    files="uniprot/human_uniprot_gene_map.tsv.gz", ensembl="ensembl_genes", symbol="symbol", entrez="entrez"
)


def save(path: Path, value: int = 0, *more: int) -> None:
    """An image of 8 × 8 pixels, of one band or several."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8, 1 + len(more)), (value, *more), dtype=np.uint8)
    Picture.fromarray(pixels if more else pixels[..., 0]).save(path, quality=100, subsampling=0)


def every(source: Images, root: Path | str) -> list:
    place = Place(str(root))
    return [item for part in source.slices(place) for item in source.read(place, part, place)]


def read(tmp_path: Path, rows: list[str], header: str = HEADER, **options) -> list:
    (tmp_path / "m.tsv").write_text(header + "".join(row + "\n" for row in rows))
    items = every(Images(files="m.tsv", **{"size": 8, "parts": 2, **options}), tmp_path)
    return [item for item in items if not isinstance(item, FileSeen)]


def bands(record: ImageRecord) -> np.ndarray:
    return np.asarray(Picture.open(io.BytesIO(record.image.data)))


def images(items: list) -> list[ImageRecord]:
    return [item for item in items if isinstance(item, ImageRecord)]


def reasons(items: list) -> Counter[str]:
    return Counter(item.reason for item in items if isinstance(item, Rejection))


def test_channels_are_stacked_in_order_with_black_for_the_absent(tmp_path):
    save(tmp_path / "g.png", 10)
    save(tmp_path / "y.png", 40)
    (record,) = read(tmp_path, ["y.png\tP1\tc1\tyellow", "g.png\tP1\tc1\tgreen"])
    assert (record.key, record.image.id, record.image.present) == ("P1", "image_c1", ("protein", "er"))
    assert bands(record)[0, 0].tolist() == [10, 0, 0, 40]
    assert (record.source, record.position) == ("m.tsv", f"byte {len(HEADER)}")


def test_resizing_does_not_let_the_fourth_band_weigh_the_others(tmp_path):
    """A picture library treats the fourth band as transparency, and would blacken what lies under 0."""
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[..., 0] = 100
    pixels[:8, :, 3] = 255
    Picture.fromarray(pixels).save(tmp_path / "rgba.png")
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
    Picture.fromarray(pixels).save(tmp_path / "g.png")
    (record,) = read(tmp_path, ["g.png\tP1\tc1\tgreen"])
    assert (bands(record) == 200).all()


def test_equal_pixels_are_equal_bytes(tmp_path):
    Picture.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "g.png")
    first, second = read(tmp_path, ["g.png\tP1\tc1\tgreen", "g.png\tP1\tc2\tgreen"])
    assert first.image.data == second.image.data


WIDE = "path\tgene\tantibody\tcell_line\tplate\twell\tfield\tchannel\n"


def test_what_is_known_of_an_image_comes_with_it(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    rows = ["a.png\tENSG00000141510.4\tHPA1\t\t7\tC5\t2\tgreen", "b.png\tENSG00000141510.4\t\tU2OS\t7\tC5\t2\tblue"]
    (record,) = read(tmp_path, rows, WIDE, name="hpa")
    image = record.image
    assert (image.id, image.antibody, image.gene, image.cell_line) == ("hpa_7_C5_2", "HPA1", "ENSG00000141510", "U2OS")
    assert record.key == "hpa_ENSG00000141510"


@pytest.mark.parametrize("parts", [1, 7])
def test_a_gene_becomes_its_protein_and_an_unknown_one_an_unpaired_sample(tmp_path, parts):
    save(tmp_path / "a.png")
    (tmp_path / "genes.tsv").write_text(
        "uniprot\tensembl\tsymbol\tid\n"
        "A0A087WT22\tENSG00000141510\tTP53\t7157\nP04637\tENSG00000141510\tTP53\t7157\nQ9NRG9\tENSG1\tAAAS\t8086\n"
    )
    header = "path\tuniprot\tgene\tantibody\tcell\tchannel\n"
    rows = [
        f"a.png\t{accession}\t{gene}\t{antibody}\tc{i}\tgreen"
        for i, (accession, gene, antibody) in enumerate(
            [
                ("", "TP53", ""), ("", "ENSG00000141510.7", ""), ("", "7157", ""), ("", "AAAS", "HPA9"),
                ("P04637-2", "TP53", ""), ("", "NEW1", "HPA1"), ("", "NEW1", "HPA2"), ("", "", "HPA3"),
                ("", "", "HPA3"), ("", "", ""), ("", "H1-10/x y", ""),
            ]
        )
    ]  # fmt: skip
    table = GeneTable(files="genes.tsv", ensembl="ensembl", symbol="symbol", entrez="id")
    items = read(tmp_path, rows, header, genes=table, parts=parts, name="hpa")
    keys = [record.key for record in sorted(images(items), key=lambda each: int(each.image.id.removeprefix("hpa_c")))]
    assert keys[:5] == ["P04637", "P04637", "P04637", "Q9NRG9", "P04637-2"]
    assert keys[5:10] == ["hpa_NEW1", "hpa_NEW1", "hpa_HPA3", "hpa_HPA3", "hpa_c9"]
    assert keys[10].startswith("hpa_H1-10-x-y-")
    (refused,) = [item for item in items if isinstance(item, Rejection)]
    assert (refused.reason, refused.key, refused.source) == ("ambiguous_gene", "P04637", "genes.tsv")
    assert refused.detail == "of 2 accessions P04637, not A0A087WT22"


def test_keys_of_the_unpaired_are_safe_short_and_never_the_same():
    names = ["c1", "a b", "a-b", "a/b", "A" * 200, "A" * 201, "é", "ENSG1;ENSG2", "../x"]
    keys = [unpaired("hpa", name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(KEY.fullmatch(key) and len(key) <= MAX_KEY for key in keys)
    assert keys[0] == "hpa_c1"


def test_columns_may_have_other_names_and_one_that_was_named_must_be_there(tmp_path):
    save(tmp_path / "g.png")
    rows, header = ["g.png,P1,c1,green"], "file,acc,id,stain\n"
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress((header + rows[0]).encode()))
    columns = ImageColumns(path="file", accession="acc", cell="id", channel="stain")
    (record,) = images(every(Images(files="m.csv.gz", columns=columns, size=8), tmp_path))
    assert (record.key, record.image.id, record.position) == ("P1", "image_c1", "line 2")
    with pytest.raises(SourceError, match=r"no column \['gene'\]"):
        every(Images(files="m.csv.gz", columns=columns.model_copy(update={"gene": "gene"})), tmp_path)


def test_a_manifest_of_paths_alone_takes_everything_else_from_the_names(tmp_path):
    for name in ("7_C5_1_green.png", "7_C5_1_blue.png", "7_C5_2_green.png", "sub/x_green.png", "sub/x_red.png"):
        save(tmp_path / name)
    rows = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")]
    found = {record.image.id: record.image.present for record in images(read(tmp_path, rows, "path\n"))}
    assert found == {
        "image_7_C5_1": ("protein", "nucleus"),
        "image_7_C5_2": ("protein",),
        "image_sub/x": ("protein", "microtubules"),
    }


@pytest.mark.parametrize("parts", [1, 3, 16])
def test_rows_of_a_cell_meet_however_they_are_shuffled_and_however_many_tasks_there_are(tmp_path, parts):
    for channel in ("green", "blue", "red"):
        save(tmp_path / f"{channel}.png", len(channel))
    rows = [
        f"{channel}.png\tP{cell % 5}\tc{cell}\t{channel}" for channel in ("red", "green", "blue") for cell in range(40)
    ]
    found = images(read(tmp_path, rows, parts=parts))
    assert sorted(record.image.id for record in found) == sorted(f"image_c{cell}" for cell in range(40))
    assert {record.image.present for record in found} == {("protein", "nucleus", "microtubules")}


def test_a_large_manifest_is_cut_into_more_tasks_and_each_holds_its_own_rows_alone(tmp_path):
    rows = (f"{'x' * 200}/{i}_green.png\tP{i}\t{'cell' * 60}{i}\tgreen\n" for i in range(40_000))
    (tmp_path / "m.tsv").write_text(HEADER + "".join(rows))
    source, place = Images(files="m.tsv", size=8), Place(str(tmp_path))
    parts = source.slices(place)
    size = (tmp_path / "m.tsv").stat().st_size
    assert len(parts) > source.parts and [parts[0].begin, parts[-1].end] == [0, size]
    assert all(one.end == other.begin for one, other in pairwise(parts))
    refused = [item for item in source.read(place, parts[1], place) if isinstance(item, Rejection)]
    assert reasons(refused) == {"missing_image": len(refused)}
    assert 0.8 < len(refused) * len(parts) / 40_000 < 1.2


HPA = {
    "36985/495_A11_1_green.jpg": (0, 90, 0),
    "36985/495_A11_1_blue.jpg": (0, 0, 60),
    "36985/495_A11_1_blue_red_green.jpg": (30, 91, 61),
    "36985/495_A11_2_blue_red_green.jpg": (30, 90, 60),
    "archive/7/7_C5_1_yellow.png": (40, 40, 0),
    "archive/7/7_C5_1_red_yellow.png": (40, 40, 0),
    "archive/7/7_C5_1_selected.png": (1, 1, 1),
}


def test_files_named_as_the_atlas_names_them_need_no_manifest(tmp_path):
    for name, value in HPA.items():
        save(tmp_path / name, *value)
    (tmp_path / "samples.csv").write_text(
        "if_plate_id,position,sample,antibody,ensembl_ids\n7,C5,1,HPA005910,ENSG00000011007\n"
    )
    source = Images(files=("36985/*.jpg", "archive/**/*.png"), name="hpa", size=8, slice=2, metadata="samples.csv")
    assert [len(part.names) for part in source.slices(Place(str(tmp_path)))] == [3, 3, 1]
    items = every(source, tmp_path)
    first, second, third = sorted(images(items), key=lambda record: record.image.id)
    assert [record.key for record in (first, second, third)] == ["hpa_36985", "hpa_36985", "hpa_ENSG00000011007"]
    assert [record.image.antibody for record in (first, second, third)] == ["36985", "36985", "HPA005910"]
    assert np.abs(bands(first)[0, 0].astype(int) - (90, 60, 30)).max() <= 2  # red is in the picture of several alone
    assert np.abs(bands(second)[0, 0].astype(int) - (90, 60, 30)).max() <= 2
    assert third.image.present == ("er",)
    assert reasons(items) == {"mixed_colours": 1, "unknown_name": 1}
    save(tmp_path / "36985/495_A11_1_red.jpg", 20, 0, 0)
    assert reasons(every(source, tmp_path)) == {"mixed_colours": 1, "unknown_name": 1, "redundant_file": 1}
    with pytest.raises(SourceError, match="does not end in one of the `channels`"):
        every(source.model_copy(update={"on_error": "stop"}), tmp_path)


def test_a_grey_file_whose_name_tells_of_three_colours_is_refused(tmp_path):
    save(tmp_path / "495_A11_2_blue_red_green.png", 9)
    (refused, *_) = [item for item in every(Images(files="*.png"), tmp_path) if isinstance(item, Rejection)]
    assert (refused.reason, refused.source) == ("unreadable_image", "495_A11_2_blue_red_green.png")
    assert "1 bands, and its name tells of three colours" in refused.detail


def test_what_is_missing_damaged_or_not_mapped(tmp_path):
    save(tmp_path / "g.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "g.png").read_bytes()[:40])
    (tmp_path / "text.png").write_text("<!DOCTYPE html>")
    rows = ["no.png\tP1\tc1\tgreen", "bad.png\tP2\tc2\tgreen", "g.png\tP3\tc3\trfp", "text.png\tP4\tc4\tgreen"]
    channels = {"green": "protein", "rfp": ""}
    items = read(tmp_path, rows, channels=channels)
    assert all(isinstance(item, Rejection) for item in items)
    at = len(HEADER)
    assert {(r.key, r.reason, r.source, r.position) for r in items} == {
        ("P1", "missing_image", "m.tsv", f"byte {at}"),
        ("P2", "unreadable_image", "m.tsv", f"byte {at + len(rows[0]) + 1}"),
        ("P3", "unmapped_channel", "m.tsv", f"byte {at + len(rows[0]) + len(rows[1]) + 2}"),
        ("P4", "unreadable_image", "m.tsv", f"byte {at + sum(len(row) + 1 for row in rows[:3])}"),
    }
    assert not any(" at 0x" in item.detail for item in items)
    with pytest.raises(SourceError, match=r"no\.png: [Nn]o such file"):
        read(tmp_path, rows[:1], on_error="stop")
    with pytest.raises(SourceError, match="channel 'rfp'; map it in `channels`"):
        read(tmp_path, rows[2:])
    with pytest.raises(SourceError, match="channel ''; map it in `channels`"):
        read(tmp_path, ["g.png"], "path\n")


def test_a_second_file_of_a_channel_is_refused_and_a_second_row_of_a_file_passed_over(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    first = "a.png\tP1\tc1\tgreen"
    (refused,) = read(tmp_path, [first, "b.png\tP1\tc1\tgreen"])
    assert (refused.reason, refused.key) == ("duplicate_channel", "P1")
    assert refused.position == f"byte {len(HEADER) + len(first) + 1}"
    items = read(tmp_path, [first, first])
    assert len(images(items)) == 1 and reasons(items) == {"duplicate_row": 1}


UNSAFE = ["/etc/passwd", "../secret.png", "sub/../../secret.png", "..", "link.png", "linked/secret.png", "a\0.png"]


@pytest.mark.parametrize("paths", ["manifest", "root"])
@pytest.mark.parametrize("path", UNSAFE)
def test_no_path_leaves_the_root(tmp_path, path, paths):
    outside, root = tmp_path / "outside", tmp_path / "root"
    save(outside / "secret.png", 7)
    save(tmp_path / "secret.png", 7)
    save(root / "in.png", 5)
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "linked").symlink_to(outside)
    (root / "within.png").symlink_to("in.png")
    rows = [f"{path}\tP1\tc1\tgreen", "sub/../in.png\tP2\tc2\tgreen", "within.png\tP3\tc3\tgreen"]
    items = read(root, rows, paths=paths)
    (refused,) = [item for item in items if isinstance(item, Rejection)]
    assert (refused.reason, refused.key, refused.position) == ("unsafe_path", "P1", f"byte {len(HEADER)}")
    assert sorted(record.key for record in images(items)) == ["P2", "P3"]
    assert str(tmp_path) not in refused.detail


def test_paths_beside_the_manifest_may_leave_its_folder_but_not_the_root(tmp_path):
    save(tmp_path / "pictures" / "a.png")
    (tmp_path / "tables").mkdir()
    rows = ["../pictures/a.png\tP1\tc1\tgreen", "../../a.png\tP2\tc2\tgreen"]
    (tmp_path / "tables" / "m.tsv").write_text(HEADER + "\n".join(rows))
    items = every(Images(files="tables/m.tsv", size=8), tmp_path)
    assert [record.key for record in images(items)] == ["P1"]
    assert reasons(items) == {"unsafe_path": 1}


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    items = read(tmp_path, ["pipe.png\tP1\tc1\tgreen", "folder.png\tP2\tc2\tgreen", "\tP3\tc3\tgreen"])
    assert reasons(items) == {"missing_image": 2, "unsafe_path": 1}


def test_links_out_of_the_root_are_refused_under_patterns_too(tmp_path):
    save(tmp_path / "outside" / "1_A1_1_green.png", 7)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "1_A1_1_green.png").symlink_to(tmp_path / "outside" / "1_A1_1_green.png")
    assert reasons(every(Images(files="*.png"), tmp_path / "root")) == {"unsafe_path": 1}


def test_names_that_cannot_be_written_down_are_refused(tmp_path):
    save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.fsencode(tmp_path) + b"/1_A1_1_\xff_green.png")
    (refused,) = every(Images(files="*.png"), tmp_path)
    assert refused.reason == "unknown_name" and refused.source.isascii()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty_file"),
        (HEADER, "empty_manifest"),
        ("<!DOCTYPE html><html>\n", "html_reply"),
        ("file\tuniprot\n", "unparsable_table"),
        (HEADER + "a.png\tP1\n", "unparsable_line"),
        (b"\x80\x04\x95cos\nsystem\n", "unparsable_table"),
        (gzip.compress(HEADER.encode() + bytes(3000), mtime=0)[:-30], "truncated_gzip"),
    ],
)
def test_a_damaged_manifest_stops(tmp_path, content, reason):
    (tmp_path / "m.tsv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SourceError) as stopped:
        every(Images(files="m.tsv"), tmp_path)
    assert stopped.value.reason == reason


def test_a_packed_image_that_expands_without_end_is_refused(tmp_path):
    (tmp_path / "bomb.tif.gz").write_bytes(gzip.compress(bytes(200 << 20), 1))
    (refused,) = read(tmp_path, ["bomb.tif.gz\tP1\tc1\tgreen"])
    assert refused.reason == "too_large" and "128 MiB" in refused.detail
    Picture.fromarray(np.full((8, 8), 3, np.uint8)).save(tmp_path / "x.tif")
    (tmp_path / "good.tif.gz").write_bytes(gzip.compress((tmp_path / "x.tif").read_bytes()))
    (record,) = read(tmp_path, ["good.tif.gz\tP1\tc1\tgreen"])
    assert np.unique(bands(record)).tolist() == [3]


@PACKED
def test_the_real_manifest_is_as_its_rows_say():
    with open(PACK / "images" / "manifest.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    cells = defaultdict(set)
    for row in rows:
        cells[row["uniprot"], row["cell"]].add(YEAST[row["channel"]])
    items = every(Images(files="images/manifest.tsv", paths="root", name="cell", channels=YEAST), PACK)
    found = images(items)
    assert len(found) == len(cells) == 296
    assert {(record.key, record.image.id): set(record.image.present) for record in found} == {
        (key, f"cell_{cell}"): channels - {""} for (key, cell), channels in cells.items()
    }
    assert {record.image.gene for record in found} == {"A1CF", "AAAS", "AAC1", "AAC3", "AAH1", "AAP1"}
    assert reasons(items) == {"unmapped_channel": 240}  # the cytosol's stain
    assert len([item for item in items if isinstance(item, FileSeen)]) == len(rows) - 240 + 1
    again = every(Images(files="images/manifest.tsv", paths="root", name="cell", channels=YEAST, parts=1), PACK)
    assert sorted(r.image.data for r in images(again)) == sorted(r.image.data for r in found)


@PACKED
@pytest.mark.parametrize("column", ["gene", "ensembl_gene"])
def test_real_genes_lead_to_the_accessions_that_the_pack_has_for_them(tmp_path, column):
    with open(PACK / "images" / "manifest.tsv") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["organism"] == "Homo sapiens"]
    lines = [f"{row['path']}\t{row[column]}\t{row['cell']}\t{row['channel']}\n" for row in rows]
    (tmp_path / "m.tsv").write_text("path\tgene\tcell\tchannel\n" + "".join(lines[::2] + lines[1::2]))
    source = Images(files="m.tsv", genes=GENES.model_copy(update={"files": "genes.tsv.gz"}), size=32)
    (tmp_path / "genes.tsv.gz").write_bytes((PACK / GENES.files).read_bytes())
    for row in rows:
        target = tmp_path / row["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((PACK / row["path"]).read_bytes())
    items = every(source, tmp_path)
    expected = {(row["uniprot"], f"image_{row['cell']}") for row in rows}
    assert {(record.key, record.image.id) for record in images(items)} == expected
    (ambiguous,) = [item for item in items if isinstance(item, Rejection)]
    assert (ambiguous.reason, ambiguous.key) == ("ambiguous_gene", "Q9NQ94")


@PACKED
def test_real_fields_need_no_manifest():
    source = Images(files="images/hpa_fields/*.jpg", name="hpa", metadata="images/hpa_sample_metadata.csv", genes=GENES)
    found = images(every(source, PACK))
    assert {record.key for record in found} == {"hpa_800_A6_1", "hpa_89_B5_1"}  # of no sample in the table
    assert all(len(record.image.present) == 4 and bands(record).shape == (128, 128, 4) for record in found)
    assert all(bands(record).reshape(-1, 4).max(axis=0).min() > 150 for record in found)
    cells = images(every(Images(files="images/hpa_cells/*/*.tif", name="hpa", slice=30), PACK))
    assert len(cells) == 56 and all(len(record.image.present) == 3 for record in cells)


def test_genes_need_something_that_names_them(tmp_path):
    save(tmp_path / "7_C5_1_green.png", 5)
    (tmp_path / "genes.tsv").write_text("uniprot\tsymbol\nP04637\tTP53\n")
    source = Images(files="*.png", genes=GeneTable(files="genes.tsv", symbol="symbol"))
    with pytest.raises(ValueError, match=r"7_C5_1_green\.png: .* give `metadata`"):
        source.slices(Place(str(tmp_path)))
    (tmp_path / "m.tsv").write_text("path\tgene\n7_C5_1_green.png\tTP53\n")
    wrong = Images(files="m.tsv", columns=ImageColumns(gene="gene"), genes=GeneTable(files="genes.tsv", symbol="name"))
    with pytest.raises(SourceError, match=r"no column \['name'\] .* in `genes`"):
        every(wrong, tmp_path)


def test_an_object_store_is_read_as_a_folder_is(tmp_path):
    for name in ("a/7_C5_1_green.png", "a/7_C5_1_blue.png"):
        save(tmp_path / name, 5)
    store = Place("memory://images-of-a-test")
    for name in ("a/7_C5_1_green.png", "a/7_C5_1_blue.png"):
        store.write(name, (tmp_path / name).read_bytes())
    store.write(
        "m.tsv",
        b"path\tuniprot\na/7_C5_1_green.png\tP1\na/7_C5_1_blue.png\tP1\na/no_green.png\tP2\n../x_green.png\tP3\n",
    )
    items = every(Images(files="m.tsv", size=8), store.url)
    assert reasons(items) == {"missing_image": 1, "unsafe_path": 1}
    here, there = (images(every(Images(files="a/*.png", size=8), root)) for root in (tmp_path, store.url))
    assert [record.image for record in here] == [record.image for record in there] != []
