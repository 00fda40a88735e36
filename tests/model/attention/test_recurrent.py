"""Recurrent mixers equal the reference modules, and their two forms equal each other."""

import math
import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DynamicCache,
    MambaConfig,
    MiniMaxConfig,
)
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from support.packaged_specs import one_in
from support.recurrent_mixers import (
    EVERY,
    KERNELS,
    KINDS,
    REFERENCE,
    SEEDS,
    WIDTH,
    built,
    equal,
    gla,
    pair,
    randomised,
    retention,
    room,
    rwkv7,
    step,
)
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.attention.delta import GatedDelta
from zoo.model.attention.kda import KDA
from zoo.model.attention.linear import Lightning
from zoo.model.attention.mamba import Mamba
from zoo.model.attention.mamba2 import Mamba2
from zoo.model.attention.recurrent import Decays, chunked
from zoo.model.attention.rg_lru import RGLRU
from zoo.model.attention.rwkv7 import MIXED
from zoo.model.position.rotary import RoPE
from zoo.model.step import Step
from zoo.run.layer import Layer
from zoo.spec import table, tensors, walk

# ---------------------------------------------------------------- the references


@REFERENCE
@SEEDS
@KERNELS
def test_it_equals_the_reference_module(name, seed, kernel):
    ours, theirs = pair(name, seed)
    x = torch.randn(2, random.Random(seed).randint(1, 23), WIDTH)
    with torch.no_grad():
        equal(ours(x, step(x.shape[1], kernel)), theirs(x))


@REFERENCE
@SEEDS
@KERNELS
def test_decoding_token_by_token_equals_the_references_own(name, seed, kernel):
    unlimited = {"dt_min": 0.0, "dt_max": None} if name == "mamba2" else {}  # the reference forgets them when decoding
    ours, theirs = pair(name, seed, **unlimited)
    x, start = torch.randn(2, 12, WIDTH), random.Random(seed).randint(1, 8)
    config = getattr(theirs, "config", MambaConfig(num_hidden_layers=1))  # read for its one layer of state
    cache, held = DynamicCache(config=config), room(ours.spec, 2)
    with torch.no_grad():
        for first, last in [(0, start), *((t, t + 1) for t in range(start, 12))]:
            found = ours(x[:, first:last], step(last - first, kernel, cache=held, first=first == 0))
            equal(found, theirs(x[:, first:last], cache))


@SEEDS
@KERNELS
def test_lightning_attention_equals_the_reference_module(seed, kernel):
    rng = random.Random(seed)
    layers, layer = rng.choice([(4, 0), (4, 2), (9, 7)])
    scale = 1 - layer / (layers - 1 + 1e-5) + 1e-5
    spec = Lightning(n_heads=rng.choice([2, 3]), head_dim=4, decay_scale=scale, chunk_size=rng.choice([3, 64]))
    sizes = {"hidden_size": WIDTH, "num_attention_heads": spec.n_heads, "head_dim": 4, "num_hidden_layers": layers}
    theirs = MiniMaxLightningAttention(MiniMaxConfig(**sizes, block_size=rng.choice([4, 32])), layer).eval()
    rates = {name: buffer.clone() for name, buffer in theirs.named_buffers()}
    ours, given = Layer(spec, WIDTH), randomised(theirs).state_dict()
    theirs.load_state_dict(rates, strict=False)
    qkv = zip("qkv", given["qkv_proj.weight"].unflatten(0, (spec.n_heads, 3, 4)).unbind(1), strict=True)
    others = {"gate.weight": "output_gate.weight", "norm": "norm.weight", "out.weight": "out_proj.weight"}
    own = {f"{name}.weight": part.flatten(0, 1) for name, part in qkv} | {
        new: given[old] for new, old in others.items()
    }
    ours.load_state_dict(own, strict=False)
    spec.parts(WIDTH)["slopes"].init(ours.slopes)
    equal(ours.slopes, given["slope_rate"].flatten(), 1e-7)
    x = torch.randn(2, rng.randint(1, 40), WIDTH)
    with torch.no_grad():
        equal(ours(x, step(x.shape[1], kernel)), theirs(x, None, None)[0])


