"""Which serving engines list what `zoo convert` writes: conf/serving.yaml, its page, and the line of the command."""

from __future__ import annotations

import json

import pytest
import transformers

import zoo
import zoo.cli
from pages import serving_page
from zoo.families.serving import WAYS, describe_serving, read_engines


def test_every_architecture_listed_is_one_that_a_family_writes_and_every_list_has_its_source():
    written = {each for classes in serving_page.list_exported().values() for each in classes}
    assert len(read_engines()) == 3
    for engine in read_engines():
        assert set(engine.ways) <= written
        assert set(engine.ways.values()) <= set(WAYS)
        assert engine.version and engine.source and engine.checked


def test_the_page_is_what_its_command_writes():
    assert serving_page.PAGE.read_text(encoding="utf-8") == serving_page.page(), "docs/serving.md is old (make docs)"


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("LlamaForCausalLM", "vLLM, SGLang and TensorRT-LLM serve LlamaForCausalLM"),
        ("GPT2LMHeadModel", "vLLM and SGLang serve GPT2LMHeadModel; TensorRT-LLM does not list it"),
        ("BloomForCausalLM", "vLLM serves BloomForCausalLM; SGLang and TensorRT-LLM do not list it"),
        ("NomicBertModel", "vLLM (pooling) serves NomicBertModel; SGLang and TensorRT-LLM do not list it"),
        (
            "OlmoForCausalLM",
            "vLLM (through transformers) and SGLang serve OlmoForCausalLM; TensorRT-LLM does not list it",
        ),
        ("XGLMForCausalLM", "vLLM, SGLang and TensorRT-LLM do not list XGLMForCausalLM"),
    ],
)
def test_the_line_names_who_serves_an_architecture_and_who_does_not(architecture, said):
    assert describe_serving(architecture) == said


def test_a_converted_run_says_who_serves_it_and_ends_a_text_where_its_tokenizer_does(tmp_path, capsys):
    model = zoo.build("llama-tiny", ["n_layers=1", "vocab_size=99"], device="cpu")
    from zoo.checkpoint import store

    ours, out = tmp_path / "ours", tmp_path / "out"
    store.save_model(model, ours)
    added = [{"id": 98, "content": "<|endoftext|>"}]
    (ours / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}, "added_tokens": added}))
    (ours / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    assert zoo.cli.run(["convert", str(ours), str(out), "--no-verify"]) == 0
    assert "\nvLLM, SGLang and TensorRT-LLM serve LlamaForCausalLM (docs/serving.md)\n" in capsys.readouterr().out
    assert transformers.AutoConfig.from_pretrained(out).eos_token_id == 98
