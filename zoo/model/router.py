# B batch, T tokens, D model width, E experts, K chosen experts a token, N = B·T tokens, M rows for the experts
"""Routers of a mixture of experts: the experts of each token, and their weights. Scores and weights in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from zoo.kernels.packed import find_run_firsts
from zoo.lazy import F, Tensor, torch
from zoo.model.norm import WholeNorm
from zoo.spec import Buffer, Linear, Node, Sized, Spec, Weight

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


@dataclass
class Routes:
    """Routing of tokens to experts. A row is one token at one expert; its weight multiplies the expert's output for
    that token. Rows are sorted by expert."""

    tokens: Tensor  # M, which of the N tokens a row is
    experts: Tensor  # M, ascending
    ends: Tensor  # E int32, where each expert's rows end
    weights: Tensor  # M float32; 0 for a row that is dropped
    back: Tensor | None = None  # N K, the rows of each token; None if tokens differ in their number of rows
    shared: Tensor | None = None  # N S float32, the weights of shared experts, if the router scores these too

    def end_real(self, real: Tensor) -> Tensor:
        """Compute where each expert's rows would end without padding: [E]. `real` [B, T] is False for padding."""
        rows = real.flatten()[self.tokens].to(self.ends.dtype)
        return torch.zeros_like(self.ends).index_add(0, self.experts, rows).cumsum(0)

    def gather(self, y: Tensor, n_tokens: int) -> Tensor:
        """Sum the experts' outputs y [M, D] of each token: [N, D]."""
        if self.back is not None:
            return y[self.back].sum(1)  # no scatter: the same sum on every run
        return y.new_zeros(n_tokens, y.shape[-1]).index_add(0, self.tokens, y)


class RouterInput(Node, name="input"):
    """Norm and factor of a token's vector, before the router scores experts by it (Gemma 4, 2026)."""

    norm: WholeNorm | None = None
    """Norm of the vector."""
    scale: PositiveFloat = 1.0
    """Constant factor of the vector, after its norm."""

    def read(self, m: Weights, x: Tensor) -> Tensor:
        """Normalise and scale x [B, T, D]."""
        x = m.norm(x) if self.norm else x
        return x if self.scale == 1.0 else x * self.scale


class ExpertGroups(Node, name="groups"):
    """Equal groups of experts. A token may choose experts only of the best groups, so that its experts are on few
    machines (DeepSeek-V2, 2024)."""

    count: PositiveInt = 1
    """Number of groups."""
    open: PositiveInt = 1
    """Number of groups that are open to a token."""
    judged_by: PositiveInt | None = None
    """Number of a group's best scores that are summed to rank the group. Unless given, 1 for softmax and 2 for sigmoid
    scores."""
    closed_rank: Literal["last", "zero"] = "last"
    """Rank of the experts in closed groups: last, or as with a score of 0, ahead of open experts whose score a bias
    makes negative (SK Telecom, 2026, A.X K2)."""

    def __post_init__(self) -> None:
        if self.open > self.count:
            raise ValueError(f"open={self.open} is more than count={self.count}")
        for name, usual in (("judged_by", None), ("closed_rank", "last")):
            if self.open == self.count and getattr(self, name) != usual:
                found = f"{name}={getattr(self, name)} is of closed groups, and all {self.count} are open"
                raise ValueError(f"{found} (leave it out, or fewer open)")

    def rank(self, rank: Tensor, judged_by: int) -> Tensor:
        """Return the ranks of experts [B, T, E], with −∞ or 0 for the experts of closed groups. The argument
        `judged_by` is used if the field with this name is not given."""
        if self.open == self.count:
            return rank
        groups = rank.unflatten(-1, (self.count, -1))
        worth = groups.topk(self.judged_by or judged_by, -1).values.sum(-1)
        best = worth.topk(self.open, -1).indices
        open_ = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, best, True)
        closed = -math.inf if self.closed_rank == "last" else 0.0
        return groups.masked_fill(~open_[..., None], closed).flatten(-2)


