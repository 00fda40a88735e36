"""Decoders whose softmax attention has more than keys, values and a mask: widths, gates and norms of its own."""

from support.cases.decoders_2025 import TYPES
from support.cases.experts import LATENT, SMALL, YARN, case

MIMO = {
    **SMALL,
    "num_hidden_layers": 4,
    "head_dim": 12,
    "v_head_dim": 8,
    "moe_intermediate_size": 20,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 5,
    "layer_types": TYPES,
}
LAGUNA = {
    **SMALL,
    "num_hidden_layers": 4,
    "head_dim": 12,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "sliding_window": 6,
    "layer_types": TYPES,
}
JAPANESE = {key: each for key, each in SMALL.items() if key not in ("intermediate_size", "num_key_value_heads")}

TEMPERED = {**YARN, "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 8}

CASES = [
    case("mistral4", "Mistral4Config", base=LATENT, n_group=4, topk_group=2, rope_parameters=TEMPERED),
    case(
        "mistral4-plain",
        "Mistral4Config",
        base=LATENT,
        q_lora_rank=None,
        rope_interleave=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.3,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters={**TEMPERED, "mscale": 0.7, "mscale_all_dim": 0.9},
    ),
    case("mistral4-base", "Mistral4Config", "Model", base=LATENT, first_k_dense_replace=0, rope_parameters=TEMPERED),
    case("mimo_v2_flash", "MiMoV2FlashConfig", base=MIMO, n_group=4, topk_group=2),
    case(
        "mimo_v2_flash-types",
        "MiMoV2FlashConfig",
        base=MIMO,
        v_head_dim=16,
        attention_value_scale=None,
        routed_scaling_factor=1.7,
        attention_bias=True,
        tie_word_embeddings=True,
        mlp_layer_types=["sparse", "dense", "dense", "sparse"],
        rope_parameters={
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
    ),
    case("mimo_v2_flash-base", "MiMoV2FlashConfig", "Model", base=MIMO, norm_topk_prob=False),
    case("bitnet", "BitNetConfig", attention_bias=True),
    case("bitnet-tied", "BitNetConfig", rms_norm_eps=1e-3, tie_word_embeddings=True, rope_parameters=YARN),
    case("bitnet-base", "BitNetConfig", "Model", num_key_value_heads=4, hidden_act="silu"),
    case("nanochat", "NanoChatConfig"),
    case(
        "nanochat-tied",
        "NanoChatConfig",
        attention_bias=True,
        tie_word_embeddings=True,
        final_logit_softcapping=None,
        rms_norm_eps=1e-3,
        rope_parameters=YARN,
    ),
    case("nanochat-base", "NanoChatConfig", "Model", num_key_value_heads=4),
    case("laguna", "LagunaConfig", base=LAGUNA, moe_routed_scaling_factor=1.7, moe_router_logit_softcapping=0.8),
    case(
        "laguna-heads",
        "LagunaConfig",
        base=LAGUNA,
        gating="per-element",
        num_attention_heads_per_layer=[4, 2, 4, 6],
        mlp_layer_types=["sparse", "dense", "dense", "sparse"],
        tie_word_embeddings=True,
    ),
    case("laguna-base", "LagunaConfig", "Model", base=LAGUNA, num_attention_heads_per_layer=[4, 2, 4, 2]),
    case("gpt_neox_japanese", "GPTNeoXJapaneseConfig", base=JAPANESE),
    case(
        "gpt_neox_japanese-untied",
        "GPTNeoXJapaneseConfig",
        base=JAPANESE,
        tie_word_embeddings=False,
        hidden_act="relu",
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    case("gpt_neox_japanese-base", "GPTNeoXJapaneseConfig", "Model", base=JAPANESE, num_hidden_layers=1),
]
