"""Compressed convolutional attention, routers that average over depth, and experts that add nothing (ZAYA1)."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers.models.zaya import modeling_zaya as zaya

from support.expert_mixtures import D, E, filled, halves, layer, load, moe, step, tokens
from support.expert_mixtures import F as D_FF
from support.recorded_engines import Running, serve
from support.saved_activations import check
from support.tiny_models import AVERAGED, model_of, spec_of
from zoo.cli import run
from zoo.costs import Setup, price
from zoo.costs.rank_model import context_faults, pipeline_faults
from zoo.distributed.pipeline_schedule import PipelineSchedule
from zoo.errors import ConfigError

OURS = ["attention=cca", "attention.bias=true", "attention.token_width=3", "attention.head_width=4"]
IDS = torch.randint(67, (2, 13), generator=torch.Generator().manual_seed(2))
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def test_padded_rows_and_packed_documents_equal_the_texts_alone():
    """The first convolution's bias goes before each text into the second, and that of the delayed values too."""
    model = model_of(OURS)
    with torch.no_grad():
        whole, short = model(IDS[:1]).logits, model(IDS[1:, :7]).logits
        for sides in ((6, 0), (0, 6)):
            padded = torch.cat((IDS[:1], F.pad(IDS[1:, :7], sides)))
            mask = torch.stack((torch.ones(13, dtype=torch.long), F.pad(torch.ones(7, dtype=torch.long), sides)))
            logits = model(padded, attention_mask=mask).logits
            assert_close(logits[0], whole[0], **CLOSE)
            assert_close(logits[1, mask[1] > 0], short[0], **CLOSE)
        packed, documents = torch.cat((IDS[0], IDS[1, :7]))[None], torch.tensor([[0] * 13 + [1] * 7])
        logits = model(packed, documents=documents).logits
        assert_close(logits[:, :13], whole, **CLOSE)
        assert_close(logits[:, 13:], short, **CLOSE)


@pytest.mark.parametrize("seed", range(2))
def test_two_mixtures_in_a_row_equal_zaya_with_their_gradients(seed):
    config = zaya.ZayaConfig(
        **{"hidden_size": D, "moe_intermediate_size": D_FF, "num_experts": E - 1, "router_hidden_size": 12},
        rms_norm_eps=1e-3,
    )
    references = [filled(zaya.ZayaSparseMoeBlock(config, index), seed + index) for index in range(2)]
    for reference in references:
        reference.gate.balancing_biases *= 0.1
        reference.gate.balancing_biases[-1] = 0.15
    norm = {"kind": "rmsnorm", "eps": 1e-3}
    router = {"kind": "mlp_topk", "d_router": 12, "n_experts": E, "top_k": 1, "mlp_norm": norm}
    ours = [
        load(layer(moe({**router, "depth_average": index > 0}, null_experts=1)), named(reference))
        for index, reference in enumerate(references)
    ]
    x, y = (tokens(seed).requires_grad_() for _ in range(2))
    made, state = [], None
    for reference in references:
        given, state = reference(y if not made else made[-1], state)
        made.append(given)
    first, second = step(x.shape[1], gives=("depth_average",)), step(x.shape[1])
    mine = ours[0](x, first)
    second.taken = first.given
    mine = ours[1](mine, second)
    assert_close(mine, made[-1], atol=5e-5, rtol=1e-5)
    idle = torch.cat(made).detach().eq(0).all(-1)
    assert idle.any() and not idle.all()  # some tokens chose the expert that adds nothing
    for result in (mine, made[-1]):
        result.square().sum().backward()
    assert_close(x.grad, y.grad, **CLOSE)
    for own, reference in zip(ours, references, strict=True):
        assert_close(own.router.down.weight.grad, reference.gate.down_proj.weight.grad, **CLOSE)
        assert_close(own.experts["down"].weight.grad, reference.experts.down_proj.grad, **CLOSE)


