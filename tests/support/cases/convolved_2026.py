"""Decoders with short convolutions inside and after their sub-layers."""

from support.reference_models import Case, case

INKLING = {
    **{"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "max_position_embeddings": 64, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40, "moe_intermediate_size": 20},
    **{"swa_num_attention_heads": 2, "swa_num_key_value_heads": 1, "swa_head_dim": 16, "sliding_window_size": 5},
    **{
        "d_rel": 6,
        "rel_extent": 9,
        "n_routed_experts": 5,
        "num_experts_per_tok": 2,
        "logits_mup_width_multiplier": 0.5,
    },
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "log_scaling_n_floor": 4},
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
    "mlp_layer_types": ["dense", "sparse", "sparse", "dense"],
}

CASES = [
    Case("inkling_text", "InklingTextConfig", "InklingForCausalLM", {**INKLING, "unpadded_vocab_size": 90}),
    Case(
        "inkling_text-values",
        "InklingTextConfig",
        "InklingForCausalLM",
        {
            **{name: value for name, value in INKLING.items() if not name.endswith("layer_types")},
            **{"num_hidden_layers": 3, "local_layer_ids": [0, 2], "dense_mlp_idx": 1, "log_scaling_n_floor": None},
            **{"conv_kernel_size": 2, "rel_extent": 3, "n_shared_experts": 3, "route_scale": 1.5, "rms_norm_eps": 1e-3},
            **{"hidden_act": "gelu", "swa_num_attention_heads": 6, "swa_num_key_value_heads": 3, "swa_head_dim": 4},
        },
    ),
    case(
        "inkling_text-base",
        "InklingTextConfig",
        "Model",
        base=INKLING,
        dense_intermediate_size=24,
        log_scaling_alpha=0.7,
        num_key_value_heads=4,
        rel_extent=40,
    ),
]
