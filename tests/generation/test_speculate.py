"""Speculation leaves what is generated as it was: greedy token by token, drawn in distribution."""

import random
from collections import Counter

import pytest
import torch

from zoo.data.tokenizer import make_byte_tokenizer
from zoo.sampling.draws import DrawState
from zoo.sampling.guide import GuideCompiler
from zoo.sampling.options import Sampling
from zoo.sampling.sampler import Sampler
from zoo.sampling.speculate import PromptLookup, accept, draw_draft

VOCAB = 40


class Markov:
    """A model whose logits depend on the last two tokens."""

    def __init__(self, seed, vocab=VOCAB, spread=2.0):
        table = torch.Generator().manual_seed(seed)
        self.table = spread * torch.randn(vocab, vocab, vocab, generator=table)

    def __call__(self, ids):
        return self.table[ids[-2], ids[-1]]


def ids_of(state):
    return [*state.context, *state.generated]


def write_alone(model, state, count):
    """One token at a time."""
    sampler = Sampler()
    while len(state.generated) < count:
        state.advance(*sampler.choose(model(ids_of(state))[None], [state]))
    return state.generated[:count]


def verify(model, draft, state, shares=None):
    """What one pass over a draft gives."""
    ids = ids_of(state)
    logits = torch.stack([model([*ids, *draft[:place]]) for place in range(len(draft) + 1)])
    return accept(Sampler(), [draft], logits, [state], [shares])[0]


def propose(model, state, count):
    """A draft of a draft model, and the probabilities it was drawn with."""
    draft, rows = [], []
    for _ in range(count):
        ahead = state.ahead(draft)[-1]
        tokens, shares = draw_draft(Sampler(), model([*ids_of(state), *draft])[None], [ahead])
        draft.append(tokens[0])
        rows.append(shares[0])
    return draft, torch.stack(rows)


