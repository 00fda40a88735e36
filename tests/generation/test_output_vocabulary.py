"""A head of fewer tokens than the model reads: what it writes, what it is trained on, and what is refused."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from support.packaged_specs import load
from support.tiny_decoders import TINY, prompt, recomputed, tiny
from zoo.costs import price
from zoo.costs.rank_model import shard_model
from zoo.errors import ConfigError
from zoo.generation.generate import generate

WRITTEN = 40
FEWER = f"+head.vocab_size={WRITTEN}"


def test_what_it_writes_are_its_own_tokens_whatever_the_prompt_has():
    model, ids = tiny(FEWER), prompt()
    assert int(ids.max()) >= WRITTEN  # a prompt of tokens that are read alone
    assert model(ids).logits.shape == (2, 9, WRITTEN)
    found = generate(model, ids, 8)
    assert torch.equal(found, recomputed(model, ids, 8)) and int(found[:, 9:].max()) < WRITTEN
    drawn = generate(model, ids, 8, 1.0, seed=3, repetition_penalty=1.5, frequency_penalty=0.4, stop_ids=(WRITTEN + 2,))
    assert int(drawn[:, 9:].max()) < WRITTEN
    with pytest.raises(ConfigError, match=f"{WRITTEN}"):
        generate(model, ids, 2, logit_bias={WRITTEN: 1.0})


def test_a_repetition_penalty_counts_the_tokens_of_the_prompt_that_it_writes():
    model, ids = tiny(FEWER), prompt(1, 30)
    logits = model(ids).logits[0, -1]
    there = [token for token in set(ids[0].tolist()) if token < WRITTEN]
    logits[there] = torch.where(logits[there] < 0, logits[there] * 9.0, logits[there] / 9.0)
    assert int(generate(model, ids, 1, repetition_penalty=9.0)[0, -1]) == int(logits.argmax())


def test_its_loss_is_that_of_its_logits_and_its_price_that_of_its_rows():
    model, ids = tiny(FEWER), prompt()
    targets = ids % WRITTEN
    given = model(ids).logits
    summed = cross_entropy(given.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(model(ids, targets=targets).loss, summed)
    whole, fewer = (price(load(TINY, each))["params"]["total"] for each in ([], [FEWER]))
    assert whole - fewer == (TINY["vocab_size"] - WRITTEN) * TINY["d_model"]
    assert load(TINY, [FEWER]).output_vocab_size == WRITTEN


@pytest.mark.parametrize(
    "overrides",
    [["+head.tied=true", FEWER], ["+head.vocab_size=70"], ["head.kind=none", FEWER]],
    ids=lambda each: each[0],
)
def test_a_tied_head_a_wider_one_and_none_are_refused_in_one_line(overrides):
    with pytest.raises(ConfigError, match=r"head\.vocab_size: is ") as caught:
        load(TINY, overrides)
    assert len(caught.value.faults) == 1


def test_ranks_of_tensor_parallelism_divide_one_vocabulary():
    with pytest.raises(ConfigError, match=f"tp: 2 ranks, and the head has {WRITTEN} tokens of"):
        shard_model(load(TINY, [FEWER]), 2)
