"""A language model as the writer: tiny random ones, made here. The same text however prompts are batched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_prep.describe import DescribeConfig, count, describe, describe_all
from data_prep.ontology import Ontology, OntologyTerm
from data_prep.words import language_model
from data_prep.words.draws import Draw
from data_prep.words.facts import Facts
from data_prep.words.language_model import LanguageModelConfig, clean, number, prompt, write
from pretrain.sample import About, Function, Sample, Term, Text

SENTENCE = "the protein binds ATP in a cell . membrane zinc it acts kinase of and nucleus DNA repair moves things"
ONTOLOGY = Ontology(
    "test",
    {
        "GO:0000001": OntologyTerm("ATP binding", "molecular_function"),
        "GO:0000002": OntologyTerm("DNA repair", "biological_process"),
        "GO:0000003": OntologyTerm("nucleus", "cellular_component"),
    },
)
SAMPLES = [
    Sample(f"P{n}", function=Function(tuple(Term(id, "IDA") for id in list(ONTOLOGY.terms)[: 1 + n % 3])))
    for n in range(10)
]


def make(folder: Path, kind: str = "llama", seed: int = 3, template: str | None = None) -> Path:
    """A causal model of some thousand random weights over whole words."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<eos>", *SENTENCE.split()])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"vocab_size": len(vocabulary), "initializer_range": 0.4, "bos_token_id": 1, "eos_token_id": 1}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=128, n_embd=32, n_layer=2, n_head=4, **sizes))
    else:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=128, **shape, **sizes))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "tiny-llama")


def config(model: Path, **options) -> LanguageModelConfig:
    return LanguageModelConfig.model_validate({"model": str(model), "max_tokens": 24, **options})


def describing(model: Path, **options) -> DescribeConfig:
    writer = {"kind": "language_model", "model": str(model), "max_tokens": 24, **options}
    return DescribeConfig.model_validate({"writer": writer})


PROMPTS = [" ".join(["the protein binds"] * n) for n in (1, 5, 3, 8, 2, 2, 1)]
SEEDS = [f"0:0:P{n}" for n in range(len(PROMPTS))]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_text_does_not_depend_on_its_batch(tmp_path, kind):
    model = make(tmp_path / kind, kind)
    origin, answers = write(PROMPTS, SEEDS, config(model, batch=1))
    assert sum(map(bool, answers)) >= 5
    assert len(set(answers)) >= 5
    for batch in (2, 3, 7):
        assert write(PROMPTS, SEEDS, config(model, batch=batch)) == (origin, answers)
    back = write(PROMPTS[::-1], SEEDS[::-1], config(model, batch=3))[1]
    assert back[::-1] == answers


def test_words_are_drawn_by_seed(model):
    same = [PROMPTS[0]] * 12
    _, answers = write(same, [f"0:{n}:P1" for n in range(12)], config(model))
    assert len(set(answers)) > 8
    _, others = write(same, [f"1:{n}:P1" for n in range(12)], config(model))
    assert set(others) != set(answers)
    _, likeliest = write(same[:3], SEEDS[:3], config(model, temperature=0.0))
    assert len(set(likeliest)) == 1
    _, narrow = write(same[:3], SEEDS[:3], config(model, top_p=1e-9))
    assert narrow == likeliest


def test_drawing_follows_the_chances():
    """Of three words with chances 0.6, 0.3, 0.1: as often as that; and 2 : 1 : 0 of the likeliest 0.7."""
    scores = torch.log(torch.tensor([[0.3, 0.6, 0.1]]))
    for top_p, expected in ((1.0, [0.3, 0.6, 0.1]), (0.7, [1 / 3, 2 / 3, 0.0])):
        found = torch.zeros(3)
        for n in range(3000):
            chosen = language_model._drawing([f"{n}"], 0, 1.0, top_p)(torch.zeros(1, 1), scores)
            assert chosen.isfinite().sum() == 1
            found[chosen.argmax()] += 1
        assert torch.allclose(found / 3000, torch.tensor(expected), atol=0.03)


def test_numbers_are_even_and_their_own():
    found = [number(seed, at) for seed in ("a", "b") for at in range(2000)]
    assert len(set(found)) == 4000
    assert 0 <= min(found) < 0.01 < 0.99 < max(found) < 1
    assert number("0:0:P1", 0) == number("0:0:P1", 0)


def test_descriptions_say_which_model_wrote_them(model):
    described = list(describe_all(SAMPLES, ONTOLOGY, describing(model)))
    origins = [text.origin for one in described if one.function for text in one.function.texts]
    name, _, hash = origins[0].removeprefix("lm:").rpartition(":")[0].partition("@")
    assert (name, len(hash)) == (model.name, 12)
    assert {origin.rpartition(":")[2] for origin in origins} == {"0", "1"}
    assert [one.key for one in described] == [one.key for one in SAMPLES]
    counted = sum((count(one) for one in described), start=count(SAMPLES[0]))
    assert counted[f"lm:{name}@{hash}"] + counted["template"] == len(origins)


def test_windows_and_workers_change_nothing(model):
    alone = [describe(one, ONTOLOGY, describing(model)) for one in SAMPLES]
    for options in ({"batch": 1}, {"batch": 2}, {"batch": 16}):
        together = list(describe_all(iter(SAMPLES), ONTOLOGY, describing(model, **options)))
        assert [one.function for one in together] == [one.function for one in alone]


