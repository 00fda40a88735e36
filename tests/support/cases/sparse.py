"""Attention to keys that are chosen, and mixers beside softmax attention."""

from support.cases.encoders import SMALL, segments
from support.cases.encoders import case as encoder
from support.cases.experts import LATENT, MSCALE, YARN, case
from support.cases.experts import SMALL as SMALL_EXPERTS
from support.cases.seq2seq import T5, decoding
from support.reference_models import Case

# So many heads that no score is 0: of equal scores the reference takes any, and two models take others.
INDEXED = {**LATENT, "num_hidden_layers": 4, "index_n_heads": 32, "index_head_dim": 16, "index_topk": 6}
INDEXERS = [
    case("deepseek_v32", "DeepseekV32Config", base=INDEXED, n_group=4, topk_group=2, rope_parameters=MSCALE),
    case(
        "deepseek_v32-plain",
        "DeepseekV32Config",
        base=INDEXED,
        n_group=1,
        topk_group=1,
        norm_topk_prob=False,
        routed_scaling_factor=1.3,
        attention_bias=True,
        tie_word_embeddings=True,
        index_topk=40,
        mlp_layer_types=["sparse", "dense", "sparse", "dense"],
    ),
    case("deepseek_v32-base", "DeepseekV32Config", "Model", base=INDEXED, n_group=2, topk_group=2),
    case("glm_moe_dsa", "GlmMoeDsaConfig", base=INDEXED, n_group=4, topk_group=2),
    case(
        "glm_moe_dsa-shared",
        "GlmMoeDsaConfig",
        base=INDEXED,
        indexer_types=["full", "shared", "full", "shared"],
        mlp_layer_types=["sparse", "dense", "dense", "sparse"],
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    case("glm_moe_dsa-pattern", "GlmMoeDsaConfig", base=INDEXED, index_topk_pattern="FSSF", norm_topk_prob=False),
    case("glm_moe_dsa-freq", "GlmMoeDsaConfig", base=INDEXED, index_topk_freq=2, index_skip_topk_offset=2),
    case("glm_moe_dsa-base", "GlmMoeDsaConfig", "Model", base=INDEXED, index_topk_freq=3),
]

AXK2 = [
    case("axk2", "AXK2Config", base=INDEXED, n_group=4, topk_group=2, gated_norm_rank=6, rope_parameters=MSCALE),
    case(
        "axk2-light",
        "AXK2Config",
        base=INDEXED,
        mlp_layer_types=["sparse", "dense", "dense", "sparse"],
        gated_norm_rank=3,
        norm_topk_prob=False,
        routed_scaling_factor=1.3,
        attention_bias=True,
        tie_word_embeddings=True,
        index_topk=40,
        rms_norm_eps=1e-3,
    ),
    case(
        "axk2-base", "AXK2Config", "Model", base=INDEXED, num_hidden_layers=6, first_k_dense_replace=1, moe_layer_freq=2
    ),
]

SLIDING = {"num_attention_heads": 6, "num_key_value_heads": 6, "q_lora_rank": 14, "kv_lora_rank": 18, "head_dim": 20}
SLIDING |= {"qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
DOTS = {**INDEXED, "num_hidden_layers": 5, "sliding_window": 7, "shared_experts_intermediate_size": 12, "head_dim": 16}
DOTS |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
DOTS |= {"layer_types": ["indexed_attention", "sliding_attention", "full_attention", "sliding_attention"]}
DOTS["layer_types"] += ["indexed_attention"]
DOTS |= {"per_layer_config": {1: SLIDING, 3: SLIDING}}
LEGACY = {f"swa_{name}": value for name, value in SLIDING.items()} | {"swa_rope_theta": 300.0}


def dots(name, model="ForCausalLM", **sizes):
    config = {key: value for key, value in {**DOTS, **sizes}.items() if value != "none"}
    return Case(name, "Dots3NoteTextConfig", f"Dots3Note{model}", config, writes=model == "ForCausalLM")


DOTS3 = [
    dots("dots3_note_text", n_group=4, topk_group=2),
    dots(
        "dots3_note_text-published",
        **LEGACY,
        **{"per_layer_config": "none", "layer_types": "none", "sliding_window": "none"},
        **{
            "sliding_window_size": 5,
            "num_hidden_layers": 6,
            "rope_theta": 5000.0,
            "moe_layer_freq": [1, 0, 1, 1, 0, 1],
        },
        **{"attention_bias": True, "tie_word_embeddings": True, "routed_scaling_factor": 1.3, "norm_topk_prob": False},
    ),
    dots(
        "dots3_note_text-full",
        "TextModel",
        **LEGACY,
        **{"per_layer_config": "none", "use_dsa": False, "rope_parameters": {**YARN, "factor": 3.0}},
        **{"mlp_layer_types": ["sparse", "sparse", "dense", "dense", "sparse"], "rms_norm_eps": 1e-3},
    ),
]

LARGE4 = {name: value for name, value in INDEXED.items() if name != "q_lora_rank"}
LARGE4 |= {"num_hidden_layers": 6, "kv_source_layers": [0, 1, 1, 3, 1, 3], "no_rope_layers": [1, 1, 1, 0, 1, 0]}
LARGE4 |= {"indexer_types": ["full", "shared", "full", "shared", "full", "full"], "final_logit_softcapping": 2.0}
LENDERS = [
    case("mistral_large4_text", "MistralLarge4TextConfig", "Model", base=LARGE4, rope_parameters=MSCALE),
    case(
        "mistral_large4_text-dense",
        "MistralLarge4TextConfig",
        "Model",
        base=LARGE4,
        mlp_layer_types=["dense", "sparse", "dense", "dense", "sparse", "dense"],
        kv_source_layers=[0, 0, 2, 3, 0, 5],
        indexer_types=["full", "full", "shared", "full", "shared", "shared"],
        attention_bias=True,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.7,
        rms_norm_eps=1e-3,
        hidden_act="gelu",
        rope_parameters={"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0},
    ),
    case(
        "mistral_large4_text-usual",
        "MistralLarge4TextConfig",
        "Model",
        base=LARGE4,
        kv_source_layers=None,
        no_rope_layers=None,
        indexer_types=None,
        index_topk=40,
    ),
]

# Heads that choose apart, blocks that end amid a text, and rows longer than all blocks that are chosen.
M3 = {
    **SMALL_EXPERTS,
    "num_hidden_layers": 4,
    "intermediate_size": 20,
    "dense_intermediate_size": 40,
    "shared_intermediate_size": 28,
    "head_dim": 12,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_block_size": 5,
    "index_topk_blocks": 2,
    "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse", "full_attention"],
    "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HALF = {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5}


def m3(name, model="ForCausalLM", **sizes):
    return Case(name, "MiniMaxM3VLTextConfig", f"MiniMaxM3VL{model}", {**M3, **sizes}, writes=model == "ForCausalLM")


BLOCKS = [
    m3("minimax_m3_vl_text", rope_parameters=HALF),
    m3(
        "minimax_m3_vl_text-local",
        index_n_heads=1,
        index_local_blocks=2,
        index_topk_blocks=3,
        index_block_size=3,
        tie_word_embeddings=True,
    ),
    m3("minimax_m3_vl_text-base", "TextModel", swiglu_limit=0.5, mlp_layer_types=["sparse"] * 4),
]

DIFFERENTIAL = [
    case("diffllama", "DiffLlamaConfig"),
    case(
        "diffllama-grouped",
        "DiffLlamaConfig",
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=12,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters=YARN,
        rms_norm_eps=1e-3,
    ),
    case("diffllama-base", "DiffLlamaConfig", "Model", num_key_value_heads=None),
]

NETS = {**SMALL, "type_vocab_size": 3}
del NETS["num_attention_heads"]
FOURIER = [
    encoder("fnet", "FNetConfig", "FNetForMaskedLM", base=NETS, inputs=segments),
    encoder("fnet-untied", "FNetConfig", "FNetForMaskedLM", base=NETS, hidden_act="relu", tie_word_embeddings=False),
    encoder("fnet-pretraining", "FNetConfig", "FNetForPreTraining", base=NETS, inputs=segments),
    encoder("fnet-base", "FNetConfig", "FNetModel", base=NETS, inputs=segments, layer_norm_eps=1e-3),
]

LOCAL = {**T5, "local_radius": 4}
GLOBALS = {**LOCAL, "encoder_attention_type": "transient-global", "global_block_size": 4}
LONGS = [
    case("longt5", "LongT5Config", "ForConditionalGeneration", base=LOCAL, inputs=decoding),
    case(
        "longt5-gated",
        "LongT5Config",
        "ForConditionalGeneration",
        base=LOCAL,
        feed_forward_proj="gated-gelu",
        local_radius=2,
        inputs=decoding,
    ),
    case("longt5-base", "LongT5Config", "Model", base=LOCAL, local_radius=30, inputs=decoding),
    *(
        Case(f"longt5-{name}", "LongT5Config", f"LongT5{model}", GLOBALS | more, **own)
        for name, model, more, own in (
            ("globals", "ForConditionalGeneration", {}, {"inputs": decoding}),
            ("globals-gated", "ForConditionalGeneration", {"feed_forward_proj": "gated-gelu"}, {"inputs": decoding}),
            ("globals-base", "Model", {"global_block_size": 8}, {"inputs": decoding, "writes": False}),
            ("globals-encoder", "EncoderModel", {"local_radius": 9, "global_block_size": 16}, {"writes": False}),
        )
    ),
    case("longt5-encoder", "LongT5Config", "EncoderModel", base=LOCAL, writes=False),
]

CASES = [*INDEXERS, *AXK2, *DOTS3, *LENDERS, *BLOCKS, *DIFFERENTIAL, *FOURIER, *LONGS]
