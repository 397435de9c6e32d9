"""One protein as text: everything that a sample has, for the terminal."""

import textwrap
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from data_prep.ontology import Ontology
from data_prep.views.lookup import Found
from pretrain.sample import CHANNELS, About, Function, Image, Sample, Structure

NAMESPACES = ("molecular_function", "biological_process", "cellular_component")
LEVELS = "▁▂▃▄▅▆▇█"  # of confidence; an experiment's residue is the last
DIFFERENT, ABSENT = "×", "·"
BLOCK = 10  # letters between two gaps of a sequence


def sheet(found: Found, terms: Ontology, width: int = 100) -> Iterator[str]:
    """The lines, none longer than `width` where words allow it."""
    sample = found.sample
    yield from _head(found, width)
    if sample.sequence:
        yield from ("", f"sequence  {len(sample.sequence):,} residues")
        yield from _sequence(sample, width)
    if sample.structures:
        yield from ("", f"structures  {len(sample.structures)}")
        for chain in sample.structures:
            yield from _structure(chain, sample.sequence, width)
    if sample.function:
        yield from _function(sample.function, terms, width)
    if sample.images:
        yield from ("", f"images  {len(sample.images)}")
        for image in sample.images:
            yield from textwrap.wrap(picture(image), width, initial_indent="  ", subsequent_indent="    ")


def facts(about: About) -> list[tuple[str, str]]:
    """(what, its value) of what is known besides; what is not is left out."""
    species = f"{about.organism}{f' ({about.taxon})' if about.taxon else ''}".strip()
    state = " and ".join(
        word for word, is_so in (("fragment", about.fragment), ("precursor", about.precursor)) if is_so
    )
    named = (("name", about.name), ("organism", species), ("sequence of a", state))
    lists = (("EC", about.ec), ("genes", about.genes), ("PDB entries", about.pdb), ("took over", about.secondary))
    return [(what, value) for what, value in (*named, *((what, " ".join(each)) for what, each in lists)) if value]


def chain_facts(chain: Structure, sequence: str | None) -> list[str]:
    """What there is to say of a structure, in phrases."""
    first, last = int(chain.residue[0]) + 1, int(chain.residue[-1]) + 1
    whole = f" of {len(sequence):,}" if sequence else ""
    share = f", {len(chain) / len(sequence):.0%}" if sequence else ""
    said = [f"{len(chain):,}{whole} residues ({first:,}–{last:,}{share})"]
    gaps = int((np.diff(chain.residue) != 1).sum())
    said += [f"{gaps} {'gap' if gaps == 1 else 'gaps'}"] * bool(gaps)
    said += [f"identity {chain.identity:.1%}"] if chain.identity is not None else []
    said += [f"{chain.resolution:.2f} Å"] if chain.resolution is not None else []
    if chain.confidence is not None:
        said.append(f"pLDDT {chain.confidence.mean():.1f} ({(chain.confidence < 70).mean():.0%} below 70)")
    if chain.pae is not None:
        said.append(f"expected error {chain.pae.mean():.1f} Å")
    atoms, absent = " ".join(chain.atoms), int((~chain.mask).sum())
    return [*said, f"{atoms}{f', {absent} atoms absent' if absent else ''}"]


def named(function: Function, terms: Ontology) -> dict[str, list[tuple[str, str, str]]]:
    """Namespace → (id, name, evidence codes) of a protein's terms, each once."""
    evidence: defaultdict[str, list[str]] = defaultdict(list)
    for term in function.terms:
        evidence[term.id].append(term.evidence)
    out: dict[str, list[tuple[str, str, str]]] = {name: [] for name in NAMESPACES}
    for id, codes in evidence.items():
        term = terms.terms.get(id)
        space, name = (term.namespace, term.name) if term else ("not in ontology.json", "")
        out.setdefault(space, []).append((id, name, ", ".join(dict.fromkeys(codes))))
    return {space.replace("_", " "): sorted(rows, key=lambda row: row[1]) for space, rows in out.items() if rows}


