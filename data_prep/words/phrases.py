"""Gene Ontology terms as English: names become what one would say within a sentence.

A term's name is a heading (`synaptic transmission, cholinergic`; `regulation of cell cycle`; `external side of plasma
membrane`). What is done to it is small and regular: commas resolved, articles and plurals put where GO leaves them out,
`ATP biosynthetic process` said as `ATP biosynthesis`; and what a binding function binds is taken from its definition,
which says it in full words (`Binding to a zinc ion (Zn).`). Nothing is added that the ontology does not say.
"""

import re
from functools import lru_cache

from data_prep.ontology import Ontology, OntologyTerm
from data_prep.words.draws import Draw

ROOTS = {"GO:0003674", "GO:0008150", "GO:0005575"}  # an aspect's root says only that nothing is known
COMPLEX = "GO:0032991"  # protein-containing complex: one is part of it, and not located in it
GENERAL = 60  # terms below one that says too little to be named as a parent
LONGEST = 320  # characters of a definition's sentence

VIA = ("via ", "by ", "using ", "with ", "through ", "from ", "involving ", "acting ", "producing ", "requiring ")
ADJECTIVE = re.compile(r"[\w'+-]*(?:ic|al|ar|ive|ous|ed|ent|ant|ory|-specific)")
NESTED = re.compile(r" (?:of|in|by|to|from|via) |regulation")  # then it is open what a describing word belongs to
REGULATION = re.compile(r"(?P<sign>positive |negative |)regulation of (?P<what>.+)")
COUNTED = re.compile(
    r"(?:cellular )?(?:response|detection|defense response) (?:to|of) .+|"
    r"(?:(?! of | by ).)+ (?:pathway|cycle|cascade|chain)"
)
PROCESS = re.compile(r"(?P<what>.+) (?P<kind>biosynthetic|catabolic|metabolic) process(?P<rest>(?: \S.*)?)")
WORDS = {
    "biosynthetic": ("biosynthesis", "biosynthetic processes"),
    "catabolic": ("catabolism", "breakdown", "catabolic processes"),
    "metabolic": ("metabolism", "metabolic processes"),
}
BINDING = re.compile(
    r"(?:Binding to|(?:Any molecular function by which a gene product interacts|Interacting) selectively and "
    r"non-covalently with) (.+?)(?:, |; |\.? *$|\. )"
)
ASIDE = re.compile(r" \([^()]*\)")
CONSTITUENT = re.compile(r"(?:.* )?constituent of (?P<what>.+)|.*structural constituent.*")
PART = re.compile(r"(?P<how>integral|intrinsic|extrinsic|anchored) component of (?P<what>.+)")
OF_WHAT = re.compile(
    r"\b(side|sides|region|part|portion|surface|leaflet|face|lumen|component) of (?!the |an? )(?=[a-z])"
)
AT = re.compile(r".*\b(?:surface|side|leaflet|junction|synapse|tip|pole|edge|site|zone|terminal)")
SENTENCE = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bsp)\.\s+(?=[A-Z])")  # where one ends within a definition
SHORT = re.compile(r"(?:Binding to|Interacting selectively and non-covalently with) [^,;]+")  # as the name says already
SYNONYM = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,'/()+-]{3,60}")
SMALL = {"a", "an", "the", "of", "to", "in", "and", "or", "any", "process", "activity", "that", "which"}


def plain(name: str) -> str:
    """A name without its inversion: `cholinergic synaptic transmission`, `mRNA splicing via spliceosome`."""
    head, comma, tail = name.partition(", ")
    if not comma or ", " in tail:
        return name
    if tail.startswith(VIA):
        return f"{head} {tail}"
    described = tail.endswith("-specific") or ADJECTIVE.fullmatch(tail)
    return f"{tail} {head}" if described and not NESTED.search(head) else name


def synonym(term: OntologyTerm, draw: Draw) -> str:
    """One of a term's exact synonyms that can stand for its name; the name if there is none."""
    usable = [each for each in term.synonyms if SYNONYM.fullmatch(each) and _alike(each, term)]
    return draw.choice(usable) if usable else term.name


def _alike(synonym: str, term: OntologyTerm) -> bool:
    """Whether a synonym ends as the names of its aspect do: an enzyme's own name (`ADH`) is no function."""
    return term.namespace != "molecular_function" or synonym.endswith((" activity", " binding"))


def process(name: str, draw: Draw) -> str:
    """A biological process as what one takes part in."""
    if name == "metabolic process":
        return "metabolism"
    if regulation := REGULATION.fullmatch(name):
        return f"{regulation['sign']}regulation of {process(regulation['what'], draw)}"
    if found := PROCESS.fullmatch(name):
        return f"{found['what']} {draw.choice(WORDS[found['kind']])}{found['rest']}"
    name = plain(name)
    if name.endswith(" process"):
        return f"{name}es"
    return f"the {name}" if COUNTED.fullmatch(name) else name


def regulated(name: str, draw: Draw) -> tuple[str, str] | None:
    """(`positively regulates`, what) of a term that is regulation; None of another."""
    found = REGULATION.fullmatch(name)
    if not found:
        return None
    verb = {"positive ": "positively regulates", "negative ": "negatively regulates", "": "regulates"}[found["sign"]]
    return verb, process(found["what"], draw)


