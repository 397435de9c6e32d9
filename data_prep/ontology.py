"""The Gene Ontology as a data set stores it: one `ontology.json`, for the join, for descriptions and for encoders.

{"format": 1, "release": "releases/2022-07-01",
 "terms": {"GO:0000009": {"name", "namespace", "definition", "synonyms", "is_a", "part_of", "alt_ids"}},
 "obsolete": {"GO:0000005": {"name", "replaced_by", "consider"}}}

An id that is no longer live is followed where GO itself says that this is safe: an alternative id to the term that it
was merged into, and an obsolete term to its one `replaced_by` (of which the OBO 1.2 specification says that it "can
safely be used to automatically reassign"; several, or `consider`, are for people to choose from).
"""

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Literal

from data_prep.records import FileSeen
from data_prep.sources.files import BLOCK, SourceError, Stream
from pretrain.places import Place
from pretrain.sample import Term, canonical

FORMAT = 1
PANIC = "PanicException"
LARGEST = 128 << 20  # bytes of an OBO file, decompressed; the whole of GO has 35 MB, with all its imports 120 MB
MAX_STANZA = 1 << 20  # bytes of a term; fastobo takes 30 times as many
MOST_TERMS = 300_000  # live and obsolete ones; GO has 50,000
DEEPEST = 10_000  # terms above each other; GO has 19
PART_OF = {"part_of", "BFO:0000050"}
KEPT, WIDE = 16_384, 500  # terms whose ancestors are remembered, some 30 MB; ancestors of one, GO has up to 91
COMMENT = re.compile(rb"^[ \t]*![^\n]*\n", re.MULTILINE)
GAP = re.compile(rb"\n(?:[ \t\r]*\n){3,}")
STANZA = re.compile(rb"^\[", re.MULTILINE)
Outcome = Literal["live", "alternative", "replaced", "obsolete", "unknown"]


@dataclass(frozen=True)
class OntologyTerm:
    """A term and its direct parents. synonyms: the exact ones."""

    name: str
    namespace: str
    definition: str = ""
    synonyms: tuple[str, ...] = ()
    is_a: tuple[str, ...] = ()
    part_of: tuple[str, ...] = ()
    alt_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Obsolete:
    """replaced_by: may take its place. consider: might, if someone looks."""

    name: str
    replaced_by: tuple[str, ...] = ()
    consider: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resolved:
    """What an id leads to. id: of the live term, None where there is none. how: what it took."""

    id: str | None
    how: Outcome


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

    @cached_property
    def replacement(self) -> dict[str, str]:
        """Obsolete id → the live term that replaces it, where each on the way has exactly one `replaced_by`."""
        found: dict[str, str] = {}
        for first in self.obsolete:
            id, passed = first, {first}
            while id not in self.terms:
                after = self.obsolete[id].replaced_by if id in self.obsolete else ()
                id = self.primary.get(id) or (after[0] if len(after) == 1 else "")
                if not id or id in passed:
                    break
                passed.add(id)
            else:
                found[first] = id
        return found

    def resolve(self, id: str) -> str | None:
        """The live term that an id stands for, if there is one."""
        return self.look_up(id).id

    def look_up(self, id: str) -> Resolved:
        """The live term that an id stands for, and how it was found."""
        if id in self.terms:
            return Resolved(id, "live")
        if live := self.primary.get(id):
            return Resolved(live, "alternative")
        if live := self.replacement.get(id):
            return Resolved(live, "replaced")
        return Resolved(None, "obsolete" if id in self.obsolete else "unknown")

    def why_not(self, id: str) -> str:
        """What to tell of an id that leads to no live term: its name, and what its editors say of a successor."""
        if not (gone := self.obsolete.get(id)):
            return f"{id} is not in the ontology"
        instead = f", replaced by {', '.join(gone.replaced_by)}" if gone.replaced_by else ""
        instead += f", consider {', '.join(gone.consider)}" if gone.consider else ""
        return f"{id} {gone.name}{instead}"

    def parents(self, id: str, within_namespace: bool = False) -> tuple[str, ...]:
        """By `is_a` and `part_of`. A subset's relations to terms that it does not have lead nowhere."""
        term = self.terms[id]
        found = tuple(p for p in (*term.is_a, *term.part_of) if p in self.terms)
        return tuple(p for p in found if self.terms[p].namespace == term.namespace) if within_namespace else found

    def ancestors(self, id: str, within_namespace: bool = False) -> frozenset[str]:
        """Everything above a term by `is_a` and `part_of`, without the term itself.

        `is_a` stays in a term's namespace, `part_of` may leave it: a function is part of a process. Across: what a
        protein with this annotation also has, as GO's rules propagate it. Within: what is the same thing in more
        general words, as descriptions and per-namespace measures (CAFA's) need it.
        """
        memory = self._within if within_namespace else self._across
        if (known := memory.get(id)) is not None:
            return known
        above: set[str] = set()
        todo = [id]
        while todo:
            new = [parent for parent in self.parents(todo.pop(), within_namespace) if parent not in above]
            above.update(new)
            todo += new
        if len(memory) >= KEPT:
            memory.clear()
        return memory.setdefault(id, frozenset(above)) if len(above) <= WIDE else frozenset(above)

    @cached_property
    def _across(self) -> dict[str, frozenset[str]]:
        return {}

    @cached_property
    def _within(self) -> dict[str, frozenset[str]]:
        return {}

    @cached_property
    def below(self) -> Counter[str]:
        """How many terms of its own namespace are below each: a measure of how little it says."""
        counts: Counter[str] = Counter()
        for id in self.terms:
            counts.update(self.ancestors(id, within_namespace=True))
        return counts

    def counts(self, terms: Iterable[Term]) -> Counter[str]:
        """Of direct annotations, those of each evidence code and each namespace: `evidence/IDA`, `namespace/…`."""
        found: Counter[str] = Counter()
        for term in terms:
            found[f"evidence/{term.evidence}"] += 1
            if term.id in self.terms:
                found[f"namespace/{self.terms[term.id].namespace}"] += 1
        return found

    def to_bytes(self) -> bytes:
        """Equal ontologies give equal bytes."""
        return canonical({"format": FORMAT, **asdict(self)}).encode()


