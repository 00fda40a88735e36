"""Encoders and others that a YAML alone reads."""

import torch

from support.cases.encoders import SMALL, berts, case, segments
from support.cases.seq2seq import BART, cases, decoding
from support.reference_models import Case

BERTS = [
    case("dpr", "DPRConfig", "DPRContextEncoder", inputs=segments),
    case("dpr-question", "DPRConfig", "DPRQuestionEncoder", inputs=segments, hidden_act="relu", layer_norm_eps=1e-3),
    *berts("roberta_prelayernorm", "RobertaPreLayerNorm"),
    case("ibert", "IBertConfig", "IBertForMaskedLM", inputs=segments),
    case("ibert-eps", "IBertConfig", "IBertForMaskedLM", layer_norm_eps=1e-3, num_attention_heads=2),
    case("ibert-base", "IBertConfig", "IBertModel", inputs=segments),
    case(
        "luke",
        "LukeConfig",
        "LukeForMaskedLM",
        base={**SMALL, "entity_vocab_size": 20, "entity_emb_size": 8},
        inputs=segments,
    ),
    case(
        "luke-base",
        "LukeConfig",
        "LukeModel",
        base={**SMALL, "entity_vocab_size": 20, "entity_emb_size": 8},
        inputs=segments,
    ),
    case("bert_generation", "BertGenerationConfig", "BertGenerationEncoder"),
]
NAMED = {**SMALL, "is_decoder": True, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
CTRL = {"vocab_size": 97, "n_embd": 32, "dff": 56, "n_layer": 3, "n_head": 4, "n_positions": 64}
DECODERS = [
    Case("bert_generation-decoder", "BertGenerationConfig", "BertGenerationDecoder", NAMED),
    Case(
        "bert_generation-untied",
        "BertGenerationConfig",
        "BertGenerationDecoder",
        {**NAMED, "tie_word_embeddings": False, "hidden_act": "gelu_new"},
    ),
    Case("ctrl", "CTRLConfig", "CTRLLMHeadModel", CTRL),
    Case("ctrl-untied", "CTRLConfig", "CTRLLMHeadModel", {**CTRL, "tie_word_embeddings": False, "n_head": 2}),
    Case("ctrl-base", "CTRLConfig", "CTRLModel", CTRL, writes=False),
]


def unpadded(ids):
    """What the decoder reads, without padding: the reference hides it there."""
    return decoding(torch.where(ids == 1, 7, ids))


# Without use_cache: where it keeps a cache the reference lets several tokens look ahead. Its greedy continuation
# without one is not its own full forward; test_families_seq2seq.py compares that with a cache.
FSMT = {key: size for key, size in BART.items() if key != "vocab_size"}
FSMT |= {"src_vocab_size": 97, "tgt_vocab_size": 89, "use_cache": False, "num_beams": 1}
ONE = {**FSMT, "tgt_vocab_size": 97, "tie_word_embeddings": True}
MORE = {"inputs": unpadded, "unbind": ("embed_positions",), "writes": False}
PAIRS = [
    Case("fsmt", "FSMTConfig", "FSMTForConditionalGeneration", FSMT, **MORE),
    Case("fsmt-tied", "FSMTConfig", "FSMTForConditionalGeneration", ONE, **MORE),
    Case(
        "fsmt-plain",
        "FSMTConfig",
        "FSMTForConditionalGeneration",
        {**FSMT, "scale_embedding": False, "activation_function": "gelu"},
        **MORE,
    ),
    *cases("mvp", "Mvp", "MvpForConditionalGeneration", BART),
]
CASES = [*BERTS, *DECODERS, *PAIRS]
