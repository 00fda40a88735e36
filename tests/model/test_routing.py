"""What each router promises: weighted sums, padding, documents, causality, capacity, and what it refuses."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.expert_mixtures import TIGHT, D, E, F, layer, moe, step, tokens
from support.packaged_specs import one_in
from zoo.cache.cache import LayerCache
from zoo.cache.pool_store import LayerStore
from zoo.model.expert_choice import ExpertChoice
from zoo.model.moe import MoE
from zoo.model.router import ExpertGroups, Router, SigmoidTopK, SoftmaxTopK
from zoo.model.sparse_mixer import SparseMixer

EVERY = {
    "softmax": SoftmaxTopK(n_experts=E, top_k=3, groups=ExpertGroups(count=4, open=2), scale=1.5),
    "capacity": SoftmaxTopK(n_experts=E, top_k=2, capacity=2),
    "sigmoid": SigmoidTopK(n_experts=E, top_k=3, groups=ExpertGroups(count=2, open=1), bias=True, capacity=3),
    "sparsemixer": SparseMixer(n_experts=E, jitter=0.1),
    "expert_choice": ExpertChoice(n_experts=E, top_k=2, scale=0.5),
}
ROUTERS = pytest.mark.parametrize("router", EVERY.values(), ids=EVERY.keys())


def by_hand(ours, x, now):
    """Every expert over every token, added up with the weights that the routes say."""
    routes = ours.router(x, now)
    flat = x.flatten(0, 1)
    y = torch.zeros_like(flat)
    for token, expert, weight in zip(routes.tokens, routes.experts, routes.weights, strict=True):
        gate, up, down = (ours.experts[name].weight[expert] for name in ("gate", "up", "down"))
        y[token] += weight * (torch.nn.functional.silu(flat[token] @ gate.T) * (flat[token] @ up.T)) @ down.T
    return y.view_as(x)


@ROUTERS
def test_a_mixture_is_the_weighted_sum_of_its_experts(router):
    ours, x = layer(moe(router)), tokens(0)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, step(11)), by_hand(ours, x, step(11)), **TIGHT)


@ROUTERS
def test_rows_with_padding_are_routed_as_the_rows_alone(router):
    ours, x = layer(moe(router)), tokens(1)
    real = torch.ones(3, 11, dtype=torch.bool)
    real[0, :4], real[1, 7:] = False, False
    with torch.no_grad():
        padded = ours(x, step(11, real=real))
        for row in range(3):
            alone = ours(x[row : row + 1, real[row]], step(int(real[row].sum())))
            torch.testing.assert_close(padded[row, real[row]], alone[0], **TIGHT)


@ROUTERS
@pytest.mark.parametrize("numbers", [(0, 1, 2), (5, 3, 4)])
def test_packed_documents_are_routed_as_separate_ones(router, numbers):
    ours, x = layer(moe(router)), tokens(2, length=24)
    sizes = (9, 2, 13)
    documents = torch.tensor(numbers).repeat_interleave(torch.tensor(sizes)).expand(3, -1)
    with torch.no_grad():
        packed = ours(x, step(24, documents=documents))
        apart = [ours(part, step(part.shape[1])) for part in x.split(sizes, 1)]
    torch.testing.assert_close(packed, torch.cat(apart, 1), **TIGHT)


@pytest.mark.parametrize("name", ["softmax", "capacity", "sigmoid", "sparsemixer"])
def test_a_tokens_experts_do_not_depend_on_later_tokens(name):
    ours, x = layer(moe(EVERY[name])), tokens(3)
    changed = x.clone()
    changed[:, 6:] += 1
    with torch.no_grad():
        before, after = ours(x, step(11)), ours(changed, step(11))
    torch.testing.assert_close(before[:, :6], after[:, :6], **TIGHT)
    assert EVERY[name].causal is None


def room(spec, batch):
    """As much of a layer's cache as a router asks for."""
    states = {name: torch.zeros(batch, *shape) for name, shape in spec.state().items()}
    return LayerCache(LayerStore(states=states), slice(0, batch))


