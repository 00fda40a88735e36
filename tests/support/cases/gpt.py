"""GPT-2 and what came of it."""

from support.reference_models import Case

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
    Case("gpt2", "GPT2Config", "GPT2LMHeadModel", {**N, "n_inner": 56}),
    Case("gpt2-scaled", "GPT2Config", "GPT2LMHeadModel", {**N, "scale_attn_by_inverse_layer_idx": True}),
    Case("gpt2-unscaled", "GPT2Config", "GPT2LMHeadModel", {**N, "scale_attn_weights": False, "n_head": 2}),
    Case(
        "gpt2-unscaled-inverse",
        "GPT2Config",
        "GPT2LMHeadModel",
        {**N, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "n_layer": 1},
    ),
    Case(
        "gpt2-both",
        "GPT2Config",
        "GPT2LMHeadModel",
        {**N, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3},
    ),
    Case(
        "gpt2-untied",
        "GPT2Config",
        "GPT2LMHeadModel",
        {**N, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    Case("gpt2-base", "GPT2Config", "GPT2Model", N, writes=False),
]

GPT1 = [
    Case("openai-gpt", "OpenAIGPTConfig", "OpenAIGPTLMHeadModel", N),
    Case("openai-silu", "OpenAIGPTConfig", "OpenAIGPTLMHeadModel", {**N, "afn": "silu", "tie_word_embeddings": False}),
    Case("openai-relu", "OpenAIGPTConfig", "OpenAIGPTLMHeadModel", {**N, "afn": "relu", "n_head": 2}),
    Case("openai-base", "OpenAIGPTConfig", "OpenAIGPTModel", N, writes=False),
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
    Case(
        "gpt_neo", "GPTNeoConfig", "GPTNeoForCausalLM", {**NEO, "attention_types": [[["global", "local", "local"], 1]]}
    ),
    Case(
        "gpt_neo-lists",
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            **NEO,
            "num_layers": 5,
            "attention_types": [[["local"], 1], [["global", "local"], 2]],
            "intermediate_size": 40,
        },
    ),
    Case(
        "gpt_neo-untied",
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {**NEO, "attention_types": [[["global"], 3]], "tie_word_embeddings": False, "activation_function": "gelu"},
    ),
    Case("gpt_neo-base", "GPTNeoConfig", "GPTNeoModel", {**NEO, "attention_types": [[["local"], 3]]}, writes=False),
]

GPT_NEOX = [
    Case("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", F),
    Case(
        "gpt_neox-sequential", "GPTNeoXConfig", "GPTNeoXForCausalLM", {**F, "use_parallel_residual": False, **rope(1.0)}
    ),
    Case(
        "gpt_neox-tied",
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**F, "tie_word_embeddings": True, "attention_bias": False, "hidden_act": "gelu_new", **rope(0.5, **LINEAR)},
    ),
    Case("gpt_neox-yarn", "GPTNeoXConfig", "GPTNeoXForCausalLM", {**F, "num_attention_heads": 2, **rope(0.5, **YARN)}),
    Case("gpt_neox-odd", "GPTNeoXConfig", "GPTNeoXForCausalLM", {**F, "hidden_size": 48}),  # 3 of 12, rounded up
    Case("gpt_neox-one", "GPTNeoXConfig", "GPTNeoXForCausalLM", {**F, "hidden_size": 16}),
    Case("gpt_neox-base", "GPTNeoXConfig", "GPTNeoXModel", {**F, **rope(0.75)}, writes=False),
]

GPTJ = [
    Case("gptj", "GPTJConfig", "GPTJForCausalLM", {**N, "rotary_dim": 4}),
    Case(
        "gptj-whole",
        "GPTJConfig",
        "GPTJForCausalLM",
        {**N, "rotary_dim": 8, "n_inner": 40, "activation_function": "gelu"},
    ),
    Case(
        "gptj-tied", "GPTJConfig", "GPTJForCausalLM", {**N, "rotary_dim": 6, "n_head": 2, "tie_word_embeddings": True}
    ),
    Case("gptj-base", "GPTJConfig", "GPTJModel", {**N, "rotary_dim": 2}, writes=False),
    Case("codegen", "CodeGenConfig", "CodeGenForCausalLM", {**N, "rotary_dim": 4}),
    Case("codegen-wide", "CodeGenConfig", "CodeGenForCausalLM", {**N, "rotary_dim": 8, "n_head": 2, "n_inner": 40}),
    Case(
        "codegen-tied",
        "CodeGenConfig",
        "CodeGenForCausalLM",
        {**N, "rotary_dim": 2, "n_head": 8, "tie_word_embeddings": True},
    ),
    Case("codegen-base", "CodeGenConfig", "CodeGenModel", {**N, "rotary_dim": 4}, writes=False),
]

