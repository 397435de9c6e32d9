"""How an annotation is known: GO's evidence codes, their groups, and ECO ids as GPAD has them.

Groups are those of GO's guide (geneontology.org/docs/guide-go-evidence-codes); high-throughput codes are experimental.
ECO ids are mapped as `gaf-eco-mapping.txt` of evidenceontology/evidenceontology says (CC0): each code's own id, and the
ids that a reference makes of it. An ECO id that is not there stays as it is: it is evidence of some kind, and in no
group. (`gaf-eco-mapping-derived.txt` of the same place has a thousand more: a GPAD source may name it, `eco = "…"`.)
"""

import difflib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated

import pydantic

from data_prep.records import FileSeen
from data_prep.sources.files import SourceError, Stream
from pretrain.places import Place

UNRECORDED = "NR"  # GO's own code for annotations from before evidence was recorded
GROUPS = {
    "experimental": ("EXP", "IDA", "IPI", "IMP", "IGI", "IEP", "HTP", "HDA", "HMP", "HGI", "HEP"),
    "phylogenetic": ("IBA", "IBD", "IKR", "IRD"),
    "computational": ("ISS", "ISO", "ISA", "ISM", "IGC", "RCA"),
    "author": ("TAS", "NAS"),
    "curator": ("IC", "ND"),
    "electronic": ("IEA",),
}
OLDER = {"IMR": "IKR"}  # codes that GO has renamed
CODES = {code for group in GROUPS.values() for code in group} | {UNRECORDED}
_ECO = {
    "EXP": "0000269",
    "IDA": "0000314",
    "IPI": "0000353",
    "IMP": "0000315",
    "IGI": "0000316",
    "IEP": "0000270",
    "HTP": "0006056",
    "HDA": "0007005",
    "HMP": "0007001",
    "HGI": "0007003",
    "HEP": "0007007",
    "IBA": "0000318",
    "IBD": "0000319",
    "IKR": "0000320",
    "IRD": "0000321",
    "ISS": "0000250 0000031",
    "ISO": "0000266",
    "ISA": "0000247",
    "ISM": "0000255",
    "IGC": "0000317 0000354",
    "RCA": "0000245",
    "TAS": "0000304",
    "NAS": "0000303",
    "IC": "0000305",
    "ND": "0000307",
    "IEA": "0000501 0007669 0000256 0000265 0000322 0000323 0000363",
}
ECO = {f"ECO:{number}": code for code, numbers in _ECO.items() for number in numbers.split()}


def _known(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ValueError for what is neither a code nor a group nor an ECO id."""
    for name in wanted:
        if name not in CODES and name not in GROUPS and not name.startswith("ECO:"):
            close = difflib.get_close_matches(name, [*GROUPS, *CODES], n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"groups are {', '.join(GROUPS)}"
            raise ValueError(f"{name!r} is no evidence code and no group of them; {meant}")
    return wanted


Evidence = Annotated[tuple[str, ...], pydantic.AfterValidator(_known)]  # of codes, groups, ECO ids; empty: all


@lru_cache
def expand(wanted: tuple[str, ...]) -> frozenset[str]:
    """The codes that some codes and groups stand for."""
    return frozenset(code for name in wanted for code in GROUPS.get(name, (name,)))


def keeps(code: str, wanted: tuple[str, ...]) -> bool:
    """Whether an annotation of this evidence is wanted; everything is where nothing is named."""
    return not wanted or code in expand(wanted)


def normal(text: str, eco: dict[str, str] = ECO) -> str:
    """An evidence code as a file has it: `IDA`, `IEA:UniProtKB-KW`, an ECO id, or nothing."""
    text = text.strip()
    if text.startswith("ECO:"):
        return eco.get(text, text)
    code = text.partition(":")[0].upper()
    return OLDER.get(code, code) or UNRECORDED


@dataclass(frozen=True)
class Mapping:
    """What a mapping file says: ECO id → code, with the common ids beneath."""

    seen: FileSeen
    codes: dict[str, str] = field(repr=False)


@lru_cache(maxsize=2)  # a worker reads many slices of one source
def read(root: Place, name: str, version: str) -> Mapping:
    """`gaf-eco-mapping-derived.txt`: ECO id, code, perhaps `Default`. version: of the file, which may change."""
    codes = dict(ECO)
    with Stream.open(root, name) as stream:
        for line in stream.whole(16 << 20).decode("utf-8", "replace").splitlines():
            fields = line.split("\t")
            if len(fields) >= 2 and fields[0].startswith("ECO:") and fields[1] in CODES:
                codes[fields[0].strip()] = fields[1].strip()
        if codes == ECO:
            raise SourceError(
                "unparsable_table", f"{name}: no ECO id beyond the common ones; is it the derived mapping?"
            )
        return Mapping(stream.seen(), codes)
