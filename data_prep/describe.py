"""GO terms → sentences. First form: a template writer, seeded by the protein's key.

A description names the most specific terms of each aspect, now by name, now by synonym, sometimes with a parent or the
definition beside it, in varied order and wording. The same key, terms and seed always give the same text; several
paraphrases differ in everything that is drawn. Text written by people (UniProt's) is kept beside, never rewritten.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b
from random import Random

import pydantic

from data_prep.ontology import Ontology
from pretrain.config import Config
from pretrain.sample import Function, Sample, Text

ASPECTS = ("molecular_function", "biological_process", "cellular_component")
FRAMES = {
    "molecular_function": (
        "{its} molecular functions include {list}",
        "{it} is known for {list}",
        "at the molecular level, {it} is responsible for {list}",
        "what {it} does at the molecular level includes {list}",
    ),
    "biological_process": (
        "{it} takes part in {list}",
        "{it} is involved in {list}",
        "{it} has a role in {list}",
        "{it} contributes to {list}",
    ),
    "cellular_component": (
        "{it} is found in {list}",
        "{it} is located in {list}",
        "{it} localizes to {list}",
        "{its} locations include {list}",
    ),
}
KINDS = ("{name} (a kind of {parent})", "{name} (a form of {parent})")
SUBJECTS = ("this protein", "the protein", "this gene product", "it")
ROOTS = {"GO:0003674", "GO:0008150", "GO:0005575"}  # an aspect's root says only that nothing is known
UNINFORMATIVE = {"GO:0005515"}  # protein binding: true of nearly every protein, so it tells none apart
SENTENCE = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bsp)\.\s+(?=[A-Z])")  # where one ends within a definition
PART = re.compile(r"(integral|intrinsic|extrinsic|anchored) component of (.+)")
COUNTED = re.compile(r"(?:cellular )?response to .+|.+ (?:pathway|cycle)")  # processes that there are many of


class DescribeConfig(Config):
    """paraphrases: texts per protein. max_terms: named per aspect. definitions: chance of spelling one out per text."""

    paraphrases: int = pydantic.Field(2, ge=0)
    max_terms: int = pydantic.Field(4, ge=1)
    definitions: float = pydantic.Field(0.5, ge=0.0, le=1.0)
    seed: int = 0


def describe(sample: Sample, ontology: Ontology, config: DescribeConfig) -> Sample:
    """The sample with `paraphrases` template texts after those it has; unchanged if no term says anything."""
    if sample.function is None or not sample.function.terms or not config.paraphrases:
        return sample
    ids = specific({term.id for term in sample.function.terms}, ontology)
    if not ids:
        return sample
    written: dict[str, Text] = {}
    for number in range(config.paraphrases):
        seed = blake2b(f"describe:{config.seed}:{number}:{sample.key}".encode(), digest_size=8).digest()
        text = write(ids, ontology, config, Random(int.from_bytes(seed, "big")))
        written.setdefault(text, Text(text, f"template:{config.seed + number}"))
    function = Function(sample.function.terms, (*sample.function.texts, *written.values()))
    return replace(sample, function=function)


def specific(ids: Iterable[str], ontology: Ontology) -> list[str]:
    """The terms worth naming, sorted: no roots, nothing that another one of them implies."""
    ids = set(ids) - ROOTS
    implied = set().union(*(ontology.ancestors(id) for id in ids)) if ids else set()
    told = ids - implied
    return sorted(told - UNINFORMATIVE or told)


def write(ids: list[str], ontology: Ontology, config: DescribeConfig, draw: Random) -> str:
    """One description of the terms, a sentence per aspect, perhaps followed by one term's definition."""
    by_aspect = {aspect: [id for id in ids if ontology.terms[id].namespace == aspect] for aspect in ASPECTS}
    aspects = [aspect for aspect in ASPECTS if by_aspect[aspect]]
    if draw.random() < 0.3:
        draw.shuffle(aspects)
    named: list[str] = []
    sentences: list[str] = []
    for number, aspect in enumerate(aspects):
        chosen = draw.sample(by_aspect[aspect], min(config.max_terms, len(by_aspect[aspect])))
        named += chosen
        subject = draw.choice(SUBJECTS[:-1] if number == 0 else SUBJECTS)
        phrases = [_phrase(id, ontology, draw) for id in chosen]
        own = "its" if subject == "it" else f"{subject}'s"
        sentences.append(_sentence(draw.choice(FRAMES[aspect]).format(it=subject, its=own, list=_series(phrases))))
    if named and draw.random() < config.definitions:
        sentences += _definition(draw.choice(named), ontology)
    return " ".join(sentences)


def _phrase(id: str, ontology: Ontology, draw: Random) -> str:
    """A term by its name, an exact synonym, or with one of its parents."""
    term = ontology.terms[id]
    roll = draw.random()
    plain = [synonym for synonym in term.synonyms if re.fullmatch(r"[A-Za-z][A-Za-z0-9 ,'/()+-]{3,60}", synonym)]
    if roll < 0.2 and plain:
        return _spoken(draw.choice(plain), term.namespace)
    name = _spoken(term.name, term.namespace)
    if roll > 0.75 and (parents := [parent for parent in term.is_a if _tells(parent, ontology)]):
        return draw.choice(KINDS).format(name=name, parent=ontology.terms[draw.choice(parents)].name)
    return name


def _tells(parent: str, ontology: Ontology) -> bool:
    """Whether it helps to hear of a parent: not of a root, nor of what is directly below one, as `binding` is."""
    return parent in ontology.terms and parent not in ROOTS and not ROOTS.intersection(ontology.terms[parent].is_a)


def _spoken(name: str, aspect: str) -> str:
    """A term's name with the article or the plural that it has in a sentence."""
    if aspect == "cellular_component":
        part = PART.fullmatch(name)
        return f"the {part[2]} as an {part[1]} component" if part else f"the {name}"
    if aspect == "molecular_function" and "structural constituent" in name:
        return f"being {'an' if name[0] in 'aeiou' else 'a'} {name}"
    if aspect == "biological_process" and name.endswith(" process"):
        return name + "es"
    return f"the {name}" if aspect == "biological_process" and COUNTED.fullmatch(name) else name


def _definition(id: str, ontology: Ontology) -> list[str]:
    """`Name: First sentence of its definition.`"""
    term = ontology.terms[id]
    first = SENTENCE.split(term.definition)[0].rstrip(".")
    return [_sentence(f"{term.name}: {first}")] if first else []


def _series(phrases: list[str]) -> str:
    """`a`, `a and b`, `a; b; and c`: names have commas of their own."""
    if len(phrases) < 3 and not any("," in phrase for phrase in phrases):
        return " and ".join(phrases)
    return "; and ".join(filter(None, ("; ".join(phrases[:-1]), phrases[-1])))


def _sentence(text: str) -> str:
    """Capital and full stop; `mRNA` and `siRNA` keep their small letters."""
    return (text if re.match(r"[a-z]+[A-Z]", text) else text[0].upper() + text[1:]) + "."
