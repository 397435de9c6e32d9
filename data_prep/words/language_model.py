"""Descriptions by a causal language model from a local folder, through transformers. torch is imported when it writes.

What is guaranteed. A text is a function of its prompt, its seed, the model's files, the versions of torch and
transformers, and the kind of processor; on a CPU one thread computes, so that neither the number of cores nor that of
workers matters. With `batch = 1` that is all. With more, prompts of a window are batched by length and padded on the
left, which changes the last bits of the logits: the same samples in the same order give the same bytes, while a sample
among others may, very rarely, draw another word. Each word is drawn by a number of its own (from seed, paraphrase, key
and position; never from a generator that rows share), and changes only if that falls within rounding of a boundary.

Nothing is fetched, no code of the folder is run, and weights are read from safetensors only.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pydantic

from data_prep.ontology import Ontology
from data_prep.words import phrases
from data_prep.words.draws import Draw
from data_prep.words.facts import Facts, enzyme, named, organism
from pretrain.config import Config

PROMPT = "Facts about a protein:\n{facts}\n\nThe same in a few plain English sentences, with nothing added:\n"
WINDOW = 4  # batches that are sorted by length together
LONGEST = 2000  # characters of an answer
NAMED_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")  # what a model is: weights, settings, words
TITLES = {
    "molecular_function": "Molecular function",
    "biological_process": "Biological process",
    "cellular_component": "Cellular component",
}
LABEL = re.compile(r"^(?:description|answer|summary)\s*:\s*", re.I)


class LanguageModelConfig(Config):
    """model: a folder as `save_pretrained` writes it, with safetensors. prompt: with `{facts}` where these go. chat:
    whether the prompt becomes a message in the tokenizer's chat template; by default, if it has one. max_tokens: of an
    answer. temperature: 0 takes the likeliest word always. top_p: share of the likeliest words that are drawn from.
    batch: prompts at a time. device, dtype: texts of a GPU or in bfloat16 are not those of a CPU in float32.
    An answer without words falls back to the template, whose `origin` tells.
    """

    kind: Literal["language_model"] = "language_model"
    model: str
    prompt: str = PROMPT
    chat: bool | None = None
    max_tokens: int = pydantic.Field(default=128, ge=1, le=4096)
    temperature: float = pydantic.Field(default=0.7, ge=0.0)
    top_p: float = pydantic.Field(default=0.9, gt=0.0, le=1.0)
    batch: int = pydantic.Field(default=8, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.field_validator("model")
    @classmethod
    def _absolute(cls, model: str) -> str:
        """A worker's current directory is another; what begins with `~` or a variable is where it says."""
        return model if model.startswith(("~", "$")) else str(Path(model).absolute())

    @pydantic.field_validator("prompt")
    @classmethod
    def _has_facts(cls, prompt: str) -> str:
        if "{facts}" not in prompt:
            raise ValueError("the prompt must say where the facts go: put {facts} into it")
        return prompt

    @property
    def window(self) -> int:
        """Samples whose prompts are sorted by length together."""
        return self.batch * WINDOW


def prompt(facts: Facts, ontology: Ontology, max_terms: int, draw: Draw, config: LanguageModelConfig) -> str:
    """The facts, a line for each kind, within the configured words. Which of many terms are told is drawn."""
    lines = []
    if about := facts.about:
        told = {"Name": named(about), "Organism": organism(about), "Enzyme": enzyme(about)}
        lines += [f"{title}: {text}" for title, text in told.items() if text]
        lines += ["Only a fragment of the sequence is known"] * about.fragment
    for aspect, ids in facts.terms.items():
        chosen = draw.sample(ids, max_terms)
        lines.append(f"{TITLES[aspect]}: {'; '.join(phrases.plain(ontology.terms[id].name) for id in chosen)}")
    if facts.places:
        lines.append(f"Subcellular location: {'; '.join(facts.places[:max_terms])}")
    if facts.comments:
        chosen = draw.sample(facts.comments, 2)
        lines += [f"Known: {said}" if said[0].isupper() else f"Known: it {said}" for said in chosen]
    return config.prompt.replace("{facts}", "\n".join(lines))


def write(prompts: list[str], seeds: list[str], config: LanguageModelConfig) -> tuple[str, list[str]]:
    """(origin without seed, an answer to each prompt): "" where the model said nothing, or the prompt is too long."""
    if not prompts:
        return "", []
    loaded = _load(config.model, config.device, config.dtype)
    tokens = [loaded.encode(text, config.chat) for text in prompts]
    answers = [""] * len(prompts)
    fit = [at for at, ids in enumerate(tokens) if ids and len(ids) + config.max_tokens <= loaded.context]
    fit.sort(key=lambda at: (-len(tokens[at]), at))
    with _one_thread():
        for begin in range(0, len(fit), config.batch):
            some = fit[begin : begin + config.batch]
            found = _generate(loaded, [tokens[at] for at in some], [seeds[at] for at in some], config)
            for at, text in zip(some, found, strict=True):
                answers[at] = clean(text)
    return loaded.origin, answers


