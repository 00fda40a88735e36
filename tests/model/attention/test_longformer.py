"""Longformer attention: equal to the reference's, and to attention over exactly the keys that are to be seen."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerEncoder, LongformerSelfAttention

from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.activation import GELU
from zoo.model.attention.longformer import Longformer
from zoo.model.block.sublayers import Post
from zoo.model.ffn import MLP
from zoo.model.norm import LayerNorm
from zoo.model.position.bias import ALiBi
from zoo.model.position.none import NoPosition
from zoo.model.position.relative import RelativePosition
from zoo.model.position.rotary import RoPE
from zoo.model.step import Step
from zoo.run.layer import Layer

GLOBALS = ["none", "no-one", "some", "all"]


def scrambled(module, seed=0) -> Any:
    """The module in eval mode with every parameter random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def spec_of(window=2, position=None, n_heads=3, head_dim=4):
    return Longformer(n_heads=n_heads, head_dim=head_dim, window=window, position=position or NoPosition())


def step_of(attention, tokens, real=None, everywhere=None, *, documents=None, kernel="auto"):
    """A hand-made moment: `everywhere` [B, T] are the global tokens."""
    columns, both = torch.arange(tokens), None if documents is None else (documents, documents)
    mask = Mask(tokens, tokens, causal=False, window=attention.window, padding=real, documents=both)
    bias = attention.position.bias(None, attention.n_heads, columns, columns, False)
    step = Step(KeyView(mask, (columns, columns), bias), kernel, real=real, documents=documents)
    step.extra["global"] = everywhere
    step.tables = attention.position.tables(columns[None], attention.head_dim, torch.float32, None)
    attention.prepare(None, step)
    return step


def globals_of(kind, shape, seed=0) -> Any:
    chance = {"no-one": 0.0, "some": 0.25, "all": 1.0}
    if kind == "none":
        return None
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < chance[kind]


