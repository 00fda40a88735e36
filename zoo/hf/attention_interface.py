# B rows, T tokens, H heads, K kv heads, C head width
"""Compute attention by a function of transformers' attention interface in place of Zoo's kernels.

vLLM's transformers backend is such a function ("vllm"): it keeps the keys of all requests itself, and passes tokens of
several requests in one row, [1, T], with the position of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.lazy import Tensor
from zoo.model.attention.base import Sight, SoftmaxAttention
from zoo.model.context import ForwardContext
from zoo.model.step import Inputs, Step
from zoo.run.traced import TracedCache
from zoo.spec import components

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zoo.model.attention.base import Attention
    from zoo.model.step import Output, Weights
    from zoo.model.tower import Topology, Tower

OWN = "zoo"
"""The name of the attention implementation with which Zoo chooses its kernels."""

KERNEL_OF = {
    OWN: "auto",
    "eager": "eager",
    "sdpa": "sdpa",
    "flex_attention": "flex",
    "flash_attention_2": "flash2",
    "flash_attention_3": "flash3",
    "flash_attention_4": "flash4",
}
"""Zoo's kernel for each attention implementation of transformers. All others use the attention interface."""


ATTENDED = "attended"
"""The key in `Step.extra` of the indices of the layers that have attended in a pass."""


class AttentionShape(NamedTuple):
    """A layer's attention as the attention interface sees it: numbers of query and key heads, channels of a query head,
    softcap of the scores (None: none) and window in tokens (None: all keys)."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    softcap: float | None
    window: int | None


def shape_attention(tower: Tower) -> list[AttentionShape]:
    """Describe the attention of each layer. Raises ConfigError for a model that the interface cannot compute
    (`find_faults`)."""
    if fault := next(find_faults(tower), None):
        would = "zoo generate, or attn_implementation=zoo"
        raise ConfigError(f"{fault}, beyond transformers' attention interface ({would})")
    shapes = {kind: shape_layer(block.attention) for kind, block in tower.blocks.items()}
    return [shapes[kind] for kind in tower.pattern]


def shape_layer(attention: Any) -> AttentionShape:
    ask = attention.ask("float32")
    return AttentionShape(ask.n_heads, ask.n_kv_heads, ask.head_dim, ask.softcap, attention.sight.window)


def find_faults(tower: Tower) -> Iterator[str]:
    """Yield the path and fault of each part of a tower that the attention interface cannot compute, one line each."""
    if tower.kind != "decoder" or getattr(tower, "prefix_lm", False):
        yield "kind: is not a decoder that sees only what came before"
    for path, component, _ in components(tower.embedding, tower.d_model):
        if component.causal is not None:
            yield f"{'.'.join(('embedding', path)).rstrip('.')}: {component.kind} reads earlier tokens"
    if tower.position.skip_id is not None:
        yield "position.skip_id: positions depend on the other tokens of a row"
    for name, block in tower.blocks.items():
        if block.cross is not None:
            yield f"layers.{name}.cross: reads an encoder's output"
        if fault := find_attention_fault(block.attention):
            yield f"layers.{name}.attention: {block.attention.kind} {fault}"
        for path, component, _ in components(block, tower.d_model):
            if component.causal is not None:
                yield f"layers.{name}.{path}: {component.kind} reads earlier tokens"
            elif isinstance(component, SoftmaxAttention) and path != "attention":
                yield f"layers.{name}.{path}: {component.kind} is a second attention of the layer"
    yield from find_differences(tower)


def find_differences(tower: Tower) -> Iterator[str]:
    """Yield a line for each setting that differs between a tower's layers, although a transformers config states it
    once."""
    soft = [block.attention for block in tower.blocks.values() if isinstance(block.attention, SoftmaxAttention)]
    shapes = [shape_layer(attention) for attention in soft]
    if len({shape[:4] for shape in shapes}) > 1:
        yield "layers: have heads of several sizes"
    if len({shape.window for shape in shapes} - {None}) > 1:
        yield "layers: have windows of several sizes"


def find_attention_fault(attention: Attention) -> str | None:
    """Say why the attention interface cannot compute an attention; None if it can."""
    if not isinstance(attention, SoftmaxAttention):
        return "is no softmax attention"
    ask, position = attention.ask("float32"), attention.position
    varies = position.stable_until is not None
    faults = {
        "has a state": bool(attention.state()),
        "chooses its keys": attention.chooser is not None or ask.chosen,
        "reads another layer's keys": attention.loan is not None,
        f"adds the bias of position {position.kind} to scores": position.biases,
        "has sinks": ask.sinks,
        "sees other keys than those of a window": attention.sight != Sight(attention.sight.window),
        "has values that are wider than keys": ask.v_head_dim > ask.head_dim,
        f"has position {position.kind}, which depends on a row's length": position.reads_length or varies,
    }
    return next((fault for fault, found in faults.items() if found), None)


class InterfaceAttention(nn.Module):
    """The attention of one layer, computed by a function of the attention interface. vLLM finds the module by its
    `layer_idx`, and searches the source of `forward` for the call."""

    is_causal = True

    def __init__(self, config: Any, number: int, shape: AttentionShape) -> None:
        super().__init__()
        self.config, self.layer_idx, self.shape = config, number, shape
        self.num_key_value_groups = shape.n_heads // shape.n_kv_heads
        self.scaling, self.sliding_window, self.softcap = shape.head_dim**-0.5, shape.window, shape.softcap

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from queries [B, H, T, C] to keys [B, K, T, C] and values [B, K, T, V]. Returns [B, T, H, V]. There is
        no mask: the function itself keeps track of the requests."""
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)  # type: ignore[arg-type]
        given = {"sliding_window": self.sliding_window, "softcap": self.softcap}
        output, _ = attention_interface(self, query, key, value, None, dropout=0.0, scaling=self.scaling, **given)
        return output


