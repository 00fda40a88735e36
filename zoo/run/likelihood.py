# B rows, T tokens, N = B·T, D model width
"""Compute the likelihood of given next tokens, on chunks of logits: the whole logits are never in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.lazy import Tensor, torch
from zoo.model.loss import IGNORED, compute_negative_log_likelihood, find_labelled, split_for_head, split_for_softmax

if TYPE_CHECKING:
    from zoo.run.layer import Model

__all__ = ["IGNORED", "score_targets", "sum_negative_log_likelihood"]


def sum_negative_log_likelihood(model: Model, hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Sum the negative log-likelihood of targets [B, T] given a model's last hidden states [B, T, D]: float32, in nats.

    The head runs only on positions with a target, at most `chunk` bytes of logits at a time.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    rows = find_labelled(targets)
    hidden, targets = hidden[rows], targets[rows]
    total = torch.zeros((), device=hidden.device)
    for part in split_for_head(hidden, targets, model.spec.vocab_size, chunk):  # type: ignore[attr-defined]
        logits = model.head_logits(hidden[part])
        for block in split_for_softmax(logits):
            total += compute_negative_log_likelihood(logits[block], targets[part][block])[0].sum()
    return total


def score_targets(model: Model, hidden: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Compute the log-probabilities (float32, nats) of targets [N] given last hidden states [N, D], and whether each is
    the likeliest token; both [N]. At most `chunk` bytes of logits are in memory at once."""
    found, likeliest = [], []
    for part in split_for_head(hidden, targets, model.spec.vocab_size, chunk):  # type: ignore[attr-defined]
        logits = model.head_logits(hidden[part])
        for block in split_for_softmax(logits):
            nll, log_p, index = compute_negative_log_likelihood(logits[block], targets[part][block])
            found.append(-nll[:, 0])
            likeliest.append(log_p.argmax(-1) == index[:, 0])
    return torch.cat(found), torch.cat(likeliest)
