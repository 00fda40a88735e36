"""Encoder-decoders."""

import torch
import transformers

from support import nllb_experts  # noqa: F401  (puts them into transformers)
from support.reference_models import Case, case

T5 = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 44,
    "num_layers": 3,
    "num_decoder_layers": 2,  # no more than the encoder has: the reference's cache has room for as many
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}


def decoding(ids):
    """What the decoder reads: other tokens than the encoder, and fewer."""
    return {"decoder_input_ids": ids.flip(1)[:, :9]}


BART = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 52,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "forced_eos_token_id": None,
}
BIRD = {**BART, "block_size": 1, "num_random_blocks": 1, "pad_token_id": 0}
MARIAN = {**BART, "pad_token_id": 96, "decoder_start_token_id": 96}
APART = {**MARIAN, "pad_token_id": 80, "decoder_start_token_id": 80, "share_encoder_decoder_embeddings": False}
UNTIED = {"tie_word_embeddings": False}


def cases(name: str, prefix: str, model: str, sizes, **more):
    """A family of BART's kind: tied, with tables of their own, and without a head."""
    scaled = not getattr(transformers, f"{prefix}Config")().scale_embedding
    common = {"inputs": decoding, **more}
    return [
        Case(name, f"{prefix}Config", model, sizes, **common),
        Case(f"{name}-scaled", f"{prefix}Config", model, {**sizes, "scale_embedding": scaled}, **common),
        Case(f"{name}-untied", f"{prefix}Config", model, {**sizes, **UNTIED}, **common),
        Case(f"{name}-deep", f"{prefix}Config", model, {**sizes, "decoder_layers": 4}, **common, writes=False),
        Case(f"{name}-base", f"{prefix}Config", f"{prefix}Model", sizes, **common, writes=False),
    ]


def attending(ids):
    """What the decoder reads, and which tokens of the source are global, some rows having none there."""
    everywhere = torch.zeros_like(ids)
    everywhere[0, :2], everywhere[1:, 7] = 1, 1
    return {**decoding(ids), "global_attention_mask": everywhere}


NLLB = {**BART, "num_experts": 5, "encoder_sparse_step": 2, "decoder_sparse_step": 2}
BIASED = {"router_bias": True, "moe_token_dropout": 0.0, "encoder_sparse_step": 1, "decoder_sparse_step": 0}
LED = {name: size for name, size in BART.items() if name != "max_position_embeddings"}
LED |= {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 40, "attention_window": 8}
LED_CLASS = "LEDForConditionalGeneration"

CASES: list[Case] = [
    case("t5", "T5Config", "ForConditionalGeneration", base=T5, inputs=decoding),
    case(
        "t5-1.1",
        "T5Config",
        "ForConditionalGeneration",
        base=T5,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        inputs=decoding,
    ),
    case("t5-silu", "T5Config", "ForConditionalGeneration", base=T5, feed_forward_proj="gated-silu", inputs=decoding),
    case("t5-base", "T5Config", "Model", base=T5, num_decoder_layers=None, inputs=decoding),
    case("t5-encoder", "T5Config", "EncoderModel", base=T5, writes=False),
    case("mt5", "MT5Config", "ForConditionalGeneration", base=T5, inputs=decoding),
    case("mt5-encoder", "MT5Config", "EncoderModel", base=T5, feed_forward_proj="gelu", writes=False),
    case("umt5", "UMT5Config", "ForConditionalGeneration", base=T5, tie_word_embeddings=False, inputs=decoding),
    case("umt5-base", "UMT5Config", "Model", base=T5, feed_forward_proj="relu", inputs=decoding),
    case("umt5-encoder", "UMT5Config", "EncoderModel", base=T5, writes=False),
    case(
        "t5-deep", "T5Config", "ForConditionalGeneration", base=T5, num_decoder_layers=5, inputs=decoding, writes=False
    ),
    *cases("bart", "Bart", "BartForConditionalGeneration", {**BART, "activation_function": "relu"}),
    *cases("mbart", "MBart", "MBartForConditionalGeneration", BART),
    *cases("plbart", "PLBart", "PLBartForConditionalGeneration", BART),
    *cases("pegasus", "Pegasus", "PegasusForConditionalGeneration", {**BART, "activation_function": "relu"}),
    # The table of positions is neither drawn nor written with a head.
    *cases(
        "marian", "Marian", "MarianMTModel", {**MARIAN, "activation_function": "swish"}, unbind=("embed_positions",)
    ),
    case("marian-apart", "MarianConfig", "MTModel", base=APART, inputs=decoding, unbind=("embed_positions",)),
    case("marian-apart-base", "MarianConfig", "Model", base=APART, decoder_vocab_size=91, inputs=decoding),
    case(
        "marian-apart-untied",
        "MarianConfig",
        "MTModel",
        base=APART,
        **UNTIED,
        decoder_vocab_size=91,
        inputs=decoding,
        unbind=("embed_positions",),
    ),
    *cases(
        "blenderbot", "Blenderbot", "BlenderbotForConditionalGeneration", {**BART, "activation_function": "gelu_new"}
    ),
    *cases("blenderbot_small", "BlenderbotSmall", "BlenderbotSmallForConditionalGeneration", BART),
    # Ten tokens are more than the seven up to which all is seen, after which the reference would do so ever after. It
    # counts padding among the blocks.
    *cases("bigbird_pegasus", "BigBirdPegasus", "BigBirdPegasusForConditionalGeneration", BIRD, pads=False),
    case(
        "bigbird_pegasus-blocks", "BigBirdPegasusConfig", "Model", base=BIRD, block_size=2, inputs=decoding, pads=False
    ),
    case(
        "bigbird_pegasus-full",
        "BigBirdPegasusConfig",
        "ForConditionalGeneration",
        base=BIRD,
        attention_type="original_full",
        use_bias=True,
        activation_function="relu",
        inputs=decoding,
    ),
    *cases("m2m_100", "M2M100", "M2M100ForConditionalGeneration", BART),
    *cases("nllb_moe", "NllbMoe", "NllbMoeForConditionalGeneration", NLLB),
    case("nllb_moe-biased", "NllbMoeConfig", "ForConditionalGeneration", base=NLLB, **BIASED, inputs=decoding),
    Case("led", "LEDConfig", LED_CLASS, LED, inputs=decoding),
    Case("led-global", "LEDConfig", LED_CLASS, {**LED, "attention_window": [4, 16, 8], **UNTIED}, inputs=attending),
    case("led-base", "LEDConfig", "Model", base=LED, activation_function="relu", inputs=attending),
]
