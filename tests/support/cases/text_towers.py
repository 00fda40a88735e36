"""Text models that are published inside multimodal ones: tests/families/test_multimodal.py has the whole folders."""

import copy

from support.cases.experts import QWEN, SMALL, YARN
from support.reference_models import Case

WIDE = {**SMALL, "head_dim": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}


def case(name, config, model="Model", /, base=SMALL, **sizes):
    """A case of a class with this config: its text model unless `model` names another class."""
    is_base = model == "Model"
    named = config.removesuffix("Config") + model if is_base else model
    return Case(name, config, named, copy.deepcopy({**base, **sizes}), writes=not is_base)


def mrope(*sections, kind="default", theta=5000.0, **more):
    """Rotary parameters for positions of several axes: the channels that each axis rotates."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, "mrope_section": list(sections), **more}}


NEXT = {
    **WIDE,
    "num_hidden_layers": 4,
    "intermediate_size": 40,
    "rms_norm_eps": 1e-2,  # a smaller one makes much of the reference's own rounding, of 2e-4
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MIXED = {"layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"]}
NEXT_MOE = {**NEXT, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
NEXT_MOE |= {"shared_expert_intermediate_size": 28}
QWEN3_5 = [
    case("qwen3_5_text", "Qwen3_5TextConfig", "Qwen3_5ForCausalLM", base=NEXT),
    case("qwen3_5_text-flags", "Qwen3_5TextConfig", "Qwen3_5ForCausalLM", base={**NEXT, **MIXED}, attention_bias=True),
    case(
        "qwen3_5_text-tied",
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        base=NEXT,
        tie_word_embeddings=True,
        hidden_act="gelu",
    ),
    case(
        "qwen3_5_text-yarn",
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        base=NEXT,
        rope_parameters={**YARN, "partial_rotary_factor": 0.5},
    ),
    case("qwen3_5_text-base", "Qwen3_5TextConfig", base=NEXT, full_attention_interval=2),
    case("qwen3_5_moe_text", "Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM", base=NEXT_MOE),
    case(
        "qwen3_5_moe_text-flags",
        "Qwen3_5MoeTextConfig",
        "Qwen3_5MoeForCausalLM",
        base={**NEXT_MOE, **MIXED},
        tie_word_embeddings=True,
    ),
    case("qwen3_5_moe_text-base", "Qwen3_5MoeTextConfig", base=NEXT_MOE, linear_num_value_heads=2),
]
QWEN4 = {name: value for name, value in NEXT_MOE.items() if name != "intermediate_size"}
QWEN4 |= {
    "hc_count": 3,
    "hc_lowrank": 5,
    "num_hidden_layers": 5,
    "ple_layer_ids": [5, 2],
    "eos_token_id": 40,
}  # which is drawn
QWEN4 |= {"layer_types": ["indexed_attention", *2 * ["linear_attention"], "full_attention", "linear_attention"]}
QWEN4 |= {"ple_embed_dim": 24, "ngram_size": 3, "heads_per_ngram": 2, "ngram_vocab_size_base": 40}
QWEN4 |= {"split_ngram_parts": 12, "make_ngram_vocab_size_divisible_by": 7}
QWEN4 |= {"indexer_n_heads": 8, "indexer_kv_heads": 1, "indexer_head_dim": 20, "indexer_budget": 8}
QWEN4 |= {"indexer_compress_ratio": 4}
QWEN4_EXP = [
    case("qwen4_exp_text", "Qwen4ExpTextConfig", "Qwen4ExpForCausalLM", base=QWEN4),
    case(
        "qwen4_exp_text-values",
        "Qwen4ExpTextConfig",
        "Qwen4ExpForCausalLM",
        base=QWEN4,
        output_gate_type="sigmoid",
        hidden_act="gelu",
        attention_bias=True,
        norm_topk_prob=False,
        tie_word_embeddings=True,
        eos_token_id=[25, 7],
        ple_layer_ids=[3],
        ple_embed_dim=None,
        ple_conv_kernel_size=2,
        ngram_size=5,
        seed=77,
        split_ngram_parts=3,
        indexer_compress_ratio=2,
        rope_parameters={**YARN, "partial_rotary_factor": 0.5},
    ),
    case(
        "qwen4_exp_text-base",
        "Qwen4ExpTextConfig",
        base=QWEN4,
        layer_types=None,
        full_attention_interval=2,
        ple_layer_ids=[1],
        split_ngram_parts=512,
        indexer_budget=40,
        hc_count=2,
        ngram_size=2,
    ),
]
QWENS = [
    case("qwen2_vl_text", "Qwen2VLTextConfig", base=SMALL, **mrope(2, 1, 1)),
    case(
        "qwen2_vl_text-window",
        "Qwen2VLTextConfig",
        base=SMALL,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
        **mrope(1, 2, 1, kind="yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    case("qwen2_5_vl_text", "Qwen2_5_VLTextConfig", base=SMALL, **mrope(2, 1, 1)),
    case(
        "qwen2_5_vl_text-window",
        "Qwen2_5_VLTextConfig",
        base=SMALL,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        **mrope(1, 2, 1, kind="linear", factor=2.0),
    ),
    case("qwen3_vl_text", "Qwen3VLTextConfig", base=WIDE, **mrope(4, 2, 2, mrope_interleaved=True)),
    case("qwen3_vl_text-biased", "Qwen3VLTextConfig", base=WIDE, attention_bias=True, rms_norm_eps=1e-3),
    case("qwen3_vl_moe_text", "Qwen3VLMoeTextConfig", base={**QWEN, "head_dim": 16}, **mrope(4, 2, 2)),
    case(
        "qwen3_vl_moe_text-dense",
        "Qwen3VLMoeTextConfig",
        base=QWEN,
        num_hidden_layers=4,
        decoder_sparse_step=2,
        mlp_only_layers=[1],
        attention_bias=True,
        **mrope(2, 1, 1, kind="linear", factor=2.0),
    ),
]
UNPADDED = {**SMALL, "pad_token_id": None}
GLM = {**UNPADDED, "num_hidden_layers": 3, "num_key_value_heads": 2}
PADDED = {**GLM, "pad_token_id": 0}
GLM_MOE = {
    **UNPADDED,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "n_group": 2,
    "topk_group": 1,
}
GLMS = [
    case("glm4v_text", "Glm4vTextConfig", base=GLM, **mrope(2, 1, 1)),
    case("glm4v_text-part", "Glm4vTextConfig", base=GLM, **mrope(1, 1, 0, partial_rotary_factor=0.5)),
    case("glm_ocr_text", "GlmOcrTextConfig", base=GLM, **mrope(2, 1, 1)),
    case("glm_ocr_text-wide", "GlmOcrTextConfig", base={**GLM, "head_dim": 12}, **mrope(2, 2, 2)),
    case("glm_image_text", "GlmImageTextConfig", base=PADDED, **mrope(2, 1, 1)),
    case("glm_image_text-plain", "GlmImageTextConfig", base=PADDED, attention_bias=False, **mrope(1, 2, 1)),
    case("glm4v_moe_text", "Glm4vMoeTextConfig", base=GLM_MOE, **mrope(1, 1, 0, partial_rotary_factor=0.5)),
    case(
        "glm4v_moe_text-flags",
        "Glm4vMoeTextConfig",
        base=GLM_MOE,
        head_dim=12,
        attention_bias=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        n_shared_experts=2,
        first_k_dense_replace=2,
        **mrope(2, 2, 2, partial_rotary_factor=1.0),
    ),
]
TEMPERED = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}
TEMPERED |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
OTHERS = [
    case("ministral3", "Ministral3Config", "Ministral3ForCausalLM", base=WIDE, rope_parameters=TEMPERED),
    case(
        "ministral3-window",
        "Ministral3Config",
        "Ministral3ForCausalLM",
        base=WIDE,
        sliding_window=5,
        tie_word_embeddings=True,
        rope_parameters={**TEMPERED, "original_max_position_embeddings": 7, "llama_4_scaling_beta": 0.1},
    ),
    case("ministral3-base", "Ministral3Config", base=WIDE, rope_parameters=TEMPERED),
    case("aria_text", "AriaTextConfig", "AriaTextForCausalLM", base=SMALL, moe_num_experts=4),
    case(
        "aria_text-flags",
        "AriaTextConfig",
        "AriaTextForCausalLM",
        base=SMALL,
        moe_num_experts=5,
        moe_topk=3,
        moe_num_shared_experts=1,
        mlp_bias=True,
        attention_bias=True,
        hidden_act="gelu",
        tie_word_embeddings=True,
        rope_parameters=LINEAR,
    ),
    case("aria_text-base", "AriaTextConfig", base=SMALL),
    case("granite_docling_text", "GraniteDoclingTextConfig", base=UNPADDED),
    case(
        "granite_docling_text-biased",
        "GraniteDoclingTextConfig",
        base=UNPADDED,
        attention_bias=True,
        mlp_bias=True,
        embedding_multiplier=3.0,
        residual_multiplier=0.7,
        attention_multiplier=0.4,
    ),
    case(
        "hunyuan_vl_text", "HunYuanVLTextConfig", base=WIDE, **mrope(2, 2, 2, 2, kind="dynamic", factor=1.0, alpha=9.0)
    ),
    case("hunyuan_vl_text-biased", "HunYuanVLTextConfig", base=WIDE, attention_bias=True, **mrope(4, 2, 2)),
    case("cosmos3_edge_text", "Cosmos3EdgeTextConfig", base=WIDE, **mrope(4, 2, 2)),
    case(
        "cosmos3_edge_text-biased",
        "Cosmos3EdgeTextConfig",
        base=WIDE,
        attention_bias=True,
        mlp_bias=True,
        **mrope(2, 4, 2),
    ),
]
MOLMO = {**WIDE, "additional_vocab_size": 9, "num_hidden_layers": 3}
MOLMOS = [
    case("molmo2_text", "Molmo2TextConfig", base=MOLMO, attention_bias=True, rope_parameters=YARN),
    case(
        "molmo2_text-olmo",
        "Molmo2TextConfig",
        base={**MOLMO, "additional_vocab_size": 4},
        qk_norm_type="olmo",
        norm_after=True,
        rope_scaling_layers=[0, 2],
        rope_parameters=YARN,
    ),
    case("molmo2_text-mixed", "Molmo2TextConfig", base=MOLMO, rope_scaling_layers=[1], rope_parameters=LINEAR),
]
COMPASS = {**SMALL, "num_hidden_layers": 4, "sliding_window": 5}
COMPASS |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]}
NEAR = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 1, 1]}
COMPASSES = [
    case(
        "cohere_compass_text",
        "CohereCompassTextConfig",
        "CohereCompassForCausalLM",
        base=COMPASS,
        rope_parameters={"sliding_attention": NEAR, "full_attention": None},
    ),
    case(
        "cohere_compass_text-flags",
        "CohereCompassTextConfig",
        "CohereCompassForCausalLM",
        base=COMPASS,
        rope_parameters={"sliding_attention": NEAR, "full_attention": {**LINEAR, "mrope_section": [2, 1, 1]}},
        logit_scale=0.25,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
]
CASES = [*QWEN3_5, *QWEN4_EXP, *QWENS, *GLMS, *OTHERS, *MOLMOS, *COMPASSES]
