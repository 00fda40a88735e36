"""Mixtures of experts."""

from support.reference_models import SMALL, Case, case

QWEN = {**SMALL, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
SHARED = {**QWEN, "shared_expert_intermediate_size": 28}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


MIXTRAL = [
    case("mixtral", "MixtralConfig", num_local_experts=4, sliding_window=7),
    case(
        "mixtral-tied",
        "MixtralConfig",
        num_local_experts=3,
        num_experts_per_tok=3,
        tie_word_embeddings=True,
        head_dim=12,
    ),
    case("mixtral-base", "MixtralConfig", "Model", num_key_value_heads=1, head_dim=8, rope_parameters=YARN),
]
QWENS = [
    case("qwen2_moe", "Qwen2MoeConfig", base=SHARED, decoder_sparse_step=2, num_hidden_layers=5),
    case(
        "qwen2_moe-window",
        "Qwen2MoeConfig",
        base=SHARED,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=3,
        num_hidden_layers=5,
        mlp_only_layers=[1],
        norm_topk_prob=True,
        qkv_bias=False,
    ),
    case(
        "qwen2_moe-types",
        "Qwen2MoeConfig",
        base=SHARED,
        use_sliding_window=True,
        sliding_window=9,
        tie_word_embeddings=True,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
    case("qwen2_moe-dense", "Qwen2MoeConfig", base=SHARED, mlp_only_layers=[0, 1, 2], rope_parameters=YARN),
    case("qwen2_moe-base", "Qwen2MoeConfig", "Model", base=SHARED),
    case("qwen3_moe", "Qwen3MoeConfig", base=QWEN, decoder_sparse_step=2, num_hidden_layers=5, head_dim=12),
    case(
        "qwen3_moe-window",
        "Qwen3MoeConfig",
        base=QWEN,
        use_sliding_window=True,
        sliding_window=5,
        mlp_only_layers=[1],
        norm_topk_prob=True,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    case("qwen3_moe-base", "Qwen3MoeConfig", "Model", base=QWEN, rope_parameters=YARN),
]
OTHERS = [
    case("olmoe", "OlmoeConfig", num_experts=5, num_experts_per_tok=2),
    case(
        "olmoe-clip",
        "OlmoeConfig",
        num_experts=5,
        num_experts_per_tok=3,
        clip_qkv=0.4,
        attention_bias=True,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        num_key_value_heads=1,
    ),
    case("olmoe-base", "OlmoeConfig", "Model", num_experts=4, num_experts_per_tok=4),
    case(
        "granitemoe",
        "GraniteMoeConfig",
        num_local_experts=5,
        num_experts_per_tok=3,
        embedding_multiplier=2.5,
        logits_scaling=3.0,
        residual_multiplier=0.4,
        attention_multiplier=0.3,
        attention_bias=True,
    ),
    case("granitemoe-tied", "GraniteMoeConfig", num_local_experts=4, tie_word_embeddings=True),
    case("granitemoe-base", "GraniteMoeConfig", "Model", num_local_experts=4, embedding_multiplier=3),
    case(
        "phimoe", "PhimoeConfig", num_local_experts=5, attention_bias=True, lm_head_bias=True, router_jitter_noise=0.3
    ),
    case("phimoe-window", "PhimoeConfig", num_local_experts=5, sliding_window=6, rms_norm_eps=1e-3),
    # Beyond the trained length the reference keeps the short factors, which the published code does not.
    case(
        "phimoe-longrope",
        "PhimoeConfig",
        num_local_experts=4,
        rope_parameters={
            "rope_type": "longrope",
            "short_mscale": 1.2,
            "long_mscale": 1.4,
            "short_factor": [1.0, 1.1, 1.3, 1.5],
            "long_factor": [1.0, 2.0, 4.0, 8.0],
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 32,
        },
    ),
    case("phimoe-base", "PhimoeConfig", "Model", num_local_experts=4),
]
LATENT = {
    **SMALL,
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
MSCALE = {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 20, "beta_slow": 2}
DEEPSEEKS = [
    case("deepseek_v2", "DeepseekV2Config", base=LATENT, routed_scaling_factor=1.7),
    case(
        "deepseek_v2-groups",
        "DeepseekV2Config",
        base=LATENT,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        q_lora_rank=None,
        mlp_bias=True,
        attention_bias=True,
        rope_parameters=MSCALE,
        tie_word_embeddings=True,
    ),
    case(
        "deepseek_v2-group",
        "DeepseekV2Config",
        base=LATENT,
        topk_method="group_limited_greedy",
        n_group=2,
        topk_group=1,
        first_k_dense_replace=0,
    ),
    case("deepseek_v2-base", "DeepseekV2Config", "Model", base=LATENT, rope_parameters=YARN, n_shared_experts=1),
    case("deepseek_v3", "DeepseekV3Config", base=LATENT, n_group=4, topk_group=2),
    case(
        "deepseek_v3-plain",
        "DeepseekV3Config",
        base=LATENT,
        n_group=1,
        topk_group=1,
        q_lora_rank=None,
        rope_interleave=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.3,
        attention_bias=True,
        tie_word_embeddings=True,
        num_mtp_layers=0,
    ),
    case(
        "deepseek_v3-yarn",
        "DeepseekV3Config",
        base=LATENT,
        n_group=2,
        topk_group=1,
        rope_parameters=MSCALE,
        first_k_dense_replace=2,
    ),
    case(
        "deepseek_v3-dense",
        "DeepseekV3Config",
        base=LATENT,
        first_k_dense_replace=3,
        rope_parameters={**YARN, "mscale_all_dim": 1.0},
    ),
    case(
        "deepseek_v3-base", "DeepseekV3Config", "Model", base=LATENT, n_group=2, topk_group=2, first_k_dense_replace=0
    ),
]
OSS = {**SMALL, "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 12}
GPT_OSS = [
    case("gpt_oss", "GptOssConfig", base=OSS, sliding_window=6),
    case(
        "gpt_oss-types",
        "GptOssConfig",
        base=OSS,
        sliding_window=6,
        layer_types=["full_attention", "full_attention", "sliding_attention"],
        attention_bias=False,
        swiglu_limit=0.3,
        swiglu_alpha=1.1,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    ),
    case(
        "gpt_oss-full",
        "GptOssConfig",
        base=OSS,
        layer_types=["full_attention"] * 3,
        rope_parameters={**YARN, "truncate": False},
    ),
    case("gpt_oss-base", "GptOssConfig", "Model", base=OSS, sliding_window=9, num_experts_per_tok=5),
]
LLAMA4 = {**SMALL, "num_local_experts": 4, "intermediate_size_mlp": 44, "head_dim": 8, "attention_chunk_size": 7}


def llama4(name, model="Llama4ForCausalLM", /, **sizes):
    return Case(name, "Llama4TextConfig", model, {**LLAMA4, **sizes}, writes=model != "Llama4TextModel")


LLAMA4S = [
    llama4("llama4_text", num_hidden_layers=5, floor_scale=4, attn_scale=0.5),
    llama4(
        "llama4_text-moe",
        num_hidden_layers=5,
        interleave_moe_layer_step=2,
        num_experts_per_tok=2,
        use_qk_norm=False,
        attn_temperature_tuning=False,
        attention_bias=True,
        tie_word_embeddings=True,
        no_rope_layer_interval=2,
    ),
    llama4(
        "llama4_text-lists",
        moe_layers=[2],
        no_rope_layers=[0, 1, 1],
        floor_scale=3,
        head_dim=12,
        layer_types=["full_attention", "full_attention", "chunked_attention"],
    ),
    llama4(
        "llama4_text-whole",
        attention_chunk_size=None,
        moe_layers=[],
        rope_parameters={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 500.0,
        },
    ),
    llama4("llama4_text-base", "Llama4TextModel", num_key_value_heads=4),
]
SWITCH = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 44,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
    "num_heads": 4,
    "num_experts": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}


def decoding(ids):
    """What the decoder reads: other tokens than the encoder, and fewer."""
    return {"decoder_input_ids": ids.flip(1)[:, :9]}


def switch(name, model="ForConditionalGeneration", /, inputs=decoding, **sizes):
    return case(name, "SwitchTransformersConfig", model, base=SWITCH, inputs=inputs, **sizes)


SWITCHES = [
    switch("switch_transformers"),
    # Decoding token by token, the reference starts to count an expert's tokens anew each time.
    switch(
        "switch_transformers-full",
        expert_capacity=4,
        num_sparse_encoder_layers=4,
        num_sparse_decoder_layers=4,
        router_bias=True,
        dense_act_fn="gelu",
        writes=False,
    ),
    switch("switch_transformers-untied", tie_word_embeddings=False, num_decoder_layers=3, num_sparse_decoder_layers=0),
    switch("switch_transformers-dense", num_sparse_encoder_layers=0, num_sparse_decoder_layers=1, num_decoder_layers=2),
    switch("switch_transformers-base", "Model", writes=False),
    switch("switch_transformers-encoder", "EncoderModel", inputs=lambda ids: {}, writes=False, expert_capacity=6),
]
GLM = {
    **SMALL,
    "head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "num_hidden_layers": 4,
}
ERNIE = {**SMALL, "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 20, "num_hidden_layers": 5}
HUNYUAN = {**SMALL, "num_experts": 5, "moe_topk": 2, "head_dim": 12}
LATER = [
    case(
        "granitemoeshared",
        "GraniteMoeSharedConfig",
        shared_intermediate_size=28,
        num_local_experts=5,
        embedding_multiplier=2.5,
        logits_scaling=3.0,
        residual_multiplier=0.4,
        attention_multiplier=0.3,
    ),
    case(
        "granitemoeshared-none",
        "GraniteMoeSharedConfig",
        num_local_experts=4,
        tie_word_embeddings=True,
        attention_bias=True,
    ),
    case("granitemoeshared-base", "GraniteMoeSharedConfig", "Model", shared_intermediate_size=12),
    case("glm4_moe", "Glm4MoeConfig", base=GLM, use_qk_norm=True, n_group=4, topk_group=2),
    case(
        "glm4_moe-plain",
        "Glm4MoeConfig",
        base=GLM,
        attention_bias=True,
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
        partial_rotary_factor=1.0,
        first_k_dense_replace=3,
        tie_word_embeddings=True,
    ),
    case("glm4_moe-base", "Glm4MoeConfig", "Model", base=GLM, first_k_dense_replace=0, rope_parameters=YARN),
    case("dots1", "Dots1Config", base=GLM, sliding_window=5, max_window_layers=2, first_k_dense_replace=3),
    case(
        "dots1-groups",
        "Dots1Config",
        base=GLM,
        n_group=2,
        attention_bias=True,
        norm_topk_prob=True,
        routed_scaling_factor=1.5,
        tie_word_embeddings=True,
        sliding_window=6,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    ),
    case("dots1-base", "Dots1Config", "Model", base=GLM, first_k_dense_replace=4, sliding_window=None),
    case("ernie4_5_moe", "Ernie4_5_MoeConfig", base=ERNIE, use_bias=True),
    case(
        "ernie4_5_moe-interval",
        "Ernie4_5_MoeConfig",
        base=ERNIE,
        moe_layer_interval=2,
        moe_layer_start_index=0,
        moe_layer_end_index=3,
        moe_num_shared_experts=0,
        tie_word_embeddings=False,
        head_dim=12,
    ),
    case(
        "ernie4_5_moe-base", "Ernie4_5_MoeConfig", "Model", base=ERNIE, moe_layer_start_index=3, moe_layer_end_index=3
    ),
    case("hunyuan_v1_moe", "HunYuanMoEV1Config", base=HUNYUAN),
    case(
        "hunyuan_v1_moe-layers",
        "HunYuanMoEV1Config",
        base=HUNYUAN,
        moe_topk=[1, 3, 2],
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "dynamic", "alpha": 7.0, "factor": 1.0, "rope_theta": 10000.0},
    ),
    case("hunyuan_v1_moe-base", "HunYuanMoEV1Config", "Model", base=HUNYUAN, num_key_value_heads=4),
]

CASES = [*MIXTRAL, *QWENS, *OTHERS, *DEEPSEEKS, *GPT_OSS, *LLAMA4S, *SWITCHES, *LATER]