def parse(root: Place, name: str) -> tuple[Ontology, FileSeen]:
    """An OBO file (`.gz` too). Raises SourceError for one that cannot be read, and for terms above themselves."""
    import fastobo as library

    fastobo: Any = library  # it says nothing of its types
    with Stream.open(root, name) as stream:
        stream.opening()
        data, seen = _bare(name, stream.whole(LARGEST)), stream.seen()
    terms: dict[str, OntologyTerm] = {}
    obsolete: dict[str, Obsolete] = {}
    try:
        frames = fastobo.iter(io.BytesIO(data), ordered=True, threads=1)
        header = {clause.raw_tag(): clause.raw_value() for clause in frames.header()}
        for frame in frames:
            if isinstance(frame, fastobo.term.TermFrame) and (id := str(frame.id)).startswith("GO:"):
                if id in terms or id in obsolete:
                    raise SourceError("unparsable_ontology", f"{name}: {id} is there twice; is it two files in one?")
                _enter(id, frame, header.get("default-namespace", ""), terms, obsolete)
                if len(terms) + len(obsolete) > MOST_TERMS:
                    raise SourceError("too_large", f"{name}: over {MOST_TERMS} terms, more than any of GO's files has")
    except BaseException as error:  # of all that fastobo raises, a panic of Rust is no Exception
        if isinstance(error, SourceError) or (not isinstance(error, Exception) and type(error).__name__ != PANIC):
            raise
        raise SourceError("unparsable_ontology", f"{name}: not a readable OBO file: {error}") from error
    _check(name, terms, obsolete)
    return Ontology(header.get("data-version", ""), terms, obsolete), seen


