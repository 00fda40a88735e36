"""Layers of several attentions, and attention that several layers share."""

from support.cases.experts import LATENT, YARN, case

LONGCAT = {
    **{key: LATENT[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings")},
    "num_layers": 2,
    "ffn_hidden_size": 56,
    "expert_ffn_hidden_size": 20,
    "n_routed_experts": 4,
    "zero_expert_num": 3,
    "moe_topk": 3,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "head_dim": 4,
    "v_head_dim": 6,
}
ZAMBA2 = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 7,
    "layers_block_type": [
        "linear_attention",
        "hybrid",
        "linear_attention",
        "hybrid",
        "hybrid",
        "linear_attention",
        "hybrid",
    ],
    "mamba_d_state": 8,
    "n_mamba_heads": 4,
    "mamba_ngroups": 2,
    "intermediate_size": 56,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "adapter_rank": 5,
    "chunk_size": 8,
    "pad_token_id": None,
}
ZAMBA = {
    **{name: ZAMBA2[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "layers_block_type")},
    **{name: ZAMBA2[name] for name in ("mamba_d_state", "intermediate_size", "num_attention_heads", "pad_token_id")},
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

CASES = [
    case("longcat_flash", "LongcatFlashConfig", base=LONGCAT),
    case(
        "longcat_flash-biased",
        "LongcatFlashConfig",
        base=LONGCAT,
        attention_bias=True,
        tie_word_embeddings=True,
        zero_expert_num=0,
        routed_scaling_factor=2.5,
        rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
    ),
    case("longcat_flash-base", "LongcatFlashConfig", "Model", base=LONGCAT, rms_norm_eps=1e-3, hidden_act="gelu"),
    case("zamba2", "Zamba2Config", base=ZAMBA2, num_mem_blocks=2, use_shared_attention_adapter=True, use_mem_rope=True),
    case("zamba2-plain", "Zamba2Config", base=ZAMBA2, num_key_value_heads=2, add_bias_linear=True, mamba_ngroups=1),
    case("zamba2-base", "Zamba2Config", "Model", base=ZAMBA2, use_mem_rope=True, hidden_act="silu"),
    case("zamba", "ZambaConfig", base=ZAMBA, mamba_proj_bias=True),
    case(
        "zamba-one",
        "ZambaConfig",
        base=ZAMBA,
        n_mamba_heads=1,
        mamba_dt_rank=5,
        attention_head_dim=12,
        mamba_conv_bias=False,
    ),
    case("zamba-base", "ZambaConfig", "Model", base=ZAMBA, n_mamba_heads=4, hidden_act="silu", hidden_mamba_act="gelu"),
]
