"""Decoders in which softmax attention is one mixer of several."""

from support.cases.decoders_2025 import TYPES
from support.cases.experts import LATENT, SMALL, YARN, case

LINEAR = ["linear_attention" if each == "sliding_attention" else each for each in TYPES]
MINIMAX = {**SMALL, "num_hidden_layers": 4, "num_local_experts": 4, "block_size": 7}
DECAYS = ("slope_rate", "_decay")  # powers of one another
LING = {
    **LATENT,
    "num_hidden_layers": 4,
    "q_lora_rank": None,
    "head_dim": 8,
    "layer_group_size": 3,
    "n_group": 4,
    "topk_group": 2,
    "pad_token_id": None,
    "eos_token_id": None,
}
LARA = {
    **SMALL,
    "num_hidden_layers": 5,
    "head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
    "sliding_window": 5,
}
ZAYA = {
    **SMALL,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "head_dim": 8,
    "moe_intermediate_size": 20,
    "num_experts": 4,
    "router_hidden_size": 12,
    "sliding_window": 5,
    "pad_token_id": None,
}
del ZAYA["intermediate_size"]

CASES = [
    case("bailing_hybrid", "BailingHybridConfig", base=LING),
    case(
        "bailing_hybrid-unsafe",
        "BailingHybridConfig",
        base=LING,
        q_lora_rank=20,
        kda_safe_gate=False,
        short_conv_kernel_size=3,
        mlp_layer_types=["sparse", "dense", "dense", "sparse"],
        norm_topk_prob=False,
        rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
        tie_word_embeddings=True,
    ),
    case("bailing_hybrid-base", "BailingHybridConfig", "Model", base=LING, kda_lower_bound=-2.0, rope_theta=300.0),
    case("lara_mini", "LaraMiniConfig", base=LARA),
    case(
        "lara_mini-untied",
        "LaraMiniConfig",
        base=LARA,
        layer_types=["sliding_attention", "full_attention", "linear_attention", "full_attention", "linear_attention"],
        norm_topk_prob=False,
        attention_bias=True,
        tie_word_embeddings=False,
        rope_parameters=YARN,
        linear_conv_kernel_dim=3,
    ),
    case("lara_mini-base", "LaraMiniConfig", "Model", base=LARA, rms_norm_eps=1e-3),
    case("minimax", "MiniMaxConfig", base=MINIMAX, unbind=DECAYS),
    case(
        "minimax-scaled",
        "MiniMaxConfig",
        base=MINIMAX,
        unbind=DECAYS,
        head_dim=12,
        full_attn_alpha_factor=1.5,
        full_attn_beta_factor=0.7,
        linear_attn_alpha_factor=1.3,
        linear_attn_beta_factor=0.8,
        mlp_alpha_factor=1.2,
        mlp_beta_factor=0.9,
        tie_word_embeddings=True,
        hidden_act="relu",
        sliding_window=6,
    ),
    case("minimax-base", "MiniMaxConfig", "Model", base=MINIMAX, unbind=DECAYS, head_dim=8, rope_parameters=YARN),
    case("zaya", "ZayaConfig", base=ZAYA),
    case(
        "zaya-windows",
        "ZayaConfig",
        base=ZAYA,
        layer_types=["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
        attention_bias=True,
        lm_head_bias=True,
        tie_word_embeddings=False,
        cca_time0=3,
        cca_time1=4,
        rms_norm_eps=1e-3,
    ),
    case("zaya-base", "ZayaConfig", "Model", base=ZAYA, num_key_value_heads=3, cca_time0=1, hidden_act="gelu"),
]
