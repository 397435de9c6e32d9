"""Everything that is claimed of preparation, in one table: each source's parser, the pack whole, stored features.

    FOURFOLD_PACK=PACK FOURFOLD_EXPANDED=EXPANDED python benchmarks/prepare.py [--quick] [--only PART …] [--json FILE]

A part is a file of this folder, with `claims`. `--quick` stays under two minutes and leaves out `encode`, which trains.
Without the pack in the environment everything is measured on the sample inside the package.
"""

import time
from collections.abc import Callable

import annotations
import encode
import images
import pack
import rows
import structures
import uniprot

PARTS: dict[str, Callable[[bool], list[rows.Row]]] = {
    "uniprot": uniprot.claims,
    "structures": structures.claims,
    "annotations": annotations.claims,
    "images": images.claims,
    "pack": pack.claims,
    "encode": encode.claims,
}
SLOW = {"encode"}


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be repeated")
    chosen = parser.parse_args()
    found: list[rows.Row] = []
    for name in chosen.only or [name for name in PARTS if not (chosen.quick and name in SLOW)]:
        begin = time.perf_counter()
        found += PARTS[name](chosen.quick)
        print(f"{name}: {time.perf_counter() - begin:.0f} s")
    rows.report(found, chosen.json)


if __name__ == "__main__":
    main()
