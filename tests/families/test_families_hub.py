"""Files on the hub leave fields out and use older words: they read as transformers' own config classes read them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import save_file

import zoo
from support.cases import decoders_2025, gpt, linear
from support.reference_models import CLOSE, pair, tensors
from zoo.checkpoint import hf
from zoo.checkpoint.likeness import list_spec_differences
from zoo.errors import CheckpointError
from zoo.families.described import read_body

SMALL = {
    "hidden_size": 64,
    "vocab_size": 100,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 50,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

CASES = {case.name: case for case in [*gpt.CASES, *decoders_2025.CASES]}
SARVAM = {"type": "deepseek_yarn", "factor": 40.0, "original_max_position_embeddings": 64, "mscale_all_dim": 1.0}

KDA = {
    "full_attn_layers": [4, 7],
    "kda_layers": [1, 2, 3, 5, 6],
    "head_dim": 20,
    "num_heads": 3,
    "short_conv_kernel_size": 3,
}

FILES = [
    ("LlamaForCausalLM", "LlamaConfig", {"rope_theta": 5e3, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"max_position_embeddings": 512, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    ),
    ("LlamaForCausalLM", "LlamaConfig", {"max_position_embeddings": 512, "rope_scaling": LLAMA3}),
    ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": None, "head_dim": None}),
    ("MistralForCausalLM", "MistralConfig", {"sliding_window": None, "rope_theta": 1e6}),
    ("MistralForCausalLM", "MistralConfig", {}),
    ("MinistralForCausalLM", "MinistralConfig", {"head_dim": 16}),
    ("Qwen2ForCausalLM", "Qwen2Config", {"use_sliding_window": False, "sliding_window": 6, "max_window_layers": 2}),
    ("Qwen2ForCausalLM", "Qwen2Config", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    ("Qwen3ForCausalLM", "Qwen3Config", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3}),
    ("GemmaForCausalLM", "GemmaConfig", {"hidden_act": "gelu", "hidden_activation": None}),
    ("Gemma2ForCausalLM", "Gemma2Config", {"final_logit_softcapping": None, "hidden_act": "gelu"}),
    ("Gemma3ForCausalLM", "Gemma3TextConfig", {"rope_theta": 2e5, "rope_local_base_freq": 5e3, "rope_scaling": LINEAR}),
    ("Gemma3ForCausalLM", "Gemma3TextConfig", {"sliding_window_pattern": 3}),
    ("Olmo3ForCausalLM", "Olmo3Config", {"rope_theta": 2e5, "rope_scaling": LINEAR}),
    (
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {"no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 6},
    ),
    ("Cohere2ForCausalLM", "Cohere2Config", {"sliding_window_pattern": 3, "rope_theta": 5e4}),
    ("NemotronForCausalLM", "NemotronConfig", {}),
    ("NemotronForCausalLM", "NemotronConfig", {"partial_rotary_factor": 0.25, "rope_theta": 5e3}),
    ("GlmForCausalLM", "GlmConfig", {"partial_rotary_factor": 1.0, "head_dim": 16}),
    ("Glm4ForCausalLM", "Glm4Config", {"head_dim": 16}),
    ("Exaone4ForCausalLM", "Exaone4Config", {"sliding_window_pattern": 2}),
    ("ApertusForCausalLM", "ApertusConfig", {"rope_theta": 5e3}),
    ("ApertusForCausalLM", "ApertusConfig", {"rope_theta": 5e3, "rope_scaling": LINEAR}),
    ("MiniMaxM2ForCausalLM", "MiniMaxM2Config", {"head_dim": 16, "rotary_dim": 8, "rope_theta": 5e6}),
    (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        {"layer_types": [*["mamba"] * 5, "attention", "mamba"], "position_embedding_type": "nope", "mamba_n_heads": 8},
    ),
    (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        {
            "layer_types": ["attention"] * 7,
            "position_embedding_type": "rope",
            "rope_theta": 1e7,
            "num_local_experts": 0,
        },
    ),
    ("Glm4MoeLiteForCausalLM", "Glm4MoeLiteConfig", {"rope_theta": 1e6, "partial_rotary_factor": 1.0}),
    ("AfmoeForCausalLM", "AfmoeConfig", {"rope_theta": 1e4, "num_dense_layers": 2}),
    ("CwmForCausalLM", "CwmConfig", {}),
    ("CwmForCausalLM", "CwmConfig", {"rope_theta": 5e4}),
    ("CwmForCausalLM", "CwmConfig", {"rope_scaling": LLAMA3}),
    ("LlamaForCausalLM", "ExaoneConfig", {"num_layers": 5, "layer_norm_epsilon": 1e-4, "activation_function": "gelu"}),
    ("LlamaForCausalLM", "InternLM3Config", {"qkv_bias": True, "bias": True, "rope_theta": 5e7}),
    ("LlamaForCausalLM", "IQuestCoderConfig", {"rope_theta": 5e5}),
    ("ExaoneMoeForCausalLM", "ExaoneMoeConfig", {"sliding_window_pattern": 3, "first_k_dense_replace": 2}),
    ("FlintForCausalLM", "FlintConfig", {}),
    ("MellumForCausalLM", "MellumConfig", {}),
    ("GraniteSWAForCausalLM", "GraniteSWAConfig", {"rope_theta": 5e5}),
    ("GraniteMoeSWAForCausalLM", "GraniteMoeSWAConfig", {"layer_rope_theta": [0, 1e4, 1e4, 1e4, 0, 1e4, 1e4]}),
    ("HYV3ForCausalLM", "HYV3Config", {}),
    ("HyperCLOVAXForCausalLM", "HyperCLOVAXConfig", {"rope_theta": 5e5, "head_dim": 20}),
    ("MiniCPM3ForCausalLM", "MiniCPM3Config", {}),
    ("DeepseekV3ForCausalLM", "SarvamMLAConfig", {"num_experts": 8, "num_shared_experts": 2, "rope_scaling": SARVAM}),
    ("Glm4MoeForCausalLM", "SarvamMoEConfig", {"num_experts": 8, "num_shared_experts": 2, "use_qkv_bias": True}),
    ("SolarOpenForCausalLM", "SolarOpenConfig", {"rope_theta": 5e5}),
    ("YoutuForCausalLM", "YoutuConfig", {"rope_theta": 1.6e6}),
    (
        "Lfm2ForCausalLM",
        "Lfm2Config",
        {"full_attn_idxs": [2, 5], "block_ff_dim": 300, "rope_theta": 1e6, "conv_dim": 64},
    ),
    (
        "Lfm2MoeForCausalLM",
        "Lfm2MoeConfig",
        {"layer_types": ["conv", *["conv", "full_attention"] * 3], "rope_theta": 1e6, "tie_embedding": False},
    ),
    (
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {"rope_theta": 5e3, "block_types": ["recurrent", "attention"], "_block_types": ["x"], "lru_width": 48},
    ),
    ("OlmoHybridForCausalLM", "OlmoHybridConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": None}}),
    (
        "KimiLinearForCausalLM",
        "KimiLinearConfig",
        {"linear_attn_config": KDA, "first_k_dense_replace": 2, "rope_theta": 1e4},
    ),
]


TWICE = {"num_layers": "num_hidden_layers", "block_ff_dim": "intermediate_size"}
"""Second names of fields: a file that has both with two values is refused."""


@pytest.mark.parametrize(("model", "config", "fields"), FILES, ids=lambda each: each if isinstance(each, str) else "")
def test_a_file_that_leaves_fields_out_reads_as_transformers_reads_it(model, config, fields, tmp_path):
    kind = getattr(transformers, config)
    stated = {**SMALL, **fields, "model_type": kind.model_type, "architectures": [model]}
    for name in TWICE.keys() & fields.keys():
        del stated[TWICE[name]]
    (tmp_path / "hub.json").write_text(json.dumps(stated))
    kind.from_dict(json.loads(json.dumps(stated))).save_pretrained(tmp_path)
    ours, theirs = (hf.compose_spec(read_body(tmp_path / name)[1]) for name in ("hub.json", "config.json"))
    assert list_spec_differences(ours, theirs) == []


@pytest.mark.parametrize("field", ["attn_bias", "sliding_windows", "mlp_biases"])
def test_a_field_that_no_llama_has_is_refused_by_name(field, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**SMALL, "model_type": "llama", field: 4}))
    with pytest.raises(CheckpointError, match=field):
        read_body(file)


def test_part_of_a_head_turned_is_refused_where_the_reference_does_not_read_it(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**SMALL, "model_type": "llama", "rope_theta": 1e4, "partial_rotary_factor": 0.5}))
    with pytest.raises(CheckpointError, match="partial_rotary_factor"):
        read_body(file)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt2", "GPT2LMHeadModel"),
        ("exaone", "ExaoneForCausalLM"),
        ("internlm3", "InternLM3ForCausalLM"),
        ("iquestcoder", "IQuestCoderForCausalLM"),
        ("sarvam_mla", "SarvamMLAForCausalLM"),
        ("sarvam_moe", "SarvamMoEForCausalLM"),
    ],
)
def test_a_type_of_config_that_another_familys_class_serves_keeps_its_name(name, published, tmp_path):
    two = pair(CASES[name])
    config = json.loads((two.folder / "config.json").read_text())
    kind = {"gpt2": "gpt-sw3"}.get(name, name)
    shutil.copytree(two.folder, tmp_path / "hub")
    stated = {**config, "model_type": kind, "architectures": [published]}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(stated))
    zoo.export(zoo.load(tmp_path / "hub"), tmp_path / "out", verify=False)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == (kind, [published])
    given = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(given) is type(two.reference)
    with torch.no_grad():
        ours, theirs = two.ours(two.ids()).logits, given(two.ids()).logits
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize(
    ("name", "written", "published"),
    [
        ("kimi_linear", "layers.0.block_sparse_moe.{}_proj", "layers.0.mlp.{}_proj"),
        ("olmo_hybrid", "layers.3.{}_layer_norm", "layers.3.post_attention_layernorm"),
    ],
)
def test_names_of_the_hub_are_read_where_transformers_writes_others(name, written, published, tmp_path):
    two = pair(next(case for case in linear.CASES if case.name == name))
    (tmp_path / "config.json").write_text((two.folder / "config.json").read_text())
    renamed = {}
    for old, tensor in tensors(two.folder).items():
        leaf = next((each for each in ("gate", "up", "down", "feedforward") if written.format(each) in old), None)
        renamed[old if leaf is None else old.replace(written.format(leaf), published.format(leaf))] = tensor
    assert renamed.keys() != tensors(two.folder).keys()
    save_file(renamed, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(zoo.load(tmp_path)(two.ids()).logits, two.ours(two.ids()).logits)


@pytest.mark.slow
def test_a_folder_of_such_a_type_is_verified_by_its_own_config(tmp_path):
    two = pair(CASES["exaone"])
    zoo.export(two.ours, tmp_path / "out")  # raises unless transformers gives the same logits
