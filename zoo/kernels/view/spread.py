# B batch, T tokens of a rank, H heads, K kv heads, C head width
"""Context parallelism: rows whose tokens are divided among ranks. Each rank's runs of queries see all earlier keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zoo.kernels.dispatch import attend
from zoo.kernels.mask import Mask
from zoo.kernels.ring import Expansion, Ring, attend_ring
from zoo.kernels.view.base import KeySegment, KeyView
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.distributed.seam import ContextSeam
    from zoo.kernels.drop import AttentionDropout


class SpreadView(KeyView):
    """Keys that are all-gathered from all ranks; each segment (run of queries) sees the first S of them."""

    def __init__(self, segments: list[KeySegment], context: ContextSeam, tokens: int) -> None:
        self.segments, self.context, self.slots, self.kernels = segments, context, None, None
        self._whole = Mask(sum(each.count for each in segments), tokens)

    @property
    def mask(self) -> Mask:
        return self._whole

    def split(self, x: Tensor, before: int = 0) -> list[Tensor]:
        return list(x.split([each.count for each in self.segments], 1))

    def join(self, outputs: list[Tensor], tokens: int) -> Tensor:
        return torch.cat(outputs, 1)

    def read(self, held: Tensor) -> list[Tensor]:
        return [held[:, : each.mask.n_keys] for each in self.segments]

    def gather(self, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(self.context.gather, new))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: AttentionDropout | None = None, **how: Any) -> Tensor:
        counts = [each.count for each in self.segments]
        drops = [None] * len(counts) if dropout is None else dropout.split(counts)
        parts = zip(self.segments, self.split(q), self.read(k), self.read(v), drops, strict=True)
        done = [
            attend(mine, keys, values, each.mask, bias=each.bias, dropout=drop, **how)
            for each, mine, keys, values, drop in parts
        ]
        return self.join(done, q.shape[1])


class RingView(SpreadView):
    """Keys that travel from rank to rank (ring attention), and are never all on one rank."""

    travels = True

    def __init__(
        self, segments: list[KeySegment], context: ContextSeam, tokens: int, n_heads: int, device: torch.device
    ) -> None:
        super().__init__(segments, context, tokens)
        ring = Ring.plan(context, tokens, [each.mask for each in segments], device)  # type: ignore[arg-type]
        self.ring = ring.with_biases([each.bias for each in segments], n_heads)

    def gather(self, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return new

    def with_bias(self, make: Callable[..., Any], n_heads: int, read: Tensor | None = None) -> KeyView:
        view = super().with_bias(make, n_heads, read)
        view.ring = self.ring.with_biases([each.bias for each in view.segments], n_heads)  # type: ignore[attr-defined]
        return view

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor | None, *, expansion: Expansion | None = None, **how: Any
    ) -> Tensor:  # type: ignore[override]
        """Attend: q [B, T, H, C] → [B, T, H, Cv]. With an expansion, k is the expansion's input."""
        held = (k,) if v is None else (k, v)
        own = {name: how.get(name) for name in ("softcap", "sinks")}
        return attend_ring(q, held, self.ring, scale=how["scale"], kernel=how["kernel"], expansion=expansion, **own)