@SEEDS
@KERNELS
def test_gated_linear_attention_equals_its_parallel_form(seed, kernel):
    """The paper's equation 4: (Q ⊙ B)(K / B)ᵀ under a causal mask, B being the product of all decays so far."""
    spec = gla(random.Random(seed))
    layer, x = built(spec).double(), torch.randn(2, 19, WIDTH, dtype=torch.float64)
    heads = (spec.n_heads, -1)
    with torch.no_grad():
        q, k, v, g = (getattr(layer, name)(x).unflatten(-1, heads).transpose(1, 2) for name in ("q", "k", "v", "gate"))
        alpha = layer.b(layer.a(x)).sigmoid() ** (1 / spec.temperature)
        total = alpha.unflatten(-1, heads).transpose(1, 2).cumprod(2)
        scores = ((q * total) @ (k / total).mT * spec.head_k_dim**-0.5).tril()
        y = scores @ v
        y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * layer.norm.weight
        expected = layer.out((y * torch.nn.functional.silu(g)).transpose(1, 2).flatten(2))
        equal(layer.float()(x.float(), step(19, kernel)), expected.float())


@SEEDS
@KERNELS
def test_rwkv7_equals_the_papers_recurrence(seed, kernel):
    """Equations 3 to 22 of the paper, for a first layer: S ← S·(diag(w) − κᵀ(a ⊙ κ)) + vᵀk̃, a matrix [V, K]."""
    spec = rwkv7(random.Random(seed))
    m, x = built(spec).double(), torch.randn(2, 19, WIDTH, dtype=torch.float64)
    heads = (spec.n_heads, spec.head_dim)
    with torch.no_grad():
        before = torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        r, k, v, d, a, g = (x + (before - x) * getattr(m, f"mix_{name}") for name in MIXED)
        r, k, v = m.r(r), m.k(k), m.v(v)
        w = (-math.exp(-0.5) * (m.decay_b(m.decay_a(d).tanh()) + m.decay).sigmoid()).exp()
        a, g = (m.rate_b(m.rate_a(a)) + m.rate).sigmoid(), m.gate_b(m.gate_a(g).sigmoid())
        removed = torch.nn.functional.normalize((k * m.key_scale).unflatten(-1, heads), dim=-1)
        k = k * torch.lerp(torch.ones_like(a), a, m.key_rate)
        r, k, v, w, a = (each.unflatten(-1, heads) for each in (r, k, v, w, a))
        S, reads = torch.zeros(2, *heads, spec.head_dim, dtype=torch.float64), []
        for t in range(19):
            kappa = removed[:, t, :, None]  # B H 1 K
            S = S @ (torch.diag_embed(w[:, t]) - kappa.mT @ (a[:, t, :, None] * kappa))
            S = S + v[:, t, :, :, None] @ k[:, t, :, None]
            reads.append((S @ r[:, t, :, :, None]).squeeze(-1))
        y = torch.stack(reads, 1).flatten(0, 1).flatten(1)  # B·T H·K
        y = torch.nn.functional.group_norm(y, heads[0], m.norm.weight.flatten(), m.norm.bias.flatten(), spec.norm_eps)
        bonus = ((r * m.bonus * k).sum(-1, keepdim=True) * v).flatten(-2)
        expected = m.out(g * (y.view(2, 19, -1) + bonus))
        equal(m.float()(x.float(), step(19, kernel)), expected.float())


