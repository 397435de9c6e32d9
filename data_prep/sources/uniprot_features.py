"""Sequence features of a UniProtKB flat file, in both layouts.

Since release 2019_11 qualifiers stand on lines of their own; before, a feature was a row of fixed columns. One regular
expression cuts all features of an entry at once: what runs in Python is once per feature, not once per line.
"""

import re
from functools import lru_cache, partial

from data_prep.sources.uniprot_entry import Feature

INDENT = "FT" + " " * 19
COLUMN = "FT" + " " * 32
GO_ON = rf"((?:\n{INDENT}.*)*+)"
FEATURE = re.compile(
    r"\nFT   (?:(\S+) {2,}(?:([^\s:]+):)?([^\s.:]+)(?:\.\.([^\s.]+))?"
    rf'((?:\n{INDENT}/note="(.+)")?+(?:\n{INDENT}/evidence="(.+)")?+(?:\n{INDENT}/id="(.+)")?+){GO_ON}(?!.)|(.*))'
)  # type, isoform, first, last, the qualifiers of most features, note, evidence, id, what else there is; or a misfit
ROW = re.compile(
    rf"\nFT   (?:(\S+) +(\S+) +(\S+) *(.*){GO_ON}|(.*))"
)  # type, first, last, text, more lines; or a misfit
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


def parse(block: str) -> tuple[Feature, ...]:
    """All FT lines of an entry. Raises ValueError for a position or qualifier that is none."""
    if not block:
        return ()
    if block[13:21] != "        ":
        return tuple([_row(*each) for each in ROW.findall(f"\n{block}")])
    return tuple(
        [
            _feature(type, isoform, first, last, lines + more, misfit)
            if more or misfit
            else make(
                (
                    type,
                    position(first),
                    position(last or first),
                    isoform or None,
                    id or None,
                    ({"note": note, "evidence": evidence} if evidence else {"note": note})
                    if note
                    else ({"evidence": evidence} if evidence else {}),
                )
            )
            for type, isoform, first, last, lines, note, evidence, id, more, misfit in FEATURE.findall(f"\n{block}")
        ]
    )


@lru_cache(1 << 16)
def position(text: str) -> int | str:
    """A residue's number, or text such as `<1`. Looking it up costs half as much as making a number again."""
    if not POSITION.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no position of a feature")
    return int(text) if text.isdecimal() else text


def _feature(type: str, isoform: str, first: str, last: str, lines: str, misfit: str) -> Feature:
    """One with qualifiers that go on over several lines, or rare ones."""
    if misfit:
        raise ValueError(f"FT line {misfit[:60]!r} has no type and position")
    texts: dict[str, str] = {}
    name = ""
    for line in lines.split(f"\n{INDENT}")[1:]:
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
    return Feature(type, position(first), position(last or first), isoform or None, texts.pop("id", None), texts)


def _row(type: str, first: str, last: str, said: str, more: str, misfit: str) -> Feature:
    """One in the layout before 2019_11."""
    if misfit:
        raise ValueError(f"FT line {misfit[:60]!r} has no type, first and last residue")
    id = None
    if more:
        for line in more.split(f"\n{COLUMN}")[1:]:
            if line.startswith("/FTId="):
                id = line[6:].rstrip(".")
            else:
                said += line if said.endswith("-") else f" {line}"
        said = _unspaced(said) if type in SPLICED else said
    return make((type, position(first), position(last), None, id, {"description": said}))


def _unspaced(said: str) -> str:
    """`AB CD -> EF GH (in isoform 2)` without the spaces that line ends have left in its sequences."""
    before, arrow, after = said.partition(" -> ")
    if not arrow or " -> " in after:
        return said
    letters, bracket, rest = after.partition(" (")
    return before.replace(" ", "") + arrow + letters.replace(" ", "") + bracket + rest
