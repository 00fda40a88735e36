"""The experts of NLLB-MoE as the paper has them (NLLB team, 2022) and transformers 4 ran them.

transformers 5.24 numbers a token's experts by the entries of its mask, 0 and 1: experts 0 and 1 compute every token,
and no other expert is ever run. A test holds that this is so; once it fails, this file can go.
"""

import torch
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeExperts

AS_RELEASED = NllbMoeExperts.forward


def run_chosen_experts(self, hidden_states, router_mask, router_probs):
    """Add up the experts that a token's weights are not 0 for, scaled by what training leaves of their outputs."""
    found = torch.zeros_like(hidden_states)
    for number in range(self.num_experts):
        tokens = router_probs[:, number].nonzero().flatten()
        given = self[f"expert_{number}"](hidden_states[tokens]) * router_probs[tokens, number, None]
        found.index_add_(0, tokens, given * (1 - self.moe_token_dropout))
    return found


NllbMoeExperts.forward = run_chosen_experts
