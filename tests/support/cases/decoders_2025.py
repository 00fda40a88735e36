"""Decoders of 2025 and 2026."""

from support.cases.experts import GLM, LATENT, MSCALE, SMALL, YARN, case
from support.reference_models import Case

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TYPES = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
MULTIPLIERS = {
    "embedding_multiplier": 2.5,
    "logits_scaling": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.3,
}


def of_class(name, config, model, base=SMALL, **sizes):
    """A case of a config whose models are of another family's class."""
    return Case(name, config, model, {**base, **sizes}, writes=not model.endswith("Model"))


M2 = {**SMALL, "num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 12}
MINIMAXES = [
    case("minimax_m2", "MiniMaxM2Config", base=M2, rotary_dim=6),
    case(
        "minimax_m2-tied",
        "MiniMaxM2Config",
        base=M2,
        tie_word_embeddings=True,
        num_experts_per_tok=5,
        rope_parameters={**YARN, "partial_rotary_factor": 1.0},
        rms_norm_eps=1e-3,
    ),
    case("minimax_m2-base", "MiniMaxM2Config", "Model", base=M2, num_key_value_heads=4),
]
HYBRID = {
    **SMALL,
    "num_hidden_layers": 4,
    "shared_intermediate_size": 44,
    "num_local_experts": 5,
    "num_experts_per_tok": 3,
    "mamba_n_heads": 8,
    "mamba_d_state": 6,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
}
GRANITES = [
    case("granitemoehybrid", "GraniteMoeHybridConfig", base=HYBRID, **MULTIPLIERS),
    case(
        "granitemoehybrid-flags",
        "GraniteMoeHybridConfig",
        base=HYBRID,
        position_embedding_type="rope",
        attention_bias=True,
        tie_word_embeddings=True,
        mamba_n_groups=2,
        mamba_d_conv=3,
        mamba_expand=3,
        mamba_conv_bias=False,
        mamba_proj_bias=True,
    ),
    case(
        "granitemoehybrid-dense",
        "GraniteMoeHybridConfig",
        base=HYBRID,
        num_local_experts=0,
        num_experts_per_tok=0,
        tie_word_embeddings=True,
        **MULTIPLIERS,
    ),
    case(
        "granitemoehybrid-attention",
        "GraniteMoeHybridConfig",
        base=HYBRID,
        num_local_experts=0,
        position_embedding_type="rope",
        layer_types=["full_attention"] * 4,
        rope_parameters=YARN,
    ),
    case(
        "granitemoehybrid-limit",
        "GraniteMoeHybridConfig",
        base=HYBRID,
        time_step_limit=(0.6, 0.8),
        writes=False,  # the reference forgets the limit when it decodes token by token
    ),
    case("granitemoehybrid-base", "GraniteMoeHybridConfig", "Model", base=HYBRID),
    case(
        "granite_swa",
        "GraniteSWAConfig",
        num_hidden_layers=5,
        sliding_window=6,
        layer_rope_theta=[0, 500.0, 10000, 500.0, 0],
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
        **MULTIPLIERS,
    ),
    case(
        "granite_swa-types",
        "GraniteSWAConfig",
        num_hidden_layers=4,
        sliding_window=5,
        layer_types=TYPES,
        rope_parameters=LLAMA3,
    ),
    case("granite_swa-base", "GraniteSWAConfig", "Model", sliding_window=7, rope_parameters=YARN),
    case("granite_swa-nope", "GraniteSWAConfig", sliding_window=5, layer_rope_theta=[0, 0, 0]),
    case(
        "granitemoe_swa",
        "GraniteMoeSWAConfig",
        num_hidden_layers=5,
        sliding_window=6,
        shared_intermediate_size=28,
        num_local_experts=5,
        layer_rope_theta=[0, 500.0, 10000, 500.0, 0],
        **MULTIPLIERS,
    ),
    case(
        "granitemoe_swa-tied",
        "GraniteMoeSWAConfig",
        sliding_window=4,
        num_local_experts=3,
        tie_word_embeddings=True,
        attention_bias=True,
        layer_types=["sliding_attention"] * 3,
    ),
    case("granitemoe_swa-base", "GraniteMoeSWAConfig", "Model", sliding_window=9, shared_intermediate_size=12),
]
LITE = {key: value for key, value in LATENT.items() if key != "first_k_dense_replace"}
YOUTU = {
    key: LATENT[key]
    for key in (*SMALL, "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
}
LATENTS = [
    case("glm4_moe_lite", "Glm4MoeLiteConfig", base=LITE, n_group=4, topk_group=2),
    case(
        "glm4_moe_lite-plain",
        "Glm4MoeLiteConfig",
        base=LITE,
        mlp_layer_types=["sparse", "dense", "sparse"],
        q_lora_rank=None,
        rope_interleave=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.3,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters=MSCALE,
    ),
    case("glm4_moe_lite-base", "Glm4MoeLiteConfig", "Model", base=LITE, mlp_layer_types=["dense", "dense", "sparse"]),
    case("youtu", "YoutuConfig", base=YOUTU, tie_word_embeddings=False, attention_bias=True),
    case("youtu-tied", "YoutuConfig", base=YOUTU, q_lora_rank=None, rope_interleave=False, rope_parameters=MSCALE),
    case("youtu-base", "YoutuConfig", "Model", base=YOUTU, rms_norm_eps=1e-3),
    case("minicpm3", "MiniCPM3Config", base=YOUTU, mlp_bias=True, attention_bias=True, dim_model_base=9),
    case(
        "minicpm3-plain",
        "MiniCPM3Config",
        base=YOUTU,
        scale_emb=1,
        scale_depth=None,
        dim_model_base=None,
        v_head_dim=None,
        q_lora_rank=None,
        tie_word_embeddings=False,
        rope_parameters=YARN,
    ),
    case("minicpm3-base", "MiniCPM3Config", "Model", base=YOUTU, scale_depth=0.7),
    of_class(
        "sarvam_mla", "SarvamMLAConfig", "DeepseekV3ForCausalLM", base=LATENT, q_lora_rank=None, rope_parameters=MSCALE
    ),
    of_class("sarvam_mla-base", "SarvamMLAConfig", "DeepseekV3Model", base=LATENT, n_group=2, attention_bias=True),
]
TRINITY = {
    **SMALL,
    "num_hidden_layers": 4,
    "head_dim": 12,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "sliding_window": 6,
}
KEXAONE = {**TRINITY, "num_experts": 8, "num_experts_per_tok": 3, "num_shared_experts": 2}
HY = {key: value for key, value in KEXAONE.items() if key != "sliding_window"}
SPARSE = ["sparse", "dense", "sparse", "dense"]
SIGMOIDS = [
    case("afmoe", "AfmoeConfig", base=TRINITY, mup_enabled=True, route_scale=1.7, global_attn_every_n_layers=2),
    case(
        "afmoe-tied",
        "AfmoeConfig",
        base=TRINITY,
        layer_types=TYPES,
        num_dense_layers=3,
        num_shared_experts=1,
        tie_word_embeddings=True,
        rope_parameters=YARN,
    ),
    case("afmoe-base", "AfmoeConfig", "Model", base=TRINITY, num_dense_layers=0, num_key_value_heads=4),
    case("exaone_moe", "ExaoneMoeConfig", base=KEXAONE, sliding_window_pattern=2, n_group=4, topk_group=2),
    case(
        "exaone_moe-lists",
        "ExaoneMoeConfig",
        base=KEXAONE,
        layer_types=["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
        mlp_layer_types=SPARSE,
        norm_topk_prob=False,
        tie_word_embeddings=True,
        rope_parameters=LLAMA3,
    ),
    case("exaone_moe-base", "ExaoneMoeConfig", "Model", base=KEXAONE, first_k_dense_replace=4),
    case("hy_v3", "HYV3Config", base=HY, router_scaling_factor=1.7, attention_bias=True, mlp_bias=True),
    case("hy_v3-tied", "HYV3Config", base=HY, mlp_layer_types=SPARSE, tie_word_embeddings=True),
    case("hy_v3-base", "HYV3Config", "Model", base=HY, num_shared_experts=1, rope_parameters=YARN),
    case(
        "solar_open",
        "SolarOpenConfig",
        base=GLM,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.7,
    ),
    case(
        "solar_open-plain",
        "SolarOpenConfig",
        base=GLM,
        n_routed_experts=5,
        attention_bias=True,
        norm_topk_prob=False,
        tie_word_embeddings=True,
        rope_parameters=YARN,
    ),
    case("solar_open-base", "SolarOpenConfig", "Model", base=GLM, n_routed_experts=4),
    of_class(
        "sarvam_moe", "SarvamMoEConfig", "Glm4MoeForCausalLM", base=GLM, n_routed_experts=8, n_group=4, topk_group=2
    ),
    of_class(
        "sarvam_moe-plain",
        "SarvamMoEConfig",
        "Glm4MoeForCausalLM",
        base=GLM,
        n_routed_experts=5,
        use_qk_norm=False,
        attention_bias=True,
        tie_word_embeddings=True,
        first_k_dense_replace=2,
    ),
    case("flint", "FlintConfig", base=TRINITY, num_hidden_layers=6, mlp_only_layers=[0, 3]),
    case(
        "flint-types",
        "FlintConfig",
        base=TRINITY,
        layer_types=TYPES,
        decoder_sparse_step=2,
        mlp_only_layers=[],
        norm_topk_prob=False,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    case("flint-base", "FlintConfig", "Model", base=TRINITY, layer_types=["sliding_attention"] * 4),
]
SOFTMAXES = [
    case("flex_olmo", "FlexOlmoConfig", num_experts=5, num_experts_per_tok=3, pad_token_id=1),
    case(
        "flex_olmo-tied",
        "FlexOlmoConfig",
        num_experts=3,
        norm_topk_prob=True,
        attention_bias=True,
        pad_token_id=1,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
        rope_parameters=YARN,
    ),
    case("flex_olmo-base", "FlexOlmoConfig", "Model", num_experts=4, num_experts_per_tok=1, pad_token_id=1),
    case("mellum", "MellumConfig", base=TRINITY, layer_types=TYPES, mlp_layer_types=SPARSE),
    case(
        "mellum-ropes",
        "MellumConfig",
        base=TRINITY,
        layer_types=TYPES,
        norm_topk_prob=False,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters={
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    case("mellum-base", "MellumConfig", "Model", base=TRINITY),
]
DENSE = [
    case("cwm", "CwmConfig", num_hidden_layers=5, sliding_window=6, head_dim=12, rope_parameters=LLAMA3, mlp_bias=True),
    case("cwm-types", "CwmConfig", num_hidden_layers=4, sliding_window=5, layer_types=TYPES, tie_word_embeddings=True),
    case("cwm-base", "CwmConfig", "Model", sliding_window=4, layer_types=["sliding_attention"] * 3),
    of_class("exaone", "ExaoneConfig", "LlamaForCausalLM", rope_parameters=LLAMA3),
    of_class("exaone-tied", "ExaoneConfig", "LlamaForCausalLM", tie_word_embeddings=True, head_dim=12),
    case("hyperclovax", "HyperCLOVAXConfig", head_dim=12, **MULTIPLIERS),
    case(
        "hyperclovax-pre",
        "HyperCLOVAXConfig",
        use_post_norm=False,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        logits_scaling=0.2,
    ),
    case("hyperclovax-base", "HyperCLOVAXConfig", "Model", residual_multiplier=0.3, rope_parameters=YARN),
    of_class("internlm3", "InternLM3Config", "LlamaForCausalLM", head_dim=12),
    of_class("internlm3-bias", "InternLM3Config", "LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    of_class("internlm3-base", "InternLM3Config", "LlamaModel", head_dim=8),
    of_class("iquestcoder", "IQuestCoderConfig", "LlamaForCausalLM", head_dim=12),
    of_class("iquestcoder-base", "IQuestCoderConfig", "LlamaModel", head_dim=8, attention_bias=True),
    case("jais2", "Jais2Config", layer_norm_eps=1e-3),
    case("jais2-plain", "Jais2Config", attention_bias=False, mlp_bias=False, head_dim=12, tie_word_embeddings=True),
    case("jais2-base", "Jais2Config", "Model", hidden_act="gelu", rope_parameters=YARN),
]

CASES = [*MINIMAXES, *GRANITES, *LATENTS, *SIGMOIDS, *SOFTMAXES, *DENSE]
