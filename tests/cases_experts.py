"""Mixtures of experts, and recurrent layers."""

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
    Case("mixtral", "MixtralConfig", "MixtralForCausalLM", {**SMALL, "num_local_experts": 4, "sliding_window": 7}),
]
