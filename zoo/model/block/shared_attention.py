# B batch, T tokens, D model width, R rank of an adapter
"""A recurrent mixer's layer, preceded by a transformer block whose weights all layers of its kind share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.attention.base import Attention
from zoo.model.attention.in_turn import InTurn
from zoo.model.block.base import Block
from zoo.model.channels import Channel, Shadows
from zoo.model.ffn import FFN
from zoo.model.moe import MoE
from zoo.model.norm import WholeNorm
from zoo.spec import SHARED, Group, Linear, Sized, Spec

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights
    from zoo.model.tower import Tower

READS = {"attention": ("q", "k", "v"), "ffn": ("gate", "up")}
"""The projections of a shared block that may have an adapter, by sub-layer: those that read the sub-layer's input."""


class Embedded(Channel, name="embedded"):
    """The first layer's input, [B, T, D]."""

    staying: ClassVar[str] = "layers of several stages share a block and read the embedding"
    shared: ClassVar[bool] = True

    def __init__(self, tower: Tower, m: Weights, ids: Tensor, x: Tensor) -> None:
        self.last = x

    @classmethod
    def trace(cls, at: Shadows) -> Any:
        return at.make(at.x.shape, at.x.dtype, "embedded", True)


class SharedTransformer(Spec, axis="shared", kind="transformer", default="transformer"):
    """Transformer block ffn(norm(attention(norm([x ; e])))) with the embedding's output e, without residual sums
    (Glorioso et al., 2024, Zamba)."""

    attention: Attention
    """Softmax attention, which reads [x ; e]."""
    ffn: FFN
    """Feed-forward of the block."""
    norm: WholeNorm
    """Norm before attention and before the feed-forward, each with weights of its own."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "attention_norm": Sized(self.norm, 2 * d_model),
            "attention": self.attention,
            "ffn_norm": self.norm,
            "ffn": self.ffn,
        }

    def forward(self, m: Weights, x: Tensor, adapt: Mapping[str, Any], step: Step) -> Tensor:
        """Run the block on x [B, T, D]. `adapt` maps "attention" and "ffn" to functions. Each takes the input of that
        sub-layer and returns the outputs of the layer's own adapters, keyed by the projections that they are added
        to."""
        seam, tokens = m.seam, step.mask.n_queries
        joined = seam.gather(m.attention_norm(torch.cat((x, step.read(Embedded.name)), -1)), tokens)
        y = self.attention.forward(AdaptedWeights(m.attention, adapt["attention"](joined)), joined, step)  # type: ignore[arg-type]
        normed = seam.gather(m.ffn_norm(seam.reduce(y)), tokens)
        return seam.reduce(self.ffn.forward(AdaptedWeights(m.ffn, adapt["ffn"](normed)), normed, step))  # type: ignore[arg-type]


class AdaptedWeights:
    """A component's weights. Each projection named in `added` adds the tensor given there, an adapter's output, to its
    result."""

    def __init__(self, m: Weights, added: Mapping[str, Tensor]) -> None:
        self._m, self._added = m, added

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._m, name)
        if name not in self._added:
            return found
        added = self._added[name]
        return lambda x: found(x) + added


class SharedAttention(Block, kind="shared_attention"):
    """Compute x + recurrent(norm(x + t·W)) with t = ffn(norm(attention(norm([x ; e])))) (Glorioso et al., 2024, Zamba).
    The transformer block of t reads the stream x joined with the embedding's output e; all layers of this kind share
    its weights (two shared blocks in turn are two kinds of layer). Each layer has its own recurrent mixer (such as
    Mamba-2), W and norm before the mixer.

    With a rank R each layer has adapters of its own: A·B is added to shared projections, as in LoRA (Zamba2, 2024).
    """

    divided: ClassVar[tuple[str, ...]] = ("attention",)  # the shared block has its seams in its `forward`
    takes: ClassVar[tuple[str, ...]] = (Embedded.name,)

    ffn: FFN
    """Feed-forward of the shared block."""
    attention_rank: PositiveInt | None = None
    """Rank of the adapters of queries, keys and values; null for none."""
    ffn_rank: PositiveInt | None = None
    """Rank of the adapters of the feed-forward's gate and up, which share one A; null for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attention, InTurn):
            found = f"attention: '{self.attention.kind}' is one mixer, and a '{self.kind}' block has two in turn"
            raise ValueError(f"{found} (in_turn, with softmax and recurrent)")
        if isinstance(self.ffn, MoE) or self.ffn.state():
            raise ValueError(f"ffn: '{self.ffn.kind}' has no place in a shared block (gated or mlp)")

    @property
    def _mixers(self) -> InTurn:
        assert isinstance(self.attention, InTurn)
        return self.attention

    @property
    def reductions(self) -> int:
        return 3

    def parts(self, d_model: int) -> dict[str, Any]:
        shared = SharedTransformer(attention=self._mixers.softmax, ffn=self.ffn, norm=self.norm)
        adapters = self._list_adapters(d_model)
        return {
            "shared": Sized(shared, d_model, role=SHARED, common=True),
            **({"adapters": Group(adapters, role="adapters")} if adapters else {}),
            "join": Linear(d_model, d_model),
            "attention_norm": self.norm,
            "attention": self._mixers.recurrent,
        }

    def _list_adapters(self, d_model: int) -> dict[str, Any]:
        """List the layer's own adapters: `q_down` [2·D, R] and `q_up` [R, width of q] and so on; `ffn_down`, `gate_up`
        and `up_up` of the feed-forward."""
        found: dict[str, Any] = {}
        if self.attention_rank is not None:
            for name, part in self._adapted("attention", d_model):
                found[f"{name}_down"] = Linear(2 * d_model, self.attention_rank)
                found[f"{name}_up"] = Linear(self.attention_rank, part.d_out)
        if self.ffn_rank is not None:
            found["ffn_down"] = Linear(d_model, self.ffn_rank)
            found |= {f"{name}_up": Linear(self.ffn_rank, part.d_out) for name, part in self._adapted("ffn", d_model)}
        return found

    def _adapted(self, place: str, d_model: int) -> list[tuple[str, Linear]]:
        parts = (self._mixers.softmax if place == "attention" else self.ffn).parts(d_model)
        return [(name, part) for name in READS[place] if isinstance(part := parts.get(name), Linear)]

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        adapters: Any = m.adapters if self.attention_rank or self.ffn_rank else {}

        def adapt_attention(x: Tensor) -> dict[str, Tensor]:
            names = [name for name in READS["attention"] if f"{name}_down" in adapters]
            return {name: adapters[f"{name}_up"](adapters[f"{name}_down"](x)) for name in names}

        def adapt_ffn(x: Tensor) -> dict[str, Tensor]:
            if self.ffn_rank is None:
                return {}
            low = adapters["ffn_down"](x)
            return {name: adapters[f"{name}_up"](low) for name in READS["ffn"] if f"{name}_up" in adapters}

        given = m.shared(x, {"attention": adapt_attention, "ffn": adapt_ffn}, step)
        return self.add(x, m.attention(m.attention_norm(x + m.join(given)), step))
