"""`python -m cluster.takeaway MODEL DATA`: what one does with an exported model, where deepspeed and ray do not exist.

Embeds the data set's proteins, embeds some of them alone again, and searches by protein and by text. Prints JSON.
"""

import importlib.abc
import json
import sys
from typing import Any

import numpy as np

QUERIES = ("ATP-binding protein kinase", "binds DNA in the nucleus", "transports ions across the membrane")
SHOWN = 3


class Blocked(importlib.abc.MetaPathFinder):
    """Stands first in the import system and refuses what an exported model must not need."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("deepspeed", "ray"):
            raise ModuleNotFoundError(f"{name} is blocked in this process")


def main(model: str, data: str) -> dict[str, Any]:
    import fourfold

    loaded = fourfold.load(model)
    proteins = fourfold.read(data)
    embeddings = loaded.embed(proteins)
    chosen = range(0, len(proteins), max(1, len(proteins) // 8))
    alone = max(float(np.abs(loaded.embed([proteins[i]]).fused[0] - embeddings.fused[i]).max()) for i in chosen)
    example = next((protein for protein in proteins if protein.sequence and protein.structures), proteins[0])
    queries: list[tuple[str, Any]] = [(f"protein {example.key}", example)]
    queries += [(f"“{text}”", text) for text in QUERIES]
    searches = []
    for name, query in queries:
        hits = loaded.search(query, embeddings, k=SHOWN)
        searches.append({"query": name, "hits": [(hit.key, hit.score) for hit in hits]})
    return {
        "proteins": len(embeddings),
        "alone": alone,
        "itself_first": searches[0]["hits"][0][0] == example.key,
        "searches": searches,
    }


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    json.dump(main(*sys.argv[1:3]), sys.stdout)
