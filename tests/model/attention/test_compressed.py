"""Compressed attention: what an entry is made of, what is read and kept of it, and what is refused in one line."""

import pytest
import torch

import zoo
from support.flop_counts import counted
from support.logit_bounds import assert_close
from support.tiny_generators import make
from support.tiny_models import model_of, needs, spec_of
from zoo.cache.cache import Cache
from zoo.errors import ConfigError
from zoo.generation.engine import Engine
from zoo.generation.request import Request
from zoo.kernels.running_sums import NOTHING, RunningSums, read_sums, sum_windows

CSA, HCA = (["attention=csa", *needs("attention=csa")], ["attention=hca", *needs("attention=hca")])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_sums_of_parts_merge_to_the_softmax_over_all_tokens():
    gates, values = 9 * draw(2, 1, 12, 5), draw(2, 1, 12, 5, seed=1)
    sums = read_sums(torch.zeros(2, 3, 5))  # of no token
    for part in (slice(0, 1), slice(1, 7), slice(7, 12)):
        sums = read_sums(sums.merge(sum_windows(gates[:, :, part], values[:, :, part])).state)
    assert_close(sums.mean, (gates.softmax(2) * values).sum(2))
    nothing = sums.keep(torch.zeros(2, 1, 1, dtype=torch.bool))
    assert nothing.top.eq(NOTHING).all() and torch.equal(RunningSums(*sums).merge(nothing).mean, sums.mean)


@pytest.mark.parametrize(("overrides", "entries"), [(HCA, [1]), (CSA, [1, 2])])
def test_a_token_counts_for_its_own_entry_and_with_an_overlap_for_the_next(overrides, entries):
    model, made = model_of([*overrides, "n_layers=1"]), []
    model.blocks[0].attention.entry_norm.register_forward_hook(lambda module, given, output: made.append(output))
    ids = torch.randint(2, 67, (1, 24), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 5] = ids[0, 5] % 60 + 3  # of the second window, of 4 or of 3 tokens
    with torch.no_grad():
        for each in (ids, other):
            model(each)
    assert (made[0] != made[1]).any(-1)[0].nonzero().flatten().tolist() == entries


def test_a_row_keeps_an_entry_for_every_so_many_tokens_and_states_of_fixed_size():
    spec = spec_of([*HCA, "n_layers=1"])
    bytes_of = lambda tokens: zoo.stats(spec, context=tokens, dtype="bf16", engine="ideal")["kv_cache"]  # noqa: E731
    near, pending = (5 - 1) * 8 * 4, 3 * 8 * 4
    for tokens in (1, 3, 4, 40, 63):
        found = bytes_of(tokens)
        assert found["state_bytes"] == near + pending
        assert found["bytes"] == near + pending + tokens // 4 * 8 * 2
    assert found["bytes_per_token"] == 8 * 2 / 4


def test_a_decoding_step_reads_no_more_entries_than_are_chosen():
    model = model_of([*CSA, "n_layers=1"])
    cache, ids = Cache.allocate(model, 1, 64), torch.randint(2, 67, (1, 61))
    with torch.no_grad():
        model(ids[:, :60], cache=cache)
        whole = model(ids).logits[:, -1:]
        with counted(model) as made:
            last = model(ids[:, 60:], cache=cache).logits
    assert_close(last, whole)
    spec = model.spec
    assert made.total == zoo.stats(spec, context=61)["flops"]["decode"]  # hidden pairs would be in it


def test_a_prompt_that_comes_again_starts_where_a_page_of_entries_ends():
    model = make("csa")  # entries of 3 tokens: a page of 16 of them ends after 48
    engine = Engine(model, rows=2, tokens=80)
    prompt = torch.randint(2, 61, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    first = [event.token for event in engine.run([Request(ids=prompt, max_new_tokens=8)])]
    again = [event.token for event in engine.run([Request(ids=prompt, max_new_tokens=8)])]
    assert engine.prefixes is not None
    assert again == first and engine.prefixes.hits == 48


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["attention.compressor=null"], "indexer chooses among entries, found no compressor"),
        (["attention.indexer.compressor.rate=5"], "indexer.compressor.rate=5, compressor.rate=3"),
        (["o_groups=3"], "o_groups=3 does not divide n_heads=4"),
        (["position=alibi"], "position 'alibi' adds to the scores of tokens"),
        (["position=rope_dynamic", "original_max_seq_len=32"], "turns with the length of the row"),
        (["kind=encoder"], "reads only what came before"),
        (["compress_rate=1"], "rate"),
    ],
)
def test_what_goes_with_no_entries_is_refused_in_one_line(overrides, said):
    with pytest.raises(ConfigError, match=said):
        spec_of([*CSA, *overrides])


def test_a_prefix_that_sees_itself_and_a_block_of_two_attentions_are_refused():
    with pytest.raises(ConfigError, match="no place in a 'shortcut' block"):
        spec_of([*HCA, "block=shortcut", "ffn=moe"])
    model = model_of([*HCA, "prefix_lm=true"])
    with pytest.raises(ConfigError, match="found a prefix that is seen whole"):
        model(torch.zeros(1, 9, dtype=torch.long), prefix=torch.tensor([3]))
