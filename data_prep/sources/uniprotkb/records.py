"""What an entry gives to a data set: sequence, what is known about it, GO terms, sentences, and isoforms if wanted."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from data_prep.records import AnnotationRecord, EntryRecord, Record, Rejection, SequenceRecord, TextRecord
from data_prep.sources.evidence import normal
from data_prep.sources.uniprotkb.entry import Entry, Feature, outer, scientific, taxon
from pretrain.sample import About, Text

EVIDENCE = re.compile(r"\. ?\{ECO:[^{}]*\}(?=\.)| ?\{ECO:[^{}]*\}")  # `text. {ECO:…}.` has one full stop too many
NOTE = r"(?:Ref\.\d+|PubMed:\d+|By similarity|Probable|Potential|Microbial infection)"
CITATION = re.compile(rf" ?\({NOTE}(?:, {NOTE})*\)")
BROKEN = re.compile(r"(?<=[^\s-])- (?!(?:and|or|to|versus)\b)")  # a line that ended with a hyphen
NAME = re.compile(r"(?:RecName|SubName): Full=(.{1,2000}?)(?: \{ECO:[^{}]*\})?(?=;(?: |$))")
EC = re.compile(r"\bEC[ =](\d+\.[\dn.-]+)")
GENE = re.compile(r"ENS[A-Z]*G\d{11}\b")
ENSEMBL = ("Ensembl", "EnsemblBacteria", "EnsemblFungi", "EnsemblMetazoa", "EnsemblPlants", "EnsemblProtists")
MOLECULE = re.compile(r"\[([^\]]{1,200})\]: ?")
ALSO = re.compile(r"; ([A-Z](?=[a-z]))")  # `Membrane; Multi-pass membrane protein`
REACTION = re.compile(r"Reaction=(.+?)\.?(?=; *(?:Xref|EC|Evidence|PhysiologicalDirection)=|;? *$)")
ISOFORM = re.compile(r"IsoId=([^;,\s]{1,80}+)[^;]{0,2000}+; *+Sequence=([^;]{1,2000}+);")
SPLICE = re.compile(r"(?:Missing|([A-Z]+) *-> *([A-Z]+))(?= |\.|$)")
MAX_DESCRIPTION = 1 << 16  # characters; that of a long polyprotein has some 10,000


def records(entry: Entry, source: str, position: str) -> Iterator[Record]:
    """All that the entry says, under its primary accession."""
    key = entry.accessions[0]
    yield SequenceRecord(key, source, entry.sequence, position)
    yield EntryRecord(key, source, about(entry), entry.accessions[1:], position)
    if found := terms(entry):
        yield AnnotationRecord(key, source, found, position)
    for text in texts(entry.comments):
        yield TextRecord(key, source, text, position)


def terms(entry: Entry) -> tuple[tuple[str, str], ...]:
    """(GO id, evidence code), each pair once."""
    references = (ref for ref in entry.cross_references if ref[0] == "GO" and len(ref) > 2)
    return tuple({(ref[1], normal(ref[-1] if len(ref) > 3 else "")): None for ref in references})


def about(entry: Entry) -> About:
    """Names, flags and identifiers. Fragment and precursor stand at the end of a description."""
    said = entry.description[:MAX_DESCRIPTION]
    name = NAME.search(said)
    _, stated, flags = entry.description.rpartition("Flags: ")
    if not stated:
        flags = "" if name else said  # before release 14 they were words of the description
    references = entry.cross_references
    genes, others = ensembl(ref[1:] for ref in references if ref[0] in ENSEMBL)
    return About(
        name=name[1] if name else outer(said.rstrip("."))[0].removesuffix(" precursor"),
        organism=scientific(entry.organism),
        taxon=taxon(entry.taxonomy_id[0]) if entry.taxonomy_id else 0,
        fragment="Fragment" in flags,
        precursor="recursor" in flags,
        ec=tuple(dict.fromkeys(number.rstrip(".") for number in EC.findall(said))),
        genes=genes,
        ensembl=others,
        pdb=tuple(dict.fromkeys(ref[1] for ref in references if ref[0] == "PDB")),
        secondary=entry.accessions[1:],
    )


def ensembl(references: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The genes, and all other ids, of references to Ensembl: transcript, protein, gene; or what there is of these.

    The third is the gene in every division, whose ids have no form of their own (`FBgn0260987`, `AT1G01010`); where
    there are fewer (uniprot.org's tables have transcripts alone, releases before 2008 gene and species) it is told by
    its form. Only Ensembl's own gene ids lose their version: a point in another's may be part of the name.
    """
    genes, others = dict[str, None](), dict[str, None]()
    for reference in references:
        ids = [part.partition(" [")[0].strip(". ") for part in reference]  # `ENSG00000141510.18. [P04637-1]`
        for number, id in enumerate(ids):
            if found := GENE.match(id):
                genes[found[0]] = None
            elif number == 2:
                genes[id] = None
            elif number < 2 and " " not in id:  # `Homo sapiens`
                others[id] = None
    return tuple(id for id in genes if id.strip("-")), tuple(id for id in others if id.strip("-"))


