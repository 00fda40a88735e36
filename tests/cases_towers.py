"""Encoder-decoders whose config.json has a config for each tower."""

from cases_seq2seq import decoding
from families import Case

GEMMA = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "sliding_window": 6,
    "query_pre_attn_scalar": 9,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 2.0,
}
NARROW = {**GEMMA, "hidden_size": 24, "num_hidden_layers": 2, "attention_bias": True}


def t5gemma(name, encoder, decoder, model="ForConditionalGeneration", **more):
    """A T5Gemma of two configs."""
    sizes = {"encoder": encoder, "decoder": decoder, **more}
    return Case(name, "T5GemmaConfig", f"T5Gemma{model}", sizes, inputs=decoding, writes=model != "Model")


CASES = [
    t5gemma("t5gemma", GEMMA, NARROW),
    t5gemma("t5gemma-untied", {**GEMMA, "hidden_activation": "silu"}, GEMMA, tie_word_embeddings=False),
    t5gemma("t5gemma-base", GEMMA, {**GEMMA, "layer_types": ["full_attention"] * 3}, "Model"),
]
