"""Files on the hub leave fields out and use older words: they read as transformers' own config classes read them."""

from __future__ import annotations

import json

import pytest
import transformers

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
]


@pytest.mark.parametrize(("model", "config", "fields"), FILES, ids=lambda each: each if isinstance(each, str) else "")
def test_a_file_that_leaves_fields_out_reads_as_transformers_reads_it(model, config, fields, tmp_path):
    kind = getattr(transformers, config)
    stated = {**SMALL, **fields, "model_type": kind.model_type, "architectures": [model]}
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
