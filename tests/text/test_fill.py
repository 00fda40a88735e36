"""Masked tokens: the probabilities of transformers' fill-mask pipeline, on random models and a real tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import zoo
from support.minilm import MINILM, needs_minilm
from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXTS = [
    "Paris is the [MASK] of France.",
    "[MASK] is [MASK], and a text of another length is here to be padded against.",
    "No [MASK]",
]


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A random BERT with BERT's own tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(3)
    config = transformers.BertConfig(vocab_size=30522, max_position_embeddings=64, **SIZE)
    randomise(transformers.BertForMaskedLM(config)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MINILM / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    """A random RoBERTa, whose positions begin after the padding token's, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(4)
    config = transformers.RobertaConfig(
        vocab_size=300, max_position_embeddings=90, pad_token_id=1, bos_token_id=257, eos_token_id=258, **SIZE
    )
    config.type_vocab_size = 1
    randomise(transformers.RobertaForMaskedLM(config)).save_pretrained(folder)
    backend = make_byte_tokenizer().backend
    backend.add_special_tokens(["<s>", "</s>", "<pad>", "<mask>"])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return folder


@needs_minilm
@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize(("name", "mask"), [("bert", "[MASK]"), ("roberta", "<mask>")])
def test_tokens_and_probabilities_are_those_of_the_fill_mask_pipeline(request, name, mask, batch_size):
    folder = request.getfixturevalue(name)
    texts = [text.replace("[MASK]", mask) for text in TEXTS]
    pipeline = transformers.pipeline("fill-mask", model=str(folder), tokenizer=str(folder), top_k=7, device="cpu")
    for text, masks in zip(texts, zoo.fill(folder, texts, top_k=7, batch_size=batch_size), strict=True):
        expected = pipeline(text)
        expected = expected if text.count(mask) > 1 else [expected]
        assert len(masks) == len(expected)
        for guesses, theirs in zip(masks, expected, strict=True):
            assert [guess["id"] for guess in guesses] == [each["token"] for each in theirs]
            assert [guess["token"].strip() for guess in guesses] == [each["token_str"].strip() for each in theirs]
            ours = [guess["probability"] for guess in guesses]
            assert ours == pytest.approx([each["score"] for each in theirs], rel=2e-4)


@needs_minilm
def test_a_model_at_hand_fills_as_its_folder_does(bert):
    assert zoo.fill(zoo.load(bert), TEXTS, tokenizer=bert, top_k=3) == zoo.fill(bert, TEXTS, top_k=3)


@needs_minilm
def test_the_verb_prints_what_python_gives(bert, capsys):
    assert run(["fill", *TEXTS, "--checkpoint", str(bert), "--top-k", "2", "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == zoo.fill(bert, TEXTS, top_k=2)
    assert run(["fill", TEXTS[1], "--checkpoint", str(bert), "--top-k", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == TEXTS[1]
    assert [line.strip() for line in lines if "mask" in line] == ["mask 1", "mask 2"]
    assert sum("%" in line for line in lines) == 4


@needs_minilm
def test_what_cannot_be_filled_is_said_for_all_texts_at_once(bert):
    with pytest.raises(ConfigError) as caught:
        zoo.fill(bert, ["a mask", TEXTS[0], "word " * 80 + "[MASK]", "<mask>"])
    assert caught.value.faults == [
        "texts: number 1 has no [MASK] (the model's word for what is to be filled)",
        "texts: number 4 has no [MASK] (the model's word for what is to be filled)",
        "texts: number 3 has 83 tokens, the model reads 64 (less)",
    ]
    with pytest.raises(ConfigError, match="top_k: is 0"):
        zoo.fill(bert, TEXTS, top_k=0)


@needs_minilm
def test_a_model_that_fills_no_masks_says_so_in_one_line(bert, tmp_path, capsys):
    assert run(["fill", "a [MASK]", "--checkpoint", str(MINILM)]) == 2
    assert capsys.readouterr().err.startswith("zoo: error: fill: the model has no head")
    decoder = zoo.build("llama-tiny", ["n_layers=1"], device="meta")
    with pytest.raises(ConfigError, match="fill: the model is a decoder, which fills no masks"):
        zoo.fill(decoder, ["a [MASK]"], tokenizer=bert)
    make_byte_tokenizer().save(tmp_path)
    with pytest.raises(ConfigError, match="tokenizer: has no mask token"):
        zoo.fill(zoo.load(bert), ["a [MASK]"], tokenizer=tmp_path)
    with pytest.raises(ConfigError, match="tokenizer: a model alone does not read text"):
        zoo.fill(zoo.load(bert), ["a [MASK]"])
