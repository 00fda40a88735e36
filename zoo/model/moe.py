# B batch, T tokens, D model width or latent, N = B·T tokens, E experts, M rows: a token once for each of its experts
"""Mixture of experts in place of one feed-forward."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from zoo.distributed.experts import visit_experts
from zoo.errors import ConfigError
from zoo.lazy import Tensor, torch
from zoo.model.ffn import FFN, multiply
from zoo.model.norm import WholeNorm
from zoo.model.router import Router, Routes
from zoo.spec import EXPERTS, SHARED_EXPERT, SHARED_GATE, Experts, Group, Linear, Node, Sized
from zoo.spec.sharding import divisors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.model.step import Step, Weights

NORMS = ("routed_norm", "routed_out_norm", "shared_norm", "shared_out_norm")
OWN = ("router", "experts", "shared", "shared_gate", "latent_in", "latent_out", "latent_norm", "expert_norm", *NORMS)
"""Names of a mixture's parts that do not belong to its experts."""


class SharedExpert(Node, name="shared", word="expert"):
    """A feed-forward that all tokens pass, in addition to the routed experts (Dai et al., 2024, DeepSeekMoE)."""

    expert: FFN
    """Feed-forward of the shared expert."""
    gate: bool = False
    """Whether the shared expert's output is multiplied by σ(x·w), one number for each token (Qwen1.5-MoE, 2024)."""
    branch_norm: WholeNorm | None = None
    """Norm before and after the routed experts, and before and after the shared one, each with its own weights. The
    router reads the input without a norm (Gemma 4, 2026)."""


class ExpertLatent(Node, name="latent", word="width"):
    """A narrower vector that routed experts read and write. One projection before all experts makes it, and one after
    all experts maps back to d_model (NVIDIA, 2025, Nemotron 3). The router and the shared expert read d_model."""

    width: PositiveInt
    """Channels of the latent."""
    norm: WholeNorm | None = None
    """Norm of the latent, before the experts (Meta, 2026, Muse Spark)."""


