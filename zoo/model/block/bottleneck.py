# B batch, T tokens, D model width, W width of the bottleneck
"""A post-norm layer inside a bottleneck, with several feed-forwards."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Le
from pydantic import PositiveInt

from zoo.lazy import Tensor
from zoo.model.attention.bottleneck import BottleneckAttention
from zoo.model.block.base import Block
from zoo.model.drops import STACKED
from zoo.model.ffn import FFN
from zoo.model.moe import MoE
from zoo.model.step import BesideStep
from zoo.spec import Linear, Sized

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Bottleneck(Block, kind="bottleneck"):
    """Bottleneck layer, norm(x + z·W_expand): z is norm(x·W_reduce) passed through attention and feed-forwards, each
    with a residual sum and a norm after it (Sun et al., 2020, MobileBERT).

    Attention reads the narrow stream; only attention of kind `bottleneck` reads x.
    """

    normalises_output: ClassVar[bool] = True

    ffn: FFN
    """Feed-forward of the layer. Each of the `n_ffns` has weights of its own."""
    width: PositiveInt
    """Width of the narrow stream, in channels."""
    n_ffns: Annotated[PositiveInt, Le(len(STACKED) + 1)] = 1
    """Number of feed-forwards, one after the other."""
    bias: bool = False
    """Whether W_reduce and W_expand have a bias."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = getattr(self.attention, "width", self.width) if self._reads_stream else self.width
        if given != self.width:
            raise ValueError(f"attention.width={given} is what joins the bottleneck's stream, {self.width} wide (one)")
        if self.n_ffns > 1 and (isinstance(self.ffn, MoE) or self.ffn.state()):
            found = f"ffn: '{self.ffn.kind}' {'chooses experts' if isinstance(self.ffn, MoE) else 'keeps a state'}"
            raise ValueError(f"{found}, once a layer, found n_ffns={self.n_ffns} (1, or ffn: mlp)")

    @property
    def _reads_stream(self) -> bool:
        return isinstance(self.attention, BottleneckAttention)

    @property
    def divided(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("attention", *self._stacked, "ffn")

    @property
    def _stacked(self) -> tuple[str, ...]:
        return STACKED[: self.n_ffns - 1]

    def parts(self, d_model: int) -> dict[str, Any]:
        narrow = partial(Sized, d_model=self.width)
        before = {
            name: narrow(each) for ffn in self._stacked for name, each in ((ffn, self.ffn), (f"{ffn}_norm", self.norm))
        }
        return {
            "reduce": Linear(d_model, self.width, self.bias),
            "reduce_norm": narrow(self.norm),
            "attention": self.attention if self._reads_stream else narrow(self.attention),
            "attention_norm": narrow(self.norm),
            **before,
            "ffn": narrow(self.ffn),
            "ffn_norm": narrow(self.norm),
            "expand": Linear(self.width, d_model, self.bias),
            "expand_norm": self.norm,
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        narrow = m.reduce_norm(m.reduce(x))  # B T W
        y = m.attention_norm(self.add(narrow, m.attention(x if self._reads_stream else narrow, step)))
        for name in self._stacked:
            y = getattr(m, f"{name}_norm")(self.add(y, getattr(m, name)(y, BesideStep(step, name))))
        y = m.ffn_norm(self.add(y, m.ffn(y, step)))
        return m.expand_norm(self.add(x, m.expand(y)))  # B T D