BLOOM = {"vocab_size": 97, "hidden_size": 32, "n_layer": 3, "n_head": 4}
ALIBI = [
    Case("bloom", "BloomConfig", "BloomForCausalLM", BLOOM),
    Case(
        "bloom-after-norm",
        "BloomConfig",
        "BloomForCausalLM",
        {**BLOOM, "apply_residual_connection_post_layernorm": True, "hidden_size": 42, "n_head": 6},
    ),
    Case("bloom-untied", "BloomConfig", "BloomForCausalLM", {**BLOOM, "n_head": 2, "tie_word_embeddings": False}),
    Case("bloom-base", "BloomConfig", "BloomModel", BLOOM, writes=False),
]

MPT = {"vocab_size": 97, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}
ALIBI += [
    Case("mpt", "MptConfig", "MptForCausalLM", MPT),
    Case(
        "mpt-clipped",
        "MptConfig",
        "MptForCausalLM",
        {**MPT, "d_model": 48, "n_heads": 6, "attn_config": {"clip_qkv": 0.4, "softmax_scale": 0.7}},
    ),
    Case("mpt-untied", "MptConfig", "MptForCausalLM", {**MPT, "n_heads": 1, "tie_word_embeddings": False}),
    Case("mpt-base", "MptConfig", "MptModel", {**MPT, "d_model": 24, "n_heads": 3}, writes=False),
]

# The reference's eager attention adds ALiBi twice, once in the mask that holds it.
FALCON = [
    Case("falcon", "FalconConfig", "FalconForCausalLM", H),
    Case(
        "falcon-biased",
        "FalconConfig",
        "FalconForCausalLM",
        {**H, "bias": True, "multi_query": False, **rope(**LINEAR)},
    ),
    Case(
        "falcon-rw",
        "FalconConfig",
        "FalconForCausalLM",
        {**H, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False, "ffn_hidden_size": 40},
        attention="sdpa",
    ),
    Case(
        "falcon-alibi",
        "FalconConfig",
        "FalconForCausalLM",
        {**H, "hidden_size": 36, "num_attention_heads": 6, "alibi": True, "activation": "gelu_new"},
        attention="sdpa",
    ),
    Case(
        "falcon-sequential",
        "FalconConfig",
        "FalconForCausalLM",
        {**H, "parallel_attn": False, "tie_word_embeddings": False},
    ),
    Case("falcon-new", "FalconConfig", "FalconForCausalLM", {**H, "new_decoder_architecture": True, "num_kv_heads": 2}),
    Case(
        "falcon-new-alone",
        "FalconConfig",
        "FalconForCausalLM",
        {**H, "new_decoder_architecture": True, "num_kv_heads": 1, "bias": True},
    ),
    Case(
        "falcon-new-one-norm",
        "FalconConfig",
        "FalconForCausalLM",
        {**H, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, **rope(**YARN)},
    ),
    Case("falcon-new-mha", "FalconConfig", "FalconForCausalLM", {**H, "new_decoder_architecture": True}),
    Case(
        "falcon-base",
        "FalconConfig",
        "FalconModel",
        {**H, "new_decoder_architecture": True, "num_kv_heads": 4},
        writes=False,
    ),
]

OPT = {**H, "ffn_dim": 56}
SMALL_OPT = {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20}
META = [
    Case("opt", "OPTConfig", "OPTForCausalLM", OPT),
    Case("opt-350m", "OPTConfig", "OPTForCausalLM", SMALL_OPT),
    Case(
        "opt-post", "OPTConfig", "OPTForCausalLM", {**OPT, "do_layer_norm_before": False, "activation_function": "gelu"}
    ),
    Case(
        "opt-projected", "OPTConfig", "OPTForCausalLM", {**OPT, "word_embed_proj_dim": 44, "tie_word_embeddings": False}
    ),
    Case(
        "opt-plain",
        "OPTConfig",
        "OPTForCausalLM",
        {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "_remove_final_layer_norm": True},
    ),
    Case("opt-base", "OPTConfig", "OPTModel", OPT, writes=False),
    Case("opt-base-350m", "OPTConfig", "OPTModel", SMALL_OPT, writes=False),
]

PHI = [
    Case("phi", "PhiConfig", "PhiForCausalLM", F),
    Case(
        "phi-grouped",
        "PhiConfig",
        "PhiForCausalLM",
        {**F, "num_key_value_heads": 2, "qk_layernorm": True, **rope(0.25)},
    ),
    Case(
        "phi-tied",
        "PhiConfig",
        "PhiForCausalLM",
        {**F, "num_key_value_heads": 1, "tie_word_embeddings": True, "hidden_act": "relu", **rope(1.0, **LINEAR)},
    ),
    Case("phi-base", "PhiConfig", "PhiModel", {**F, "qk_layernorm": True, **rope(0.75, **YARN)}, writes=False),
    Case(
        "phi3", "Phi3Config", "Phi3ForCausalLM", {**F, "pad_token_id": 0, "num_key_value_heads": 2, "sliding_window": 7}
    ),
    Case("phi3-long", "Phi3Config", "Phi3ForCausalLM", {**F, "pad_token_id": 0, **longrope(4, 16)}),
    Case(
        "phi3-short",
        "Phi3Config",
        "Phi3ForCausalLM",
        {**F, "pad_token_id": 0, "num_key_value_heads": 1, "tie_word_embeddings": True, **longrope(4, 32)},
    ),
    Case("phi3-factor", "Phi3Config", "Phi3ForCausalLM", {**F, "pad_token_id": 0, **longrope(4, 16, 3.3)}),
    Case(
        "phi3-phi4",
        "Phi3Config",
        "Phi3ForCausalLM",
        {**F, "pad_token_id": 0, "hidden_size": 64, "tie_word_embeddings": True, "sliding_window": 40}
        | {**longrope(6, 32), "partial_rotary_factor": 0.75},
    ),
    Case("phi3-partial", "Phi3Config", "Phi3ForCausalLM", {**F, "pad_token_id": 0, **rope(0.5)}),
    Case("phi3-base", "Phi3Config", "Phi3Model", {**F, "pad_token_id": 0}, writes=False),
]

