"""Models of 2026 whose blocks have norms, gates and residual sums of their own."""

import copy

from support.cases.decoders_2025 import TYPES
from support.cases.experts import SMALL, YARN, case

ROPES = {
    "full_attention": {**YARN, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "proportional", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
}
LFM3 = {
    **SMALL,
    "num_hidden_layers": 5,
    "head_dim": 12,
    "sliding_window": 6,
    "conv_L_cache": 4,
    "layer_types": ["conv", "sliding_attention", "full_attention", "conv", "sliding_attention"],
    "pad_token_id": None,
    "eos_token_id": None,
}
GLIMMER = {
    **SMALL,
    "num_hidden_layers": 4,
    "head_dim": 12,
    "sliding_window": 6,
    "qk_scale_factor": 1.7,
    "output_multiplier": 0.4,
    "final_logit_softcapping": 2.0,
    "post_norm_eps": 1e-2,
    "layer_types": TYPES,
    "layer_rope_theta": [100.0, 0, 100.0, 100.0],
}
EMBEDDER = {
    **SMALL,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "global_head_dim": 12,
    "num_global_key_value_heads": 1,
    "sliding_window": 4,
    "layer_types": TYPES[::-1],
    "hidden_size_per_layer_input": 10,
    "embedding_dim": 20,
    "rms_norm_eps": 0.1,  # as of Gemma 4
}
SPARK = {
    **GLIMMER,
    "num_hidden_layers": 5,
    "moe_intermediate_size": 20,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.7,
    "moe_hidden_size": 24,
    "residual_gate_temperature": 0.6,
    "layer_types": [*TYPES, "full_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse", "dense"],
    "layer_rope_theta": [100.0, 0, 100.0, 0, 0],
}
BEAM = {
    **SMALL,
    "num_hidden_layers": 4,
    "head_dim": 12,
    "sliding_window": 6,
    "moe_intermediate_size": 20,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "layer_types": TYPES,
    "mlp_layer_types": ["dense", "sparse", "sparse", "dense"],
    "final_logit_softcapping": 2.0,
}
FEWER = {**SMALL, "output_vocab_size": 71}

CASES = [
    case("apertus1p5_text", "Apertus1p5TextConfig", base=FEWER),
    case("apertus1p5_text-tied", "Apertus1p5TextConfig", tie_word_embeddings=True, rope_parameters=YARN),
    case("apertus1p5_text-base", "Apertus1p5TextConfig", "Model", base=FEWER, attention_bias=True),
    case("beam", "BeamConfig", base=BEAM),
    case(
        "beam-rotated",
        "BeamConfig",
        base=BEAM,
        attention_bias=True,
        norm_topk_prob=False,
        tie_word_embeddings=True,
        final_logit_softcapping=None,
        rope_parameters={"full_attention": {**YARN, "rope_theta": 500.0}, "sliding_attention": None},
    ),
    case("beam-base", "BeamConfig", "Model", base=BEAM, layer_types=None, mlp_layer_types=None),
    case("muse_spark_text", "MuseSparkTextConfig", "Model", base=SPARK),
    case(
        "muse_spark_text-dense",
        "MuseSparkTextConfig",
        "Model",
        base=SPARK,
        attention_bias=True,
        mlp_layer_types=["dense"] * 5,
        rope_parameters=YARN,
    ),
    case("embedding_gemma2_text", "EmbeddingGemma2TextConfig", "Model", base=EMBEDDER),
    case(
        "embedding_gemma2_text-biased",
        "EmbeddingGemma2TextConfig",
        "Model",
        base=EMBEDDER,
        layer_types=TYPES[:3],
        num_hidden_layers=3,
        attention_bias=True,
        hidden_activation="silu",
    ),
    case("lfm3", "Lfm3Config", base=LFM3),
    case("lfm3-biased", "Lfm3Config", base=LFM3, attention_bias=True, conv_bias=True, tie_word_embeddings=False),
    case("lfm3-pre", "Lfm3Config", base=LFM3, use_sandwich_norm=False, use_attention_gate=False, rope_parameters=ROPES),
    case("lfm3-base", "Lfm3Config", "Model", base=LFM3, norm_eps=1e-3, use_sandwich_norm=False),
    case("muse_glimmer_text", "MuseGlimmerTextConfig", "Model", base=GLIMMER),
    case(
        "muse_glimmer_text-biased",
        "MuseGlimmerTextConfig",
        "Model",
        base=copy.deepcopy(GLIMMER),
        attention_bias=True,
        layer_rope_theta=None,
        rope_parameters=YARN,
    ),
]
