"""Llama and its kin."""

from support.reference_models import Case

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
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
    Case(
        "llama", "LlamaConfig", "LlamaForCausalLM", {**SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 12}
    ),
    Case("llama-tied", "LlamaConfig", "LlamaForCausalLM", {**SMALL, "tie_word_embeddings": True}),
    Case("llama-base", "LlamaConfig", "LlamaModel", SMALL, writes=False),
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
    Case("mistral", "MistralConfig", "MistralForCausalLM", {**WIDE, "sliding_window": 7}),
    Case(
        "mistral-whole",
        "MistralConfig",
        "MistralForCausalLM",
        {**SMALL, "sliding_window": None, "tie_word_embeddings": True},
    ),
    Case("mistral-base", "MistralConfig", "MistralModel", {**SMALL, "sliding_window": 5, **YARN}, writes=False),
    Case("ministral", "MinistralConfig", "MinistralForCausalLM", {**FIVE, "sliding_window": 7, "layer_types": LAYERS}),
    Case("ministral-all", "MinistralConfig", "MinistralForCausalLM", {**WIDE, "sliding_window": 6}),
    Case("ministral-base", "MinistralConfig", "MinistralModel", {**WIDE, "sliding_window": 8, **LLAMA3}, writes=False),
]

WINDOWED = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
QWENS = [
    Case("qwen2", "Qwen2Config", "Qwen2ForCausalLM", SMALL),
    Case("qwen2-window", "Qwen2Config", "Qwen2ForCausalLM", {**SMALL, **WINDOWED, "tie_word_embeddings": True}),
    Case("qwen2-layers", "Qwen2Config", "Qwen2ForCausalLM", {**FIVE, **WINDOWED, "layer_types": LAYERS, **YARN}),
    Case("qwen2-base", "Qwen2Config", "Qwen2Model", {**SMALL, **WINDOWED, "max_window_layers": 0}, writes=False),
    Case("qwen3", "Qwen3Config", "Qwen3ForCausalLM", WIDE),
    Case("qwen3-window", "Qwen3Config", "Qwen3ForCausalLM", {**WIDE, **WINDOWED, "attention_bias": True}),
    Case("qwen3-tied", "Qwen3Config", "Qwen3ForCausalLM", {**WIDE, "tie_word_embeddings": True, **LINEAR}),
    Case("qwen3-base", "Qwen3Config", "Qwen3Model", {**WIDE, "num_key_value_heads": 4}, writes=False),
]

PLAIN = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
TWO = {"full_attention": LINEAR["rope_parameters"], "sliding_attention": LOCAL}
GEMMAS = [
    Case("gemma", "GemmaConfig", "GemmaForCausalLM", WIDE),
    Case(
        "gemma-bias", "GemmaConfig", "GemmaForCausalLM", {**WIDE, "attention_bias": True, "tie_word_embeddings": False}
    ),
    Case("gemma-old", "GemmaConfig", "GemmaForCausalLM", {**WIDE, "hidden_act": "gelu", "num_key_value_heads": 1}),
    Case("gemma-base", "GemmaConfig", "GemmaModel", WIDE, writes=False),
    Case("gemma2", "Gemma2Config", "Gemma2ForCausalLM", {**WIDE, "sliding_window": 6, "query_pre_attn_scalar": 15}),
    Case(
        "gemma2-plain",
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**FIVE, "sliding_window": 7, "layer_types": LAYERS, **PLAIN},
    ),
    Case(
        "gemma2-caps",
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**WIDE, "attn_logit_softcapping": 0.9, "final_logit_softcapping": 1.5},
    ),
    Case(
        "gemma2-bias",
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            **WIDE,
            "sliding_window": 5,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "hidden_activation": "silu",
        },
    ),
    Case("gemma2-base", "Gemma2Config", "Gemma2Model", {**WIDE, "sliding_window": 6}, writes=False),
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
    Case("gemma3_text-base", "Gemma3TextConfig", "Gemma3TextModel", {**WIDE, "sliding_window": 4}, writes=False),
    Case(
        "gemma3_text-both",
        "Gemma3TextConfig",
        "Gemma3TextModel",
        {**WIDE, "num_hidden_layers": 7, "sliding_window": 6, "use_bidirectional_attention": True},
        writes=False,
    ),
    Case(
        "gemma3_text-both-head",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**FIVE, "sliding_window": 9, "layer_types": LAYERS, "use_bidirectional_attention": True},
        writes=False,
    ),
    Case(
        "vaultgemma", "VaultGemmaConfig", "VaultGemmaForCausalLM", {**WIDE, "sliding_window": 6, "attention_bias": True}
    ),
    Case(
        "vaultgemma-plain",
        "VaultGemmaConfig",
        "VaultGemmaForCausalLM",
        {**FIVE, **PLAIN, "sliding_window": 4, "layer_types": LAYERS},
    ),
    Case("vaultgemma-base", "VaultGemmaConfig", "VaultGemmaModel", WIDE, writes=False),
]

