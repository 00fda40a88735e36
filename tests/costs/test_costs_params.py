"""Parameters: equal to those of the built model, component by component and kind by kind, and to published counts."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, reject, settings

from support.packaged_specs import load, one_in
from support.random_architectures import architectures
from support.tiny_models import MIXED, every_choice, name, spec_of
from zoo.compose.targets import list_packaged
from zoo.costs import price
from zoo.costs.params import count_parameters
from zoo.errors import ConfigError
from zoo.model.norm import Norm
from zoo.run.builder import build
from zoo.spec import table, walk


def agree(spec):
    """Every figure is what the model holds that is built of the Spec, which on meta takes no memory."""
    model, figures = build(spec, device="meta"), count_parameters(spec)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == table(spec, spec.d_model)
    assert figures["total"] == sum(p.numel() for p in model.parameters())
    assert figures["buffers"] == sum(b.numel() for b in model.buffers())
    components, kinds = Counter(), Counter()
    for label, tower in spec.towers().items():
        module = model.get_submodule(label)
        for child, inner in module.named_children():
            norms = 0 if child in ("blocks", "embedding", "norm") else sum(held(norm) for norm in norms_of(inner))
            components["norm"] += norms
            component = "depth_read" if child == "final_read" else child
            components[component] += held(inner) - norms if child != "blocks" else 0
        for index, kind in enumerate(tower.stack.stored()):
            kinds[f"{label}.{kind}".lstrip(".")] += held(module.blocks[index])
            for child, inner in module.blocks[index].named_children():
                components.update(parted(child, inner))
            components.update({name: own.numel() for name, own in module.blocks[index].named_parameters(recurse=False)})
    assert figures["by_component"] == {key: value for key, value in components.items() if value}
    layers = figures["by_layer_kind"]
    assert {kind: each["total"] for kind, each in layers.items() if each["stored"]} == kinds
    assert sum(each["layers"] for each in layers.values()) == sum(len(t.pattern) for t in spec.towers().values())
    assert sum(figures["by_component"].values()) == figures["total"]
    assert figures["embedding"] + figures["non_embedding"] == figures["total"]


def held(module):
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def norms_of(module):
    return [inner for inner in module.modules() if isinstance(getattr(inner, "spec", None), Norm)]


def parted(child, module):
    """What a child of a layer holds, by component."""
    if child.endswith("norm"):
        return {"norm": held(module)}
    axis = getattr(getattr(module, "spec", None), "axis", None)
    if axis != "ffn":
        by_axis = axis in ("connection", "residual", "out_conv", "depth_read", "message_gate")
        return {axis if by_axis else child.removeprefix("second_"): held(module)}
    inner = {"router": "router", "experts": "experts", "shared": "shared_expert"}
    parts = {label: held(getattr(module, key, None)) for key, label in inner.items()}
    return parts | {"ffn": held(module) - sum(parts.values())}


@pytest.mark.parametrize("model", one_in(12, list_packaged()))
def test_a_packaged_model_holds_what_is_counted(model):
    agree(load(model))


@pytest.mark.parametrize("choice", list(every_choice()), ids=name)
def test_every_choice_of_every_axis_holds_what_is_counted(choice):
    agree(spec_of(choice))


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(architectures())
def test_any_legal_combination_holds_what_is_counted(body):
    try:
        spec = load(body)
    except ConfigError:
        reject()
    agree(spec)


# ---------------------------------------------------------------- published, or worked out by hand

PUBLISHED = {
    **{"gpt2": 124_439_808, "llama3-8b": 8_030_261_248, "llama3.2-1b": 1_235_814_400, "qwen2.5-7b": 7_615_616_512},
    **{"qwen3-4b": 4_022_468_096, "gemma2-9b": 9_241_705_984, "mixtral-8x7b": 46_702_792_704},
    **{"qwen3-30b-a3b": 30_532_122_624, "deepseek-v3": 671_026_404_352, "gpt-oss-20b": 20_914_757_184},
    **{"falcon-7b": 6_921_720_704, "bloom-560m": 559_214_592, "bert-base": 109_514_298, "t5-small": 60_506_624},
    **{"bart-large": 406_291_456, "minimax-m2": 228_689_748_992, "glm-4.7-flash": 29_943_390_976},
    **{"granite-4.0-micro": 3_402_836_480, "granite-4.0-h-tiny": 6_939_037_248},
    "granite-4.0-h-small": 32_207_337_984,
}
"""Read off the models that transformers builds."""


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_total_is_the_published_one(model):
    assert count_parameters(load(model))["total"] == PUBLISHED[model]


@pytest.mark.parametrize(
    ("model", "active", "without_table"),
    [
        ("deepseek-v3", 37_552_282_624, 36_625_603_584),
        ("mixtral-8x7b", 12_879_925_248, 12_879_925_248 - 32000 * 4096),
        ("qwen3-30b-a3b", 3_353_032_704, 3_353_032_704 - 151936 * 2048),
        ("gpt-oss-20b", 3_608_307_264 + 201088 * 2880, 3_608_307_264),  # "3.61B active" in its model card
        ("minimax-m2", 11_030_537_216, 11_030_537_216 - 200064 * 3072),
        ("granite-4.0-h-tiny", 1_465_470_528, 1_465_470_528),
        ("granite-4.0-h-small", 8_803_121_664, 8_803_121_664),
        ("qwen3-4b", 4_022_468_096, 4_022_468_096),  # tied: the head multiplies with the whole table
        ("t5-small", 60_506_624, 60_506_624),  # tied, by way of the decoder's own table, to the encoder's
    ],
)
def test_one_token_meets_this_many(model, active, without_table):
    figures = count_parameters(load(model))
    assert (figures["active"], figures["active_without_input_table"]) == (active, without_table)


def test_deepseek_v3_says_which_layers_hold_what():
    kinds = count_parameters(load("deepseek-v3"))["by_layer_kind"]
    attention = 7168 * 1536 + 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 7168
    expert = 3 * 7168 * 2048
    around = attention + 2 * 7168
    assert kinds["dense"] == {
        "layers": 3,
        "stored": 3,
        "total": 3 * (around + 3 * 7168 * 18432),
        "active": 3 * (around + 3 * 7168 * 18432),
    }
    assert kinds["sparse"]["total"] == 58 * (around + 257 * expert + 256 * 7168)
    assert kinds["sparse"]["active"] == 58 * (around + 9 * expert + 256 * 7168)
    assert count_parameters(load("deepseek-v3"))["buffers"] == 58 * 256  # the biases that choose experts


def test_layers_that_share_their_weights_are_stored_once_and_said_to_be_many():
    own, shared = (count_parameters(spec_of([*MIXED, f"shared_layers={flag}"])) for flag in ("false", "true"))
    assert {kind: (each["layers"], each["stored"]) for kind, each in own["by_layer_kind"].items()} == {
        "near": (4, 4),
        "layer": (1, 1),
    }
    assert shared["by_layer_kind"]["near"] == {
        "layers": 4,
        "stored": 1,
        "total": own["by_layer_kind"]["near"]["total"] // 4,
        "active": own["by_layer_kind"]["near"]["active"] // 4,
    }


def test_a_factorised_table_is_small_and_its_projection_is_no_embedding():
    width = 16
    figures = count_parameters(spec_of([f"embedding.width={width}", "head.tied=false"]))
    assert figures["embedding"] == 67 * width + 67 * 32  # the tokens' table, and the head's matrix
    assert figures["by_component"]["embedding"] == 67 * width + width * 32


def test_only_a_heads_matrix_is_embedding_and_what_goes_before_it_is_not():
    spec = load("bert-base")
    tables, transform = (30522 + 512 + 2) * 768, 768 * 768 + 768
    figures = count_parameters(spec)
    assert figures["embedding"] == tables + 30522  # the head is tied, and has a bias
    assert figures["by_component"]["head"] == transform + 30522


@pytest.mark.parametrize("model", ["llama3-8b", "t5-small", "mixtral-8x7b"])
def test_untying_a_head_adds_one_table(model):
    tower = "decoder." if model == "t5-small" else ""
    tied, untied = (count_parameters(load(model, [f"{tower}head.tied={flag}"])) for flag in ("true", "false"))
    table = load(model).vocab_size * load(model).d_model
    assert untied["total"] - tied["total"] == table
    assert untied["active_without_input_table"] == tied["active_without_input_table"]
    assert tied["active_without_input_table"] == tied["active"]


def test_a_price_grows_with_the_kinds_of_layer_and_not_with_the_layers():
    few, many = spec_of(["n_layers=2"]), spec_of(["n_layers=2000"])
    assert len(list(walk(few, few.d_model))) == len(list(walk(many, many.d_model)))
    layer = price(few)["params"]["by_layer_kind"]["layer"]["total"] // 2
    assert price(many)["params"]["total"] - price(few)["params"]["total"] == 1998 * layer
