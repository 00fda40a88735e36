"""Llama and its kin."""

from support.reference_models import SMALL, Case, case

WIDE = {**SMALL, "head_dim": 12}
UNPADDED = {**SMALL, "pad_token_id": None}
FIVE = {**WIDE, "num_hidden_layers": 5}
LAYERS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]


def rope(kind, theta=5000.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LINEAR = rope("linear", factor=3.0)
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
LONG = {"short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5], "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 9.0]}
LOCAL = {"rope_type": "default", "rope_theta": 300.0}


def llama(name, *parts, model="LlamaForCausalLM", **more):
    """A Llama with these fields; `more` are options of the case."""
    sizes = {key: value for part in parts for key, value in part.items()}
    return Case(name, "LlamaConfig", model, {**WIDE, **sizes}, **more)


LLAMAS = [
    case("llama", "LlamaConfig", attention_bias=True, mlp_bias=True, head_dim=12),
    case("llama-tied", "LlamaConfig", tie_word_embeddings=True),
    case("llama-base", "LlamaConfig", "Model"),
    llama("llama-mqa", {"num_key_value_heads": 1, "hidden_act": "gelu", "rms_norm_eps": 1e-3}),
    llama("llama-mha", {"num_key_value_heads": None}),
    llama("llama-linear", LINEAR),
    llama("llama-llama3", LLAMA3),
    # Within the length it was trained for, and beyond: there earlier tokens turn anew, so that a cache drifts.
    llama("llama-dynamic", rope("dynamic", factor=2.0)),
    llama("llama-dynamic-beyond", rope("dynamic", factor=2.0), {"max_position_embeddings": 16}, writes=False),
    llama("llama-yarn", YARN),
    llama("llama-yarn-fine", rope("yarn", factor=3.0, beta_fast=16.0, beta_slow=2.0, truncate=False)),
    llama("llama-yarn-mscale", rope("yarn", factor=4.0, mscale=0.7, mscale_all_dim=1.3)),
    llama("llama-yarn-factor", rope("yarn", factor=4.0, attention_factor=1.2, original_max_position_embeddings=20)),
    llama("llama-longrope", rope("longrope", factor=2.5, original_max_position_embeddings=48, **LONG)),
    llama("llama-longrope-beyond", rope("longrope", original_max_position_embeddings=16, **LONG), writes=False),
    llama(
        "llama-longrope-odd", rope("longrope", factor=1.7, original_max_position_embeddings=16, **LONG), writes=False
    ),
    llama(
        "llama-longrope-magnitude",
        rope("longrope", factor=4.0, attention_factor=1.1, original_max_position_embeddings=40, **LONG),
    ),
]

MISTRALS = [
    case("mistral", "MistralConfig", base=WIDE, sliding_window=7),
    case("mistral-whole", "MistralConfig", sliding_window=None, tie_word_embeddings=True),
    case("mistral-base", "MistralConfig", "Model", sliding_window=5, **YARN),
    case("ministral", "MinistralConfig", base=FIVE, sliding_window=7, layer_types=LAYERS),
    case("ministral-all", "MinistralConfig", base=WIDE, sliding_window=6),
    case("ministral-base", "MinistralConfig", "Model", base=WIDE, sliding_window=8, **LLAMA3),
]

WINDOWED = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
QWENS = [
    case("qwen2", "Qwen2Config"),
    case("qwen2-window", "Qwen2Config", **WINDOWED, tie_word_embeddings=True),
    case("qwen2-layers", "Qwen2Config", base=FIVE, **WINDOWED, layer_types=LAYERS, **YARN),
    case("qwen2-base", "Qwen2Config", "Model", **{**WINDOWED, "max_window_layers": 0}),
    case("qwen3", "Qwen3Config", base=WIDE),
    case("qwen3-window", "Qwen3Config", base=WIDE, **WINDOWED, attention_bias=True),
    case("qwen3-tied", "Qwen3Config", base=WIDE, tie_word_embeddings=True, **LINEAR),
    case("qwen3-base", "Qwen3Config", "Model", base=WIDE, num_key_value_heads=4),
]

