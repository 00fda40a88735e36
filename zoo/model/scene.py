# B batch, T queries, S keys, D model width
"""One forward pass through a stack of layers: positions and masks, and the Step they make for each kind of layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo import kernels
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.lazy import torch
from zoo.model.step import Step

if TYPE_CHECKING:
    from torch import Tensor


class Scene:
    """What the layers of `spec` are told about these tokens. Raises ConfigError for what cannot be laid out."""

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
        self.columns = torch.arange(self.past + self.new, device=ids.device)
        self._check(spec)
        self.every, self.lengths = self._positions()  # B|1 S
        self.positions = self.every[:, self.past :]  # B|1 T

    @property
    def real(self) -> Tensor | None:
        """Which of the new tokens are no padding [B, T]; None when nothing says."""
        return None if self.padding is None else self.padding[:, self.past :]

    @property
    def table_positions(self) -> Tensor:
        """Positions as a learned table counts them [B|1, T]: the tokens that are no padding id, if it says which
        one."""
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
            found = f"{self.padding.shape[1]} columns, the sequence has {total}"
            raise ConfigError(f"attention_mask: has {found} (what the cache holds and the new tokens)")
        whole = self.prefix is None or self.cache is None or self.past or torch.compiler.is_compiling()
        if not whole and int(self.prefix.max()) > self.new:  # type: ignore[union-attr]
            found = f"reaches column {int(self.prefix.max())}, {self.new} tokens came"  # type: ignore[union-attr]
            raise ConfigError(
                f"prefix: {found} (a prefix sees itself, so with a cache it comes whole in the first pass)"
            )
        if spec.reads_memory and self.memory is None:
            raise ConfigError("memory: the layers read an encoder's output, and none was given (pass it)")

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

    def step(self, kind: str, kernel: str, x: Tensor, m: Any) -> Step:
        """The Step of the layers of this kind; `m` are the model's modules, x [B, T, D] what goes in."""
        block = self.spec.blocks[kind]
        attention, dtype = block.attention, _compute_dtype(x)
        plan = None if self.cache is None else self.cache.plan(kind, self.new)
        columns = (self.columns[self.past :], self.columns if plan is None else plan.columns)
        step = Step(
            mask=self._mask(attention, plan),
            kernel=kernel,
            positions=self.positions,
            columns=columns,
            real=self.real,
            documents=self.documents,
            first=self.past == 0,
            plan=plan,
            extra=dict(self.extra),
        )
        own = m.position if self.spec.has_position else None
        position = attention.positioning
        if position is not None:
            step.tables = position.tables(self.positions, attention.rotary_width, dtype, self.lengths)
            if not position.per_layer:
                step.bias = position.bias(own, attention.score_heads, *columns, self.causal)
        attention.prepare(own, step)
        self._draw(step, attention, dtype)
        if block.cross is not None:
            step.cross = self._cross(block.cross, kernel, dtype)
        return step

    def _draw(self, step: Step, attention: Any, dtype: torch.dtype) -> None:
        """Draws the mask as this kind's kernel reads it, once for all of its layers."""
        name = str(dtype).removeprefix("torch.")
        features = {**step.mask.features, "needs_grad": torch.is_grad_enabled()}
        later = self.past and step.memory is None
        ask = attention.decode_ask(name, self.new, **features) if later else attention.ask(name, **features)
        if ask is not None:
            kernels.prepare(step.mask, ask, self.device, dtype, bias=step.bias, kernel=step.kernel)

    def _cross(self, attention: Any, kernel: str, dtype: torch.dtype) -> Step:
        """The step of cross-attention: every query sees the whole memory, its padding left out."""
        assert self.memory is not None
        mask = Mask(self.new, self.memory.shape[1], causal=False, padding=self.memory_mask)
        step = Step(mask=mask, kernel=kernel, memory=self.memory)
        self._draw(step, attention, dtype)
        return step

    def _mask(self, attention: Any, plan: Any) -> Mask:
        window, keys = attention.visible_window, self.columns if plan is None else plan.columns
        alone = plan is not None and self.new == 1 and self.padding is None  # a ring holds what one new token sees
        whole = plan is None or keys.shape[0] == self.past + self.new
        biased = attention.positioning is not None and attention.positioning.biases
        in_order = whole or (alone and not biased)  # a bias tells columns apart, even where nothing is hidden
        return Mask(
            self.new,
            keys.shape[0],
            causal=self.causal,
            window=None if alone else window,
            padding=self.padding if plan is None or self.padding is None else self.padding[:, keys],
            documents=self._apart(attention.visible_chunk, keys),
            prefix=None if self.past else self.prefix,
            query_columns=None if in_order else self.columns[self.past :],
            key_columns=None if in_order else keys,
        )

    def _apart(self, chunk: int | None, keys: Tensor) -> tuple[Tensor, Tensor] | None:
        """What keeps tokens apart, of queries [B, T] and keys [B, S]: their document, or their chunk in it."""
        if chunk is None:
            return None if self.documents is None else (self.documents, self.documents)
        chunks = self.every // chunk  # B|1 S
        if self.documents is not None:
            chunks = chunks + self.documents * (self.columns.shape[0] // chunk + 1)
        return chunks[:, self.past :], chunks[:, keys]


def _compute_dtype(x: Tensor) -> Any:
    """What attention computes in: autocast's dtype where it is on."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
