"""Models of several residual streams: hyper-connections."""

from support.cases.experts import MSCALE, case
from support.cases.sparse import INDEXED
from support.cases.text_towers import mrope

HY4 = {name: value for name, value in INDEXED.items() if name != "first_k_dense_replace"}
HY4 |= {"indexer_types": ["full", "shared", "full", "shared"], "swiglu_limit": 0.4, "num_key_value_heads": 4}
HY4 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

GLM5 = {name: value for name, value in HY4.items() if name not in ("indexer_types", "qk_rope_head_dim")}
GLM5 |= {"index_kpool": 4, "index_topk": 8, "linear_head_dim": 8, "linear_num_heads": 2, "hc_sinkhorn_iters": 4}

V4 = {
    **{"vocab_size": 97, "hidden_size": 32, "moe_intermediate_size": 20, "num_hidden_layers": 5, "head_dim": 16},
    **{"num_attention_heads": 4, "q_lora_rank": 12, "o_groups": 2, "o_lora_rank": 6, "sliding_window": 7},
    **{"n_routed_experts": 6, "num_experts_per_tok": 2, "max_position_embeddings": 64, "partial_rotary_factor": 0.5},
    **{"index_n_heads": 16, "index_head_dim": 12, "index_topk": 3, "hc_sinkhorn_iters": 4, "swiglu_limit": 0.4},
    "compress_rates": {"compressed_sparse_attention": 3, "heavily_compressed_attention": 5},
    "layer_types": ["sliding_attention"] + 2 * ["compressed_sparse_attention", "heavily_compressed_attention"],
    "mlp_layer_types": ["hash_moe", "moe", "hash_moe", "moe", "moe"],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

CASES = [
    case("deepseek_v4", "DeepseekV4Config", base=V4, rope_parameters=YARN),
    case(
        "deepseek_v4-values",
        "DeepseekV4Config",
        base=V4,
        layer_types=None,
        mlp_layer_types=None,
        num_hash_layers=1,
        compress_rate_csa=4,
        hc_mult=3,
        hc_eps=1e-3,
        rms_norm_eps=1e-3,
        mlp_bias=True,
        index_topk=40,
        o_groups=1,
        hidden_act="gelu",
        rope_theta=3000.0,
        compress_rope_theta=700.0,
        tie_word_embeddings=True,
    ),
    case("deepseek_v4-base", "DeepseekV4Config", "Model", base=V4, sliding_window=1, partial_rotary_factor=0.25),
    case("hy_v4", "HYV4Config", base=HY4, mlp_layer_types=["dense", "sparse", "sparse", "dense"], hc_mult=3),
    case(
        "hy_v4-values",
        "HYV4Config",
        base=HY4,
        indexer_types=None,
        attention_bias=True,
        hc_magnitude=1.3,
        hc_eps=1e-3,
        rms_norm_eps=1e-3,
        n_group=4,
        topk_group=2,
        norm_topk_prob=False,
        rope_parameters=MSCALE,
        hidden_act="gelu",
    ),
    case("hy_v4-base", "HYV4Config", "Model", base=HY4, index_topk=40),
    case("hy_v4_vl_text", "HYV4VLTextConfig", "Model", base=HY4, **mrope(1, 1, 1)),
    case("glm5_next_text", "Glm5NextTextConfig", "Model", base=GLM5),
    case(
        "glm5_next_text-values",
        "Glm5NextTextConfig",
        "Model",
        base=GLM5,
        layer_types=["linear_attention", "indexed_attention", "indexed_attention", "linear_attention"],
        indexer_types=["full", "full", "shared", "full"],
        mlp_layer_types=["sparse", "dense", "sparse", "dense"],
        linear_lower_bound=None,
        attention_bias=True,
        index_kpool=2,
        hc_eps=1e-3,
        n_group=4,
        topk_group=2,
        norm_topk_prob=False,
    ),
]
