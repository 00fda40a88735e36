"""What is counted follows from roles, not from names: a component whose parts are called otherwise costs what its twin
does; and one that does not say how it is shared out is refused."""

from collections import Counter
from dataclasses import replace

import pytest

from support.packaged_specs import load
from support.tiny_models import spec_of
from zoo.analysis.explain.flops import Flops
from zoo.analysis.explain.parameters import list_parameter_lines as explain_parameters
from zoo.analysis.explain.terms import trace_spec
from zoo.cli import run
from zoo.costs import Setup, price
from zoo.costs.operators import operators
from zoo.costs.params import count_parameters
from zoo.costs.rank_tensors import fullest, stages
from zoo.costs.roofline import roofline
from zoo.costs.rows import tabulate
from zoo.costs.setup import CONVENTIONS
from zoo.costs.traffic import traffic
from zoo.errors import ConfigError
from zoo.model.attention.base import Attention
from zoo.model.attention.gqa import GQA
from zoo.model.block.sublayers import Pre
from zoo.model.head import LMHead
from zoo.model.moe import MoE
from zoo.model.router import SoftmaxTopK
from zoo.run.fp8 import explain_no_effect
from zoo.spec import Linear, Spec, owner_of, tensors

ANOTHER = {
    "block": {
        "attention_norm": "ln1",
        "attention": "mixer",
        "cross_norm": "ln3",
        "cross": "encdec",
        "ffn_norm": "ln2",
        "ffn": "mlp",
    },
    "head": {"out": "proj"},
    "attention": {"q": "query", "k": "key", "v": "value", "o": "norm"},
    "moe": {"router": "gate", "experts": "bank", "shared": "common"},
    "router": {"gate": "head"},
}
"""Other names for the parts of a component; some are those of what they are not."""


def under(names, parts):
    return {names.get(name, name): part for name, part in parts.items()}


@pytest.fixture
def renamed():
    """Components that differ from packaged ones in the names of their parts alone, registered for one test."""
    before = {axis: dict(axis.kinds) for axis in (Pre, LMHead, GQA, MoE, SoftmaxTopK)}

    class Block(Pre, kind="renamed"):
        def parts(self, d_model):
            return under(ANOTHER["block"], Pre.parts(self, d_model))

    class Head(LMHead, kind="renamed"):
        def parts(self, d_model):
            return under(ANOTHER["head"], LMHead.parts(self, d_model))

    class Own(GQA, kind="renamed"):
        def parts(self, d_model):
            return under(ANOTHER["attention"], GQA.parts(self, d_model))

    class Mixture(MoE, kind="renamed"):
        def parts(self, d_model):
            return under(ANOTHER["moe"], MoE.parts(self, d_model))

    class Router(SoftmaxTopK, kind="renamed"):
        def parts(self, d_model):
            return under(ANOTHER["router"], SoftmaxTopK.parts(self, d_model))

    yield {Pre: Block, LMHead: Head, GQA: Own, MoE: Mixture, SoftmaxTopK: Router}
    for axis, kinds in before.items():
        axis.kinds.clear()
        axis.kinds.update(kinds)


def twin(spec, classes):
    """The same numbers in components of the other classes, all the way down."""
    inner = {field.name: getattr(spec, field.name) for field in spec.fields()}
    for name, value in inner.items():
        if isinstance(value, Spec):
            inner[name] = twin(value, classes)
        elif isinstance(value, dict):
            inner[name] = {key: twin(each, classes) for key, each in value.items()}
    return classes.get(type(spec), type(spec))(**inner)


MODELS = {
    "dense": ["head.tied=false"],
    "tied": ["head.tied=true"],
    "mixture": ["ffn=moe", "shared_expert={kind: gated, d_ff: 16, activation: {kind: silu}}"],
    "two towers": ["kind=encoder_decoder", "cross=mha", "head.tied=false"],
}


@pytest.fixture(params=MODELS)
def both(request, renamed):
    spec = spec_of(MODELS[request.param])
    other = twin(spec, renamed)
    ours, theirs = ({name for name, _, _ in tensors(each, each.d_model)} for each in (spec, other))
    assert len(ours) == len(theirs) and len(ours - theirs) > len(ours) / 2  # most are called otherwise
    return spec, other


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_parts_of_other_names_are_counted_the_same_by_every_convention(both, convention):
    figures = [price(spec, parts=["params", "flops", "kv_cache"], convention=convention, context=40) for spec in both]
    assert figures[0] == figures[1]
    assert figures[0]["params"]["by_component"].keys() >= {"norm", "attention", "embedding"}


@pytest.mark.parametrize("decode", [True, False])
def test_parts_of_other_names_make_the_same_operators(both, decode):
    one, other = (operators(spec, Setup(context=40), decode=decode) for spec in both)
    assert one == other and any(op.core for op in one.values())


def test_parts_of_other_names_are_shared_out_the_same(both):
    setup = Setup(gpu="h100", tp=2, pp=2, dp=2, zero=3, optimizer="muon", context=40)
    one, other = both
    for mine, its in zip(stages(one, setup), stages(other, setup), strict=True):
        held = [Counter(each._replace(path="") for each in stage.pieces) for stage in (mine, its)]
        assert held[0] == held[1]
    assert traffic(one, setup) == traffic(other, setup)
    assert roofline(one, setup) == roofline(other, setup)
    assert explain_no_effect(one) == explain_no_effect(other)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_parts_of_other_names_are_explained_by_the_same_formulas(both, convention):
    def explained(spec):
        table = tabulate(trace_spec(spec))
        lines = [*explain_parameters(table), *Flops(table, Setup(convention=convention, context=40)).lines()]
        return [line.row() | {"source": ""} for line in lines]  # a source names the class

    assert explained(both[0]) == explained(both[1])


