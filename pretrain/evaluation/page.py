"""The report's sheet: HTML parts and one style, everything inline, nothing fetched."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ground:#fbfaf7; --card:#ffffff; --ink:#20242a; --soft:#666c75; --line:#e5e1d8;
  --sequence:#3a6ea8; --structure:#2b8a74; --function:#b5732a; --image:#9c5089; --plain:#5b6470; --warn:#a8442f; }
@media (prefers-color-scheme: dark) { :root { --ground:#14171b; --card:#1b1f24; --ink:#e7e6e2; --soft:#9aa1ab;
  --line:#2d333b; --sequence:#7fabe0; --structure:#62c0aa; --function:#e0a662; --image:#d48fc1; --plain:#a4acb7;
  --warn:#e58a76; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin:0; background:var(--ground); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",Arial,sans-serif; }
main { max-width:1080px; margin:0 auto; padding:40px 20px 72px; }
h1 { font-size:clamp(1.7rem,4.5vw,2.4rem); line-height:1.15; letter-spacing:-.02em; margin:0 0 10px; font-weight:650; }
h2 { font-size:1.22rem; letter-spacing:-.01em; margin:0 0 4px; font-weight:650; }
h3 { font-size:.92rem; font-weight:600; margin:0 0 6px; }
section { margin-top:44px; padding-top:26px; border-top:1px solid var(--line); }
p { margin:.5em 0 .9em; max-width:68ch; } .lead { font-size:1.07rem; color:var(--soft); }
.note, .none, figcaption { color:var(--soft); font-size:.88rem; } .none { font-style:italic; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:12px; margin:24px 0 0; }
.tile { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px 16px; }
.tile b { display:block; font-size:1.55rem; line-height:1.2; font-weight:650; letter-spacing:-.02em;
  font-variant-numeric:tabular-nums; }
.tile span { color:var(--soft); font-size:.84rem; line-height:1.35; display:block; }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr)); gap:14px; margin:16px 0; }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px 14px 8px;
  min-width:0; } figcaption { margin:6px 0 4px; }
@media (max-width:760px) { section { margin-top:32px; }
  main { padding-top:26px; } }
svg { display:block; width:100%; height:auto; overflow:visible; } svg text { fill:var(--soft); font-size:10.5px; }
svg .grid { stroke:var(--line); stroke-width:1; } svg polyline { fill:none; stroke-linejoin:round; stroke-width:1.9; }
svg .faint { stroke-width:1; opacity:.55; } svg .mark { stroke:var(--warn); stroke-dasharray:3 3; stroke-width:1; }
svg text.mark { stroke:none; fill:var(--warn); } svg .link { stroke:var(--soft); stroke-width:.7; opacity:.4; }
svg .dot { opacity:.85; } svg .ring { fill:none; stroke-width:1.2; opacity:.55; }
.scroll { overflow-x:auto; margin:12px 0; } table { border-collapse:collapse; width:100%; font-size:.91rem; }
th { text-align:left; font-weight:600; color:var(--soft); font-size:.8rem; white-space:nowrap; }
th, td { padding:7px 14px 7px 0; border-bottom:1px solid var(--line); vertical-align:top; }
td.n, th.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; } td.m { vertical-align:middle; }
td.bars { width:38%; min-width:130px; vertical-align:middle; }
.bar { position:relative; display:block; height:12px; border-radius:3px;
  background:color-mix(in srgb,var(--line) 55%,transparent); overflow:hidden; white-space:nowrap;
  font-size:0; }
.bar b { display:inline-block; height:100%; }
.bar i { position:absolute; top:0; bottom:0; width:2px; margin-left:-1px; background:var(--ink); }
.spot { display:inline-block; width:11px; height:11px; border-radius:50%; margin-right:7px; vertical-align:-1px; }
.spot.no { background:none !important; box-shadow:inset 0 0 0 1.3px var(--line); }
.key { display:flex; flex-wrap:wrap; gap:4px 18px; font-size:.86rem; color:var(--soft); margin:8px 0; }
.tag { display:inline-block; font-size:.78rem; font-weight:600; padding:1px 8px; border-radius:99px; color:var(--warn);
  border:1px solid currentColor; white-space:nowrap; } code { font:.88em ui-monospace,SFMono-Regular,Menlo,monospace; }
td { overflow-wrap:break-word; } code { overflow-wrap:anywhere; } td.s, td.s code { white-space:nowrap; }
@media (max-width:760px) { td.w, th.w { display:none; } td.bars { min-width:90px; } }
details { margin:12px 0; } summary { cursor:pointer; color:var(--soft); font-size:.9rem; }
pre { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px; overflow:auto;
  font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace; max-height:420px; }
footer { margin-top:48px; color:var(--soft); font-size:.85rem; }
@media print { section { break-inside:avoid; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; `body` is HTML already."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already. A column's name may begin with its kind: `#` number, `=` bar, `|` not to be wrapped,
    `~` on wide screens only.
    """
    kinds = {"#": "n", "=": "bars", "|": "s", "~": "w"}
    css = [f' class="{kinds[name[0]]}"' if name[:1] in kinds else "" for name in columns]
    names = [name[1:] if name[:1] in kinds else name for name in columns]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(names, css, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, css, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """(figure, what it is) pairs as cards."""
    cards = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in facts
    )
    return f'<div class="tiles">{cards}</div>'


def figure(title: str, drawing: str, caption: str = "") -> str:
    """A card with a drawing; title and caption are text, except that a caption may hold `spot`s."""
    tail = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{drawing}{tail}</figure>"


def spot(color: str, there: bool = True) -> str:
    return f'<span class="spot{"" if there else " no"}" style="background:var({color})"></span>'


def key(entries: Iterable[tuple[str, str]]) -> str:
    """A legend: (colour, label) pairs."""
    return (
        '<div class="key">' + "".join(f"<span>{spot(color)}{escape(text)}</span>" for color, text in entries) + "</div>"
    )


def none(sentence: str) -> str:
    """What stands where a part is missing."""
    return f'<p class="none">{escape(sentence)}</p>'