class MoE(FFN, kind="moe"):
    """Pass each token through the few experts that its router chooses (Shazeer et al., 2017). No token is dropped (Gale
    et al., 2022), unless the router drops some.

    A router with `n_shared` weighs that many shared experts, each a copy of `shared` (Inkling, 2026).

    If some experts compute nothing (`zero_experts`, `null_experts`), active parameters and FLOPs are means, as if all
    experts were chosen equally often.
    """

    moved: ClassVar[dict[str, str]] = {
        "shared_gate": "shared: {expert: …, gate: true}",
        "branch_norm": "shared: {expert: …, branch_norm: …}",
        "latent_norm": "latent: {width: …, norm: …}",
    }

    expert: FFN
    """Feed-forward that each expert copies. Its parameters other than matrices, such as an activation's, are common to
    all experts."""
    router: Router
    """Router that chooses the experts of each token."""
    shared: SharedExpert | None = None
    """Feed-forward that all tokens pass (Dai et al., 2024, DeepSeekMoE)."""
    scale_input: bool = False
    """Whether a router's weight multiplies an expert's input (Llama 4, 2025) rather than its output."""
    latent: ExpertLatent | None = None
    """Narrower vector that routed experts read and write (NVIDIA, 2025, Nemotron 3)."""
    expert_norm: WholeNorm | None = None
    """Norm of each expert's output, with one weight for all experts (Meta, 2026, Muse Spark)."""
    out_scale: float = 1.0
    """Constant factor of the sum: 0.5 gives the mean of routed and shared outputs (Cohere, 2026, Command A+)."""
    zero_experts: NonNegativeInt = 0
    """Number of identity experts, which return their input (Jin et al., 2024, MoE++; LongCat-Flash, 2025). The router
    counts them after the computing ones."""
    null_experts: NonNegativeInt = 0
    """Number of experts that add nothing (Zeng et al., 2024, AdaMoE; Zyphra, 2026, ZAYA1), the router's last ones."""

    def __post_init__(self) -> None:
        shared = self.shared and self.shared.expert
        if isinstance(self.expert, MoE) or isinstance(shared, MoE):
            raise ValueError("an expert cannot itself be a mixture of experts (mlp and gated can)")
        for name, each in (("expert", self.expert), ("shared", shared)):
            if getattr(each, "inner_norm", None) is not None:
                raise ValueError(f"{name}.inner_norm: an expert has no norm inside (leave it out)")
            stacked = name == "expert" or self.router.shared_scored
            if stacked and getattr(each, "global_scale", False):
                raise ValueError(f"{name}.global_scale: is of one feed-forward, and experts are several (leave it out)")
            if each is not None and not each.stacks:
                raise ValueError(f"{name}: products in groups, of '{each.kind}', are not stacked (mlp and gated are)")
            if each is not None and each.state():
                raise ValueError(
                    f"{name}: an expert sees no other token, and '{each.kind}' does (mlp and gated do not)"
                )
        idle = [name for name in ("zero_experts", "null_experts") if getattr(self, name)]
        if self.n_computing <= 0:
            stated = " and ".join(f"{name}={getattr(self, name)}" for name in idle)
            found = f"{stated} leave{'s' * (len(idle) == 1)} none of n_experts={self.router.n_experts} to compute"
            raise ValueError(f"{found} (n_experts counts them all)")
        self._check_shared()
        if self.scale_input and self.expert_norm is not None:
            raise ValueError("scale_input: what a weight multiplies would be undone by expert_norm (one of them)")
        if self.scale_input and self.router.drops:
            found = f"the {self.router.kind} router drops tokens, which must add nothing"
            raise ValueError(f"scale_input: {found} (a router without capacity, or scale_input: false)")

    def _check_shared(self) -> None:
        if not self.router.shared_scored:
            return
        if self.shared is None or self.shared.gate:
            found = "there is none" if self.shared is None else "they have a gate besides"
            would = "give `shared`" if self.shared is None else "shared.gate: false"
            raise ValueError(f"router.n_shared weighs shared experts, and {found} ({would}, or n_shared: 0)")
        if not all(isinstance(part, Linear) for part in self.shared.expert.parts(1).values()):
            raise ValueError("shared: has weights besides its products, and experts that a router weighs have none")

    @property
    def n_computing(self) -> int:
        """Number of experts that compute, and so have weights."""
        return self.router.n_experts - self.zero_experts - self.null_experts

    def state(self) -> dict[str, tuple[int, ...]]:
        return self.router.state()

    def parts(self, d_model: int) -> dict[str, Any]:
        router, own = self.router, self.expert.parts(self._width(d_model))
        computing = (self.n_computing, router.n_experts) if self.n_computing < router.n_experts else (1, 1)
        stacked = {
            name: Experts(of=part, count=self.n_computing, active_count=router.top_k, computing=computing)
            for name, part in own.items()
            if isinstance(part, Linear)
        }
        common = {name: part for name, part in own.items() if name not in stacked}
        parts = {"router": router, "experts": Group(stacked, role=EXPERTS)} | common
        if self.latent:
            parts["latent_in"] = Linear(d_model, self.latent.width)
            parts["latent_out"] = Linear(self.latent.width, d_model, residual=True)
            if self.latent.norm:
                parts["latent_norm"] = Sized(self.latent.norm, self.latent.width)
        if self.expert_norm:
            parts["expert_norm"] = Sized(self.expert_norm, self._width(d_model))
        return parts | (self._list_shared(self.shared, d_model) if self.shared else {})

    def _list_shared(self, shared: SharedExpert, d_model: int) -> dict[str, Any]:
        scored = self.router.shared_scored
        own = (
            self._stack_shared(shared.expert, d_model) if scored else Sized(shared.expert, d_model, role=SHARED_EXPERT)
        )
        norms = {name: Sized(shared.branch_norm, d_model) for name in NORMS} if shared.branch_norm else {}
        gate = {"shared_gate": Linear(d_model, 1, precise=True, role=SHARED_GATE)} if shared.gate else {}
        return {"shared": own, **gate, **norms}

    def _width(self, d_model: int) -> int:
        """Number of channels that a routed expert reads and writes."""
        return self.latent.width if self.latent else d_model

    def _stack_shared(self, shared: FFN, d_model: int) -> Group:
        """Stack the shared experts that the router weighs. Every token passes all of them, and every rank holds all of
        them."""
        count, own = self.router.shared_scored, shared.parts(d_model)
        return Group({name: Experts(part, count, count, spread=False) for name, part in own.items()}, SHARED_EXPERT)

    def shard(self, ranks: int) -> MoE:
        """Return the mixture with one rank's part of each expert, routed or shared. Router and shared gate are on every
        rank. Raises ConfigError if there are several ranks and a `branch_norm` or `expert_norm`."""
        norms = {"shared.branch_norm": self.shared and self.shared.branch_norm, "expert_norm": self.expert_norm}
        for name, norm in norms.items():
            if norm is not None and ranks > 1:
                raise ConfigError(f"tp: {name} normalises a sum that ranks divide, amid the mixture (tp=1)")
        shared = self.shared and replace(self.shared, expert=self.shared.expert.shard(ranks))
        return replace(self, expert=self.expert.shard(ranks), shared=shared)

    def forward(self, m: Any, x: Tensor, step: Step) -> Tensor:
        routes: Routes = m.router(x, step)
        if m.training:
            step.ends.append(routes.ends if step.real is None else routes.end_real(step.real))
        apart = self.shared is not None and self.shared.branch_norm is not None
        read = m.routed_norm(x) if apart else x
        tokens = (m.latent_in(read) if self.latent else read).flatten(0, 1)  # N D
        tokens = m.latent_norm(tokens) if self.latent and self.latent.norm else tokens
        rows = tokens[routes.tokens]  # M D
        weights = routes.weights[:, None]
        inner = step.for_rows(routes.tokens, routes.experts)
        rows = rows * weights.to(rows.dtype) if self.scale_input else rows
        y = self.compute(m, rows, routes, inner)
        y = m.expert_norm(y) if self.expert_norm else y
        if self.zero_experts and m.seam.rank == 0:  # on one rank, because the ranks' results are summed
            y = torch.where((routes.experts >= self.n_computing)[:, None], rows.to(y.dtype), y)
        if self.null_experts:
            y = y.masked_fill((routes.experts >= self.router.n_experts - self.null_experts)[:, None], 0.0)
        y = y if self.scale_input else y * weights.to(y.dtype)
        y = routes.gather(y, tokens.shape[0]).unflatten(0, x.shape[:2])  # B T D
        y = m.latent_out(y) if self.latent else y
        if self.shared:
            y = m.routed_out_norm(y) if apart else y
            read = m.shared_norm(x) if apart else x
            shared = m.shared(read, step) if routes.shared is None else self._share(m, read, routes.shared, step)
            shared = m.shared_out_norm(shared) if apart else shared
            y = y + (m.shared_gate(x).float().sigmoid().to(shared.dtype) * shared if self.shared.gate else shared)
        return multiply(y, self.out_scale)

    def _share(self, m: Any, x: Tensor, weights: Tensor, step: Step) -> Tensor:
        """Compute the sum of the shared experts' outputs for x [B, T, D], weighted by weights [N, S]."""
        assert self.shared is not None
        tokens, count = x.flatten(0, 1), weights.shape[1]  # N D
        every, number = torch.arange(count, device=x.device), tokens.shape[0]
        rows = torch.arange(number, device=x.device).expand(count, -1).flatten()  # S·N
        experts = every[:, None].expand(-1, number).flatten()
        stacks: Any = _Routed(m, (number * (every + 1)).to(torch.int32), experts, m.shared)
        inner = step.for_rows(rows, self.router.n_experts + experts)
        y = self.shared.expert.forward(stacks, tokens.expand(count, -1, -1).flatten(0, 1), inner)  # S·N D
        y = y.unflatten(0, (count, number))
        return (y * weights.transpose(0, 1)[..., None].to(y.dtype)).sum(0).unflatten(0, x.shape[:2])

    def compute(self, m: Weights, rows: Tensor, routes: Routes, step: Step) -> Tensor:
        """Compute the experts' outputs for their rows [M, D]."""
        experts: Any = _Routed(m, *self._list_computed(routes))
        return self.expert.forward(experts, rows, step)

    def _list_computed(self, routes: Routes) -> tuple[Tensor, Tensor]:
        """List where each computing expert's rows end, and the expert of each row. Rows after the last end are listed
        with any expert: their results are not used."""
        if self.n_computing == self.router.n_experts:
            return routes.ends, routes.experts
        return routes.ends[: self.n_computing], routes.experts.clamp(max=self.n_computing - 1)

    def spread(self, ranks: int) -> MoE:
        """Return the part of one of `ranks` ranks of expert parallelism: some experts, and all other weights. Raises
        ConfigError if `ranks` does not divide the number of experts that compute."""
        if self.n_computing % ranks:
            would = divisors(self.n_computing)
            raise ConfigError(f"ep: {ranks} does not divide n_experts={self.n_computing} ({would} would do)")
        return SpreadMoE(**{field.name: getattr(self, field.name) for field in self.fields()}, ranks=ranks)


