"""The Spec/Layer core: what a built model is to torch, and what a Spec is to its user."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from support.tiny_models import MIXED, model_of, spec_of
from zoo.errors import ConfigError, FitError
from zoo.grammar import from_dict, to_dict, to_essentials
from zoo.model.attention.base import Attention
from zoo.model.attention.gqa import GQA
from zoo.model.ffn import FFN, MLP
from zoo.model.norm import Norm
from zoo.run.builder import build, check_fit
from zoo.spec import Spec, Weight, components
from zoo.training.optim import AdamW


def test_counting_imports_the_kinds_that_a_model_names_alone():
    count = "import sys, zoo.compose, zoo.costs; zoo.costs.price(zoo.compose.load('llama3-8b'))"
    code = f"{count}; print(*(name for name in sys.modules if name.startswith('zoo.model.')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = done.stdout.split()
    assert {"zoo.model.attention.gqa", "zoo.model.block.sublayers", "zoo.model.position.rotary"} <= {*names}
    others = ("mamba", "delta", "mla", "linear", "kda", "hyper", "altup", "bias", "absolute", "mlp_router", "task_head")
    assert not [name for name in names if name.rpartition(".")[2] in others]


WITHOUT_SOURCES = "from pathlib import Path; from zoo.spec.kinds import KindSource; KindSource.file = Path('nowhere'); "


@pytest.mark.parametrize("before", ["", WITHOUT_SOURCES], ids=["sources", "compiled"])
@pytest.mark.parametrize("kind", ["gated", "gla", "grouped_linear", "mean_pooled"])
def test_a_kind_is_found_wherever_its_class_stands(kind, before):
    """Of one axis, though another has a kind of this name, and in an order that does not depend on which came first."""
    look = "from zoo.model.attention.base import Attention; from zoo.model.attention.indexer import Indexer"
    code = f"{before}{look}; print({kind!r} in Attention.kinds, {kind!r} in Indexer.kinds, *Attention.kinds)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    attention, indexer, *order = done.stdout.split()
    assert (attention, indexer) == (str(kind in ("gla", "grouped_linear")), str(kind == "mean_pooled"))
    assert order == list(Attention.kinds)
    assert len(order) > 30


def test_equal_blocks_compile_once():
    torch.compiler.reset()
    model, counter = model_of(["n_layers=6"]), CompileCounter()
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    model(torch.randint(0, 67, (2, 12)))
    assert counter.frame_count == 1


def test_a_pattern_of_two_kinds_compiles_each_kind_once():
    torch.compiler.reset()
    model, counter = model_of(MIXED), CompileCounter()
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    model(torch.randint(0, 67, (2, 12)))
    assert counter.frame_count == 2


def test_the_model_exports():
    model = model_of()
    ids = torch.randint(0, 67, (2, 12))
    exported = torch.export.export(model, (ids,)).module()
    torch.testing.assert_close(exported(ids).logits, model(ids).logits)


def test_a_deep_copy_shares_nothing_and_keeps_its_tie():
    model = model_of()
    twin = copy.deepcopy(model)
    ids = torch.randint(0, 67, (1, 8))
    before = model(ids).logits
    torch.testing.assert_close(twin(ids).logits, before)
    with torch.no_grad():
        twin.embedding.tokens.weight.zero_()
    assert twin(ids).logits.abs().max() == 0  # its head is tied to its own table
    torch.testing.assert_close(model(ids).logits, before)


def test_forward_hooks_see_what_passes():
    model, seen = model_of(), []
    model.blocks[1].attention.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(torch.randint(0, 67, (2, 12)))
    assert seen == [(2, 12, 32)]


def test_one_parameter_is_held_once_and_loads_back_strictly():
    model, twin = model_of(seed=1), model_of(seed=2)
    twin.load_state_dict(model.state_dict(), strict=True)
    ids = torch.randint(0, 67, (1, 8))
    torch.testing.assert_close(twin(ids).logits, model(ids).logits)


@pytest.mark.parametrize("rows", [1, 2, 32, 33])
def test_a_few_rows_in_bfloat16_give_what_torchs_linear_gives(rows):
    linear = model_of(dtype="bf16").blocks[0].ffn.up
    x = torch.randn(1, rows, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = torch.nn.functional.linear(x.float(), linear.weight.float())
        assert linear(x).is_contiguous()
        torch.testing.assert_close(linear(x).float(), expected, atol=0.03, rtol=0.01)


def test_equal_layers_are_one_spec():
    spec = spec_of(["n_layers=6"])
    copies = {path: count for path, component, count in components(spec, spec.d_model) if component.axis == "block"}
    assert list(copies.values()) == [6]


def test_every_fault_of_a_component_is_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        spec_of(["attention.n_hed=4", "norm.eps=small", "d_model=none"])
    text = str(caught.value)
    assert "attention.n_hed" in text and "norm.eps" in text and "d_model" in text
    assert "did you mean 'n_heads'?" in text


def test_a_fault_is_reported_where_the_value_was_stated():
    with pytest.raises(ConfigError, match=r"^n_kv_heads: .*found 'two'"):
        spec_of(["n_kv_heads=two"])


def test_a_dimension_that_nothing_reads_is_refused():
    with pytest.raises(ConfigError, match="window: nothing in this model reads it"):
        spec_of(["window=8", "attention=gqa"])


def test_an_impossible_combination_is_refused_before_any_tensor():
    with pytest.raises(ConfigError, match="n_heads=4 is not a multiple of n_kv_heads=3"):
        spec_of(["n_kv_heads=3"])
    with pytest.raises(ConfigError, match="rotary_dim=7 must be even"):
        spec_of(["head_dim=7"])
    with pytest.raises(ConfigError, match="no layer is named 'nera'"):
        spec_of(["pattern=[nera]", "layers={near:{window:4}}"])


NEAR = "pattern=[near,layer]"


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["kind=encode"], r"^kind: 'encode' is not a choice of topology \(did you mean 'encoder'"),
        (
            ["kind=encoder", "attention=mamba"],
            r"attention 'mamba' reads only what came before, and this is of kind 'encoder'",
        ),
        (
            ["attention=longformer", "window=4"],
            r"attention 'longformer' lets a token see later ones, and this is of kind 'decoder'",
        ),
        (["layers=[1]"], r"^layers: is \[1\], not a mapping"),
        (["layers={near:3}", NEAR], r"^layers\.near: is 3, not a mapping"),
        (["layers={near:{window:4}}", NEAR], r"^layers\.near\.window: nothing in these layers reads it"),
        (["layers={near:{windw:4}}", NEAR], r"^layers\.near\.windw: no such key"),
        (["layers={near:{attention:{window:4}}}"], r"^layers\.near: no layer is of this kind"),
        (["layers={near:{attention:{n_heads:'${up:nope}'}}}", NEAR], r"^layers\.near: nope: is missing"),
        (["pattern=3"], r"^pattern: no layer is named '3'"),
        (
            ["embedding.scale=sqrt"],
            r"^embedding\.scale: must be a finite number or sqrt_d_model, found 'sqrt' \(null would do\)$",
        ),
        (["attention.kind='\ud800'"], r"^attention: kind '\\ud800' is not a choice of attention"),  # no character
        *(
            ([f"attention={kind}", "+attention.memory_width=64"], r"^block: attention.memory_width is of an encoder's")
            for kind in ("gqa", "dynamic_gqa")
        ),
        (["vocab_size=many"], r"^vocab_size: [^\n]*found 'many'$"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(overrides, fault):
    with pytest.raises(ConfigError, match=fault) as caught:
        spec_of(overrides)
    assert len(caught.value.faults) == 1


def test_a_pattern_of_unknown_kinds_is_refused_in_plain_data_too():
    node = to_dict(spec_of()) | {"pattern": ["layer", "other"]}
    with pytest.raises(ConfigError, match=r"^model: pattern names 'other', the kinds of layer are: layer"):
        from_dict(node)


def test_a_field_that_is_off_is_in_no_hash_so_that_a_component_may_gain_one():
    off, on = (
        to_essentials(spec_of(given))["blocks"]["layer"]["attention"] for given in ([], ["attention.sinks=true"])
    )
    assert "sinks" not in off and on == {**off, "sinks": True}


def test_a_spec_is_frozen_and_compares_by_value():
    assert spec_of() == spec_of()
    with pytest.raises(AttributeError):
        spec_of().d_model = 3


def test_a_component_of_the_users_own_works_by_its_class_alone():
    class Doubled(Norm, kind="doubled_for_a_test"):
        """2·weight·x."""

        def parts(self, d_model):
            return {"weight": Weight((d_model,), init=1.0)}

        def forward(self, m, x):
            return 2 * m.weight * x

    try:
        model = build(replace(spec_of(), norm={"kind": "doubled_for_a_test"}), device="cpu")
        assert type(model.spec.norm) is Doubled and model.norm.weight.shape == (32,)
        assert model(torch.randint(0, 67, (1, 4))).logits.shape == (1, 4, 67)
    finally:
        del Norm.kinds["doubled_for_a_test"]


def test_decay_pulls_matrices_and_tables_and_leaves_scales_and_biases():
    model = model_of(["norm=layernorm", "bias=true"])
    pulled, left = AdamW(weight_decay=0.1).make_groups(model)
    assert pulled["weight_decay"] == 0.1 and left["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in pulled["params"]) and all(p.ndim == 1 for p in left["params"])
    assert len(pulled["params"]) + len(left["params"]) == len(list(model.parameters()))


def test_initial_values_follow_the_parts():
    model = build(spec_of(["bias=true", "n_layers=8", "d_model=64", "d_ff=256"]), device="cpu", seed=1)
    block = model.blocks[0]
    assert block.attention.q.bias.abs().max() == 0 and (block.attention_norm.weight == 1).all()
    assert block.ffn.up.weight.std().item() == pytest.approx(0.06, rel=0.05)
    assert block.ffn.down.weight.std().item() == pytest.approx(0.06 / 4, rel=0.05)  # 1/√(2·8)


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    first, same, other = (build(spec_of(), device="cpu", seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["blocks.0.ffn.up.weight"], other["blocks.0.ffn.up.weight"])


def test_a_model_that_does_not_fit_is_refused_with_what_would_do(monkeypatch):
    monkeypatch.setattr("zoo.run.builder.read_free_memory", lambda device: 100_000)
    with pytest.raises(FitError, match=r"parameters need .* GB in float32, cpu has 0\.0 GB free .*meta needs none"):
        check_fit(spec_of(), torch.device("cpu"), torch.float32)


def test_a_meta_build_allocates_nothing():
    model = build("llama3.1-405b", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 405_853_388_800
    assert all(p.device.type == "meta" for p in model.parameters())


def test_python_code_may_state_components_directly():
    spec = MLP(d_ff=8, activation={"kind": "relu"})
    assert isinstance(spec, FFN) and isinstance(spec, Spec)
    attention = GQA(n_heads=2, n_kv_heads=1, head_dim=4, position={"kind": "alibi"})
    assert attention.position.slopes_of(4) == [2**-2, 2**-4, 2**-6, 2**-8]


@pytest.mark.parametrize("n_heads", [1, 2, 3, 8, 12, 71])
def test_alibi_slopes_are_those_of_the_reference(n_heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2), n_heads, torch.float32)[:, 0, 1]  # the slope times a position of 1
    ours = GQA(n_heads=1, n_kv_heads=1, head_dim=4, position={"kind": "alibi"}).position.slopes_of(n_heads)
    torch.testing.assert_close(torch.tensor(ours), theirs, rtol=1e-6, atol=0)