YARNS = {"full_attention": rope("yarn", factor=4.0, attention_factor=1.3, beta_fast=9.0)["rope_parameters"]}
YARNS["sliding_attention"] = rope("yarn", factor=2.0)["rope_parameters"]
OLMOS = [
    Case("olmo", "OlmoConfig", "OlmoForCausalLM", {**SMALL, "clip_qkv": 0.3}),
    Case(
        "olmo-bias",
        "OlmoConfig",
        "OlmoForCausalLM",
        {**SMALL, "attention_bias": True, "tie_word_embeddings": True, **LINEAR},
    ),
    Case("olmo-base", "OlmoConfig", "OlmoModel", {**SMALL, "num_key_value_heads": None}, writes=False),
    Case("olmo2", "Olmo2Config", "Olmo2ForCausalLM", SMALL),
    Case(
        "olmo2-bias",
        "Olmo2Config",
        "Olmo2ForCausalLM",
        {**SMALL, "attention_bias": True, "tie_word_embeddings": True, **LLAMA3},
    ),
    Case("olmo2-base", "Olmo2Config", "Olmo2Model", {**SMALL, "num_key_value_heads": 1}, writes=False),
    Case("olmo3", "Olmo3Config", "Olmo3ForCausalLM", {**SMALL, "num_hidden_layers": 5, "sliding_window": 6}),
    Case(
        "olmo3-two",
        "Olmo3Config",
        "Olmo3ForCausalLM",
        {
            **SMALL,
            **{"num_hidden_layers": 5, "sliding_window": 5, "layer_types": LAYERS, "attention_bias": True},
            "rope_parameters": {"full_attention": YARN["rope_parameters"], "sliding_attention": LOCAL},
        },
    ),
    Case("olmo3-yarns", "Olmo3Config", "Olmo3ForCausalLM", {**SMALL, "sliding_window": 5, "rope_parameters": YARNS}),
    Case("olmo3-base", "Olmo3Config", "Olmo3Model", {**SMALL, "sliding_window": 6}, writes=False),
]

