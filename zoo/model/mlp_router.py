# B batch, T tokens, D model width, R router width, E experts
"""A router with scores from an MLP, which may also read an average over the routers of earlier layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.activation import GELU, PlainActivation
from zoo.model.channels import Channel, Fault, Shadows
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.model.router import Routes, SoftmaxTopK
from zoo.spec import Linear, Sized, Weight

if TYPE_CHECKING:
    from zoo.model.block.base import Block
    from zoo.model.step import Step, Weights
    from zoo.model.tower import Tower


class DepthAverage(Channel, name="depth_average"):
    """The running average over layers that the nearest earlier router computed, [B, T, R]. It is not cached."""

    staying: ClassVar[str] = "routers read an earlier one's, which another stage may have"
    ordered: ClassVar[bool] = True

    @classmethod
    def trace(cls, at: Shadows) -> Any:
        router: Any = at.tower.blocks[at.kind].ffn.router  # type: ignore[attr-defined]
        return at.make((*at.x.shape[:2], router.d_router), at.x.dtype, "lent", at.x.wants_grad)

    @classmethod
    def find_faults(cls, tower: Tower) -> Iterator[Fault]:
        """Yield a fault for each kind of layer whose router reads an earlier router's average, if there is none or it
        has another width."""
        faults: dict[str, str] = {}
        width = 0
        routers = {name: _find_router(block) for name, block in tower.blocks.items()}
        for index, name in enumerate(tower.pattern if any(routers.values()) else ()):
            router = routers[name]
            if router is None:
                continue
            if router.depth_average and not width:
                found = f"is true, and no layer before layer {index} has a router that makes a depth average"
                faults.setdefault(name, f"{found} (false in the first such layer)")
            elif router.depth_average and width != router.d_router:
                found = f"is true, and the router before layer {index} is {width} wide, its own {router.d_router}"
                faults.setdefault(name, f"{found} (one d_router)")
            width = router.d_router
        yield from ((("blocks", name, "ffn", "router", "depth_average"), text) for name, text in faults.items())


def _find_router(block: Block) -> MLPTopK | None:
    router = getattr(getattr(block, "ffn", None), "router", None)
    return router if isinstance(router, MLPTopK) else None


class MLPTopK(SoftmaxTopK, kind="mlp_topk"):
    """Softmax top-k router with scores from an MLP of two hidden layers on norm(r), where r = x·W_down is `d_router`
    wide (Zyphra, 2026, ZAYA1). `bias` says whether the last projection has a bias; the other projections always have
    one."""

    d_router: PositiveInt
    """Channels of r and of the hidden layers."""
    depth_average: bool = False
    """Whether r is an exponential average over depth: x·W_down + scale ⊙ r', with r' of the nearest earlier router."""
    normalize: bool = False
    """Whether a token's weights are normalised to sum to 1."""
    selection_bias: bool = True
    """Whether a bias is added to the scores for choosing experts, but not for the weights (Wang et al., 2024)."""
    balance_coef: NonNegativeFloat = 0.0001
    """Coefficient of the load-balancing loss, as for the top-k routers."""
    mlp_norm: WholeNorm = RMSNorm()
    """Norm of r."""
    activation: PlainActivation = GELU()
    """Activation of the hidden layers."""

    gives: ClassVar[tuple[str, ...]] = (DepthAverage.name,)

    @property
    def takes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (DepthAverage.name,) if self.depth_average else ()

    def parts(self, d_model: int) -> dict[str, Any]:
        parts, width = super().parts(d_model), self.d_router
        return parts | {
            "down": Linear(d_model, width, bias=True),
            **({"average_scale": Weight((width,), init=1.0)} if self.depth_average else {}),
            "mlp_norm": Sized(self.mlp_norm, width),
            "first": Linear(width, width, bias=True),
            "second": Linear(width, width, bias=True),
            "gate": Linear(width, self.n_experts, self.bias),
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Routes:
        r = m.down(self.input.read(m, x) if self.input else x)  # B T R
        if self.depth_average:
            before = step.read(DepthAverage.name)  # None if a layer is run by itself
            r = r + (torch.zeros_like(r) if before is None else before) * m.average_scale
        return self.route(m, step.give(DepthAverage.name, r), step)

    def score(self, m: Weights, x: Tensor) -> Tensor:
        """Score every expert for each token: x [B, T, R], the tokens' vectors r, to [B, T, E] in float32."""
        hidden = m.mlp_norm(x)
        for product in (m.first, m.second):
            hidden = self.activation.apply(product(hidden))
        return m.gate(hidden).float()
