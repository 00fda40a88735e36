# B batch, T queries, S keys, D model width
"""One forward pass through a stack of layers: its positions and masks, and the Step for each kind of layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo import kernels
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.varlen import run_starts
from zoo.lazy import F, torch
from zoo.model.step import Step

if TYPE_CHECKING:
    from torch import Tensor


class Scene:
    """The tokens of one pass as the layers of `spec` need them. Raises ConfigError for inputs that do not go together.

    `index` [S] is the token index: a token's place in its row, pads and the tokens in the cache included.
    """

    def __init__(
        self,
        spec: Any,
        ids: Tensor,
        padding: Tensor | None,
        *,
        causal: bool,
        documents: Tensor | None = None,
        prefix: Tensor | None = None,
        cache: Any = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if documents is not None and (cache is not None or padding is not None):
            raise ConfigError(
                "documents: packed rows take neither a cache nor an attention_mask (pass one or the other)"
            )
        self.spec, self.causal, self.cache = spec, causal, cache
        self.documents, self.prefix = documents, prefix
        self.memory, self.memory_mask = memory, None if memory_mask is None else memory_mask.bool()
        self.extra = extra or {}
        self.padding = None if padding is None else padding.bool()
        self.ids, self.new = ids, ids.shape[1]
        self.past = 0 if cache is None else cache.length
        self.device = ids.device
        self.index = torch.arange(self.past + self.new, device=ids.device)
        self._check(spec)
        self.every = self._count_positions()  # B|1 S
        self.positions = self.every[:, self.past :]  # B|1 T

    @property
    def real(self) -> Tensor | None:
        """True for each new token that is no padding [B, T]; None without an attention_mask."""
        return None if self.padding is None else self.padding[:, self.past :]

    @property
    def table_positions(self) -> Tensor:
        """The positions to look up in a learned table [B|1, T]. A scheme with a `padding_id` does not count that token
        (RoBERTa)."""
        skipped = self.spec.position.padding_id
        if skipped is None or self.documents is not None:
            return self.positions
        if self.cache is not None:
            return torch.where(self.ids != skipped, self.positions, -1)
        counted = self.ids != skipped
        if self.padding is not None:
            counted = counted & self.padding
        return torch.where(counted, counted.long().cumsum(1) - 1, -1)

    def _check(self, spec: Any) -> None:
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
            found = f"{self.padding.shape[1]} tokens, the sequence has {total}"
            raise ConfigError(f"attention_mask: has {found} (tokens in the cache and new tokens together)")
        whole = self.prefix is None or self.cache is None or self.past or torch.compiler.is_compiling()
        if not whole and int(self.prefix.max()) > self.new:  # type: ignore[union-attr]
            found = f"reaches token {int(self.prefix.max())}, {self.new} tokens came"  # type: ignore[union-attr]
            raise ConfigError(
                f"prefix: {found} (a prefix sees itself, so with a cache it comes whole in the first pass)"
            )
        if spec.reads_memory and self.memory is None:
            raise ConfigError("memory: the layers read an encoder's output, and none was given (pass it)")

    def _count_positions(self) -> Tensor:
        """The position of every token [B|1, S]: its place in its row or document, padding not counted."""
        if self.documents is not None:
            return self.index - torch.where(run_starts(self.documents), self.index, 0).cummax(1).values
        if self.padding is not None:
            return (self.padding.long().cumsum(1) - 1).clamp(min=0)
        return self.index[None]

    def _count_lengths(self) -> Tensor:
        """How many tokens each token's row or document has [B|1, 1|S], padding not counted.

        Documents [0, 0, 0, 1] have the lengths [3, 3, 3, 1]: from each token, the distance to the next document's start
        and its own position.
        """
        if self.documents is not None:
            total = self.index.shape[0]
            later = torch.where(run_starts(self.documents), self.index, total)[:, 1:]  # the start of a later document
            following = F.pad(later, (0, 1), value=total).flip(1).cummin(1).values.flip(1)
            return following - self.index + self.every
        if self.padding is not None:
            return self.padding.sum(1, keepdim=True)
        return self.index[-1:, None] + 1

    def step(self, kind: str, kernel: str, x: Tensor, m: Any) -> Step:
        """Make the Step of the layers of this kind; `m` are the model's modules, x [B, T, D] the layers' input."""
        block = self.spec.blocks[kind]
        attention, dtype = block.attention, _compute_dtype(x)
        layout = None if self.cache is None else self.cache.lay_out(kind, self.new)
        index = (self.index[self.past :], self.index if layout is None else layout.index)
        step = Step(
            mask=self._mask(attention, layout),
            kernel=kernel,
            positions=self.positions,
            index=index,
            real=self.real,
            documents=self.documents,
            first=self.past == 0,
            layout=layout,
            extra=dict(self.extra),
        )
        own = m.position if self.spec.has_position else None
        position = attention.positioning
        if position is not None:
            lengths = self._count_lengths() if position.reads_length else None
            step.tables = position.tables(self.positions, attention.rotary_width, dtype, lengths)
            if not position.per_layer:
                step.bias = position.bias(own, attention.score_heads, *index, self.causal)
        attention.prepare(own, step)
        self._draw(step, attention, dtype)
        if block.cross is not None:
            step.cross = self._cross(block.cross, kernel, dtype)
        return step

    def _draw(self, step: Step, attention: Any, dtype: torch.dtype) -> None:
        """Draw the mask as this kind's kernel reads it, once for all of its layers."""
        name = str(dtype).removeprefix("torch.")
        features = {**step.mask.features, "needs_grad": torch.is_grad_enabled()}
        later = self.past and step.memory is None
        ask = attention.decode_ask(name, self.new, **features) if later else attention.ask(name, **features)
        if ask is not None:
            kernels.prepare(step.mask, ask, self.device, dtype, bias=step.bias, kernel=step.kernel)

    def _cross(self, attention: Any, kernel: str, dtype: torch.dtype) -> Step:
        """Make the step of cross-attention: every query sees the whole memory but its padding."""
        assert self.memory is not None
        mask = Mask(self.new, self.memory.shape[1], causal=False, padding=self.memory_mask)
        step = Step(mask=mask, kernel=kernel, memory=self.memory)
        self._draw(step, attention, dtype)
        return step

    def _mask(self, attention: Any, layout: Any) -> Mask:
        window, keys = attention.visible_window, self.index if layout is None else layout.index
        alone = layout is not None and self.new == 1 and self.padding is None  # a ring cache holds just what it sees
        whole = layout is None or keys.shape[0] == self.past + self.new
        biased = attention.positioning is not None and attention.positioning.biases
        in_order = whole or (alone and not biased)  # a bias depends on the index, even where all is seen
        return Mask(
            self.new,
            keys.shape[0],
            causal=self.causal,
            window=None if alone else window,
            padding=self.padding if layout is None or self.padding is None else self.padding[:, keys],
            documents=self._apart(attention.visible_chunk, keys),
            prefix=None if self.past else self.prefix,
            query_index=None if in_order else self.index[self.past :],
            key_index=None if in_order else keys,
        )

    def _apart(self, chunk: int | None, keys: Tensor) -> tuple[Tensor, Tensor] | None:
        """Number the documents, or the chunks in them, of queries [B, T] and keys [B, S]; None where there are none."""
        if chunk is None:
            return None if self.documents is None else (self.documents, self.documents)
        chunks = self.every // chunk  # B|1 S
        if self.documents is not None:
            chunks = chunks + self.documents * (self.index.shape[0] // chunk + 1)
        return chunks[:, self.past :], chunks[:, keys]


def _compute_dtype(x: Tensor) -> Any:
    """The dtype in which attention computes: autocast's where it is on."""
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)  # torch knows no autocast for meta
    return torch.get_autocast_dtype(kind) if autocast else x.dtype
