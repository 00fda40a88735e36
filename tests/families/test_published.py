"""Every packaged model composes, and holds exactly the parameters its makers published."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import zoo.cli
import zoo.compose
import zoo.costs
from support.packaged_specs import load

MODELS = Path(__file__).parents[2] / "conf" / "model"
NAMES = sorted(path.stem for path in MODELS.glob("*.yaml"))

# What one token meets: the paper says 12.9B and the announcement 39B.
ACTIVE = {"mixtral-8x7b": 12_879_925_248, "mixtral-8x22b": 39_152_031_744}

# (n_heads, d_model) of the textbook sizes; every head is 64 wide.
TEXTBOOK = {"small": (8, 512), "base": (12, 768), "large": (16, 1024), "xl": (32, 2048)}

TINY = ("gpt-tiny", "llama-tiny", "mistral-tiny", "mixtral-tiny")


def about(name: str) -> Any:
    """The `about` node of a model's own file, or of the file that it is an alias of."""
    node = OmegaConf.load(MODELS / f"{name}.yaml")
    return node.about if "about" in node else about(node.defaults[0])


def spec_of(name: str) -> Any:
    return load(name)


def priced(name: str) -> dict[str, Any]:
    return zoo.costs.price(spec_of(name), parts=["params"])["params"]


def gpt2(d: int, layers: int, heads: int, vocab: int = 50257, context: int = 1024) -> Any:
    return transformers.GPT2Config(n_embd=d, n_layer=layers, n_head=heads, vocab_size=vocab, n_positions=context)