def function(name: str) -> str:
    """A molecular function as what one has: `being a structural constituent of the ribosome`."""
    if what := constituent(name):
        return f"being {what}"
    return f"{plain(name)} activity" if name.endswith("ase") else plain(name)


def bound(term: OntologyTerm) -> str:
    """What a binding function binds, in the words of its definition; "" where that cannot be told."""
    if not term.name.endswith(" binding"):
        return ""
    if term.name in ("protein binding", "identical protein binding"):
        return "other proteins" if term.name == "protein binding" else "copies of itself"
    if not (found := BINDING.match(ASIDE.sub("", term.definition))):
        what = term.name.removesuffix(" binding")
        return what if re.fullmatch(r"[A-Z]{2,}", what) else ""
    what = " ".join(found[1].split()).removesuffix(" or a portion thereof").removesuffix(" or proteins")
    return what if len(what) <= 60 and what.count("(") == what.count(")") else ""


def constituent(name: str) -> str:
    """`a structural constituent of the ribosome`; "" of another function."""
    found = CONSTITUENT.fullmatch(name)
    if not found:
        return ""
    what = found["what"]
    name = name.removesuffix(what) + f"the {what}" if what and re.fullmatch(r"[a-z ]+[^s]", what) else name
    return f"{article(name)} {name}"


def place(id: str, ontology: Ontology) -> tuple[str, str]:
    """(how one is there, the place): `in`, `the nucleus`; `at`, `the cell surface`; `part of`, `the exocyst`."""
    name = plain(ontology.terms[id].name)
    if part := PART.fullmatch(name):
        how = part["how"] if part["how"] != "anchored" else "anchored"
        return f"{article(how)} {how} component of", f"the {part['what'].removeprefix('the ')}"
    if id == COMPLEX:
        return "part of", "a protein complex"
    said = "the " + OF_WHAT.sub(r"\1 of the ", name)
    if COMPLEX in ontology.ancestors(id, within_namespace=True) or name.endswith(" complex"):
        return "part of", said
    return ("at" if AT.fullmatch(name.partition(" of ")[0]) else "in"), said


def kind(id: str, ontology: Ontology, draw: Draw) -> str:
    """A parent's name, where it tells something that the term's own name does not: `lyase activity`; or ""."""
    term = ontology.terms[id]
    own = _words(term.name)
    told = [
        parent
        for parent in term.is_a
        if parent in ontology.terms
        and parent not in ROOTS
        and not ROOTS.intersection(ontology.terms[parent].is_a)
        and not _words(ontology.terms[parent].name) <= own
        and ontology.below[parent] <= GENERAL
    ]
    if not told or REGULATION.fullmatch(term.name) or PART.fullmatch(term.name):
        return ""
    return plain(ontology.terms[draw.choice(told)].name)


def heading(term: OntologyTerm) -> str:
    """A process or a component as the subject of a sentence: `mitochondrial translation`, `the cell cycle`."""
    name = plain(term.name)
    return f"the {name}" if term.namespace == "cellular_component" or COUNTED.fullmatch(name) else name


@lru_cache(maxsize=1 << 16)
def definition(term: OntologyTerm) -> str:
    """The first sentence of a definition, without its full stop; "" if it says no more than the name, or too much."""
    first = " ".join(SENTENCE.split(term.definition)[0].split()).rstrip(". ")
    if not first or len(first) > LONGEST or PART.fullmatch(term.name):
        return ""
    if first.startswith(("Any process that ", "A process that modulates")) or SHORT.fullmatch(first):
        return ""
    return "" if {word[:4] for word in _words(first)} <= {word[:4] for word in _words(term.name)} else first


def sentence(text: str) -> str:
    """Capital and full stop; `mRNA` and `siRNA` keep their small letters."""
    return (text if re.match(r"[a-z]+[A-Z]", text) else text[0].upper() + text[1:]).rstrip(".") + "."


def series(phrases: list[str]) -> str:
    """`a`; `a and b`; `a, b and c`; with semicolons where names have commas of their own."""
    if len(phrases) < 2:
        return "".join(phrases)
    if not any(", " in phrase or " and " in phrase for phrase in phrases):
        return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    if len(phrases) == 2:
        return f"{phrases[0]} as well as {phrases[1]}"
    return f"{'; '.join(phrases[:-1])}; and {phrases[-1]}"


def article(noun: str) -> str:
    """`a` or `an`, by how a word begins: `an RNA`, `a U2 snRNP`, `an E3 ligase`."""
    first = re.split(r"[ -]", noun)[0]
    letters = first[:1] if first.isupper() or re.match(r"[A-Z]+\d|[a-z]?[A-Z]{2}", first) else ""
    if letters:
        return "an" if letters.upper() in "AEFHILMNORSX" else "a"
    return "an" if first[:1].lower() in "aeiou" and not first.lower().startswith(("uni", "ubi", "eu", "one")) else "a"


def _words(text: str) -> set[str]:
    """What a text is about, for telling whether another says more."""
    return {word.rstrip("s") for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in SMALL}