class Router(Spec, axis="router"):
    """Choose experts for each token of x [B, T, D] by a linear score. An expert's output is multiplied by the router's
    weight for it."""

    moved: ClassVar[dict[str, str]] = {
        "input_norm": "input: {norm: rmsnorm}",
        "input_scale": "input: {scale: 0.5}",
    }
    shared_scored: ClassVar[int] = 0
    """Number of shared experts that the router weighs in addition to the chosen experts."""
    drops: ClassVar[bool] = False
    """Whether a token may get fewer than `top_k` experts: by a capacity, or if experts choose their tokens."""
    draws: ClassVar[int] = 0
    """Number of random numbers that training draws for each token."""

    n_experts: PositiveInt
    """Number of experts to choose among."""
    top_k: PositiveInt
    """Number of experts of each token."""
    bias: bool = False
    """Whether the projection to the scores has a bias."""
    scale: PositiveFloat = 1.0
    """Constant factor of the experts' weights, applied last."""
    input: RouterInput | None = None
    """Norm and factor of the vector that is scored."""

    def parts(self, d_model: int) -> dict[str, Any]:
        norm = {"norm": Sized(self.input.norm, d_model)} if self.input and self.input.norm else {}
        return norm | {"gate": Linear(d_model, self.n_experts, self.bias)}

    def score(self, m: Weights, x: Tensor) -> Tensor:
        """Score every expert for each token of x [B, T, D]: [B, T, E] in float32."""
        return m.gate(self.input.read(m, x) if self.input else x).float()

    def forward(self, m: Weights, x: Tensor, step: Step) -> Routes:
        raise NotImplementedError


class TopK(Router):
    """Base of the routers that send each token to its `top_k` best experts. In training they add a load-balancing loss
    and a z loss over real tokens, each unless its coefficient is 0."""

    moved: ClassVar[dict[str, str]] = (
        Router.moved
        | {name: "groups: {count: 8, open: 4}" for name in ("n_groups", "top_k_groups")}
        | {
            "judged_by": "groups: {count: 8, open: 4, judged_by: 2}",
            "closed_rank": "groups: {count: 8, open: 4, closed_rank: zero}",
        }
    )
    judged_by: ClassVar[int] = 1
    """Number of a group's best scores that are summed to rank the group, unless `groups` states it."""

    normalize: bool = True
    """Whether a token's weights are normalised to sum to 1."""
    selection_bias: bool = False
    """Whether a bias is added to the scores for choosing experts, but not for the weights. It has no gradient; the
    training loop may adjust it, to balance the load (Wang et al., 2024, DeepSeek-V3)."""
    groups: ExpertGroups = ExpertGroups()
    """Groups of experts, of which only the best are open to a token."""
    capacity: PositiveInt | None = None
    """Number of tokens that an expert takes from a row or document, first come, first served. Tokens beyond it skip the
    expert, which adds nothing to them (Fedus et al., 2021, Switch, where top_k is 1 and nothing is normalised)."""
    softcap: PositiveFloat | None = None
    """Bound c of the scores s, c·tanh(s/c) (Laguna, 2026)."""
    expert_scale: bool = False
    """Whether weights are multiplied by a learned number for each expert (Gemma 4, 2026)."""
    global_scale: bool = False
    """Whether weights are multiplied by one learned number for all experts (Inkling, 2026)."""
    balance_coef: NonNegativeFloat = 0.01
    """Coefficient of the load-balancing loss, E·Σ fᵢ·Pᵢ with fᵢ the share of choices that expert i got and Pᵢ its mean
    probability: 1 when balanced (Fedus et al., 2021)."""
    z_coef: NonNegativeFloat = 0.0
    """Coefficient of the z loss, mean(logsumexp²) of the scores (Zoph et al., 2022)."""

    def __post_init__(self) -> None:
        check_count(self)
        groups = self.groups
        if self.n_experts % groups.count:
            raise ValueError(f"n_experts={self.n_experts} is not a multiple of groups.count={groups.count}")
        size, judged_by = self.n_experts // groups.count, groups.judged_by or self.judged_by
        if groups.count > 1 and size < judged_by:
            found = f"groups.count={groups.count} leaves {size} experts in each"
            raise ValueError(f"{found}, which are judged by {judged_by}")
        if self.top_k > groups.open * size:
            open_ = f"{groups.open} groups of {size} experts"
            raise ValueError(f"top_k={self.top_k} is more than there are in {open_} (raise groups.open)")
        if groups.closed_rank == "zero" and not self.selection_bias and getattr(self, "choose_by", "score") == "score":
            found = "groups.closed_rank=zero is of use beside negative scores"
            raise ValueError(f"{found}, and without selection_bias none is (last)")

    @property
    def drops(self) -> bool:  # type: ignore[override]
        return self.capacity is not None

    @property
    def _closes(self) -> bool:
        return self.groups.open < self.groups.count

    def state(self) -> dict[str, tuple[int, ...]]:
        return {} if self.capacity is None else {"routed": (self.n_experts,)}

    def parts(self, d_model: int) -> dict[str, Any]:
        scale = {"expert_scale": Weight((self.n_experts,), init=1.0)} if self.expert_scale else {}
        bias = {"selection_bias": Buffer((self.n_experts,))} if self.selection_bias else {}
        common = {"global_scale": Weight((1,), init=1.0)} if self.global_scale else {}
        return super().parts(d_model) | bias | scale | common

    def _scaled(self, m: Weights, chosen: Tensor, weights: Tensor) -> Tensor:
        """Multiply the weights of chosen experts [B, T, K] by `scale` and all learned factors."""
        weights = self._scaled_alike(m, weights)
        return weights * m.expert_scale.float()[chosen] if self.expert_scale else weights

    def _scaled_alike(self, m: Weights, weights: Tensor) -> Tensor:
        """Multiply the weights of experts [B, T, …] by `scale` and the learned factor of all experts."""
        weights = weights * self.scale
        return weights * m.global_scale.float() if self.global_scale else weights

    def _score(self, m: Weights, x: Tensor) -> Tensor:
        """Score every expert for each token of x [B, T, D], capped: [B, T, E] in float32."""
        scores = self.score(m, x)
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def _choose(self, m: Weights, rank: Tensor) -> Tensor:
        """Choose the experts [B, T, K] of open groups with the highest rank [B, T, E]."""
        if self.selection_bias:
            rank = rank + m.selection_bias.float()
        rank = self.groups.rank(rank, self.judged_by)
        return rank.topk(self.top_k, -1).indices


