# B rows, T tokens, N = B·T, D model width, V vocabulary
"""Compute training objectives and their gradients. Losses are float32 sums over targets; the caller gives a target's
weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, PositiveInt

from zoo.lazy import torch
from zoo.run.likelihood import (
    IGNORED,
    compute_negative_log_likelihood,
    split_for_head,
    split_for_softmax,
    sum_negative_log_likelihood,
)
from zoo.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.data import Batch

    Autocast = Callable[[], AbstractContextManager[Any]]


class Objective(Spec, axis="objective"):
    """A loss of a model on a batch."""

    def refuses(self, spec: Any) -> str | None:
        """Return the reason why a model cannot be trained on this objective, or None."""
        return None

    def targets(self, batch: Batch) -> int:
        """Count the targets of a batch on the CPU: its loss is divided by them."""
        return int((batch.targets != IGNORED).sum())

    def backward(self, model: Any, batch: Batch, weight: float, share: float, autocast: Autocast) -> dict[str, Tensor]:
        """Add the gradient of `weight` × (sum over targets) + `share` × (the model's own losses).

        Returns the weighted terms by name; `loss` is the cross-entropy alone.
        """
        raise NotImplementedError

    def measure(self, model: Any, batch: Batch, autocast: Autocast) -> Tensor:
        """Sum the cross-entropy over the batch's targets, in nats, without a gradient."""
        raise NotImplementedError


class NextToken(Objective, kind="next_token"):
    """Cross-entropy of the next token, and `z_loss` × (log Σ exp logits)² (PaLM, 2022).

    The loss is chunked: the head runs on as many tokens at a time as give `chunk_mib` of logits. A chunk's logits are
    overwritten with their gradient, which goes back through the head at once. So the logits are never whole, and never
    held twice. Then the gradient of the hidden states goes back through the model.
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
            gradient_of_logits = logits.detach()  # in place: autograd raises if the head saved its output
            sums += replace_by_gradient_(gradient_of_logits, targets[rows], weight, self.z_loss)
            logits.backward(gradient_of_logits)
            gradient[rows] = piece.grad
        own = {name: loss * share for name, loss in out.losses.items()}
        torch.autograd.backward([hidden, *own.values()], [gradient, *(None for _ in own)])
        z = {"z_loss": sums[1] * weight} if self.z_loss else {}
        return {"loss": sums[0] * weight, **z, **{name: loss.detach() for name, loss in own.items()}}

    def measure(self, model: Any, batch: Batch, autocast: Autocast) -> Tensor:
        with torch.no_grad(), autocast():
            out = model(batch.input_ids, documents=batch.documents, logits_to_keep=0)
            return sum_negative_log_likelihood(model, out.hidden, batch.targets, self.chunk_mib << 20)

    def _chunks(self, hidden: Tensor, vocab_size: int) -> Iterator[slice]:
        return split_for_head(hidden, vocab_size, self.chunk_mib << 20)


def replace_by_gradient_(logits: Tensor, targets: Tensor, weight: float, z_loss: float) -> Tensor:
    """Overwrite logits [N, V] with the gradient of `weight` × Σ (−log p(target) + z_loss · log²Z); return both sums."""
    sums = torch.zeros(2, device=logits.device)
    for rows in split_for_softmax(logits):
        block = logits[rows]
        nll, p, index, kept = compute_negative_log_likelihood(block, targets[rows])
        log_z = block.gather(1, index).float() + nll  # as log p = logit − log Z, at the target
        p.exp_()  # from here on the block's gradient, step by step
        if z_loss:
            p.mul_(1 + 2 * z_loss * log_z)
        p.scatter_add_(1, index, torch.full_like(kept, -1.0))
        torch.mul(p, kept * weight, out=block)
        sums += torch.stack([nll.sum(), z_loss * (log_z.square() * kept).sum()])
    return sums
