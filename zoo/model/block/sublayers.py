# B batch, T tokens, D model width
"""Layers as lists of sub-layers: the norms around each, its computation, and how it joins the residual stream."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import WrapValidator

from zoo.distributed.group import cast_for_products
from zoo.lazy import Tensor
from zoo.model.attention.base import Attention
from zoo.model.attention.nothing import NoAttention
from zoo.model.block.base import Block, add_scaled
from zoo.model.block.out_conv import OutConv
from zoo.model.block.residual import Residual
from zoo.model.ffn import FFN
from zoo.model.layer_input import LayerInput, LayerInputs
from zoo.model.norm import WholeNorm
from zoo.spec import CROSS, Buffer, Node, Sized, hold_whole

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


NORMS = ("in_norm", "out_norm", "stream_norm")
"""Where a norm may stand around a sub-layer, in the order in which the stream meets them."""
MOVED = {
    "input_norm": "around_attention: {in_norm: false}",
    "ffn_input_norm": "around_ffn: {in_norm: false}",
    "ffn_norm": "around_ffn: {in_norm: rmsnorm}",
    "out_norm": "around_attention: {out_norm: rmsnorm}",
    "ffn_out_norm": "around_ffn: {out_norm: rmsnorm}",
    "ffn_residual_scale": "around_ffn: {residual_scale: 0.5}",
    "ffn_stream_scale": "around_ffn: {stream_scale: 0.5}",
}
"""Former fields of a block, and how each is written now."""


AS_KIND: Any = "as_kind"
"""Value of a norm that is not stated: the block's `norm` if the block's kind has a norm in this place, else none."""


def _keep_as_kind(value: object, handler: Any) -> Any:
    return value if value == AS_KIND else handler(value)


PlacedNorm = Annotated[WholeNorm | None, WrapValidator(_keep_as_kind)]


class Around(Node, name="around"):
    """Norms and factors of one sub-layer. Fields that are not stated follow the block; a norm of null means no norm."""

    in_norm: PlacedNorm = AS_KIND
    """Norm of the sub-layer's input; null for none (ModernBERT's first layer). Unless stated, the block's `norm` in pre
    and sandwich, none in post and post_inside."""
    out_norm: PlacedNorm = AS_KIND
    """Norm of the sub-layer's output, before it joins the stream. Unless stated, the block's `norm` in sandwich and
    post_inside, none in pre and post."""
    stream_norm: PlacedNorm = AS_KIND
    """Norm of the stream, after the sub-layer's output joined it (HRM-Text, 2026, after the last layer of each run).
    Unless stated, the block's `norm` in post, none in the others."""
    residual_scale: float | None = None
    """Constant factor of the sub-layer's output; the block's `residual_scale` unless given (MiniMax-01, 2025)."""
    stream_scale: float | None = None
    """Constant factor of the stream before the sum; the block's `stream_scale` unless given (MiniMax-01, 2025)."""

    shard = hold_whole  # between sub-layers ranks divide the tokens, not the vectors (sequence parallelism)


AS_THE_KIND = Around()
CONVOLVED = ("attention", "ffn")
"""The sub-layers whose outputs pass an `out_conv`."""


class SubLayer(NamedTuple):
    """A sub-layer: the names of its norms, convolution and residual sum ("" for none), and its factors."""

    name: str
    in_norm: str
    out_norm: str
    conv: str
    residual: str
    stream_norm: str
    stream_scale: float
    scale: float


