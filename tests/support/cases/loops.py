"""Decoders whose layers are run several times."""

from support.reference_models import case

HRM = {
    **{"vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 4, "max_position_embeddings": 64, "embedding_scale": 1.5},
}

CASES = [
    case("hrm_text", "HrmTextConfig", base=HRM),
    case(
        "hrm_text-values",
        "HrmTextConfig",
        base={**HRM, "num_hidden_layers": 1, "H_cycles": 3, "L_cycles": 1, "attention_bias": True, "mlp_bias": True},
        **{"embedding_scale": None, "initializer_range": 0.5, "prefix_lm": False, "rms_norm_eps": 1e-3},
    ),
    case("hrm_text-base", "HrmTextConfig", "Model", base=HRM, L_bp_cycles=[1, 3]),
]