def picture(image: Image) -> str:
    """What there is to say of an image, in one line."""
    present, missing = (
        [n.upper() if n == "er" else n for n in CHANNELS if (n in image.present) is had] for had in (True, False)
    )
    named = (("antibody", image.antibody), ("gene", image.gene), ("cells", image.cell_line))
    about = [f"{what} {value}" for what, value in named if value]
    channels = ", ".join(present) + (f"; without {', '.join(missing)}" if missing else "")
    return "; ".join([f"{image.id}: {channels}", *about, f"{len(image.data) / 1e3:,.0f} kB of {image.type.upper()}"])


def _head(found: Found, width: int) -> Iterator[str]:
    sample, about = found.sample, facts(found.sample.about)
    yield f"{sample.key}  {found.group.replace('_', ' + ')}"
    yield f"  {found.split} split of {found.name}; {found.shard}, bytes {found.offset:,}–{found.offset + found.size:,}"
    wide = max((len(what) for what, _ in about), default=0)
    for what, value in about:
        yield from textwrap.wrap(
            f"{what:<{wide}}  {value}", width, initial_indent="  ", subsequent_indent=" " * (wide + 4)
        )


def _sequence(sample: Sample, width: int) -> Iterator[str]:
    """Blocks of ten letters, numbered; beneath them what the first structure covers."""
    sequence = sample.sequence or ""
    digits = len(str(len(sequence)))
    row = max((width - digits - 3) // (BLOCK + 1), 1) * BLOCK
    track = coverage(sample.structures[0], sequence) if sample.structures else ""
    for begin in range(0, len(sequence), row):
        yield f"  {begin + 1:>{digits}} {_blocks(sequence[begin : begin + row])}"
        if track:
            yield f"  {'':>{digits}} {_blocks(track[begin : begin + row])}"
    if track:
        confident = sample.structures[0].confidence is not None
        shown = f"{LEVELS[0]}–{LEVELS[-1]} pLDDT" if confident else f"{LEVELS[-1]} resolved"
        yield f"  {'':>{digits}} {sample.structures[0].id}: {shown}, {DIFFERENT} another residue, {ABSENT} absent"


def coverage(chain: Structure, sequence: str) -> str:
    """A sign for each letter of the sequence: what the structure has there."""
    signs = np.full(len(sequence), ABSENT)
    level = np.full(len(chain), 7) if chain.confidence is None else np.clip(chain.confidence / 12.5, 0, 7).astype(int)
    signs[chain.residue] = np.array(list(LEVELS))[level]
    signs[chain.residue[chain.mismatch(sequence)]] = DIFFERENT
    return "".join(signs.tolist())


def _blocks(text: str) -> str:
    return " ".join(text[at : at + BLOCK] for at in range(0, len(text), BLOCK))


def _structure(chain: Structure, sequence: str | None, width: int) -> Iterator[str]:
    said = f"{chain.id}: {'; '.join(chain_facts(chain, sequence))}"
    yield from textwrap.wrap(said, width, initial_indent="  ", subsequent_indent="    ")
    if chain.states:
        yield from textwrap.wrap(f"3Di {chain.states}", width, initial_indent="    ", subsequent_indent="        ")


def _function(function: Function, terms: Ontology, width: int) -> Iterator[str]:
    if function.terms:
        spaces = named(function, terms)
        yield from ("", f"terms  {sum(map(len, spaces.values()))}")
        for space, rows in spaces.items():
            yield f"  {space}"
            for id, name, codes in rows:
                yield f"    {id}  {name}  [{codes}]"
    if function.texts:
        yield from ("", f"texts  {len(function.texts)}")
        for text in function.texts:
            yield f"  {text.origin}"
            for line in text.text.splitlines():
                yield from textwrap.wrap(line, width, initial_indent="    ", subsequent_indent="    ")
