# B batch, T tokens, S earlier groups of layers, D model width
"""Sub-layers that read earlier groups of layers by attention over depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.lazy import Tensor, torch
from zoo.model.attention.dynamic_gqa import DynamicGQA
from zoo.model.block.base import Block
from zoo.model.block.out_conv import OutConv
from zoo.model.block.sublayers import CONVOLVED
from zoo.model.depth_read import DepthRead, GroupSums, SoftmaxDepthRead
from zoo.model.ffn import FFN
from zoo.model.layer_loop import MessageGate, PassBefore
from zoo.model.norm import Norm, give_weights

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class AttentionResidual(Block, kind="attention_residual"):
    """Attention residuals (Kimi Team, 2026; Thinking Machines, 2026, Inkling 2): a sub-layer f adds f(norm(r)) to the
    sum x of its group of layers, where r is read by attention over x and the sums of earlier groups.

    A layer with `opens` starts a group: its input x joins the earlier sums, and its attention's output begins a new
    sum. Before its final norm the model reads over depth once more. Nothing is cached.
    """

    ffn: FFN
    """Feed-forward of the layer."""
    depth_read: DepthRead = SoftmaxDepthRead()
    """Attention over depth that reads r."""
    opens: bool = True
    """Whether the layer starts a group. If every layer does, the output of each layer is a group of its own."""
    reads_earlier: bool = True
    """Whether attention reads earlier groups. If false, it reads only the layer's input x, as in a first layer that
    reads the embedding unchanged."""
    joint_read: bool = False
    """Whether one query reads, and one norm normalises, all inputs of an attention with several input vectors. The
    inputs then differ only by their messages."""
    out_conv: OutConv | None = None
    """Convolution of the outputs of attention and feed-forward, before each joins the stream (Inkling, 2026)."""
    messages: MessageGate | None = None
    """Gate that mixes a message into each sub-layer's input. A message is a read over the groups that ended in the
    loop's previous pass (`zoo.model.layer_loop`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scaled = next((name for name in ("residual_scale", "stream_scale") if getattr(self, name) != 1.0), None)
        if scaled is not None:
            raise ValueError(f"{scaled}: groups are weighed by attention over them (leave it out)")
        if self.depth_read.n_reads != 1:
            found = f"is {self.depth_read.n_reads}, and as many vectors are read as the sub-layer takes"
            raise ValueError(f"depth_read.n_reads {found} (leave it out)")
        if self.joint_read and self.n_inputs == 1:
            raise ValueError("joint_read is of an attention that reads several vectors (attention.separate_inputs)")
        self._norm()

    @property
    def takes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (GroupSums.name, *([PassBefore.name] if self.messages else []))

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        return (GroupSums.name,) if self.opens else ()

    @property
    def n_inputs(self) -> int:
        """Number of vectors that attention reads for each token."""
        return self.attention.n_inputs if isinstance(self.attention, DynamicGQA) else 1

    @property
    def n_reads(self) -> int:
        """Number of reads over depth that make attention's inputs, each with a query and a norm of its own: 1 with
        `joint_read`, else `n_inputs`."""
        return 1 if self.joint_read else self.n_inputs

    @property
    def gathers(self) -> int:
        """Number of gathers of all ranks' tokens in a forward pass: one for each vector that attention reads, one for
        the feed-forward, and one for each convolution."""
        return super().gathers + self.n_inputs - 1 + (2 if self.out_conv else 0)

    def state(self) -> dict[str, tuple[int, ...]]:
        own = self.out_conv.state().items() if self.out_conv else ()
        return super().state() | {f"{place}_{name}": shape for place in CONVOLVED for name, shape in own}

    def _norm(self) -> Norm:
        return self.norm if self.n_reads == 1 else give_weights(self.norm, self.n_reads)

    def parts(self, d_model: int) -> dict[str, Any]:
        reads = {"attention_read": self.depth_read.repeat(self.n_reads)} if self.reads_earlier else {}
        return {
            **reads,
            **self._list_gates(),
            "attention_norm": self._norm(),
            "attention": self.attention,
            "ffn_read": self.depth_read,
            "ffn_norm": self.norm,
            "ffn": self.ffn,
            **({f"{place}_conv": self.out_conv for place in CONVOLVED} if self.out_conv else {}),
        }

    def _list_gates(self) -> dict[str, Any]:
        """List the parts for messages: one read of all messages, and a gate for each input of attention and of the
        feed-forward."""
        if self.messages is None:
            return {}
        count = self.n_inputs
        gates = dict.fromkeys((*(f"attention_message_{each}" for each in range(count)), "ffn_message"), self.messages)
        return {"message_read": self.depth_read.repeat(count + 1), **gates}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        earlier, told = step.read(GroupSums.name), self._read_messages(m, step)
        y = m.attention(self._read(m, x, earlier, told), step)
        y = m.attention_conv(y, step, "attention") if self.out_conv else y
        if self.opens:
            earlier = self.depth_read.push(m.ffn_read, earlier, x)
            step.give(GroupSums.name, earlier)
        x = y if self.opens else x + y
        read = m.ffn_read(x, earlier)
        y = m.ffn(m.ffn_norm(m.ffn_message(read, told[-1]) if told else read), step)
        return x + (m.ffn_conv(y, step, "ffn") if self.out_conv else y)

    def _read_messages(self, m: Weights, step: Step) -> tuple[Tensor, ...]:
        """Read the messages, [B, T, D] for each input of the sub-layers; () in a loop's first pass, and for a block
        without messages."""
        passed = None if self.messages is None else step.read(PassBefore.name)
        return () if passed is None else m.message_read(passed.x, passed.earlier).unbind(2)

    def _read(self, m: Weights, x: Tensor, earlier: Tensor | None, told: tuple[Tensor, ...]) -> Tensor:
        """Read the normalised input of attention: [B, T, D], or [B, T, Q, D] if it takes Q > 1 vectors."""
        count, reads = self.n_inputs, self.n_reads
        if self.reads_earlier:
            read = m.attention_read(x, earlier)
        else:
            read = x if reads == 1 else x.unsqueeze(2).expand(-1, -1, reads, -1)
        if told:
            each = read.unbind(2) if reads > 1 else (read,) * count
            gates = (getattr(m, f"attention_message_{place}") for place in range(count))
            mixed = [gate(own, message) for gate, own, message in zip(gates, each, told[:-1], strict=True)]
            read = torch.stack(mixed, 2) if count > 1 else mixed[0]
        normed = m.attention_norm(read)
        return normed.unsqueeze(2).expand(-1, -1, count, -1) if normed.ndim == 3 and count > 1 else normed