OPTIONS = [
    {},
    {"repetition_penalty": 1.4},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"bad_words": ((3,), (5, 6), (7, 8, 9)), "min_tokens": 30, "logit_bias": {4: 3.0}},
]
DRAWN = [
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.0, "top_p": 0.8, "seed": 4},
    {"temperature": 1.5, "top_k": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("drawn", [{}, *DRAWN], ids=str)
def test_guessed_drafts_give_the_very_tokens_of_a_run_without_them(options, drawn):
    model, rng = Markov(1), random.Random(0)
    sampling = Sampling(**options, **drawn).seeded()
    alone = write_alone(model, DrawState(sampling, [1, 2], stop_ids=[0]), 60)
    state, lengths = DrawState(sampling, [1, 2], stop_ids=[0]), Counter()
    while len(state.generated) < 60:
        right = alone[len(state.generated) :][: rng.randint(0, 4)]
        draft = [*right, rng.randrange(VOCAB), rng.randrange(VOCAB)]
        tokens = verify(model, draft, state)
        ended = 0 in tokens or len(state.generated) + len(tokens) >= 60
        assert len(tokens) > len(right) or ended  # what is right is accepted
        lengths[len(tokens)] += 1
        state.advance(*tokens)
    assert state.generated[:60] == alone
    assert len(lengths) > 3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_greedy_drafts_of_another_model_give_the_very_tokens_too(options):
    model, other = Markov(1), Markov(2)
    other.table = model.table + 0.7 * other.table
    alone = write_alone(model, DrawState(Sampling(**options), [1, 2], stop_ids=[0]), 60)
    state, rounds = DrawState(Sampling(**options), [1, 2], stop_ids=[0]), 0
    while len(state.generated) < 60:
        state.advance(*verify(model, *propose(other, state, 3)[:1], state, torch.zeros(3, VOCAB)))
        rounds += 1
    assert state.generated[:60] == alone
    assert rounds < 50


def chi_squared(counts, expected, draws):
    """The statistic over the standard normal of its degrees (Wilson and Hilferty, 1931): above 3.1 for p < 1e-3. Pairs
    that are expected less than five times count as one."""
    often = {pair: draws * share for pair, share in expected.items() if draws * share >= 5}
    statistic = sum((counts[pair] - mean) ** 2 / mean for pair, mean in often.items())
    rest, seen = draws - sum(often.values()), draws - sum(counts[pair] for pair in often)
    degrees = len(often) - 1
    if rest >= 5:
        statistic, degrees = statistic + (seen - rest) ** 2 / rest, degrees + 1
    spread = 2 / (9 * degrees)
    return ((statistic / degrees) ** (1 / 3) - 1 + spread) / spread**0.5


def pair_shares(model, state):
    """The exact probability of each pair of first tokens."""
    shares = {}
    first = Sampler().find_shares(model(ids_of(state))[None], [state])[0]
    for token in first.nonzero()[:, 0].tolist():
        ahead = state.ahead([token])[-1]
        second = Sampler().find_shares(model([*ids_of(state), token])[None], [ahead])[0]
        for after in second.nonzero()[:, 0].tolist():
            shares[token, after] = float(first[token] * second[after])
    return shares


LAWS = [{}, {"top_p": 0.9}, {"presence_penalty": 1.5, "temperature": 0.7, "top_k": 6}]


def draw_pairs(model, options, draws, draft_of):
    counts, accepted = Counter(), 0
    for seed in range(draws):
        state = DrawState(Sampling(**{"temperature": 1.0} | options, seed=seed), [1, 2])
        while len(state.generated) < 2:
            draft, shares = draft_of(state)
            tokens = verify(model, draft, state, shares)
            accepted += len(tokens) > 1
            state.advance(*tokens)
        counts[tuple(state.generated[:2])] += 1
    return counts, accepted / draws


def check_law(kind, options, draws):
    model, other = Markov(5, 12, 1.0), Markov(6, 12, 1.0)
    other.table = model.table + 0.8 * other.table

    def draft_of(state):
        if kind == "draft":
            return propose(other, state, 2)
        return [int(model(ids_of(state)).argmax()), 3], None

    expected = pair_shares(model, DrawState(Sampling(**{"temperature": 1.0} | options), [1, 2]))
    counts, accepted = draw_pairs(model, options, draws, draft_of)
    assert sum(expected.values()) == pytest.approx(1)
    assert 0.1 < accepted < 0.99
    assert set(counts) <= set(expected)
    assert chi_squared(counts, expected, draws) < 3.09
    shuffled = dict(zip(expected, [*list(expected.values())[1:], *list(expected.values())[:1]], strict=True))
    assert chi_squared(counts, shuffled, draws) > 5  # the test can tell


@pytest.mark.slow
@pytest.mark.parametrize("options", LAWS, ids=str)
@pytest.mark.parametrize("kind", ["guess", "draft"])
def test_twenty_thousand_drawn_pairs_have_the_models_distribution(kind, options):
    check_law(kind, options, 20_000)


@pytest.mark.parametrize("kind", ["guess", "draft"])
def test_drawn_pairs_have_the_models_distribution(kind):
    check_law(kind, {"top_p": 0.9}, 600)


def test_the_rule_of_rejection_gives_the_target_at_every_random_number(monkeypatch):
    """Each random number runs through a grid: the tokens come as often as the target's probabilities say, exactly but
    for the grid. A number that is asked for where another should be is not there."""
    given, size = {}, 40
    monkeypatch.setattr(DrawState, "point", lambda state, stream="": given[stream])
    grid = [(step + 0.5) / size for step in range(size)]
    coarse = [(step + 0.5) / 15 for step in range(15)]
    logits, draft_logits = torch.tensor([[0.0, 1.0, 0.3, -1.0], [0.0] * 4]), torch.tensor([[1.0, 0.2, -2.0, 0.5]])
    state = DrawState(Sampling(temperature=1.0, seed=0), [0])
    drafts = Counter()
    for given["draft"] in grid:
        tokens, shares = draw_draft(Sampler(), draft_logits, [state])
        drafts[tokens[0]] += 1
    found = torch.zeros(4)
    for draft, times in drafts.items():
        assert times / size == pytest.approx(float(shares[0, draft]), abs=1 / size)
        for accepted in grid:
            for replaced in coarse:
                given.clear()
                given.update({"accept": accepted, "": replaced})
                tokens = accept(Sampler(), [[draft]], logits, [state], [shares])[0]
                found[tokens[0]] += float(shares[0, draft]) / size / len(coarse)
    torch.testing.assert_close(found, logits[0].softmax(0), rtol=0, atol=0.03)


def test_a_draft_models_run_is_fixed_by_its_seed():
    model, other = Markov(1), Markov(1)
    texts = []
    for seed in (1, 1, 2):
        state = DrawState(Sampling(temperature=1.0, seed=seed), [1, 2])
        while len(state.generated) < 40:
            state.advance(*verify(model, *(found := propose(other, state, 3))[:1], state, found[1]))
        texts.append(state.generated[:40])
    assert texts[0] == texts[1] != texts[2]


def test_a_draft_that_is_the_model_itself_is_accepted_whole():
    model, state = Markov(1), DrawState(Sampling(temperature=1.0, seed=1), [1, 2])
    for _ in range(20):
        draft, shares = propose(model, state, 4)
        tokens = verify(model, draft, state, shares)
        assert tokens[:4] == draft
        assert len(tokens) == 5
        state.advance(*tokens)


def test_rows_of_a_batch_are_verified_as_alone():
    model, rng = Markov(1), random.Random(2)
    states, drafts = [], []
    for row in range(12):
        options = rng.choice(OPTIONS) | rng.choice([{}, {"temperature": 0.9, "seed": row}])
        states.append(DrawState(Sampling(**options), [row, 2], stop_ids=[0]))
        drafts.append([rng.randrange(VOCAB) for _ in range(rng.randint(0, 4))])
        if drafts[-1]:
            drafts[-1][0] = Sampler().choose(model(ids_of(states[-1]))[None], states[-1:])[0]
    shares = [torch.full((len(draft), VOCAB), 1 / VOCAB) if row % 2 else None for row, draft in enumerate(drafts)]
    logits = [
        model([*ids_of(state), *draft[:place]])
        for state, draft in zip(states, drafts, strict=True)
        for place in range(len(draft) + 1)
    ]
    together = accept(Sampler(), drafts, torch.stack(logits), states, shares)
    for row, state in enumerate(states):
        assert together[row] == verify(model, drafts[row], state, shares[row])


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0, "seed": 0}], ids=str)
def test_nothing_follows_a_stop_id(drawn):
    logits = torch.zeros(4, 5)
    logits[range(4), [1, 2, 3, 4]] = 50.0
    for stop_ids, expected in (([2], [1, 2]), ([], [1, 2, 3, 4]), ([4], [1, 2, 3, 4])):
        state = DrawState(Sampling(**drawn), [0], stop_ids=stop_ids)
        for shares in (None, torch.full((3, 5), 0.2)):
            assert accept(Sampler(), [[1, 2, 3]], logits, [state], [shares]) == [expected]


