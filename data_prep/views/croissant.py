"""A data set for machines: `croissant.json`, JSON-LD as MLCommons' Croissant 1.1 has it. Made of the manifest alone.

Files and their hashes, what a sample's members hold, and tables (coverage, tensors) as inline records. Members of
shards are reached through the shards; the format knows no safetensors, so tensors are told in a table.
"""

import json
from typing import Any

from data_prep.views.card import groups, ordered, summary
from pretrain.data.index import MANIFEST

LISTED = 2_000  # shards that are described one by one; of a larger data set they are described by pattern
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
BESIDE = {
    "ontology.json": ("application/json", "The Gene Ontology's terms: names, definitions, parents."),
    "rejected.jsonl": ("application/jsonlines", "What is not in the data set, and why."),
}
TENSORS = (
    ("sequence", "uint8", "L", "One-letter codes, ASCII."),
    ("{i}.xyz", "int16 or int32", "R × atoms × 3", "Backbone coordinates of structure i, 0.01 Å about their centroid."),
    ("{i}.mask", "uint8", "R × atoms", "1 where an atom is present; absent where all are."),
    ("{i}.letters", "uint8", "R", "The chain's own residues; absent where they equal the sequence's."),
    ("{i}.confidence", "uint8", "R", "pLDDT, 0–100; of predicted models."),
    ("{i}.states", "uint8", "R", "Letters of the 3Di alphabet."),
    ("{i}.pae", "uint8", "R × R", "Predicted aligned error, Å."),
    ("__metadata__.sample", "JSON", "", "key; structures (id, atoms, runs of residues, resolution, identity); terms "
     "(GO id, evidence); texts (text, origin); images (id, channels present); about (name, organism, …)."),
)  # fmt: skip


def croissant(manifest: dict[str, Any], sha256: str) -> bytes:
    """`croissant.json` of the data set whose `manifest.json` has this SHA-256. Equal manifests give equal bytes."""
    splits = manifest["splits"]
    licences = sorted({source["licence"] for source in manifest["sources"] if source["licence"]})
    tree: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": manifest["name"],
        "description": summary(manifest),
        "keywords": ["protein", "multimodal", "sequence", "structure", "function", "image"],
        "isLiveDataset": False,
        "distribution": [*_files(manifest, sha256), *_shards(manifest)],
        "recordSet": [_splits(splits), _coverage(splits), _tensors(), *_samples(manifest), *_rejected(manifest)],
    }
    if licences:
        tree["license"] = licences
    return json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _files(manifest: dict[str, Any], sha256: str) -> list[dict[str, Any]]:
    about = {MANIFEST: ("application/json", "Every shard with its hash, counts, sources, settings.")} | BESIDE
    hashes = {MANIFEST: sha256} | manifest["files"]
    known = {name: about.get(name, ("application/octet-stream", "")) for name in hashes}
    return [_file(name, digest, *known[name]) for name, digest in sorted(hashes.items())]


def _file(path: str, digest: str, kind: str, text: str = "", size: int | None = None) -> dict[str, Any]:
    made = {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "encodingFormat": kind,
        "sha256": digest,
    }
    return made | ({"description": text} if text else {}) | ({"contentSize": f"{size} B"} if size is not None else {})


