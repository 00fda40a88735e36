"""GPT-2 and what came of it."""

from support.reference_models import case

N = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
H = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
F = {**H, "intermediate_size": 56}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}


def rope(partial=None, **parameters):
    share = {} if partial is None else {"partial_rotary_factor": partial}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0, **parameters, **share}}


def longrope(pairs, trained, factor=None):
    """Divisors for so many pairs; a row of 24 tokens is longer than 16."""
    short, long = [1.0 + 0.1 * i for i in range(pairs)], [2.0 + 0.7 * i for i in range(pairs)]
    stated = {} if factor is None else {"factor": factor}
    parameters = {"rope_type": "longrope", "short_factor": short, "long_factor": long, **stated}
    return {**rope(None, **parameters), "original_max_position_embeddings": trained}


GPT2 = [
    case("gpt2", "GPT2Config", "LMHeadModel", base=N, n_inner=56),
    case("gpt2-scaled", "GPT2Config", "LMHeadModel", base=N, scale_attn_by_inverse_layer_idx=True),
    case("gpt2-unscaled", "GPT2Config", "LMHeadModel", base=N, scale_attn_weights=False, n_head=2),
    case(
        "gpt2-unscaled-inverse",
        "GPT2Config",
        "LMHeadModel",
        base=N,
        scale_attn_weights=False,
        scale_attn_by_inverse_layer_idx=True,
        n_layer=1,
    ),
    case(
        "gpt2-both",
        "GPT2Config",
        "LMHeadModel",
        base=N,
        scale_attn_weights=False,
        scale_attn_by_inverse_layer_idx=True,
        layer_norm_epsilon=1e-3,
    ),
    case("gpt2-untied", "GPT2Config", "LMHeadModel", base=N, tie_word_embeddings=False, activation_function="relu"),
    case("gpt2-base", "GPT2Config", "Model", base=N),
]

GPT1 = [
    case("openai-gpt", "OpenAIGPTConfig", "LMHeadModel", base=N),
    case("openai-silu", "OpenAIGPTConfig", "LMHeadModel", base=N, afn="silu", tie_word_embeddings=False),
    case("openai-relu", "OpenAIGPTConfig", "LMHeadModel", base=N, afn="relu", n_head=2),
    case("openai-base", "OpenAIGPTConfig", "Model", base=N),
]

NEO = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "max_position_embeddings": 64,
    "window_size": 5,
}
GPT_NEO = [
    case("gpt_neo", "GPTNeoConfig", base=NEO, attention_types=[[["global", "local", "local"], 1]]),
    case(
        "gpt_neo-lists",
        "GPTNeoConfig",
        base=NEO,
        num_layers=5,
        attention_types=[[["local"], 1], [["global", "local"], 2]],
        intermediate_size=40,
    ),
    case(
        "gpt_neo-untied",
        "GPTNeoConfig",
        base=NEO,
        attention_types=[[["global"], 3]],
        tie_word_embeddings=False,
        activation_function="gelu",
    ),
    case("gpt_neo-base", "GPTNeoConfig", "Model", base=NEO, attention_types=[[["local"], 3]]),
]

GPT_NEOX = [
    case("gpt_neox", "GPTNeoXConfig", base=F),
    case("gpt_neox-sequential", "GPTNeoXConfig", base=F, use_parallel_residual=False, **rope(1.0)),
    case(
        "gpt_neox-tied",
        "GPTNeoXConfig",
        base=F,
        tie_word_embeddings=True,
        attention_bias=False,
        hidden_act="gelu_new",
        **rope(0.5, **LINEAR),
    ),
    case("gpt_neox-yarn", "GPTNeoXConfig", base=F, num_attention_heads=2, **rope(0.5, **YARN)),
    case("gpt_neox-odd", "GPTNeoXConfig", base=F, hidden_size=48),  # 3 of 12, rounded up
    case("gpt_neox-one", "GPTNeoXConfig", base=F, hidden_size=16),
    case("gpt_neox-base", "GPTNeoXConfig", "Model", base=F, **rope(0.75)),
]

