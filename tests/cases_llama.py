"""Llama and its kin."""

from families import Case

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

CASES = [
    Case("llama", "LlamaConfig", "LlamaForCausalLM", {**SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    Case("llama-tied", "LlamaConfig", "LlamaForCausalLM", {**SMALL, "tie_word_embeddings": True}),
    Case("llama-base", "LlamaConfig", "LlamaModel", SMALL, writes=False),
]
