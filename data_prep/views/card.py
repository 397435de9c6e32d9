"""A data set's card: the README.md beside its manifest, for people and for hubs. Made of the manifest alone."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pretrain.sample import Modality

CARD, CROISSANT = "README.md", "croissant.json"
SUMS = "SHA256SUMS"  # of the manifest, and of what is made of it and so cannot stand in it; as `sha256sum -c` reads it
SPLITS = ("train", "valid", "test")
METHODS = {
    "hash": "The split follows from a hash of the key. **It keeps no relatives apart**: proteins of one family stand "
    "in several splits, and scores on held-out data are flattered by that.",
    "cluster": "The split follows clusters of similar sequences: no cluster stands in two splits.",
}
SIZES = {3: "n<1K", 4: "1K<n<10K", 5: "10K<n<100K", 6: "100K<n<1M", 7: "1M<n<10M", 8: "10M<n<100M", 9: "100M<n<1B"}
MANY = {"entry": "entries", "by secondary accession": "by secondary accession", "linked": "of a named gene or antibody"}
READ = """```python
from pretrain.data.dataset import Dataset  # pip install fourfold

dataset = Dataset.open("PATH")
for split, groups in dataset.splits.items():
    for name, group in groups.items():
        sample = dataset.read(split, name, 0)  # .sequence .structures .function .images
```

```python
import webdataset  # any folder of shards; members are named <key>.safetensors and <key>.<i>.png

for item in webdataset.WebDataset("PATH/{split}/{group}/{shard}", shardshuffle=False):
    print(item["__key__"], sorted(item))
```

```python
import json, tarfile
from safetensors import deserialize

with tarfile.open("PATH/{split}/{group}/{shard}") as shard:
    data = shard.extractfile(shard.next()).read()
length = int.from_bytes(data[:8], "little")
about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["sample"])  # key, structures, terms, texts
tensors = dict(deserialize(data))  # sequence (ASCII), 0.xyz (0.01 Å), 0.confidence (pLDDT), 0.states (3Di), …
```"""


def card(manifest: dict[str, Any]) -> str:
    """The card of the data set that `manifest.json` describes. Equal manifests give equal cards."""
    return "\n".join(line.rstrip() for line in _lines(manifest)).rstrip() + "\n"


def sums(files: Mapping[str, bytes]) -> bytes:
    """`SHA256SUMS`: what these files are, as they were written; another version may word a card differently."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())).encode()


def ordered(splits: Iterable[str]) -> list[str]:
    """Split names as people read them."""
    names = set(splits)
    return [name for name in SPLITS if name in names] + sorted(names - set(SPLITS))


