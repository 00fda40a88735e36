"""Hyper-connections against transformers' own modules, and what they begin with."""

import pytest
import torch
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as deepseek
from transformers.models.glm5_next import modeling_glm5_next as glm
from transformers.models.hy_v4 import modeling_hy_v4 as hy

from support.tiny_models import spec_of
from zoo.model.connection import read_streams, write_streams
from zoo.run.builder import build

D, STREAMS = 24, 3
CONFIGS = {
    deepseek: {"hc_sinkhorn_iters": 5},
    glm: {"hc_sinkhorn_iters": 5},
    hy: {"hc_magnitude": 1.7},
}
BLOCK = "block=hyper"


def make(module):
    """A connection and a final sum of transformers, every parameter random, and their config."""
    name = {deepseek: "DeepseekV4", glm: "Glm5NextText", hy: "HYV4"}[module]
    config = getattr(module, f"{name}Config")()
    for key, value in {"hidden_size": D, "hc_mult": STREAMS, "hc_eps": 1e-3, **CONFIGS[module]}.items():
        setattr(config, key, value)
    found = getattr(module, f"{name}HyperConnection")(config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
    return found, config


@pytest.mark.parametrize("module", CONFIGS, ids=["sinkhorn", "sinkhorn-mean", "independent"])
def test_a_connection_reads_and_writes_as_the_reference_does(module):
    theirs, config = make(module)
    kind = f"independent, magnitude: {config.hc_magnitude}" if module is hy else "sinkhorn, iterations: 5"
    eps = f"norm_eps: {config.rms_norm_eps}, eps: {config.hc_eps}"
    connection = f"block.connection={{kind: {kind}, n_streams: {STREAMS}, {eps}}}"
    spec = spec_of([BLOCK, f"d_model={D}", connection, f"+streams={{kind: mean, count: {STREAMS}}}"])
    layer = build(spec, device="cpu", dtype="fp32").blocks[0]
    m, block = layer.attention_connection, layer.spec
    x, y = torch.randn(2, 5, STREAMS, D), torch.randn(2, 5, D)
    with torch.no_grad():
        m.project.weight.copy_(theirs.fn)
        m.base.copy_(theirs.base)
        m.scale.copy_(theirs.scale)
        post, *comb, read = theirs(x)
        factors = block.connection.weigh(m, x)
        mixed = comb[0].transpose(-1, -2) @ x if comb else x
        torch.testing.assert_close(read_streams(x, factors.read), read, atol=1e-6, rtol=1e-5)
        written = post[..., None] * y[:, :, None] + mixed
        torch.testing.assert_close(write_streams(x, y, factors), written, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sinkhorn", "independent"])
def test_streams_begin_as_the_one_stream_of_a_pre_norm_block(kind):
    small = "init.std=0.02"  # the connections' own weights begin near 0, and change the streams by that much
    plain = build(spec_of([small]), device="cpu", dtype="fp32").eval()
    overrides = [small, BLOCK, f"block.connection={{kind: {kind}}}", "+streams={kind: mean, count: 4}"]
    several = build(spec_of(overrides), device="cpu", dtype="fp32").eval()
    missing = several.load_state_dict(plain.state_dict(), strict=False)
    assert missing.unexpected_keys == [] and all("connection" in key for key in missing.missing_keys)
    ids = torch.randint(0, 67, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(several(ids).logits, plain(ids).logits, atol=2e-4, rtol=1e-3)
