"""What the released config.json files of packaged encoders of proteins and for retrieval say."""

from typing import Any

import transformers

NAMED = {"gte-multilingual-base": "GteModel"}


def esm2(d: int, layers: int, heads: int) -> Any:
    return transformers.EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * d,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        layer_norm_eps=1e-5,
    )


REFERENCE = {
    "esm2-8m": esm2(320, 6, 20),
    "esm2-35m": esm2(480, 12, 20),
    "esm2-150m": esm2(640, 30, 20),
    "esm2-650m": esm2(1280, 33, 20),
    "esm2-3b": esm2(2560, 36, 40),
    "esm2-15b": esm2(5120, 48, 40),
    "gte-multilingual-base": transformers.GteConfig(),
}

UNUSED = {
    name: 1 + each.num_hidden_layers * each.num_attention_heads for name, each in REFERENCE.items() if "esm" in name
}
"""A regression on the attention maps of all heads, which says what residues touch."""