GPTJ = [
    case("gptj", "GPTJConfig", base=N, rotary_dim=4),
    case("gptj-whole", "GPTJConfig", base=N, rotary_dim=8, n_inner=40, activation_function="gelu"),
    case("gptj-tied", "GPTJConfig", base=N, rotary_dim=6, n_head=2, tie_word_embeddings=True),
    case("gptj-base", "GPTJConfig", "Model", base=N, rotary_dim=2),
    case("codegen", "CodeGenConfig", base=N, rotary_dim=4),
    case("codegen-wide", "CodeGenConfig", base=N, rotary_dim=8, n_head=2, n_inner=40),
    case("codegen-tied", "CodeGenConfig", base=N, rotary_dim=2, n_head=8, tie_word_embeddings=True),
    case("codegen-base", "CodeGenConfig", "Model", base=N, rotary_dim=4),
]

BLOOM = {"vocab_size": 97, "hidden_size": 32, "n_layer": 3, "n_head": 4}
ALIBI = [
    case("bloom", "BloomConfig", base=BLOOM),
    case(
        "bloom-after-norm",
        "BloomConfig",
        base=BLOOM,
        apply_residual_connection_post_layernorm=True,
        hidden_size=42,
        n_head=6,
    ),
    case("bloom-untied", "BloomConfig", base=BLOOM, n_head=2, tie_word_embeddings=False),
    case("bloom-base", "BloomConfig", "Model", base=BLOOM),
]

MPT = {"vocab_size": 97, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}
ALIBI += [
    case("mpt", "MptConfig", base=MPT),
    case(
        "mpt-clipped", "MptConfig", base=MPT, d_model=48, n_heads=6, attn_config={"clip_qkv": 0.4, "softmax_scale": 0.7}
    ),
    case("mpt-untied", "MptConfig", base=MPT, n_heads=1, tie_word_embeddings=False),
    case("mpt-base", "MptConfig", "Model", base=MPT, d_model=24, n_heads=3),
]

# The reference's eager attention adds ALiBi twice, once in the mask that holds it.
FALCON = [
    case("falcon", "FalconConfig", base=H),
    case("falcon-biased", "FalconConfig", base=H, bias=True, multi_query=False, **rope(**LINEAR)),
    case(
        "falcon-rw",
        "FalconConfig",
        base=H,
        alibi=True,
        bias=True,
        multi_query=False,
        parallel_attn=False,
        ffn_hidden_size=40,
        attention="sdpa",
    ),
    case(
        "falcon-alibi",
        "FalconConfig",
        base=H,
        hidden_size=36,
        num_attention_heads=6,
        alibi=True,
        activation="gelu_new",
        attention="sdpa",
    ),
    case("falcon-sequential", "FalconConfig", base=H, parallel_attn=False, tie_word_embeddings=False),
    case("falcon-new", "FalconConfig", base=H, new_decoder_architecture=True, num_kv_heads=2),
    case("falcon-new-alone", "FalconConfig", base=H, new_decoder_architecture=True, num_kv_heads=1, bias=True),
    case(
        "falcon-new-one-norm",
        "FalconConfig",
        base=H,
        new_decoder_architecture=True,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
        **rope(**YARN),
    ),
    case("falcon-new-mha", "FalconConfig", base=H, new_decoder_architecture=True),
    case("falcon-base", "FalconConfig", "Model", base=H, new_decoder_architecture=True, num_kv_heads=4),
]

OPT = {**H, "ffn_dim": 56}
SMALL_OPT = {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20}
META = [
    case("opt", "OPTConfig", base=OPT),
    case("opt-350m", "OPTConfig", base=SMALL_OPT),
    case("opt-post", "OPTConfig", base=OPT, do_layer_norm_before=False, activation_function="gelu"),
    case("opt-projected", "OPTConfig", base=OPT, word_embed_proj_dim=44, tie_word_embeddings=False),
    case(
        "opt-plain",
        "OPTConfig",
        base=OPT,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        _remove_final_layer_norm=True,
    ),
    case("opt-base", "OPTConfig", "Model", base=OPT),
    case("opt-base-350m", "OPTConfig", "Model", base=SMALL_OPT),
]