class InterfaceStep(Step):
    """The Step of a layer that attends by the attention interface. `cache` is the layer's InterfaceAttention."""

    def remember(self, **new: Tensor) -> tuple[Tensor, ...]:
        return tuple(new.values())

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, *others: Any, **scores: Any) -> Tensor:  # type: ignore[override]
        layer: Any = self.cache
        shape = layer.shape
        odd = (q.shape[2], k.shape[2], q.shape[3]) != shape[:3] or scores.get("sinks") is not None
        if odd or layer.layer_idx in self.extra[ATTENDED]:
            raise ConfigError(f"layer {layer.layer_idx}: attends in another way than it states ({shape})")
        self.extra[ATTENDED].append(layer.layer_idx)
        if scale != layer.scaling:
            q = q * (scale / layer.scaling)
        y = layer(*(each.transpose(1, 2) for each in (q, k, v)))
        return y.reshape(*q.shape[:3], v.shape[3])


class InterfaceContext(ForwardContext):
    """A ForwardContext whose tokens have given positions [B, T]. It makes no masks."""

    def __init__(self, m: Any, tower: Tower, inputs: Inputs, positions: Tensor) -> None:
        super().__init__(tower, inputs, m.seam, m.context)
        self.positions = self.every = positions
        self.extra[ATTENDED] = []  # type: ignore[assignment]

    def _check(self, spec: Tower, inputs: Inputs) -> None:
        pass

    def see(self, attention: Attention, own: Weights | None, slots: Any) -> KeyView:
        return KeyView(Mask(self.new, self.new))

    def draw(self, *given: Any, **options: Any) -> None:
        pass

    def step(self, kind: str, kernel: str, x: Tensor, m: Weights) -> Step:
        return InterfaceStep(**vars(super().step(kind, kernel, x, m)))


class InterfaceLayers(nn.ModuleList):
    """The attention of all layers of a model, computed by the attention interface. Raises ConfigError for a model that
    the interface cannot compute."""

    def __init__(self, spec: Topology, config: Any) -> None:
        self.tower = list(spec.towers().values())[-1]
        super().__init__(InterfaceAttention(config, *each) for each in enumerate(shape_attention(self.tower)))

    def run(
        self,
        model: Any,
        positions: Tensor | None,
        ids: Tensor,
        attention_mask: Tensor | None = None,
        logits_to_keep: int | None = None,
    ) -> Output:
        """Run tokens [B, T] with their positions, by default 0, 1, 2 and so on. Raises ConfigError for padding, and for
        a layer that does not use the interface."""
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ConfigError("attention_mask: the attention interface gets no padding (attn_implementation=zoo)")
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        cache: Any = TracedCache(self.tower, list(self), 0)  # type: ignore[arg-type]
        inputs = Inputs(ids, cache=cache, logits_to_keep=logits_to_keep)
        context = InterfaceContext(model, self.tower, inputs, positions)
        out = self.tower.run(model, inputs, context)
        if len(context.extra[ATTENDED]) != len(self):
            raise ConfigError("attention: some layers do not attend by the interface (attn_implementation=zoo)")
        return out
