"""Sequence features of a UniProtKB flat file, in both layouts.

Since release 2019_11 qualifiers stand on lines of their own; before, a feature was a row of fixed columns. One regular
expression cuts all features of an entry at once: what runs in Python is once per feature, not once per line.
"""

import re
from functools import partial

from data_prep.sources.uniprotkb.entry import Feature

INDENT = "FT" + " " * 19
COLUMN = "FT" + " " * 32
BROKEN, DASHED, SLASHED = f"\n{INDENT}", f"-\n{INDENT}", f"\n{INDENT}/"
BROKEN_ROW, DASHED_ROW = f"\n{COLUMN}", f"-\n{COLUMN}"
GO_ON = rf"(?:\n{INDENT}.*)*+"
USUAL = re.compile(
    r"\nFT   (?:(\S++) {2,}+([^\s.:]++)(?:\.\.([^\s.:]++))?+"
    + "".join(rf'(?:\n{INDENT}/{name}="([^"]++)"(?!.))?+' for name in ("note", "evidence", "id"))
    + rf"(?!.|\n{INDENT})|(.*{GO_ON}))"
)  # type, first, last, the qualifiers of most features; or the lines of another
FEATURE = re.compile(rf"(\S+) {{2,}}(?:([^\s:]+):)?([^\s.:]+)(?:\.\.([^\s.]+))?({GO_ON})")
USUAL_ROW = re.compile(
    rf"\nFT   (?:(\S++) ++(\S++) ++(\S++) *+(.*+(?:\n{COLUMN}(?!/FTId=).*+)*+)"
    rf"(?:\n{COLUMN}/FTId=([^.\n]++)\.?+(?!.))?+(?!\n{INDENT})|(.*{GO_ON}))"
)  # type, first, last, text, id; or the lines of another
ROW = re.compile(rf"(\S+) +(\S+) +(\S+) *(.*)({GO_ON})")
SLASHED_QUALIFIER = re.compile(rf"\n{INDENT}/[a-z_]+=")
QUALIFIER = re.compile(r"/([a-z_]+)=(.*)")
POSITION = re.compile(r"\?|[<>?]?\d+")
KINDS = {  # as XML names them
    "active site": "ACT_SITE",
    "binding site": "BINDING",
    "calcium-binding region": "CA_BIND",
    "chain": "CHAIN",
    "coiled-coil region": "COILED",
    "compositionally biased region": "COMPBIAS",
    "cross-link": "CROSSLNK",
    "disulfide bond": "DISULFID",
    "DNA-binding region": "DNA_BIND",
    "domain": "DOMAIN",
    "glycosylation site": "CARBOHYD",
    "helix": "HELIX",
    "initiator methionine": "INIT_MET",
    "intramembrane region": "INTRAMEM",
    "lipid moiety-binding region": "LIPID",
    "metal ion-binding site": "METAL",
    "modified residue": "MOD_RES",
    "mutagenesis site": "MUTAGEN",
    "non-consecutive residues": "NON_CONS",
    "non-standard amino acid": "NON_STD",
    "non-terminal residue": "NON_TER",
    "nucleotide phosphate-binding region": "NP_BIND",
    "peptide": "PEPTIDE",
    "propeptide": "PROPEP",
    "region of interest": "REGION",
    "repeat": "REPEAT",
    "sequence conflict": "CONFLICT",
    "sequence variant": "VARIANT",
    "short sequence motif": "MOTIF",
    "signal peptide": "SIGNAL",
    "site": "SITE",
    "splice variant": "VAR_SEQ",
    "strand": "STRAND",
    "topological domain": "TOPO_DOM",
    "transit peptide": "TRANSIT",
    "transmembrane region": "TRANSMEM",
    "turn": "TURN",
    "unsure residue": "UNSURE",
    "zinc finger region": "ZN_FING",
}
SPLICED = ("VAR_SEQ", "VARSPLIC")

make = partial(tuple.__new__, Feature)  # a third of the time of Feature(…), and there are a hundred in an entry


class _Positions(dict[str, int | str]):
    """What positions say: a residue's number, or text such as `<1`. Looking one up costs a quarter of reading it."""

    def __missing__(self, text: str) -> int | str:
        if not POSITION.fullmatch(text):
            raise ValueError(f"{text[:40]!r} is no position of a feature")
        said = int(text) if text.isdecimal() else text
        if len(self) < 1 << 16:
            self[text] = said
        return said


POSITIONS = _Positions()


