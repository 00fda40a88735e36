# B batch, T tokens, L layers, P width of a layer's input, D model width
"""Per-layer embeddings: a vector of each token for every layer, in addition to the residual stream (Gemma 3n, 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.activation import PlainActivation
from zoo.model.channels import Channel, Fault, Shadows
from zoo.model.norm import WholeNorm
from zoo.spec import Embedding, Linear, Sized, Spec, refuse_ranks

if TYPE_CHECKING:
    from zoo.model.step import Weights
    from zoo.model.tower import Tower


class PerLayerEmbedding(Spec, axis="per_layer", default="tokens"):
    """Embed token ids once for each layer, for the block's `layer_input`."""

    n_layers: PositiveInt
    """Number of layers, each of which gets a vector of its own."""
    width: PositiveInt
    """Channels P of a layer's vector."""
    norm: WholeNorm
    """Norm of the projected vectors."""

    shard = refuse_ranks("the per-layer embedding is not divided over ranks")

    def embed(self, m: Weights, ids: Tensor, x: Tensor) -> Tensor:
        """Compute the layers' inputs [B, T, L, P] from token ids [B, T] and the first layer's input x [B, T, D]."""
        raise NotImplementedError

    def project(self, m: Weights, x: Tensor) -> Tensor:
        """Compute norm(x·W / √D) for each layer [B, T, L, P] from the first layer's input x [B, T, D]."""
        split = (self.n_layers, self.width)
        return m.norm((m.project(x) * x.shape[-1] ** -0.5).unflatten(-1, split))


class PerLayerProjection(PerLayerEmbedding, kind="projection"):
    """Per-layer vectors norm(x·W / √D), without a table; x is the first layer's input (Google, 2026, EmbeddingGemma
    2)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"project": Linear(d_model, self.n_layers * self.width), "norm": Sized(self.norm, self.width)}

    def embed(self, m: Weights, ids: Tensor, x: Tensor) -> Tensor:
        return self.project(m, x)


class PerLayerTable(PerLayerEmbedding, kind="tokens"):
    """Per-layer vectors (norm(x·W / √D) + √P·E[token]) / √2, where x is the first layer's input (Gemma 3n, 2025)."""

    vocab_size: PositiveInt
    """Number of the table's tokens, which may be fewer than the model's. Further tokens get the vector of token 0."""

    def parts(self, d_model: int) -> dict[str, Any]:
        width = self.n_layers * self.width
        return {
            "tokens": Embedding(self.vocab_size, width),
            "project": Linear(d_model, width),
            "norm": Sized(self.norm, self.width),
        }

    def embed(self, m: Weights, ids: Tensor, x: Tensor) -> Tensor:
        known = torch.where(ids < self.vocab_size, ids, 0)
        looked_up = m.tokens(known) * self.width**0.5
        return (self.project(m, x) + looked_up.unflatten(-1, (self.n_layers, self.width))) * 2.0**-0.5


class LayerInputs(Channel, name="layer_input"):
    """The per-layer embedding's vectors of one layer, [B, T, P]."""

    staying: ClassVar[str] = "layers read the per-layer embedding, which is on the first stage"
    shared: ClassVar[bool] = True

    def __init__(self, tower: Tower, m: Weights, ids: Tensor, x: Tensor) -> None:
        self._inputs = tower.embedding.layer_inputs(m, ids, x)

    def take(self, index: int) -> Tensor | None:
        return None if self._inputs is None else self._inputs[index]

    @classmethod
    def trace(cls, at: Shadows) -> Any:
        embedding: Any = at.tower.embedding
        shape = (*at.x.shape[:2], embedding.per_layer.n_layers, embedding.per_layer.width)
        return at.make(shape, at.x.dtype, "layer inputs", True).select(2, 0)

    @classmethod
    def find_faults(cls, tower: Tower) -> Iterator[Fault]:
        """Yield a fault unless the per-layer embedding has a vector for each layer, as wide as the layers'
        `layer_input`."""
        per_layer = getattr(tower.embedding, "per_layer", None)
        path, read = ("embedding", "per_layer"), [getattr(each, "layer_input", None) for each in tower.blocks.values()]
        if per_layer is None:
            if any(each is not None for each in read):
                yield path, "is null, and layers read it by block.layer_input (give one, or leave layer_input out)"
            return
        if per_layer.n_layers != tower.n_layers:
            found = f"is {per_layer.n_layers}, the model has {tower.n_layers} layers"
            yield (*path, "n_layers"), f"{found} ({tower.n_layers} would do)"
        widths = {each.width for each in read if each is not None}
        if widths != {per_layer.width}:
            found = f"the layers read {', '.join(map(str, sorted(widths)))}" if widths else "no layer reads it"
            yield (*path, "width"), f"is {per_layer.width}, and {found} (one width for block.layer_input and this)"


class LayerInput(Spec, axis="layer_input", default="gated"):
    """Turn the layer's vector of the per-layer embedding into an output that the block adds to the residual stream."""

    takes: ClassVar[tuple[str, ...]] = (LayerInputs.name,)

    width: PositiveInt
    """Channels P of the layer's vector, equal to `width` of the embedding's `per_layer`."""

    def forward(self, m: Weights, x: Tensor, own: Tensor) -> Tensor:
        """Project the layer's `own` inputs [B, T, P] to the output [B, T, D] that joins the stream x [B, T, D]."""
        raise NotImplementedError


class GatedInput(LayerInput, kind="gated"):
    """Gated input norm((act(x·W_gate) ⊙ p)·W_project) with the layer's vector p and the stream x (Gemma 3n, 2025)."""

    activation: PlainActivation
    """Activation of the gate."""
    norm: WholeNorm
    """Norm of the output, before it joins the stream."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "gate": Linear(d_model, self.width),
            "project": Linear(self.width, d_model, residual=True),
            "norm": self.norm,
        }

    shard = refuse_ranks("a layer's input from the per-layer embedding is not divided over ranks")

    def forward(self, m: Weights, x: Tensor, own: Tensor) -> Tensor:
        return m.norm(m.project(self.activation.apply(m.gate(x)) * own))