PHI = [
    case("phi", "PhiConfig", base=F),
    case("phi-grouped", "PhiConfig", base=F, num_key_value_heads=2, qk_layernorm=True, **rope(0.25)),
    case(
        "phi-tied",
        "PhiConfig",
        base=F,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        hidden_act="relu",
        **rope(1.0, **LINEAR),
    ),
    case("phi-base", "PhiConfig", "Model", base=F, qk_layernorm=True, **rope(0.75, **YARN)),
    case("phi3", "Phi3Config", base=F, pad_token_id=0, num_key_value_heads=2, sliding_window=7),
    case("phi3-long", "Phi3Config", base=F, pad_token_id=0, **longrope(4, 16)),
    case(
        "phi3-short",
        "Phi3Config",
        base=F,
        pad_token_id=0,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        **longrope(4, 32),
    ),
    case("phi3-factor", "Phi3Config", base=F, pad_token_id=0, **longrope(4, 16, 3.3)),
    case(
        "phi3-phi4",
        "Phi3Config",
        base={**F, "pad_token_id": 0, "hidden_size": 64, "tie_word_embeddings": True, "sliding_window": 40}
        | {**longrope(6, 32), "partial_rotary_factor": 0.75},
    ),
    case("phi3-partial", "Phi3Config", base=F, pad_token_id=0, **rope(0.5)),
    case("phi3-base", "Phi3Config", "Model", base=F, pad_token_id=0),
]

GROUPED = {**F, "num_key_value_heads": 2}
CODE = [
    case("starcoder2", "Starcoder2Config", base=GROUPED, sliding_window=7),
    case(
        "starcoder2-plain",
        "Starcoder2Config",
        base=F,
        num_key_value_heads=1,
        use_bias=False,
        tie_word_embeddings=False,
        hidden_act="gelu",
        **rope(**YARN),
    ),
    case("starcoder2-mha", "Starcoder2Config", base=F, num_key_value_heads=4, **rope(**LINEAR)),
    case("starcoder2-base", "Starcoder2Config", "Model", base=GROUPED),
    case("gpt_bigcode", "GPTBigCodeConfig", base=N),
    case(
        "gpt_bigcode-mha",
        "GPTBigCodeConfig",
        base=N,
        multi_query=False,
        n_inner=40,
        scale_attn_weights=False,
        tie_word_embeddings=False,
    ),
    case("gpt_bigcode-relu", "GPTBigCodeConfig", base=N, n_head=2, activation_function="relu"),
    case("gpt_bigcode-base", "GPTBigCodeConfig", "Model", base=N, multi_query=False),
]

STABLE = {**GROUPED, "hidden_size": 64}
STABLELM = [
    case("stablelm", "StableLmConfig", base=STABLE),
    case("stablelm-biased", "StableLmConfig", base=STABLE, use_qkv_bias=True, **rope(1.0)),
    case(
        "stablelm-parallel",
        "StableLmConfig",
        base=STABLE,
        use_parallel_residual=True,
        qk_layernorm=True,
        tie_word_embeddings=True,
        **rope(0.5, **LINEAR),
    ),
    case(
        "stablelm-normed",
        "StableLmConfig",
        base=STABLE,
        num_key_value_heads=1,
        qk_layernorm=True,
        hidden_act="gelu",
        layer_norm_eps=1e-3,
    ),
    case("stablelm-base", "StableLmConfig", "Model", base=STABLE, num_key_value_heads=4),
    case("persimmon", "PersimmonConfig", base=F),
    case(
        "persimmon-plain",
        "PersimmonConfig",
        base=F,
        qk_layernorm=False,
        tie_word_embeddings=True,
        hidden_act="gelu",
        **rope(0.25),
    ),
    case("persimmon-base", "PersimmonConfig", "Model", base=F, **rope(1.0, **YARN)),
]

BIOGPT = [
    case("biogpt", "BioGptConfig", base=F),
    case(
        "biogpt-untied",
        "BioGptConfig",
        base=F,
        scale_embedding=False,
        tie_word_embeddings=False,
        hidden_act="relu",
        num_attention_heads=2,
    ),
    case("biogpt-base", "BioGptConfig", "Model", base=F),
]

XGLM = {
    "vocab_size": 97,
    "d_model": 32,
    "num_layers": 3,
    "attention_heads": 4,
    "ffn_dim": 56,
    "max_position_embeddings": 64,
}
SINES = [
    case("xglm", "XGLMConfig", base=XGLM),
    case(
        "xglm-untied",
        "XGLMConfig",
        base=XGLM,
        scale_embedding=False,
        tie_word_embeddings=False,
        activation_function="relu",
    ),
    case("xglm-base", "XGLMConfig", "Model", base=XGLM, attention_heads=2),
]

CASES = [*GPT2, *GPT1, *GPT_NEO, *GPT_NEOX, *GPTJ, *ALIBI, *FALCON, *META, *PHI, *CODE, *STABLELM, *BIOGPT, *SINES]