def llama(kind: str, vocab: int, d: int, layers: int, heads: int, kv_heads: int, d_ff: int, **more: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(
        vocab_size=vocab,
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=d_ff,
        **more,
    )


def bloom(d: int, layers: int, heads: int) -> Any:
    return transformers.BloomConfig(vocab_size=250880, hidden_size=d, n_layer=layers, n_head=heads)


# The shapes of the published config.json files, typed here a second time on purpose.
REFERENCE = {
    "gpt2": gpt2(768, 12, 12),
    "gpt2-medium": gpt2(1024, 24, 16),
    "gpt2-large": gpt2(1280, 36, 20),
    "gpt2-xl": gpt2(1600, 48, 25),
    "gpt3-175b": gpt2(12288, 96, 96, context=2048),
    "small": gpt2(512, 6, 8),
    "base": gpt2(768, 12, 12),
    "large": gpt2(1024, 24, 16),
    "xl": gpt2(2048, 24, 32),
    "gpt-tiny": gpt2(192, 4, 6, vocab=4096, context=512),
    "llama2-7b": llama("Llama", 32000, 4096, 32, 32, 32, 11008),
    "llama2-13b": llama("Llama", 32000, 5120, 40, 40, 40, 13824),
    "llama2-70b": llama("Llama", 32000, 8192, 80, 64, 8, 28672),
    "llama": llama("Llama", 128256, 4096, 32, 32, 8, 14336),
    "llama3-8b": llama("Llama", 128256, 4096, 32, 32, 8, 14336),
    "llama3-70b": llama("Llama", 128256, 8192, 80, 64, 8, 28672),
    "llama3.1-405b": llama("Llama", 128256, 16384, 126, 128, 8, 53248),
    "llama3.2-1b": llama("Llama", 128256, 2048, 16, 32, 8, 8192, tie_word_embeddings=True),
    "llama3.2-3b": llama("Llama", 128256, 3072, 28, 24, 8, 8192, tie_word_embeddings=True),
    "llama-tiny": llama("Llama", 4096, 192, 4, 6, 2, 512, tie_word_embeddings=True),
    "mistral-7b-v0.1": llama("Mistral", 32000, 4096, 32, 32, 8, 14336, sliding_window=4096),
    "mistral-7b-v0.3": llama("Mistral", 32768, 4096, 32, 32, 8, 14336, sliding_window=None),
    "mistral-tiny": llama("Mistral", 4096, 192, 4, 6, 2, 512, sliding_window=64, tie_word_embeddings=True),
    "mixtral-8x7b": llama("Mixtral", 32000, 4096, 32, 32, 8, 14336),
    "mixtral-8x22b": llama("Mixtral", 32000, 6144, 56, 48, 8, 16384),
    "mixtral-tiny": llama("Mixtral", 4096, 192, 4, 6, 2, 256, tie_word_embeddings=True),
    "bloom-560m": bloom(1024, 24, 16),
    "bloom-176b": bloom(14336, 70, 112),
    "mpt-7b": transformers.MptConfig(d_model=4096, n_heads=32, n_layers=32, vocab_size=50432),
}


def test_every_packaged_model_has_a_reference_to_be_compared_with() -> None:
    assert set(REFERENCE) <= set(NAMES)  # the others have theirs in test_published_rest.py
    assert set(TEXTBOOK) | set(TINY) <= set(REFERENCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_counts_what_its_file_says_was_published(name: str) -> None:
    assert priced(name)["total"] == about(name).params


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    assert set(about(name)) == {"title", "params", "source", "note"}
    assert all(about(name).values())


@pytest.mark.parametrize("name", REFERENCE)
def test_the_total_is_what_the_reference_implementation_allocates(name: str) -> None:
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(REFERENCE[name])
    # parameters() gives a shared tensor once, so a tied head is counted once
    assert priced(name)["total"] == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize("name", REFERENCE)
def test_the_active_count_leaves_out_only_the_experts_a_token_does_not_meet(name: str) -> None:
    params = priced(name)
    assert params["active"] == ACTIVE.get(name, params["active"])
    config = REFERENCE[name]
    idle = getattr(config, "num_local_experts", 0) - getattr(config, "num_experts_per_tok", 0)
    expert = 3 * config.hidden_size * getattr(config, "intermediate_size", 0)
    assert params["total"] - params["active"] == config.num_hidden_layers * idle * expert


@pytest.mark.parametrize("name", TEXTBOOK)
def test_a_textbook_size_has_heads_64_wide_and_nearly_12_layers_d_model_squared_weights(name: str) -> None:
    spec = spec_of(name)
    n_heads, d_model = TEXTBOOK[name]
    (block,) = spec.blocks.values()
    attention: Any = block.attention
    assert (attention.n_heads, spec.d_model, attention.head_dim) == (n_heads, d_model, 64)
    blocks = priced(name)["total"] - (spec.vocab_size + spec.max_seq_len) * d_model
    assert math.isclose(blocks, 12 * spec.n_layers * d_model**2, rel_tol=3e-3)


def test_the_tiny_models_differ_in_their_kind_and_not_in_their_size() -> None:
    specs = [spec_of(name) for name in TINY]
    assert len({(spec.d_model, spec.n_layers, spec.vocab_size, spec.max_seq_len) for spec in specs}) == 1
    active = [priced(name)["active"] for name in TINY]
    assert min(active) > 1.5e6 and max(active) < 1.15 * min(active)


def test_the_alias_is_the_model_it_names() -> None:
    assert spec_of("llama") == spec_of("llama3-8b")


@pytest.mark.parametrize("name", ["llama", "llama3.2-1b", "mistral-tiny"])
def test_a_model_composes_the_same_at_the_root_and_inside_a_training_config(name: str) -> None:
    store = ConfigStore.instance()
    store.store("published_alone", {"defaults": [{"model@_here_": name}, "_self_"]})
    store.store("published_inside", {"defaults": [{"model": name}, "_self_"]})
    with initialize_config_dir(str(MODELS.parent), version_base="1.3"):
        assert compose("published_alone") == compose("published_inside").model


def test_the_list_names_every_packaged_model_and_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.cli.run(["list", "--json"]) == 0
    listed = {model["name"]: model["params"] for model in json.loads(capsys.readouterr().out)}
    assert listed == {name: about(name).params for name in NAMES}
