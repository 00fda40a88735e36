"""What the released config.json files of packaged models of 2025 and 2026 say."""

from typing import Any

import transformers

from support.released_configs import gqa as config
from support.released_configs import stated


def qwen35(kind: str, d: int, layers: int, kv_heads: int, **more: Any) -> Any:
    delta = {"conv_kernel_dim": 4, "key_head_dim": 128, "value_head_dim": 128, "num_key_heads": 16}
    return config(
        *(kind, 248320, d, layers, 16, kv_heads),
        **{f"linear_{name}": value for name, value in delta.items()},
        layer_types=(["linear_attention"] * 3 + ["full_attention"]) * (layers // 4),
        rope_parameters={"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        max_position_embeddings=262144,
        **more,
    )


def lfm2(kind: str, d: int, heads: int, layers: int, full: tuple[int, ...], d_ff: int, **more: Any) -> Any:
    return config(
        *(kind, 65536, d, layers, heads, 8),
        layer_types=["full_attention" if layer in full else "conv" for layer in range(layers)],
        intermediate_size=d_ff,
        **more,
    )


def lfm2_dense(d: int, heads: int, layers: int, full: tuple[int, ...], d_ff: int, adjust: bool = True) -> Any:
    """Two thirds of `d_ff`, and up to the next multiple of 256, is what is built where `adjust`."""
    rule = {"block_auto_adjust_ff_dim": adjust, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0}
    return lfm2("Lfm2", d, heads, layers, full, d_ff, **rule)


def ministral3(d: int, layers: int, d_ff: int, theta: float = 1e6, tied: bool = False) -> Any:
    ends = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
    yarn = {"rope_type": "yarn", "rope_theta": theta, "factor": 16.0, "original_max_position_embeddings": 16384}
    return config(
        *("Ministral3", 131072, d, layers, 32, 8),
        intermediate_size=d_ff,
        rope_parameters={**yarn, **ends},
        tie_word_embeddings=tied,
    )


def olmo3(d: int, layers: int, heads: int, kv_heads: int, d_ff: int) -> Any:
    plain = {"rope_type": "default", "rope_theta": 500000.0}
    ends = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.2079441541679836}
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192, **ends}
    return config(
        *("Olmo3", 100278, d, layers, heads, kv_heads),
        intermediate_size=d_ff,
        layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * (layers // 4),
        rope_parameters={"sliding_attention": plain, "full_attention": {**plain, **yarn}},
        max_position_embeddings=65536,
        rms_norm_eps=1e-6,
    )


def nemotron_h(pattern: str, d: int, kv_heads: int, ssm_heads: int, **more: Any) -> Any:
    kinds = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
    return transformers.NemotronHConfig(
        hidden_size=d,
        layers_block_type=[kinds[letter] for letter in pattern],
        num_key_value_heads=kv_heads,
        mamba_num_heads=ssm_heads,
        **more,
    )


def nanochat(layers: int) -> Any:
    """A depth decides the rest: 64 channels and half a head a layer."""
    d, heads = 64 * layers, layers // 2
    return config(
        *("NanoChat", 65536, d, layers, heads, heads),
        intermediate_size=4 * d,
    )


def glm45(
    d: int, layers: int, dense: int, d_ff: int, experts: int, d_expert: int, context: int = 131072, **more: Any
) -> Any:
    return config(
        *("Glm4Moe", 151552, d, layers, 96, 8),
        head_dim=128,
        attention_bias=True,
        intermediate_size=d_ff,
        moe_intermediate_size=d_expert,
        first_k_dense_replace=dense,
        n_routed_experts=experts,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        max_position_embeddings=context,
        **more,
    )


# As in released_configs.py.
REFERENCE = {
    "qwen3.5-4b": qwen35("Qwen3_5Text", 2560, 32, 4, intermediate_size=9216, tie_word_embeddings=True),
    "qwen3.5-35b-a3b": qwen35(
        *("Qwen3_5MoeText", 2048, 40, 2),
    ),
    "lfm2-350m": lfm2_dense(1024, 16, 16, (2, 5, 8, 10, 12, 14), 6656),
    "lfm2-1.2b": lfm2_dense(2048, 32, 16, (2, 5, 8, 10, 12, 14), 12288),
    "lfm2-2.6b": lfm2_dense(2048, 32, 30, (2, 5, 9, 13, 17, 21, 24, 27), 10752, adjust=False),
    "lfm2-8b-a1b": lfm2(
        *("Lfm2Moe", 2048, 32, 24, (2, 6, 10, 14, 18, 21), 7168),
    ),
    "ministral-3-3b": ministral3(3072, 26, 9216, tied=True),
    "ministral-3-8b": ministral3(4096, 34, 14336),
    "ministral-3-14b": ministral3(5120, 40, 16384, theta=1e9),
    "olmo3-7b": olmo3(4096, 32, 32, 32, 11008),
    "olmo3-32b": olmo3(5120, 64, 40, 8, 27648),
    "olmo-hybrid-7b": config(
        *("OlmoHybrid", 100352, 3840, 32, 30, 30),
        layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 8,
        rope_parameters={"rope_type": "default", "rope_theta": None},
    ),
    "kimi-linear-48b-a3b": config(
        *("KimiLinear", 163840, 2304, 27, 32, 32),
        layer_types=[
            "full_attention" if layer in (3, 7, 11, 15, 19, 23, 26) else "linear_attention" for layer in range(27)
        ],
        mlp_layer_types=["dense"] + ["sparse"] * 26,
        **{"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
        **{"linear_head_dim": 128, "linear_num_heads": 32, "linear_conv_kernel_dim": 4},
    ),
    "kimi-k2": stated(
        "deepseek-v3",
        **{"vocab_size": 163840, "num_attention_heads": 64, "num_key_value_heads": 64, "first_k_dense_replace": 1},
        **{"n_routed_experts": 384, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827},
        **{"max_position_embeddings": 131072, "rope_theta": 50000.0},
        rope_scaling={
            **{"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
            **{"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "nemotron-h-8b": nemotron_h(
        *("M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-", 4096, 8, 128),
        max_position_embeddings=8192,
    ),
    "nemotron-3-nano-30b-a3b": nemotron_h(
        *("MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", 2688, 2, 64),
        intermediate_size=1856,  # of layers that there are none of
        moe_intermediate_size=1856,
        moe_shared_expert_intermediate_size=3712,
        n_routed_experts=128,
        num_experts_per_tok=6,
        routed_scaling_factor=2.5,
        max_position_embeddings=262144,
    ),
    "falcon-h1-0.5b": config(
        *("FalconH1", 32784, 1024, 36, 8, 2),
        head_dim=64,
        intermediate_size=2048,
        mamba_d_ssm=1536,
        mamba_n_heads=24,
        mamba_d_state=128,
        mamba_norm_before_gate=False,
        attention_out_multiplier=0.9375,
        embedding_multiplier=5.656854249492381,
        key_multiplier=0.39062499999999994,
        lm_head_multiplier=0.0390625,
        mlp_multipliers=[0.8838834764831844, 0.5859375],
        ssm_in_multiplier=1.25,
        ssm_multipliers=[0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738],
        ssm_out_multiplier=0.23570226039551587,
        rope_parameters={"rope_type": "default", "rope_theta": 1e11},
        max_position_embeddings=16384,
    ),
    "nanochat-d20": nanochat(20),
    "nanochat-d32": nanochat(32),
    "bitnet-b1.58-2b-4t": config(
        *("BitNet", 128256, 2560, 30, 20, 5),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    ),
    "modernbert-large": stated(
        "modernbert", hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=2624
    ),
    "glm-4.5": glm45(5120, 92, 3, 12288, 160, 1536, use_qk_norm=True, routed_scaling_factor=2.5),
    "glm-4.6": glm45(5120, 92, 3, 12288, 160, 1536, 202752, use_qk_norm=True, routed_scaling_factor=2.5),
    "glm-4.5-air": glm45(4096, 46, 1, 10944, 128, 1408, use_qk_norm=False, routed_scaling_factor=1.0),
    "longcat-flash": transformers.LongcatFlashConfig(),
    "zamba-7b": transformers.ZambaConfig(),
    "zaya1-8b": transformers.ZayaConfig(),
    "mistral-large-4": transformers.MistralLarge4TextConfig(),
    "hrm-text-1b": transformers.HrmTextConfig(),
    "inkling-2-mini": transformers.Inkling2LoopTextConfig(),
    "inkling-2-small": transformers.Inkling2TextConfig(),
    "dots3-note-prev": transformers.Dots3NoteTextConfig(),
}

NAMED = {"mistral-large-4": "MistralLarge4ForConditionalGeneration", "hrm-text-1b": "HrmTextForCausalLM"}
"""The class that the weights are for, where it is not named after the config."""

ALLOCATED = {"mistral-large-4": "MistralLarge4TextModel"}
"""The class that is built of the text model's config, where the one that the weights are for takes another."""

UNUSED = {
    "longcat-flash": 28 * 256 * (2 * 6144 * 2048),
    "mistral-large-4": -204800 * 6144,
    "inkling-2-small": -966 * 4608,
    "inkling-2-mini": -966 * 2304,
    "hrm-text-1b": 1536,
}
"""What transformers allocates besides: the first two matrices of experts that compute nothing. A negative one is that
of a head, or of spare rows in the file's, which the class that is built has not. HRM-Text's first state is no
parameter here."""

# Parameters of the experts that a token is not sent to, by hand: layers × idle experts × (matrices of one).
IDLE = {
    "qwen3.5-35b-a3b": 40 * 248 * (3 * 2048 * 512),
    "lfm2-8b-a1b": 22 * 28 * (3 * 2048 * 1792),
    "kimi-linear-48b-a3b": 26 * 248 * (3 * 2304 * 1024),
    "kimi-k2": 60 * 376 * (3 * 7168 * 2048),
    "nemotron-3-nano-30b-a3b": 23 * 122 * (2 * 2688 * 1856),
    "glm-4.5": 89 * 152 * (3 * 5120 * 1536),
    "glm-4.6": 89 * 152 * (3 * 5120 * 1536),
    "glm-4.5-air": 45 * 120 * (3 * 4096 * 1408),
    "mistral-large-4": 71 * 124 * (3 * 6144 * 6144),
    "inkling-2-small": 48 * 376 * (3 * 4608 * 2304),
    "inkling-2-mini": 24 * 120 * (3 * 2304 * 1152),
    "dots3-note-prev": 45 * 248 * (3 * 5120 * 1536),
    "longcat-flash": 28 * (512 - 8) * (3 * 6144 * 2048),  # of 12 chosen of 768, 8 are of the 512 that compute
    "zaya1-8b": 40 * 3 * (16 * 2048 * 2048 - 2048 * 2048 * 16 // 17),  # one choice in 17 is of no expert
}