PLAIN = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
TWO = {"full_attention": LINEAR["rope_parameters"], "sliding_attention": LOCAL}
GEMMAS = [
    case("gemma", "GemmaConfig", base=WIDE),
    case("gemma-bias", "GemmaConfig", base=WIDE, attention_bias=True, tie_word_embeddings=False),
    case("gemma-old", "GemmaConfig", base=WIDE, hidden_act="gelu", num_key_value_heads=1),
    case("gemma-base", "GemmaConfig", "Model", base=WIDE),
    case("gemma2", "Gemma2Config", base=WIDE, sliding_window=6, query_pre_attn_scalar=15),
    case("gemma2-plain", "Gemma2Config", base=FIVE, sliding_window=7, layer_types=LAYERS, **PLAIN),
    case("gemma2-caps", "Gemma2Config", base=WIDE, attn_logit_softcapping=0.9, final_logit_softcapping=1.5),
    case(
        "gemma2-bias",
        "Gemma2Config",
        base=WIDE,
        sliding_window=5,
        attention_bias=True,
        tie_word_embeddings=False,
        hidden_activation="silu",
    ),
    case("gemma2-base", "Gemma2Config", "Model", base=WIDE, sliding_window=6),
    Case("gemma3_text", "Gemma3TextConfig", "Gemma3ForCausalLM", {**WIDE, "num_hidden_layers": 7, "sliding_window": 6}),
    Case(
        "gemma3_text-two",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**FIVE, "sliding_window": 6, "layer_types": LAYERS, "rope_parameters": TWO, "attention_bias": True},
    ),
    Case(
        "gemma3_text-caps",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**WIDE, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
    ),
    Case(
        "gemma3_text-full",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**WIDE, "layer_types": ["full_attention"] * 3, "tie_word_embeddings": False, "query_pre_attn_scalar": 20},
    ),
    case("gemma3_text-base", "Gemma3TextConfig", "Model", base=WIDE, sliding_window=4),
    case(
        "gemma3_text-both",
        "Gemma3TextConfig",
        "Model",
        base=WIDE,
        num_hidden_layers=7,
        sliding_window=6,
        use_bidirectional_attention=True,
    ),
    Case(
        "gemma3_text-both-head",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**FIVE, "sliding_window": 9, "layer_types": LAYERS, "use_bidirectional_attention": True},
        writes=False,
    ),
    case("vaultgemma", "VaultGemmaConfig", base=WIDE, sliding_window=6, attention_bias=True),
    case("vaultgemma-plain", "VaultGemmaConfig", base=FIVE, **PLAIN, sliding_window=4, layer_types=LAYERS),
    case("vaultgemma-base", "VaultGemmaConfig", "Model", base=WIDE),
]

YARNS = {"full_attention": rope("yarn", factor=4.0, attention_factor=1.3, beta_fast=9.0)["rope_parameters"]}
YARNS["sliding_attention"] = rope("yarn", factor=2.0)["rope_parameters"]
OLMOS = [
    case("olmo", "OlmoConfig", clip_qkv=0.3),
    case("olmo-bias", "OlmoConfig", attention_bias=True, tie_word_embeddings=True, **LINEAR),
    case("olmo-base", "OlmoConfig", "Model", num_key_value_heads=None),
    case("olmo2", "Olmo2Config"),
    case("olmo2-bias", "Olmo2Config", attention_bias=True, tie_word_embeddings=True, **LLAMA3),
    case("olmo2-base", "Olmo2Config", "Model", num_key_value_heads=1),
    case("olmo3", "Olmo3Config", num_hidden_layers=5, sliding_window=6),
    case(
        "olmo3-two",
        "Olmo3Config",
        **{"num_hidden_layers": 5, "sliding_window": 5, "layer_types": LAYERS, "attention_bias": True},
        rope_parameters={"full_attention": YARN["rope_parameters"], "sliding_attention": LOCAL},
    ),
    case("olmo3-yarns", "Olmo3Config", sliding_window=5, rope_parameters=YARNS),
    case("olmo3-base", "Olmo3Config", "Model", sliding_window=6),
]

