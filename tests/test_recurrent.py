"""Recurrent mixers equal the reference modules, and their two forms equal each other."""

import random
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DynamicCache,
    FalconMambaConfig,
    JambaConfig,
    KimiLinearConfig,
    Lfm2Config,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    Qwen3NextConfig,
)
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from zoo.cache.cache import LayerCache
from zoo.cache.store import LayerStore
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.model.activation import Sigmoid
from zoo.model.attention.delta import GatedDelta
from zoo.model.attention.kda import KDA
from zoo.model.attention.linear import GLA, Lightning
from zoo.model.attention.mamba import Mamba, Mamba2
from zoo.model.attention.recurrent import Decays, chunked
from zoo.model.attention.short_conv import ShortConv
from zoo.model.norm import RMSNorm
from zoo.model.step import Step
from zoo.run.layer import Layer
from zoo.spec import table, tensors, walk

WIDTH = 24
KERNELS = pytest.mark.parametrize("kernel", ["eager", "auto"])
SEEDS = pytest.mark.parametrize("seed", range(4))

# ---------------------------------------------------------------- random mixers and what they are compared with


def mamba(rng, inner_norm=None):
    sizes = {"expand": rng.choice([1, 2]), "d_state": rng.choice([4, 7]), "d_conv": rng.choice([2, 3, 4])}
    flags = {"bias": rng.random() < 0.5, "conv_bias": rng.random() < 0.5, "dt_rank": rng.choice([None, 5])}
    return Mamba(d_model=WIDTH, **sizes, **flags, inner_norm=inner_norm)


def mamba2(rng, **fields):
    groups, wider, width = rng.choice([1, 2, 3]), rng.choice([1, 2]), rng.choice([2, 4])
    sizes = {"n_heads": WIDTH * wider // width, "head_dim": width, "n_groups": groups, "d_state": rng.choice([4, 7])}
    flags = {"bias": rng.random() < 0.5, "conv_bias": rng.random() < 0.5, "d_conv": rng.choice([2, 3, 4])}
    limits = rng.choice([{}, {"dt_min": 0.5, "dt_max": 1.0}])
    return Mamba2(**sizes, **flags, **limits, chunk_size=rng.choice([3, 5, 64]), norm_eps=1e-5, **fields)


def gated_delta(rng, **fields):
    keys = rng.choice([1, 2, 3])
    heads = {"n_k_heads": keys, "n_v_heads": keys * rng.choice([1, 2]), "d_conv": rng.choice([2, 3, 4])}
    widths = {"head_k_dim": rng.choice([4, 7]), "head_v_dim": rng.choice([3, 8])}
    return GatedDelta(**heads, **widths, **fields, chunk_size=rng.choice([3, 5, 64]), norm=RMSNorm(eps=1e-6))


def kda(rng):
    sizes = {"n_heads": rng.choice([1, 2, 3]), "head_dim": rng.choice([4, 7]), "d_conv": rng.choice([2, 3, 4])}
    return KDA(**sizes, chunk_size=rng.choice([2, 8, 64]), norm=RMSNorm(eps=1e-5))


def lightning(rng):
    sizes = {"n_heads": rng.choice([1, 2, 3]), "head_dim": rng.choice([4, 7]), "decay_scale": rng.choice([0.3, 1.0])}
    return Lightning(**sizes, chunk_size=rng.choice([3, 5, 64]))


def gla(rng):
    sizes = {"n_heads": rng.choice([1, 2, 3]), "head_k_dim": rng.choice([4, 7]), "head_v_dim": rng.choice([3, 8])}
    return GLA(**sizes, gate_rank=5, temperature=rng.choice([0.1, 16.0]), chunk_size=rng.choice([2, 8, 64]))


def short_conv(rng):
    return ShortConv(d_inner=WIDTH, d_conv=rng.choice([2, 3, 4]), bias=rng.random() < 0.5)


KINDS = {
    "mamba": mamba,
    "mamba_normed": lambda rng: mamba(rng, RMSNorm(eps=1e-5)),
    "mamba2": mamba2,
    "mamba2_norm_first": lambda rng: mamba2(rng, norm_before_gate=True, norm_groups=1),
    "gated_delta": gated_delta,
    "gated_delta_signed": lambda rng: gated_delta(rng, beta_scale=2.0, gate=Sigmoid()),
    "delta_net": lambda rng: gated_delta(rng, decay=False, gate=None),
    "kda": kda,
    "lightning": lightning,
    "gla": gla,
    "short_conv": short_conv,
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def built(spec):
    """Its layer, every parameter random and of an order that keeps outputs near 1."""
    return randomised(Layer(spec, WIDTH))


def randomised(module):
    with torch.no_grad():
        for buffer in module.buffers():
            buffer.copy_(torch.rand(buffer.shape))  # rates
        for parameter in module.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape) * spread)
    return module


