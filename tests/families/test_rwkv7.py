"""RWKV-7 as published: folders in flash-linear-attention's format, against the paper's equations, and its sizes."""

import json

import pytest
import torch
from safetensors.torch import load_file

import zoo
from support.packaged_specs import load
from support.rwkv7_equations import CONFIG, compute, make_tensors, write_folder
from zoo.model.lending import find_sources


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_published_folder_computes_the_papers_equations_and_is_written_back(norm_first, tmp_path):
    config = {**CONFIG, "norm_first": norm_first}
    tensors = make_tensors(config)
    model = zoo.load(write_folder(tmp_path / "in", config, tensors)).eval()
    ids = torch.randint(0, 97, (2, 19))
    expected = compute(tensors, ids)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits.double(), expected, atol=2e-5, rtol=2e-5)
    alone = zoo.generate(model, ids[:1], 5)
    for token in range(19, 24):
        assert alone[0, token] == compute(tensors, alone[:, :token])[0, -1].argmax()
    zoo.export(model, tmp_path / "out", verify=False)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == tensors.keys() and all(torch.equal(after[name], each) for name, each in tensors.items())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: written[name] for name in config} == config


def count_by_the_paper(d, layers, decay, rate, value, gate, vocab=65536):
    """Its appendix: two tables, two norms, and of a layer 12 D² of matrices, four ranks and 19 vectors; the first layer
    mixes no values."""
    layer = d * (12 * d + 2 * (decay + rate + value + gate) + 19)
    return 2 * d * vocab + 4 * d + layers * layer - (2 * d * value + d)


PUBLISHED = {
    "rwkv7-0.1b": ((768, 12, 64, 64, 32, 128), 191_034_624),
    "rwkv7-0.4b": ((1024, 24, 64, 64, 32, 128), 450_767_872),
    "rwkv7-1.5b": ((2048, 24, 96, 96, 64, 256), 1_527_404_544),
    "rwkv7-2.9b": ((2560, 32, 96, 96, 64, 320), 2_947_735_040),
}
"""Width, layers and ranks (of the decay, the rate, values and the gate), and parameters."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_packaged_size_has_the_parameters_of_the_papers_formula(name):
    spec, (sizes, published) = load(name), PUBLISHED[name]
    assert zoo.stats(name)["params"]["total"] == published == count_by_the_paper(*sizes)
    assert find_sources(spec.blocks, spec.pattern) == dict.fromkeys(range(1, sizes[1]), 0)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (["attention.value_rank=null"], "value_rank=None values_from=first: a rank is of the mix with another layer"),
        (["pattern=[layer,first*11]"], "values_from: is 'first', and no layer before layer 0 is of that kind"),
        (["+layers.first.attention.head_dim=32", "+layers.first.attention.n_heads=24"], "have other n_heads, head_dim"),
    ],
)
def test_values_that_cannot_be_read_are_refused_in_one_line(changes, fault):
    with pytest.raises(zoo.ConfigError, match=fault):
        load("rwkv7-0.1b", changes)
