"""Parametrise a model so that its best learning rate stays the same at another width (muP) and depth (CompleteP).

A parametrisation changes the Spec (initial values, multipliers of logits, scores and residual branches) and scales the
learning rate, weight decay and epsilon of each tensor. It recognises a tensor by its part, roles and layer in the Spec,
not by its name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from zoo.model.embedding import ROOT as EMBEDDING_ROOT
from zoo.model.head import ROOT as HEAD_ROOT
from zoo.model.init import ScaledInit, has_few_outputs
from zoo.spec import Spec, SpecRow, is_hidden_matrix
from zoo.training.optim import Optim, RateFactors, unscaled
from zoo.training.optim.base import Scale

if TYPE_CHECKING:
    from zoo.model.attention.base import Attention
    from zoo.model.block.base import Block
    from zoo.model.tower import Topology, Tower

ADAPTIVE = ("adamw", "adamw8bit", "lion", "schedule_free")
"""Optimizers whose step for an element does not grow with its gradient. The rules of muP here hold only for these
optimizers."""


class Parametrisation(Spec, axis="parametrisation", default="standard"):
    """Parametrisation: how initialisation and learning rates change with a model's width and depth."""

    def refuses(self, spec: Topology, optim: Optim) -> list[str]:
        """List a fault for each part of a model, and each optimizer, that this parametrisation has no rule for."""
        return []

    def adapt(self, spec: Topology) -> Topology:
        """Return the Spec with this parametrisation's initial values and multipliers."""
        return spec

    def scale(self, spec: Topology) -> Scale:
        """Return the function that gives each tensor's factors of learning rate, weight decay and epsilon."""
        return unscaled


class Standard(Parametrisation, kind="standard"):
    """Standard parametrisation: initial values as in the model's YAML and equal learning rates, at any width."""


class MuP(Parametrisation, kind="mup"):
    """Maximal update parametrisation for Adam (Yang et al., 2022, table 8): with m = d_model / `base_width`

    - initial values of matrices inside layers are divided by √m, those with few outputs (routers) by m; both have rate
      lr / m;
    - logits are multiplied by 1/m; tables, norms and biases keep initial values and rate;
    - with `base_head_dim` scores are multiplied by √base_head_dim / head_dim instead of 1/√head_dim;
    - weight decay is multiplied by m where the rate is divided, so that their product stays the same, as in the package
      `mup`; epsilon is divided by m everywhere, because gradients shrink by m (Dey et al., 2025).

    At the base width it changes nothing. Every width of a layer (d_ff, heads, ranks of MLA) must grow with d_model.
    """

    base_width: PositiveInt
    base_head_dim: PositiveInt | None = None

    def refuses(self, spec: Topology, optim: Optim) -> list[str]:
        faults = []
        if optim.kind not in ADAPTIVE:
            faults.append(f"{self.kind} has no rule for {optim.kind} (one of: {', '.join(ADAPTIVE)})")
        for tower in spec.towers().values():
            if not hasattr(tower.head, "scale") and tower.head.kind != "none":
                faults.append(f"{self.kind} multiplies logits, and head '{tower.head.kind}' cannot (lm)")
            for block in tower.blocks.values():
                own = block.attention
                if not hasattr(own, "scale"):
                    would = "gqa or mla would do, or parametrisation=standard"
                    faults.append(f"{self.kind} has no rule for attention '{own.kind}' ({would})")
        return list(dict.fromkeys(faults))

    def wider(self, spec: Topology) -> float:
        """Return m, the ratio of a model's width to the base width."""
        return spec.d_model / self.base_width

    def deeper(self, spec: Topology) -> float:
        """Return the ratio of a model's depth to the base depth; 1 for muP, which ignores depth."""
        return 1.0

    def adapt(self, spec: Topology) -> Topology:
        towers = {name: self._adapt_tower(spec, tower) for name, tower in spec.towers().items()}
        return towers[""] if "" in towers else replace(spec, **towers)

    def _adapt_tower(self, spec: Any, tower: Any) -> Tower:
        m, deeper = self.wider(spec), self.deeper(spec)
        head, embedding = tower.head, tower.embedding
        if hasattr(head, "scale"):
            scale = (tower.out_width or tower.d_model) ** -0.5 * m**0.5 if head.scale == HEAD_ROOT else head.scale
            head = replace(head, scale=scale / m)
        if getattr(embedding, "scale", None) == EMBEDDING_ROOT:
            embedding = replace(embedding, scale=((embedding.width or tower.d_model) / m) ** 0.5)
        blocks = {name: self._adapt_block(block, deeper) for name, block in tower.blocks.items()}
        init = ScaledInit(of=tower.init, wider=m, deeper=deeper)
        return replace(tower, head=head, embedding=embedding, blocks=blocks, init=init)

    def _adapt_block(self, block: Block, deeper: float) -> Block:
        fields = {"attention": self._adapt_attention(block.attention)}
        if block.crosses:
            fields["cross"] = self._adapt_attention(block.cross)
        return replace(block, residual_scale=block.residual_scale / deeper, **fields)

    def _adapt_attention(self, attention: Any) -> Attention:
        if self.base_head_dim is None:
            return attention
        width = attention.head_widths[0]
        own = width**-0.5 if attention.scale is None else attention.scale
        return replace(attention, scale=own * (self.base_head_dim / width) ** 0.5)

    def scale(self, spec: Topology) -> Scale:
        m, deeper = self.wider(spec), self.deeper(spec)

        def factors(row: SpecRow | None, leaf: str) -> RateFactors:
            inside = row is not None and row.kind is not None
            eps = 1 / m / (deeper if inside else 1.0)
            if row is None or row.part is None or leaf != "weight":
                return RateFactors(eps=eps)
            narrows = is_hidden_matrix(row.kind, row.part, leaf) or has_few_outputs(row)
            return RateFactors(lr=1 / m, weight_decay=m, eps=eps) if narrows else RateFactors(eps=eps)

        return factors


class CompleteP(MuP, kind="completep"):
    """muP extended to depth, α = 1 (Dey et al., 2025): a sub-layer's output is multiplied by `base_depth` / n_layers
    before it is added to the stream. Epsilon inside layers is multiplied by the same ratio. Rates do not change with
    depth."""

    base_depth: PositiveInt

    def deeper(self, spec: Topology) -> float:
        return spec.n_layers / self.base_depth
