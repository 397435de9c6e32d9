"""One self-contained page on a data set, a run and the model that came of it. What does not exist gets a sentence."""

import json
import os
import platform
from collections import Counter
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

from pretrain.evaluation import figures, page
from pretrain.evaluation.card import SOURCE_COLUMNS, source_notes, source_rows
from pretrain.evaluation.facts import Facts
from pretrain.evaluation.history import History
from pretrain.sample import Modality

SPLITS = ("train", "valid", "test")
EXAMPLES = 3  # rejected items named per reason
PACKAGES = ("torch", "deepspeed", "ray", "transformers", "torch-geometric", "numpy", "safetensors", "gemmi", "pydantic")


def write_report(out: Path, data: Path, run: Path, model: Path) -> Path:
    """Write the page to `out` (an .html file) and return it. data, run, model: folders, also missing or unfinished."""
    facts = Facts.read(data, run, model)
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = out.with_name(f".{out.name}.partial")
    staged.write_text(render(facts), encoding="utf-8")
    os.replace(staged, out)
    return out


def render(facts: Facts) -> str:
    """The page's HTML: a function of the facts and of the installed versions."""
    name = facts.manifest.get("name") or "a data set"
    sections = (_head, _coverage, _rejections, _sources, _training, _retrieval, _map, _search, _encoders, _environment)
    return page.page(f"Fourfold: {name}", [part for build in sections if (part := build(facts))])