def parse(block: str) -> tuple[Feature, ...]:
    """All FT lines of an entry. Raises ValueError for a position or qualifier that is none."""
    if not block:
        return ()
    positions = POSITIONS
    if block[13:21] != "        ":
        return tuple(
            [
                _row(lines)
                if lines
                else make(
                    (
                        type,
                        positions[first],
                        positions[last],
                        None,
                        id or None,
                        _described(type, said) if "\n" in said else {"description": said},
                    )
                )
                for type, first, last, said, id, lines in USUAL_ROW.findall(f"\n{block}")
            ]
        )
    return tuple(
        [
            _feature(lines)
            if lines
            else make(
                (
                    type,
                    positions[first],
                    positions[last or first],
                    None,
                    id or None,
                    _qualifiers(type, note, evidence)
                    if "\n" in evidence or "\n" in note
                    else ({"note": note, "evidence": evidence} if evidence else {"note": note})
                    if note
                    else ({"evidence": evidence} if evidence else {}),
                )
            )
            for type, first, last, note, evidence, id, lines in USUAL.findall(f"\n{block}")
        ]
    )


def _qualifiers(type: str, note: str, evidence: str) -> dict[str, str]:
    """Those that go on over several lines, which end in the middle of evidence, and between two words elsewhere."""
    if "\n" in note:
        note = _joined(note, " ")
        note = _unspaced(note) if type in SPLICED else note
    if "\n" in evidence:
        evidence = _joined(evidence, "")
    if not note:
        return {"evidence": evidence}
    return {"note": note, "evidence": evidence} if evidence else {"note": note}


def _joined(said: str, gap: str) -> str:
    """Lines without what indents them. Raises ValueError if one of them is more than text."""
    found = (said.replace(DASHED, "-") if gap else said).replace(BROKEN, gap)
    if "\n" in found or (SLASHED in said and SLASHED_QUALIFIER.search(said)):
        raise ValueError(f"qualifier {said[:60]!r} is not in quotes")
    return found


def _described(type: str, said: str) -> dict[str, str]:
    """A description of several lines."""
    said = said.replace(DASHED_ROW, "-").replace(BROKEN_ROW, " ")
    return {"description": _unspaced(said) if type in SPLICED else said}


def _feature(lines: str) -> Feature:
    """One with rare qualifiers, or in an order of its own."""
    if not (parts := FEATURE.fullmatch(lines)):
        raise ValueError(f"FT line {lines[:60]!r} has no type and position")
    type, isoform, first, last, more = parts.groups()
    texts: dict[str, str] = {}
    name = ""
    for line in more.split(f"\n{INDENT}")[1:]:
        if qualifier := QUALIFIER.fullmatch(line):
            name = qualifier[1]
            if name in texts:
                raise ValueError(f"{type} {first} has the qualifier {name} twice")
            texts[name] = qualifier[2]
        elif name:
            texts[name] += line if name == "evidence" or texts[name].endswith("-") else f" {line}"
        else:
            raise ValueError(f"{line[:60]!r} belongs to no qualifier of {type} {first}")
    for name, said in texts.items():
        if len(said) < 2 or not said[0] == said[-1] == '"':
            raise ValueError(f"qualifier {name}={said[:60]} of {type} {first} is not in quotes")
        texts[name] = _unspaced(said[1:-1]) if type in SPLICED else said[1:-1]
    return Feature(type, POSITIONS[first], POSITIONS[last or first], isoform, texts.pop("id", None), texts)


def _row(lines: str) -> Feature:
    """One in the layout before 2019_11, with its lines in an order of its own."""
    if not (parts := ROW.fullmatch(lines)):
        raise ValueError(f"FT line {lines[:60]!r} has no type, first and last residue")
    type, first, last, said, more = parts.groups()
    id = None
    for line in more.split(f"\n{COLUMN}")[1:]:
        if line.startswith("/FTId="):
            id = line[6:].rstrip(".")
        else:
            said += line if said.endswith("-") else f" {line}"
    said = _unspaced(said) if type in SPLICED else said
    return make((type, POSITIONS[first], POSITIONS[last], None, id, {"description": said}))


def _unspaced(said: str) -> str:
    """`AB CD -> EF GH (in isoform 2)` without the spaces that line ends have left in its sequences."""
    before, arrow, after = said.partition(" -> ")
    if not arrow or " -> " in after:
        return said
    letters, bracket, rest = after.partition(" (")
    return before.replace(" ", "") + arrow + letters.replace(" ", "") + bracket + rest
