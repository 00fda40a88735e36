"""Text in pieces: whole characters, stop strings, and from a checkpoint to what is printed."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import zoo
from zoo.checkpoint import store
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.generation import text
from zoo.generation.engine import generate
from zoo.generation.sample import Sampling
from zoo.generation.text import pieces, until
from zoo.runs import LAST_RUN

SAMPLE = "naïve café — 東京 🙂👩‍👩‍👧 def f(x):\n    return 'ﬁn'\n" * 3


def byte_level() -> Tokenizer:
    """A tokenizer of bytes and a few merges, most of which split this text's characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """A tokenizer of SentencePiece's manner (Llama 2): spaces as '▁', unknown characters as single bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefhinrstuvx", "▁de", "▁f", "▁return"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["byte_level", "byte_fallback"])
def test_pieces_join_to_the_whole_text_and_end_between_characters(tokenizer):
    ids = tokenizer.encode(SAMPLE).ids
    assert tokenizer.decode(ids) == SAMPLE
    for cut in range(20):
        start = tokenizer.decode(ids[:cut])
        if start.endswith("\ufffd"):
            continue  # no prompt ends inside a character
        parts = list(pieces(ids[cut:], tokenizer, ids[:cut]))
        assert start + "".join(parts) == SAMPLE
        assert not any("\ufffd" in part for part in parts)
        assert len(parts) > 20


def test_bytes_that_are_no_character_come_out_as_the_whole_decode_has_them():
    tokenizer = byte_level()
    for seed in range(200):
        ids = torch.randint(270, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
        assert "".join(pieces(ids, tokenizer)) == tokenizer.decode(ids)


def test_bytes_that_spoil_the_character_before_them_do_not_end_the_text():
    """Byte fallback decodes a run of bytes as a whole: one bad byte turns the good ones before it into U+FFFD too."""
    tokenizer = byte_fallback()
    number = {token: tokenizer.token_to_id(token) for token in ("<0x56>", "<0xC9>", "r", "d", "<0xC3>", "<0xA9>")}
    ids = [number[token] for token in ("<0x56>", "<0xC9>", "r", "d", "<0xC3>", "<0xA9>", "d", "<0xC3>")]
    assert tokenizer.decode(ids) == "\ufffd\ufffdrdéd\ufffd"
    assert list(pieces(ids, tokenizer)) == ["V", "\ufffdr", "d", "é", "d", "\ufffd"]


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["byte_level", "byte_fallback"])
def test_a_prompt_that_ends_in_the_replacement_character_is_not_repeated(tokenizer):
    prompt, ids = tokenizer.encode("def \ufffd").ids, tokenizer.encode("f(x)").ids
    assert tokenizer.decode(prompt).endswith("\ufffd")
    assert "".join(pieces(ids, tokenizer, prompt)) == tokenizer.decode(ids)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (["END"], "one aaab two EN three\n "),
        (["four", "END"], "one aaab two EN three\n "),
        (["ENDS", "ND", "END"], "one aaab two EN three\n "),
        (["three\n E", "hr"], "one aaab two EN t"),
        (["aab"], "one a"),
        (["one"], ""),
        (["absent", "EN!"], "one aaab two EN three\n END four EN"),
        ([], "one aaab two EN three\n END four EN"),
    ],
)
def test_text_ends_before_the_stop_string_that_is_complete_first_however_it_is_cut(size, stop, left):
    text = "one aaab two EN three\n END four EN"
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(until(parts, stop)) == left


def test_text_is_held_back_only_while_a_stop_string_may_be_coming():
    assert list(until(["ab", "cE", "Nx", "E"], ["END"])) == ["ab", "c", "ENx", "E"]


@pytest.fixture
def checkpoint(tmp_path):
    """A model of bytes and its tokenizer, saved."""
    small = [
        "vocab_size=257",
        "d_model=32",
        "n_layers=1",
        "n_heads=2",
        "n_kv_heads=2",
        "head_dim=16",
        "d_ff=32",
        "max_seq_len=64",
    ]
    store.save_model(zoo.build("llama-tiny", small, device="cpu"), tmp_path / "some", make_byte_tokenizer())
    return tmp_path / "some"


def test_text_streams_from_a_checkpoint_up_to_a_stop_string(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    ids = torch.tensor([tokenizer.encode("def f")])
    whole = tokenizer.decode(generate(model, ids, 60, 1.0, [tokenizer.eos_id], seed=1)[0, 5:].tolist())
    options = {"max_new_tokens": 60, "sampling": Sampling(temperature=1.0, seed=1), "device": "cpu"}
    assert len(whole) > 13
    assert "".join(text.stream(checkpoint, "def f", **options)) == whole
    stop = whole[10:13]
    assert "".join(text.stream(checkpoint, "def f", stop=[stop], **options)) == whole[: whole.index(stop)]


def test_text_ends_at_the_end_of_text_token(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    options = {"max_new_tokens": 30, "sampling": Sampling(temperature=1.0, seed=1)}
    ids = generate(model, torch.tensor([[ord("x")]]), 30, 1.0, seed=1)[0, 1:].tolist()
    tokenizer.eos_id = ids[20]
    assert "".join(text.complete(model, tokenizer, "x", **options)) == tokenizer.decode(ids[: ids.index(ids[20])])


def test_an_empty_prompt_starts_from_the_end_of_text(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    expected = generate(model, torch.tensor([[tokenizer.eos_id]]), 8)[0, 1:].tolist()
    assert "".join(text.complete(model, tokenizer, "", max_new_tokens=8)) == tokenizer.decode(expected)


def test_the_model_is_free_again_once_a_stop_string_has_come(checkpoint):
    model, tokenizer = store.load(checkpoint).train(), make_byte_tokenizer()
    first = next(text.complete(model, tokenizer, "x", max_new_tokens=9))
    assert model.training  # the iterator is gone already
    assert list(text.complete(model, tokenizer, "x", max_new_tokens=9, stop=[first])) == []
    assert model.training


def test_without_a_checkpoint_the_last_run_writes_and_its_absence_is_said_in_one_line(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(ConfigError, match=r"--checkpoint DIR") as caught:
        text.stream(None, "x", max_new_tokens=4)
    assert len(caught.value.faults) == 1
    LAST_RUN.parent.mkdir()
    LAST_RUN.write_text(str(checkpoint))
    assert "".join(text.stream(None, "x", max_new_tokens=4)) == "".join(text.stream(checkpoint, "x", max_new_tokens=4))


def test_going_beyond_the_trained_length_is_noted_but_allowed(checkpoint):
    notes = []
    assert text.stream(checkpoint, "xy", max_new_tokens=62, note=notes.append)
    assert notes == []
    assert text.stream(checkpoint, "xy", max_new_tokens=63, note=notes.append)
    assert notes == ["65 tokens may come, the model is made for 64: what lies beyond may make less sense"]
