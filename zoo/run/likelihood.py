# B rows, T tokens, N = B·T, D model width
"""Compute how likely a model finds the next tokens, on chunks of logits: they are never whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.lazy import torch
from zoo.model.loss import IGNORED, compute_negative_log_likelihood, find_labelled, split_for_head, split_for_softmax

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IGNORED", "score_targets", "sum_negative_log_likelihood"]


def sum_negative_log_likelihood(model: Any, hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Sum the negative log-likelihood of targets [B, T] given a model's last hidden states [B, T, D]: float32, in nats.

    The head runs on positions with a target alone, on as many at a time as give `chunk` bytes of logits.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    rows = find_labelled(targets)
    hidden, targets = hidden[rows], targets[rows]
    total = torch.zeros((), device=hidden.device)
    for part in split_for_head(hidden, targets, model.spec.vocab_size, chunk):
        logits = model.head_logits(hidden[part])
        for block in split_for_softmax(logits):
            total += compute_negative_log_likelihood(logits[block], targets[part][block])[0].sum()
    return total


def score_targets(model: Any, hidden: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Compute the log-probabilities of targets [N] given last hidden states [N, D], in nats, and whether each is the
    likeliest token of all; both [N], the first in float32. `chunk` bytes of logits are there at once."""
    found, likeliest = [], []
    for part in split_for_head(hidden, targets, model.spec.vocab_size, chunk):
        logits = model.head_logits(hidden[part])
        for block in split_for_softmax(logits):
            nll, log_p, index = compute_negative_log_likelihood(logits[block], targets[part][block])
            found.append(-nll[:, 0])
            likeliest.append(log_p.argmax(-1) == index[:, 0])
    return torch.cat(found), torch.cat(likeliest)
