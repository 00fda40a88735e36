"""From token ids to vectors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, PositiveInt

from zoo.norm import Norm
from zoo.spec import Embedding as Table
from zoo.spec import Spec


class Embedding(Spec, axis="embedding", default="tokens"):
    """What the residual stream starts from."""

    vocab_size: PositiveInt


ROOT = "sqrt_d_model"


def _number_or_root(scale: Any) -> Any:
    if isinstance(scale, str) and scale != ROOT:
        raise ValueError(f"must be a number or {ROOT}, found {scale!r}")
    return scale


class Tokens(Embedding, kind="tokens"):
    """A vector for each token; `scale` multiplies it (√d_model in the first transformer and in Gemma), `norm`
    follows (BLOOM)."""

    scale: Annotated[float | str | None, AfterValidator(_number_or_root)] = None
    norm: Norm | None = None

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"tokens": Table(self.vocab_size, d_model), **({"norm": self.norm} if self.norm else {})}

    def forward(self, m: Any, x: Any) -> Any:  # type: ignore[override]
        x = m.tokens(x)
        if self.scale is not None:
            scale = x.shape[-1] ** 0.5 if self.scale == ROOT else self.scale
            x = x * x.new_tensor(scale)  # rounded to the weight's dtype, as the published models were trained
        return m.norm(x) if self.norm else x