def test_another_process_with_other_threads_writes_the_same(model):
    here = write(["the protein binds", "it acts"], ["a", "b"], config(model))
    code = (
        "import json, sys, torch; torch.set_num_threads(2 if torch.get_num_threads() == 1 else 1)\n"
        "from data_prep.words.language_model import LanguageModelConfig, write\n"
        "config = LanguageModelConfig(model=sys.argv[1], max_tokens=24)\n"
        "print(json.dumps(write(['the protein binds', 'it acts'], ['a', 'b'], config)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True)
    assert tuple(json.loads(done.stdout.splitlines()[-1])) == here
    assert all(here[1])


def test_other_files_are_another_model(tmp_path):
    first, again, other = (make(tmp_path / str(n) / "m", seed=seed) for n, seed in enumerate((1, 1, 2)))
    origins = [write(["it"], ["0"], config(folder))[0] for folder in (first, again, other)]
    assert origins[0] == origins[1] != origins[2]


def test_what_a_model_leaves_empty_is_written_by_template(model):
    long = describing(model, prompt="the " * 120 + "{facts}")  # no room for an answer
    described = describe(SAMPLES[2], ONTOLOGY, long)
    assert described.function is not None
    assert count(described) == {"template": 2}
    assert described.function.texts == describe(SAMPLES[2], ONTOLOGY, DescribeConfig.model_validate({})).function.texts  # pyright: ignore


def test_a_protein_without_facts_is_not_asked_about(tmp_path):
    nowhere = describing(tmp_path / "nowhere")
    one = Sample("P1", "MKT")
    assert describe(one, ONTOLOGY, nowhere) is one  # the model is not even looked for


def test_the_prompt_has_the_facts():
    about = About("Titin kinase", "Homo sapiens (Human)", fragment=True, ec=("2.7.11.1",))
    terms = {"molecular_function": ["GO:0000001"], "biological_process": ["GO:0000002"]}
    facts = Facts("P1", terms, about, ("binds calcium ions", "This protein is old"), ("the nucleus",))
    asked = LanguageModelConfig(model="x", prompt="<{facts}>")
    said = prompt(facts, ONTOLOGY, 4, Draw("x"), asked).splitlines()
    assert said[0] == "<Name: titin kinase"
    assert said[1:7] == [
        "Organism: Homo sapiens",
        "Enzyme: a transferase of class EC 2.7.11.1",
        "Only a fragment of the sequence is known",
        "Molecular function: ATP binding",
        "Biological process: DNA repair",
        "Subcellular location: the nucleus",
    ]
    assert {line.rstrip(">") for line in said[7:]} == {"Known: it binds calcium ions", "Known: This protein is old"}


def test_a_chat_template_is_used_if_there_is_one(tmp_path):
    folder = make(tmp_path / "chat", template="{% for m in messages %}zinc {{ m['content'] }} zinc{% endfor %}")
    plain = write(["it acts"], ["0"], config(folder, chat=False))
    assert write(["it acts"], ["0"], config(folder)) != plain
    assert write(["zinc it acts zinc"], ["0"], config(folder, chat=False)) == write(["it acts"], ["0"], config(folder))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (" The protein binds ATP. It mo", "The protein binds ATP."),
        ("It binds\nATP well.\n\nFacts about a protein:", "It binds ATP well."),
        ("Description: It binds ATP!", "It binds ATP!"),
        ("It binds\x00 A\x07TP\ufffd now.", "It binds A TP now."),
        ("no end at all here", "no end at all here"),
        ("", ""),
        (". . . 1 2 3", ""),
        ("ATP ATP", ""),
    ],
)
def test_answers_are_cleaned(answer, text):
    assert clean(answer) == text


def test_answers_are_bounded():
    assert len(clean("word " * 10_000)) <= language_model.LONGEST


def test_a_model_that_cannot_be_used_is_named(tmp_path, model):
    with pytest.raises(ValueError, match=r"nowhere: no such folder; give a folder that `save_pretrained` has written"):
        write(["it"], ["0"], config(tmp_path / "nowhere"))
    (tmp_path / "pickled").mkdir()
    torch.save({"w": torch.zeros(1)}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \*\.safetensors in it"):
        write(["it"], ["0"], config(tmp_path / "pickled"))
    with pytest.raises(ValueError, match="this worker sees no GPU"):
        write(["it"], ["0"], config(model, device="cuda"))
    with pytest.raises(ValueError, match=r"put \{facts\} into it"):
        LanguageModelConfig(model="x", prompt="no place")


def test_code_of_a_folder_is_not_run(tmp_path):
    folder = make(tmp_path / "own")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="transformers cannot load it"):
        write(["it"], ["0"], config(folder))
    assert not (tmp_path / "ran").exists()


def test_describing_by_template_needs_no_torch():
    code = (
        "import sys; from data_prep.describe import DescribeConfig, describe; from data_prep.ontology import *; "
        "from pretrain.sample import *; o = Ontology('', {'GO:1': OntologyTerm('ATP binding', 'molecular_function')}); "
        "s = Sample('P1', function=Function((Term('GO:1', 'IDA'),))); "
        "print(describe(s, o, DescribeConfig.model_validate({})) is not s, 'torch' in sys.modules, "
        "'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["True", "False", "False"]


def test_written_texts_stay_first(model):
    one = Sample("P1", function=Function((Term("GO:0000001", "IDA"),), (Text("Known.", "sgd"),)))
    described = describe(one, ONTOLOGY, describing(model))
    assert described.function is not None
    assert described.function.texts[0].origin == "sgd"
    assert all(text.origin.startswith("lm:tiny-llama@") for text in described.function.texts[1:])