def of_mamba(spec, reference, config):
    fields = {"hidden_size": WIDTH, "state_size": spec.d_state, "expand": spec.expand, "conv_kernel": spec.d_conv}
    flags = {"use_bias": spec.bias, "use_conv_bias": spec.conv_bias, "time_step_rank": spec.dt_rank or "auto"}
    return reference(config(**fields, **flags, num_hidden_layers=1), layer_idx=0, initialize_mixer_weights=False)


def of_jamba(spec):
    fields = {"hidden_size": WIDTH, "mamba_d_state": spec.d_state, "mamba_expand": spec.expand, "rms_norm_eps": 1e-5}
    first = {"attn_layer_period": 2, "attn_layer_offset": 1}  # which makes layer 0 a Mamba
    flags = {"mamba_proj_bias": spec.bias, "mamba_conv_bias": spec.conv_bias, "mamba_d_conv": spec.d_conv}
    config = JambaConfig(**fields, **first, **flags, mamba_dt_rank=spec.dt_rank or "auto", num_hidden_layers=1)
    return JambaMambaMixer(config, layer_idx=0)


def of_mamba2(spec):
    fields = {"hidden_size": WIDTH, "state_size": spec.d_state, "n_groups": spec.n_groups, "num_heads": spec.n_heads}
    sizes = {"head_dim": spec.head_dim, "conv_kernel": spec.d_conv, "expand": spec.d_inner // WIDTH}
    flags = {"use_bias": spec.bias, "use_conv_bias": spec.conv_bias, "layer_norm_epsilon": spec.norm_eps}
    limit = (spec.dt_min, spec.dt_max or float("inf"))
    return Mamba2Mixer(
        Mamba2Config(**fields, **sizes, **flags, time_step_limit=limit, num_hidden_layers=1), layer_idx=0
    )


def of_gated_delta(spec):
    heads = {"linear_num_key_heads": spec.n_k_heads, "linear_num_value_heads": spec.n_v_heads}
    widths = {"linear_key_head_dim": spec.head_k_dim, "linear_value_head_dim": spec.head_v_dim}
    sizes = {"hidden_size": WIDTH, "linear_conv_kernel_dim": spec.d_conv, "num_hidden_layers": 1}
    config = Qwen3NextConfig(**heads, **widths, **sizes)
    return Qwen3NextGatedDeltaNet(config, layer_idx=0)


def of_kda(spec):
    sizes = {"linear_num_heads": spec.n_heads, "linear_head_dim": spec.head_dim, "linear_conv_kernel_dim": spec.d_conv}
    types = {"num_hidden_layers": 1, "layer_types": ["linear_attention"]}
    return KimiLinearDeltaAttention(KimiLinearConfig(hidden_size=WIDTH, **sizes, **types), layer_idx=0)


def of_short_conv(spec):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "layer_types": ["conv"]}
    config = Lfm2Config(**sizes, conv_bias=spec.bias, conv_L_cache=spec.d_conv)
    return Lfm2ShortConv(config, layer_idx=0)


def from_mamba(theirs, spec):
    names = {
        "conv1d.": "conv.",
        "dt_proj.bias": "dt_bias",
        "_layernorm": "_norm",
        "b_norm": "B_norm",
        "c_norm": "C_norm",
    }
    return {reduce(lambda name, swap: name.replace(*swap), names.items(), old): t for old, t in theirs.items()}


