"""The template writer: facts → a few plain sentences, in varied order and wording.

Terms are named by name or exact synonym, functions also by what they bind, regulation by what it regulates; now and
then a parent or a definition stands beside. Everything is drawn from one generator, so that equal facts and seeds give
equal texts.
"""

from data_prep.ontology import Ontology
from data_prep.words import phrases
from data_prep.words.draws import Draw
from data_prep.words.facts import ASPECTS, Facts, enzyme, named, organism
from data_prep.words.phrases import sentence, series

FRAMES = {
    "molecular_function": (
        "{its} molecular functions include {list}",
        "the molecular functions of {it} include {list}",
        "at the molecular level, {its} functions include {list}",
        "known functions of {it} include {list}",
    ),
    "biological_process": (
        "{it} takes part in {list}",
        "{it} is involved in {list}",
        "{it} has a role in {list}",
        "{it} contributes to {list}",
        "{it} functions in {list}",
    ),
    "cellular_component": (
        "{it} is found {list}",
        "{it} is located {list}",
        "{it} resides {list}",
        "{it} can be found {list}",
    ),
}
SUBJECTS = ("this protein", "the protein", "this gene product")
OPENINGS = (
    "{name} is a protein of {organism}",
    "{name} is a protein from {organism}",
    "this protein of {organism} is known as {name}",
    "in {organism}, this protein is called {name}",
)
PLACES = ("{it} is found in {list}", "{it} is located in {list}", "{it} localizes to {list}")
FRAGMENT = ("only a fragment of its sequence is known", "its sequence is a fragment")
PRECURSOR = ("it is made as a precursor", "it is processed from a precursor")