def named(reference):
    """The tensors of a mixture of ZAYA1 under our names."""
    gate, mlp, experts = reference.gate, reference.gate.router_mlp, reference.experts
    linears = {"down": gate.down_proj, "first": mlp.fc1, "second": mlp.fc2, "gate": mlp.out_proj}
    made = {f"router.{name}.weight": each.weight for name, each in linears.items()}
    made |= {f"router.{name}.bias": each.bias for name, each in linears.items() if each.bias is not None}
    scale = {"router.average_scale": gate.router_states_scale} if gate.use_eda else {}
    own = {"router.selection_bias": gate.balancing_biases, "router.mlp_norm.weight": mlp.norm.weight}
    return made | scale | own | halves(experts.gate_up_proj) | {"experts.down.weight": experts.down_proj}


def test_experts_that_add_nothing_are_priced_by_how_often_they_are_chosen():
    plain, nulls = (price(spec_of(["ffn=moe", "n_experts=8", "top_k=4", *own])) for own in ([], ["null_experts=2"]))
    one = 3 * 3 * 32 * 48  # three layers
    assert plain["params"]["total"] - nulls["params"]["total"] == 2 * one
    assert plain["params"]["active"] - nulls["params"]["active"] == one
    with pytest.raises(ConfigError, match="zero_experts=5 and null_experts=3 leave none"):
        spec_of(["ffn=moe", "n_experts=8", "null_experts=3", "zero_experts=5"])


def test_a_router_that_averages_over_depth_changes_with_the_router_before_it():
    model = model_of(AVERAGED)
    with torch.no_grad():
        before = model(IDS)
        model.blocks[0].ffn.router.down.bias.add_(1.0)
        first = model.blocks[0].ffn.experts["down"].weight
        first.zero_()
        changed = model(IDS)
        model.blocks[1].ffn.router.average_scale.zero_()
        model.blocks[2].ffn.router.average_scale.zero_()
        cut = model(IDS)
    assert not torch.allclose(before.logits, changed.logits, atol=1e-3)
    assert not torch.allclose(changed.logits, cut.logits, atol=1e-3)


def test_decoding_replays_layers_whose_routers_read_earlier_ones():
    model = model_of(AVERAGED)
    replayed, recordings = serve(model)
    assert replayed == serve(model, Running())[0]
    assert recordings.replayed and not recordings.refused


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_depth_average_is_kept_once_by_the_layer_that_makes_it_or_by_the_one_that_reads_it(dtype):
    check(spec_of([*AVERAGED, "attention=cca"]), batch=2, context=16, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            ["layers={first:{router:{depth_average:true}}}"],
            "no layer before layer 0 has a router that makes a depth average",
        ),
        (
            ["layers={first:{router:{depth_average:false,d_router:8}}}"],
            "the router before layer 1 is 8 wide, its own 12",
        ),
    ],
)
def test_a_router_needs_one_before_it_that_is_as_wide(changes, fault):
    with pytest.raises(ConfigError, match=fault):
        spec_of([*(each for each in AVERAGED if not each.startswith("layers=")), *changes])


def test_ways_to_divide_it_are_refused_with_a_reason(capsys):
    spec = spec_of([*AVERAGED, "attention=cca"])
    with pytest.raises(
        ConfigError, match="tp: ranks divide heads, and 'cca' makes the values of some of the token before"
    ):
        price(spec, Setup(tp=2))
    assert context_faults(spec, 2) == ["cp: 2 ranks would each have some tokens, and 'cca' layers need a row's (cp=1)"]
    assert pipeline_faults(spec, PipelineSchedule(stages=2)) == [
        "pp: is 2, and routers read an earlier one's, which another stage may have (pp=1)"
    ]
    assert run(["stats", "llama-tiny", "kind=encoder", "attention=cca", "~head.tied", "head.kind=none"]) == 2
    assert "attention 'cca' reads only what came before" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is odd, and half of the values are of the token before"):
        spec_of(["attention=cca", "n_kv_heads=1", "head_dim=9", "position=none"])
    with pytest.raises(ConfigError, match="beside a residual that has weights of its own"):
        spec_of(["block.residual={kind: affine}", "block.residual_scale=0.5"])