def from_mamba2(theirs, spec):
    return {name.replace("conv1d.", "conv.").replace("norm.weight", "norm"): t for name, t in theirs.items()}


def from_gated_delta(theirs, spec):
    """Rows of in_proj_qkvz are, for each key head: its query, key, value heads and their gates; of in_proj_ba: b, a."""
    served = spec.n_v_heads // spec.n_k_heads
    sizes = [spec.head_k_dim, spec.head_k_dim, served * spec.head_v_dim, served * spec.head_v_dim]
    parts = theirs["in_proj_qkvz.weight"].unflatten(0, (spec.n_k_heads, -1)).split(sizes, 1)
    parts += theirs["in_proj_ba.weight"].unflatten(0, (spec.n_k_heads, -1)).split([served, served], 1)
    ours = {f"{name}.weight": part.flatten(0, 1) for name, part in zip("qkvzba", parts, strict=True)}
    rest = {"conv1d.weight": "conv.weight", "out_proj.weight": "out.weight", "norm.weight": "norm.weight"}
    return ours | {new: theirs[old] for old, new in rest.items()} | {n: theirs[n] for n in ("A_log", "dt_bias")}


def from_kda(theirs, spec):
    names = {"o_proj.": "out.", "o_norm.": "norm.", "conv1d.": "conv.", "_proj.": ".", "forget_gate.": ""}
    ours = {reduce(lambda name, swap: name.replace(*swap), names.items(), old): t for old, t in theirs.items()}
    return ours | {"A_log": ours["A_log"].flatten()}


REFERENCES = {
    "mamba": (mamba, lambda spec: of_mamba(spec, MambaMixer, MambaConfig), from_mamba),
    "falcon_mamba": (
        lambda rng: mamba(rng, RMSNorm(eps=1e-6, weight=False)),
        lambda spec: of_mamba(spec, FalconMambaMixer, FalconMambaConfig),
        from_mamba,
    ),
    "jamba": (lambda rng: mamba(rng, RMSNorm(eps=1e-5)), of_jamba, from_mamba),
    "mamba2": (mamba2, of_mamba2, from_mamba2),
    "gated_delta": (gated_delta, of_gated_delta, from_gated_delta),
    "kda": (kda, of_kda, from_kda),
    "short_conv": (short_conv, of_short_conv, lambda theirs, spec: theirs),
}
REFERENCE = pytest.mark.parametrize("name", REFERENCES)


def pair(name, seed, **changes):
    """A random Spec's layer and the reference module with the same weights."""
    make, reference, mapped = REFERENCES[name]
    spec = replace(make(random.Random(seed)), **changes)
    theirs, ours = randomised(reference(spec)).eval(), Layer(spec, WIDTH)
    ours.load_state_dict(mapped(theirs.state_dict(), spec))
    return ours, theirs


def step(tokens, kernel="auto", **fields):
    return Step(mask=Mask(tokens, tokens), kernel=kernel, **fields)


def room(spec, rows):
    """An empty cache of one layer."""
    states = {name: torch.full((rows, *shape), float("nan")) for name, shape in spec.state().items()}
    return LayerCache(LayerStore(states=states), (0, rows))


def equal(ours, theirs, tolerance=5e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


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
        now = Started(mask=Mask(tokens, tokens), kernel=kernel, documents=documents, given=states)
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


@EVERY
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
    with pytest.raises(ValueError, match="the stream is 32 wide"):
        Mamba(d_model=16).parts(32)


@EVERY
@pytest.mark.parametrize("sight", [{"causal": False}, {"prefix": torch.tensor([1])}], ids=["both-sides", "prefix"])
def test_a_mask_that_shows_later_tokens_is_refused(kind, sight):
    layer = built(KINDS[kind](random.Random(0)))
    with pytest.raises(ConfigError, match="reads earlier tokens only"):
        layer(torch.randn(1, 3, WIDTH), Step(mask=Mask(3, 3, **sight)))
