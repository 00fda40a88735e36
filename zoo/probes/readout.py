# B rows, T tokens, D model width, V vocabulary
"""Make a readout, trained with a model: it reconstructs a sequence's tokens from the output at the last token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.model.position.absolute import Sinusoidal

WIDER = 4
"""Hidden channels of the readout per channel of the model."""


class Readout(nn.Module):
    """A two-layer MLP that predicts the token at a position, from the output at the last token plus the position's
    sinusoids.

    It is not part of the model, and pricing leaves it out.
    """

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(d_model, WIDER * d_model)
        self.outer = nn.Linear(WIDER * d_model, vocab_size)

    def forward(self, last: Tensor, length: int) -> Tensor:
        """Compute the logits [B, T, V] of all `length` tokens from the outputs [B, D] at the last token."""
        places = torch.arange(length, device=last.device)[None]
        waves = Sinusoidal().draw_waves(places, last.shape[-1])
        return self.outer(F.gelu(self.inner(last[:, None] + waves)))


def make_readout(d_model: int, vocab_size: int, seed: int) -> Readout:
    """Make a readout with weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Readout(d_model, vocab_size)