@SEEDS
@KERNELS
def test_retention_equals_its_parallel_form(seed, kernel):
    """The paper's equation 5: (QKᵀ ⊙ D)·V with Q = (X·W_Q) ⊙ e^(inθ), K = (X·W_K) ⊙ e^(−inθ), D = γ^(n−m)."""
    spec = retention(random.Random(seed), position=RoPE(interleaved=True))
    layer, x = built(spec).double(), torch.randn(2, 19, WIDTH, dtype=torch.float64)
    spec.parts(WIDTH)["slopes"].init(layer.slopes)
    places = torch.arange(19)
    with torch.no_grad():
        q, k, v, g = (
            getattr(layer, n)(x).unflatten(-1, (spec.n_heads, -1)).transpose(1, 2) for n in ("q", "k", "v", "gate")
        )
        theta = 10000.0 ** -(torch.arange(0, spec.head_k_dim, 2).double() / spec.head_k_dim)
        turn = torch.polar(torch.ones(19, len(theta), dtype=torch.float64), places[:, None] * theta)
        q, k = (torch.view_as_complex(each.unflatten(-1, (-1, 2)).contiguous()) for each in (q, k))
        scores = ((q * turn) @ (k * turn).mH).real * spec.head_k_dim**-0.5  # B H T T
        gamma = 1 - 2.0 ** (-5 - torch.arange(spec.n_heads).double())
        scores = (scores * gamma[:, None, None] ** (places[:, None] - places)).tril()
        y = torch.nn.functional.layer_norm(scores @ v, (spec.head_v_dim,), eps=spec.norm.eps)
        expected = layer.out((y * torch.nn.functional.silu(g)).transpose(1, 2).flatten(2))
        tables = spec.position.tables(places[None], spec.head_k_dim, torch.float32)
        equal(layer.float()(x.float(), step(19, kernel, tables=tables)), expected.float())


# ---------------------------------------------------------------- two forms of one recurrence


@EVERY
@SEEDS
def test_chunks_equal_the_recurrence_forward_and_backward_from_any_state(kind, seed):
    rng = random.Random(seed)
    spec = KINDS[kind](rng)
    layer, tokens = built(spec), rng.choice([2, 3, 17, 40, 150])
    x, weight = torch.randn(2, tokens, WIDTH), torch.randn(2, tokens, WIDTH)
    states = {name: torch.randn(2, *shape) for name, shape in spec.state().items()}
    documents = rng.choice([None, (torch.rand(2, tokens) < 0.2).cumsum(1)])
    found = []
    for kernel in ("eager", "auto"):
        inner = x.clone().requires_grad_()
        now = Started(KeyView(Mask(tokens, tokens)), kernel=kernel, documents=documents, given=states)
        y = layer(inner, now)
        ((y * weight).sum() + sum(held.sum() for held in now.held.values())).backward()
        found.append((y, *now.held.values(), inner.grad, *(p.grad.clone() for p in layer.parameters())))
        layer.zero_grad()
    for token_by_token, in_chunks in zip(*found, strict=True):
        size = token_by_token.abs().max().clamp(min=1e-3)
        equal(in_chunks / size, token_by_token / size, 2e-5)


@dataclass
class Started(Step):
    """A step whose states are given, and what is held is kept apart, so that gradients pass."""

    given: dict = field(default_factory=dict)
    held: dict = field(default_factory=dict)

    def state(self, name):
        return self.given[name]

    def hold(self, **states):
        self.held |= states


@pytest.mark.parametrize("rate", [1e-6, 1.0, 1000.0])
def test_a_small_decay_is_not_lost_beside_large_ones(rate):
    log = -torch.rand(1, 33, 2) * rate
    log[:, ::2] *= 1e-4
    decays = Decays(chunked(log, 33), None)
    exact = log.double()
    for late in range(33):
        for early in range(late + 1):
            left = exact[:, early + 1 : late + 1].sum(1).exp()
            torch.testing.assert_close(decays.pairs[:, 0, :, late, early].double(), left, atol=1e-30, rtol=3e-5)


# ---------------------------------------------------------------- states, padding, documents


@EVERY
@SEEDS
@KERNELS
def test_a_row_in_pieces_of_any_length_equals_the_row_whole(kind, seed, kernel):
    rng = random.Random(seed)
    spec = KINDS[kind](rng)
    layer, x = built(spec), torch.randn(2, 19, WIDTH)
    cuts = [0, *sorted(rng.sample(range(1, 19), 5)), 19]
    held, pieces = room(spec, 2), []
    with torch.no_grad():
        for first, last in pairwise(cuts):
            pieces.append(layer(x[:, first:last], step(last - first, kernel, cache=held, first=first == 0)))
        equal(torch.cat(pieces, 1), layer(x, step(19, "eager")), 1e-5)


