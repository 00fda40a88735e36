# B rows, T tokens, N = B·T, D model width, V vocabulary
"""What is minimised, and its gradient. Losses are float32 sums over targets; the caller says what a target weighs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, PositiveInt

from zoo.lazy import torch
from zoo.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.data import Batch

    Autocast = Callable[[], AbstractContextManager[Any]]

IGNORED = -100
"""A target that is no target, torch's own convention."""

BLOCK = {"cpu": 4 << 20}
"""Bytes of float32 that the softmax works on at once: on a CPU what stays in its cache."""

LARGE_BLOCK = 256 << 20  # elsewhere: enough to keep the device busy


class Objective(Spec, axis="objective"):
    """A loss of a model on a batch."""

    def refuses(self, spec: Any) -> str | None:
        """Why a model cannot learn by this, or None."""
        return None

    def targets(self, batch: Batch) -> int:
        """How many targets a batch on the CPU has: what its loss is divided by."""
        return int((batch.targets != IGNORED).sum())

    def backward(self, model: Any, batch: Batch, weight: float, share: float, autocast: Autocast) -> dict[str, Tensor]:
        """Adds the gradient of `weight` × (sum over targets) + `share` × (the model's own losses).

        Gives the terms by name, so weighted; `loss` is the cross-entropy alone.
        """
        raise NotImplementedError

    def measure(self, model: Any, batch: Batch, autocast: Autocast) -> Tensor:
        """The sum of the cross-entropy over the batch's targets, in nats; no gradient."""
        raise NotImplementedError


class NextToken(Objective, kind="next_token"):
    """Cross-entropy of the next token, and `z_loss` × (log Σ exp logits)² (PaLM, 2022).

    The head runs on as many tokens at a time as give `chunk_mib` of logits. A chunk's logits are replaced by their
    gradient and taken back through the head at once, so there is never a second copy of them, nor a full one where
    N × V is large; then the hidden states' gradient goes back through the model.
    """

    z_loss: NonNegativeFloat = 0.0
    chunk_mib: PositiveInt = 256

    def refuses(self, spec: Any) -> str | None:
        if spec.kind != "decoder":
            return f"next_token is learned by a decoder, the model is an {spec.kind.replace('_', '-')} (kind: decoder)"
        if spec.reads_memory:
            return "next_token gives no encoder's output to read, and the model's layers read one (no block.cross)"
        if spec.head.kind == "none":
            return "next_token needs a head, the model has none (head.kind: lm)"
        return None

    def backward(self, model: Any, batch: Batch, weight: float, share: float, autocast: Autocast) -> dict[str, Tensor]:
        with autocast():
            out = model(batch.input_ids, documents=batch.documents, logits_to_keep=0)
        hidden = out.hidden.flatten(0, 1)  # N D
        targets = batch.targets.flatten()
        gradient = torch.empty_like(hidden)
        sums = torch.zeros(2, device=hidden.device)
        for rows in self._chunks(hidden, model.spec.vocab_size):
            piece = hidden[rows].detach().requires_grad_()
            with autocast():
                logits = model.head_logits(piece)
            slope = logits.detach()  # the same memory; autograd raises if the head needs its output again
            sums += descend_(slope, targets[rows], weight, self.z_loss)
            logits.backward(slope)
            gradient[rows] = piece.grad
        own = {name: loss * share for name, loss in out.losses.items()}
        torch.autograd.backward([hidden, *own.values()], [gradient, *(None for _ in own)])
        z = {"z_loss": sums[1] * weight} if self.z_loss else {}
        return {"loss": sums[0] * weight, **z, **{name: loss.detach() for name, loss in own.items()}}

    def measure(self, model: Any, batch: Batch, autocast: Autocast) -> Tensor:
        with torch.no_grad(), autocast():
            out = model(batch.input_ids, documents=batch.documents, logits_to_keep=0)
            hidden, targets = out.hidden.flatten(0, 1), batch.targets.flatten()
            total = torch.zeros((), device=hidden.device)
            for rows in self._chunks(hidden, model.spec.vocab_size):
                logits = model.head_logits(hidden[rows])
                for block in blocks(logits):
                    total += surprise(logits[block], targets[rows][block])[0].sum()
        return total

    def _chunks(self, hidden: Tensor, vocab_size: int) -> Iterator[slice]:
        return slices(len(hidden), (self.chunk_mib << 20) // (vocab_size * hidden.element_size()))


def slices(count: int, most: int) -> Iterator[slice]:
    """`count` rows in runs of equal length, give or take one, of at most `most` rows each and of one at least."""
    runs = math.ceil(count / max(most, 1))
    return (slice(count * run // runs, count * (run + 1) // runs) for run in range(runs))


def blocks(logits: Tensor) -> Iterator[slice]:
    """Rows to take the softmax of together."""
    size = BLOCK.get(logits.device.type, LARGE_BLOCK)
    return slices(len(logits), size // (4 * logits.shape[-1]))


def surprise(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """−log p(target), 0 where ignored [N, 1]; log p [N, V]; the target's column [N, 1]; 0 where ignored, else 1 [N, 1].

    All in float32.
    """
    kept = (targets != IGNORED)[:, None].float()
    column = targets.clamp_min(0)[:, None]
    log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
    return -log_p.gather(1, column) * kept, log_p, column, kept


def descend_(logits: Tensor, targets: Tensor, weight: float, z_loss: float) -> Tensor:
    """Replaces logits [N, V] by the gradient of `weight` × Σ (−log p(target) + z_loss · log²Z); gives both sums."""
    sums = torch.zeros(2, device=logits.device)
    for rows in blocks(logits):
        block = logits[rows]
        nll, p, column, kept = surprise(block, targets[rows])
        log_z = block.gather(1, column).float() + nll  # as log p = logit − log Z, at the target
        p.exp_()  # from here on the block's gradient, step by step
        if z_loss:
            p.mul_(1 + 2 * z_loss * log_z)
        p.scatter_add_(1, column, torch.full_like(kept, -1.0))
        torch.mul(p, kept * weight, out=block)
        sums += torch.stack([nll.sum(), z_loss * (log_z.square() * kept).sum()])
    return sums