# ---------------------------------------------------------------- a rank's share


@pytest.fixture
def unsaid():
    """An attention that does not say how it splits over ranks, registered for one test."""

    class Unsaid(Attention, kind="unsaid"):
        def parts(self, d_model):
            return {"inner": Linear(d_model, d_model)}

    yield Unsaid()
    del Attention.kinds["unsaid"]


def test_a_mixer_that_does_not_say_how_it_splits_is_refused_in_words(unsaid):
    spec = spec_of(["position=none"])
    spec = replace(spec, blocks={"layer": replace(spec.blocks["layer"], attention=unsaid)})
    for few in ({}, {"pp": 2}, {"dp": 2}):  # where nothing of it is split
        assert fullest(spec, Setup(**few)).params > 0
    found = "tp: attention 'unsaid' does not say how it splits over 2 ranks"
    with pytest.raises(ConfigError, match=found) as error:
        price(spec, tp=2)
    assert len(error.value.faults) == 1
    with pytest.raises(ConfigError, match="cp: 2 ranks would each have some tokens, and 'unsaid' layers need a row's"):
        price(spec, cp=2)


def test_a_block_that_refuses_as_a_whole_is_refused_in_its_own_words(renamed, monkeypatch):
    def refuse(self, ranks):
        raise ConfigError(f"tp: blocks of kind '{self.kind}' stay whole, found {ranks} ranks (tp=1)")

    monkeypatch.setattr(renamed[Pre], "shard", refuse, raising=False)
    spec = twin(spec_of([]), {Pre: renamed[Pre]})
    with pytest.raises(ConfigError, match="blocks of kind 'renamed' stay whole, found 2 ranks"):
        fullest(spec, Setup(tp=2))


def test_every_fault_of_a_rank_s_share_is_told_at_once():
    spec = spec_of(["ffn=moe", "n_experts=4", "d_ff=20", "n_heads=4", "n_kv_heads=2"])
    with pytest.raises(ConfigError) as error:
        fullest(spec, Setup(tp=8, ep=3, dp=3, pp=99))
    told = "\n".join(error.value.faults)
    for each in ("n_heads=4", "d_ff=20", "n_experts=4", "pp: 99 stages"):
        assert each in told, told


# ---------------------------------------------------------------- reductions


@pytest.mark.parametrize(
    ("overrides", "a_layer"),
    [(["block=pre"], 2), (["block=parallel"], 1), (["block=parallel", "shared_norm=false"], 1), (["block=mixer"], 1)],
)
def test_roofline_and_traffic_send_the_sums_that_a_block_needs(overrides, a_layer):
    """GPT-J adds up attention and feed-forward on each rank and reduces once; a pre-norm layer reduces twice. A ring
    of 2 sends 2·(2 − 1)/2 = 1 times the sum: 3 sequences of 10 tokens, 32 channels, 2 bytes."""
    overrides = [each.replace("shared_norm", "block.shared_norm") for each in overrides]
    spec = spec_of([*overrides, "n_layers=5", "d_model=32"])
    setup, vectors = Setup(gpu="h100", tp=2, batch=3, context=10), 3 * 10 * 32 * 2
    found = roofline(spec, setup)
    assert found["prefill"]["all_reduce"]["bytes"] == 5 * a_layer * vectors
    assert found["decode"]["all_reduce"]["bytes"] == 5 * a_layer * vectors / 10
    both_passes, ends = 5 * (a_layer + next(iter(spec.blocks.values())).gathers), 2  # the token table's and the head's
    norms = sum(row.part.params * row.stored for row in tabulate(spec).parts if "norm" in row.path)
    beside = 3 * 10 * 2 * 4 + norms * 2  # two numbers a token for the loss, and what both ranks have in common
    assert traffic(spec, setup)["tp"]["bytes"] == (both_passes + ends) * vectors + beside


# ---------------------------------------------------------------- ties


def test_the_owner_of_a_tie_is_the_nearest_model_s_and_chains_are_followed():
    ties = {
        "encoder.embedding.tokens": None,
        "decoder.embedding.tokens": "encoder.embedding.tokens",
        "decoder.head.out": "embedding.tokens",
    }
    assert owner_of("decoder.head.out", ties) == "encoder.embedding.tokens"
    assert owner_of("decoder.head.out", ties | {"decoder.embedding.tokens": None}) == "decoder.embedding.tokens"
    assert owner_of("encoder.embedding.tokens", ties) == "encoder.embedding.tokens"


def test_the_gate_of_a_shared_expert_is_counted_by_itself(capsys):
    counted = count_parameters(load("qwen3-next-80b-a3b"))["by_component"]
    assert counted["shared_expert_gate"] == 48 * 2048 and "ffn" not in counted  # one number a token and layer
    assert run(["stats", "qwen3-next-80b-a3b"]) == 0
    assert "gate of the shared expert" in capsys.readouterr().out
