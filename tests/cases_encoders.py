"""Encoders."""

from families import Case

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def segments(ids):
    return {"token_type_ids": (ids % 3 == 0).long()}


CASES = [
    Case("bert", "BertConfig", "BertForMaskedLM", SMALL, writes=False, inputs=segments),
    Case("bert-base", "BertConfig", "BertModel", SMALL, writes=False, inputs=segments),
]
