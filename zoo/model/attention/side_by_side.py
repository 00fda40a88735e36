"""Softmax attention and a recurrent mixer side by side in one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.model.attention.base import Attention
from zoo.model.attention.gqa import GQA
from zoo.model.ffn import multiply
from zoo.model.position.base import Position

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.base import Ask
    from zoo.model.step import Step, Weights


class SideBySide(Attention, kind="side_by_side"):
    """b·softmax(a·x) + d·recurrent(c·x): both mixers read one norm's output, and are added up (Zuo et al., 2025,
    Falcon-H1).

    `softmax` attends to keys, `recurrent` keeps a state (mamba2, say). a and b are `softmax_in_scale` and
    `softmax_out_scale`, c and d `recurrent_in_scale` and `recurrent_out_scale`: µP's multipliers, constants beside the
    weights.
    """

    causal: ClassVar[bool | None] = True

    softmax: Attention
    recurrent: Attention
    softmax_in_scale: float = 1.0
    softmax_out_scale: float = 1.0
    recurrent_in_scale: float = 1.0
    recurrent_out_scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.softmax, GQA):
            raise ValueError(f"softmax: '{self.softmax.kind}' has no place beside a recurrent mixer (gqa would do)")
        for name, why in (
            ("kv_from", "reads another layer's keys, which a layer of two mixers is not given"),
            ("short_conv", "keeps a state of its own beside the recurrent mixer's"),
            ("memory_width", "is of an encoder's output, which a layer of two mixers does not read"),
        ):
            if getattr(self.softmax, name) is not None:
                raise ValueError(f"softmax.{name} {why} (null)")
        if not self.recurrent.state() or self.recurrent.cache():
            raise ValueError(f"recurrent: '{self.recurrent.kind}' keeps no state of fixed size alone (mamba2 would do)")

    @property
    def chunk_size(self) -> int | None:
        """Tokens of a chunk of the recurrent mixer, where it has chunks."""
        return getattr(self.recurrent, "chunk_size", None)

    @property
    def loops(self) -> bool:
        return self.recurrent.loops

    @property
    def visible_window(self) -> int | None:
        return self.softmax.visible_window

    @property
    def visible_chunk(self) -> int | None:
        return self.softmax.visible_chunk

    @property
    def score_heads(self) -> int:
        return self.softmax.score_heads

    @property
    def positioning(self) -> Position | None:
        return self.softmax.positioning

    @property
    def rotary_width(self) -> int:
        return self.softmax.rotary_width

    @property
    def summed(self) -> int:
        return self.softmax.summed + self.recurrent.summed

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"softmax": self.softmax, "recurrent": self.recurrent}

    def shard(self, ranks: int) -> SideBySide:
        """Of both mixers the rank's heads: the sum of all ranks' sums is the sum of both."""
        own = {field.name: getattr(self, field.name) for field in self.fields()}
        return SideBySide(**own | {name: own[name].shard(ranks) for name in ("softmax", "recurrent")})

    def cache(self) -> dict[str, tuple[int, ...]]:
        return self.softmax.cache()

    def state(self) -> dict[str, tuple[int, ...]]:
        return self.recurrent.state()

    def core_flops(self, pairs: int) -> int:
        return self.softmax.core_flops(pairs)

    def state_flops(self) -> int:
        return self.recurrent.state_flops()

    def ask(self, dtype: str, **features: Any) -> Ask | None:
        return self.softmax.ask(dtype, **features)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        seen = m.softmax(multiply(x, self.softmax_in_scale), step)
        held = m.recurrent(multiply(x, self.recurrent_in_scale), step)
        return multiply(seen, self.softmax_out_scale) + multiply(held, self.recurrent_out_scale)
