"""Decoders whose sub-layers read earlier layers by attention over depth."""

from support.reference_models import Case, case

INKLING2 = {
    **{"vocab_size": 97, "unpadded_vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 5, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 20, "max_position_embeddings": 64},
    **{"swa_num_attention_heads": 2, "swa_num_key_value_heads": 1, "swa_head_dim": 16, "sliding_window_size": 5},
    **{"d_rel": 6, "rel_extent": 9, "n_routed_experts": 5, "num_experts_per_tok": 2, "log_scaling_n_floor": 4},
    **{"qk_l2_clip_threshold": 1.5, "rel_l2_clip_threshold": 1.0, "mlp_gate_softcap": 0.7, "mlp_up_softcap": 0.9},
    **{"n_layers_per_attn_res_block": 2, "final_logit_softcapping": 3.0, "eos_token_id": 2},
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid_sliding", "hybrid"],
}

LOOP = {
    **{name: value for name, value in INKLING2.items() if name != "layer_types"},
    **{"num_hidden_layers": 7, "loop_layer_index_start": 2, "loop_layer_index_end": 6, "loop_num_passes": 3},
    **{"loop_gate_rank": 5, "layer_types": ["hybrid_sliding", "hybrid", *["hybrid_sliding", "hybrid"] * 2, "hybrid"]},
}

CASES = [
    Case("inkling2_text", "Inkling2TextConfig", "Inkling2ForCausalLM", INKLING2),
    Case(
        "inkling2_text-values",
        "Inkling2TextConfig",
        "Inkling2ForCausalLM",
        {
            **{name: value for name, value in INKLING2.items() if name != "layer_types"},
            **{"num_hidden_layers": 7, "n_layers_per_attn_res_block": 3, "log_scaling_alpha": 0.7, "rel_extent": 3},
            **{"conv_kernel_size": 2, "route_scale": 1.5, "rms_norm_eps": 1e-3, "unpadded_vocab_size": 97},
            **{"swa_num_attention_heads": 6, "swa_num_key_value_heads": 3, "swa_head_dim": 4},
        },
    ),
    case(
        "inkling2_text-base",
        "Inkling2TextConfig",
        "Model",
        base=INKLING2,
        layer_types=["hybrid", "hybrid_sliding", "hybrid_sliding", "hybrid", "hybrid_sliding"],
        n_layers_per_attn_res_block=6,
        num_key_value_heads=4,
    ),
    Case("inkling2_loop_text", "Inkling2LoopTextConfig", "Inkling2LoopForCausalLM", LOOP),
    Case(
        "inkling2_loop_text-values",
        "Inkling2LoopTextConfig",
        "Inkling2LoopForCausalLM",
        {
            **{**LOOP, "n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1, "loop_layer_index_end": 4},
            **{"loop_num_passes": 2, "rms_norm_eps": 1e-3, "conv_kernel_size": 2, "num_hidden_layers": 4},
            "layer_types": ["hybrid", "hybrid", "hybrid_sliding", "hybrid_sliding"],
        },
    ),
    case(
        "inkling2_loop_text-base",
        "Inkling2LoopTextConfig",
        "Model",
        base=LOOP,
        loop_layer_index_end=4,
        num_key_value_heads=4,
    ),
]
