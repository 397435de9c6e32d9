"""The model card: what a model is, was made of, is worth, and may be used for, from the records of its own run."""

import math
from collections.abc import Collection
from typing import Any

from pretrain.evaluation.history import History
from pretrain.sample import Modality

USE = """```python
import fourfold

model = fourfold.load("path/to/this/folder")
embeddings = model.embed(fourfold.read("{proteins}"))
```"""
READABLE = {Modality.SEQUENCE: "proteins.fasta", Modality.STRUCTURE: "folder/of/structures"}

SOURCE_COLUMNS = ["source", "path", "records", "release", "licence"]
RECORDS = {
    Modality.SEQUENCE: ("sequence",),
    Modality.STRUCTURE: ("structure",),
    Modality.FUNCTION: ("annotation", "text"),
    Modality.IMAGE: ("image",),
}  # what a source's records of a modality are called in the manifest


def card(about: dict[str, Any], identity: dict[str, Any], manifest: dict[str, Any], history: History) -> str:
    """Markdown. about: the folder's config. identity: the checkpoint's. An empty manifest: the data is not here."""
    kind, data, seen = about["model"]["kind"], identity["data"], about["modalities"]
    several = len(seen) > 1
    shown = {**manifest, "sources": _of(manifest, seen)} if manifest.get("sources") else manifest
    parts = [
        f"---\nlicense: apache-2.0\ntags: [protein, {'multimodal' if several else seen[0]}, {kind}]\n---",
        f"# {kind.upper()}{'' if several else f' ({seen[0]})'}, trained on {data['name']}",
        f"A {'multimodal protein model' if several else 'protein model of one modality'}: {_list(seen)}."
        + (" Any of them may be absent." if several else "")
        + f" Made with Fourfold {about['fourfold']}.",
        "## Use",
        USE.replace("{proteins}", next((READABLE[m] for m in READABLE if m in seen), "prepared/data/set")),
        _dimensions(about, history),
        "## Data",
        *_data(data, shown, len(manifest.get("sources", [])) - len(shown.get("sources", []))),
        "## Encoders",
        *_encoders(about["identity"]),
        "## Held-out results",
        *_results(history, about["step"]),
        "## Licence",
        *_licence(shown),
    ]
    return "\n\n".join(parts) + "\n"


def _dimensions(about: dict[str, Any], history: History) -> str:
    size, trained = about["parameters"], about["weights"]
    facts = [
        f"{size['model']:,} trained parameters and {size['encoders']:,} frozen ones, stored as {trained['dtype']}",
        f"{about['step']:,} training steps"
        + (f", resumed {len(history.resumes)} time(s)" if history.resumes else "")
        + _chosen(about)
        + (f"; begun with weights of {about['start_from']}" if about.get("start_from") else ""),
        f"weights SHA-256 `{trained['sha256']}`",
        *_labels(about["model"].get("objective") or {}),
    ]
    return "\n".join(f"- {fact}" for fact in facts)


def _labels(objective: dict[str, Any]) -> list[str]:
    """What a supervised model tells."""
    if objective.get("kind") != "supervised":
        return []
    of = f" of {objective['classes']} classes" if objective["classes"] else ""
    return [f"`model.predict(proteins)` tells the labels that it has learnt: {objective['task']}{of}"]


def _chosen(about: dict[str, Any]) -> str:
    """Which of the run's checkpoints this is."""
    which, best = (about.get("checkpoint", {}).get(name) for name in ("chosen", "best"))
    if best and best["step"] == about["step"]:
        return f"; of the run's checkpoints the one with the lowest validation loss ({best['loss']:.4f})"
    return "; the run's newest checkpoint" if which == "last" else "; a checkpoint chosen by its step" if which else ""


def _of(manifest: dict[str, Any], modalities: Collection[str]) -> list[dict[str, Any]]:
    """The sources that gave any record of these modalities, or do not say what they gave."""
    kinds = {kind for modality in modalities for kind in RECORDS[Modality(modality)]}
    return [
        source
        for source in manifest["sources"]
        if not isinstance(source.get("records"), dict) or kinds & source["records"].keys()
    ]


