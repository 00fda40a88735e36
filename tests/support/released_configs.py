"""What the released config.json files of packaged models say."""

import json
from pathlib import Path
from typing import Any

import transformers

NAMED = {
    "embeddinggemma-300m": "Gemma3TextModel",  # whose weights have no head
    **dict.fromkeys(("gemma-4-e2b", "gemma-4-e4b", "gemma-4-26b-a4b"), "Gemma4ForCausalLM"),
    "gemma-4-12b": "Gemma4UnifiedForCausalLM",
    "gte-multilingual-base": "GteModel",
    **dict.fromkeys(("gemma-3n-e2b", "gemma-3n-e4b"), "Gemma3nForCausalLM"),
}
"""The class that the weights are for, where it is not named after the config."""

STATED = Path(__file__).parent / "published_configs.json"

UNTIED = {"tie_word_embeddings": False}


def gemma4(d: int, layers: int, heads: int, kv: int, d_ff: int, kind: str = "Gemma4", **more: Any) -> Any:
    return getattr(transformers, f"{kind}TextConfig")(
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=d_ff,
        final_logit_softcapping=30.0,
        **more,
    )


def config(kind: str, vocab: int, d: int, layers: int, heads: int, **more: Any) -> Any:
    sizes = {"vocab_size": vocab, "hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads}
    return getattr(transformers, f"{kind}Config")(**sizes, **more)


def gqa(kind: str, vocab: int, d: int, layers: int, heads: int, kv_heads: int, **more: Any) -> Any:
    return config(kind, vocab, d, layers, heads, num_key_value_heads=kv_heads, **more)


def bert(d: int, layers: int, heads: int, vocab: int = 30522) -> Any:
    return config("Bert", vocab, d, layers, heads, intermediate_size=4 * d)


def roberta(kind: str, d: int, layers: int, heads: int, positions: int = 514, **more: Any) -> Any:
    own = {"max_position_embeddings": positions, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return config(kind, 50265, d, layers, heads, intermediate_size=4 * d, **own, **more)


def deberta(kind: str, vocab: int, **more: Any) -> Any:
    own = {"intermediate_size": 3072, "relative_attention": True, "position_biased_input": False}
    return config(kind, vocab, 768, 12, 12, **own, **more)


def esm2(d: int, layers: int, heads: int) -> Any:
    own = {"position_embedding_type": "rotary", "token_dropout": True, "emb_layer_norm_before": False}
    own |= {"mask_token_id": 32, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    return config("Esm", 33, d, layers, heads, intermediate_size=4 * d, **own)


def t5(d: int, layers: int, heads: int, d_ff: int, d_kv: int = 64, kind: str = "T5", **more: Any) -> Any:
    sizes = {
        "d_model": d,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "d_ff": d_ff,
        "d_kv": d_kv,
    }
    own = {"relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-6, "decoder_start_token_id": 0}
    return getattr(transformers, f"{kind}Config")(
        **{"vocab_size": 32128, "feed_forward_proj": "relu", **sizes, **own, **more}
    )


def mt5(d: int, layers: int, heads: int, d_ff: int) -> Any:
    return t5(d, layers, heads, d_ff, kind="MT5", vocab_size=250112, feed_forward_proj="gated-gelu", **UNTIED)


def bart(d: int, layers: int, heads: int, vocab: int = 50265, positions: int = 1024) -> Any:
    towers = {
        f"{tower}_{name}": value
        for tower in ("encoder", "decoder")
        for name, value in (("layers", layers), ("ffn_dim", 4 * d), ("attention_heads", heads))
    }
    own = {"activation_function": "gelu", "scale_embedding": False, "decoder_start_token_id": 2}
    return transformers.BartConfig(vocab_size=vocab, d_model=d, max_position_embeddings=positions, **towers, **own)


def stated(name: str, **other: Any) -> Any:
    """The config of tests/support/published_configs.json, without how the file's weights are quantised; of another size
    with `other` fields."""
    config = json.loads(STATED.read_text(encoding="utf-8"))[name]["config"]
    kept = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    return transformers.AutoConfig.for_model(**{**kept, **other})


def granite_hybrid(d: int, heads: int, experts: int, chosen: int, d_ff: int, shared: int, **other: Any) -> Any:
    own = {"layer_types": ["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)]}
    own |= {"num_local_experts": experts, "num_experts_per_tok": chosen, "intermediate_size": d_ff}
    own |= {"shared_intermediate_size": shared, "mamba_d_state": 128, "mamba_n_heads": d // 32}
    own |= {"position_embedding_type": "nope", "max_position_embeddings": 131072, "embedding_multiplier": 12.0}
    own |= {"residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    return config("GraniteMoeHybrid", 100352, d, 40, heads, **own, **other)


# What the released config.json files say, typed here a second time on purpose where it is not the default of its class.
REFERENCE = {
    "bert-base": bert(768, 12, 12),
    "bert-large": bert(1024, 24, 16),
    "roberta-base": roberta("Roberta", 768, 12, 12),
    "roberta-large": roberta("Roberta", 1024, 24, 16),
    "deberta-base": deberta("Deberta", 50265, pos_att_type="c2p|p2c"),
    "deberta-v3-base": deberta(
        *("DebertaV2", 128100),
        pos_att_type="p2c|c2p",
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    "longformer-base-4096": roberta("Longformer", 768, 12, 12, 4098, attention_window=[512] * 12, sep_token_id=2),
    "modernbert-base": stated("modernbert"),
    "embeddinggemma-300m": transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=768,
        intermediate_size=1152,
        num_hidden_layers=24,
        num_attention_heads=3,
        num_key_value_heads=1,
        sliding_window=512,
        max_position_embeddings=2048,
        use_bidirectional_attention=True,
    ),
    "gemma-3n-e2b": transformers.Gemma3nTextConfig(
        num_hidden_layers=30, intermediate_size=8192, num_kv_shared_layers=10
    ),
    "gemma-3n-e4b": transformers.Gemma3nTextConfig(),
    "gemma-4-e2b": gemma4(
        *(1536, 35, 8, 1, 6144),
        num_kv_shared_layers=20,
        use_double_wide_mlp=True,
        layer_types=[*["sliding_attention"] * 4, "full_attention"] * 7,
    ),
    "gemma-4-e4b": gemma4(2560, 42, 8, 2, 10240, num_kv_shared_layers=18),
    "gemma-4-12b": gemma4(3840, 48, 16, 8, 15360, "Gemma4Unified", num_global_key_value_heads=1, attention_k_eq_v=True),
    "gemma-4-26b-a4b": gemma4(
        *(2816, 30, 16, 8, 2112),
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        sliding_window=1024,
        max_position_embeddings=262144,
        enable_moe_block=True,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
    ),
    "t5-small": t5(512, 6, 8, 2048),
    "t5-base": t5(768, 12, 12, 3072),
    "t5-large": t5(1024, 24, 16, 4096),
    "t5-3b": t5(1024, 24, 32, 16384, d_kv=128),
    "t5-11b": t5(1024, 24, 128, 65536, d_kv=128),
    "t5-v1.1-small": t5(512, 8, 6, 1024, feed_forward_proj="gated-gelu", **UNTIED),
    "mt5-small": mt5(512, 8, 6, 1024),
    "mt5-base": mt5(768, 12, 12, 2048),
    "bart-base": bart(768, 6, 12),
    "bart-large": bart(1024, 12, 16),
    "qwen3-30b-a3b": stated("qwen3-30b-a3b"),
    "qwen3-235b-a22b": stated(
        "qwen3-30b-a3b",
        **{"hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64, "moe_intermediate_size": 1536},
    ),
    "qwen3-next-80b-a3b": gqa(
        *("Qwen3Next", 151936, 2048, 48, 16, 2),
        intermediate_size=5120,  # of layers that there are none of
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 12,
        max_position_embeddings=262144,
        rope_theta=1e7,
        **UNTIED,
    ),
    "deepseek-v2-lite": stated("deepseek-v2-lite"),
    "deepseek-v3": stated("deepseek-v3"),
    "deepseek-v3.2": stated(
        "deepseek-v3", model_type="deepseek_v32", index_n_heads=64, index_head_dim=128, index_topk=2048
    ),
    "glm-5": gqa(
        *("GlmMoeDsa", 154880, 6144, 78, 64, 64),
        **{"kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256},
        **{"q_lora_rank": 2048, "intermediate_size": 12288, "moe_intermediate_size": 2048, "first_k_dense_replace": 3},
        **{"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1},
        **{"norm_topk_prob": True, "routed_scaling_factor": 2.5, "max_position_embeddings": 202752},
        **{"index_n_heads": 32, "index_head_dim": 128, "index_topk": 2048},
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **UNTIED,
    ),
    "bert-tiny": bert(192, 4, 6, vocab=4224),
    "t5-tiny": t5(192, 2, 6, 768, d_kv=32, vocab_size=4224),
    "bart-tiny": bart(192, 2, 6, vocab=4224, positions=512),
    "deepseek-tiny": gqa(
        *("DeepseekV3", 4096, 192, 4, 6, 6),
        **{"kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32},
        **{"q_lora_rank": None, "intermediate_size": 512, "moe_intermediate_size": 128, "first_k_dense_replace": 1},
        **{"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        **{"norm_topk_prob": True, "routed_scaling_factor": 1.0, "max_position_embeddings": 512},
        tie_word_embeddings=True,
    ),
    "qwen3-next-tiny": gqa(
        *("Qwen3Next", 4096, 192, 4, 6, 2),
        **{"head_dim": 32, "intermediate_size": 5120, "moe_intermediate_size": 128},
        **{"shared_expert_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True},
        **{"linear_conv_kernel_dim": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32},
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "max_position_embeddings": 512},
        **{"decoder_sparse_step": 1, "mlp_only_layers": [], "partial_rotary_factor": 0.25, "rope_theta": 1e4},
        tie_word_embeddings=True,
    ),
    "gpt-oss-20b": stated("gpt-oss-20b"),
    "gpt-oss-120b": stated(
        "gpt-oss-20b",
        num_hidden_layers=36,
        num_local_experts=128,
        layer_types=["sliding_attention", "full_attention"] * 18,
    ),
    "minimax-m2": stated("minimax-m2"),
    "glm-4.7-flash": stated("glm-4.7-flash"),
    "granite-4.0-micro": stated("granite-4.0-micro"),
    "granite-4.0-h-tiny": granite_hybrid(
        1536, 12, 64, 6, 512, 1024, num_key_value_heads=4, attention_multiplier=1 / 128, logits_scaling=6.0
    ),
    "granite-4.0-h-small": granite_hybrid(
        4096, 32, 72, 10, 768, 1536, num_key_value_heads=8, attention_multiplier=1 / 128, logits_scaling=16.0
    ),
    "mamba-130m": stated("mamba-130m-hf"),
    "mamba2-130m": transformers.Mamba2Config(
        vocab_size=50288,
        hidden_size=768,
        num_hidden_layers=24,
        num_heads=24,
        n_groups=1,
        tie_word_embeddings=True,
    ),
    "esm2-8m": esm2(320, 6, 20),
    "esm2-35m": esm2(480, 12, 20),
    "esm2-150m": esm2(640, 30, 20),
    "esm2-650m": esm2(1280, 33, 20),
    "esm2-3b": esm2(2560, 36, 40),
    "esm2-15b": esm2(5120, 48, 40),
    "gte-multilingual-base": transformers.GteConfig(),
}

UNUSED = {
    name: 1 + each.num_hidden_layers * each.num_attention_heads for name, each in REFERENCE.items() if "esm" in name
}
"""A regression on the attention maps of all heads, which says what residues touch."""

OWN_HEAD = ("t5-v1.1-small", "mt5-small", "mt5-base")
"""Whose files hold a head of their own and whose config.json says so, though transformers 5 builds the classes tied."""
