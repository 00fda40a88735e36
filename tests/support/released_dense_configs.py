"""What the released config.json files of packaged dense decoders say."""

from typing import Any

from support.released_configs import config, stated


def gqa(
    kind: str, vocab: int, d: int, layers: int, heads: int, kv_heads: int, d_ff: int, context: int, **more: Any
) -> Any:
    own = {"num_key_value_heads": kv_heads, "intermediate_size": d_ff, "max_position_embeddings": context}
    return config(kind, vocab, d, layers, heads, **own, **more)


def gemma(
    kind: str, d: int, layers: int, heads: int, kv_heads: int, d_ff: int, head_dim: int = 256, **more: Any
) -> Any:
    act = {"hidden_act" if kind == "Gemma" else "hidden_activation": "gelu_pytorch_tanh"}
    own = {"head_dim": head_dim, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, **act, **more}
    return gqa(kind, 256000, d, layers, heads, kv_heads, d_ff, 8192, **{"rope_theta": 1e4, **own})


def gemma2(d: int, layers: int, heads: int, kv_heads: int, d_ff: int, scalar: int = 256, head_dim: int = 256) -> Any:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    own = {"query_pre_attn_scalar": scalar, "sliding_window": 4096, **caps}
    return gemma("Gemma2", d, layers, heads, kv_heads, d_ff, head_dim, **own)


def qwen25(d: int, layers: int, heads: int, kv_heads: int, d_ff: int, context: int = 131072, eps: float = 1e-6) -> Any:
    small = d <= 2048
    own = {"rms_norm_eps": eps, "rope_theta": 1e6, "tie_word_embeddings": small, "use_sliding_window": False}
    window = {"sliding_window": context, "max_window_layers": layers}
    return gqa("Qwen2", 151936 if small else 152064, d, layers, heads, kv_heads, d_ff, context, **own, **window)


def qwen3(d: int, layers: int, heads: int, d_ff: int) -> Any:
    own = {"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": d <= 2560}
    window = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": layers}
    return gqa("Qwen3", 151936, d, layers, heads, 8, d_ff, 40960, **own, **window)


def olmo2(d: int, layers: int, heads: int, d_ff: int) -> Any:
    return gqa("Olmo2", 100352, d, layers, heads, heads, d_ff, 4096, rms_norm_eps=1e-6, rope_theta=5e5)


def falcon(d: int, layers: int, heads: int, **more: Any) -> Any:
    return config("Falcon", 65024, d, layers, heads, parallel_attn=True, bias=False, alibi=False, **more)


def pythia(d: int, layers: int, heads: int, vocab: int = 50304, act: str = "gelu") -> Any:
    own = {"rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True, "layer_norm_eps": 1e-5}
    sizes = {"intermediate_size": 4 * d, "max_position_embeddings": 2048, "tie_word_embeddings": False}
    return config("GPTNeoX", vocab, d, layers, heads, hidden_act=act, **sizes, **own)


def opt(d: int, layers: int, heads: int, width: int | None = None) -> Any:
    own = {"ffn_dim": 4 * d, "word_embed_proj_dim": width or d, "do_layer_norm_before": width is None}
    return config("OPT", 50272, d, layers, heads, max_position_embeddings=2048, activation_function="relu", **own)


def smollm2(d: int, layers: int, heads: int, kv_heads: int, d_ff: int, theta: float = 1e5) -> Any:
    own = {"rms_norm_eps": 1e-5, "rope_theta": theta, "tie_word_embeddings": True}
    return gqa("Llama", 49152, d, layers, heads, kv_heads, d_ff, 8192, **own)


# What the released config.json files say, typed here a second time on purpose.
REFERENCE = {
    "gemma-2b": gemma("Gemma", 2048, 18, 8, 1, 16384),
    "gemma-7b": gemma("Gemma", 3072, 28, 16, 16, 24576),
    "gemma2-2b": gemma2(2304, 26, 8, 4, 9216),
    "gemma2-9b": gemma2(3584, 42, 16, 8, 14336),
    "gemma2-27b": gemma2(4608, 46, 32, 16, 36864, scalar=144, head_dim=128),
    "gemma3-1b": stated("gemma-3-1b"),
    "qwen2.5-0.5b": qwen25(896, 24, 14, 2, 4864, context=32768),
    "qwen2.5-1.5b": qwen25(1536, 28, 12, 2, 8960),
    "qwen2.5-3b": qwen25(2048, 36, 16, 2, 11008, context=32768),
    "qwen2.5-7b": qwen25(3584, 28, 28, 4, 18944),
    "qwen2.5-14b": qwen25(5120, 48, 40, 8, 13824, eps=1e-5),
    "qwen2.5-32b": qwen25(5120, 64, 40, 8, 27648, eps=1e-5),
    "qwen2.5-72b": qwen25(8192, 80, 64, 8, 29568, eps=1e-5),
    "qwen3-0.6b": qwen3(1024, 28, 16, 3072),
    "qwen3-1.7b": qwen3(2048, 28, 16, 6144),
    "qwen3-4b": qwen3(2560, 36, 32, 9728),
    "qwen3-8b": qwen3(4096, 36, 32, 12288),
    "qwen3-14b": qwen3(5120, 40, 40, 17408),
    "qwen3-32b": qwen3(5120, 64, 64, 25600),
    "olmo2-7b": olmo2(4096, 32, 32, 11008),
    "olmo2-13b": olmo2(5120, 40, 40, 13824),
    "phi-2": stated("phi-2"),
    "phi-3-mini": stated("phi-3-mini-4k"),
    "falcon-7b": falcon(4544, 32, 71, multi_query=True, new_decoder_architecture=False),
    "falcon-40b": falcon(8192, 60, 128, num_kv_heads=8, new_decoder_architecture=True),
    "pythia-70m": pythia(512, 6, 8),
    "pythia-160m": pythia(768, 12, 12),
    "pythia-410m": pythia(1024, 24, 16),
    "pythia-1b": pythia(2048, 16, 8),
    "pythia-1.4b": pythia(2048, 24, 16),
    "pythia-2.8b": pythia(2560, 32, 32),
    "pythia-6.9b": pythia(4096, 32, 32, vocab=50432),
    "pythia-12b": pythia(5120, 36, 40, vocab=50688),
    "gpt-neox-20b": pythia(6144, 44, 64, vocab=50432, act="gelu_fast"),
    "gpt-j-6b": stated("gpt-j-6b"),
    "opt-125m": opt(768, 12, 12),
    "opt-350m": opt(1024, 24, 16, width=512),
    "opt-1.3b": opt(2048, 24, 32),
    "opt-2.7b": opt(2560, 32, 32),
    "opt-6.7b": opt(4096, 32, 32),
    "opt-13b": opt(5120, 40, 40),
    "opt-30b": opt(7168, 48, 56),
    "opt-66b": opt(9216, 64, 72),
    "smollm2-135m": smollm2(576, 30, 9, 3, 1536),
    "smollm2-360m": smollm2(960, 32, 15, 5, 2560),
    "smollm2-1.7b": smollm2(2048, 24, 32, 32, 8192, theta=130000.0),
    "smollm3-3b": stated("smollm3-3b"),
    "tinyllama-1.1b": stated("tinyllama"),
    "starcoder2-3b": stated("starcoder2-3b"),
}
