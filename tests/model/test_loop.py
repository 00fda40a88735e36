"""Layers that are run several times: against the same layers written out, against no loop where messages say nothing,
and what a loop asks of the rest."""

import pytest
import torch
from torch.testing import assert_close

from support.tiny_models import LOOPED, MODULES, TOLD, model_of, spec_of
from zoo.analysis.solve.proportions import ComposedModel
from zoo.checkpoint import hf
from zoo.cli import run
from zoo.families.family import read_family
from zoo.model.layer_loop import Loop
from zoo.probes.shrink import SizeDemand, shrink
from zoo.run.builder import build

IDS = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(8))


def written_out(model):
    """The same layers, each visit with a copy of their weights."""
    plain = [each for each in LOOPED if not each.startswith("+loop")]
    made = build(spec_of(plain), device="cpu", dtype="fp32").eval()
    weights = model.state_dict()
    for name in made.state_dict():
        head, _, rest = name.partition("blocks.")
        if rest:
            place, _, leaf = rest.partition(".")
            weights[name] = model.state_dict()[f"{head}blocks.{model.spec.stack.index(int(place))}.{leaf}"]
    made.load_state_dict({name: weights[name].clone() for name in made.state_dict()})
    return made


def test_a_loop_equals_its_layers_written_out_and_its_gradients_are_the_sums_of_theirs():
    looped = model_of(LOOPED)
    plain = written_out(looped)
    assert len(looped.blocks) == 4 and len(plain.blocks) == 8
    assert_close(looped(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)
    for model in (looped, plain):
        model(IDS).logits.square().mean().backward()
    number = looped.spec.stack.index
    for index, layer in enumerate(looped.blocks):
        visits = [plain.blocks[place] for place in range(8) if number(place) == index]
        assert len(visits) == (3 if index in (1, 2) else 1)
        for name, own in layer.named_parameters():
            theirs = sum(visit.get_parameter(name).grad for visit in visits)
            assert_close(own.grad, theirs, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_passes_that_are_told_nothing_find_what_the_first_found():
    model = model_of(TOLD)
    loud = model(IDS).logits
    for name, parameter in model.named_parameters():
        if "message" in name and name.endswith(("forget.weight", "gain.weight")):
            parameter.zero_()
    once = [each for each in TOLD if not each.startswith(("+loop", "pattern", "n_layers"))]
    plain = build(
        spec_of([*once, "pattern=[first,round,near,last]", "n_layers=4", "~layers.again", "~layers.near_again"]),
        device="cpu",
        dtype="fp32",
    ).eval()
    held = model.state_dict()
    plain.load_state_dict({name: held[name] for name in plain.state_dict()})
    assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)
    assert float((loud - plain(IDS).logits).abs().max()) > 1e-2


@torch.no_grad()
def test_a_message_is_read_of_the_groups_that_ended_in_the_pass_before():
    model = model_of(TOLD)
    seen = {}
    for place, layer in enumerate(model.blocks):
        layer.register_forward_hook(
            lambda layer, given, out, place=place: seen.setdefault(place, []).append((given, out))
        )
    model(IDS)
    assert [len(seen[place]) for place in range(4)] == [1, 3, 3, 1]
    for number in (1, 2):  # what the last layer of each pass gives is what the next pass is told of
        (x, step), _ = seen[1][number]
        assert_close(x, seen[1][0][0][0])  # each begins with what went into the first
        assert_close(step.taken["passed"].x, seen[2][number - 1][1])
        found = seen[2][number - 1][0][1].taken[
            "groups"
        ]  # its last layer ends the group of the first, which its input is
        assert_close(
            step.taken["passed"].earlier,
            model.blocks[1].message_read.norm(seen[2][number - 1][0][0].float())[:, :, None],
        )
        assert found.shape[2] == 2
        assert step.taken["groups"].shape == seen[1][0][0][1].taken["groups"].shape
    assert seen[1][0][0][1].read("passed") is None and seen[3][0][0][1].read("passed") is None


@torch.no_grad()
def test_two_modules_refine_a_state_each():
    model = model_of(MODULES)
    model.loop.low.copy_(torch.randn(32, generator=torch.Generator().manual_seed(2)))
    seen = {}
    for place, layer in enumerate(model.blocks):
        layer.register_forward_hook(
            lambda layer, given, out, place=place: seen.setdefault(place, []).append((given[0], out))
        )
    model(IDS)
    first, second, high = (seen[place] for place in range(3))
    assert [len(seen[place]) for place in range(5)] == [2, 2, 2, 1, 1]
    begun = model.embedding.tokens(IDS)
    low = model.loop.low.expand_as(begun)
    for number in range(2):
        assert_close(first[number][0], low + begun)
        low = second[number][1]
        assert_close(high[number][0], low + begun)
        begun = high[number][1]
    assert_close(seen[3][0][0], begun)  # what comes out of the loop


def test_places_are_numbered_by_their_weights():
    loop = Loop.parse({"kind": "plain", "start": 1, "end": 3, "passes": 2})
    assert loop.number(7) == (0, 1, 2, 1, 2, 3, 4)
    deep = Loop.parse({"kind": "hierarchical", "start": 1, "end": 4, "passes": 2, "low_layers": 2, "low_passes": 2})
    assert deep.number(13) == (0, *(1, 2, 1, 2, 3) * 2, 4, 5) and deep.stop == 11


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["+loop={start:2,end:2}"], "loop: end is 2, and the loop starts at 2 (3 or more)"),
        (["+loop={end:3,passes:1}"], "loop.passes: must be greater than or equal to 2, found 1"),
        (["n_layers=5", "+loop={end:3}"], "loop: its 2 passes, 6 layers in all, end at 6, and there are 5"),
        (["n_layers=4", "+loop={end:2}", "shared_layers=true"], "a loop says which layers have the same weights"),
        (
            ["n_layers=4", "+loop={end:2}", "pattern=[near*2,layer*2]", "+layers={near:{attention:{window:4}}}"],
            "pattern: layer 0 is 'near', and 'layer' where its weights are used last (the same)",
        ),
        (
            ["n_layers=4", "+loop={kind:restarting,end:2}", "block=attention_residual"],
            "block.messages: layer 2, of pass 2, has none (give it some)",
        ),
        (
            ["n_layers=4", "block=attention_residual", "+block.messages={kind:low_rank}"],
            "block.messages: are from the pass before, and there is none (loop: {kind: restarting})",
        ),
        (
            ["n_layers=4", "+loop={end:2}", "--pp", "2"],
            "pp: is 2, and a loop runs layers again, which another stage may have",
        ),
        (
            ["+loop={kind:hierarchical,end:3,low_layers:3}"],
            "low_layers is 3, and the loop has 3 layers (fewer, so that",
        ),
        (
            ["n_layers=4", "+loop={kind:hierarchical,end:2,low_layers:1}", "block=attention_residual"],
            "reads groups of layers, and the loop adds up two states (block: pre)",
        ),
        (["block=attention_residual", "block.joint_read=true"], "joint_read is of an attention that reads several"),
    ],
)
def test_what_goes_round_in_no_loop_is_refused_in_one_line(overrides, fault, capsys):
    assert run(["stats", "llama-tiny", *overrides]) == 2
    said = capsys.readouterr().err
    assert fault in said and len(said.splitlines()) == 1


