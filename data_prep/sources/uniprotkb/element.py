"""One `<entry>` element of UniProtKB XML → the `Entry` that its flat-file form would give.

What is not made again: evidence tags, some structured comments (interactions, diseases, …), empty columns of
cross-references other than PDB's, and how lines are broken. The records of an entry are the same from both forms.
"""

from collections.abc import Iterator

from lxml import etree  # type: ignore[attr-defined]  # it has no stubs

from data_prep.sources.evidence import normal
from data_prep.sources.uniprotkb.entry import Dated, Entry, Feature, Later, Reference, verify
from data_prep.sources.uniprotkb.features import KINDS

CLASSES = {"Swiss-Prot": "Reviewed", "TrEMBL": "Unreviewed"}
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
EXISTENCE = ("protein level", "transcript level", "homology", "predicted", "uncertain")
GENE_NAMES = {
    "primary": "Name",
    "synonym": "Synonyms",
    "ordered locus": "OrderedLocusNames",
    "ORF": "ORFNames",
}
OTHER_NAMES = {"allergenName": "Allergen", "biotechName": "Biotech", "cdAntigenName": "CD_antigen", "innName": "INN"}
TOPICS = {"online information": "WEB RESOURCE"}
DOUBTS = {"less than": "<", "greater than": ">", "unknown": "?", "uncertain": "?"}
MOST_MARKS = 1_500_000  # `<` and `=` in an entry, for each of which a tree takes 100 bytes; titin's has some 200,000
PARSER = {
    "resolve_entities": False,
    "load_dtd": False,
    "no_network": True,
    "huge_tree": False,  # at most 256 levels, and 10 MB of text in one place
    "remove_comments": True,
    "remove_pis": True,
    "collect_ids": False,
}


def parse(document: bytes) -> Entry:
    """The entry of a document that has one, its sequence verified.

    Raises ValueError for what is not well-formed or lacks a field, SourceError for a sequence that is not as stated.
    """
    if (marks := document.count(b"<") + document.count(b"=")) > MOST_MARKS:
        raise ValueError(f"{marks} tags and attributes; {MOST_MARKS} are allowed in an entry")
    try:
        (entry,) = etree.fromstring(document, etree.XMLParser(**PARSER))
    except etree.XMLSyntaxError as error:
        raise ValueError(str(error)) from error
    return _Element(entry).entry()


class _Element:
    """lxml's element, without namespaces, whose missing parts are empty."""

    def __init__(self, element) -> None:
        self.of = element
        self.namespace = element.tag[: element.tag.rfind("}") + 1]

    @property
    def tag(self) -> str:
        return self.of.tag[len(self.namespace) :]

    @property
    def text(self) -> str:
        return " ".join((self.of.text or "").split())

    def get(self, name: str, default: str = "") -> str:
        return self.of.get(name, default)

    def all(self, path: str = "*") -> list["_Element"]:
        steps = "/".join(self.namespace + step if step != "*" else step for step in path.split("/"))
        return [_Element(each) for each in self.of.iterfind(steps)]

    def texts(self, path: str) -> list[str]:
        return [text for each in self.all(path) if (text := each.text)]

    def entry(self) -> Entry:
        (sequence,) = self.all("sequence")
        letters = "".join((sequence.of.text or "").split())
        length, checksum = int(sequence.get("length")), sequence.get("checksum").upper()
        verify(letters.encode(), length, checksum)
        version = int(self.get("version", "0"))
        return Entry(
            entry_name=self.texts("name")[0],
            data_class=CLASSES.get(self.get("dataset"), self.get("dataset")),
            accessions=tuple(self.texts("accession")),
            sequence=letters,
            seqinfo=(length, int(sequence.get("mass", "0")), checksum),
            sequence_length=length,
            created=_dated(self.get("created"), 0),
            sequence_update=_dated(sequence.get("modified"), int(sequence.get("version", "0"))),
            annotation_update=_dated(self.get("modified"), version),
            description=" ".join([*self._names(), *_flags(sequence)]),
            gene_name=tuple(_gene(each) for each in self.all("gene")),
            organism=_organism(self.all("organism")[0]) + ".",
            organelle=_organelle(self.all("geneLocation")),
            organism_classification=tuple(self.texts("organism/lineage/taxon")),
            taxonomy_id=tuple(each.get("id") for each in self.all("organism/dbReference")),
            host_organism=tuple(map(_organism, self.all("organismHost"))),
            host_taxonomy_id=tuple(each.get("id") for each in self.all("organismHost/dbReference")),
            references=Later(_references, self.all("reference")),
            comments=tuple(comment for each in self.all("comment") if (comment := _comment(each))),
            cross_references=tuple(_cross_reference(each) for each in self.all("dbReference")),
            keywords=tuple(self.texts("keyword")),
            features=Later(_features, self.all("feature")),
            protein_existence=_existence(self.all("proteinExistence")),
        )

    def _names(self) -> Iterator[str]:
        """The description, part by part, as DE lines have it."""
        for protein in self.all("protein"):
            yield from _naming(
                protein, [each.get("id") for each in self.all("dbReference") if each.get("type") == "EC"]
            )
            for title, path in (("Includes:", "domain"), ("Contains:", "component")):
                for part in protein.all(path):
                    yield title
                    yield from _naming(part, [])


