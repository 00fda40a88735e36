"""The packaged models are the released ones, field by field; test_published.py has those of before 2024."""

from collections import Counter

import pytest
import test_published
import test_rwkv7
import torch
import transformers
from test_published import NAMES, about, priced, spec_of

from support import released_configs, released_configs_2025, released_dense_configs
from support.packaged_specs import one_in
from support.released_configs import NAMED, OWN_HEAD, UNTIED
from zoo.checkpoint import hf
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.likeness import list_spec_differences
from zoo.compose.catalogue import read_models
from zoo.families import family

DENSE = released_dense_configs.REFERENCE
OTHERS = released_configs.REFERENCE | released_configs_2025.REFERENCE
REFERENCE = DENSE | OTHERS
UNUSED = released_configs.UNUSED | released_configs_2025.UNUSED
EVERY = pytest.mark.parametrize("name", REFERENCE)


def released_as(name: str) -> str:
    """The class that the weights are for: with the head that they were pretrained with, and no pooler."""
    kind = type(REFERENCE[name]).__name__.removesuffix("Config").removesuffix("Text")
    task = {"encoder": "MaskedLM", "encoder_decoder": "ConditionalGeneration", "decoder": "CausalLM"}
    return (NAMED | released_configs_2025.NAMED).get(name, f"{kind}For{task[spec_of(name).kind]}")


@EVERY
def test_the_active_count_leaves_out_idle_experts(name: str) -> None:
    params = priced(name)
    assert params["total"] - params["active"] == IDLE.get(name, 0)


@pytest.mark.parametrize("name", [*one_in(2, DENSE), *one_in(10, OTHERS)])
def test_the_total_is_what_the_reference_implementation_allocates(name: str) -> None:
    with torch.device("meta"):
        reference = getattr(transformers, released_configs_2025.ALLOCATED.get(name) or released_as(name))(
            REFERENCE[name]
        )
    if name in OWN_HEAD:
        reference.lm_head.weight = torch.nn.Parameter(torch.empty_like(reference.shared.weight))
    # parameters() gives a shared tensor once, so a tied head is counted once
    allocated = sum(p.numel() for p in reference.parameters()) - UNUSED.get(name, 0)
    assert allocated == priced(name)["total"]


@pytest.mark.parametrize("name", [*one_in(2, DENSE), *one_in(5, OTHERS)])
def test_the_model_is_the_one_that_its_released_config_describes(name: str) -> None:
    said = {**REFERENCE[name].to_dict(), "architectures": [released_as(name)]}
    said |= UNTIED if name in OWN_HEAD else {}
    body = family.family_of_config(said, name).body(said, name)
    assert list_spec_differences(spec_of(name), hf.compose_spec(body)) == []


@pytest.mark.parametrize("name", one_in(16, DENSE))
def test_the_model_is_written_as_a_config_of_the_family_it_was_released_in(name: str) -> None:
    _, body = find_config(spec_of(name))
    own = REFERENCE[name].model_type
    assert body.family.name == {"phi-3-mini": "mistral"}.get(
        name, own
    )  # Phi-3 differs in how weights are stacked alone


# What one token meets, in billions, as those who made the models say it. Where True, the table of tokens, from which a
# token takes one row, is left out of it: gpt-oss's model card says so, and DeepSeek-V2-Lite's and Kimi K2's numbers are
# near no other.
SAID_ACTIVE = {
    "qwen3-30b-a3b": (3.3, False),
    "qwen3-235b-a22b": (22, False),
    "deepseek-v2-lite": (2.4, True),
    "deepseek-v3": (37, False),
    "kimi-k2": (32, True),
    "nemotron-3-nano-30b-a3b": (3.6, False),
    "gemma-4-26b-a4b": (3.8, False),
    "gpt-oss-20b": (3.61, True),
    "gpt-oss-120b": (5.13, True),
    "mistral-large-4": (52, True),
    "longcat-flash": (27, True),  # on average: 18.6 to 31.3
}

# Parameters of the experts that a token is not sent to, by hand: layers × idle experts × (matrices and biases of one).
IDLE = {
    "qwen3-30b-a3b": 48 * 120 * (3 * 2048 * 768),
    "qwen3-235b-a22b": 94 * 120 * (3 * 4096 * 1536),
    "gemma-4-26b-a4b": 30 * 120 * (3 * 2816 * 704),
    "qwen3-next-80b-a3b": 48 * 502 * (3 * 2048 * 512),
    "deepseek-v2-lite": 26 * 58 * (3 * 2048 * 1408),
    "deepseek-v3": 58 * 248 * (3 * 7168 * 2048),
    "deepseek-v3.2": 58 * 248 * (3 * 7168 * 2048),
    "glm-5": 75 * 248 * (3 * 6144 * 2048),
    "minimax-m2": 62 * 248 * (3 * 3072 * 1536),
    "glm-4.7-flash": 46 * 60 * (3 * 2048 * 1536),
    "granite-4.0-h-tiny": 40 * 58 * (3 * 1536 * 512),
    "granite-4.0-h-small": 40 * 62 * (3 * 4096 * 768),
    "deepseek-tiny": 3 * 6 * (3 * 192 * 128),
    "qwen3-next-tiny": 4 * 6 * (3 * 192 * 128),
    "gpt-oss-20b": 24 * 28 * (3 * 2880 * 2880 + 3 * 2880),
    "gpt-oss-120b": 36 * 124 * (3 * 2880 * 2880 + 3 * 2880),
    **released_configs_2025.IDLE,
}


@pytest.mark.parametrize("name", SAID_ACTIVE)
def test_the_active_count_is_what_its_makers_say_as_exactly_as_they_do(name: str) -> None:
    billions, apart = SAID_ACTIVE[name]
    table = spec_of(name).vocab_size * spec_of(name).d_model if apart else 0
    assert (priced(name)["active"] - table) / 1e9 == pytest.approx(billions, rel=0.025)


def test_a_size_is_listed_as_of_the_kind_that_its_line_is() -> None:
    listed = {model["name"]: model["kind"] for model in read_models()}
    assert {name: listed[name] for name in REFERENCE} == {name: spec_of(name).kind for name in REFERENCE}


REFERENCES = (test_published.REFERENCE, REFERENCE, test_rwkv7.PUBLISHED)  # the last by their paper's formula


def test_every_packaged_model_has_one_reference_and_none_is_of_no_model() -> None:
    assert Counter(name for each in REFERENCES for name in each) == Counter(NAMES)


@pytest.mark.parametrize("name", [name for each in REFERENCES[1:] for name in each])
def test_what_is_special_fits_on_the_line_that_lists_it(name: str) -> None:
    assert len(about(name).note) <= 70
