"""Cached decoding against full forwards, batches against rows alone."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.logit_bounds import assert_close
from support.packaged_specs import one_in
from support.tiny_decoders import COMBINATIONS, prompt, recomputed, tiny
from support.tiny_models import needs
from zoo.cache.cache import Cache
from zoo.errors import ConfigError, ZooError
from zoo.generation.generate import generate, stream
from zoo.sampling.options import Sampling

# ---------------------------------------------------------------- cached decoding


@pytest.mark.parametrize("overrides", one_in(5, COMBINATIONS), ids=" ".join)
def test_greedy_generation_equals_the_full_forward_for_every_choice(overrides):
    model = tiny(*overrides)
    assert torch.equal(generate(model, prompt(), 16), recomputed(model, prompt(), 16))


@pytest.mark.parametrize(
    "overrides", one_in(5, [each for each in COMBINATIONS if "position=rope_dynamic" not in each]), ids=" ".join
)
def test_a_prompt_in_chunks_gives_the_logits_of_one_forward(overrides):
    model, ids = tiny(*overrides), prompt(2, 30)
    for chunks in ([30], [1] * 30, [12, 1, 1, 9, 3, 4], [4, 1, 7, 2, 16], [1, 29]):
        cache = Cache.allocate(model, 2, 30)
        with torch.inference_mode():
            whole = model(ids).logits
            got = torch.cat([model(part, cache=cache).logits for part in ids.split(chunks, 1)], 1)
        assert_close(got, whole)


@pytest.mark.parametrize("overrides", one_in(4, COMBINATIONS), ids=" ".join)
def test_rows_padded_on_the_left_get_what_they_get_alone(overrides):
    model, lengths = tiny(*overrides), (9, 1, 4)
    ids, mask = torch.full((3, 9), 7), torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 9 - length :] = prompt(3)[row, :length]
        mask[row, 9 - length :] = 1
    together = generate(model, ids, 14, attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = generate(model, prompt(3)[row : row + 1, :length], 14)
        assert torch.equal(together[row, 9 - length :], alone[0])


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0}, {"temperature": 1.3, "top_p": 0.9, "repetition_penalty": 1.2}]
)
def test_a_row_draws_what_it_would_draw_alone(sampling):
    model, lengths = tiny(), (9, 1, 4, 9)
    rows = [prompt(4)[row : row + 1, :length] for row, length in enumerate(lengths)]
    alone = [generate(model, row, 14, seed=3, **sampling)[0] for row in rows]
    for order in ([0, 1, 2, 3], [3, 1], [2, 0, 3]):
        longest = max(lengths[row] for row in order)
        ids, mask = torch.full((len(order), longest), 7), torch.zeros(len(order), longest, dtype=torch.long)
        for place, row in enumerate(order):
            ids[place, longest - lengths[row] :], mask[place, longest - lengths[row] :] = rows[row][0], 1
        together = generate(model, ids, 14, seed=3, attention_mask=mask, **sampling)
        for place, row in enumerate(order):
            assert torch.equal(together[place, longest - lengths[row] :], alone[row])


def test_copies_of_a_prompt_draw_apart_and_the_first_as_it_would_alone():
    model, ids = tiny(), prompt(1)
    copies = generate(model, ids.expand(3, -1), 14, temperature=1.0, seed=3)
    assert torch.equal(copies[:1], generate(model, ids, 14, temperature=1.0, seed=3))
    assert len({tuple(row) for row in copies.tolist()}) == 3


# ---------------------------------------------------------------- the engine's own rules


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_end_generation_with_the_step_named(temperature):
    model = tiny()
    after = generate(model, prompt(1), 3)[0, -1]  # the third token that is written brings NaN for the fourth
    with torch.no_grad():
        model.embedding.tokens.weight[after] = math.nan
    told = r"^generate: step \d+: row 0 has logits that are NaN or all -inf, in float32 \(.*\)$"
    with pytest.raises(ZooError, match=told) as caught:
        generate(model, prompt(1), 200, temperature=temperature, seed=0)
    assert caught.value.exit_code == 1
    if temperature == 0:
        assert str(caught.value).startswith("generate: step 4:")


def test_a_row_that_stopped_may_meet_what_is_no_number():
    model = tiny()
    after = int(generate(model, prompt(1), 1)[0, -1])
    with torch.no_grad():
        model.embedding.tokens.weight[after] = math.nan
    assert generate(model, prompt(1), 5, stop_ids=[after])[0, 9:].tolist() == [after]


def test_a_repetition_penalty_counts_no_padding():
    model, ids = tiny(), prompt(1, 5)
    padded, mask = torch.cat([torch.arange(61)[None], ids], 1)[:, 1:], torch.ones(1, 65, dtype=torch.bool)
    mask[:, :60] = False  # were padding counted, every word would be penalised, as good as none
    alone = generate(model, ids, 8, repetition_penalty=1.5)
    assert torch.equal(generate(model, padded, 8, repetition_penalty=1.5, attention_mask=mask)[:, 60:], alone)
    assert not torch.equal(generate(model, ids, 8), alone)


def test_a_row_that_stopped_repeats_its_stop_token_and_the_rest_goes_on():
    model = tiny()
    free = generate(model, prompt(), 16)[:, 9:]
    stops = [int(free[0, 3]), int(free[1, 8])]
    ends = [min(row.tolist().index(stop) for stop in stops if stop in row.tolist()) for row in free]
    got = generate(model, prompt(), 16, stop_ids=stops)[:, 9:]
    assert got.shape[1] == max(ends) + 1
    for row, end in enumerate(ends):
        assert torch.equal(got[row, : end + 1], free[row, : end + 1])
        assert got[row, end:].eq(free[row, end]).all()


def test_a_stop_token_in_the_prompt_stops_nothing():
    model, ids = tiny(), prompt(1)
    assert torch.equal(generate(model, ids, 4, stop_ids=[int(ids[0, -1])])[:, :10], generate(model, ids, 1))


def test_no_new_tokens_are_the_prompt():
    assert torch.equal(generate(tiny(), prompt(), 0), prompt())


def test_a_seed_fixes_what_is_generated():
    model = tiny()
    first, again, other = (generate(model, prompt(), 12, temperature=1.0, top_p=0.95, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_stream_gives_each_step_as_generate_does():
    model = tiny()
    sampling = Sampling(temperature=0.8, top_k=20, repetition_penalty=1.2, seed=5)
    steps = list(stream(model, prompt(), 6, sampling))
    whole = generate(model, prompt(), 6, temperature=0.8, top_k=20, repetition_penalty=1.2, seed=5)
    assert torch.equal(torch.stack(steps, 1), whole[:, 9:])


def test_a_stream_leaves_the_model_and_the_caller_as_they_were():
    model = tiny().train()
    model.blocks[1].eval()  # frozen by its owner
    before = {name: module.training for name, module in model.named_modules()}
    steps = stream(model, prompt(), 6, kernel="eager")
    first = next(steps)
    assert not torch.is_inference_mode_enabled()
    assert not first.is_inference()
    assert (model.training, model.kernel) == (False, "eager")
    steps.close()
    assert model.kernel == "auto"
    assert {name: module.training for name, module in model.named_modules()} == before
    model(generate(model, prompt(), 2)).logits.sum().backward()  # generated ids are ordinary tensors


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"ids": [1, 2, 3]}, "ids: are a list, not a tensor [B, P] (torch.tensor([ids]))"),
        ({"ids": torch.zeros(3, dtype=torch.long)}, "ids: shape [3]"),
        ({"ids": torch.zeros(1, 0, dtype=torch.long)}, "ids: shape [1, 0]"),
        ({"ids": torch.tensor([[3, 61]])}, "ids: tokens from 3 to 61, the model's vocabulary is 0 to 60"),
        ({"max_new_tokens": -1}, "max_new_tokens: is -1"),
        ({"temperature": -1.0}, "temperature: is -1.0"),
        ({"attention_mask": torch.ones(1, 4)}, "attention_mask: shape [1, 4]"),
        ({"attention_mask": torch.tensor([[1] * 8 + [0]] * 2)}, "attention_mask: a zero follows a one"),
        ({"attention_mask": torch.tensor([[1, 0] + [1] * 7] * 2)}, "attention_mask: a zero follows a one"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_one_line(change, fault):
    with pytest.raises(ConfigError) as caught:
        generate(tiny(), **{"ids": prompt(), "max_new_tokens": 2} | change)
    assert str(caught.value).startswith(fault)
    assert "\n" not in str(caught.value)


def test_only_learned_positions_end():
    with pytest.raises(ConfigError, match=r"positions end at 64 \(at most 55 would do\)"):
        stream(tiny("position=learned"), prompt(), 56)
    assert generate(tiny("position=learned"), prompt(), 55).shape == (2, 64)
    assert generate(tiny(), prompt(), 70).shape == (2, 79)


class Crossings(TorchDispatchMode):
    """Counts what would cross between host and device: tensors made of Python numbers, and tensors read as such."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1}])
@pytest.mark.parametrize(
    "overrides",
    [
        *(["+embedding.scale=sqrt_d_model"], ["position=t5"], ["position=learned"]),
        *(["attention=mla"], ["attention=mamba"], ["attention=sliding", "window=5"], ["+attention.sinks=true"]),
    ],
    ids=" ".join,
)
def test_a_step_copies_its_tokens_and_what_draws_them_and_nothing_for_each_layer(overrides, sampling):
    model = tiny(*overrides, *needs(overrides[0]))
    steps = stream(model, prompt(), 6, Sampling(seed=0, **sampling), stop_ids=[60])
    next(steps)
    next(steps)
    with Crossings() as crossings:
        next(steps)
    assert len(crossings.found) <= (10 if sampling else 2)