def _naming(protein: _Element, numbers: list[str]) -> Iterator[str]:
    """numbers: EC numbers that old releases state elsewhere."""
    kinds = {"recommendedName": "RecName: ", "alternativeName": "AltName: ", "submittedName": "SubName: "}
    for name in protein.all():
        if title := kinds.get(name.tag):
            parts = {"Full": "fullName", "Short": "shortName", "EC": "ecNumber"}
            told = [f"{title}{kind}={text};" for kind, path in parts.items() for text in name.texts(path)]
            yield from (part.removeprefix(title) if i else part for i, part in enumerate(told))
            if name.tag != "alternativeName" and not name.all("ecNumber"):
                yield from (f"EC={number};" for number in numbers)
                numbers = []
        elif name.tag in OTHER_NAMES:
            yield f"AltName: {OTHER_NAMES[name.tag]}={name.text};"


def _flags(sequence: _Element) -> list[str]:
    flags = ["Precursor;"] if sequence.get("precursor") == "true" else []
    if fragment := sequence.get("fragment"):
        flags.append("Fragment;" if fragment == "single" else "Fragments;")
    return ["Flags:", *flags] if flags else []


def _dated(date: str, version: int) -> Dated | None:
    """`1986-07-21` as `21-JUL-1986`."""
    year, month, day = date.split("-") if date else ("", "", "")
    return (f"{day}-{MONTHS[int(month) - 1]}-{year}", version) if date else None


def _gene(gene: _Element) -> dict[str, str | list[str]]:
    found: dict[str, str | list[str]] = {}
    for kind, title in GENE_NAMES.items():
        if names := [each.text for each in gene.all("name") if each.get("type") == kind]:
            found[title] = names[0] if title == "Name" else names
    return found


def _organism(organism: _Element) -> str:
    """`Homo sapiens (Human)`: the scientific name is the first."""
    first, *others = organism.texts("name")
    return " ".join([first, *(f"({other})" for other in others)])


def _organelle(locations: list[_Element]) -> str:
    told = [" ".join([each.get("type").capitalize(), *each.texts("name")]) for each in locations]
    return ", ".join(told) + "." if told else ""


def _existence(found: list[_Element]) -> int | str:
    said = found[0].get("type").lower() if found else ""
    return next((i for i, what in enumerate(EXISTENCE, 1) if said.endswith(what)), "")


def _references(found: list[_Element]) -> tuple[Reference, ...]:
    return tuple(_reference(number, each) for number, each in enumerate(found, 1))


def _reference(number: int, reference: _Element) -> Reference:
    (citation,) = reference.all("citation")
    people = [each.get("name") for each in citation.all("authorList/*")]
    sources = [(each.tag.upper(), each.text) for each in reference.all("source/*")]
    scopes = reference.texts("scope")
    order = ("STRAIN", "PLASMID", "TRANSPOSON", "TISSUE")
    grouped = [(token, ", ".join(text for kind, text in sources if kind == token)) for token in order]
    return Reference(
        number=number,
        positions=(", AND ".join(part for part in (", ".join(scopes[:-1]), scopes[-1]) if part) + ".",)
        if scopes
        else (),
        comments=tuple((token, text) for token, text in grouped if text),
        references=tuple((each.get("type"), each.get("id")) for each in citation.all("dbReference")),
        authors=", ".join(people),
        title=" ".join(citation.texts("title")),
        location=_where(citation),
    )