def _data(data: dict[str, Any], manifest: dict[str, Any], others: int) -> list[str]:
    """others: how many sources of the data set are left out, for they gave nothing that the model takes."""
    name = f"Data set **{data['name']}**, manifest SHA-256 `{data['manifest_sha256']}`."
    if not manifest:
        return [name, "Its folder was not there when this card was written, so counts and sources are missing here."]
    splits = manifest["splits"]
    lines = []
    for split, groups in splits.items():
        counts = {m: sum(g["samples"] for n, g in groups.items() if m in n.split("_")) for m in Modality}
        total = sum(group["samples"] for group in groups.values())
        lines.append([split, total, *counts.values()])
    return [
        name,
        _table(["split", "proteins", *Modality], lines),
        *([_table(SOURCE_COLUMNS, [list(row) for row in source_rows(manifest)])] if manifest.get("sources") else []),
        *([f"Sources that gave nothing that this model takes, and are left out here: {others}."] if others else []),
        *source_notes(manifest),
    ]


def source_rows(manifest: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """SOURCE_COLUMNS of each of the manifest's sources, as text; – where it says nothing."""
    rows = []
    for source in manifest.get("sources", []):
        path, records = source.get("path", ""), source.get("records", "–")
        kind = str(source.get("kind", "?")) + (f" ({source['name']})" if source.get("name") else "")
        paths = path if isinstance(path, str) else ", ".join(path)
        if isinstance(records, dict):
            records = ", ".join(f"{count:,} {what}" for what, count in records.items())
        rows.append((kind, paths, str(records), source.get("release") or "–", source.get("licence") or "–"))
    return rows


def source_notes(manifest: dict[str, Any]) -> list[str]:
    """What sources say of themselves, such as that images were drawn; each once."""
    return list(dict.fromkeys(str(source["note"]) for source in manifest.get("sources", []) if source.get("note")))


def _encoders(identity: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        [modality, one.get("kind") or one.get("id", "?"), one.get("weights", "?"), one.get("width", "?"), _short(one)]
        for modality, one in identity.items()
    ]
    parts = [_table(["modality", "encoder", "weights", "width", "SHA-256"], rows)]
    untrained = [name for name, one in identity.items() if str(one.get("weights", "")).startswith("random")]
    if untrained:
        parts.append(
            f"**Random weights: {_list(untrained)}.** These encoders were never trained; they are fixed random maps of "
            "their input. Take this model as a demonstration."
        )
    return parts


def _results(history: History, step: int) -> list[str]:
    """Of the last validation until the model's own step: later ones were of other weights."""
    until = [record for record in history.validations if record["step"] <= step]
    if not until:
        return ["No validation was logged: nothing is known of what this model is worth."]
    last = until[-1]
    losses = [[name, f"{value:.4f}"] for name, value in last.get("losses", {}).items()]
    pairs = [
        [
            pair.replace("-", " – "),
            *(f"{found[part]:.3f}" for part in ("recall", "forward", "backward", "chance")),
            found["n"],
            f"{found['median_rank']:g}",
        ]
        for pair, found in last.get("retrieval", {}).items()
    ]
    parts = [f"Validation at step {last['step']:,}, {last.get('samples', '?')} proteins."]
    if losses:
        parts.append(_table(["loss", "mean"], losses))
    if "residue" in last.get("losses", {}):
        told = math.exp(last["losses"]["residue"])
        parts.append(f"Perplexity of hidden residues: {told:.2f} (20 is a guess among all alike).")
    if pairs:
        k = next(iter(last["retrieval"].values()))["k"]
        parts += [
            f"Retrieval: recall at {k} by cosine, each modality encoded alone; chance is what a random order reaches. "
            "Ties count against the query, and equal texts are positives of each other.",
            _table(["pair", f"R@{k}", "there", "back", "chance", "N", "median rank"], pairs),
        ]
    return parts


def _licence(manifest: dict[str, Any]) -> list[str]:
    every = list(dict.fromkeys(str(s["licence"]) for s in manifest.get("sources", []) if s.get("licence")))
    named = [one for one in every if not any(one != other and one in other for other in every)]
    asks = f" Its data came under {_list(named)}: give their sources credit as those ask." if named else ""
    return [
        "The weights trained here are under Apache-2.0." + asks,
        "Encoders with weights of others, trained on or not, keep the licences of those.",
    ]


def _table(columns: list[Any], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|").replace("\n", " ")


def _short(one: dict[str, Any]) -> str:
    return f"`{str(one['sha256'])[:12]}`" if one.get("sha256") else "–"


def _list(names: list[Any]) -> str:
    *most, last = [str(name) for name in names]
    return f"{', '.join(most)} and {last}" if most else last