@pytest.mark.parametrize("name", ["capacity", "sigmoid"])
def test_capacity_is_counted_on_while_decoding(name):
    ours, x = layer(moe(EVERY[name])), tokens(4, length=16)
    assert ours.spec.state() == {"routed": (E,)}
    cache, parts = room(ours.spec, 3), []
    with torch.no_grad():
        whole = ours(x, step(16))
        for index, part in enumerate(x.split((7, 1, 1, 4, 3), 1)):
            parts.append(ours(part, step(part.shape[1], cache=cache, first=index == 0)))
    torch.testing.assert_close(torch.cat(parts, 1), whole, **TIGHT)


def test_experts_that_choose_have_the_same_load_and_take_their_likeliest_tokens():
    router, x = layer(EVERY["expert_choice"]), tokens(5, length=16)
    routes = router(x, step(16))
    assert (routes.experts.bincount() == 3 * 16 * 2 // E).all()
    chances = (router.gate(x)).softmax(-1)
    for row, expert in itertools.product(range(3), range(E)):
        mine = (routes.experts == expert) & (routes.tokens // 16 == row)
        best = chances[row, :, expert].topk(4)
        assert set((routes.tokens[mine] % 16).tolist()) == set(best.indices.tolist())
        torch.testing.assert_close(routes.weights[mine].sort().values, 0.5 * best.values.sort().values)
    assert ExpertChoice.causal is False


def test_a_row_too_short_for_experts_to_choose_from_passes_by():
    ours = layer(moe(EVERY["expert_choice"]))
    with torch.no_grad():
        assert ours(tokens(6, length=3), step(3)).abs().max() == 0


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "sparsemixer"])
def test_losses_leave_padding_out(name):
    # sparsemixer draws by chance: with no jitter only the best is near enough
    router = SparseMixer(n_experts=E, jitter=0.0, z_coef=0.1) if name == "sparsemixer" else EVERY[name]
    ours, x = layer(router).train(), tokens(7, batch=1)
    real = torch.ones(1, 11, dtype=torch.bool)
    real[:, :5] = False
    padded, alone = step(11, real=real), step(6)
    ours(x, padded), ours(x[:, 5:], alone)
    assert padded.losses and len(padded.losses) == len(alone.losses)
    for (_, one), (_, other) in zip(padded.losses, alone.losses, strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


@ROUTERS
@pytest.mark.parametrize("shared", one_in(2, [True, False]))
def test_a_mixture_compiles_whole_and_its_router_learns(router, shared):
    torch.compiler.reset()
    fields = {"shared": {"expert": {"kind": "gated", "d_ff": 6, "activation": {"kind": "silu"}}, "gate": True}}
    expert = {"kind": "mlp", "d_ff": F, "activation": {"kind": "xielu"}, "bias": True}
    ours, x = layer(moe(router, expert=expert, **(fields if shared else {}))), tokens(8)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, step(11)), ours(x, step(11)), **TIGHT)
    now = step(11)
    ours.train()(x, now).square().sum().backward()
    silent = [name for name, p in ours.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_a_learned_activation_is_shared_by_the_experts():
    expert = {"kind": "gated", "d_ff": F, "activation": {"kind": "xielu"}}
    ours = layer(moe({"kind": "softmax_topk", "n_experts": E, "top_k": 2}, expert=expert))
    assert [name for name, _ in ours.named_parameters() if "alpha" in name] == [
        "activation.alpha_p",
        "activation.alpha_n",
    ]


@pytest.mark.parametrize(
    ("router", "fault"),
    [
        ({"kind": "softmax_topk", "n_experts": 4, "top_k": 5}, "top_k=5 is more than n_experts=4"),
        ({"kind": "expert_choice", "n_experts": 4, "top_k": 5}, "top_k=5 is more than n_experts=4"),
        (
            {"kind": "softmax_topk", "n_experts": 8, "top_k": 1, "groups": {"count": 3, "open": 1}},
            "not a multiple of groups.count=3",
        ),
        (
            {"kind": "sigmoid_topk", "n_experts": 8, "top_k": 1, "groups": {"count": 8, "open": 1}},
            "leaves 1 experts in each",
        ),
        (
            {"kind": "softmax_topk", "n_experts": 8, "top_k": 3, "groups": {"count": 4, "open": 1}},
            "more than there are in 1 groups of 2",
        ),
        (
            {"kind": "softmax_topk", "n_experts": 8, "top_k": 1, "groups": {"count": 1, "open": 2}},
            "open=2 is more than count=1",
        ),
        ({"kind": "sparsemixer", "n_experts": 8, "top_k": 1}, "draws exactly two"),
    ],
)
def test_impossible_routing_is_refused(router, fault):
    with pytest.raises(ValueError, match=fault):
        Router.parse(router)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"scale_input": True, "router": EVERY["expert_choice"]}, "drops tokens"),
        ({"scale_input": True, "router": EVERY["capacity"]}, "drops tokens"),
        ({"shared": moe(EVERY["softmax"])}, "cannot itself be a mixture"),
        ({"shared": {"kind": "channel_mix", "d_model": 8, "d_ff": 6}}, "shared: an expert sees no other token"),
    ],
)
def test_impossible_mixtures_are_refused(fields, fault):
    with pytest.raises(ValueError, match=fault):
        moe(**{"router": EVERY["softmax"]} | fields)


