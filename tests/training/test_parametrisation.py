"""muP and CompleteP: their multipliers beside the formulas of the papers, and what they are for: changes that do not
depend on the width."""

import math

import pytest
import torch

from support.packaged_specs import load, one_in
from support.tiny_models import spec_of
from zoo.cli import run
from zoo.grammar import from_dict, to_dict
from zoo.run.builder import build
from zoo.training.coordinates import FLAT, check_coordinates, check_depths, fit_slope
from zoo.training.optim import AdamW, Lion, Muon
from zoo.training.parametrisation import CompleteP, MuP, Parametrisation, Standard

WIDTHS = (64, 128, 256)


def groups_of(model, optimizer):
    return {
        name: next(g for g in optimizer.param_groups if any(each is p for p in g["params"]))
        for name, each in model.named_parameters()
    }


@pytest.mark.parametrize("m", [0.5, 2, 8])
def test_the_factors_are_those_of_table_8(m):
    """Yang et al., 2022: of hidden matrices variance 1/fan-in and Adam's rate 1/fan-in, of input weights and biases
    both constant, of output weights a multiplier 1/fan-in. Epsilon and decay as in the package `mup` and Dey et al."""
    base = spec_of(["ffn=moe", "norm=layernorm", "attention.bias=true", "head.tied=false"])
    mup = MuP(base_width=int(base.d_model / m))
    optim = AdamW(lr=0.5, eps=1e-4, weight_decay=0.25)
    model = build(mup.adapt(base), device="cpu")
    groups, plain = groups_of(model, optim.build(model, mup.scale(base))), build(base, device="cpu").state_dict()
    assert model.spec.head.scale == pytest.approx(1 / m)
    for name, each in model.named_parameters():
        group, router = groups[name], ".router." in name
        hidden = "blocks" in name and each.ndim > 1 and not name.endswith("bias") and not router
        narrows, decays = hidden or router, each.ndim > 1 and not name.endswith("bias")
        assert group["lr"] == pytest.approx(0.5 / m if narrows else 0.5), name
        assert group["eps"] == pytest.approx(1e-4 / m), name
        assert group["weight_decay"] == pytest.approx((0.25 * m if narrows else 0.25) if decays else 0.0), name
        power = 0.5 if hidden else 1.0 if router else 0.0
        torch.testing.assert_close(each.detach() * m**power, plain[name], msg=name)


def test_scores_are_divided_by_the_width_of_a_head():
    spec = spec_of(["head_dim=16"])
    adapted = MuP(base_width=32, base_head_dim=4).adapt(spec)
    assert adapted.blocks["layer"].attention.scale == pytest.approx(math.sqrt(4) / 16)
    assert MuP(base_width=32).adapt(spec).blocks["layer"].attention.scale is None


def test_depth_divides_what_sub_layers_add_and_no_rate():
    spec = spec_of(["n_layers=8"])
    completep = CompleteP(base_width=16, base_depth=2)
    adapted = completep.adapt(spec)
    assert adapted.blocks["layer"].residual_scale == pytest.approx(2 / 8)
    model, optim = build(adapted, device="cpu"), AdamW(lr=0.5, eps=1e-4)
    groups = groups_of(model, optim.build(model, completep.scale(spec)))
    assert groups["blocks.3.ffn.down.weight"]["lr"] == pytest.approx(0.5 / 2)
    assert groups["blocks.3.ffn.down.weight"]["eps"] == pytest.approx(1e-4 / 2 / 4)
    assert groups["embedding.tokens.weight"]["eps"] == pytest.approx(1e-4 / 2)
    assert model.blocks[0].ffn.down.weight.std().item() == pytest.approx(0.06 / 2 / math.sqrt(2), rel=0.1)


@pytest.mark.parametrize(
    "parametrisation", [Standard(), MuP(base_width=32), CompleteP(base_width=32, base_depth=3)], ids=lambda p: p.kind
)
@pytest.mark.parametrize("overrides", [[], ["embedding.scale=sqrt_d_model", "head.scale=rsqrt_d_model"]])
def test_at_the_base_nothing_changes(parametrisation, overrides):
    spec = spec_of(overrides)
    ids = torch.randint(0, 67, (2, 9))
    plain, adapted = (build(each, device="cpu") for each in (spec, parametrisation.adapt(spec)))
    torch.testing.assert_close(adapted(ids).logits, plain(ids).logits)
    optimizer = AdamW().build(adapted, parametrisation.scale(spec))
    assert {group["lr"] for group in optimizer.param_groups} == {AdamW().lr}


