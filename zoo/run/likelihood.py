# B rows, T tokens, N = B·T, D model width, V vocabulary
"""Compute how likely a model finds the next tokens, on chunks of logits: they are never whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The target of a position without one (torch's convention)."""

BLOCK = {"cpu": 4 << 20}
"""Bytes of float32 logits in one softmax. On a CPU they should stay in its cache."""

LARGE_BLOCK = 256 << 20  # elsewhere: enough to keep the device busy


def sum_negative_log_likelihood(model: Any, hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Sum the negative log-likelihood of targets [B, T] given a model's last hidden states [B, T, D]: float32, in nats.

    The head runs on positions with a target alone, on as many at a time as give `chunk` bytes of logits.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    counted = targets != IGNORED
    if not bool(counted.all()):
        hidden, targets = hidden[counted], targets[counted]
    total = torch.zeros((), device=hidden.device)
    for rows in split_for_head(hidden, model.spec.vocab_size, chunk):
        logits = model.head_logits(hidden[rows])
        for block in split_for_softmax(logits):
            total += compute_negative_log_likelihood(logits[block], targets[rows][block])[0].sum()
    return total


def split_for_head(hidden: Tensor, vocab_size: int, chunk: int) -> Iterator[slice]:
    """Split hidden states [N, D] into slices whose logits take at most `chunk` bytes."""
    return split_evenly(len(hidden), chunk // (vocab_size * hidden.element_size()))


def split_evenly(count: int, most: int) -> Iterator[slice]:
    """Split `count` rows into slices of at most `most` rows (but one at least), whose lengths differ by at most one."""
    runs = math.ceil(count / max(most, 1))
    return (slice(count * run // runs, count * (run + 1) // runs) for run in range(runs))


def split_for_softmax(logits: Tensor) -> Iterator[slice]:
    """Split the rows of logits into blocks for the softmax."""
    size = BLOCK.get(logits.device.type, LARGE_BLOCK)
    return split_evenly(len(logits), size // (4 * logits.shape[-1]))


def compute_negative_log_likelihood(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the negative log-likelihood of the targets [N, 1], log p [N, V], the targets' indices [N, 1], and a mask
    [N, 1].

    The mask is 0 where a target is ignored, else 1; the first is 0 there too. All but the indices are float32.
    """
    kept = (targets != IGNORED)[:, None].float()
    index = targets.clamp_min(0)[:, None]
    log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
    return -log_p.gather(1, index) * kept, log_p, index, kept
