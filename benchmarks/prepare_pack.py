"""Time `fourfold prepare` on the pack, and count what it makes.

    FOURFOLD_PACK=PACK FOURFOLD_EXPANDED=EXPANDED python benchmarks/prepare_pack.py OUT [KEY=VALUE ...]

Any other configuration with `config=FILE`. Memory is the largest resident size seen of any one worker and of the
driver, sampled twice a second.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from data_prep.prepare import PrepareConfig, prepare
from data_prep.shards import Manifest
from pretrain.config import load

GOALS = {"overhead_bytes_per_sample": 1500, "structure_bytes_per_residue": 24}


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
    table = Table("what", "value", "goal", title=f"{manifest.name}: {totals['samples']:,} samples")
    table.add_row("wall time, s", f"{seconds:.0f}", "")
    table.add_row("samples per second", f"{totals['samples'] / seconds:.0f}", "")
    for name, goal in GOALS.items():
        table.add_row(name.replace("_", " "), f"{totals[name]}", f"≤ {goal}")
    table.add_row("data set, MB", f"{totals['bytes'] / 1e6:.1f}", "")
    for who, peak in memory.items():
        table.add_row(f"peak memory of {who}, MB", f"{peak / 1e6:.0f}", "")
    for kind, rows in {"samples": totals["groups"], "with": totals["facets"], "rejected": manifest.rejected}.items():
        table.add_section()
        for name, count in rows.items():
            table.add_row(f"{kind}: {name}", f"{count:,}", "")
    return table


def main(out: str, *overrides: str) -> None:
    config = next((text.removeprefix("config=") for text in overrides if text.startswith("config=")), None)
    rest = [text for text in overrides if not text.startswith("config=")]
    settings = load(PrepareConfig, config or Path(__file__).parent / "pack.toml", rest)
    begin = time.perf_counter()
    with peaks() as memory:
        manifest = prepare(settings, Path(out))
    Console().print(report(manifest, time.perf_counter() - begin, memory))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
