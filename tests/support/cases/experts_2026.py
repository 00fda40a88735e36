"""Mixtures of experts of 2026."""

from support.cases.decoders_2025 import TYPES
from support.cases.experts import LATENT, SMALL, YARN, case

AXK = {**{key: each for key, each in LATENT.items() if key != "first_k_dense_replace"}, "n_group": 4, "topk_group": 2}
KOLIBRI = {
    **{key: each for key, each in SMALL.items() if key != "intermediate_size"},
    "num_hidden_layers": 4,
    "head_dim": 12,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "sliding_window": 5,
    "layer_types": TYPES,
}
COMMAND = {
    **SMALL,
    "num_hidden_layers": 4,
    "head_dim": 12,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_shared_experts": 2,
    "sliding_window": 5,
    "layer_types": TYPES,
    "pad_token_id": None,
    "eos_token_id": None,
}

FINE = {"ffn_hidden_size": 20, "moe_num_experts": 6, "moe_top_k": 2}
ATTENTION = {"kv_n_heads": 2, "clip_qkv": 0.6, "rope_theta": 10000.0}
DBRX = {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64, "vocab_size": 97}
DBRX |= {"attn_config": ATTENTION, "ffn_config": FINE}

CASES = [
    case("dbrx", "DbrxConfig", base=DBRX),
    case(
        "dbrx-plain",
        "DbrxConfig",
        base=DBRX,
        attn_config={"kv_n_heads": 4, "clip_qkv": 2.0, "rope_theta": 500.0},
        ffn_config={**FINE, "ffn_act_fn": {"name": "gelu"}, "moe_normalize_expert_weights": None},
        rope_parameters={**YARN, "rope_theta": 500.0},
    ),
    case("dbrx-base", "DbrxConfig", "Model", base=DBRX),
    case("axk1", "AXK1Config", base=AXK),
    case(
        "axk1-types",
        "AXK1Config",
        base=AXK,
        mlp_layer_types=["sparse", "dense", "sparse"],
        attention_bias=True,
        rope_interleave=False,
        tie_word_embeddings=True,
    ),
    case("axk1-base", "AXK1Config", "Model", base=AXK, rms_norm_eps=1e-3),
    case("kolibri1", "Kolibri1Config", base=KOLIBRI),
    case("kolibri1-full", "Kolibri1Config", base=KOLIBRI, layer_types=["full_attention"] * 4, tie_word_embeddings=True),
    case("kolibri1-base", "Kolibri1Config", "Model", base=KOLIBRI, norm_topk_prob=True, rope_parameters=YARN),
    case("cohere2_moe", "Cohere2MoeConfig", base=COMMAND, expert_selection_fn="sigmoid"),
    case(
        "cohere2_moe-dense",
        "Cohere2MoeConfig",
        base=COMMAND,
        mlp_layer_types=["dense", "dense", "sparse", "sparse"],
        prefix_dense_intermediate_size=44,
        shared_expert_combination_strategy="sum",
        rms_norm_eps=1e-4,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    case("cohere2_moe-base", "Cohere2MoeConfig", "Model", base=COMMAND, num_shared_experts=0, logit_scale=0.3),
]