def _bare(name: str, data: bytes) -> bytes:
    """In UTF-8, without comments, at which fastobo panics in typedefs, and long gaps, over which it is very slow."""
    decoder, data = codecs.getincrementaldecoder("utf-8")(), data.removeprefix(codecs.BOM_UTF8)
    try:
        for at in range(0, len(data), BLOCK):
            decoder.decode(data[at : at + BLOCK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        data = data.decode("latin-1").encode()
    data = COMMENT.sub(b"", data) if COMMENT.search(data) else data
    data = GAP.sub(b"\n\n", data) if GAP.search(data) else data
    begins = [match.start() for match in STANZA.finditer(data)]
    for begin, end in pairwise([0, *begins, len(data)]):
        if end - begin > MAX_STANZA:
            said = data[begin : begin + 60].decode("utf-8", "replace")
            raise SourceError("overlong_entry", f"{name}: a term of {end - begin} bytes, {said!r}…; look there")
    return data


def _enter(id: str, frame: Any, namespace: str, terms: dict[str, OntologyTerm], obsolete: dict[str, Obsolete]) -> None:
    """A stanza's term. Of synonyms the exact ones: a related one (`cytochrome P450` of oxygen binding) misleads."""
    one: dict[str, str] = {"namespace": namespace}
    many: dict[str, set[str]] = {}
    for clause in frame:
        match tag := clause.raw_tag():
            case "name":
                one[tag] = clause.name.strip()
            case "namespace" | "is_obsolete":
                one[tag] = clause.raw_value()
            case "def":
                one[tag] = str(clause.definition)
            case "synonym" if clause.synonym.scope == "EXACT":
                many.setdefault(tag, set()).add(str(clause.synonym.desc))
            case "relationship" if str(clause.typedef) in PART_OF:
                many.setdefault("part_of", set()).add(str(clause.term))
            case "is_a" | "replaced_by" | "consider":
                many.setdefault(tag, set()).add(str(clause.term))
            case "alt_id":
                many.setdefault(tag, set()).add(str(clause.alt_id))
            case _:
                pass
    sets = {tag: tuple(sorted(values)) for tag, values in many.items()}
    parents = {tag: tuple(p for p in sets.get(tag, ()) if p.startswith("GO:")) for tag in ("is_a", "part_of")}
    if one.get("is_obsolete") == "true":
        obsolete[id] = Obsolete(one.get("name", ""), sets.get("replaced_by", ()), sets.get("consider", ()))
    else:
        written = one.get("name", ""), one["namespace"], one.get("def", ""), sets.get("synonym", ())
        terms[id] = OntologyTerm(*written, **parents, alt_ids=sets.get("alt_id", ()))


def _check(name: str, terms: dict[str, OntologyTerm], obsolete: dict[str, Obsolete]) -> None:
    """Raises SourceError for what cannot be the Gene Ontology, or not all of it."""
    if not terms:
        raise SourceError("unparsable_ontology", f"{name}: no GO term in it; is it the Gene Ontology in OBO format?")
    for id, term in terms.items():
        if lost := [parent for parent in term.is_a if parent not in terms and parent not in obsolete]:
            raise SourceError(
                "unparsable_ontology", f"{name}: {id} names a parent that it does not have: {lost[0]!r}; is it whole?"
            )
    if cycle := _cycle(terms):
        raise SourceError(
            "cyclic_ontology",
            f"{name}: {' → '.join(cycle)}: a term above itself by is_a and part_of; take go-basic.obo, which has none",
        )
    if (depth := _depth(terms)) > DEEPEST:
        raise SourceError("unparsable_ontology", f"{name}: {depth} terms above each other, GO has 19; look at it")


def _cycle(terms: dict[str, OntologyTerm]) -> list[str]:
    """The first way from a term upwards to itself; empty if there is none. Depth first, without recursion."""
    done: set[str] = set()
    for first in terms:
        way: dict[str, Iterator[str]] = {}
        id: str | None = first if first not in done else None
        while id is not None:
            if id in way:
                names = list(way)
                return [*names[names.index(id) :], id]
            way[id] = iter((*terms[id].is_a, *terms[id].part_of))
            id = None
            while way and id is None:
                last = next(reversed(way))
                id = next((parent for parent in way[last] if parent in terms and parent not in done), None)
                if id is None:
                    done.add(last)
                    del way[last]
    return []


def _depth(terms: dict[str, OntologyTerm]) -> int:
    """Of the longest way upwards, of terms without a cycle: level by level, from those that have none below them."""
    parents = {id: [p for p in {*term.is_a, *term.part_of} if p in terms] for id, term in terms.items()}
    waiting = Counter(parent for above in parents.values() for parent in above)
    level, depth = [id for id in terms if not waiting[id]], 0
    while level:
        depth += 1
        above = [parent for id in level for parent in parents[id]]
        waiting.subtract(above)
        level = [id for id in dict.fromkeys(above) if not waiting[id]]
    return depth


def read(place: Place, name: str = "ontology.json") -> Ontology:
    """The ontology of a data set's `ontology.json`."""
    return _read(place, name, place.stat(name).version)


@lru_cache(maxsize=1)  # a worker joins many partitions with one ontology
def _read(place: Place, name: str, version: str) -> Ontology:
    """version: of the file, which another run may have put there since."""
    tree = json.loads(place.read(name))
    if tree["format"] != FORMAT:
        raise ValueError(f"{place / name}: ontology of format {tree['format']}, this version reads {FORMAT}")
    return Ontology(
        tree["release"],
        {id: OntologyTerm(**_tuples(entry)) for id, entry in tree["terms"].items()},
        {id: Obsolete(**_tuples(entry)) for id, entry in tree["obsolete"].items()},
    )


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