MULTIPLIED = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 1.7,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}
NOPE = {"no_rope_layers": [1, 0, 1, 1, 0], "num_hidden_layers": 5}
OTHERS = [
    Case("granite", "GraniteConfig", "GraniteForCausalLM", {**SMALL, **MULTIPLIED}),
    Case("granite-bias", "GraniteConfig", "GraniteForCausalLM", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    Case("granite-tied", "GraniteConfig", "GraniteForCausalLM", {**SMALL, **MULTIPLIED, "tie_word_embeddings": True}),
    Case("granite-base", "GraniteConfig", "GraniteModel", {**SMALL, **MULTIPLIED}, writes=False),
    Case("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM", {**UNPADDED, "num_hidden_layers": 5}),
    Case(
        "smollm3-layers",
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        {**UNPADDED, **NOPE, "attention_bias": True, "mlp_bias": True},
    ),
    Case(
        "smollm3-window",
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        {
            **UNPADDED,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 6,
            "tie_word_embeddings": False,
        },
    ),
    Case(
        "smollm3-mixed",
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        {**UNPADDED, **NOPE, "layer_types": LAYERS, "use_sliding_window": True, "sliding_window": 6, **YARN},
    ),
    Case("smollm3-base", "SmolLM3Config", "SmolLM3Model", {**UNPADDED, "no_rope_layers": [1, 1, 1]}, writes=False),
    Case("cohere", "CohereConfig", "CohereForCausalLM", {**SMALL, "logit_scale": 0.3}),
    Case("cohere-normed", "CohereConfig", "CohereForCausalLM", {**SMALL, "use_qk_norm": True, "attention_bias": True}),
    Case("cohere-untied", "CohereConfig", "CohereForCausalLM", {**SMALL, "tie_word_embeddings": False, **LINEAR}),
    Case(
        "cohere-base",
        "CohereConfig",
        "CohereModel",
        {**SMALL, "use_qk_norm": True, "num_key_value_heads": None},
        writes=False,
    ),
    Case("cohere2", "Cohere2Config", "Cohere2ForCausalLM", {**SMALL, "num_hidden_layers": 5, "sliding_window": 6}),
    Case(
        "cohere2-layers",
        "Cohere2Config",
        "Cohere2ForCausalLM",
        {**FIVE, "sliding_window": 7, "layer_types": LAYERS, "attention_bias": True, "tie_word_embeddings": False},
    ),
    Case("cohere2-base", "Cohere2Config", "Cohere2Model", {**SMALL, "sliding_window": 5}, writes=False),
    Case("nemotron", "NemotronConfig", "NemotronForCausalLM", {**SMALL, "head_dim": 16}),
    Case(
        "nemotron-bias",
        "NemotronConfig",
        "NemotronForCausalLM",
        {**SMALL, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    ),
    Case(
        "nemotron-quarter",
        "NemotronConfig",
        "NemotronForCausalLM",
        {**SMALL, "head_dim": 24, "partial_rotary_factor": 0.25},
    ),
    Case(
        "nemotron-whole",
        "NemotronConfig",
        "NemotronForCausalLM",
        {**SMALL, "partial_rotary_factor": 1.0, "tie_word_embeddings": True},
    ),
    Case("nemotron-base", "NemotronConfig", "NemotronModel", SMALL, writes=False),
    Case("glm", "GlmConfig", "GlmForCausalLM", {**UNPADDED, "head_dim": 16}),
    Case(
        "glm-plain",
        "GlmConfig",
        "GlmForCausalLM",
        {**UNPADDED, "head_dim": 8, "attention_bias": False, "tie_word_embeddings": True},
    ),
    Case(
        "glm-whole",
        "GlmConfig",
        "GlmForCausalLM",
        {**UNPADDED, "head_dim": 12, "partial_rotary_factor": 1.0, "num_key_value_heads": 1},
    ),
    Case(
        "glm-linear",
        "GlmConfig",
        "GlmForCausalLM",
        {**UNPADDED, "head_dim": 20, "partial_rotary_factor": 0.2, **LINEAR},
    ),
    Case("glm-base", "GlmConfig", "GlmModel", {**UNPADDED, "head_dim": 8}, writes=False),
    Case("glm4", "Glm4Config", "Glm4ForCausalLM", {**UNPADDED, "head_dim": 16}),
    Case(
        "glm4-plain",
        "Glm4Config",
        "Glm4ForCausalLM",
        {**UNPADDED, "head_dim": 8, "attention_bias": False, "tie_word_embeddings": True},
    ),
    Case(
        "glm4-base",
        "Glm4Config",
        "Glm4Model",
        {**UNPADDED, "head_dim": 16, "partial_rotary_factor": 0.75},
        writes=False,
    ),
    Case(
        "helium",
        "HeliumConfig",
        "HeliumForCausalLM",
        {**SMALL, "head_dim": 8, "attention_bias": True, "mlp_bias": True},
    ),
    Case("helium-tied", "HeliumConfig", "HeliumForCausalLM", {**SMALL, "head_dim": 8, "tie_word_embeddings": True}),
    Case("helium-base", "HeliumConfig", "HeliumModel", {**SMALL, "head_dim": 8}, writes=False),
    Case("exaone4", "Exaone4Config", "Exaone4ForCausalLM", {**SMALL, "num_hidden_layers": 5, "sliding_window": 6}),
    Case(
        "exaone4-layers",
        "Exaone4Config",
        "Exaone4ForCausalLM",
        {**FIVE, "sliding_window": 7, "layer_types": LAYERS, **LLAMA3},
    ),
    Case(
        "exaone4-full",
        "Exaone4Config",
        "Exaone4ForCausalLM",
        {**SMALL, "sliding_window": None, "layer_types": ["full_attention"] * 3, "tie_word_embeddings": True},
    ),
    Case(
        "exaone4-base",
        "Exaone4Config",
        "Exaone4Model",
        {**SMALL, "sliding_window": 6, "sliding_window_pattern": 2},
        writes=False,
    ),
    Case("seed_oss", "SeedOssConfig", "SeedOssForCausalLM", WIDE),
    Case(
        "seed_oss-bias",
        "SeedOssConfig",
        "SeedOssForCausalLM",
        {**WIDE, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    Case("seed_oss-base", "SeedOssConfig", "SeedOssModel", {**SMALL, "head_dim": None}, writes=False),
    Case("arcee", "ArceeConfig", "ArceeForCausalLM", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    Case("arcee-yarn", "ArceeConfig", "ArceeForCausalLM", {**WIDE, **YARN, "tie_word_embeddings": True}),
    Case("arcee-base", "ArceeConfig", "ArceeModel", SMALL, writes=False),
    Case("apertus", "ApertusConfig", "ApertusForCausalLM", SMALL),
    Case(
        "apertus-bias",
        "ApertusConfig",
        "ApertusForCausalLM",
        {**SMALL, "attention_bias": True, "tie_word_embeddings": True, **LINEAR},
    ),
    Case("apertus-relu", "ApertusConfig", "ApertusForCausalLM", {**SMALL, "hidden_act": "relu2"}),
    Case("apertus-base", "ApertusConfig", "ApertusModel", SMALL, writes=False),
    Case("hunyuan_v1_dense", "HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM", WIDE),
    Case(
        "hunyuan_v1_dense-bias",
        "HunYuanDenseV1Config",
        "HunYuanDenseV1ForCausalLM",
        {**WIDE, "attention_bias": True, **LINEAR},
    ),
    Case(
        "hunyuan_v1_dense-alpha",
        "HunYuanDenseV1Config",
        "HunYuanDenseV1ForCausalLM",
        {**WIDE, **rope("dynamic", factor=1.0, alpha=7.0), "tie_word_embeddings": True},
    ),
    Case(
        "hunyuan_v1_dense-base", "HunYuanDenseV1Config", "HunYuanDenseV1Model", {**SMALL, "head_dim": 8}, writes=False
    ),
    Case("ernie4_5", "Ernie4_5Config", "Ernie4_5ForCausalLM", {**WIDE, "use_bias": True}),
    Case("ernie4_5-untied", "Ernie4_5Config", "Ernie4_5ForCausalLM", {**WIDE, "tie_word_embeddings": False}),
    Case("ernie4_5-base", "Ernie4_5Config", "Ernie4_5Model", {**SMALL, "head_dim": 8}, writes=False),
]

CASES = [*LLAMAS, *MISTRALS, *QWENS, *GEMMAS, *OLMOS, *OTHERS]
