"""GGUF files of architectures whose values llama.cpp's converter changes: what is read is the model before it."""

import logging
from pathlib import Path

import pytest
import torch
from tokenizers import BertWordPieceTokenizer

import zoo
from support.logit_bounds import assert_close
from support.packaged_specs import one_in
from zoo.checkpoint.gguf.gguf_tokenizer import describe_tokenizer, make_tokenizer
from zoo.families.gguf import GGUFFile, read_catalogue

pytest.importorskip("gguf", reason="needs gguf (the extra of that name)")
from support.converted_gguf_cases import CASES
from support.converted_gguf_files import convert_case, make_case


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.getLogger("gguf.gguf_writer"), "disabled", True)  # its remarks are no lines of ours


@pytest.mark.filterwarnings("ignore:.*the model is read without its tokenizer")
@pytest.mark.parametrize("case", one_in(3, CASES))
def test_a_converted_model_is_the_one_that_it_was(tmp_path, case):
    reference = make_case(case)
    file = convert_case(case, reference, tmp_path)
    ids = torch.arange(40).unsqueeze(0)
    more = {"decoder_input_ids": ids[:, :9]} if reference.config.is_encoder_decoder else {}
    with torch.inference_mode():
        got, expected = zoo.load(file)(ids, **more), reference(ids, **more)
    assert_close(*(got.hidden, expected[0]) if got.logits is None else (got.logits, expected.logits))


@pytest.mark.filterwarnings("ignore:.*the model is read without its tokenizer")
def test_layers_that_predict_further_ahead_are_left_out(tmp_path):
    reference = make_case("glm4moe")
    said = {"block_count": 3, "nextn_predict_layers": 1}
    file = convert_case("glm4moe", reference, tmp_path, said, ("blk.2.attn_norm.weight", "blk.2.nextn.enorm.weight"))
    ids = torch.arange(40).unsqueeze(0)
    with torch.inference_mode():
        assert_close(zoo.load(file)(ids).logits, reference(ids).logits)


def test_a_scaling_that_only_some_architectures_have_is_refused_elsewhere(tmp_path):
    said = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_log_multiplier": 0.1}
    file = convert_case("dots1", make_case("dots1"), tmp_path, said)
    with pytest.raises(zoo.CheckpointError, match=r"dots1\.gguf: rope\.scaling: is .*, which is not read"):
        zoo.load(file)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hell", "##o", "w", "##or", "##ld", "!", "e", "\u4e2d"]


@pytest.mark.parametrize("more", [[], ["Hell"]], ids=["without capitals", "with capitals"])
def test_a_vocabulary_of_word_pieces_splits_as_it_did(more):
    """The converter marks the pieces that begin a word, and drops the mark of the others."""
    words = [*WORDS, *more]
    types = [3 if word[0] == "[" else 1 for word in words]
    spelt = [word if word[0] == "[" else word[2:] if word[0] == "#" else f"\u2581{word}" for word in words]
    ids = {"padding_token_id": 0, "unknown_token_id": 1, "seperator_token_id": 3, "mask_token_id": 4}
    said = {"model": "bert", "tokens": spelt, "token_type": types, **ids}
    found = GGUFFile(Path("a.gguf"), {f"tokenizer.ggml.{name}": each for name, each in said.items()}, {})
    made = make_tokenizer(found)
    places = {word: number for number, word in enumerate(words)}
    reference = BertWordPieceTokenizer(places, lowercase=not more)
    for text in ("Hello world!", "h\u00e9llo, hello\u4e2d", "hell\tw e [MASK]"):
        assert made.encode(text).ids == reference.encode(text).ids
        assert made.decode(made.encode(text).ids) == reference.decode(reference.encode(text).ids)
    assert describe_tokenizer(found)["sep_token"] == "[SEP]"


def test_each_of_these_architectures_is_read():
    assert {name.split(" ")[0] for name in CASES} <= set(read_catalogue()["architectures"])
