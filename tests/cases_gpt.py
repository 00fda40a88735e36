"""GPT-2 and what came of it."""

from families import Case

SMALL = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}

CASES = [
    Case("gpt2", "GPT2Config", "GPT2LMHeadModel", {**SMALL, "n_inner": 56}),
    Case("gpt2-scaled", "GPT2Config", "GPT2LMHeadModel", {**SMALL, "scale_attn_by_inverse_layer_idx": True}),
    Case("gpt2-base", "GPT2Config", "GPT2Model", SMALL, writes=False),
]
