"""Time `fourfold prepare` on the pack, and count what it makes.

    FOURFOLD_PACK=PACK FOURFOLD_EXPANDED=EXPANDED python benchmarks/prepare_pack.py OUT [KEY=VALUE …] [--json FILE]

`--quick` prepares the sample inside the package, which needs no pack. Memory is the largest resident size seen of any
one worker and of the driver, sampled twice a second.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import rows
from rich.console import Console
from rich.table import Table

from data_prep.prepare import PrepareConfig, prepare
from data_prep.shards import Manifest
from pretrain.config import load


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """Largest resident bytes of the driver and of a Ray worker, while the block runs."""
    seen = {"driver": 0, "worker": 0}
    done = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.5):
            seen["driver"] = max(seen["driver"], me.memory_info().rss)
            for child in me.children(recursive=True):
                try:
                    if child.name().startswith("ray::") or "ray::" in "".join(child.cmdline()[:1]):
                        seen["worker"] = max(seen["worker"], child.memory_info().rss)
                except psutil.Error:
                    continue  # it ended between being listed and being asked

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def report(manifest: Manifest, seconds: float, memory: dict[str, int]) -> Table:
    totals = manifest.totals
    table = Table("what", "value", title=f"{manifest.name}: {totals['samples']:,} samples")
    table.add_row("wall time, s", f"{seconds:.0f}")
    table.add_row("samples per second", f"{totals['samples'] / seconds:.0f}")
    table.add_row("data set, MB", f"{totals['bytes'] / 1e6:.1f}")
    for who, peak in memory.items():
        table.add_row(f"peak memory of {who}, MB", f"{peak / 1e6:.0f}")
    for kind, counts in {"samples": totals["groups"], "with": totals["facets"], "rejected": manifest.rejected}.items():
        table.add_section()
        for name, count in counts.items():
            table.add_row(f"{kind}: {name}", f"{count:,}")
    return table


def main() -> None:
    parser = rows.options(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    chosen = parser.parse_args()
    config = "prepare/sample.toml" if chosen.quick else Path(__file__).parent / "pack.toml"
    settings = load(PrepareConfig, config, chosen.overrides)
    begin = time.perf_counter()
    with peaks() as memory:
        manifest = prepare(settings, chosen.out)
    seconds, totals = time.perf_counter() - begin, manifest.totals
    Console().print(report(manifest, seconds, memory))
    found = [
        rows.within("overhead beside sequences, coordinates, terms, texts and images",
                    totals["overhead_bytes_per_sample"], 1500, "bytes/sample"),
        rows.within("structures on disk", totals["structure_bytes_per_residue"], 24, "bytes/residue"),
        rows.within("peak memory of a worker", memory["worker"] / 2**20, 1024, "MiB"),
        rows.within(f"{totals['samples']:,} samples prepared with {settings.workers} workers", seconds, 600, "s"),
    ]  # fmt: skip
    rows.report(found if memory["worker"] else found[:2], chosen.json)


if __name__ == "__main__":
    main()