def _where(citation: _Element) -> str:
    """A journal's place, or the data bank that it was submitted to; of other kinds of publication their name."""
    name, date = citation.get("name"), citation.get("date")
    year = date[:4]
    if citation.get("type") == "submission":
        month = MONTHS[int(date[5:7]) - 1] + "-" if len(date) > 4 else ""
        bank = citation.get("db")
        return f"Submitted ({month}{year}) to {'the ' if bank.endswith('databases') else ''}{bank}."
    if citation.get("type") == "journal article" and citation.get("volume"):
        return f"{name} {citation.get('volume')}:{citation.get('first')}-{citation.get('last')}({year})."
    return f"{name} ({year})." if name else ""


def _cross_reference(reference: _Element) -> tuple[str, ...]:
    """Database, id, then the properties' values. GO's evidence and project become one column, as in flat files."""
    properties = {each.get("type"): each.get("value") for each in reference.all("property")}
    if reference.get("type") == "GO" and "evidence" in properties:
        project = properties.pop("project", "")
        if project or properties["evidence"].startswith("ECO:"):
            properties["evidence"] = f"{normal(properties['evidence'])}:{project}"
    if reference.get("type") == "PDB" and "chains" in properties:
        resolution = properties.get("resolution", "-").removesuffix(" A").replace("-", "")
        columns = properties.get("method", "-"), f"{resolution} A" if resolution else "-", properties["chains"]
        return "PDB", reference.get("id"), *columns
    return reference.get("type"), reference.get("id"), *properties.values()


def _comment(comment: _Element) -> str:
    """`TOPIC: [molecule]: text`, or nothing for a structured comment that is not made again."""
    kind = comment.get("type")
    molecule = "".join(f"[{text}]: " for text in comment.texts("molecule"))
    said = " ".join(comment.texts("text"))
    if kind == "subcellular location":
        places = " ".join(_place(each) + "." for each in comment.all("subcellularLocation"))
        said = " ".join(part for part in (places, said and f"Note={said}") if part)
    elif kind == "catalytic activity" and (reactions := comment.all("reaction")):
        equation = " ".join(reactions[0].texts("text"))
        numbers = [each.get("id") for each in reactions[0].all("dbReference") if each.get("type") == "EC"]
        said = " ".join([f"Reaction={equation};", *(f"EC={number};" for number in numbers)])
    elif kind == "alternative products":
        said = " ".join(part for each in comment.all("isoform") for part in _isoform(each))
    return f"{TOPICS.get(kind, kind.upper())}: {molecule}{said}" if said else ""


def _place(location: _Element) -> str:
    """`Cytoplasm, cytosol; Peripheral membrane protein`."""
    places = location.texts("location")
    inner = [place[0].lower() + place[1:] if place[1:2].islower() else place for place in places[1:]]
    told = [", ".join([*places[:1], *inner]), *location.texts("topology"), *location.texts("orientation")]
    return "; ".join(part for part in told if part)


def _isoform(isoform: _Element) -> Iterator[str]:
    (sequence,) = isoform.all("sequence")
    variants = ", ".join(sequence.get("ref").split())
    yield f"Name={isoform.texts('name')[0]};"
    yield f"IsoId={', '.join(isoform.texts('id'))}; Sequence={variants or sequence.get('type').capitalize()};"


def _features(found: list[_Element]) -> tuple[Feature, ...]:
    return tuple(map(_feature, found))


def _feature(feature: _Element) -> Feature:
    (location,) = feature.all("location")
    ends = location.all("position") or [*location.all("begin"), *location.all("end")]
    bounds = [_bound(each) for each in ends]
    kind = KINDS.get(feature.get("type"), feature.get("type"))
    said, original = feature.get("description"), "".join(feature.texts("original")).replace(" ", "")
    if variations := [text.replace(" ", "") for text in feature.texts("variation")]:
        arrow, colon = ("->", ": {}") if kind == "MUTAGEN" else (" -> ", " ({})")
        said = f"{original}{arrow}{','.join(variations)}" + (colon.format(said) if said else "")
    elif kind in ("VAR_SEQ", "VARIANT", "CONFLICT", "MUTAGEN"):
        said = "Missing" + (f": {said}" if kind == "MUTAGEN" else f" ({said})" if said else "")
    id = feature.get("id") or None
    isoform = location.get("sequence") or None
    return Feature(kind, bounds[0], bounds[-1], isoform, id, {"note": said} if said else {})


def _bound(end: _Element) -> int | str:
    doubt, number = DOUBTS.get(end.get("status"), ""), end.get("position")
    return f"{doubt}{number}" if doubt else int(number)
