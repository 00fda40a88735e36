"""Encoder-decoders whose config.json has a config for each tower."""

from support.cases.seq2seq import decoding
from support.reference_models import Case, case

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


VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
GEMMA2 = {
    **{name: value for name, value in GEMMA.items() if name != "attn_logit_softcapping"},
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 40,  # queries and keys are normalised: with less, the softmax makes much of rounding
    "attention_bias": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 30000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}


def t5gemma2(name, encoder, decoder, model="ForConditionalGeneration", eoi=61, **more):
    """A T5Gemma 2 of two configs, with a tower for images beside the encoder's for text."""
    outer = {"text_config": encoder, "vision_config": VISION, "mm_tokens_per_image": 4, "eoi_token_index": eoi}
    sizes = {"encoder": outer, "decoder": decoder, **more}
    return Case(name, "T5Gemma2Config", f"T5Gemma2{model}", sizes, inputs=decoding, writes=model != "Model")


BERT = {
    "model_type": "bert",
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "max_position_embeddings": 64,
}
CROSSED = {"is_decoder": True, "add_cross_attention": True}
GPT2 = {"model_type": "gpt2", "vocab_size": 91, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64, **CROSSED}


def paired(name, encoder, decoder, **more):
    """An encoder and a decoder of two families."""
    sizes = {"encoder": encoder, "decoder": decoder, "decoder_start_token_id": 3, "pad_token_id": 0, **more}
    sines = ("embed_positions",)  # RoFormer saves them
    return case(name, "EncoderDecoderConfig", "Model", base=sizes, inputs=decoding, unbind=sines, writes=True)


CASES = [
    paired("encoder_decoder", BERT, {**BERT, **CROSSED, "num_hidden_layers": 2}),
    paired("encoder_decoder-gpt2", BERT, {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    paired(
        "encoder_decoder-roberta",
        {**BERT, "model_type": "longformer", "attention_window": 8, "pad_token_id": 1},
        {**BERT, **CROSSED, "model_type": "roberta", "pad_token_id": 1, "vocab_size": 91, "tie_word_embeddings": False},
    ),
    paired(
        "encoder_decoder-electra",
        {**BERT, "model_type": "roformer", "embedding_size": 20},
        {**BERT, **CROSSED, "model_type": "electra", "embedding_size": 24, "num_attention_heads": 2},
    ),
    t5gemma("t5gemma", GEMMA, NARROW),
    t5gemma("t5gemma-untied", {**GEMMA, "hidden_activation": "silu"}, GEMMA, tie_word_embeddings=False),
    t5gemma2(
        "t5gemma2", GEMMA2, {**GEMMA2, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    t5gemma2(
        "t5gemma2-untied", {**GEMMA2, "sliding_window": 7}, {**GEMMA2, "sliding_window": 5}, tie_word_embeddings=False
    ),
    t5gemma2("t5gemma2-base", {**GEMMA2, "layer_types": None}, {**GEMMA2, "num_key_value_heads": 4}, "Model", 256_000),
    t5gemma("t5gemma-base", GEMMA, {**GEMMA, "layer_types": ["full_attention"] * 3}, "Model"),
]