def test_a_shape_keeps_the_depth_that_the_passes_of_a_loop_add_up_to():
    assert "n_layers" in ComposedModel("llama-tiny", []).solved
    assert "n_layers" not in ComposedModel("llama-tiny", ["+loop={start:1,end:2,passes:3}"]).solved


@pytest.mark.parametrize(
    ("overrides", "stored"), [(LOOPED, 4), (TOLD, 4), (MODULES, 4)], ids=["looped", "told", "modules"]
)
def test_a_probe_keeps_a_loop_with_one_layer_of_each_kind(overrides, stored):
    spec = spec_of(overrides)
    small = shrink(spec, SizeDemand(40, 64, False))
    assert (small.loop.kind, small.loop.passes) == (spec.loop.kind, spec.loop.passes)
    assert small.loop.sections == spec.loop.sections and len(small.stack.stored()) == stored


@pytest.mark.parametrize("stated", [True, False])
def test_the_published_names_of_a_loops_fields_are_read(stated):
    """A config.json of Inkling 2 has `loop_config`, transformers writes the same flat."""
    flat = {"core_start": 2, "core_end": 4, "num_passes": 2, "gate_rank": 5}
    names = ("loop_layer_index_start", "loop_layer_index_end", "loop_num_passes", "loop_gate_rank")
    config = {"loop_config": flat} if stated else dict(zip(names, flat.values(), strict=True))
    config |= {"num_hidden_layers": 6, "n_layers_per_attn_res_block": 2, "model_type": "inkling2_loop_text"}
    spec = hf.compose_spec(read_family("inkling2_loop_text").body(config, "config.json"))
    assert (spec.loop.start, spec.loop.end, spec.loop.passes, len(spec.pattern)) == (2, 4, 2, 8)
    assert next(block.messages.rank for block in spec.blocks.values() if block.messages) == 5
