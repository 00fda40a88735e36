"""Activations: each a choice of its own, plain or as the gate of a gated feed-forward."""

from __future__ import annotations

from typing import Any

from zoo.lazy import F
from zoo.spec import Spec


class Activation(Spec, axis="activation"):
    """An elementwise function."""

    def apply(self, x: Any) -> Any:
        raise NotImplementedError


class ReLU(Activation, kind="relu"):
    """max(0, x)."""

    def apply(self, x: Any) -> Any:
        return F.relu(x)


class SquaredReLU(Activation, kind="relu2"):
    """max(0, x)² (So et al., 2021, Primer)."""

    def apply(self, x: Any) -> Any:
        return F.relu(x).square()


class GELU(Activation, kind="gelu"):
    """x·Φ(x), exact (Hendrycks and Gimpel, 2016)."""

    def apply(self, x: Any) -> Any:
        return F.gelu(x)


class GELUTanh(Activation, kind="gelu_tanh"):
    """GELU by its tanh approximation, as GPT-2 and BLOOM use it; up to 3e-3 from the exact one in a model's logits."""

    def apply(self, x: Any) -> Any:
        return F.gelu(x, approximate="tanh")


class SiLU(Activation, kind="silu"):
    """x·σ(x) (Elfwing et al., 2017; Ramachandran et al., 2017, Swish). The gate of SwiGLU."""

    def apply(self, x: Any) -> Any:
        return F.silu(x)


class Sigmoid(Activation, kind="sigmoid"):
    """σ(x). The gate of the first GLU (Dauphin et al., 2017)."""

    def apply(self, x: Any) -> Any:
        return F.sigmoid(x)


class Identity(Activation, kind="identity"):
    """x. As a gate it is the bilinear GLU (Shazeer, 2020)."""

    def apply(self, x: Any) -> Any:
        return x
