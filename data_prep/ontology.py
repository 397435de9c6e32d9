"""The Gene Ontology as a data set stores it: one `ontology.json`, for the join, for descriptions and for encoders.

{"format": 1, "release": "releases/2022-07-01",
 "terms": {"GO:0000009": {"name", "namespace", "definition", "synonyms", "is_a", "part_of", "alt_ids"}},
 "obsolete": {"GO:0000005": {"name", "replaced_by"}}}
"""

import io
import json
import warnings
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from data_prep.places import Place
from data_prep.records import FileSeen
from data_prep.sources.files import SourceError, load
from pretrain.sample import canonical

FORMAT = 1


@dataclass(frozen=True)
class OntologyTerm:
    """A term and its direct parents."""

    name: str
    namespace: str
    definition: str = ""
    synonyms: tuple[str, ...] = ()
    is_a: tuple[str, ...] = ()
    part_of: tuple[str, ...] = ()
    alt_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Obsolete:
    name: str
    replaced_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ontology:
    """Live terms by id, and the obsolete ones, which annotate nothing but are told apart from unknown ones."""

    release: str = ""
    terms: dict[str, OntologyTerm] = field(default_factory=dict)
    obsolete: dict[str, Obsolete] = field(default_factory=dict)

    @cached_property
    def primary(self) -> dict[str, str]:
        """Alternative id → the id of the term that it was merged into."""
        return {alt: id for id, term in self.terms.items() for alt in term.alt_ids if alt not in self.terms}

    def resolve(self, id: str) -> str | None:
        """The live term's id, following alternative ids; None if the term is obsolete or unknown."""
        return id if id in self.terms else self.primary.get(id)

    def parents(self, id: str) -> tuple[str, ...]:
        return tuple(p for p in (*self.terms[id].is_a, *self.terms[id].part_of) if p in self.terms)

    def ancestors(self, id: str) -> frozenset[str]:
        """Everything above a term by `is_a` and `part_of`, without the term itself."""
        above: set[str] = set()
        todo = [id]
        while todo:
            new = [parent for parent in self.parents(todo.pop()) if parent not in above]
            above.update(new)
            todo += new
        return frozenset(above)

    def to_bytes(self) -> bytes:
        """Equal ontologies give equal bytes."""
        return canonical({"format": FORMAT, **asdict(self)}).encode()


def parse(root: Place, name: str) -> tuple[Ontology, FileSeen]:
    """An OBO file (`.gz` too). Raises SourceError for one that cannot be read."""
    import pronto

    data, seen = load(root, name)
    try:
        with warnings.catch_warnings():  # pronto warns of every dialect it tolerates
            warnings.simplefilter("ignore")
            source = pronto.Ontology(io.BytesIO(data))
    except Exception as error:  # its parsers raise types of their own
        missing = " names a parent that it does not have:" if isinstance(error.__cause__ or error, KeyError) else ":"
        raise SourceError("unparsable_ontology", f"{name}: not a readable OBO file{missing} {error}") from error
    terms, obsolete = {}, {}
    for term in source.terms():
        if not term.id.startswith("GO:"):
            continue
        if term.obsolete:
            obsolete[term.id] = Obsolete(term.name or "", tuple(sorted(term.replaced_by.ids)))
        else:
            terms[term.id] = _term(term)
    if not terms:
        raise SourceError("unparsable_ontology", f"{name}: no GO term in it; is it the Gene Ontology in OBO format?")
    return Ontology(source.metadata.data_version or "", terms, obsolete), seen


def _term(term) -> OntologyTerm:
    """Of synonyms the exact ones: a related one (`cytochrome P450` of oxygen binding) says what is not so."""
    part_of = (parents for relation, parents in term.relationships.items() if relation.id in ("part_of", "BFO:0000050"))
    return OntologyTerm(
        name=term.name or "",
        namespace=term.namespace or "",
        definition=str(term.definition or ""),
        synonyms=tuple(sorted({synonym.description for synonym in term.synonyms if synonym.scope == "EXACT"})),
        is_a=tuple(sorted(parent.id for parent in term.superclasses(distance=1, with_self=False))),
        part_of=tuple(sorted({id for parents in part_of for id in parents.ids})),  # of a subset, perhaps not in it
        alt_ids=tuple(sorted(term.alternate_ids)),
    )


def read(path: Path) -> Ontology:
    """The ontology of a data set's `ontology.json`."""
    stat = path.stat()
    return _read(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=1)  # a worker joins many partitions with one ontology
def _read(path: Path, state: tuple[int, ...]) -> Ontology:
    """state: of the file, which another run may have put there since."""
    tree = json.loads(path.read_bytes())
    if tree["format"] != FORMAT:
        raise ValueError(f"{path}: ontology of format {tree['format']}, this version reads {FORMAT}")
    return Ontology(
        tree["release"],
        {id: _stored(entry) for id, entry in tree["terms"].items()},
        {id: Obsolete(entry["name"], tuple(entry["replaced_by"])) for id, entry in tree["obsolete"].items()},
    )


def _stored(entry: dict[str, Any]) -> OntologyTerm:
    fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in entry.items()}
    return OntologyTerm(**fields)
