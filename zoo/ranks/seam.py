# B rows, T tokens, D model width, V vocabulary
"""Seams: the places of a forward pass where the parts of a model that several processes compute come together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Seam:
    """The seam of a model that one process holds whole, where there is nothing to do.

    Tensor parallelism (Shoeybi et al., 2019, Megatron-LM) has its own, `zoo.run.tensor.TensorSeam`. There, in a pass
    with gradients, each rank has the stream of its own tokens only, between the sub-layers that it computes a part of
    for all tokens (sequence parallelism; Korthikanti et al., 2022).
    """

    rank = 0
    size = 1

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        """Gather the stream of all ranks' tokens: to [B, T, …], `tokens` of them."""
        return x

    def add_up(self, y: Tensor) -> Tensor:
        """Add up all ranks' parts of what a sub-layer gives [B, T, D], and keep the rank's own tokens."""
        return y

    def own(self, each: Tensor | None) -> Tensor | None:
        """Keep the rank's own tokens of [B|1, T, …]."""
        return each

    def look_up(self, table: Any, ids: Tensor) -> Tensor:
        """Look up token ids [B, T] in a table, of whose rows a rank has its part: the rank's own tokens."""
        return table(ids)

    def add_up_whole(self, y: Tensor) -> Tensor:
        """Add up all ranks' parts of a tensor amid a sub-layer, which all go on with."""
        return y

    def normalise(self, norm: Any, x: Tensor) -> Tensor:
        """Apply a norm over channels [..., D] of which each rank has its own."""
        return norm(x)

    def bias(self, scheme: Any, weights: Any, heads: int, *places: Any, **how: Any) -> Any:
        """Make the bias of a position scheme on the scores of a rank's own heads."""
        return scheme.bias(weights, heads, *places, **how)

    def share(self, loss: Tensor) -> Tensor:
        """Take a rank's share of the gradient of a loss that every rank computes whole."""
        return loss

    def measure(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the log-likelihood's two parts over the vocabulary of all ranks: log Z [N, 1] and the target's logit
        [N, 1], in float32, from a rank's logits [N, V/ranks]."""
        raise NotImplementedError

    def join_logits(self, logits: Tensor, width: int) -> Tensor:
        """Join the logits of all ranks' parts of the vocabulary: to [..., V]."""
        return logits


WHOLE = Seam()


class ContextSeam:
    """The seam of rows whose tokens one process has all of. Context parallelism has its own, `zoo.ranks.context`: each
    rank has two runs of a row's tokens, and only attention's keys and values come together. Where it `rings` they do so
    inside attention, and nothing is gathered."""

    rank = 0
    size = 1
    rings = False

    @property
    def active(self) -> bool:
        """Whether a pass that begins now has some of a row's tokens."""
        return False

    def spans(self, tokens: int, rank: int | None = None) -> list[tuple[int, int]]:
        """Where the runs of a rank, of this one unless given, of a row of so many tokens begin and end."""
        return [(0, tokens)]

    def own(self, each: Any) -> Any:
        """Keep the rank's own tokens of [B|1, T, …]."""
        return each

    def share(self, loss: Tensor) -> Tensor:
        """Take a rank's share of a loss that is a mean over its own tokens."""
        return loss

    def gather(self, new: Tensor) -> Tensor:
        """Gather what attention reads of all ranks' tokens, in order: [B, T, …]."""
        return new


WHOLE_ROWS = ContextSeam()