class SubLayers(Block):
    """Base of the blocks whose sub-layers join one residual stream one after the other.

    A kind states the places of its norms in `places`: "in_norm" before a sub-layer f, "out_norm" after it, inside the
    residual sum, "stream_norm" after the sum: stream_norm(x + out_norm(f(in_norm(x)))).
    """

    places: ClassVar[tuple[str, ...]] = ("in_norm",)
    divided: ClassVar[tuple[str, ...]] = ("attention", "cross", "ffn")

    residual: Residual | None = None
    """Residual sum with learned weights (ZAYA1, 2026); null for a plain sum."""
    out_conv: OutConv | None = None
    """Convolution of the outputs of attention and feed-forward, before each joins the stream (Inkling, 2026)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in self.sublayers:
            where = "" if each.name == "cross" else f"around_{each.name}."
            if self.residual is not None and (each.stream_scale, each.scale) != (1.0, 1.0):
                found = f"{where}residual_scale or stream_scale beside a residual that has weights of its own"
                raise ValueError(f"{found} (one of them)")

    @property
    def order(self) -> tuple[str, ...]:
        """The names of the block's sub-layers, in order."""
        return tuple(name for name in self.divided if name != "cross" or self.crosses)

    @cached_property
    def sublayers(self) -> tuple[SubLayer, ...]:
        """The block's sub-layers in order, each with its norms, convolution and factors."""
        return tuple(map(self._describe, self.order))

    def _around(self, name: str) -> Around:
        return getattr(self, f"around_{name}", None) or AS_THE_KIND

    def _describe(self, name: str) -> SubLayer:
        around, norms = self._around(name), self._list_norms(name)
        # A kind with one norm to a sub-layer calls it `attention_norm`, say, wherever it stands.
        only = self.places[0] if len(self.places) == 1 and "in_norm" not in norms else "in_norm"
        names = {place: f"{name}_{'norm' if place == only else place}" for place in norms}
        return SubLayer(
            name,
            **{place: names.get(place, "") for place in NORMS},
            conv=f"{name}_conv" if self.out_conv and name in CONVOLVED else "",
            residual=f"{name}_residual" if self.residual else "",
            stream_scale=self.stream_scale if around.stream_scale is None else around.stream_scale,
            scale=self.residual_scale if around.residual_scale is None else around.residual_scale,
        )

    def _list_norms(self, name: str) -> dict[str, WholeNorm]:
        """The norms around a sub-layer by place, in the order in which the stream meets them."""
        around = self._around(name)
        usual = {place: self.norm for place in self.places}
        stated = {place: getattr(around, place) for place in NORMS}
        found = {place: usual.get(place) if norm == AS_KIND else norm for place, norm in stated.items()}
        return {place: norm for place, norm in found.items() if norm is not None}

    @property
    def normalises_output(self) -> bool:  # type: ignore[override]
        return bool(self.sublayers[-1].stream_norm)

    @property
    def gathers(self) -> int:
        """Number of gathers of all ranks' tokens in a forward pass: one before each sub-layer, and one for each
        convolution, because each rank convolves all tokens."""
        return super().gathers + sum(bool(each.conv) for each in self.sublayers)

    def state(self) -> dict[str, tuple[int, ...]]:
        own = self.out_conv.state().items() if self.out_conv else ()
        convolved = [each.name for each in self.sublayers if each.conv]
        return super().state() | {f"{place}_{name}": shape for place in convolved for name, shape in own}

    def parts(self, d_model: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        crossed = Sized(self.cross, d_model, role=CROSS) if self.cross else None
        for each in self.sublayers:
            norms = self._list_norms(each.name)
            found |= {each.in_norm: norms["in_norm"]} if each.in_norm else {}
            found[each.name] = crossed if each.name == "cross" else getattr(self, each.name)
            found |= {getattr(each, place): norms[place] for place in norms if place != "in_norm"}
        found |= {"cross": crossed} if crossed and not self.crosses else {}  # attention reads its parts
        found |= {each.residual: self.residual for each in self.sublayers if each.residual}
        return found | {each.conv: self.out_conv for each in self.sublayers if each.conv}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        for each in self.sublayers:
            x = self.run_sublayer(each, m, x, step)
        return x

    def run_sublayer(self, each: SubLayer, m: Weights, x: Tensor, step: Step) -> Tensor:
        """Run a sub-layer with its norms, convolution and residual sum on the stream x [B, T, D]."""
        read = getattr(m, each.in_norm)(x) if each.in_norm else x
        given = cast_for_products(read)
        y = m.cross(given, step.cross) if each.name == "cross" else getattr(m, each.name)(given, step)
        y = getattr(m, each.out_norm)(y) if each.out_norm else y
        y = getattr(m, each.conv)(y, step, each.name) if each.conv else y
        x = self.join(each, m, x, y, read)
        return getattr(m, each.stream_norm)(x) if each.stream_norm else x

    def join(self, each: SubLayer, m: Weights, x: Tensor, y: Tensor, read: Tensor) -> Tensor:
        """Add a sub-layer's output y [B, T, D] to the stream x [B, T, D]; `read` is the sub-layer's input."""
        return getattr(m, each.residual)(x, y) if each.residual else add_scaled(x, y, each.stream_scale, each.scale)


class Full(SubLayers):
    """Base of the blocks of attention and a feed-forward."""

    moved: ClassVar[dict[str, str]] = MOVED

    ffn: FFN
    """Feed-forward of the layer."""
    around_attention: Around | None = None
    """Norms and factors of attention that differ from the block's."""
    around_ffn: Around | None = None
    """Norms and factors of the feed-forward that differ from the block's."""


class Pre(Full, kind="pre"):
    """Pre-norm block: x + f(norm(x)) for each sub-layer f (Xiong et al., 2020; GPT-2, Llama)."""

    moved: ClassVar[dict[str, str]] = MOVED | {"stream_norm": "around_ffn: {stream_norm: rmsnorm}"}

    residual_from_norm: bool = False
    """Whether a sub-layer's output is added to the normalised input, not to the stream (BLOOM's option; MiniMax-01).
    Cross-attention's output is always added to the stream."""

    def join(self, each: SubLayer, m: Weights, x: Tensor, y: Tensor, read: Tensor) -> Tensor:
        return super().join(each, m, read if self.residual_from_norm and each.name != "cross" else x, y, read)


class Post(Full, kind="post"):
    """Post-norm block: norm(x + f(x)) for each sub-layer f (Vaswani et al., 2017; GPT-1, BERT)."""

    places: ClassVar[tuple[str, ...]] = ("stream_norm",)


class PostInside(Full, kind="post_inside"):
    """x + norm(f(x)): the norm of a sub-layer's output, inside the residual sum (Liu et al., 2021, Swin v2; OLMo 2)."""

    places: ClassVar[tuple[str, ...]] = ("out_norm",)


class Mixer(SubLayers, kind="mixer"):
    """Pre-norm mixer x + attention(norm(x)), without a feed-forward (Gu and Dao, 2023, Mamba)."""

    divided: ClassVar[tuple[str, ...]] = ("attention",)


class FeedForward(SubLayers, kind="feed_forward"):
    """Pre-norm feed-forward x + ffn(norm(x)), without attention: for models whose layers have either a mixer or a
    feed-forward (NVIDIA, 2025, Nemotron-H)."""

    divided: ClassVar[tuple[str, ...]] = ("ffn",)

    attention: Attention = NoAttention()
    """Attention of kind 'none', which caches nothing and has no weights."""
    ffn: FFN
    """Feed-forward of the layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attention, NoAttention):
            raise ValueError(f"a '{self.kind}' block has no place for attention '{self.attention.kind}' (pre has)")


class Sandwich(Full, kind="sandwich"):
    """Norms before and after each sub-layer f: x + norm(f(norm(x))) (Ding et al., 2021, CogView; Gemma 2).
    Cross-attention has norms on both sides too (T5Gemma, 2025)."""

    places: ClassVar[tuple[str, ...]] = ("in_norm", "out_norm")

    layer_input: LayerInput | None = None
    """Module that adds the token's vector for this layer, which the embedding's `per_layer` makes (Gemma 3n, 2025)."""
    out_scale: bool = False
    """Whether the layer's output is multiplied by one number, saved with the weights and not trained (Gemma 4,
    2026)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            **super().parts(d_model),
            **({"layer_input": self.layer_input} if self.layer_input else {}),
            **({"out_scale": Buffer((1,), init=1.0)} if self.out_scale else {}),
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        x = super().forward(m, x, step)
        if self.layer_input is not None:
            x = self.add(x, m.layer_input(x, step.read(LayerInputs.name)))
        return x * m.out_scale.to(x.dtype) if self.out_scale else x