class SpreadMoE(MoE):
    """A mixture whose experts are divided over `ranks` ranks. Each rank has consecutive experts."""

    ranks: int = 1
    """Number of ranks of expert parallelism."""

    def parts(self, d_model: int) -> dict[str, Any]:
        parts = super().parts(d_model)
        stacked = {name: part.shard(self.ranks) for name, part in parts["experts"].parts.items()}
        return parts | {"experts": replace(parts["experts"], parts=stacked)}

    def compute(self, m: Any, rows: Tensor, routes: Routes, step: Step) -> Tensor:
        visit = visit_experts(rows, self._list_computed(routes)[0], m.expert_group)
        experts: Any = _Routed(m, visit.ends, visit.experts)
        return visit.go_back(self.expert.forward(experts, visit.rows, step.bring(visit)))


class _Routed:
    """The weights passed to an expert's `forward`, under the names of its parts. A part that each expert has separately
    is a function: it multiplies rows, sorted by expert, by all experts' stacked weights. Any other part is the module
    that all experts share."""

    def __init__(self, m: Any, ends: Tensor, expert_of_row: Tensor, stacks: Mapping[str, Any] | None = None) -> None:
        for name, module in m.named_children():
            if name not in OWN:
                setattr(self, name, module)
        for name, linear in (m.experts if stacks is None else stacks).items():
            setattr(self, name, partial(linear, offsets=ends, expert_of_row=expert_of_row))
