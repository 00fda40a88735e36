"""Models of several residual streams: hyper-connections."""

from cases_experts import MSCALE, case
from cases_sparse import INDEXED
from cases_text_towers import mrope

HY4 = {name: value for name, value in INDEXED.items() if name != "first_k_dense_replace"}
HY4 |= {"indexer_types": ["full", "shared", "full", "shared"], "swiglu_limit": 0.4, "num_key_value_heads": 4}
HY4 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

GLM5 = {name: value for name, value in HY4.items() if name not in ("indexer_types", "qk_rope_head_dim")}
GLM5 |= {"index_kpool": 4, "index_topk": 8, "linear_head_dim": 8, "linear_num_heads": 2, "hc_sinkhorn_iters": 4}

CASES = [
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
