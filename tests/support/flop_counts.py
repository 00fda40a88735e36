"""Count what a model computes and caches as it runs: with torch's FLOP counter, and from the mask of every
attention."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo.kernels.eager import Eager
from zoo.model.attention import indexer, mean_pooled, pooled_indexer


class Counted:
    """The FLOPs of a block of work under the eager kernel.

    `total` is what torch counts. Eager computes hidden pairs too; `visible` is the total with only those products left
    that the masks, as they were drawn, let through.
    """

    def __init__(self) -> None:
        self.total, self.hidden = 0, 0

    @property
    def visible(self) -> int:
        return self.total - self.hidden


@contextmanager
def counted(model: Any) -> Any:
    """Count what the model does in this block."""
    made, kernel, call, choose = (
        Counted(),
        model.kernel,
        Eager.__call__,
        (indexer.choose_keys, indexer.choose_blocks, pooled_indexer.choose_pools, mean_pooled.choose_mean_pools),
    )

    def watched(self: Any, q: Any, k: Any, v: Any, how: Any) -> Any:
        mask = how.mask
        pairs = q.shape[0] * q.shape[1] * k.shape[1]
        seen = pairs if mask.sees_all else int(mask.dense(q.device).expand(q.shape[0], -1, -1, -1).sum((0, 2, 3))[0])
        made.hidden += 2 * q.shape[2] * (q.shape[3] + v.shape[3]) * (pairs - seen)
        if k.shape[1] == 1:  # einsum makes no product of a sum over a single key, so that torch counts none
            made.hidden -= 2 * q.shape[2] * v.shape[3] * pairs
        return call(self, q, k, v, how)

    def scored(q: Any, weights: Any, k: Any, mask: Any, top_k: int) -> Any:
        shown = int(mask.dense(q.device).expand(q.shape[0], -1, -1, -1).sum())
        made.hidden += 2 * q.shape[2] * (q.shape[3] + 1) * (q.shape[0] * q.shape[1] * k.shape[1] - shown)
        return choose[0](q, weights, k, mask, top_k)

    def blocked(q: Any, k: Any, mask: Any, **how: Any) -> Any:
        shown = int(mask.dense(q.device).expand(q.shape[0], -1, -1, -1).sum())
        made.hidden += 2 * q.shape[2] * q.shape[3] * (q.shape[0] * q.shape[1] * k.shape[1] - shown)
        return choose[1](q, k, mask, **how)

    def pooled(q: Any, weights: Any, k: Any, mask: Any, top_k: int, places: Any) -> Any:
        seen, pools = mask.dense(q.device)[:, 0].sum(-1) // len(places), k.shape[1] // len(places)  # B|1 T
        shown = int(seen.expand(q.shape[0], -1).sum())
        made.hidden += 2 * q.shape[2] * (q.shape[3] + 1) * (q.shape[0] * q.shape[1] * pools - shown)
        return choose[2](q, weights, k, mask, top_k, places)

    def averaged(q: Any, k: Any, mask: Any, **how: Any) -> Any:
        seen, pools = mask.dense(q.device)[:, 0].sum(-1) // how["pool"], k.shape[1] // how["pool"]  # B|1 T
        shown = int(seen.expand(q.shape[0], -1).sum())
        made.hidden += 2 * q.shape[2] * q.shape[3] * (q.shape[0] * q.shape[1] * pools - shown)
        return choose[3](q, k, mask, **how)

    model.requires_grad_(False)  # the counter cannot follow a weight that is an input
    model.kernel = "eager"  # torch's counter gives sdpa on the CPU 0
    patches = (
        mock.patch.object(Eager, "__call__", watched),
        mock.patch.object(indexer, "choose_keys", scored),
        mock.patch.object(indexer, "choose_blocks", blocked),
        mock.patch.object(pooled_indexer, "choose_pools", pooled),
        mock.patch.object(mean_pooled, "choose_mean_pools", averaged),
    )
    with ExitStack() as stack, FlopCounterMode(display=False) as counter, torch.no_grad():
        for patch in patches:
            stack.enter_context(patch)
        yield made
    model.kernel = kernel
    made.total = counter.get_total_flops()
    assert made.total > 0


def tokens_for(spec: Any, rows: int, length: int) -> torch.Tensor:
    """Draw token ids, the same ones each time."""
    return torch.randint(2, spec.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def forwarded(model: Any, ids: torch.Tensor, **more: Any) -> Any:
    """Run a forward pass; an encoder-decoder gets the same tokens on both sides."""
    return model(ids, decoder_input_ids=ids, **more) if len(model.spec.towers()) > 1 else model(ids, **more)
