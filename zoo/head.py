"""From hidden states to what is predicted."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import torch
from zoo.spec import Linear, Spec, Tied


class Head(Spec, axis="head", default="lm"):
    """What is read off the last hidden states."""

    vocab_size: PositiveInt


class LMHead(Head, kind="lm"):
    """A logit for each token of the vocabulary; `tied` uses the token embedding's weight (Press and Wolf, 2016).

    Logits are multiplied by `scale`, then bounded by `softcap` c to c·tanh(l/c) (Gemma 2).
    """

    tied: bool = False
    bias: bool = False
    scale: PositiveFloat = 1.0
    softcap: PositiveFloat | None = None

    def parts(self, d_model: int) -> dict[str, Any]:
        linear = Linear(d_model, self.vocab_size, self.bias)
        return {"out": Tied("embedding.tokens", linear) if self.tied else linear}

    def forward(self, m: Any, x: Any) -> Any:  # type: ignore[override]
        logits = m.out(x)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