@EVERY
@KERNELS
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_state_of_zeros_is_that_of_an_empty_row(kind, kernel, tokens):
    spec = KINDS[kind](random.Random(5))
    layer, x, held = built(spec), torch.randn(2, tokens, WIDTH), room(spec, 2)
    held.layer.states = {name: torch.zeros_like(state) for name, state in held.layer.states.items()}
    with torch.no_grad():
        equal(layer(x, step(tokens, kernel, cache=held, first=False)), layer(x, step(tokens, kernel)), 1e-5)


@EVERY
@SEEDS
@KERNELS
def test_padding_changes_nothing_wherever_it_stands(kind, seed, kernel):
    spec = KINDS[kind](random.Random(seed))
    layer, x = built(spec), torch.randn(3, 20, WIDTH)
    real = torch.rand(3, 20) < 0.6
    real[0, :7], real[1, 6:11] = False, False
    held, pieces = room(spec, 3), []
    with torch.no_grad():
        for first, last in ((0, 11), (11, 12), (12, 20)):
            now = step(last - first, kernel, cache=held, first=first == 0, real=real[:, first:last])
            pieces.append(layer(x[:, first:last], now))
        padded = torch.cat(pieces, 1)
        for row in range(3):
            alone = x[row][real[row]][None]
            equal(padded[row][real[row]][None], layer(alone, step(alone.shape[1], "eager")), 1e-5)


@EVERY
@SEEDS
@KERNELS
def test_packed_documents_equal_separate_ones(kind, seed, kernel):
    rng = random.Random(seed)
    layer, x = built(KINDS[kind](rng)), torch.randn(1, 24, WIDTH)
    lengths = [1, 2, rng.randint(3, 9), 1]
    lengths.append(24 - sum(lengths))
    documents = torch.tensor([n for n, length in enumerate(lengths) for _ in range(length)])[None]
    with torch.no_grad():
        packed = layer(x, step(24, kernel, documents=documents)).split(lengths, 1)
        for found, alone in zip(packed, x.split(lengths, 1), strict=True):
            equal(found, layer(alone, step(alone.shape[1], "eager")), 1e-5)


@EVERY
def test_packed_rows_may_be_padded(kind):
    layer, x = built(KINDS[kind](random.Random(1))), torch.randn(1, 12, WIDTH)
    real = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 0]]).bool()
    documents = torch.tensor([[0] * 5 + [1] * 7])
    with torch.no_grad():
        packed = layer(x, step(12, real=real, documents=documents))
        for which in (real & (documents == 0), real & (documents == 1)):
            equal(packed[which], layer(x[which][None], step(int(which.sum()), "eager"))[0], 1e-5)


# ---------------------------------------------------------------- costs, dtypes, starting values, refusals


@EVERY
def test_counted_flops_and_tensors_are_those_of_the_module(kind):
    spec = KINDS[kind](random.Random(0))
    layer = built(spec)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(1, 9, WIDTH), step(9, "eager"))
    counted = sum(part.flops for _, part in walk(spec, WIDTH)) + spec.state_flops()
    assert counter.get_total_flops() == 9 * counted > 0
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == table(spec, WIDTH)


@EVERY
@KERNELS
def test_bfloat16_stays_near_float32_and_states_stay_float32(kind, kernel):
    spec = KINDS[kind](random.Random(2))
    layer, x, held = built(spec), torch.randn(2, 30, WIDTH), room(spec, 2)
    with torch.no_grad():
        exact = layer(x, step(30))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = layer(x, step(30, kernel)).float()
        half = layer.bfloat16()(x.bfloat16(), step(30, kernel, cache=held))
        layer(x[:, :1].bfloat16(), step(1, kernel, cache=held, first=False))
    assert half.dtype == torch.bfloat16 and all(state.dtype == torch.float32 for state in held.layer.states.values())
    assert all(state.isfinite().all() for state in held.layer.states.values())
    for found in (half.float(), mixed):
        assert ((found - exact).norm() / exact.norm()).item() < 0.05


