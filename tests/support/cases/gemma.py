"""Gemmas with per-layer embeddings, and layers that read the keys and values of earlier ones."""

from functools import partial

from support.reference_models import SMALL, case

TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]
TYPES = [*TYPES, "sliding_attention", "full_attention"]
GEMMA4 = {
    **SMALL,
    "num_hidden_layers": 7,
    "head_dim": 8,
    "global_head_dim": 12,
    "sliding_window": 6,
    "layer_types": TYPES,
    "vocab_size_per_layer_input": 97,
    "hidden_size_per_layer_input": 10,
    "num_kv_shared_layers": 3,
    "rms_norm_eps": 0.1,  # layers multiplied by 0.1 and normed again make 3e-4 of rounding with a smaller one
}
UNIFIED = {name: value for name, value in GEMMA4.items() if "per_layer_input" not in name}
MIXTURE = {"enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 20}

GEMMA3N = {name: value for name, value in GEMMA4.items() if name != "global_head_dim"}
GEMMA3N |= {
    "laurel_rank": 6,
    "intermediate_size": [56, 56, 56, 40, 56, 56, 72],
    "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0],
    "altup_num_inputs": 3,
    "rms_norm_eps": 1e-2,
}


case = partial(case, base=GEMMA4)

CASES = [
    case("gemma4_text", "Gemma4TextConfig", use_double_wide_mlp=True),
    case(
        "gemma4_text-values",
        "Gemma4TextConfig",
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        final_logit_softcapping=2.0,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    case("gemma4_text-mixture", "Gemma4TextConfig", **MIXTURE, use_double_wide_mlp=True, attention_k_eq_v=True),
    case("gemma4_text-plain", "Gemma4TextConfig", **MIXTURE, num_kv_shared_layers=0, hidden_activation="silu"),
    case("gemma4_text-base", "Gemma4TextConfig", "Model", vocab_size_per_layer_input=120),
    case("gemma4_unified_text", "Gemma4UnifiedTextConfig", base=UNIFIED, attention_k_eq_v=True),
    case("gemma4_unified_text-wide", "Gemma4UnifiedTextConfig", base=UNIFIED, use_double_wide_mlp=True),
    case("gemma4_unified_text-base", "Gemma4UnifiedTextConfig", "Model", base=UNIFIED, num_kv_shared_layers=0),
    case("gemma3n_text", "Gemma3nTextConfig", base=GEMMA3N, streams=True),
    case(
        "gemma3n_text-active",
        "Gemma3nTextConfig",
        base=GEMMA3N,
        streams=True,
        altup_active_idx=1,
        altup_correct_scale=False,
        altup_num_inputs=4,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=80,
        attention_bias=True,
        tie_word_embeddings=False,
        final_logit_softcapping=2.0,
    ),
    case("gemma3n_text-base", "Gemma3nTextConfig", "Model", base=GEMMA3N, streams=True),
    case("gemma4_text-both", "Gemma4TextConfig", "Model", use_bidirectional_attention="all", sliding_window=9),
]
