# B batch, T queries, S keys, H heads, C head width, D model width
"""Base of the position schemes. A scheme acts at the embedding (learned, sinusoidal), by rotating queries and keys
(RoPE), by a bias on their scores (ALiBi, T5), or by vectors that one kind of attention reads (relative)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from zoo.lazy import Tensor
from zoo.spec import Spec

if TYPE_CHECKING:
    import torch

    from zoo.kernels.score_bias import Bias
    from zoo.model.step import Weights


class Position(Spec, axis="position"):
    """A position scheme. Every hook does nothing by default; a kind overrides those that it needs."""

    bias_kind: ClassVar[str] = "none"
    """The value of `AttentionQuery.bias` for this scheme's bias."""
    reads_length: ClassVar[bool] = False
    """Whether `tables` depends on how many tokens a row or document has."""
    per_layer: ClassVar[bool] = False
    """Whether every layer has its own weights for this scheme; otherwise the model has one set for all layers."""
    reads_input: ClassVar[bool] = False
    """Whether the scheme's bias depends on the input of the queries, which attention then passes to `read`."""
    limit: ClassVar[int | None] = None
    """Length of the longest sequence that has positions, in tokens; None for no limit."""
    stable_until: ClassVar[int | None] = None
    """The row length beyond which the rotation of earlier tokens changes, so that no cache of them is valid; None if
    the rotation never changes."""
    bias_heads: ClassVar[int | None] = None
    """Number of heads that a learned bias has values for; None if it serves any number."""
    skip_id = cast("int | None", None)  # without an annotation: a kind's field of this name keeps its place
    """The token id of padding, if positions recognise padding by its id and do not count it (RoBERTa)."""

    @property
    def biases(self) -> bool:
        """Whether the scheme has a bias on scores."""
        return self.bias_kind != "none"

    @property
    def embeds(self) -> bool:
        """Whether `embed` adds anything."""
        return type(self).embed is not Position.embed

    @property
    def rotates(self) -> bool:
        """Whether `rotate` rotates anything."""
        return type(self).rotate is not Position.rotate

    @property
    def inside(self) -> bool:
        """Whether the scheme acts inside attention rather than at the embedding."""
        return self.biases

    def embed(self, m: Weights, x: Tensor, positions: Tensor) -> Tensor:
        """Add the positions [B, T] to x [B, T, D]."""
        return x

    def tables(
        self,
        positions: Tensor,
        head_dim: int,
        dtype: torch.dtype,
        length: Tensor | None = None,
        m: Weights | None = None,
    ) -> Any:
        """Make the tables that `rotate` reads for positions [B, T], once a forward pass. `length` is the number of
        tokens in each row [B, 1] or, for packed rows, in each token's document [B, T]. `m` are the scheme's weights."""
        return None

    def rotate(self, x: Tensor, tables: Any) -> Tensor:
        """Rotate x [B, T, H, C] by the result of the method `tables`."""
        return x

    def bias(
        self, m: Weights, n_heads: int, queries: Tensor, keys: Tensor, causal: bool, read: Tensor | None = None
    ) -> Bias | None:
        """Make the `zoo.kernels.score_bias.Bias` on the scores, or None. `queries` [T] or [B, T] and `keys` [S] or [B,
        S] are places in the row. `m` are the scheme's weights; the argument `read` is the result of the method `read`
        for these queries."""
        return None

    def read(self, m: Weights, x: Tensor) -> Tensor:
        """Project the input x [B, T, D] of the layer's queries to the input of the bias: [B, T, H, …]."""
        raise NotImplementedError

    def check(self, head_dim: int) -> None:
        """Raises ValueError if heads `head_dim` wide cannot be rotated, or if only certain attentions can read this
        scheme."""


class WithAbsolute(Position):
    """Base of the schemes inside attention that may have a second scheme at the embedding."""

    absolute: Position | None = None
    """Additional scheme at the embedding (Song et al., 2020, MPNet)."""

    @property
    def embeds(self) -> bool:
        return self.absolute is not None

    @property
    def limit(self) -> int | None:  # type: ignore[override]
        return None if self.absolute is None else self.absolute.limit

    @property
    def skip_id(self) -> int | None:  # type: ignore[override]
        return None if self.absolute is None else self.absolute.skip_id

    def embed(self, m: Weights, x: Tensor, positions: Tensor) -> Tensor:
        return x if self.absolute is None else self.absolute.embed(m.absolute, x, positions)
