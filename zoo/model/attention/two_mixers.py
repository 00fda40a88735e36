"""Two mixers in one layer, softmax attention and a recurrent mixer, behind the interface of one attention."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.model.attention.base import Attention, Passes
from zoo.model.attention.gqa import GQA

if TYPE_CHECKING:
    from zoo.kernels.base import AttentionQuery


class TwoMixers(Attention):
    """Base of the kinds with two mixers, softmax attention and a recurrent one."""

    causal: ClassVar[bool | None] = True

    softmax: Attention
    """Mixer that attends to keys (gqa)."""
    recurrent: Attention
    """Mixer with a state of fixed size and no keys, such as mamba2."""

    def __post_init__(self) -> None:
        if not isinstance(self.softmax, GQA) or self.softmax.needs_block != self.needs_block:
            raise ValueError(f"softmax: '{self.softmax.kind}' has no place beside a recurrent mixer (gqa would do)")
        for name, why in (
            ("kv_from", "reads another layer's keys, which a layer of two mixers is not given"),
            ("value_residual", "reads another layer's values, which a layer of two mixers is not given"),
            ("short_conv", "keeps a state of its own beside the recurrent mixer's"),
            ("memory_width", "is of an encoder's output, which a layer of two mixers does not read"),
        ):
            if getattr(self.softmax, name) is not None:
                raise ValueError(f"softmax.{name} {why} (null)")
        if not self.recurrent.state() or self.recurrent.cache():
            raise ValueError(f"recurrent: '{self.recurrent.kind}' keeps no state of fixed size alone (mamba2 would do)")

    @property
    def chunk_size(self) -> int | None:
        """Number of tokens in a chunk of the recurrent mixer; None if it has no chunks."""
        return getattr(self.recurrent, "chunk_size", None)

    @property
    def passes(self) -> Passes:
        return Passes(loops=self.recurrent.passes.loops)

    sight = property(attrgetter("softmax.sight"))  # type: ignore[override]
    score_heads = property(attrgetter("softmax.score_heads"))  # type: ignore[override]
    positioning = property(attrgetter("softmax.positioning"))  # type: ignore[override]
    rotary_width = property(attrgetter("softmax.rotary_width"))  # type: ignore[override]

    def shard(self, ranks: int) -> TwoMixers:
        """Return the part of one rank: its heads of both mixers."""
        return replace(self, softmax=self.softmax.shard(ranks), recurrent=self.recurrent.shard(ranks))

    def cache(self) -> dict[str, tuple[int, ...]]:
        return self.softmax.cache()

    def state(self) -> dict[str, tuple[int, ...]]:
        return self.recurrent.state()

    def ask(self, dtype: str, **features: Any) -> AttentionQuery | None:
        return self.softmax.ask(dtype, **features)