class SoftmaxTopK(TopK, kind="softmax_topk"):
    """Choose the top_k of a softmax over all experts (Shazeer et al., 2017).

    With `normalize` (Mixtral) the weights are a softmax over only the chosen scores, as in gpt-oss and Granite. This
    equals the chosen probabilities divided by their sum.
    """

    def forward(self, m: Weights, x: Tensor, step: Step) -> Routes:
        return self.route(m, x, step)

    def route(self, m: Weights, x: Tensor, step: Step) -> Routes:
        """Route tokens by the scores of x [B, T, …], the vectors that `score` reads."""
        scores = self._score(m, x)  # B T E
        probs = scores.softmax(-1)
        chosen = self._choose(m, probs)  # B T K
        if m.training:
            step.losses += compute_losses(self, scores, probs, chosen, step.real)
        # Not probs divided by their sum: a selection bias may choose experts whose probabilities all round to 0.
        weights = scores.gather(-1, chosen).softmax(-1) if self.normalize else probs.gather(-1, chosen)
        return make_routes(self, chosen, self._scaled(m, chosen, weights), self.capacity, step)


class SigmoidTopK(TopK, kind="sigmoid_topk"):
    """Score each expert by a sigmoid of its own, and choose the top_k (DeepSeek-V3, 2024; Llama 4, which does not
    normalise).

    For the losses, an expert's probability is its share of the sum of scores.
    """

    selection_bias: bool = True
    """Whether a bias is added to the scores for choosing experts, but not for the weights (Wang et al., 2024)."""
    judged_by: ClassVar[int] = 2
    choose_by: Literal["score", "logit"] = "score"
    """What the selection bias is added to: scores, or logits before the sigmoid (Aleph Alpha, 2026, Kolibri-1)."""
    n_shared: NonNegativeInt = 0
    """Number of shared experts that are scored as well, after the others. All tokens pass them, but weights are
    normalised and scaled over chosen and shared experts together (Thinking Machines, 2026, Inkling)."""
    balance_coef: NonNegativeFloat = 0.0001
    """Coefficient of the load-balancing loss (DeepSeek-V3, 2024)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choose_by == "logit" and not self.selection_bias and not self._closes:
            raise ValueError("choose_by=logit says what the selection bias is added to, and there is none (score)")

    @property
    def shared_scored(self) -> int:  # type: ignore[override]
        return self.n_shared

    def parts(self, d_model: int) -> dict[str, Any]:
        return super().parts(d_model) | {"gate": Linear(d_model, self.n_experts + self.n_shared, self.bias)}

    def _rate(self, logits: Tensor) -> Tensor:
        """Score logits [B, T, E]; a larger logit gets a larger score."""
        return logits.sigmoid()

    def forward(self, m: Weights, x: Tensor, step: Step) -> Routes:
        every = self._score(m, x)
        logits, shared = every.split([self.n_experts, self.n_shared], -1) if self.n_shared else (every, None)  # B T E|S
        scores = self._rate(logits)
        plain = not self._closes and not self.selection_bias
        by_logit = plain or self.choose_by == "logit"
        chosen = self._choose(m, logits if by_logit else scores)  # B T K; large logits do not all round to 1
        if m.training:
            step.losses += compute_losses(self, logits, normalize_scores(scores), chosen, step.real)
        weights = scores.gather(-1, chosen)
        weights = weights if shared is None else torch.cat((weights, self._rate(shared)), -1)
        weights = normalize_scores(weights) if self.normalize else weights
        routed = self._scaled(m, chosen, weights[..., : self.top_k])
        routes = make_routes(self, chosen, routed, self.capacity, step)
        if shared is not None:
            routes.shared = self._scaled_alike(m, weights[..., self.top_k :]).flatten(0, 1)  # N S
        return routes


class SqrtSoftplusTopK(SigmoidTopK, kind="sqrtsoftplus_topk"):
    """Top-k router with scores √softplus of the logits (DeepSeek-V4, 2026): like sigmoid_topk, but unbounded."""

    def _rate(self, logits: Tensor) -> Tensor:
        return F.softplus(logits).sqrt()


# ---------------------------------------------------------------- what routers share


def check_count(router: Router) -> None:
    if router.top_k > router.n_experts:
        raise ValueError(f"top_k={router.top_k} is more than n_experts={router.n_experts}")


def normalize_scores(scores: Tensor) -> Tensor:
    """Divide scores [B, T, E|K] by their sum + 1e-20. The reference adds this number for scores that are all 0."""
    return scores / (scores.sum(-1, keepdim=True) + 1e-20)


def make_routes(router: Router, chosen: Tensor, weights: Tensor, capacity: int | None, step: Step) -> Routes:
    """Make the Routes of tokens from the chosen experts [B, T, K] and their weights [B, T, K]. A choice beyond an
    expert's `capacity` gets the weight 0."""
    if capacity is not None:
        weights = weights * step.along_rows(partial(_admitted, router, capacity), chosen)
    choices = chosen.flatten()  # N·K
    order = choices.argsort(stable=True)
    experts = choices[order]
    every = torch.arange(router.n_experts, device=chosen.device)
    ends = torch.searchsorted(experts, every, right=True).to(torch.int32)
    back = order.argsort().unflatten(0, (-1, router.top_k))  # N K
    return Routes(order // router.top_k, experts, ends, weights.flatten()[order], back)


def _admitted(router: Router, capacity: int, step: Step, chosen: Tensor) -> Tensor:
    """Whether each choice [B, T, K] fits its expert's capacity. Tokens of a row or document are admitted in order, so
    that none depends on a later one."""
    taken = (chosen[..., None] == torch.arange(router.n_experts, device=chosen.device)).any(-2)  # B T E
    if step.real is not None:
        taken = taken & step.real[..., None]
    taken = taken.long()
    count = taken.cumsum(1)
    if step.documents is not None:
        first = find_run_firsts(step.documents)[..., None].expand_as(count)
        count = count - (count - taken).gather(1, first)
    earlier = step.state("routed")
    if earlier is not None:
        count = count + earlier.long()[:, None]
    step.hold(routed=count[:, -1])
    return count.gather(-1, chosen) <= capacity


def compute_losses(
    router: Any, scores: Tensor, probs: Tensor, chosen: Tensor, real: Tensor | None
) -> list[tuple[str, Tensor]]:
    """Compute the balance and z losses of a router with their coefficients (see TopK), means over real tokens."""
    losses = []
    weight = torch.ones_like(scores[..., 0]) if real is None else real.to(scores.dtype)  # B T
    weight = (weight / weight.sum())[..., None]
    if router.balance_coef:
        experts = torch.arange(router.n_experts, device=chosen.device)
        choices = (chosen[..., None] == experts).float().mean(-2)  # B T E
        share, chance = (choices * weight).sum((0, 1)), (probs * weight).sum((0, 1))
        losses.append(("balance", router.balance_coef * router.n_experts * (share * chance).sum()))
    if router.z_coef:
        square = scores.logsumexp(-1, keepdim=True).square()
        losses.append(("z", router.z_coef * (square * weight).sum()))
    return losses
