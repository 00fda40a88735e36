# B batch, T tokens, E experts, K chosen experts a token, V vocabulary
"""Hash routing: a token's id determines its experts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.activation import PlainActivation, SqrtSoftplus
from zoo.model.router import Router, Routes, check_count, make_routes, normalize_scores
from zoo.spec import Buffer

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class HashRouter(Router, kind="hash"):
    """Look up a token's experts by the token's id, in a table that is saved and not trained (Roller et al., 2021, Hash
    Layers; the first layers of DeepSeek-V4, 2026).

    The weights of these experts come from linear scores of the token's vector. The table is initialised with K
    consecutive experts for each id. Neighbouring ids are about equally frequent, so experts get even loads.
    """

    vocab_size: PositiveInt
    """Number of rows of the table, the model's vocabulary."""
    normalize: bool = True
    """Whether a token's weights are normalised to sum to 1."""
    activation: PlainActivation = SqrtSoftplus()
    """Activation that makes weights from scores."""

    def __post_init__(self) -> None:
        check_count(self)

    def parts(self, d_model: int) -> dict[str, Any]:
        fill = partial(fill_consecutive, n_experts=self.n_experts)
        return super().parts(d_model) | {"table": Buffer((self.vocab_size, self.top_k), init=fill, dtype="int64")}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Routes:
        assert step.ids is not None
        chosen = m.table[step.ids]  # B T K
        weights = self.activation.apply(self.score(m, x)).gather(-1, chosen)
        weights = normalize_scores(weights) if self.normalize else weights
        return make_routes(self, chosen, weights * self.scale, None, step)


def fill_consecutive(table: Tensor, n_experts: int) -> None:
    """Fill a table [V, K] with 0, 1, … in rows, beginning again after the last expert."""
    numbers = torch.arange(table.numel(), device=table.device) % n_experts
    table.copy_(numbers.view_as(table))
