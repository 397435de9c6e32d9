"""References of a UniProtKB flat file.

One regular expression cuts those of the usual layout into their fields; what has rare identifiers, quotes inside its
title or evidence over several lines goes the general way.
"""

import re
from collections.abc import Iterator
from functools import partial

from data_prep.sources.uniprotkb.entry import Reference

CITED = ("RN", "RP", "RC", "RX", "RG", "RA", "RT", "RL")
USUAL_CITATION = re.compile(
    r"\nRN   \[(\d++)\](?: \{(.*)\})?+\nRP   (.*+(?:\nRP   .*+)*+)(?:\nRC   (.*+(?:\nRC   .*+)*+))?+"
    r"(?:\nRX   (?:MEDLINE=(\d++);(?: |\nRX   ))?+PubMed=(\d++);(?:(?: |\nRX   )DOI=(\S*[^\s;]);)?+(?!.))?+"
    r"(?:\nRG   (.*+(?:\nRG   .*+)*+))?+(?:\nRA   (.*+(?:\nRA   .*+)*+))?+"
    r'(?:\nRT   "([^"]*+)";)?+\nRL   (.*+(?:\nRL   .*+)*+)(?!.|\nR[^N])'
    r"|(\nRN   .*(?:\n(?!RN   \[).*)*)"
)  # number, evidence, RP, RC, the identifiers of most references, RG, RA, RT, RL; or the lines of another
CITATION = re.compile(
    r"\nRN   (?:\[(\d+)\](.*(?:\nRN   (?!\[).*)*+)"
    + "".join(rf"((?:\n{code}   .*)*+)" for code in CITED[1:])
    + r"(?=\nRN|\Z)|(.*))"
)  # number, evidence, then the lines of each code; or a misfit

make = partial(tuple.__new__, Reference)  # half the time of Reference(…)


def parse(block: str) -> tuple[Reference, ...]:
    """All references of an entry. Raises ValueError for lines out of their order."""
    return tuple(
        [
            _reference(*CITATION.findall(lines)[-1])
            if lines
            else make(
                (
                    int(number),
                    evidence,
                    tuple(rp.split("\nRP   ")) if "\n" in rp else (rp,),
                    _tokens(rc.replace("\nRC   ", " ")) if rc else (),
                    (
                        (("MEDLINE", medline), ("PubMed", pubmed), ("DOI", doi))
                        if doi
                        else (("MEDLINE", medline), ("PubMed", pubmed))
                    )
                    if medline
                    else (("PubMed", pubmed), ("DOI", doi))
                    if doi
                    else (("PubMed", pubmed),)
                    if pubmed
                    else (),
                    (_authors(rg, ra) if rg else ra.replace("\nRA   ", " ")).rstrip(";"),
                    _title(title) if "\n" in title else title,
                    rl.replace("\nRL   ", " ") if "\n" in rl else rl,
                )
            )
            for number, evidence, rp, rc, medline, pubmed, doi, rg, ra, title, rl, lines in USUAL_CITATION.findall(
                f"\n{block}"
            )
        ]
    )


def _authors(groups: str, authors: str) -> str:
    groups = groups.replace("\nRG   ", " ")
    return groups + " " + authors.replace("\nRA   ", " ") if authors else groups


def _title(lines: str) -> str:
    title = lines.replace("-\nRT   ", "-").replace("\nRT   ", " ")
    if "\n" in title:
        raise ValueError(f"the title of a reference does not end in its lines: {lines[:60]!r}")
    return title


def _reference(
    number: str, evidence: str, rp: str, rc: str, rx: str, rg: str, ra: str, rt: str, rl: str, misfit: str
) -> Reference:
    """One citation of its blocks of lines, each line still with its prefix."""
    if misfit:
        raise ValueError(f"the lines of a reference are not in their order, RN RP RC RX RG RA RT RL: {misfit[:60]!r}")
    title = rt[6:].replace("-\nRT   ", "-").replace("\nRT   ", " ").rstrip(";")
    return make(
        (
            int(number),
            evidence[2:-1].replace("\nRN   ", " "),
            tuple(rp[6:].split("\nRP   ")) if rp else (),
            _tokens(rc[6:].replace("\nRC   ", " ")) if rc else (),
            tuple([pair for line in rx.split("\nRX   ")[1:] for pair in _identifiers(line)]),
            (rg.replace("\nRG   ", " ") + ra.replace("\nRA   ", " "))[1:].rstrip(";"),
            title[1:-1] if title[:1] == title[-1:] == '"' else title,
            rl[6:].replace("\nRL   ", " "),
        )
    )


def _tokens(line: str) -> tuple[tuple[str, str], ...]:
    """`STRAIN=K12; TISSUE=Brain;` as pairs; what has no token goes on with the text before it."""
    line = line.removesuffix(";")
    if ";" not in line:
        token, _, said = line.partition("=")
        return ((token.lstrip(), said),)
    found: list[tuple[str, str]] = []
    for column in line.split(";"):
        token, equals, said = column.partition("=")
        if equals or not found:
            found.append((token.lstrip(), said))
        else:
            found[-1] = found[-1][0], f"{found[-1][1]};{column}"
    return tuple(found)


def _identifiers(line: str) -> Iterator[tuple[str, str]]:
    """`PubMed=1; DOI=2;`, or `MEDLINE; 1.` before release 42."""
    if "=" not in line:
        database, _, identifier = line.partition("; ")
        yield database.rstrip(";"), identifier.rstrip(".")
        return
    for column in line.split("; "):
        database, _, identifier = column.strip().partition("=")
        if database:
            yield database, identifier.rstrip(";")
