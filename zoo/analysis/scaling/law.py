"""The parametric law L(N, D) = E + A/N^α + B/D^β (Hoffmann et al., 2022, approach 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoo.errors import ConfigError

FLOPS = 6
"""Training FLOPs per token and parameter (Kaplan et al., 2020)."""


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal parameters and tokens for a number of FLOPs, and the loss that they reach."""

    params: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A/N^α + B/D^β in nats a token, for N parameters and D tokens. E is the irreducible loss."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def exponent(self) -> float:
        """Give the exponent a of the best N ∝ C^a for C FLOPs, 0.5 if α = β = 0. The exponent of tokens is 1 − a."""
        return self.beta / (self.alpha + self.beta) if self.alpha + self.beta else 0.5

    def loss(self, params: float, tokens: float) -> float:
        """Give the loss of a model with `params` parameters after `tokens` tokens."""
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def tokens_for(self, loss: float, params: float) -> float:
        """Give the tokens after which `params` parameters reach this loss. Raises ConfigError if they never do."""
        left = loss - self.E - self.A * params**-self.alpha
        if left <= 0:
            least = self.loss(params, math.inf)
            raise ConfigError(f"loss: is {loss:g}, and {params:g} parameters stay above {least:.4f} (more parameters)")
        if not self.beta:
            raise ConfigError(f"loss: is {loss:g}, and tokens change no loss by this law (a law with beta above 0)")
        return (self.B / left) ** (1 / self.beta)

    def optimum(self, flops: float) -> Optimum:
        """Give the parameters and tokens of the lowest loss for C = 6·N·D FLOPs. Raises ConfigError if the law has no
        optimum, because a coefficient or exponent is 0."""
        if not (self.alpha and self.beta and self.A and self.B):
            raise ConfigError("flops: have no best share by a law in which one of A, B, alpha and beta is 0 (params)")
        product = flops / FLOPS
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        params = scale * product**self.exponent
        return Optimum(params, product / params, self.loss(params, product / params))

    def flops_for(self, loss: float) -> float:
        """Give the FLOPs with which the compute-optimal model reaches this loss, the inverse of `optimum`. Infinite for
        a loss of E or below. Raises ConfigError if the law has no optimum."""
        reducible = self.optimum(FLOPS).loss - self.E  # for N·D = 1; it falls as (N·D)^(−αβ/(α + β))
        if loss <= self.E:
            return math.inf
        return FLOPS * (reducible / (loss - self.E)) ** ((self.alpha + self.beta) / (self.alpha * self.beta))
