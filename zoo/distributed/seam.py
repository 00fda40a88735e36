# B rows, T tokens, D model width, V vocabulary
"""Seams: the points of a forward pass that call a collective if several processes share the model. They are all that a
component's `forward` knows of parallelism."""

from __future__ import annotations

from typing import Any

from zoo.lazy import Tensor


class Seam:
    """The seam of a model that one process holds whole: its methods call no collective.

    Tensor parallelism (Shoeybi et al., 2019, Megatron-LM) overrides the methods in
    `zoo.run.tensor_parallel.TensorSeam`. The docstrings here describe those overrides in a pass with gradients: a rank
    computes a part of each sub-layer for all tokens, and between sub-layers holds the residual stream of its own tokens
    only (sequence parallelism; Korthikanti et al., 2022). Without gradients every rank has all tokens: `gather` and
    `own` change nothing, and `reduce` is an all-reduce.
    """

    rank = 0
    size = 1

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        """All-gather the residual stream over ranks to [B, T, …], T = `tokens`."""
        return x

    def reduce(self, y: Tensor) -> Tensor:
        """Reduce-scatter a sub-layer's output [B, T, D]: sum all ranks' parts, and keep the rank's own tokens."""
        return y

    def own(self, each: Any) -> Any:
        """Keep the rank's own tokens of [B|1, T, …]."""
        return each

    def look_up(self, table: Any, ids: Tensor) -> Tensor:
        """Embed token ids [B, T] by a table whose rows are divided among ranks; return the rank's own tokens."""
        return table(ids)

    def all_reduce(self, y: Tensor) -> Tensor:
        """All-reduce a tensor in the middle of a sub-layer."""
        return y

    def normalise(self, norm: Any, x: Tensor) -> Tensor:
        """Apply an RMSNorm over channels [..., D] that are divided among ranks."""
        return norm(x)

    def bias(self, scheme: Any, weights: Any, heads: int, *places: Any, **how: Any) -> Any:
        """Make a position scheme's bias on the scores, for the rank's own heads."""
        return scheme.bias(weights, heads, *places, **how)

    def own_share(self, loss: Tensor) -> Tensor:
        """Divide a loss's gradient, but not its value, by the number of ranks: every rank computes the whole loss."""
        return loss

    def measure(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log Z [N, 1] over the whole vocabulary and the targets' logits [N, 1], in float32, from a rank's
        logits [N, V/ranks]. log Z − logit is the negative log-likelihood. Raises NotImplementedError here."""
        raise NotImplementedError

    def join_logits(self, logits: Tensor, width: int) -> Tensor:
        """All-gather logits over the ranks' parts of the vocabulary to [..., V], V = `width`."""
        return logits

    def refuse_capture(self) -> str | None:
        """Return why a CUDA graph cannot contain the collectives; None if it can."""
        return None

    def take_least(self, number: int) -> int:
        """Return the smallest of the ranks' numbers, so that all ranks make the same plan."""
        return number


WHOLE = Seam()


class ContextSeam:
    """The seam of context parallelism for a process that has all tokens of a row: its methods call no collective.
    `zoo.distributed.context_parallel.SpreadContext` overrides them: a rank holds two runs of a row's tokens, and ranks
    exchange only attention's keys and values. With `rings` ranks exchange these inside attention, and `gather` is not
    used."""

    rank = 0
    size = 1
    rings = False

    @property
    def active(self) -> bool:
        """Whether a pass that begins now holds only some of a row's tokens."""
        return False

    def spans(self, tokens: int, rank: int | None = None) -> list[tuple[int, int]]:
        """Return (start, stop) of each run of a rank (default: this one) in a row of `tokens` tokens."""
        return [(0, tokens)]

    def own(self, each: Any) -> Any:
        """Keep the rank's own tokens of [B|1, T, …]."""
        return each

    def own_share(self, loss: Tensor) -> Tensor:
        """Divide a loss that is a mean over the rank's own tokens by the number of ranks."""
        return loss

    def gather(self, new: Tensor) -> Tensor:
        """All-gather keys or values over ranks, in the order of tokens: [B, T, …]."""
        return new


WHOLE_ROWS = ContextSeam()
