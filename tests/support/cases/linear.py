"""Layers of short convolutions, delta rules and linear attention, among others of softmax attention."""

from support.cases.experts import SMALL, YARN, case

CONVS = {**SMALL, "layer_types": ["conv", "full_attention", "conv"]}
LFM2 = {**CONVS, "block_auto_adjust_ff_dim": False}
LFM2_MOE = {**CONVS, "moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 2, "num_dense_layers": 1}
SHORT = [
    case("lfm2", "Lfm2Config", base=LFM2),
    case(
        "lfm2-flags",
        "Lfm2Config",
        conv_bias=True,
        conv_L_cache=4,
        tie_word_embeddings=False,
        norm_eps=1e-3,
        full_attn_idxs=[0, 2],
        block_multiple_of=24,
        block_ffn_dim_multiplier=1.2,
        rope_parameters=YARN,
    ),
    case("lfm2-base", "Lfm2Config", "Model", base=LFM2, layer_types=["conv"] * 2 + ["full_attention"]),
    case("lfm2_moe", "Lfm2MoeConfig", base=LFM2_MOE),
    case(
        "lfm2_moe-flags",
        "Lfm2MoeConfig",
        base=LFM2_MOE,
        num_dense_layers=0,
        use_expert_bias=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        conv_bias=True,
        num_experts_per_tok=4,
        tie_word_embeddings=False,
    ),
    case("lfm2_moe-base", "Lfm2MoeConfig", "Model", base=LFM2_MOE, num_dense_layers=2),
]
OLMO = {
    **SMALL,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 3,  # as wide as the keys: otherwise the reference saves its convolution cut elsewhere
    "pad_token_id": None,
    "eos_token_id": None,
}
DELTAS = [
    case("olmo_hybrid", "OlmoHybridConfig", base=OLMO),
    case(
        "olmo_hybrid-flags",
        "OlmoHybridConfig",
        base=OLMO,
        linear_allow_neg_eigval=False,
        linear_conv_kernel_dim=3,
        linear_num_key_heads=4,
        linear_key_head_dim=None,  # which is 6
        linear_value_head_dim=6,
        attention_bias=True,
        tie_word_embeddings=True,
        rms_norm_eps=1e-3,
        rope_parameters=YARN,
        layer_types=["full_attention", "linear_attention", "linear_attention", "full_attention"],
    ),
    case("olmo_hybrid-base", "OlmoHybridConfig", "Model", base=OLMO, num_hidden_layers=2, num_key_value_heads=None),
    case(
        "olmo_hybrid-nope", "OlmoHybridConfig", base=OLMO, rope_parameters={"rope_type": "default", "rope_theta": None}
    ),
]
KIMI = {
    **SMALL,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "linear_head_dim": 6,
    "linear_num_heads": 3,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "pad_token_id": None,
    "eos_token_id": None,
}
KIMIS = [
    case("kimi_linear", "KimiLinearConfig", base=KIMI),
    case(
        "kimi_linear-flags",
        "KimiLinearConfig",
        base=KIMI,
        q_lora_rank=20,
        linear_conv_kernel_dim=3,
        mlp_layer_types=["sparse", "dense", "dense", "sparse"],
        n_group=3,
        topk_group=2,
        norm_topk_prob=False,
        n_shared_experts=2,
        routed_scaling_factor=1.3,
        rms_norm_eps=1e-3,
    ),
    case("kimi_linear-base", "KimiLinearConfig", "Model", base=KIMI, layer_types=None, num_hidden_layers=5),
]

CASES = [*SHORT, *DELTAS, *KIMIS]