def _head(facts: Facts) -> str:
    history, last = facts.history, facts.history.validations[-1] if facts.history.validations else {}
    resumed = f", stopped and resumed at step {' and '.join(map(str, history.resumes))}" if history.resumes else ""
    trained = f"trained for {history.steps[-1]['step']:,} steps{resumed}" if history.steps else "not trained yet"
    kind = str(facts.config.get("model", facts.model.get("model", {})).get("kind", "model")).upper()
    name = facts.manifest.get("name") or "proteins"
    lead = f"{facts.samples:,} proteins, each with any of four modalities; {kind} {trained}."
    tiles = [
        (f"{facts.samples:,}", "proteins in the data set"),
        (f"{len(facts.rejected):,}", "items rejected, each with a reason"),
    ]
    if history.steps:
        tiles.append((f"{history.steps[-1]['step']:,}", "training steps"))
    if facts.model.get("parameters"):
        trained_, frozen = (facts.model["parameters"][part] for part in ("model", "encoders"))
        tiles.append((figures.number(trained_), f"trained parameters, beside {figures.number(frozen)} frozen ones"))
    speeds = [speed for _, speed in history.column("tokens_per_second")]
    if speeds:
        tiles.append((figures.number(sorted(speeds)[len(speeds) // 2]), "tokens per second, median step"))
    if last.get("retrieval"):
        tiles.append(_best_pair(last["retrieval"]))
    title = f"<h1>{escape(name)}: from raw files to a model</h1>"
    return f'<header>{title}\n<p class="lead">{escape(lead)}</p>\n{page.tiles(tiles)}</header>'


def _best_pair(retrieval: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """The headline of retrieval: recall where a random order mostly misses, otherwise the median rank."""
    pair, best = min(retrieval.items(), key=lambda item: item[1]["median_rank"] / item[1]["n"])
    name = pair.replace("-", "–")
    if best["chance"] < 0.5:
        return f"{best['recall']:.0%}", f"{name} recall at {best['k']} of {best['n']}; chance {best['chance']:.0%}"
    middle = (best["n"] + 1) / 2
    return f"{best['median_rank']:g} of {best['n']}", f"median rank, {name}; random order {middle:g}"


def _coverage(facts: Facts) -> str:
    """A row per subset of modalities: dots that say which, a bar that says how many."""
    title = "What the proteins have"
    if not facts.samples:
        return page.section(title, page.none("The data set has not been prepared yet: there is no manifest."))
    groups = Counter({name: 0 for groups in facts.splits.values() for name in groups})
    for counts in facts.splits.values():
        groups.update(counts)
    most = max(groups.values())
    splits = [*(s for s in SPLITS if s in facts.splits), *(s for s in facts.splits if s not in SPLITS)]
    rows = []
    for name, count in sorted(groups.items(), key=lambda item: (-item[1], item[0])):
        has = set(name.split("_"))
        dots = "".join(page.spot(f"--{m}", m in has) for m in Modality)
        by_split = [str(facts.splits[split].get(name, 0)) for split in splits]
        bar = figures.bar(count / most, "--plain", label=f"{count} proteins with {' + '.join(name.split('_'))}")
        rows.append([dots, " + ".join(name.split("_")), bar, f"{count:,}", *by_split])
    each = {m: sum(count for name, count in groups.items() if m in name.split("_")) for m in Modality}
    totals = "; ".join(f"{m}: {count:,} ({count / facts.samples:.0%})" for m, count in each.items())
    legend = page.key([(f"--{m}", str(m)) for m in Modality])
    table = page.table(["|", "~modalities", "=proteins", "#all", *(f"#{split}" for split in splits)], rows)
    method = facts.manifest.get("config", {}).get("split", {}).get("method")
    how = f" The split is by {method} of the key." if method == "hash" else ""
    return page.section(
        title, legend, table, f'<p class="note">With {escape(totals)}. Proteins with one modality count too.{how}</p>'
    )


def _rejections(facts: Facts) -> str:
    title = "What was rejected, and why"
    counts = Counter(facts.manifest.get("rejected", {})) or Counter(
        entry.get("reason", "?") for entry in facts.rejected
    )
    if not counts:
        return page.section(
            title, page.none("Nothing was rejected." if facts.manifest else "Nothing was prepared yet.")
        )
    rows = []
    for reason, count in counts.most_common():
        examples = [_example(entry) for entry in facts.rejected if entry.get("reason") == reason][:EXAMPLES]
        rows.append([escape(reason.replace("_", " ")), f"{count:,}", "<br>".join(examples) or "–"])
    return page.section(title, page.table(["reason", "#count", "for example"], rows))


def _example(entry: dict[str, Any]) -> str:
    name = next((str(entry[field]) for field in ("key", "source") if entry.get(field)), "?")
    detail = next((str(entry[field]) for field in ("detail", "source") if entry.get(field)), "")
    detail = detail if len(detail) <= 160 else detail[:157] + "…"
    return f"<code>{escape(name)}</code> {escape(detail)}"


def _sources(facts: Facts) -> str:
    title = "Where it comes from"
    if not facts.manifest.get("sources"):
        return page.section(title, page.none("The manifest names no sources."))
    rows = [
        [escape(kind), f"<code>{escape(path)}</code>", *map(escape, rest)]
        for kind, path, *rest in source_rows(facts.manifest)
    ]
    notes = (f'<p class="note">{escape(note)}</p>' for note in source_notes(facts.manifest))
    return page.section(title, page.table(SOURCE_COLUMNS, rows), *notes)


def _training(facts: Facts) -> str:
    history, title = facts.history, "Training"
    if not history.steps:
        return page.section(title, page.none("The run has logged no step yet."))
    marks = [(float(step), "resumed") for step in history.resumes]
    charts = [_loss_chart(history, "loss", ("loss",), "--plain", marks)]
    charts += [_loss_chart(history, name, ("losses", name), _color(name), marks) for name in history.losses()]
    for name, path in (
        ("tokens per second", "tokens_per_second"),
        ("gradient norm", "gradient_norm"),
        ("learning rate", "learning_rate"),
    ):
        line = figures.Series(name, history.column(path), "--plain")
        charts.append(page.figure(name, figures.chart(name, [line], marks, zero=True)))
    notes = ["Thin line: training steps. Dots: held-out proteins."]
    if history.resumes:
        notes.append("Dashed: training went on from a checkpoint there.")
    if history.repeated:
        notes.append(f"Steps done again after a stop, shown once: {history.repeated}.")
    if history.damaged:
        notes.append(f"Lines of the log that are no records, left out: {history.damaged}.")
    if not history.validations:
        notes.append("No validation has been logged yet.")
    return page.section(
        title, f'<p class="note">{escape(" ".join(notes))}</p>', f'<div class="charts">{"".join(charts)}</div>'
    )


def _loss_chart(history: History, title: str, path: tuple[str, ...], color: str, marks: list[tuple[float, str]]) -> str:
    trained = [(step, value) for step, value in history.column(*path) if value]  # exactly 0: the step had none to count
    held_out = history.column(*path, validation=True)
    lines = [figures.Series("train", trained, color, "faint"), figures.Series("held out", held_out, color, "dots")]
    return page.figure(title.replace("/", ": "), figures.chart(title, lines, marks))


def _color(name: str) -> str:
    """A term's colour: its modality's, where it is about exactly one."""
    about = [modality for modality in Modality if modality in name]
    return f"--{about[0]}" if len(about) == 1 else "--plain"


def _retrieval(facts: Facts) -> str:
    title = "Retrieval across modalities"
    last = next((record for record in reversed(facts.history.validations) if record.get("retrieval")), None)
    if last is None:
        return page.section(
            title, page.none("No retrieval was measured yet: no validation, or no held-out protein has two modalities.")
        )
    rows = []
    for pair, found in last["retrieval"].items():
        a, b = pair.split("-")
        bar = figures.bar(
            found["recall"], f"--{a}", found["chance"], f"recall {found['recall']:.2f}, chance {found['chance']:.2f}"
        )
        mean, chance, there, back = (f"{found[part]:.0%}" for part in ("recall", "chance", "forward", "backward"))
        rank = f"{found['median_rank']:g} of {found['n']}"
        other = last.get("centred", {}).get(pair)
        centred = (f"{other['recall']:.0%}", f"{other['median_rank']:g}") if other else ("–", "–")
        apart = last.get("alignment", {}).get(pair)
        name = f"{escape(a)} – {escape(b)}"
        rows.append(
            [
                name,
                bar,
                mean,
                chance,
                str(found["n"]),
                there,
                back,
                rank,
                *centred,
                "–" if apart is None else f"{apart:.2f}",
            ]
        )
    k = next(iter(last["retrieval"].values()))["k"]
    columns = [
        "|pair",
        f"=recall at {k}",
        "#mean",
        "#chance",
        "#N",
        "#there",
        "#back",
        "#median rank",
        "#centred",
        "#its rank",
        "#alignment",
    ]
    note = (
        f"Held-out proteins at step {last['step']:,}, each modality encoded alone. There: the second found for the "
        "first; back: the reverse. The tick is what a random order reaches. Ties count against "
        "the query; equal texts are one. Centred: less each modality's mean, as search compares. "
        "Alignment: the mean squared distance of a protein's two, 0 to 4."
    )
    few = min(found["n"] for found in last["retrieval"].values())
    warning = (
        f" With as few as {few} pairs this shows that the path works, not how good the model is." if few < 100 else ""
    )
    if any(found["chance"] > 0.5 for found in last["retrieval"].values()):
        warning += f" Recall at {k} says little where chance is high; the median rank of a random order is (N + 1) / 2."
    parts = [f'<p class="note">{escape(note + warning)}</p>', page.table(columns, rows)]
    return page.section(title, *parts, *_clouds(last.get("embeddings", {})))


def _clouds(embeddings: dict[str, dict[str, Any]]) -> list[str]:
    """How each modality's embeddings lie; nothing where a run of an earlier version did not measure it."""
    if not embeddings:
        return []
    rows = []
    for modality, found in embeddings.items():
        most, rank = min(found["width"], found["n"] - 1), found["effective_rank"]
        label = f"effective rank {rank:.1f} of at most {most}"
        bar = figures.bar(rank / most, f"--{modality}", label=label)
        numbers = (f"{rank:.1f} of {most}", f"{found['spread']:.3f}", f"{found['uniformity']:.2f}", str(found["n"]))
        rows.append([escape(modality), bar, *numbers])
    note = (
        "Effective rank: about how many directions a modality's embeddings use, less their mean, of those that so many "
        "proteins could; near 1 they have collapsed. Spread: how far they lie from their mean, 0 to 1. Uniformity: 0 "
        "for one point, lower the more evenly they cover their sphere."
    )
    columns = ["|modality", "=effective rank", "#rank", "#spread", "#uniformity", "#N"]
    return [f'<p class="note">{escape(note)}</p>', page.table(columns, rows)]


def _map(facts: Facts) -> str:
    title, drawn = "The modalities' embeddings", facts.map
    if drawn is None:
        return page.section(title, page.none("There is no exported model yet, or no data set to embed with it."))
    if not drawn.panels:
        return page.section(title, page.none(drawn.note))
    legend = page.key([(one.color, f"{one.label} ({len(one.points)})") for one in drawn.panels[0].classes])
    panels = [page.figure(one.title, figures.scatter(one.title, one.classes, one.links)) for one in drawn.panels]
    note = f'<p class="note">{escape(drawn.note)}</p>'
    return page.section(title, note, legend, f'<div class="charts">{"".join(panels)}</div>')


def _search(facts: Facts) -> str:
    title, drawn = "Searching with a text", facts.map
    if drawn is None or not drawn.searches:
        return ""
    rows = []
    for search in drawn.searches:
        hits = "<br>".join(_hit(hit.key, hit.score, hit.key == search.key) for hit in search.hits)
        text = search.text if len(search.text) <= 240 else search.text[:237] + "…"
        rows.append([escape(text), hits, f"{search.rank} of {search.among}"])
    note = (
        "Texts of held-out proteins, compared with what the other modalities of each protein say; cosine, best first."
    )
    return page.section(
        title, f'<p class="note">{note}</p>', page.table(["text", "|found", "#rank of its protein"], rows)
    )


def _hit(key: str, score: float, right: bool) -> str:
    return f"<code>{escape(key)}</code> {score:.3f}" + (" ← the protein described" if right else "")


def _encoders(facts: Facts) -> str:
    title, identity = "Encoders", facts.model.get("identity", {})
    if not identity:
        return page.section(title, page.none("No exported model names its encoders yet."))
    rows = []
    for modality in filter(identity.__contains__, Modality):
        one = identity[modality]
        weights = str(one.get("weights", "?"))
        mark = f'<span class="tag">{escape(weights)}</span>' if weights.startswith("random") else escape(weights)
        name = f"{page.spot(f'--{modality}')}{modality}"
        rows.append(
            [
                name,
                escape(str(one.get("kind") or one.get("id", "?"))),
                mark,
                str(one.get("width", "?")),
                f"<code>{str(one.get('sha256', ''))[:12]}</code>",
            ]
        )
    note = ""
    if any(str(one.get("weights", "")).startswith("random") for one in identity.values()):
        note = (
            '<p class="note">Random weights were never trained: such an encoder is a fixed random map of its input.</p>'
        )
    return page.section(title, page.table(["|modality", "encoder", "weights", "#width", "|sha256"], rows), note)


def _environment(facts: Facts) -> str:
    about = [
        f"Python {platform.python_version()}",
        f"{platform.system()} {platform.machine()}",
        f"{os.cpu_count()} CPU cores",
    ]
    versions = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    text = escape(json.dumps(facts.config, indent=1))
    config = f"<details><summary>the run's configuration</summary><pre>{text}</pre></details>"
    return page.section(
        "Environment", f'<p class="note">{escape(" · ".join(about + versions))}</p>', config if facts.config else ""
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
