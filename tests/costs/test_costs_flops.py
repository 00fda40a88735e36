"""FLOPs: equal to what torch counts and the masks let through, and to what the literature says."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

import zoo
from support.flop_counts import counted, forwarded, tokens_for
from support.packaged_specs import load, one_in
from support.random_architectures import architectures, made
from support.shrunk_models import shrunk
from support.tiny_models import MIXED, every_choice, model_of, name, needs, spec_of
from zoo.cache.cache import Cache
from zoo.compose.targets import list_packaged
from zoo.costs import price
from zoo.costs.flops import CONVENTIONS, count_flops, multiplied, skipped_flops
from zoo.costs.pairs import Look
from zoo.costs.params import count_parameters
from zoo.costs.setup import CONVENTIONS as OFFERED
from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.verify import verify_flops

TOKENS = 16  # more than the windows of the tiny models, and a whole share of tokens for experts that choose


def agree(model, contexts=(TOKENS, 1)):
    """Forward, prefill and decoding of a model cost what is counted."""
    spec, ids = model.spec, tokens_for(model.spec, 1, TOKENS)
    figures = count_flops(spec, TOKENS)
    with counted(model) as whole:
        forwarded(model, ids)
    assert figures["forward"] == round(whole.visible / TOKENS)
    skipped = skipped_flops(spec, lambda look: look.pairs(TOKENS, 0, TOKENS), TOKENS)
    assert figures["train"] == round((3 * whole.visible - skipped) / TOKENS)
    if "decode" not in figures:
        assert figures["prefill"] == whole.visible
        return
    for context in contexts:
        prompt, decoded = generated(model, context)
        figures = count_flops(spec, context)
        assert figures["prefill"] == prompt
        assert figures["decode"] == decoded


def generated(model, context):
    """FLOPs of a prompt of `context` tokens up to the first logits, and of the last token when there are so many."""
    ids, rest = tokens_for(model.spec, 1, context), {}
    writer, first = model, ids
    with counted(model) as prompt:
        if len(model.spec.towers()) > 1:
            writer, first = model.decoder, ids[:, :1]
            rest = {"memory": model.encoder(ids).hidden}
        cache = Cache.allocate(model, 1, context, source=context)
        writer(first, cache=cache, logits_to_keep=1, **rest)
    held, cache = ids[:, : context - 1], Cache.allocate(model, 1, context, source=context)
    if context > 1:
        with torch.no_grad():
            writer(held, cache=cache, **rest)
    elif rest:  # keys and values of the memory are made before the first token
        cache_of_memory(writer, cache, rest["memory"])
    with counted(model) as last:
        writer(ids[:, -1:], cache=cache, logits_to_keep=1, **rest)
    return prompt.visible, last.visible


def cache_of_memory(writer, cache, memory):
    """Makes the cache hold what cross-attention makes of the memory, and no token."""
    with torch.no_grad():
        writer(torch.zeros(1, 1, dtype=torch.long), cache=cache, memory=memory)
    cache.rows[0].length = 0


SEEN: set[str] = set()
"""Tiny models that were looked at: the sizes of a family have one shape."""


@pytest.mark.parametrize("model", one_in(6, list_packaged()))
def test_a_packaged_model_costs_what_is_counted(model):
    spec = shrunk(model)
    if repr(spec) not in SEEN:
        agree(zoo.build(spec, device="cpu").eval())
        SEEN.add(repr(spec))


@pytest.mark.parametrize("choice", one_in(6, every_choice()), ids=name)
def test_every_choice_of_every_axis_costs_what_is_counted(choice):
    agree(model_of(choice))


QUICK = ("dsa", "csa", "fourier")
"""Indexers of tokens and of entries, and a mixer of constants alone."""


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(each, marks=[] if each[0].removeprefix("attention=") in QUICK else [pytest.mark.slow])
        for each in every_choice()
        if each != ["position=rope_dynamic"]  # which has no cache of so many tokens
    ],
    ids=name,
)
def test_both_passes_of_every_choice_cost_what_torch_counts(choice):
    """Of what is computed: in the full square, and by an indexer without a gradient."""
    rows = verify_flops(spec_of(choice))
    assert [row for row in rows if not row["equal"]] == []
    assert {"FLOPs, forward", "FLOPs, training"} <= {row["name"] for row in rows}


def test_an_indexer_is_computed_again_with_its_layer_and_not_with_attention_alone():
    spec = spec_of(["attention=dsa", *needs("attention=dsa")])
    plain, full, selective, palm = (
        count_flops(spec, TOKENS, *how)
        for how in ((), ("exact", "full"), ("exact", "selective"), ("palm",))  # the last as published: 6N
    )
    assert full["train_hardware"] - plain["train"] == pytest.approx(plain["forward"], abs=1)
    seen = sum(min(each, 4) for each in range(1, TOKENS + 1))  # of four keys chosen at most
    pairs = sum(spec.blocks[kind].attention.core_flops(seen) for kind in spec.pattern)
    assert selective["train_hardware"] - plain["train"] == pytest.approx(pairs / TOKENS, abs=1)
    assert palm["train"] == pytest.approx(3 * palm["forward"], abs=2)


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(architectures())
def test_any_legal_combination_costs_what_is_counted(body):
    model = made(body)
    assume(model is not None)
    agree(model, contexts=(TOKENS, 3))


# ---------------------------------------------------------------- what a sequence is made of

MIXES = [
    ["attention=gqa"],
    ["attention=sliding"],
    ["attention=mla"],
    ["attention={window:4,window_kind:chunked}"],
    MIXED,
    ["kind=encoder"],
    ["kind=encoder", "attention={window:4,window_kind:chunked}"],
]


BOTH_WAYS = [[f"attention={each}", *needs(f"attention={each}")] for each in ("longformer", "block_sparse")]


@pytest.mark.parametrize("choice", [*MIXES, *BOTH_WAYS], ids=name)
@pytest.mark.parametrize("lengths", [[5, 11], [1, 1, 14], [3, 2, 7, 4]])
def test_packed_documents_cost_what_they_see(choice, lengths):
    model = model_of(choice)
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    with counted(model) as whole:
        model(tokens_for(model.spec, 1, TOKENS), documents=documents)
    figures = count_flops(model.spec, TOKENS, documents=lengths)
    assert figures["forward"] == round(whole.visible / TOKENS) < count_flops(model.spec, TOKENS)["forward"]
    assert "prefill" not in figures and "decode" not in figures  # packed rows are for training


@pytest.mark.parametrize(
    "choice", [["attention=gqa"], ["attention=sliding"], ["attention={window:4,window_kind:chunked}"], MIXED], ids=name
)
@pytest.mark.parametrize("prefix", [1, 7, TOKENS])
def test_a_prefix_that_sees_itself_costs_the_pairs_it_adds(choice, prefix):
    model = model_of([*choice, "prefix_lm=true"])
    with counted(model) as whole:
        model(tokens_for(model.spec, 1, TOKENS), prefix=torch.tensor([prefix]))
    assert count_flops(model.spec, TOKENS, prefix=prefix)["forward"] == round(whole.visible / TOKENS)


def test_a_pooler_costs_once_a_row():
    model = model_of(["kind=encoder", "pooler={kind: first_token}"])
    with counted(model) as whole:
        forwarded(model, tokens_for(model.spec, 1, TOKENS))
    assert count_flops(model.spec, TOKENS)["prefill"] == whole.visible


def test_an_encoder_gives_logits_for_every_token_of_what_it_reads():
    figures = price(load("bert-base"), context=512)["flops"]
    assert figures["prefill"] == 512 * figures["forward"] and "decode" not in figures


@pytest.mark.parametrize("look", [Look(True, False), Look(True, False, 3), Look(True, False, None, 4)])
@pytest.mark.parametrize("prefix", [0, 1, 3, 9])
def test_pairs_are_those_that_a_mask_shows(look, prefix):
    chunks = torch.arange(13)[None] // (look.chunk or 13)
    mask = Mask(13, 13, window=look.window, documents=(chunks, chunks), prefix=torch.tensor([prefix]))
    assert look.pairs(13) + look.shown_by(prefix) == mask.dense(torch.device("cpu")).sum()
    assert sum(look.pairs(1, held) for held in range(13)) == look.pairs(13)


@pytest.mark.parametrize("look", [Look(False, False), Look(False, False, 3), Look(False, False, None, 4)])
def test_pairs_that_see_both_ways_are_those_that_a_mask_shows(look):
    chunks = torch.arange(13)[None] // (look.chunk or 13)
    mask = Mask(13, 13, causal=False, window=look.window, documents=(chunks, chunks))
    assert look.pairs(13) == mask.dense(torch.device("cpu")).sum() and look.shown_by(5) == 0


@pytest.mark.parametrize(
    ("overrides", "options", "fault"),
    [
        ([], {"convention": "pal"}, r"^convention: unknown 'pal' \(did you mean 'palm'\?\)"),
        (
            [],
            {"recompute": "half"},
            r"^recompute: unknown 'half'.* \(one of: none, selective, full, every_2, every_3 …\)",
        ),
        ([], {"documents": [3, 4]}, r"^documents: 2 of 7 tokens in all, the sequence has 16"),
        ([], {"documents": [0, 16]}, r"^documents: .*lengths from 1 up"),
        ([], {"prefix": 3}, r"^prefix: this model has no tokens that all see one another"),
        (["prefix_lm=true"], {"prefix": 17}, r"^prefix: is 17, but the sequence has 16 tokens"),
        (["prefix_lm=true"], {"prefix": 3, "documents": [16]}, r"^prefix: packed documents were given too"),
        (["prefix_lm=true", "attention=mamba", "position=none"], {"prefix": 3}, r"^prefix: a recurrent mixer reads"),
    ],
)
def test_what_cannot_be_counted_is_refused_in_one_line(overrides, options, fault):
    with pytest.raises(ConfigError, match=fault):
        count_flops(spec_of(overrides), TOKENS, **options)


def test_an_encoder_decoder_takes_no_packed_documents():
    with pytest.raises(ConfigError, match=r"^documents: a model of kind 'encoder_decoder' takes none"):
        count_flops(load("t5-small"), TOKENS, documents=[8, 8])


# ---------------------------------------------------------------- what the literature says

L, D, V, S = 12, 768, 50257, 1024  # GPT-2's


def per_token(convention, model="gpt2", context=S, **options):
    return count_flops(load(model), context, convention, **options)


def test_every_convention_on_offer_says_what_it_counts_in_one_line():
    assert tuple(sorted(CONVENTIONS)) == tuple(sorted(OFFERED))
    for convention, line in CONVENTIONS.items():
        assert line.startswith(f"{convention}: ") and "\n" not in line
        assert price(load("gpt2"), convention=convention)["flops"]["convention"] == line


def test_palm_is_six_n_and_twelve_l_h_q_t():
    n = 124_439_808 - S * D  # the position table is looked up, the token table is also the head
    assert per_token("palm")["train"] == 6 * n + 12 * L * D * S
    assert per_token("palm")["forward"] == 2 * n + 4 * L * D * S
    assert "decode" not in per_token("palm")  # a convention for training


def test_palm_leaves_out_a_table_that_is_looked_up_alone():
    untied = 8_030_261_248 - 128256 * 4096
    assert per_token("palm", "llama3-8b", 8192)["train"] == 6 * untied + 12 * 32 * 32 * 128 * 8192
    tied = 1_235_814_400  # its table is the head too
    assert per_token("palm", "llama3.2-1b", 8192)["train"] == 6 * tied + 12 * 16 * 32 * 64 * 8192


def test_palm_counts_windows_whole_and_experts_as_they_are_met():
    assert multiplied(load("mixtral-8x7b")) == 12_879_925_248 - 32000 * 4096
    local, whole = (per_token("palm", name, 8192) for name in ("mistral-7b-v0.1", "llama2-7b"))
    pairs = 12 * 32 * 32 * 128 * 8192
    assert local["train"] - 6 * multiplied(load("mistral-7b-v0.1")) == pairs
    assert whole["train"] - 6 * multiplied(load("llama2-7b")) == pairs


def test_megatron_is_the_papers_formula_with_half_of_the_square():
    papers = 72 * L * D**2 * (1 + S / (6 * D) + V / (12 * D * L))
    assert per_token("megatron")["train"] == round(papers - 72 * L * D**2 * S / (12 * D))
    encoder = per_token("megatron", "bert-base", 512)["forward"]
    transform = 2 * D * D
    assert encoder == 24 * L * D**2 + 4 * L * 512 * D + transform + 2 * D * 30522  # both ways: all of the square


def test_megatron_counts_no_router():
    figures, exact = (count_flops(load("mixtral-8x7b"), 4096, convention) for convention in ("megatron", "exact"))
    assert exact["forward"] - figures["forward"] == 32 * (2 * 4096 * 8 + 2 * 4096)  # routers, and half of the diagonal


@pytest.mark.parametrize("model", ["gpt2", "gpt3-175b", "llama3-8b", "qwen3-4b"])
def test_kaplan_is_six_times_the_parameters_that_are_no_embedding(model):
    spec = load(model)
    assert count_flops(spec, 2048, "kaplan")["train"] == 6 * count_parameters(spec)["non_embedding"]
    assert count_flops(spec, 2048, "kaplan")["decode"] == count_flops(spec, 64, "kaplan")["forward"]


def test_gpt3_took_the_compute_that_its_paper_says():
    assert per_token("kaplan", "gpt3-175b")["train"] * 300e9 == pytest.approx(3.14e23, rel=0.005)  # table D.1


def test_recomputing_all_costs_one_more_forward_and_selectively_the_pairs():
    model, context = load("llama3-8b"), 8192
    plain = count_flops(model, context)
    assert plain["train_hardware"] == plain["train"]
    assert count_flops(model, context, recompute="full")["train_hardware"] == pytest.approx(4 * plain["forward"], abs=2)
    pairs = 32 * 4 * 32 * 128 * (context + 1) / 2
    selective = count_flops(model, context, recompute="selective")
    assert selective["train_hardware"] - selective["train"] == pytest.approx(pairs, abs=1)
    assert selective["train"] == plain["train"]  # model FLOPs stay what they are


def test_hfu_counts_what_flash_attention_and_recomputation_do_again():
    model, context = load("llama3-8b"), 8192
    pairs = 32 * 4 * 32 * 128 * (context + 1) / 2
    plain = count_flops(model, context)["train"]
    for recompute, more in (("none", 0.5), ("selective", 1.5)):
        figures = count_flops(model, context, "hfu", recompute)
        assert figures["train"] == figures["train_hardware"] == pytest.approx(plain + more * pairs, abs=1)
    assert count_flops(model, context, "hfu")["decode"] == count_flops(model, context)["decode"]


def test_tying_the_head_changes_no_flops():
    tied, untied = (load("llama3-8b", [f"head.tied={flag}"]) for flag in ("true", "false"))
    for convention in CONVENTIONS:
        assert count_flops(tied, 4096, convention) == count_flops(untied, 4096, convention)


def test_mla_decodes_absorbed_and_what_expanded_keys_would_cost_stands_beside():
    far, near = (count_flops(load("deepseek-v3"), context) for context in (4096, 4095))
    assert far["decode"] - near["decode"] == 61 * 278_528
    assert far["decode_expanded"] - near["decode_expanded"] == 61 * 81_920
    assert "decode_expanded" not in count_flops(load("llama3-8b"), 4096)


def test_a_window_stops_growing_and_a_full_layer_does_not():
    far, near = (count_flops(load("gemma2-9b"), context)["decode"] for context in (8192, 8191))
    assert far - near == 21 * 4 * 16 * 256  # the 21 global layers of 42


def test_layers_that_share_their_weights_compute_as_often_as_they_are_used():
    own, shared = (spec_of(["n_layers=3", f"shared_layers={flag}"]) for flag in ("false", "true"))
    for convention in CONVENTIONS:
        assert count_flops(own, TOKENS, convention) == count_flops(shared, TOKENS, convention)


def test_an_encoder_decoder_reads_its_prompt_and_begins_to_write():
    figures = count_flops(load("t5-small"), 512)
    encoder = 512 * 6 * 2 * (4 * 512 * 512 + 2 * 512 * 2048) + 6 * 4 * 512 * 512 * 512
    memory = 512 * 6 * 2 * 2 * 512 * 512
    begun = 6 * (2 * (6 * 512 * 512 + 2 * 512 * 2048) + 4 * 512 * (1 + 512)) + 2 * 512 * 32128
    assert figures["prefill"] == encoder + memory + begun
    assert figures["decode"] == begun + 6 * 4 * 512 * 511


@pytest.mark.parametrize("pool", [2, 5])
@pytest.mark.parametrize("chosen", [1, 3])
def test_pairs_of_pools_are_those_counted_one_by_one(pool, chosen):
    top_k = chosen * pool
    scored = Look(True, False, rate=pool)
    taken = Look(True, False, top_k=top_k, granule=pool, tail=True)
    for held, new in ((0, 1), (0, 23), (7, 9), (12, 1), (31, 6)):
        tokens = range(held + 1, held + new + 1)
        assert scored.pairs(new, held) == sum(each // pool for each in tokens)
        whole = [min(each // pool * pool, top_k) + each % pool for each in tokens]
        assert taken.pairs(new, held) == sum(whole)


@pytest.mark.parametrize("rate", [2, 5])
@pytest.mark.parametrize("most", [None, 3])
def test_pairs_of_a_window_and_of_entries_are_those_counted_one_by_one(rate, most):
    look = Look(True, False, rate=rate, near=4, top_k=most)
    for held, new in ((0, 1), (0, 40), (3, 9), (17, 30)):
        tokens = range(held + 1, held + new + 1)
        entries = sum(min(each // rate, most or each) for each in tokens)
        assert look.pairs(new, held) == entries + sum(min(each, 4) for each in tokens)
    assert look.square(23) == 23 * 23 + 23 * (23 // rate)
