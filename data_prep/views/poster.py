"""One protein as a web page, or as one picture: everything inline, nothing fetched."""

import base64
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

from data_prep.ontology import Ontology
from data_prep.views import portrait
from data_prep.views.lookup import Found
from data_prep.views.sheet import chain_facts, facts, named, picture
from pretrain.evaluation.page import figure, none, page, section, table, tiles
from pretrain.sample import Function, Image, Sample, Structure

ROW, BLOCK = 60, 10  # letters of a sequence's line, and between its gaps
STYLE = """<style>
.pictures { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(430px,100%),1fr)); gap:14px; margin:16px 0; }
.pictures figure, .planes figure { background:#fff; color:#20242a; } .pictures figcaption { color:#5b6470; }
.pictures figure { max-width:720px; } .pictures img { display:block; width:100%; height:auto; }
.pictures img.small { max-width:420px; margin:auto; }
.planes { display:grid; grid-template-columns:repeat(auto-fill,minmax(150px,1fr)); gap:10px; margin:10px 0 22px; }
.planes figure { padding:0; overflow:hidden; background:#000; border-radius:8px; }
.planes img { display:block; width:100%; height:auto; } .planes figcaption { margin:0; padding:5px 9px; color:#d6d8db; }
.letters { max-height:640px; line-height:1.75; } .letters i { font-style:normal; color:var(--soft); opacity:.55; }
.letters b { font-weight:500; border-radius:2px; color:#14171b; } .letters u { color:var(--warn); font-weight:700; }
dl { display:grid; grid-template-columns:max-content 1fr; gap:2px 18px; margin:18px 0 0; } dt { color:var(--soft); }
dd { margin:0; overflow-wrap:anywhere; } blockquote { margin:10px 0 18px; padding:2px 0 2px 16px;
  border-left:3px solid var(--function); } blockquote p { margin:.2em 0; }
</style>"""


def poster(found: Found, terms: Ontology) -> str:
    """The page. Equal samples give equal pages."""
    sample = found.sample
    parts = [STYLE, *_head(found)]
    if sample.structures:
        parts.append(section("Structure", _structures(sample)))
    if sample.sequence:
        parts.append(section("Sequence", _sequence(sample)))
    if sample.function:
        parts.append(section("Function", *_function(sample.function, terms)))
    if sample.images:
        parts.append(section("Images", *map(_image, sample.images)))
    where = f"{found.shard}, bytes {found.offset:,}–{found.offset + found.size:,}"
    parts.append(f"<footer>{escape(found.split)} split of {escape(found.name)}; {escape(where)}</footer>")
    return page(f"{sample.key} · {found.name}", parts)


def snapshot(sample: Sample) -> bytes:
    """One picture (PNG) of a protein: its first structure, or else its first image. ValueError where it has neither."""
    if sample.structures:
        return portrait.structure(sample.structures[0])
    if sample.images:
        return portrait.channels(sample.images[0])[0][1]
    raise ValueError(f"{sample.key} has neither structure nor image; there is nothing to draw")


def landing(file: Path, key: str, suffix: str) -> Path:
    """Where to write: `file`, or `<key><suffix>` in it if it is a folder."""
    return file / f"{key}{suffix}" if file.is_dir() else file


def _head(found: Found) -> list[str]:
    sample, about = found.sample, facts(found.sample.about)
    function = sample.function or Function()
    counts = (
        (len(sample.sequence or ""), "residues of sequence"),
        (len(sample.structures), "structures"),
        (len({term.id for term in function.terms}), "Gene Ontology terms"),
        (len(function.texts), "texts"),
        (len(sample.images), "images"),
    )
    name = dict(about).get("name", "")
    rows = "".join(f"<dt>{escape(what)}</dt><dd>{escape(value)}</dd>" for what, value in about if what != "name")
    return [
        f"<h1>{escape(sample.key)}</h1>",
        f'<p class="lead">{escape(name or found.group.replace("_", " + "))}</p>',
        f"<dl>{rows}</dl>" if rows else "",
        tiles([(f"{count:,}", what if count != 1 else what.removesuffix("s")) for count, what in counts if count]),
    ]


