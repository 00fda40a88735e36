"""Random recurrent mixers for tests, and the reference modules with their weights."""

import random
from dataclasses import replace
from functools import reduce

import pytest
import torch
from transformers import (
    FalconMambaConfig,
    JambaConfig,
    KimiLinearConfig,
    Lfm2Config,
    Mamba2Config,
    MambaConfig,
    Qwen3NextConfig,
)
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from zoo.cache.cache import LayerCache
from zoo.cache.pool_store import LayerStore
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.activation import Sigmoid
from zoo.model.attention.delta import GatedDelta
from zoo.model.attention.kda import KDA
from zoo.model.attention.linear import GLA, Lightning
from zoo.model.attention.mamba import Mamba
from zoo.model.attention.mamba2 import Mamba2
from zoo.model.attention.mlstm import MLSTM
from zoo.model.attention.retention import Retention
from zoo.model.attention.rg_lru import RGLRU
from zoo.model.attention.rwkv import RWKV
from zoo.model.attention.rwkv7 import RWKV7
from zoo.model.attention.short_conv import ShortConv
from zoo.model.norm import LayerNorm, RMSNorm
from zoo.model.position.none import NoPosition
from zoo.model.step import Step
from zoo.run.layer import Layer

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


def rg_lru(rng):
    sizes = {"n_heads": rng.choice([1, 2, 3]), "d_inner": rng.choice([12, 24]), "d_conv": rng.choice([2, 3, 4])}
    return RGLRU(**sizes, bias=rng.random() < 0.5, chunk_size=rng.choice([2, 8, 64]))


def rwkv(rng):
    return RWKV(d_model=WIDTH, d_inner=rng.choice([12, 24]), chunk_size=rng.choice([2, 8, 64]))


def rwkv7(rng):
    sizes = {"n_heads": rng.choice([1, 2, 3]), "head_dim": rng.choice([4, 7])}
    ranks = {"decay_rank": 5, "rate_rank": 3, "gate_rank": 6}
    return RWKV7(d_model=WIDTH, **sizes, **ranks, chunk_size=rng.choice([2, 8, 64]))


def mlstm(rng, **fields):
    sizes = {"n_heads": rng.choice([1, 2, 3]), "head_k_dim": rng.choice([4, 7]), "head_v_dim": rng.choice([6, 8])}
    return MLSTM(**sizes, bias=rng.random() < 0.5, norm_eps=1e-2, chunk_size=rng.choice([3, 5, 64]), **fields)


def retention(rng, position=None):
    sizes = {"n_heads": rng.choice([1, 2, 3]), "head_k_dim": rng.choice([4, 6]), "head_v_dim": rng.choice([6, 8])}
    norm = LayerNorm(eps=1e-2, weight=False, bias=False)
    return Retention(**sizes, position=position or NoPosition(), norm=norm, chunk_size=rng.choice([3, 5, 64]))


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
    "rg_lru": rg_lru,
    "rwkv": rwkv,
    "rwkv7": rwkv7,
    "mlstm": mlstm,
    "mlstm_uncapped": lambda rng: mlstm(rng, gate_softcap=None),
    "retention": retention,
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
    return Step(KeyView(Mask(tokens, tokens)), kernel=kernel, **fields)


def room(spec, rows):
    """An empty cache of one layer."""
    states = {name: torch.full((rows, *shape), float("nan")) for name, shape in spec.state().items()}
    return LayerCache(LayerStore(states=states), slice(0, rows))


def equal(ours, theirs, tolerance=5e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
