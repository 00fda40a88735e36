"""Initial values by name: what two models share they share from the start."""

import hashlib

import pytest
import torch

from support.tiny_models import LENT, LOOPED, MIXED, MODULES, TOLD, choices, every_choice, name, needs, spec_of
from zoo.model.init import Normal, ScaledInit
from zoo.run.builder import build
from zoo.spec import placed_tensors


def values(overrides=(), seed=0):
    model = build(spec_of(list(overrides)), device="cpu", seed=seed)
    return {key: each.detach() for key, each in model.state_dict().items()}


BASE = values()


@pytest.mark.parametrize(
    "overrides", [each for each in every_choice() if each not in (MIXED, LENT, LOOPED, TOLD, MODULES)], ids=name
)
def test_tensors_of_the_same_name_and_shape_start_equal_in_two_architectures(overrides):
    found = values(overrides)
    shared = [key for key, each in found.items() if key in BASE and each.shape == BASE[key].shape]
    assert any("embedding" in key for key in shared)
    vectors = ("norm.weight", "norm.bias", "_norm.weight", ".bias")
    for key in shared:
        assert torch.equal(found[key], BASE[key]) or key.endswith(vectors), key


@pytest.mark.parametrize("kind", choices("attention"))
def test_a_model_is_drawn_from_its_seed_alone(kind):
    overrides, state = [f"attention={kind}", *needs(f"attention={kind}")], torch.get_rng_state()
    first, second = (values(overrides, seed=3) for _ in range(2))
    assert all(torch.equal(each, second[key]) for key, each in first.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_another_depth_changes_no_layer_that_is_there_but_for_its_scale():
    deep = values(["n_layers=5", "init={kind: normal, residual_scaled: false}"])
    flat = values(["init={kind: normal, residual_scaled: false}"])
    assert all(torch.equal(deep[key], each) for key, each in flat.items())
    scaled = values(["n_layers=5"])["blocks.1.ffn.down.weight"]
    torch.testing.assert_close(scaled * (5 / 3) ** 0.5, BASE["blocks.1.ffn.down.weight"])


def test_each_tensor_has_values_of_its_own_and_each_seed_others():
    drawn = {key: each for key, each in BASE.items() if each.ndim > 1}
    other = values(seed=1)
    assert all(not torch.equal(each, other[key]) for key, each in drawn.items())
    alike = [each for each in drawn.values() if each.shape == drawn["blocks.0.attention.q.weight"].shape]
    assert len(alike) > 3 and all(not torch.equal(a, b) for i, a in enumerate(alike) for b in alike[:i])


def test_a_tensor_is_drawn_from_its_seed_and_name_alone():
    key = "blocks.2.attention.k.weight"
    digest = hashlib.blake2b(f"7 {key}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    found = values(seed=7)[key]
    assert torch.equal(found, torch.empty_like(found).normal_(0.0, 0.06, generator=generator))


def test_the_random_numbers_of_the_program_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    values()
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("wider, deeper", [(4.0, 1.0), (0.5, 3.0)])
def test_a_scaled_start_is_the_bases_divided_as_the_table_says(wider, deeper):
    spec = spec_of(["ffn=moe", "n_layers=4"])
    base, scaled = Normal(), ScaledInit(wider=wider, deeper=deeper)
    for _, row, leaf in placed_tensors(spec, spec.d_model):
        if leaf != "weight":
            continue
        ratio = base.deviation(row, 4 / deeper) / scaled.deviation(row, 4)
        if "router" in row.roles:
            assert ratio == pytest.approx(wider)
        elif row.kind is not None:
            assert ratio == pytest.approx(wider**0.5)
        else:
            assert ratio == 1.0