class Teller:
    """One text in the making: what the protein is called, and what was said of it.

    max_terms: named per aspect. definitions: chance of spelling one out.
    """

    def __init__(self, facts: Facts, ontology: Ontology, max_terms: int, definitions: float, draw: Draw) -> None:
        self.facts, self.ontology, self.draw = facts, ontology, draw
        self.max_terms, self.definitions = max_terms, definitions
        self.subject = draw.choice(SUBJECTS)
        self.named: list[str] = []
        self.sentences: list[str] = []
        self.kinds = 1 if draw.random() < 0.4 else 0  # parents that may still be named

    def write(self) -> str:
        if self.facts.about:
            self._about()
        parts = [aspect for aspect in ASPECTS if aspect in self.facts.terms]
        parts += ["places"] * bool(self.facts.places) + ["comment"] * bool(self.facts.comments)
        if self.draw.random() < 0.4:
            parts = self.draw.sample(parts, len(parts))
        for part in parts:
            if part == "places":
                self._places()
            elif part == "comment":
                self._comment()
            else:
                self._aspect(part)
        if self.named and self.draw.random() < self.definitions:
            self._definition()
        return " ".join(self.sentences)

    def say(self, frame: str, **words: str) -> None:
        """A sentence about the protein: by its noun at first, then mostly by `it`."""
        again = self.draw.random() < 0.25 or "of {it}" in frame
        it = self.subject if again or not self.sentences else "it"
        its = "its" if it == "it" else f"{it}'s"
        self.sentences.append(sentence(frame.format(it=it, its=its, **words)))

    def _about(self) -> None:
        about = self.facts.about
        assert about is not None
        name, where = named(about), organism(about)
        if name and where:
            self.sentences.append(sentence(self.draw.choice(OPENINGS).format(name=name, organism=where)))
        elif where:
            self.sentences.append(sentence(f"this is a protein of {where}"))
        elif name:
            self.sentences.append(sentence(f"this protein is known as {name}"))
        if what := enzyme(about):
            self.say("{it} is {what}", what=what)
        if about.fragment:
            self.sentences.append(sentence(self.draw.choice(FRAGMENT)))
        if about.precursor and self.draw.random() < 0.5 and self.sentences:
            self.sentences.append(sentence(self.draw.choice(PRECURSOR)))

    def _aspect(self, aspect: str) -> None:
        ids = self.facts.terms[aspect]
        chosen = self.draw.sample(ids, self.max_terms)
        self.named += chosen
        {
            "molecular_function": self._functions,
            "biological_process": self._processes,
            "cellular_component": self._components,
        }[aspect](chosen)

    def _functions(self, ids: list[str]) -> None:
        """Either as a list of names, or as what the protein is, has and binds."""
        if self.draw.random() < 0.4:
            names = [phrases.function(self._name(id)) + self._kind(id) for id in ids]
            self.say(self.draw.choice(FRAMES["molecular_function"]), list=series(names))
            return
        said: dict[str, list[str]] = {"is": [], "has": [], "shows": [], "binds": []}
        for id in ids:
            term = self.ontology.terms[id]
            if what := phrases.constituent(term.name):
                said["is"].append(what)
            elif what := phrases.bound(term):
                said["binds"].append(what)
            else:
                name = phrases.function(self._name(id))
                said["has" if name.endswith("activity") else "shows"].append(name + self._kind(id))
        words = {"has": ("has", "shows", "exhibits"), "binds": ("binds", "binds to")}
        clauses = [
            f"{self.draw.choice(words.get(verb, (verb,)))} {series(what)}" for verb, what in said.items() if what
        ]
        if len(clauses) == 2 and not any(mark in clause for clause in clauses for mark in (", ", " and ", " as well ")):
            clauses = [" and ".join(clauses)]
        for clause in clauses:
            self.say("{it} {clause}", clause=clause)

    def _processes(self, ids: list[str]) -> None:
        """What the protein takes part in; what it regulates may be said by a verb."""
        verbs: dict[str, list[str]] = {}
        rest = []
        by_verb = self.draw.random() < 0.5
        for id in ids:
            name = self._name(id)
            if by_verb and (found := phrases.regulated(name, self.draw)):
                verbs.setdefault(found[0], []).append(found[1])
            else:
                rest.append(phrases.process(name, self.draw) + self._kind(id))
        if rest:
            self.say(self.draw.choice(FRAMES["biological_process"]), list=series(rest))
        for verb, what in sorted(verbs.items()):
            self.say("{it} {verb} {list}", verb=verb, list=series(what))

    def _components(self, ids: list[str]) -> None:
        """Where it is found, and what it is part of."""
        there: dict[str, list[str]] = {}
        for id in ids:
            how, where = phrases.place(id, self.ontology)
            there.setdefault(how, []).append(where + self._kind(id))
        spots = [f"{how} {series(there.pop(how))}" for how in ("in", "at") if how in there]
        if spots:
            self.say(self.draw.choice(FRAMES["cellular_component"]), list=", and ".join(spots))
        for how, wholes in sorted(there.items()):
            self.say("{it} is {how} {list}", how=how, list=series(wholes))

    def _places(self) -> None:
        said = " ".join(self.sentences)
        chosen = [place for place in self.facts.places[: self.max_terms] if place not in said]
        if "secreted" in chosen:
            chosen.remove("secreted")
            self.say("{it} is secreted")
        if chosen:
            self.say(self.draw.choice(PLACES), list=series(chosen))

    def _comment(self) -> None:
        said = self.draw.choice(self.facts.comments)
        if said[0].isupper():
            self.sentences.append(sentence(said))
        else:
            self.say("{it} {said}", said=said)

    def _definition(self) -> None:
        """One of the named terms explained: as what the protein does, as what the term is, or as in a dictionary."""
        told = [(id, text) for id in self.named if (text := phrases.definition(self.ontology.terms[id]))]
        if not told:
            return
        telling = [pair for pair in told if self.ontology.terms[pair[0]].namespace != "cellular_component"]
        id, text = self.draw.choice(telling or told)
        term = self.ontology.terms[id]
        if text.startswith("Catalysis of "):
            what = text.removeprefix("Catalysis of ").replace("the reaction: ", "the reaction ")
            self.say("{it} catalyzes {what}", what=what)
        elif text.startswith("Enables "):
            self.say("{it} enables {what}", what=text.removeprefix("Enables "))
        elif text.startswith("The chemical reactions") and term.name.endswith(" process"):
            self.sentences.append(sentence(f"{term.name}es are the {text.removeprefix('The ')}"))
        elif (
            text.startswith(("The ", "A ", "An ", "Any "))
            and not text.startswith("The chemical reactions")
            and term.namespace != "molecular_function"
            and self.draw.random() < 0.7
        ):
            self.sentences.append(sentence(f"{phrases.heading(term)} is {text[0].lower()}{text[1:]}"))
        elif text.lower().startswith(term.name.lower()):
            self.sentences.append(sentence(text))
        else:
            self.sentences.append(sentence(f"{term.name}: {text}"))

    def _name(self, id: str) -> str:
        term = self.ontology.terms[id]
        return phrases.synonym(term, self.draw) if self.draw.random() < 0.2 else term.name

    def _kind(self, id: str) -> str:
        """` (a kind of …)`, once in some texts."""
        if not self.kinds or self.draw.random() < 0.5 or not (name := phrases.kind(id, self.ontology, self.draw)):
            return ""
        self.kinds -= 1
        return f" ({self.draw.choice(('a kind of', 'a form of'))} {name})"