def groups(splits: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Names of all modality subsets, fewest modalities first, then in the modalities' order."""
    order = list(Modality)
    names = {group for table in splits.values() for group in table}
    return sorted(names, key=lambda name: (name.count("_"), [order.index(Modality(part)) for part in name.split("_")]))


def summary(manifest: dict[str, Any]) -> str:
    """One sentence."""
    totals = manifest["totals"]
    facets = totals["facets"]
    has = ", ".join(f"{facets[name]:,} with {word}" for name, word in _FACETS.items() if facets.get(name))
    return f"{totals['samples']:,} proteins for multimodal pretraining, any modality absent from any of them: {has}."


_FACETS = {
    "sequence": "a sequence",
    "structure": "structures",
    "terms": "Gene Ontology terms",
    "text": "texts on function",
    "image": "microscope images",
}


def _lines(manifest: dict[str, Any]) -> Iterator[str]:
    totals = manifest["totals"]
    yield from _front(manifest)
    yield from (f"# {manifest['name']}", "", summary(manifest), "")
    yield "## What is in it"
    yield ""
    yield from _coverage(manifest["splits"], totals)
    yield ""
    yield from _table(
        ("", "number", "size"),
        (
            ("residues of sequence", totals["residues"], totals.get("sequence_bytes")),
            ("structures", totals.get("structures", 0), totals.get("structure_bytes")),
            ("Gene Ontology annotations", totals.get("annotations", 0), totals.get("term_bytes")),
            ("texts", totals.get("texts", 0), totals.get("text_bytes")),
            ("images", totals.get("images", 0), totals.get("image_bytes")),
            ("all, with indices", totals["samples"], totals["bytes"]),
        ),
    )
    yield ""
    yield from _origin(manifest)
    yield from _left_out(manifest)
    yield from _split(manifest)
    yield from _made(manifest)
    yield from _reading(manifest)
    yield from _licences(manifest)


def _front(manifest: dict[str, Any]) -> Iterator[str]:
    """What hubs read: YAML, whose strings JSON's are."""
    samples = manifest["totals"]["samples"]
    size = SIZES.get(max(len(str(samples)), 3), "n>1B")
    yield from ("---", f"pretty_name: {json.dumps(manifest['name'])}", "license: other", "tags:")
    yield from ("- biology", "- protein", "- multimodal", "- webdataset", "- croissant", f"size_categories:\n- {size}")
    yield from ("---", "")


def _coverage(splits: dict[str, dict[str, dict[str, Any]]], totals: dict[str, Any]) -> Iterator[str]:
    names = ordered(splits)
    rows = []
    for group in groups(splits):
        counts = [splits[name].get(group, {}).get("samples", 0) for name in names]
        residues = sum(splits[name].get(group, {}).get("residues", 0) for name in names)
        rows.append((group.replace("_", " + "), *counts, sum(counts), residues))
    sums = [sum(table["samples"] for table in splits[name].values()) for name in names]
    rows.append(("**all**", *sums, totals["samples"], totals["residues"]))
    yield from _table(("modalities", *names, "all", "residues"), rows)


def _origin(manifest: dict[str, Any]) -> Iterator[str]:
    yield from ("## Where it comes from", "")
    rows = []
    for source in manifest["sources"]:
        records = ", ".join(_counted(count, kind.replace("_", " ")) for kind, count in source["records"].items())
        what = f"{source['name']} ({source['kind']})" if source["name"] else source["kind"]
        files = f"{', '.join(f'`{path}`' for path in source['path'][:4])} ({source['files']:,})"
        rows.append((what, files, source["release"], records, source["licence"], f"`{source['sha256']}`"))
    if go := manifest["go"]:
        files = f"`{go['path']}` ({go['files']:,})"
        rows.append(("ontology", files, go["release"], f"{go['terms']:,} terms", "", f"`{go['sha256']}`"))
    yield from _table(("source", "files", "release", "records", "licence", "SHA-256"), rows)
    yield from (
        "",
        "The SHA-256 of several files is that of the list of their names and hashes, as `sha256sum` writes it.",
    )
    notes = [
        f"- {source['name'] or source['kind']}: {source['note']}" for source in manifest["sources"] if source["note"]
    ]
    yield from ("", *notes, "") if notes else ("",)


def _left_out(manifest: dict[str, Any]) -> Iterator[str]:
    yield from ("## What was left out, or put together", "")
    rejected = manifest["rejected"]
    if not rejected:
        yield from ("Nothing was rejected.", "")
    else:
        yield from (
            f"{sum(rejected.values()):,} records, files and lines were rejected; `rejected.jsonl` has each, with why.",
            "",
        )
        yield from _table(("reason", "number"), ((name.replace("_", " "), count) for name, count in rejected.items()))
        yield ""
    if joined := {name: count for name, count in manifest["joined"].items() if "/" not in name}:
        yield from _table(
            ("put together", "number"), ((name.replace("_", " "), count) for name, count in joined.items())
        )
        yield ""
    kinds = {
        name.removeprefix("evidence/"): n for name, n in manifest["joined"].items() if name.startswith("evidence/")
    }
    if kinds:
        told = ", ".join(f"{name} {count:,}" for name, count in kinds.items())
        yield from (f"Evidence of the annotations that were kept: {told}.", "")


def _split(manifest: dict[str, Any]) -> Iterator[str]:
    settings = manifest["config"].get("split", {})
    method = str(settings.get("method", ""))
    yield from ("## How it is split", "", METHODS.get(method, f"Method: {method}."), "")
    if settings.get("together"):
        yield from (f"Proteins whose images share {' or '.join(settings['together'])} stand in one split.", "")
    yield from _settings(settings)
    found = {name: value for name, value in manifest["split"].items() if value and name not in settings}
    if found:
        yield from ("What came of it:", "")
        yield from _settings(found)


def _made(manifest: dict[str, Any]) -> Iterator[str]:
    config = manifest["config"]
    yield from (
        "## How it was made",
        "",
        "By `fourfold prepare`, with these settings; `manifest.json` has them all.",
        "",
    )
    for name in ("filters", "join", "describe"):
        if config.get(name):
            yield from (f"`{name}`:", "")
            yield from _settings(config[name])
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    yield from (f"Versions: {versions}. Partitions: {manifest['partitions']:,}.", "")


def _reading(manifest: dict[str, Any]) -> Iterator[str]:
    yield from ("## How to read it", "")
    largest = max(
        (
            (table["samples"], name, group, table)
            for name, found in manifest["splits"].items()
            for group, table in found.items()
        ),
        key=lambda each: (each[0], each[1], each[2]),
        default=None,
    )
    shard = largest[3]["shards"][0]["path"].split("/") if largest else ("train", "sequence", "00000.tar")
    split, group, name = shard
    yield READ.replace("{split}", split).replace("{group}", group).replace("{shard}", name)
    yield from (
        "",
        "`manifest.json` has every shard's SHA-256, `*.index.safetensors` beside a shard where its samples lie,",
        "`ontology.json` the Gene Ontology's terms; `croissant.json` describes the data set for machines.",
        "`fourfold validate PATH` reads it whole and checks all of this.",
        "",
    )


def _licences(manifest: dict[str, Any]) -> Iterator[str]:
    yield from ("## Licences", "")
    yield "The data set is as free as its sources:"
    yield ""
    for source in manifest["sources"]:
        yield f"- {source['name'] or source['kind']}: {source['licence'] or '**not stated**'}"


def _settings(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in sorted(settings.items()):
        yield f"- {name} = `{json.dumps(value, ensure_ascii=False, sort_keys=True)}`"
    yield ""


def _counted(count: int, kind: str) -> str:
    return f"{count:,} {kind if count == 1 else MANY.get(kind, kind + 's')}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Markdown; numbers to the right, bytes (a column called size) in larger units."""
    cells = [[_cell(value, name) for value, name in zip(row, header, strict=True)] for row in rows]
    right = [
        bool(cells) and all(re.fullmatch(r"([\d,.]+( [kMGT]?B)?)?", row[i]) for row in cells)
        for i in range(len(header))
    ]
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join('---:' if number else '---' for number in right)}|"
    yield from (f"| {' | '.join(row)} |" for row in cells)


def _cell(value: Any, name: str) -> str:
    if name == "size" and value is not None:
        for unit in ("B", "kB", "MB", "GB"):
            if value < 1000:
                return f"{value:.3g} {unit}"
            value /= 1000
        return f"{value:,.3g} TB"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