def test_a_row_without_a_number_to_choose_by_ends_in_none():
    for options, shares in (({}, None), ({"temperature": 1.0, "seed": 0}, torch.full((2, 5), 0.2))):
        logits = torch.zeros(3, 5)
        logits[0, 1], logits[1] = 50.0, float("nan")
        state = DrawState(Sampling(**options), [0])
        assert accept(Sampler(), [[1, 2]], logits, [state], [shares]) == [[1, -1]]


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0, "seed": 5}], ids=str)
@pytest.mark.parametrize("weighed", [False, True])
def test_drafts_follow_a_grammar_and_leave_its_state_as_it_was(drawn, weighed):
    pytest.importorskip("llguidance")
    guide = GuideCompiler(make_byte_tokenizer()).compile("regex", "(ab|ac){3,20}d")
    rng = random.Random(3)
    logits = torch.randn(64, 257)
    for _ in range(20):
        state = DrawState(Sampling(**drawn), [0], guide=guide)
        text = ""
        while not state.finished:
            draft = [ord(rng.choice("abcd")) for _ in range(4)]
            shares = torch.full((4, 257), 1 / 257) if weighed else None
            tokens = accept(Sampler(), [draft], logits[:5], [state], [shares])[0]
            assert all(token >= 0 for token in tokens)
            for token in tokens:
                if not state.finished:
                    state.advance(token)
                    text += chr(token) if token < 256 else ""
        assert state.fault is None
        assert text.endswith("d")
        assert 3 <= text.count("a") <= 20


# ---------------------------------------------------------------- prompt lookup


def look_up(ids, count, longest, shortest):
    """Prompt lookup by searching the whole sequence."""
    for length in range(longest, shortest - 1, -1):
        for start in range(len(ids) - length - 1, -1, -1):
            if length < len(ids) and ids[start : start + length] == ids[-length:]:
                after = ids[start + length :]
                return [after[step % len(after)] for step in range(count)]
    return []


@pytest.mark.parametrize(("longest", "shortest"), [(4, 2), (1, 1), (6, 3)])
def test_proposals_are_those_of_a_search_through_the_whole_sequence(longest, shortest):
    rng = random.Random(longest)
    for vocab in (2, 5, 30):
        lookup, ids, found = PromptLookup(longest=longest, shortest=shortest), [], 0
        for _ in range(150):
            added = [rng.randrange(vocab) for _ in range(rng.randint(1, 3))]
            lookup.extend(added)
            ids += added
            proposed = lookup.propose(5)
            assert proposed == look_up(ids, 5, longest, shortest)
            found += bool(proposed)
        assert found > 3 or vocab == 30


def test_text_that_repeats_is_copied_over_its_own_end():
    assert PromptLookup([1, 2, 3, 1, 2, 3, 1, 2]).propose(7) == [3, 1, 2, 3, 1, 2, 3]
    assert PromptLookup([7, 7, 7]).propose(3) == [7, 7, 7]
    assert PromptLookup([1, 2, 3]).propose(3) == []


def test_proposals_that_fail_pause_for_longer_each_time_and_one_that_holds_ends_it():
    lookup = PromptLookup([1, 2, 3, 1, 2])
    waits = []
    for _ in range(10):
        lookup.report(4, 0)
        waits.append(0)
        while not lookup.propose(4):
            lookup.extend([3, 1, 2])
            waits[-1] += 3
    assert waits == sorted(waits)
    assert waits[0] < 4
    assert 255 < waits[-1] < 260
    lookup.report(4, 2)
    assert lookup.propose(4) == [3, 1, 2, 3]
    lookup.report(4, 0)
    assert lookup.propose(4) == []
