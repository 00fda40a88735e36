"""Base of the blocks: what every layer has, and how a sub-layer's output joins the residual stream."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator

from zoo.lazy import Tensor
from zoo.model.attention.base import Attention
from zoo.model.ffn import FFN
from zoo.model.norm import WholeNorm
from zoo.spec import Spec

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


def _reads_memory(cross: Attention | None) -> Attention | None:
    """Return `cross`. Raises ValueError for an attention that cannot read an encoder's output."""
    if cross is not None:
        if (memory := cross.memory) is None:
            found = f"found '{cross.kind}' (cross: mha would do)"
            raise ValueError(f"cross is softmax attention without positions, {found}")
        if memory.fault:
            raise ValueError(memory.fault)
    return cross


class Block(Spec, axis="block"):
    """One layer: x [B, T, D] → x [B, T, D].

    By default a sub-layer's output y joins the stream x as stream_scale · x + residual_scale · y.
    """

    normalises_output: ClassVar[bool] = False
    """Whether a norm stands last on the stream, so that no final one is needed."""
    streams: ClassVar[int] = 1
    """Number of vectors of a token in the residual stream."""
    divided: ClassVar[tuple[str, ...]] = ("attention", "ffn")
    """Names of the block's sub-layers that tensor parallelism divides. Each rank computes its part of a sub-layer for
    all tokens, after a gather and before a sum over ranks. A block that names none gathers and sums in its
    `forward`."""

    attention: Attention
    """Mixer of the layer's tokens: an attention, or a recurrent mixer."""
    norm: WholeNorm
    """Norm of the layer. Each place with a norm has weights of its own."""
    cross: Annotated[Attention | None, AfterValidator(_reads_memory)] = None
    """Cross-attention to an encoder's output: a sub-layer after self-attention, or merged with it."""
    residual_scale: float = 1.0
    """Constant factor of a sub-layer's output, before it joins the stream (Granite)."""
    stream_scale: float = 1.0
    """Constant factor of the stream before a sub-layer's output joins it: DeepNorm's α (Wang et al., 2022)."""

    def __post_init__(self) -> None:
        if self.attention.kind == "none" and self.kind != "feed_forward":
            raise ValueError(f"a '{self.kind}' block needs an attention, found 'none' (block: feed_forward has none)")
        if self.attention.needs_block not in ("", self.kind):
            found = f"attention '{self.attention.kind}' has no place in a '{self.kind}' block"
            raise ValueError(f"{found} (block: {self.attention.needs_block})")
        if self.cross is not None and "cross" not in self.divided:
            raise ValueError(f"a '{self.kind}' block has no place for cross-attention (pre, post and sandwich do)")
        if getattr(self.attention, "memory_width", None) is not None:  # kinds that cannot cross, too
            raise ValueError("attention.memory_width is of an encoder's output, and attention reads tokens (null)")
        if self.attention.memory and not self.attention.memory.own_sublayer:
            raise ValueError(f"attention '{self.attention.kind}' says how an encoder is read (cross: it, and gqa here)")
        if self.cross is not None and self.cross.memory is not None:
            self.cross.memory.check(self.attention)
        scheme = None if self.cross is None else self.cross.positioning
        if self.crosses and (scheme is None or scheme.kind != "none"):
            found = "nothing" if scheme is None else f"position '{scheme.kind}'"
            raise ValueError(f"cross is softmax attention without positions, found {found} (cross: mha would do)")

    @property
    def crosses(self) -> bool:
        """Whether cross-attention is a separate sub-layer."""
        return self.cross is not None and (self.cross.memory is None or self.cross.memory.own_sublayer)

    @property
    def reductions(self) -> int:
        """Number of sums over tensor-parallel ranks in a forward pass: one after each sub-layer (Shoeybi et al.,
        2019)."""
        return sum(name != "cross" or self.crosses for name in self.divided)

    @property
    def gathers(self) -> int:
        """Number of gathers of all ranks' tokens in a forward pass: one before each sub-layer."""
        return self.reductions

    def shard(self, ranks: int) -> Block:
        """Return the block with one rank's part of each sub-layer. The block's own weights are whole on every rank."""
        inner = {field.name: getattr(self, field.name) for field in self.fields()}
        return replace(self, **{name: each.shard(ranks) for name, each in inner.items() if isinstance(each, Spec)})

    def cache(self) -> dict[str, tuple[int, ...]]:
        """List the tensors that the block's attention caches for each token: name to shape."""
        return self.attention.cache()

    def state(self) -> dict[str, tuple[int, ...]]:
        """List the states of the block's attention and of its feed-forward, if any: name to shape."""
        ffn: FFN | None = getattr(self, "ffn", None)
        return self.attention.state() | (ffn.state() if ffn else {})

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        """Run the layer: x [B, T, D] to [B, T, D]."""
        raise NotImplementedError

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Add a sub-layer's output y to the residual stream x."""
        return add_scaled(x, y, self.stream_scale, self.residual_scale)


def add_scaled(x: Tensor, y: Tensor, stream_scale: float, scale: float) -> Tensor:
    """Compute stream_scale · x + scale · y; a factor of 1 costs nothing."""
    x = x if stream_scale == 1.0 else x * stream_scale
    return x + y if scale == 1.0 else x + y * scale
