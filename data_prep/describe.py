"""What is known of a protein → sentences, several paraphrases of it, by templates or by a language model.

A description tells the most specific terms of each aspect and, where the configuration asks, what UniProt's entry says
besides: a sentence of its function comments, name, organism and EC number, subcellular locations. The same key, facts
and seed always give the same text; paraphrases differ in everything that is drawn. Texts written by people are kept
beside, never rewritten; each text's `origin` says who wrote it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Annotated, Literal

import pydantic

from data_prep.ontology import Ontology
from data_prep.words import language_model
from data_prep.words.draws import Draw
from data_prep.words.facts import Facts, gather
from data_prep.words.language_model import LanguageModelConfig
from data_prep.words.templates import Teller
from pretrain.config import Config
from pretrain.sample import Function, Sample, Text

Told = Literal["terms", "comments", "about", "locations"]


class TemplateConfig(Config):
    """Sentences put together from parts: quick, and true to the terms."""

    kind: Literal["template"] = "template"


Writer = Annotated[TemplateConfig | LanguageModelConfig, pydantic.Field(discriminator="kind")]


class DescribeConfig(Config):
    """paraphrases: texts per protein. facts: what they may tell: GO terms; sentences of function comments; `about`, the
    entry's name, organism, EC number and whether it is a fragment; subcellular locations. A protein of which only name
    and organism are known gets no text. max_terms: named per aspect. definitions: chance of spelling one out per text.
    """

    paraphrases: int = pydantic.Field(default=2, ge=0)
    facts: tuple[Told, ...] = ("terms", "comments")
    max_terms: int = pydantic.Field(default=4, ge=1)
    definitions: float = pydantic.Field(default=0.5, ge=0.0, le=1.0)
    seed: int = 0
    writer: Writer = TemplateConfig()


def describe(sample: Sample, ontology: Ontology, config: DescribeConfig) -> Sample:
    """The sample with `paraphrases` texts after those it has; unchanged if nothing is known that a text could tell."""
    return next(describe_all((sample,), ontology, config))


def describe_all(samples: Iterable[Sample], ontology: Ontology, config: DescribeConfig) -> Iterator[Sample]:
    """Every sample, described, in order. A language model writes for `window` samples at a time, so that it can batch;
    windows are counted from the first sample: equal samples in equal order give equal texts, whoever asks.
    """
    samples = iter(samples)
    window = config.writer.window if isinstance(config.writer, LanguageModelConfig) else 1
    while some := list(islice(samples, window)):
        facts = [gather(sample, ontology, config.facts) for sample in some]
        for sample, texts in zip(some, _texts(facts, ontology, config), strict=True):
            yield _with(sample, texts)


def count(sample: Sample) -> Counter[str]:
    """Texts by who wrote them, without the seed: `template`, `uniprot:function`, `lm:NAME@HASH`.

    Under a language model, `template` counts the texts that it left empty.
    """
    origins = (text.origin for text in sample.function.texts) if sample.function else ()
    return Counter(
        origin.rpartition(":")[0] if origin.startswith(("template:", "lm:")) else origin for origin in origins
    )


def _texts(facts: list[Facts], ontology: Ontology, config: DescribeConfig) -> list[list[Text]]:
    """The texts of each, some perhaps equal."""
    numbers = range(config.paraphrases)
    if not isinstance(config.writer, LanguageModelConfig):
        return [[_template(each, ontology, config, n) for n in numbers] if each else [] for each in facts]
    asked = [(at, n) for at, each in enumerate(facts) if each for n in numbers]
    prompts = [
        language_model.prompt(
            facts[at], ontology, config.max_terms, _draw(facts[at].key, config.seed, n), config.writer
        )
        for at, n in asked
    ]
    seeds = [f"{config.seed}:{n}:{facts[at].key}" for at, n in asked]
    origin, answers = language_model.write(prompts, seeds, config.writer)
    written: list[list[Text]] = [[] for _ in facts]
    for (at, n), answer in zip(asked, answers, strict=True):
        text = Text(answer, f"{origin}:{config.seed + n}") if answer else _template(facts[at], ontology, config, n)
        written[at].append(text)
    return written


def _template(facts: Facts, ontology: Ontology, config: DescribeConfig, number: int) -> Text:
    draw = _draw(facts.key, config.seed, number)
    text = Teller(facts, ontology, config.max_terms, config.definitions, draw).write()
    return Text(text, f"template:{config.seed + number}")


def _draw(key: str, seed: int, number: int) -> Draw:
    return Draw(f"describe:{seed}:{number}:{key}")


def _with(sample: Sample, texts: list[Text]) -> Sample:
    """The sample with the texts that it does not have yet, word for word."""
    known = sample.function or Function()
    new = {text.text: text for text in reversed(texts)}
    unlike = [new.pop(text.text) for text in texts if text.text in new]
    return replace(sample, function=Function(known.terms, (*known.texts, *unlike))) if unlike else sample
