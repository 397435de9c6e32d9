"""The Human Protein Atlas's names and sample tables."""

from pathlib import Path

import pytest

from data_prep.sources.files import SourceError
from data_prep.sources.hpa import Name, SampleColumns, Samples, Stained, colours, is_image, parse
from pretrain.places import Place
from tests.pack import PACK

WORDS = frozenset({"red", "green", "blue", "yellow", "gfp", "rfp"})
HEADER = "if_plate_id,position,sample,antibody,ensembl_ids\n"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/89_B5_1_green.jpg", Name("89_B5_1", "green", "89", "B5", "1")),
        ("800_A12_31_yellow.tif.gz", Name("800_A12_31", "yellow", "800", "A12", "31")),
        ("AAAS/413_A12_1_5_blue.tif", Name("413_A12_1_5", "blue", "413", "A12", "1")),
        (
            "36985/495_A11_1_blue_red_green.jpg",
            Name("495_A11_1", "blue_red_green", "495", "A11", "1", antibody="36985"),
        ),
        ("archive/7/7_C5_1_red.tif", Name("7_C5_1", "red", "7", "C5", "1")),
        ("89_B5_1.png", Name("89_B5_1", "", "89", "B5", "1")),
        ("89_B5_1_selected.jpg", Name("89_B5_1_selected", "")),
        ("y/AAC1_1_rfp_10_gfp.tif", Name("y/AAC1_1_rfp_10", "gfp")),
        ("train/00070df0-bbc3-11e8_green.png", Name("train/00070df0-bbc3-11e8", "green")),
        ("cell_red_green.png", Name("cell_red", "green")),
        ("green.png", Name("green", "")),
        ("_.png", Name("_", "")),
        (".png", Name("", "")),
    ],
)  # fmt: skip
def test_names(path, name):
    assert parse(path, WORDS) == name


def test_what_is_an_image_and_what_a_picture_of_several_colours():
    assert [is_image(name) for name in ("a.JPG", "a.tif.gz", "a.tsv", "a.csv.gz", "png")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert colours("blue_red_green") == {"blue": 2, "red": 0, "green": 1}
    assert not any(colours(channel) for channel in ("green", "red_yellow", "red_red", "", "gfp_rfp"))


def samples(tmp_path: Path, *rows: str, columns: SampleColumns | None = None, header: str = HEADER) -> Samples:
    (tmp_path / "samples.csv").write_text(header + "".join(f"{row}\n" for row in rows))
    return Samples.read(Place(str(tmp_path)), "samples.csv", columns or SampleColumns())


def test_a_field_without_a_row_is_what_its_well_is_if_that_is_one_thing(tmp_path):
    known = samples(tmp_path, "7,C5,1,HPA1,G1", "7,C5,2,HPA1,G1", "8,A1,1,HPA2,G2", "8,A1,2,HPA3,G3")
    assert [known.of("7", "C5", field) for field in ("1", "9")] == [Stained("HPA1", "G1")] * 2
    assert [known.of("8", "A1", field).gene for field in ("1", "2", "3")] == ["G2", "G3", ""]
    assert known.of("9", "A1", "1") == Stained()


def test_columns_may_have_other_names_and_one_that_was_named_must_be_there(tmp_path):
    columns = SampleColumns(plate="p", well="w", gene="symbol", cell_line="line")
    known = samples(tmp_path, "1,A1,TP53,U2OS", columns=columns, header="p,w,symbol,line\n")
    assert known.of("1", "A1", "3") == Stained("", "TP53", "U2OS")
    with pytest.raises(SourceError, match=r"no column \['genes'\]"):
        samples(tmp_path, columns=columns.model_copy(update={"gene": "genes"}), header="p,w,symbol,line\n")
    with pytest.raises(SourceError, match=r"no column \['if_plate_id'\] .* in `metadata_columns`"):
        samples(tmp_path, header="plate,position\n")


@pytest.mark.skipif(not PACK.is_dir(), reason="the pack of real data is not beside this checkout")
def test_the_real_sample_table_and_the_real_names():
    known = Samples.read(Place(str(PACK)), "images/hpa_sample_metadata.csv", SampleColumns())
    assert known.of("7", "C5", "1") == known.of("7", "C5", "77") == Stained("HPA005910", "ENSG00000011007")
    names = [path.relative_to(PACK).as_posix() for path in (PACK / "images").rglob("*") if is_image(path.name)]
    told = [parse(name, WORDS) for name in names]
    assert len(told) == 656 and all(name.channel for name in told)
    assert sum(bool(name.plate) for name in told) == 168 + 8
    assert {name.cell for name in told if name.plate in ("89", "800")} == {"89_B5_1", "800_A6_1"}
