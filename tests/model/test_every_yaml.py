"""What must hold for every packaged choice of every axis; a new YAML in conf/ is covered unasked."""

import math
import re

import pytest
import torch

from support.packaged_specs import one_in
from support.tiny_models import choices, every_choice, model_of, name, needs, spec_of
from zoo.compose import load
from zoo.costs.params import count_parameters
from zoo.errors import ConfigError
from zoo.grammar import AXES, from_dict, to_body, to_dict, to_essentials
from zoo.spec import placed_tensors, table

EVERY = pytest.mark.parametrize("choice", list(every_choice()), ids=name)


@EVERY
def test_no_token_sees_a_later_one_in_a_decoder_and_every_one_does_in_an_encoder(choice):
    model = model_of(choice)
    ids = torch.randint(0, 67, (2, 12))
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 67
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    if model.spec.causal:
        torch.testing.assert_close(before[:, :8], after[:, :8], atol=1e-5, rtol=0)
    else:
        assert (before[:, 7] - after[:, 7]).abs().max() > 1e-4
    assert (before[:, 8] - after[:, 8]).abs().max() > 1e-3


@EVERY
def test_padded_rows_equal_the_rows_alone(choice):
    model = model_of(choice)
    ids, mask = torch.randint(0, 67, (3, 14)), torch.ones(3, 14, dtype=torch.long)
    mask[0, :5], mask[1, 9:] = 0, 0
    with torch.no_grad():
        padded = model(ids, mask).logits
        left, right, whole = model(ids[:1, 5:]).logits, model(ids[1:2, :9]).logits, model(ids[2:]).logits
    torch.testing.assert_close(padded[:1, 5:], left, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(padded[1:2, :9], right, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(padded[2:], whole, atol=2e-5, rtol=1e-5)


@EVERY
def test_packed_documents_equal_separate_ones(choice):
    model = model_of(choice)
    ids = torch.randint(0, 67, (2, 15))
    documents = torch.tensor([0] * 6 + [1] * 9).expand(2, -1)
    with torch.no_grad():
        packed = model(ids, documents=documents).logits
        first, second = model(ids[:, :6]).logits, model(ids[:, 6:]).logits
    torch.testing.assert_close(packed, torch.cat((first, second), 1), atol=2e-5, rtol=1e-5)


@EVERY
def test_a_gradient_reaches_every_parameter(choice):
    model = model_of(choice).train()
    ids = torch.randint(0, 67, (4, 16))
    everywhere = {"global_attention_mask": ids % 3 == 0} if "attention=longformer" in choice else {}
    output = model(ids, **everywhere)
    loss = output.logits.float().logsumexp(-1).mean() + sum(output.losses.values())
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    idle = {name for name, row, _ in placed_tensors(model.spec, model.spec.d_model) if not row.learns}
    silent = [name for name in silent if name not in idle]  # an indexer's choice has no gradient
    # A key's bias moves every score of a query alike, which softmax does not see, unless positions turn it.
    assert silent == []


FEW = ("attention=gqa", "ffn=moe")
"""Choices whose compiling is tried each time; that of the others, which takes a second and more each, is slow."""
COMPILED = [pytest.param(each, marks=() if each[0] in FEW else pytest.mark.slow) for each in every_choice()]


@pytest.mark.parametrize("choice", COMPILED, ids=name)
def test_the_model_compiles_whole_without_a_graph_break(choice):
    torch.compiler.reset()
    model = model_of(choice)
    ids = torch.randint(0, 67, (2, 12))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", one_in(4, every_choice()), ids=name)
def test_a_spec_written_as_plain_data_reads_back_equal(choice):
    spec = spec_of(choice)
    assert from_dict(to_dict(spec)) == from_dict(to_essentials(spec)) == spec
    assert load(to_body(spec)) == spec


REFUSED = {
    "mixtral-8x7b": {"block=bottleneck": "found n_ffns=2", "block=shared_attention": "no place in a shared block"},
    "mpt-7b": {
        **dict.fromkeys(("attention=csa", "attention=hca"), "position 'alibi' adds to the scores of tokens"),
        "attention=retention": "'alibi' changes scores",
    },
}
"""The swaps that a model cannot have, with what is told: experts are chosen once a layer, and ALiBi adds to scores."""

OTHERS = ("llama3.1-405b", "llama3.2-1b", "mistral-7b-v0.1", "mpt-7b")


@pytest.mark.parametrize("model", one_in(99, ["gpt2", "mixtral-8x7b", *OTHERS]))
def test_every_axis_of_a_packaged_model_can_be_swapped(model):
    for axis in AXES:
        for choice in choices(axis) if axis != "cross" else ():
            swap = f"{axis}={choice}"
            tiny = "index_head_dim="  # left at its default: as wide as what these models rotate
            wanted = [swap, *(each for each in needs(swap) if not each.startswith(tiny))]
            seen = any(each in " ".join(wanted) for each in ("sliding", "longformer", "transient_global"))
            overrides = [*wanted, *(["window=1024"] if seen else [])]
            if told := REFUSED.get(model, {}).get(swap):
                with pytest.raises(ConfigError, match=re.escape(told)):
                    load(model, overrides)
                continue
            spec = load(model, overrides)
            counted = sum(math.prod(shape) for shape in table(spec, spec.d_model).values())
            figures = count_parameters(spec)
            assert counted == figures["total"] + figures["buffers"], swap