def _shards(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Shards, and per split the members in them. Shards of a large data set are listed in its manifest alone."""
    splits = manifest["splits"]
    found: list[dict[str, Any]] = []
    count = sum(len(table["shards"]) for tables in splits.values() for table in tables.values())
    for split in ordered(splits):
        paths = []
        for group in groups(splits):
            for shard in splits[split].get(group, {"shards": []})["shards"] if count <= LISTED else ():
                found.append(_file(shard["path"], shard["sha256"], "application/x-tar", size=shard["bytes"]))
                paths.append(shard["path"])
        inside = {"containedIn": [{"@id": path} for path in paths]} if paths else {}
        if not paths:
            text = f"The shards of {split}; {MANIFEST} has each one's SHA-256."
            found.append(_set(f"{split}/shards", f"{split}/*/*.tar", "application/x-tar", text))
            inside = {"containedIn": [{"@id": f"{split}/shards"}]}
        text = f"One member for each protein of {split}: everything but its images."
        found.append(_set(f"{split}/members", "*.safetensors", "application/octet-stream", text) | inside)
        if any("image" in group.split("_") for group in splits[split]):
            text = f"Microscope images of {split}; bands are protein, nucleus, microtubules, ER."
            found.append(_set(f"{split}/images", "*.png", "image/png", text) | inside)
    return found


def _set(name: str, includes: str, kind: str, text: str) -> dict[str, Any]:
    about = {"@type": "cr:FileSet", "@id": name, "name": name, "description": text}
    return about | {"includes": includes, "encodingFormat": kind}


def _samples(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Record sets of what lies in the shards, two for each split."""
    found = []
    for split in ordered(manifest["splits"]):
        key = _source(f"{split}/members", "filename", r"^(.*)\.safetensors$")
        data = _source(f"{split}/members", "content")
        found.append(
            _records(
                split,
                f"The proteins of {split}.",
                _field(split, "key", "sc:Text", "Accession, or <source>_<id> of what has none.", key),
                _field(
                    split,
                    "sample",
                    "sc:Text",
                    "A safetensors file; the record set `tensors` tells what is in it.",
                    data,
                ),
            )
            | {"key": {"@id": f"{split}/key"}}
        )
        if any("image" in group.split("_") for group in manifest["splits"][split]):
            name = f"{split}_images"
            key, number = (
                _source(f"{split}/images", "filename", pattern)
                for pattern in (r"^(.*)\.\d+\.png$", r"^.*\.(\d+)\.png$")
            )
            picture = _source(f"{split}/images", "content")
            found.append(
                _records(
                    name,
                    f"The microscope images of {split}.",
                    _field(name, "key", "sc:Text", "The protein's key.", key),
                    _field(name, "number", "sc:Integer", "Of the image among the protein's, from 0.", number),
                    _field(name, "image", "sc:ImageObject", "8-bit PNG.", picture),
                )
            )
    return found


def _splits(splits: dict[str, Any]) -> dict[str, Any]:
    urls = {"train": "cr:TrainingSplit", "valid": "cr:ValidationSplit", "test": "cr:TestSplit"}
    rows = [{"splits/name": name, "splits/url": urls.get(name, "cr:Split")} for name in ordered(splits)]
    name, url = _field("splits", "name", "sc:Text", "The folder."), _field("splits", "url", "sc:URL", "Its meaning.")
    table = _records("splits", "The data set's splits.", name, url)
    return table | {"dataType": "cr:Split", "key": {"@id": "splits/name"}, "data": rows}


def _coverage(splits: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {
            "coverage/split": split,
            "coverage/modalities": group.replace("_", "+"),
            "coverage/samples": splits[split][group]["samples"],
            "coverage/residues": splits[split][group]["residues"],
        }
        for group in groups(splits)
        for split in ordered(splits)
        if group in splits[split]
    ]
    table = _records(
        "coverage",
        "Proteins by split and by exactly the modalities that they have.",
        _field("coverage", "split", "sc:Text", "A split's name."),
        _field("coverage", "modalities", "sc:Text", "Of sequence, structure, function, image."),
        _field("coverage", "samples", "sc:Integer", "Proteins."),
        _field("coverage", "residues", "sc:Integer", "Residues of their sequences."),
    )
    return table | {"data": rows}


def _tensors() -> dict[str, Any]:
    names = ("name", "type", "shape", "meaning")
    rows = [{f"tensors/{name}": value for name, value in zip(names, row, strict=True)} for row in TENSORS]
    fields = [_field("tensors", name, "sc:Text", f"The tensor's {name}.") for name in names]
    text = "What a sample's safetensors file may hold; what a protein lacks is absent. L residues, R of structure i."
    return _records("tensors", text, *fields) | {"data": rows}


def _rejected(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    if not manifest["rejected"] or "rejected.jsonl" not in manifest["files"]:
        return []
    about = {
        "reason": "Why it was left out.",
        "key": "The protein's key, or the file's name.",
        "source": "The file that it stood in.",
        "position": "Where in the file.",
        "detail": "What was seen.",
    }
    fields = [
        _field(
            "rejected", name, "sc:Text", text, {"fileObject": {"@id": "rejected.jsonl"}, "extract": {"column": name}}
        )
        for name, text in about.items()
    ]
    return [_records("rejected", "What is not in the data set.", *fields)]


def _records(name: str, text: str, *fields: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": text, "field": list(fields)}


def _field(table: str, name: str, kind: str, text: str, source: dict[str, Any] | None = None) -> dict[str, Any]:
    about = {"@type": "cr:Field", "@id": f"{table}/{name}", "name": name, "dataType": kind, "description": text}
    return about | ({"source": source} if source else {})


def _source(files: str, what: str, regex: str = "") -> dict[str, Any]:
    return {"fileSet": {"@id": files}, "extract": {"fileProperty": what}} | (
        {"transform": {"regex": regex}} if regex else {}
    )