def clean(text: str) -> str:
    """The first paragraph, on one line, up to its last whole sentence; "" if there are no words in it."""
    paragraph = next((part for part in text.strip().split("\n\n") if part.strip()), "")
    letters = (" " if unicodedata.category(c)[0] == "C" or c == "\ufffd" else c for c in paragraph)
    line = LABEL.sub("", " ".join("".join(letters).split()))[:LONGEST]
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", line)]
    line = line[: ends[-1]] if ends else line
    return line if len(re.findall(r"[^\W\d_]{2,}", line)) >= 3 else ""


def number(seed: str, position: int) -> float:
    """In [0, 1), for one word of one text: the same whatever else is drawn."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


@dataclass(frozen=True)
class _Loaded:
    """A model with its words. origin: `lm:<folder>@<hash>`. context: tokens that it can see."""

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    origin: str
    context: int

    def encode(self, text: str, chat: bool | None) -> list[int]:
        if self.tokenizer.chat_template if chat is None else chat:
            message = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has them
        return self.tokenizer(text)["input_ids"]


@lru_cache(maxsize=1)  # a worker writes many partitions with one model
def _load(name: str, device: str, dtype: str) -> _Loaded:
    """Raises ValueError for a folder that is missing, has no safetensors, or wants code of its own to be run."""
    folder = Path(os.path.expandvars(name)).expanduser()
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        seen = "no *.safetensors in it" if folder.is_dir() else "no such folder"
        raise ValueError(f"describe.writer.model: {name}: {seen}; give a folder that `save_pretrained` has written")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("describe.writer.device is 'cuda', and this worker sees no GPU; set it to 'cpu'")
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=getattr(torch, dtype), **safe)
    except Exception as error:  # transformers raises types of many libraries
        told = str(error).strip().partition("\n")[0]
        raise ValueError(f"describe.writer.model: {name}: transformers cannot load it: {told}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    model = model.eval()
    model.to(device)  # pyright: ignore[reportArgumentType]  its own annotation is at odds with torch's
    return _Loaded(model, tokenizer, f"lm:{folder.resolve().name}@{_hash(folder)}", context)


def _hash(folder: Path) -> str:
    """Twelve digits that stand for the files of a model."""
    whole = hashlib.sha256()
    for path in sorted({path for pattern in NAMED_FILES for path in folder.glob(pattern)}):
        with open(path, "rb") as file:
            whole.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
    return whole.hexdigest()[:12]


@contextmanager
def _one_thread() -> Iterator[None]:
    """With several, sums come out in another order on another machine; workers are what runs side by side."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _generate(loaded: _Loaded, prompts: list[list[int]], seeds: list[str], config: LanguageModelConfig) -> list[str]:
    import torch
    from transformers import LogitsProcessorList

    width, pad = max(map(len, prompts)), loaded.tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    drawing = [_drawing(seeds, width, config.temperature, config.top_p)] if config.temperature else []
    with torch.inference_mode():
        found = loaded.model.generate(
            input_ids=ids.to(loaded.model.device),
            attention_mask=seen.to(loaded.model.device),
            max_new_tokens=config.max_tokens,
            do_sample=False,  # the word that `drawing` leaves
            num_beams=1,
            pad_token_id=pad,
            logits_processor=LogitsProcessorList(drawing),
        )
    return loaded.tokenizer.batch_decode(found[:, width:].cpu(), skip_special_tokens=True)


def _drawing(seeds: list[str], width: int, temperature: float, top_p: float) -> Any:
    """A logits processor that leaves of each row one word: the one that the row's own number draws."""
    import torch

    def draw(ids: Any, scores: Any) -> Any:
        chances = torch.softmax(scores.double() / temperature, dim=-1)
        sorted_chances, order = torch.sort(chances, dim=-1, descending=True, stable=True)
        upto = torch.cumsum(sorted_chances, dim=-1)
        total = torch.where(upto - sorted_chances < top_p, upto, 0.0).amax(dim=-1, keepdim=True)
        numbers = torch.tensor([[number(seed, ids.shape[1] - width)] for seed in seeds], device=scores.device)
        place = torch.searchsorted(upto, numbers.to(upto) * total, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(-1, order.gather(-1, place), 0.0)

    return draw