@pytest.mark.parametrize("kind", one_in(9, KINDS))
def test_it_compiles_whole_with_padding_and_a_state(kind):
    torch.compiler.reset()
    spec = KINDS[kind](random.Random(3))
    layer, x = built(spec), torch.randn(2, 9, WIDTH)
    real = torch.rand(2, 9) < 0.7
    states = {name: torch.randn(2, *shape) for name, shape in spec.state().items()}

    def run(x, real):
        held = room(spec, 2)
        held.layer.states = {name: state.clone() for name, state in states.items()}
        return layer(x, step(9, cache=held, first=False, real=real)), held.layer.states

    with torch.no_grad():
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x, real)
        equal(compiled, run(x, real), 1e-5)


@pytest.mark.parametrize("kind", ["mamba", "mamba_normed", "mamba2", "gated_delta", "kda"])
def test_fresh_rates_and_steps_lie_where_the_papers_draw_them(kind):
    spec = KINDS[kind](random.Random(0))
    fresh = {name: part.init for name, part, _ in tensors(spec, WIDTH) if name in ("A_log", "dt_bias")}
    shapes = table(spec, WIDTH)
    steps, rates = torch.empty(shapes["dt_bias"]), torch.empty(shapes["A_log"])
    fresh["dt_bias"](steps), fresh["A_log"](rates)
    steps, rates = torch.nn.functional.softplus(steps), rates.exp()
    assert steps.min() >= 1e-3 * 0.999 and steps.max() <= 0.1 * 1.001 and steps.unique().numel() == steps.numel()
    assert rates.min() > 0 and rates.max() <= 16


def test_fresh_rg_lru_channels_forget_as_the_published_models_do():
    rate = torch.empty(1000)
    RGLRU(d_inner=1000, n_heads=10).parts(WIDTH)["rate"].init(rate)
    left = (-torch.nn.functional.softplus(rate.double())).exp()
    assert 0.9 < left.min() < 0.9001 and 0.9989 < left.max() < 0.999


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="n_heads=3 is not a multiple of n_groups=2"):
        Mamba2(n_heads=3, head_dim=4, n_groups=2)
    with pytest.raises(ValueError, match="not a multiple of norm_groups=5"):
        Mamba2(n_heads=3, head_dim=4, norm_groups=5)
    with pytest.raises(ValueError, match="norm_eps is null"):
        Mamba2(n_heads=3, head_dim=4, norm_eps=None, norm_before_gate=True)
    with pytest.raises(ValueError, match=r"dt_max=0.1 must be above dt_min=0.5"):
        Mamba2(n_heads=3, head_dim=4, dt_min=0.5, dt_max=0.1)
    with pytest.raises(ValueError, match="n_v_heads=3 is not a multiple of n_k_heads=2"):
        GatedDelta(n_k_heads=2, n_v_heads=3, head_k_dim=4, head_v_dim=4)
    with pytest.raises(ValueError, match=r"chunk_size=12 is not a power of two \(16 is\)"):
        KDA(n_heads=2, head_dim=4, chunk_size=12)
    with pytest.raises(ValueError, match="d_inner=10 is not a multiple of n_heads=4"):
        RGLRU(d_inner=10, n_heads=4)
    with pytest.raises(ValueError, match="the stream is 32 wide"):
        Mamba(d_model=16).parts(32)


@EVERY
@pytest.mark.parametrize("sight", [{"causal": False}, {"prefix": torch.tensor([1])}], ids=["both-sides", "prefix"])
def test_a_mask_that_shows_later_tokens_is_refused(kind, sight):
    layer = built(KINDS[kind](random.Random(0)))
    with pytest.raises(ConfigError, match="reads earlier tokens only"):
        layer(torch.randn(1, 3, WIDTH), Step(KeyView(Mask(3, 3, **sight))))