GROUPED = {**F, "num_key_value_heads": 2}
CODE = [
    Case("starcoder2", "Starcoder2Config", "Starcoder2ForCausalLM", {**GROUPED, "sliding_window": 7}),
    Case(
        "starcoder2-plain",
        "Starcoder2Config",
        "Starcoder2ForCausalLM",
        {
            **F,
            "num_key_value_heads": 1,
            "use_bias": False,
            "tie_word_embeddings": False,
            "hidden_act": "gelu",
            **rope(**YARN),
        },
    ),
    Case(
        "starcoder2-mha", "Starcoder2Config", "Starcoder2ForCausalLM", {**F, "num_key_value_heads": 4, **rope(**LINEAR)}
    ),
    Case("starcoder2-base", "Starcoder2Config", "Starcoder2Model", GROUPED, writes=False),
    Case("gpt_bigcode", "GPTBigCodeConfig", "GPTBigCodeForCausalLM", N),
    Case(
        "gpt_bigcode-mha",
        "GPTBigCodeConfig",
        "GPTBigCodeForCausalLM",
        {**N, "multi_query": False, "n_inner": 40, "scale_attn_weights": False, "tie_word_embeddings": False},
    ),
    Case(
        "gpt_bigcode-relu",
        "GPTBigCodeConfig",
        "GPTBigCodeForCausalLM",
        {**N, "n_head": 2, "activation_function": "relu"},
    ),
    Case("gpt_bigcode-base", "GPTBigCodeConfig", "GPTBigCodeModel", {**N, "multi_query": False}, writes=False),
]

STABLE = {**GROUPED, "hidden_size": 64}
STABLELM = [
    Case("stablelm", "StableLmConfig", "StableLmForCausalLM", STABLE),
    Case("stablelm-biased", "StableLmConfig", "StableLmForCausalLM", {**STABLE, "use_qkv_bias": True, **rope(1.0)}),
    Case(
        "stablelm-parallel",
        "StableLmConfig",
        "StableLmForCausalLM",
        {
            **STABLE,
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "tie_word_embeddings": True,
            **rope(0.5, **LINEAR),
        },
    ),
    Case(
        "stablelm-normed",
        "StableLmConfig",
        "StableLmForCausalLM",
        {**STABLE, "num_key_value_heads": 1, "qk_layernorm": True, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
    ),
    Case("stablelm-base", "StableLmConfig", "StableLmModel", {**STABLE, "num_key_value_heads": 4}, writes=False),
    Case("persimmon", "PersimmonConfig", "PersimmonForCausalLM", F),
    Case(
        "persimmon-plain",
        "PersimmonConfig",
        "PersimmonForCausalLM",
        {**F, "qk_layernorm": False, "tie_word_embeddings": True, "hidden_act": "gelu", **rope(0.25)},
    ),
    Case("persimmon-base", "PersimmonConfig", "PersimmonModel", {**F, **rope(1.0, **YARN)}, writes=False),
]

BIOGPT = [
    Case("biogpt", "BioGptConfig", "BioGptForCausalLM", F),
    Case(
        "biogpt-untied",
        "BioGptConfig",
        "BioGptForCausalLM",
        {**F, "scale_embedding": False, "tie_word_embeddings": False, "hidden_act": "relu", "num_attention_heads": 2},
    ),
    Case("biogpt-base", "BioGptConfig", "BioGptModel", F, writes=False),
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
    Case("xglm", "XGLMConfig", "XGLMForCausalLM", XGLM),
    Case(
        "xglm-untied",
        "XGLMConfig",
        "XGLMForCausalLM",
        {**XGLM, "scale_embedding": False, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    Case("xglm-base", "XGLMConfig", "XGLMModel", {**XGLM, "attention_heads": 2}, writes=False),
]

CASES = [*GPT2, *GPT1, *GPT_NEO, *GPT_NEOX, *GPTJ, *ALIBI, *FALCON, *META, *PHI, *CODE, *STABLELM, *BIOGPT, *SINES]
