"""Tiny models of the architectures whose values llama.cpp's converter changes, and what it says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.gguf_files import TOKENS

V = {"vocab_size": len(TOKENS), "hidden_size": 64}
S = {**V, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
G = {**S, "num_key_value_heads": 2}
H = {**G, "head_dim": 16}
MOE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
BIASED = {**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5}
MLA = {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_d_conv": 4}
HYBRID = {**G, "num_hidden_layers": 4, "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 48, **SSM}
GRANITE = {
    **{"position_embedding_type": "nope", "embedding_multiplier": 12.0, "logits_scaling": 6.0},
    **{"residual_multiplier": 0.22, "attention_multiplier": 0.0625, "tie_word_embeddings": True},
}
FALCON = {**V, "num_hidden_layers": 2, "num_attention_heads": 4, "parallel_attn": True, "bias": False, "alibi": False}
H1 = {**H, **SSM, "mamba_d_ssm": 128, "mamba_norm_before_gate": False, "lm_head_multiplier": 0.5}
NEMOTRON = {**G, "head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2}
DELTA = {
    **{"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_key_head_dim": 16, "linear_value_head_dim": 16},
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
ENDS = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.707, "mscale_all_dim": 0.707}
TEMPERED = {"llama_4_scaling_beta": 0.1}
T5 = {"vocab_size": len(TOKENS), "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
MARKS = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}

EURO = {"mask_token_id": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# What the file says of these parts.
SSM_SAID = {"conv_kernel": 4, "state_size": 16, "group_count": 2, "inner_size": 128, "time_step_rank": 8}
DELTA_SAID = {
    **{"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 64},
    **{"attention.recurrent_layers": [True, False], "full_attention_interval": 4, "rope.dimension_count": 4},
}
SECTIONS = {"rope.dimension_sections": [11, 11, 10, 0]}
SHARED = {"expert_shared_count": 1, "leading_dense_block_count": 1, "expert_weights_scale": 2.5}
ONE_GROUP = {"expert_group_count": 1, "expert_group_used_count": 1}
BIASED_SAID = {**SHARED, "expert_weights_norm": True, **ONE_GROUP}
MLA_SAID = {
    **{"attention.head_count_kv": 1, "attention.key_length": 24, "attention.value_length": 16},
    **{"attention.key_length_mla": 24, "attention.value_length_mla": 16, "attention.kv_lora_rank": 16},
    **{"rope.dimension_count": 8, "vocab_size": len(TOKENS), "expert_feed_forward_length": 32, **SHARED},
}
BLOCKS = {"block_count": 4, "attention.head_count_kv": [0, 2, 0, 2], "vocab_size": len(TOKENS)}
HYBRID_SAID = {
    **{f"ssm.{name}": value for name, value in SSM_SAID.items()},
    **{"context_length": 1048576, "rope.dimension_count": 16, "rope.scaling.finetuned": False, **BLOCKS},
}
GRANITE_SAID = {
    **{**HYBRID_SAID, "attention.scale": 0.0625, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 6.0},
    "expert_shared_feed_forward_length": 48,
}
NEMOTRON_SAID = {**HYBRID_SAID, "attention.head_count_kv": [0, 0, 2, 0], "feed_forward_length": [0, 96, 0, 96]}
MINICPM3_SAID = {"rope.dimension_count": 8, "vocab_size": len(TOKENS)}
T5_SAID = {
    **{"context_length": 512, "block_count": 2, "decoder_block_count": 2, "feed_forward_length": 96},
    **{"attention.key_length": 16, "attention.value_length": 16, "attention.relative_buckets_count": 32},
    **{"attention.layer_norm_rms_epsilon": 1e-6, "decoder_start_token_id": 0},
}
UNLIMITED = {"context_length": 1048576, "feed_forward_length": 0, "attention.head_count": 0}


@dataclass(frozen=True)
class Case:
    """A reference model, and what is said of it beside what its config says under other names."""

    kind: str
    fields: Mapping[str, Any]
    said: Mapping[str, Any] = field(default_factory=dict)
    unsaid: tuple[str, ...] = ()
    model: str = "ForCausalLM"


CASES = {
    "gptneox": Case(
        "GPTNeoX", {**S, "rotary_pct": 0.25}, {"rope.dimension_count": 4, "use_parallel_residual": True}, ("rope",)
    ),
    "falcon": Case(
        *("Falcon", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
        {"attention.head_count_kv": 2, "feed_forward_length": 256, "tensor_data_layout": "jploski"},
        ("rope", "attention.key_length", "attention.value_length"),
    ),
    "falcon of one key": Case(
        *("Falcon", {**FALCON, "multi_query": True}),
        {"attention.head_count_kv": 1, "feed_forward_length": 256, "tensor_data_layout": "jploski"},
        ("rope", "attention.key_length", "attention.value_length"),
    ),
    "mpt": Case(
        *("Mpt", {"vocab_size": len(TOKENS), "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
        {"feed_forward_length": 256, "attention.max_alibi_bias": 8.0, "attention.layer_norm_epsilon": 1e-5},
    ),
    "starcoder": Case(
        *("GPTBigCode", {"vocab_size": len(TOKENS), "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
        {"feed_forward_length": 256, "attention.head_count_kv": 1},
    ),
    "jais2": Case("Jais2", G, {"attention.key_length": 16, "rope.dimension_count": 16}),
    "lfm2": Case(
        "Lfm2",
        {**G, "num_hidden_layers": 4, "full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False},
        {**BLOCKS, "shortconv.l_cache": 3},
    ),
    "lfm2moe": Case(
        "Lfm2Moe",
        {
            **{**G, "num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2, **MOE, "num_experts": 4},
            "num_dense_layers": 1,
        },
        {**BLOCKS, "shortconv.l_cache": 3, "leading_dense_block_count": 1, "expert_gating_func": 2},
    ),
    "minimax-m2": Case(
        *("MiniMaxM2", {**H, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8}),
        {"expert_feed_forward_length": 96, "rope.dimension_count": 8},
    ),
    "dots1": Case("Dots1", {**H, **BIASED, "norm_topk_prob": True, "n_group": 1, "topk_group": 1}, BIASED_SAID),
    "glm4moe": Case(
        *("Glm4Moe", {**H, **BIASED, "use_qk_norm": True, "attention_bias": True}),
        {**BIASED_SAID, "rope.dimension_count": 8, "expert_gating_func": 2},
    ),
    "exaone-moe": Case(
        "ExaoneMoe",
        {
            **{**H, **MOE, "num_experts": 4, "num_shared_experts": 1, "routed_scaling_factor": 2.5},
            **{"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        },
        {
            **{**BIASED_SAID, "attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False]},
            **{"expert_shared_feed_forward_length": 32, "nextn_predict_layers": 0, "rope.scaling.type": "none"},
            "vocab_size": len(TOKENS),
        },
    ),
    "ernie4_5-moe": Case(
        "Ernie4_5_Moe",
        {
            **{**G, "moe_intermediate_size": 32, "moe_num_experts": 4, "moe_num_shared_experts": 1, "moe_k": 2},
            "moe_layer_start_index": 1,
        },
        {
            **{"leading_dense_block_count": 1, "interleave_moe_layer_step": 1, "expert_shared_count": 1},
            "expert_shared_feed_forward_length": 48,
        },
    ),
    "hunyuan-dense": Case("HunYuanDenseV1", H),
    "hunyuan-moe": Case(
        *("HunYuanMoEV1", {**H, "num_experts": 4, "moe_topk": 2, "num_shared_expert": 1}),
        {"expert_feed_forward_length": 96, "expert_shared_feed_forward_length": 96, "expert_shared_count": 1},
    ),
    "deepseek2": Case(
        "DeepseekV2",
        {
            **S,
            **MLA,
            **BIASED,
            "n_shared_experts": 2,
            "q_lora_rank": None,
            "routed_scaling_factor": 1.0,
            **{"topk_method": "greedy", "n_group": 1, "topk_group": 1},
        },
        {**MLA_SAID, "expert_shared_count": 2, "expert_weights_scale": 1.0, **ONE_GROUP},
    ),
    "deepseek2 of V3": Case(
        "DeepseekV3",
        {**S, **MLA, **BIASED, "q_lora_rank": 32, "n_group": 2, "topk_group": 1, "rope_parameters": {**YARN, **ENDS}},
        {
            **{**MLA_SAID, "attention.q_lora_rank": 32, "expert_weights_norm": True, "expert_group_count": 2},
            **{"expert_group_used_count": 1, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 16, "rope.scaling.yarn_log_multiplier": 0.0707},
            **{"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0},
        },
    ),
    "minicpm3": Case(
        *("MiniCPM3", {**S, **MLA, "q_lora_rank": 32}),
        {"attention.q_lora_rank": 32, "attention.kv_lora_rank": 16, "attention.key_length": 24, **MINICPM3_SAID},
        ("rope.freq_base", "attention.value_length"),
    ),
    "mamba": Case(
        *("Mamba", {**V, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}),
        {**UNLIMITED, "ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 8, "ssm.time_step_rank": 4}
        | {"ssm.dt_b_c_rms": False},
    ),
    "mamba2": Case(
        "Mamba2",
        {**V, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2},
        {**UNLIMITED, **{f"ssm.{name}": value for name, value in SSM_SAID.items()}},
        ("attention.key_length", "attention.value_length"),
    ),
    "granitehybrid": Case(
        "GraniteMoeHybrid", {**HYBRID, **GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2}, GRANITE_SAID
    ),
    "granitehybrid without experts": Case(
        "GraniteMoeHybrid", {**HYBRID, **GRANITE, "num_local_experts": 0, "num_experts_per_tok": 0}, GRANITE_SAID
    ),
    "nemotron_h": Case(
        "NemotronH",
        {**NEMOTRON, "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]},
        NEMOTRON_SAID,
        ("expert",),
    ),
    "nemotron_h_moe": Case(
        "NemotronH",
        {
            **{**NEMOTRON, **BIASED, "moe_shared_expert_intermediate_size": 48},
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        },
        {
            **{**NEMOTRON_SAID, "feed_forward_length": [0, 32, 0, 32], "expert_shared_feed_forward_length": 48},
            **{"expert_shared_count": 1, "expert_weights_scale": 2.5, "expert_weights_norm": True},
            **ONE_GROUP,
        },
    ),
    "falcon-h1": Case(
        "FalconH1",
        {
            **{**H1, "mamba_rms_norm": True, "embedding_multiplier": 2.0, "key_multiplier": 0.7},
            **{"attention_out_multiplier": 0.9, "attention_in_multiplier": 1.1, "mlp_multipliers": [0.8, 0.6]},
            **{"ssm_multipliers": [0.3, 0.4, 0.5, 0.6, 0.7], "ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.8},
        },
        {**{f"ssm.{name}": value for name, value in SSM_SAID.items()}, "vocab_size": len(TOKENS)},
    ),
    "falcon-h1 without a norm": Case(
        *("FalconH1", {**H1, "mamba_rms_norm": False}),
        {**{f"ssm.{name}": value for name, value in SSM_SAID.items()}, "vocab_size": len(TOKENS)},
    ),
    "qwen3next": Case(
        *("Qwen3Next", {**H, **DELTA, **MOE, "num_experts": 4, "shared_expert_intermediate_size": 48}),
        {**DELTA_SAID, "expert_shared_feed_forward_length": 48},
    ),
    "qwen35": Case("Qwen3_5", {**H, **DELTA}, {**DELTA_SAID, **SECTIONS}),
    "qwen35moe": Case(
        *("Qwen3_5Moe", {**H, **DELTA, **MOE, "num_experts": 4, "shared_expert_intermediate_size": 48}),
        {**DELTA_SAID, **SECTIONS, "expert_shared_feed_forward_length": 48},
    ),
    "granitemoe with a shared expert": Case(
        *("GraniteMoeShared", {**G, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 48}),
        {
            **{"attention.scale": 1.0, "embedding_scale": 1.0, "residual_scale": 1.0, "logit_scale": 1.0},
            **{"expert_shared_feed_forward_length": 48, "rope.dimension_count": 16, "vocab_size": len(TOKENS)},
        },
    ),
    "afmoe": Case(
        "Afmoe",
        {
            **{**H, **MOE, "num_hidden_layers": 4, "num_experts": 4, "num_shared_experts": 1, "num_dense_layers": 1},
            **{"sliding_window": 8, "mup_enabled": True, "route_scale": 2.0},
        },
        {
            **{**SHARED, "expert_weights_scale": 2.0, "attention.sliding_window": 8, "rope.dimension_count": 16},
            "vocab_size": len(TOKENS),
        },
    ),
    "mistral3": Case(
        *("Ministral3", {**H, "rope_parameters": {**YARN, **ENDS, "mscale": 1.0, "mscale_all_dim": 1.0, **TEMPERED}}),
        {
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
            **{"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0, "rope.dimension_count": 16},
            **{"rope.scaling.yarn_log_multiplier": 1.0, "attention.temperature_scale": 0.1, "vocab_size": len(TOKENS)},
        },
    ),
    "mistral3 without a scaling": Case(
        "Mistral", {**H, "sliding_window": None}, {"rope.dimension_count": 16, "vocab_size": len(TOKENS)}
    ),
    "t5": Case("T5", T5, T5_SAID, (), "ForConditionalGeneration"),
    "t5 with gates": Case("T5", {**T5, "feed_forward_proj": "gated-gelu"}, T5_SAID, (), "ForConditionalGeneration"),
    "t5 with a table for each layer": Case(
        "UMT5", {**T5, "feed_forward_proj": "gated-gelu"}, T5_SAID, (), "ForConditionalGeneration"
    ),
    "t5encoder": Case("T5", T5, {name: T5_SAID[name] for name in T5_SAID if "decoder" not in name}, (), "EncoderModel"),
    "bert": Case("Bert", S, {"attention.causal": False}, (), "Model"),
    "eurobert": Case(
        "EuroBert",
        {**H, **EURO},
        {"attention.causal": False, "vocab_size": len(TOKENS)},
        (),
        "Model",
    ),
    "nomic-bert": Case("NomicBert", S, {"attention.causal": False}, (), "Model"),
    "modern-bert": Case(
        *("ModernBert", {**S, "num_hidden_layers": 4, "local_attention": 8, **MARKS}),
        {
            **{"attention.causal": False, "attention.sliding_window": 8, "classifier.pooling_type": 2},
            **{"rope.freq_base": 160000.0, "rope.freq_base_swa": 10000.0, "hidden_activation": "gelu"},
            **{"rope.scaling.type": "none", "vocab_size": len(TOKENS)},
        },
        (),
        "Model",
    ),
}
