"""What there is to tell of one protein, gathered from its sample: the input of every writer of descriptions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from data_prep.ontology import Ontology
from data_prep.words.comments import locations, small, statements
from data_prep.words.phrases import ROOTS
from pretrain.sample import About, Sample

ASPECTS = ("molecular_function", "biological_process", "cellular_component")
# binding, protein binding, catalytic activity, metabolic and cellular process, protein-containing complex: true of so
# many that they tell no protein apart; named only where nothing else is known of the aspect
UNINFORMATIVE = {"GO:0005488", "GO:0005515", "GO:0003824", "GO:0008152", "GO:0009987", "GO:0032991"}
COMMENTS = ("uniprot:function", "uniprot:catalytic_activity")  # origins of texts
LOCATION = "uniprot:subcellular_location"
STRAIN = r"(?!strain|isolate|subsp|serotype|serovar|biovar|type|clone|subtype|pv\.)"
COMMON = re.compile(rf"\s+\({STRAIN}[^()]*(?:\([^()]*\))?[^()]*\)$")
NAMELESS = re.compile(r"uncharacterized|hypothetical|UPF\d|unknown|predicted protein|\bORF|DUF\d", re.I)
CLASSES = (
    "an enzyme",
    "an oxidoreductase",
    "a transferase",
    "a hydrolase",
    "a lyase",
    "an isomerase",
    "a ligase",
    "a translocase",
)  # by the first number of an EC number


@dataclass(frozen=True)
class Facts:
    """terms: the ids worth naming, by aspect. about: None where it is not to be told. comments: people's statements,
    to be said after "it", or whole sentences. places: of the cell, in words.
    """

    key: str
    terms: dict[str, list[str]]
    about: About | None = None
    comments: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything of a function is known: a name and an organism alone are none."""
        return bool(self.terms or self.comments or self.places or (self.about and self.about.ec))


def gather(sample: Sample, ontology: Ontology, told: tuple[str, ...]) -> Facts:
    """told: which of terms, comments, about, locations."""
    terms = {term.id for term in sample.function.terms} if sample.function and "terms" in told else set()
    by_aspect: dict[str, list[str]] = {aspect: [] for aspect in ASPECTS}
    for id in specific(terms, ontology):
        by_aspect.get(ontology.terms[id].namespace, []).append(id)
    texts = sample.function.texts if sample.function else ()
    comments = [t.text for t in texts if t.origin in COMMENTS] if "comments" in told else []
    places = [t.text for t in texts if t.origin == LOCATION] if "locations" in told else []
    return Facts(
        sample.key,
        {aspect: ids for aspect, ids in by_aspect.items() if ids},
        sample.about if "about" in told and sample.about else None,
        tuple(dict.fromkeys(said for comment in comments for said in statements(comment))),
        tuple(dict.fromkeys(place for text in places for place in locations(text))),
    )


def specific(ids: Iterable[str], ontology: Ontology) -> list[str]:
    """The terms worth naming, sorted: no roots, nothing that another term of the same namespace implies.

    Within a namespace, so that a process is named although a function of the protein is part of it.
    """
    ids = {id for id in ids if id in ontology.terms} - ROOTS
    implied = set().union(*(ontology.ancestors(id, within_namespace=True) for id in ids)) if ids else set()
    found = ids - implied
    aspects = {ontology.terms[id].namespace for id in found - UNINFORMATIVE}
    return sorted(id for id in found if id not in UNINFORMATIVE or ontology.terms[id].namespace not in aspects)


def organism(about: About) -> str:
    """`Homo sapiens`, `Escherichia coli (strain K12)`: without the common name."""
    return COMMON.sub("", about.organism.strip().rstrip("."))


def named(about: About) -> str:
    """The protein's name as within a sentence, "" if it is a placeholder."""
    return "" if NAMELESS.search(about.name) else small(about.name)


def enzyme(about: About) -> str:
    """`a hydrolase of class EC 3.4.21.4`, "" of what has no EC number."""
    numbers = [number.replace(".-", "") for number in about.ec]
    classes = {number.partition(".")[0] for number in numbers}
    first = int(numbers[0].partition(".")[0]) if len(classes) == 1 and numbers[0][0].isdigit() else 0
    what = CLASSES[first] if first < len(CLASSES) else CLASSES[0]
    several = "classes" if len(numbers) > 1 else "class"
    listed = ", ".join(f"EC {n}" for n in numbers[:-1]) + " and " * (len(numbers) > 1) if numbers else ""
    return f"{what} of {several} {listed}EC {numbers[-1]}" if numbers else ""