def _structures(sample: Sample) -> str:
    cards = []
    for chain in sample.structures:
        said = escape("; ".join(chain_facts(chain, sample.sequence)))
        try:
            cards.append(figure(chain.id, _inline(portrait.structure(chain), chain.id), said))
        except ValueError as error:
            cards.append(figure(chain.id, none(str(error)), said))
        if chain.pae is not None:
            title = f"{chain.id}: predicted aligned error"
            cards.append(figure(title, _inline(portrait.errors(chain), title, "small")))
    states = [f"{escape(chain.id)}\n{_rows(chain.states)}" for chain in sample.structures if chain.states]
    shown = "\n\n".join(states)
    more = f'<details><summary>3Di states</summary><pre class="letters">{shown}</pre></details>' if states else ""
    return f'<div class="pictures">{"".join(cards)}</div>{more}'


def _sequence(sample: Sample) -> str:
    sequence = sample.sequence or ""
    if not sample.structures:
        return f'<pre class="letters">{_rows(sequence)}</pre>'
    chain = sample.structures[0]
    note = f"Coloured as {chain.id}; pale where it has nothing, underlined where it has another residue."
    return f'<pre class="letters">{_rows(sequence, _tags(chain, sequence))}</pre><p class="note">{escape(note)}</p>'


def _tags(chain: Structure, sequence: str) -> list[tuple[str, str]]:
    """(opening, closing) tag of each letter."""
    out = [("<i>", "</i>")] * len(sequence)
    tints = np.rint((portrait.colors(chain) * 0.62 + 0.38) * 255).astype(int).tolist()
    different = chain.mismatch(sequence)
    for i, (at, (r, g, b)) in enumerate(zip(chain.residue.tolist(), tints, strict=True)):
        tag = f'<b style="background:#{r:02x}{g:02x}{b:02x}">'
        out[at] = (f"{tag}<u>", "</u></b>") if different[i] else (tag, "</b>")
    return out


def _rows(text: str, tags: list[tuple[str, str]] | None = None) -> str:
    """Numbered lines of blocks; letters of one look share a tag."""
    lines = []
    digits = len(str(len(text)))
    for begin in range(0, len(text), ROW):
        blocks = []
        for at in range(begin, min(begin + ROW, len(text)), BLOCK):
            block = range(at, min(at + BLOCK, len(text)))
            if tags is None:
                blocks.append(escape(text[at : at + BLOCK]))
                continue
            runs = groupby(block, key=lambda i: tags[i])
            blocks.append("".join(f"{tag}{''.join(text[i] for i in run)}{end}" for (tag, end), run in runs))
        lines.append(f"<i>{begin + 1:>{digits}}</i> {' '.join(blocks)}")
    return "\n".join(lines)


def _function(function: Function, terms: Ontology) -> list[str]:
    parts = []
    rows = [
        (f"<code>{escape(id)}</code>", escape(name), escape(space), escape(codes))
        for space, found in named(function, terms).items()
        for id, name, codes in found
    ]
    if rows:
        parts.append(table(("|term", "name", "~namespace", "evidence"), rows))
    for text in function.texts:
        body = "".join(f"<p>{escape(line)}</p>" for line in text.text.splitlines())
        parts.append(f'<h3>{escape(text.origin)}</h3><blockquote lang="en">{body}</blockquote>')
    return parts


def _image(image: Image) -> str:
    try:
        planes = portrait.channels(image)
    except (OSError, ValueError) as error:
        return f"<h3>{escape(picture(image))}</h3>{none(f'It cannot be read: {error}')}"
    named = ((name.upper() if name == "er" else name, data) for name, data in planes)
    cards = (f"<figure>{_inline(data, name)}<figcaption>{name}</figcaption></figure>" for name, data in named)
    return f'<h3>{escape(picture(image))}</h3><div class="planes">{"".join(cards)}</div>'


def _inline(png: bytes, what: str, kind: str = "") -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(what)}"{f" class={kind!r}" if kind else ""} src="data:image/png;base64,{data}">'