def padding(rows, tokens):
    """One row padded at its left, one at its right, others whole."""
    real = torch.ones(rows, tokens, dtype=torch.bool)
    real[0, : tokens // 3], real[1, tokens - tokens // 4 :] = False, False
    return real


def reference_input(x, real, everywhere, window):
    """x, padded to whole windows, and its tokens as the reference tells them apart: < 0 hidden, 0 local, > 0 global."""
    short = -x.shape[1] % (2 * window)
    kinds = torch.zeros(real.shape) if everywhere is None else everywhere.float() * 1e4
    kinds = kinds.masked_fill(~real, -1e4)
    return torch.nn.functional.pad(x, (0, 0, 0, short)), torch.nn.functional.pad(kinds, (0, short), value=-1e4)


def fill(layer, hf):
    names = {"q": "query", "k": "key", "v": "value"}
    for ours, theirs in {**names, **{f"{a}_global": f"{b}_global" for a, b in names.items()}}.items():
        layer.get_submodule(ours).load_state_dict(hf.get_submodule(theirs).state_dict())


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", GLOBALS)
@pytest.mark.parametrize(("tokens", "window"), [(3, 2), (13, 5), (24, 3), (31, 4), (9, 16)])
def test_it_equals_the_reference_whatever_is_global_padded_or_odd(tokens, window, kind, kernel):
    config = LongformerConfig(hidden_size=12, num_attention_heads=3, attention_window=[2 * window])
    hf = scrambled(LongformerSelfAttention(config, 0), tokens)
    torch.manual_seed(tokens)
    x, real = torch.randn(3, tokens, 12), padding(3, tokens)
    everywhere = globals_of(kind, real.shape)
    attention = spec_of(window)
    layer = scrambled(Layer(attention, 12))
    fill(layer, hf)
    layer.o.weight.copy_(torch.eye(12))
    layer.o.bias.zero_()
    ours = layer(x, step_of(attention, tokens, real, everywhere, kernel=kernel))
    padded, kinds = reference_input(x, real, everywhere, window)
    # What is global is asked as the reference's encoder asks.
    theirs = hf(padded, kinds, kinds < 0, kinds > 0, bool((kinds > 0).any()))[0][:, :tokens]
    torch.testing.assert_close(ours[real], theirs[real], atol=5e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", GLOBALS)
def test_layers_of_different_windows_equal_the_references_encoder(kind):
    windows, tokens = (2, 4), 14
    config = LongformerConfig(
        hidden_size=12,
        num_attention_heads=3,
        num_hidden_layers=2,
        intermediate_size=10,
        attention_window=[2 * window for window in windows],
        layer_norm_eps=1e-5,
    )
    encoder = scrambled(LongformerEncoder(config))
    x, real = torch.randn(3, tokens, 12), padding(3, tokens)
    everywhere = globals_of(kind, real.shape, 3)
    ours = x
    for window, hf in zip(windows, encoder.layer, strict=True):
        attention = spec_of(window)
        ffn, norm = MLP(d_ff=10, activation=GELU(), bias=True), LayerNorm(eps=1e-5)
        layer: Any = Layer(Post(attention=attention, norm=norm, ffn=ffn), 12)
        fill(layer.attention, hf.attention.self)
        layer.attention.o.load_state_dict(hf.attention.output.dense.state_dict())
        layer.attention_norm.load_state_dict(hf.attention.output.LayerNorm.state_dict())
        layer.ffn.up.load_state_dict(hf.intermediate.dense.state_dict())
        layer.ffn.down.load_state_dict(hf.output.dense.state_dict())
        layer.ffn_norm.load_state_dict(hf.output.LayerNorm.state_dict())
        ours = layer(ours, step_of(attention, tokens, real, everywhere))
    padded, kinds = reference_input(x, real, everywhere, 4)
    theirs = encoder(padded, kinds).last_hidden_state[:, :tokens]
    torch.testing.assert_close(ours[real], theirs[real], atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_a_local_token_depends_on_its_window_and_on_global_tokens_alone():
    attention = spec_of(2)
    layer = scrambled(Layer(attention, 12))
    x, everywhere = torch.randn(1, 12, 12), torch.zeros(1, 12, dtype=torch.bool)
    everywhere[0, 9] = True
    before = layer(x, step_of(attention, 12, None, everywhere))
    for column in range(12):
        changed = x.clone()
        changed[0, column] += 1
        moved = (layer(changed, step_of(attention, 12, None, everywhere)) - before)[0].abs().amax(-1) > 1e-6
        expected = [abs(i - column) <= 2 or column == 9 or i == 9 for i in range(12)]
        assert moved.tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("position", [NoPosition(), RoPE(), ALiBi()], ids=lambda position: position.kind)
def test_packed_documents_equal_separate_ones_with_global_tokens_among_them(position):
    attention = spec_of(3, position)
    layer = scrambled(Layer(attention, 12))
    x, everywhere = torch.randn(1, 13, 12), globals_of("some", (1, 13))
    packed = step_of(attention, 13, None, everywhere, documents=torch.tensor([[0] * 8 + [1] * 5]))
    parts = [
        layer(x[:, start:end], step_of(attention, end - start, None, everywhere[:, start:end]))
        for start, end in ((0, 8), (8, 13))
    ]
    torch.testing.assert_close(layer(x, packed), torch.cat(parts, 1), atol=1e-5, rtol=1e-5)


def test_counted_flops_equal_torchs_counter_without_and_with_global_tokens():
    attention, tokens, width = spec_of(2), 16, 12
    layer, x = scrambled(Layer(attention, width)), torch.randn(1, 16, width)
    counted = sum(part.flops for part in attention.parts(width).values()) * tokens + attention.core_flops(tokens**2)
    more = 3 * 2 * width * width * tokens + attention.core_flops(tokens**2)  # eager reads all rows anew
    for everywhere, expected in ((None, counted), (globals_of("some", (1, tokens)), counted + more)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x, step_of(attention, tokens, None, everywhere, kernel="eager"))
        assert counter.get_total_flops() == expected


def test_a_gradient_reaches_every_weight_where_some_tokens_are_global():
    attention = spec_of(2)
    layer = scrambled(Layer(attention, 12))
    layer(torch.randn(2, 16, 12), step_of(attention, 16, None, globals_of("some", (2, 16)))).logsumexp(
        -1
    ).mean().backward()
    parameters = layer.named_parameters()
    assert [name for name, p in parameters if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("kind", GLOBALS)
def test_it_compiles_whole_without_a_graph_break(kind):
    torch.compiler.reset()
    attention = spec_of(2)
    layer, everywhere = scrambled(Layer(attention, 12)), globals_of(kind, (2, 11))

    def run(x, everywhere):
        return layer(x, step_of(attention, x.shape[1], None, everywhere))

    x = torch.randn(2, 11, 12)
    with torch.no_grad():
        eager = run(x, everywhere)  # first, as it finds the machine, which a whole model has done before it compiles
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, everywhere), eager, atol=1e-5, rtol=1e-5)


def test_positions_that_only_another_attention_reads_are_refused():
    with pytest.raises(ValidationError, match="no attention but disentangled"):
        spec_of(2, RelativePosition(max_relative_positions=8))