MULTIPLIED = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 1.7,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}
NOPE = {"no_rope_layers": [1, 0, 1, 1, 0], "num_hidden_layers": 5}
OTHERS = [
    case("granite", "GraniteConfig", **MULTIPLIED),
    case("granite-bias", "GraniteConfig", attention_bias=True, mlp_bias=True),
    case("granite-tied", "GraniteConfig", **MULTIPLIED, tie_word_embeddings=True),
    case("granite-base", "GraniteConfig", "Model", **MULTIPLIED),
    case("smollm3", "SmolLM3Config", base=UNPADDED, num_hidden_layers=5),
    case("smollm3-layers", "SmolLM3Config", base=UNPADDED, **NOPE, attention_bias=True, mlp_bias=True),
    case(
        "smollm3-window",
        "SmolLM3Config",
        base=UNPADDED,
        no_rope_layer_interval=2,
        use_sliding_window=True,
        sliding_window=6,
        tie_word_embeddings=False,
    ),
    case(
        "smollm3-mixed",
        "SmolLM3Config",
        base=UNPADDED,
        **NOPE,
        layer_types=LAYERS,
        use_sliding_window=True,
        sliding_window=6,
        **YARN,
    ),
    case("smollm3-base", "SmolLM3Config", "Model", base=UNPADDED, no_rope_layers=[1, 1, 1]),
    case("cohere", "CohereConfig", logit_scale=0.3),
    case("cohere-normed", "CohereConfig", use_qk_norm=True, attention_bias=True),
    case("cohere-untied", "CohereConfig", tie_word_embeddings=False, **LINEAR),
    case("cohere-base", "CohereConfig", "Model", use_qk_norm=True, num_key_value_heads=None),
    case("cohere2", "Cohere2Config", num_hidden_layers=5, sliding_window=6),
    case(
        "cohere2-layers",
        "Cohere2Config",
        base=FIVE,
        sliding_window=7,
        layer_types=LAYERS,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    case("cohere2-base", "Cohere2Config", "Model", sliding_window=5),
    case("nemotron", "NemotronConfig", head_dim=16),
    case("nemotron-bias", "NemotronConfig", attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    case("nemotron-quarter", "NemotronConfig", head_dim=24, partial_rotary_factor=0.25),
    case("nemotron-whole", "NemotronConfig", partial_rotary_factor=1.0, tie_word_embeddings=True),
    case("nemotron-base", "NemotronConfig", "Model"),
    case("glm", "GlmConfig", base=UNPADDED, head_dim=16),
    case("glm-plain", "GlmConfig", base=UNPADDED, head_dim=8, attention_bias=False, tie_word_embeddings=True),
    case("glm-whole", "GlmConfig", base=UNPADDED, head_dim=12, partial_rotary_factor=1.0, num_key_value_heads=1),
    case("glm-linear", "GlmConfig", base=UNPADDED, head_dim=20, partial_rotary_factor=0.2, **LINEAR),
    case("glm-base", "GlmConfig", "Model", base=UNPADDED, head_dim=8),
    case("glm4", "Glm4Config", base=UNPADDED, head_dim=16),
    case("glm4-plain", "Glm4Config", base=UNPADDED, head_dim=8, attention_bias=False, tie_word_embeddings=True),
    case("glm4-base", "Glm4Config", "Model", base=UNPADDED, head_dim=16, partial_rotary_factor=0.75),
    case("helium", "HeliumConfig", head_dim=8, attention_bias=True, mlp_bias=True),
    case("helium-tied", "HeliumConfig", head_dim=8, tie_word_embeddings=True),
    case("helium-base", "HeliumConfig", "Model", head_dim=8),
    case("exaone4", "Exaone4Config", num_hidden_layers=5, sliding_window=6),
    case("exaone4-layers", "Exaone4Config", base=FIVE, sliding_window=7, layer_types=LAYERS, **LLAMA3),
    case(
        "exaone4-full",
        "Exaone4Config",
        sliding_window=None,
        layer_types=["full_attention"] * 3,
        tie_word_embeddings=True,
    ),
    case("exaone4-base", "Exaone4Config", "Model", sliding_window=6, sliding_window_pattern=2),
    case("seed_oss", "SeedOssConfig", base=WIDE),
    case(
        "seed_oss-bias",
        "SeedOssConfig",
        base=WIDE,
        attention_bias=False,
        attention_out_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    case("seed_oss-base", "SeedOssConfig", "Model", head_dim=None),
    case("arcee", "ArceeConfig", attention_bias=True, mlp_bias=True),
    case("arcee-yarn", "ArceeConfig", base=WIDE, **YARN, tie_word_embeddings=True),
    case("arcee-base", "ArceeConfig", "Model"),
    case("apertus", "ApertusConfig"),
    case("apertus-bias", "ApertusConfig", attention_bias=True, tie_word_embeddings=True, **LINEAR),
    case("apertus-relu", "ApertusConfig", hidden_act="relu2"),
    case("apertus-base", "ApertusConfig", "Model"),
    case("hunyuan_v1_dense", "HunYuanDenseV1Config", base=WIDE),
    case("hunyuan_v1_dense-bias", "HunYuanDenseV1Config", base=WIDE, attention_bias=True, **LINEAR),
    case(
        "hunyuan_v1_dense-alpha",
        "HunYuanDenseV1Config",
        base=WIDE,
        **rope("dynamic", factor=1.0, alpha=7.0),
        tie_word_embeddings=True,
    ),
    case("hunyuan_v1_dense-base", "HunYuanDenseV1Config", "Model", head_dim=8),
    case("ernie4_5", "Ernie4_5Config", base=WIDE, use_bias=True),
    case("ernie4_5-untied", "Ernie4_5Config", base=WIDE, tie_word_embeddings=False),
    case("ernie4_5-base", "Ernie4_5Config", "Model", head_dim=8),
]

CASES = [*LLAMAS, *MISTRALS, *QWENS, *GEMMAS, *OLMOS, *OTHERS]
