# B batch, T queries, S keys, H heads, C head width, D model width
"""Base of the position schemes. They act at the embedding (learned, sinusoidal), by rotating queries and keys (RoPE),
or by a bias on their scores (ALiBi, T5, relative)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.spec import Spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zoo.model.step import Weights


class Position(Spec, axis="position"):
    """Every hook does nothing by default; a choice fills in the ones it needs."""

    bias_kind: ClassVar[str] = "none"
    """The value of `Ask.bias` for this scheme's bias."""
    reads_length: ClassVar[bool] = False
    """Whether `tables` depends on how many tokens a row or document has."""
    per_layer: ClassVar[bool] = False
    """Whether every layer has weights of its own for this scheme, rather than the model one set for all."""
    reads_input: ClassVar[bool] = False
    """Whether its bias depends on what the queries are made of, so that attention must give it that."""

    @property
    def limit(self) -> int | None:
        """The longest sequence there are positions for, or None."""
        return None

    @property
    def stable_until(self) -> int | None:
        """The row length beyond which earlier tokens turn again, so that nothing of them can be kept; None for
        never."""
        return None

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
        """Whether `rotate` turns anything."""
        return type(self).rotate is not Position.rotate

    @property
    def bias_heads(self) -> int | None:
        """Heads that a learned bias has numbers for; None where it serves any number."""
        return None

    @property
    def inside(self) -> bool:
        """Whether it acts inside attention rather than at the embedding."""
        return self.biases

    @property
    def padding_id(self) -> int | None:
        """The token id that positions do not count, where it is ids that say what is padding (RoBERTa)."""
        return None

    def embed(self, m: Weights, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, T, D] with the positions [B, T] added."""
        return x

    def tables(
        self,
        positions: Tensor,
        head_dim: int,
        dtype: torch.dtype,
        length: Tensor | None = None,
        m: Weights | None = None,
    ) -> Any:
        """The tables that `rotate` takes for positions [B, T], computed once a forward pass. `length` [B, 1]: tokens in
        the row. `m` holds the scheme's weights."""
        return None

    def rotate(self, x: Tensor, tables: Any) -> Tensor:
        """x [B, T, H, C] rotated."""
        return x

    def bias(self, m: Any, n_heads: int, queries: Tensor, keys: Tensor, causal: bool, read: Any = None) -> Any:
        """The `zoo.kernels.bias.Bias` added to the scores of queries and keys at these indices in the row [T], [S], or
        None. `m` holds the scheme's weights, `read` what it made of these queries' input."""
        return None

    def read(self, m: Weights, x: Tensor) -> Tensor:
        """Project the input x [B, T, D] of the layer's queries to what the bias needs: [B, T, H, …]."""
        raise NotImplementedError

    def check(self, head_dim: int) -> None:
        """Raises ValueError when heads of this width cannot be rotated."""


class WithAbsolute(Position):
    """Base of the schemes inside attention that may have another one at the embedding besides."""

    absolute: Position | None = None
    """Scheme at the embedding besides (Song et al., 2020, MPNet)."""

    @property
    def embeds(self) -> bool:
        return self.absolute is not None

    @property
    def limit(self) -> int | None:
        return None if self.absolute is None else self.absolute.limit

    @property
    def padding_id(self) -> int | None:
        return None if self.absolute is None else self.absolute.padding_id

    def embed(self, m: Weights, x: Tensor, positions: Tensor) -> Tensor:
        return x if self.absolute is None else self.absolute.embed(m.absolute, x, positions)