def texts(comments: tuple[str, ...]) -> Iterator[Text]:
    """Function, location and catalysed reactions as sentences; `origin` says which."""
    for comment in comments:
        topic, _, said = comment.partition(": ")
        if topic == "FUNCTION" and (said := clean(said)):
            yield Text(said, "uniprot:function")
        elif topic == "SUBCELLULAR LOCATION" and (said := location(said)):
            yield Text(said, "uniprot:subcellular_location")
        elif topic == "CATALYTIC ACTIVITY" and (said := reaction(said)):
            yield Text(said, "uniprot:catalytic_activity")


def clean(comment: str) -> str:
    """A comment without its evidence tags, literature references, doubled spaces and words broken at line ends."""
    said = " ".join(comment.split())
    said = " ".join(CITATION.sub("", EVIDENCE.sub("", said)).split()).removesuffix(";").replace(" .", ".")
    return BROKEN.sub("-", said)


def location(comment: str) -> str:
    """`Cell membrane; Multi-pass membrane protein. Note=More.` → a sentence that says what it is about."""
    molecule, said = _molecule(clean(comment))
    places, _, note = said.partition("Note=")
    where = "; ".join(
        ALSO.sub(lambda found: f", {found[1].lower()}", place.strip())
        for place in places.strip().rstrip(".").split(". ")
        if place
    )
    sentence = f"Subcellular location{molecule and f' of {molecule}'}: {where}." if where else ""
    return " ".join(part for part in (sentence, note.strip()) if part)


def reaction(comment: str) -> str:
    """The equation, as a sentence."""
    molecule, said = _molecule(clean(comment))
    found = REACTION.search(said)
    equation = (found[1] if found else said).strip().rstrip(".;")
    if not equation:
        return ""
    return f"Catalyzes{molecule and f', as {molecule},'} the reaction {equation}." if found else f"{equation}."


def _molecule(said: str) -> tuple[str, str]:
    """`[Isoform 2]: text` → `isoform 2`, text."""
    found = MOLECULE.match(said)
    if not found:
        return "", said
    name = found[1]
    return name.replace("Isoform ", "isoform ", 1) if name.startswith("Isoform ") else name, said[found.end() :]


def isoforms(entry: Entry, source: str, position: str) -> Iterator[Record | Rejection]:
    """The other sequences of the entry, each under its own accession, made from its splice variants."""
    known = about(entry)
    of = replace(About(), name=known.name, organism=known.organism, taxon=known.taxon, genes=known.genes)
    variants = {each.id: each for each in entry.features if each.type in ("VAR_SEQ", "VARSPLIC") and each.id}
    for comment in entry.comments:
        for key, sequence in ISOFORM.findall(comment) if comment.startswith("ALTERNATIVE PRODUCTS:") else ():
            if sequence == "Displayed":
                continue
            names = [name.strip() for name in sequence.split(",")]
            if not names[0].startswith("VSP_"):  # `External`: another entry has it; `Not described`
                yield Rejection("isoform_without_sequence", key, source, f"Sequence={sequence}", position)
                continue
            try:
                built = splice(entry.sequence, [variants[name] for name in names])
            except (KeyError, ValueError) as error:
                yield Rejection("isoform_mismatch", key, source, f"{sequence}: {error}", position)
                continue
            yield SequenceRecord(key, source, built, position)
            yield EntryRecord(key, source, of, (), position)


def splice(sequence: str, variants: list[Feature]) -> str:
    """The sequence with each variant in its place. Raises ValueError where they do not fit it, or each other."""
    parts, at = [], 0
    for each in sorted(variants, key=lambda each: str(each.begin).rjust(9)):
        said = each.qualifiers.get("note") or each.qualifiers.get("description", "")
        found = SPLICE.match(said)
        if not isinstance(each.begin, int) or not isinstance(each.end, int) or not found:
            raise ValueError(f"{each.id} at {each.begin}..{each.end} says {said[:60]!r}")
        if each.begin <= at or each.end > len(sequence):
            raise ValueError(f"{each.id} at {each.begin}..{each.end} overlaps another, or leaves the sequence")
        if found[1] and found[1] != sequence[each.begin - 1 : each.end]:
            raise ValueError(f"{each.id} replaces {found[1][:20]}…, which is not what stands at {each.begin}")
        parts += [sequence[at : each.begin - 1], found[2] or ""]
        at = each.end
    return "".join([*parts, sequence[at:]])