def test_parameters_and_flops_of_a_mixture_follow_top_k():
    spec = moe(EVERY["softmax"])
    assert isinstance(spec, MoE)
    parts = spec.parts(D)["experts"].parts
    assert {part.active_count for part in parts.values()} == {3}
    assert sum(part.params for part in parts.values()) == E * 3 * D * F
    assert sum(part.flops for part in parts.values()) == math.prod((2, 3, 3, D, F))


@pytest.mark.parametrize("normalize", [True, False])
def test_weights_stay_finite_where_a_selection_bias_chooses_experts_whose_chances_underflow(normalize):
    """Scores 120 below the best: e^−120 is 0 in float32, and 0/0 no weight. Compared with float64, which holds it."""
    spec = SoftmaxTopK(n_experts=E, top_k=2, selection_bias=True, normalize=normalize)
    router = layer(spec).eval()
    scores = torch.tensor([120.0, 0.0, -0.5, -1.0, 0.25, -2.0, 3.0, -3.0])
    bias = torch.tensor([0.0, 9.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # chooses experts 1 and 2
    with torch.no_grad():
        router.gate.weight.zero_()
        router.gate.weight[:, 0] = scores
        router.selection_bias.copy_(bias)
        x = torch.zeros(1, 1, D)
        x[..., 0] = 1
        routes = router(x, step(1))
    assert routes.experts.tolist() == [1, 2]
    chances = scores.double().softmax(0)[[1, 2]]
    expected = chances / chances.sum() if normalize else chances
    # One softmax in float32: a few of its roundings, 2⁻²⁴ each, relative to 1.
    torch.testing.assert_close(routes.weights.double(), expected, rtol=8 * 2**-24, atol=1e-45)


def test_experts_that_choose_count_a_documents_real_tokens_in_memory_of_the_rows_length():
    """The share of each document is by its own length; nothing of [B, T, T] is made, whatever T is."""
    length, router = 3000, layer(ExpertChoice(n_experts=2, top_k=1))
    documents = torch.zeros(1, length, dtype=torch.long)
    documents[:, 1000:] = 1
    real = torch.ones(1, length, dtype=torch.bool)
    real[:, -100:] = False
    x = torch.randn(1, length, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Largest() as largest:
        routes = router(x, step(length, documents=documents, real=real))
    taken = routes.tokens[routes.weights > 0]
    assert (taken < 1000).sum() == 1000 and (taken >= 1000).sum() == 1900  # half of the tokens for each of two experts
    assert largest.numel <= length * D


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple) else (made,):
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return made
