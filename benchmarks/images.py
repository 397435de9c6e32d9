"""Microscope images: files per second, against Pillow.

    python benchmarks/images.py [--quick] [--json FILE]

The pack's images under `$FOURFOLD_PACK`, or those of the sample inside the package. Ours reads the manifest or the
files' names, hashes every file, refuses what it must, and stacks the channels of a cell into one PNG; Pillow opens,
resizes and encodes the same files, one by one. The single cells are tiny, so that what surrounds the decoding shows.
"""

import io
from collections.abc import Iterator

import rows
from pack import settings_of
from PIL import Image as Picture

from data_prep.recipe import roots_of
from data_prep.records import FileSeen, Item
from data_prep.sources import hpa
from data_prep.sources.images import Images
from pretrain.places import Place


def claims(quick: bool) -> list[rows.Row]:
    settings = settings_of(quick)
    roots = roots_of(settings)
    sources = [source for source in settings.sources if isinstance(source, Images)]
    return [_claim(source, roots[source.root or ""], roots[""], 3 if quick else 9) for source in sources]


def _claim(source: Images, root: Place, home: Place, rounds: int) -> rows.Row:
    parts = source.slices(root)

    def items() -> Iterator[Item]:
        for part in parts:
            yield from source.read(root, part, home)

    names = [item.path for item in items() if isinstance(item, FileSeen) and hpa.is_image(item.path)]
    names = [name for name in names if _whole(root.read(name))]

    def ours() -> int:
        assert sum(1 for _ in items()) >= len(names)
        return len(names)

    stacked = "" in source.channels  # a file is an image of several bands

    def pillow() -> int:
        for name in names:
            picture = Picture.open(io.BytesIO(root.read(name)))
            if not stacked:
                picture = (picture.point(lambda value: value * 255) if picture.mode == "F" else picture).convert("L")
            picture.resize((source.size, source.size), Picture.Resampling.BILINEAR).save(io.BytesIO(), "PNG")
        return len(names)

    what = f"{len(names)} image files of {source.name!r} to records"
    return rows.faster(what, rows.race(ours, pillow, rounds), "Pillow, file by file", 0.5, "files/s")


def _whole(data: bytes) -> bool:
    """Whether Pillow can read it: the sample has damaged files too."""
    try:
        Picture.open(io.BytesIO(data)).load()
        return True
    except OSError:
        return False


def main() -> None:
    chosen = rows.options(__doc__).parse_args()
    rows.report(claims(chosen.quick), chosen.json)


if __name__ == "__main__":
    main()
