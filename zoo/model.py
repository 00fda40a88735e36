# B batch, T queries, S keys, D model width, V vocabulary
"""Whole models: an embedding, a pattern of layers, a norm and a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from zoo import kernels
from zoo.block import Block
from zoo.embedding import Embedding
from zoo.errors import ConfigError
from zoo.head import Head
from zoo.init import Init, Normal
from zoo.lazy import torch
from zoo.mask import Mask
from zoo.norm import Norm
from zoo.position import Position
from zoo.spec import Spec, Stack
from zoo.step import Output, Step

if TYPE_CHECKING:
    from torch import Tensor


class Topology(Spec, axis="topology", default="decoder"):
    """How embeddings, layers and heads make a model."""


class Decoder(Topology, kind="decoder"):
    """A causal language model. `blocks` are the kinds of layer by name; `pattern` names each layer's kind, first to
    last.

    A final norm stands before the head unless the blocks end in one; `final_norm` says otherwise.
    """

    vocab_size: PositiveInt
    d_model: PositiveInt
    max_seq_len: PositiveInt
    embedding: Embedding
    position: Position
    blocks: dict[str, Block]
    pattern: tuple[str, ...]
    norm: Norm
    head: Head
    final_norm: bool | None = None
    init: Init = Normal()

    def __post_init__(self) -> None:
        unknown = [name for name in dict.fromkeys(self.pattern) if name not in self.blocks]
        if unknown or not self.pattern:
            found = ", ".join(map(repr, unknown)) or "nothing"
            raise ValueError(f"pattern names {found}, the kinds of layer are: {', '.join(self.blocks) or 'none'}")

    @property
    def n_layers(self) -> int:
        return len(self.pattern)

    @property
    def cacheable_until(self) -> int | None:
        """The row length up to which decoding with a cache equals the full forward; None for any."""
        schemes = [block.attention.positioning for block in self.blocks.values()]
        limits = [scheme.stable_until for scheme in schemes if scheme and scheme.stable_until]
        return min(limits, default=None)

    @property
    def has_final_norm(self) -> bool:
        if self.final_norm is not None:
            return self.final_norm
        return not self.blocks[self.pattern[-1]].normalises_output

    def parts(self, d_model: int) -> dict[str, Any]:
        final = {"norm": self.norm} if self.has_final_norm else {}
        stack = Stack(self.blocks, self.pattern)
        return {"embedding": self.embedding, "position": self.position, "blocks": stack, **final, "head": self.head}

    def forward(  # type: ignore[override]
        self,
        m: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        documents: Tensor | None = None,
        cache: Any = None,
        logits_to_keep: int | None = None,
    ) -> Output:
        """Logits for token ids [B, T].

        `attention_mask` [B, S], 1 for a real token, covers what the cache holds and the new tokens. `documents` [B, T]
        numbers the documents packed into a row: positions restart, attention stays inside. `logits_to_keep` asks for
        the
        last so many positions only (0: none).
        """
        scene = _Scene(self, input_ids, attention_mask, documents, cache)
        x = self.position.embed(m.position, m.embedding(input_ids), scene.positions)  # B T D
        steps = {kind: scene.step(kind, m.kernel, x) for kind in self.blocks}
        losses: dict[str, Tensor] = {}
        for index, kind in enumerate(self.pattern):
            step = steps[kind].for_layer(None if cache is None else cache.layers[index])
            x = m.blocks[index](x, step)
            for name, loss in step.losses:
                losses[name] = losses[name] + loss if name in losses else loss
        if cache is not None:
            cache.length += input_ids.shape[1]
        hidden = m.norm(x) if self.has_final_norm else x
        kept = hidden if logits_to_keep is None else hidden[:, hidden.shape[1] - logits_to_keep :]
        return Output(hidden, None if logits_to_keep == 0 else m.head(kept), losses)


class _Scene:
    """Positions and masks of one forward pass, and the Step they make for each kind of layer."""

    def __init__(
        self, spec: Decoder, ids: Tensor, padding: Tensor | None, documents: Tensor | None, cache: Any
    ) -> None:
        if documents is not None and (cache is not None or padding is not None):
            raise ConfigError(
                "documents: packed rows take neither a cache nor an attention_mask (pass one or the other)"
            )
        self.spec, self.cache, self.documents = spec, cache, documents
        self.padding = None if padding is None else padding.bool()
        self.new = ids.shape[1]
        self.past = 0 if cache is None else cache.length
        self.device = ids.device
        self.columns = torch.arange(self.past + self.new, device=ids.device)
        self._check(spec)
        positions, self.lengths = self._positions()
        self.positions = positions[:, self.past :]  # B|1 T

    def _check(self, spec: Decoder) -> None:
        total, limit = self.past + self.new, spec.position.limit
        if limit is not None and total > limit:
            raise ConfigError(
                f"position: {spec.position.kind} has {limit} positions, the sequence has {total} (shorten it)"
            )
        stable = None if self.cache is None else spec.cacheable_until
        if stable is not None and total > stable:
            raise ConfigError(
                f"position: a cache drifts beyond {stable} tokens, the sequence has {total} (go without a cache)"
            )
        if self.padding is not None and self.padding.shape[1] != total:
            found = f"{self.padding.shape[1]} columns, the sequence has {total}"
            raise ConfigError(f"attention_mask: has {found} (what the cache holds and the new tokens)")

    def _positions(self) -> tuple[Tensor, Tensor]:
        """Position of every column [B|1, S], and how many tokens its row or document has [B|1, 1|S]."""
        if self.documents is not None:
            starts = torch.ones_like(self.documents, dtype=torch.bool)
            starts[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
            first = torch.where(starts, self.columns, 0).cummax(1).values
            same = self.documents[:, :, None] == self.documents[:, None, :]
            return self.columns - first, same.sum(-1)
        if self.padding is not None:
            seen = self.padding.long().cumsum(1)
            return (seen - 1).clamp(min=0), seen[:, -1:]
        return self.columns[None], self.columns[-1:, None] + 1

    def step(self, kind: str, kernel: str, x: Tensor) -> Step:
        attention = self.spec.blocks[kind].attention
        position, dtype = attention.positioning, _compute_dtype(x)
        plan = None if self.cache is None else self.cache.plan(kind, self.new)
        mask = self._mask(attention.visible_window, plan)
        keys = self.columns if plan is None else plan.columns
        step = Step(mask=mask, kernel=kernel, plan=plan)
        if position is not None:
            width = attention.head_dim  # type: ignore[attr-defined]
            step.tables = position.tables(self.positions, width, dtype, self.lengths)
            step.bias = position.bias(attention.score_heads, self.columns[self.past :], keys)
        self._draw(step, attention, x.device, dtype)
        return step

    def _draw(self, step: Step, attention: Any, device: torch.device, dtype: torch.dtype) -> None:
        """Draws the mask as this kind's kernel reads it, once for all of its layers."""
        features = {"padding": self.padding is not None, "documents": self.documents is not None}
        ask = attention.ask(device.type, str(dtype).removeprefix("torch."), **features)
        if ask is not None:
            kernels.prepare(step.mask, ask, device, dtype, bias=step.bias, kernel=step.kernel)

    def _mask(self, window: int | None, plan: Any) -> Mask:
        if plan is None:
            documents = None if self.documents is None else (self.documents, self.documents)
            return Mask(self.new, self.new, window=window, padding=self.padding, documents=documents)
        keys, end = plan.columns, self.past + self.new
        alone = self.new == 1 and self.padding is None  # a ring holds exactly what one new token sees
        in_order = alone or keys.shape[0] == end
        return Mask(
            self.new,
            keys.shape[0],
            window=None if alone else window,
            padding=None if self.padding is None else self.padding[:, keys],
            query_columns=None if in_order else self.columns[self.past :],
            key_columns=None if in_order else keys,
        )


def _compute_dtype(x: Tensor) -> Any:
    """What attention computes in: autocast's dtype where it is on."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