def test_multipliers_are_in_the_saved_architecture():
    adapted = CompleteP(base_width=16, base_depth=2).adapt(spec_of(["n_layers=4", "ffn=moe"]))
    assert from_dict(to_dict(adapted)) == adapted
    both = MuP(base_width=256).adapt(load("t5-small"))
    assert both.decoder.head.scale == pytest.approx(512**-0.5 * 2**0.5 / 2) and from_dict(to_dict(both)) == both


def test_what_there_is_no_rule_for_is_refused():
    mup = MuP(base_width=32)
    assert mup.refuses(spec_of(), AdamW()) == mup.refuses(spec_of(), Lion()) == []
    assert mup.refuses(spec_of(), Muon()) == [
        "mup has no rule for muon (one of: adamw, adamw8bit, lion, schedule_free)"
    ]
    (found,) = mup.refuses(spec_of(["attention=mamba", "position=none"]), AdamW())
    assert found.startswith("mup has no rule for attention 'mamba' (gqa or mla would do")
    head = "head={kind: mlm, activation: {kind: gelu}, norm: {kind: layernorm}}"
    (found,) = mup.refuses(spec_of(["kind=encoder", head]), AdamW())
    assert found == "mup multiplies logits, and head 'mlm' cannot (lm)"
    assert Standard().refuses(spec_of(["attention=mamba", "position=none"]), Muon()) == []


# ---------------------------------------------------------------- the coordinate check

SIZE = ["d_model=64", "n_heads=2", "n_kv_heads=1", "d_ff=160"]
MODEL = [*SIZE, "n_layers=2", "vocab_size=97", "max_seq_len=64"]


@pytest.mark.parametrize(
    "overrides",
    one_in(3, [[], ["head.tied=false", "ffn=mlp", "norm=layernorm"], ["ffn=moe", "n_experts=4"]]),
    ids=["tied", "untied", "moe"],
)
def test_changes_do_not_depend_on_the_width_under_mup_and_do_under_the_standard(overrides):
    found = check_coordinates("llama-tiny", [*MODEL, *overrides], MuP(base_width=64), WIDTHS)
    assert found.flat, found.slopes
    plain = check_coordinates("llama-tiny", [*MODEL, *overrides], Standard(), WIDTHS)
    assert not plain.flat and max(plain.slopes.values()) > 2 * FLAT, plain.slopes


def test_changes_do_not_depend_on_the_depth_under_completep_and_do_under_mup():
    found = check_depths("llama-tiny", MODEL, CompleteP(base_width=64, base_depth=2), (2, 4, 8))
    assert found.flat, found.slopes
    plain = check_depths("llama-tiny", MODEL, MuP(base_width=64), (2, 4, 8))
    assert plain.slopes["layer"] > 1.5 * FLAT, plain.slopes


def test_a_rule_that_is_left_out_is_seen(monkeypatch):
    monkeypatch.setattr(MuP, "scale", Parametrisation.scale)
    found = check_coordinates("llama-tiny", MODEL, MuP(base_width=64), WIDTHS)
    assert not found.flat, found.slopes


def test_slopes_are_of_logarithms():
    assert fit_slope([64, 128, 256], [3.0, 6.0, 12.0]) == pytest.approx(1.0)
    assert fit_slope([64, 128, 256], [5.0, 5.0, 5.0]) == pytest.approx(0.0)


@pytest.mark.slow
def test_the_command_tells_the_slopes_and_fails_where_they_are_steep(capsys):
    size = [*MODEL, "--widths", "64,128,256"]
    assert run(["check", "llama-tiny", *size, "--coordinates", "mup"]) == 0
    out = capsys.readouterr().out
    assert "attention" in out and "logits" in out and "every slope is within" in out
    assert run(["check", "llama-tiny", *size, "--coordinates", "completep"]) == 0
    assert "change by depth" in capsys.readouterr().out
    assert run(["check", "llama-tiny", *size, "--coordinates", "standard"]) == 1
    assert "changes depend on width under standard" in capsys.readouterr().err
    assert run(["check", "llama-tiny", "--coordinates", "mupp"]) == 2
    assert "did you mean 'mup'?" in capsys.readouterr().err
    assert run(["check", "llama-tiny", "--coordinates", "mup", "--widths", "64"]) == 2
    assert run(["check", "runs/last", "n_layers=2"]) == 2
