"""Sampling with other options a row: against transformers' processors, brute force, and rows alone."""

import math
import random

import pytest
import torch
from transformers.generation import logits_process as theirs

from support.call_counts import calls_of
from zoo.errors import ConfigError
from zoo.sampling.draws import DrawState, UniformPoints, make_generator
from zoo.sampling.options import Sampling
from zoo.sampling.sampler import Sampler, find_logprobs
from zoo.sampling.truncate import Cuts, draw, find_head, find_likeliest
from zoo.text.jobs import encode_words
from zoo.text.prompts import Options, parse_logit_bias


def some_options(rng, vocab):
    """A random combination; each option is in about a third of them."""
    word = [rng.randrange(20) for _ in range(rng.randint(1, 3))]
    ranges = {
        "top_k": rng.choice([1, 3, 40, 63, 64, 100, 127, 128, 300, 10**6]),
        "top_p": rng.choice([1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999]),
        "min_p": rng.choice([1e-4, 0.01, 0.3, 1.0]),
        "typical_p": rng.choice([0.05, 0.5, 0.9]),
        "repetition_penalty": rng.choice([0.7, 1.3]),
        "presence_penalty": rng.choice([-1.0, 0.5]),
        "frequency_penalty": rng.choice([-0.5, 0.25]),
        "logit_bias": {rng.randrange(vocab): rng.uniform(-5, 5) for _ in range(3)},
        "bad_words": (tuple(word), (rng.randrange(vocab),)),
        "min_tokens": rng.choice([5, 40]),
    }
    chosen = {name: value for name, value in ranges.items() if rng.random() < 0.35}
    return chosen | {"temperature": rng.choice([0.3, 0.7, 1.0, 2.0]), "seed": rng.randrange(1000)}


def some_state(rng, vocab, options=None):
    """A state some way into its text; tokens below 20 are common, so that bad words are nearly complete."""
    prompt = [rng.randrange(20) for _ in range(rng.randint(1, 30))]
    state = DrawState(Sampling(**(options or some_options(rng, vocab))), prompt, stop_ids={3, vocab - 1})
    state.advance(*(rng.randrange(20 if rng.random() < 0.8 else vocab) for _ in range(rng.randint(0, 30))))
    return state


def reference(logits, state):
    """transformers' processors in the order in which its `generate` puts them, a row at a time; OpenAI's penalties,
    which it has not, by their definition."""
    asked, ids = state.sampling, torch.tensor([[*state.context, *state.generated]])
    scores = logits[None].float()
    if asked.logit_bias:
        bias = {(token,): value for token, value in asked.logit_bias.items()}
        scores = theirs.SequenceBiasLogitsProcessor(bias)(ids, scores)
    scores = theirs.RepetitionPenaltyLogitsProcessor(asked.repetition_penalty)(ids, scores).clone()
    for token in set(state.generated):
        times = state.generated.count(token)
        scores[0, token] -= asked.presence_penalty + times * asked.frequency_penalty
    if asked.bad_words:
        scores = theirs.NoBadWordsLogitsProcessor([list(word) for word in asked.bad_words])(ids, scores)
    if asked.min_tokens:
        stops = torch.tensor(state.stop_ids)
        bar = theirs.MinNewTokensLengthLogitsProcessor(len(state.context), asked.min_tokens, stops)
        scores = bar(ids, scores)
    chain = [theirs.TemperatureLogitsWarper(asked.temperature)]
    chain += [] if asked.top_k is None else [theirs.TopKLogitsWarper(asked.top_k)]
    chain += [] if asked.top_p is None else [theirs.TopPLogitsWarper(asked.top_p)]
    chain += [] if asked.min_p is None else [theirs.MinPLogitsWarper(asked.min_p)]
    chain += [] if asked.typical_p is None else [theirs.TypicalLogitsWarper(asked.typical_p)]
    return theirs.LogitsProcessorList(chain)(ids, scores)[0].double().softmax(-1)


@pytest.mark.parametrize("vocab", [50, 700, 5000])
@pytest.mark.parametrize("spread", [0.3, 3.0, 12.0])
def test_rows_with_other_options_each_get_the_distribution_that_transformers_gives(vocab, spread):
    rng = random.Random(f"{vocab} {spread}")
    for _ in range(2):
        logits = spread * torch.randn(16, vocab)
        states = [some_state(rng, vocab) for _ in range(16)]
        shares = Sampler().find_shares(logits, states)
        for row, state in enumerate(states):
            expected = reference(logits[row], state)
            if not torch.allclose(shares[row], expected, rtol=1e-4, atol=1e-7):
                # A token whose cumulative probability is the limit to the last bit may fall on either side.
                differs = (shares[row] > 0) != (expected > 0)
                assert differs.sum() == 1, state.sampling
                assert expected[differs] + shares[row][differs] < 0.01, state.sampling


def test_ties_at_the_border_of_top_p_keep_the_first_and_as_few_as_transformers_does():
    rng = random.Random(1)
    for vocab in (60, 5000):
        logits = torch.randint(-3, 4, (16, vocab)).float()
        states = [some_state(rng, vocab, {"temperature": 1.0, "top_p": rng.uniform(0.05, 0.95)}) for _ in range(16)]
        shares = Sampler().find_shares(logits, states)
        for row, state in enumerate(states):
            torch.testing.assert_close(shares[row].sort().values, reference(logits[row], state).sort().values)
            last = logits[row][shares[row] > 0].min()
            ties = shares[row][logits[row] == last] > 0
            assert ties.sum() == ties.int().cumprod(0).sum()  # the first ones, with no gap


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draw_inverts_the_cumulative_distribution_at_the_rows_own_point(dtype):
    rng = random.Random(2)
    for vocab in (50, 700, 5000):
        logits = (3 * torch.randn(24, vocab)).to(dtype)  # bfloat16 has ties everywhere
        states = [some_state(rng, vocab) for _ in range(24)]
        tokens = Sampler().choose(logits, states)
        total = Sampler().find_shares(logits, states).cumsum(-1)
        for row, token in enumerate(tokens):
            point = states[row].point()
            before = float(total[row, token - 1]) if token else 0.0
            assert before - 1e-6 <= point <= float(total[row, token]) + 1e-6
            assert float(total[row, token]) > before


def test_tokens_are_drawn_as_often_as_their_probability_says():
    logits = torch.tensor([[0.0, 1.0, -math.inf, 2.0, -1.0]])
    states = [DrawState(Sampling(temperature=1.0, seed=0), [row]) for row in range(20_000)]
    drawn = torch.tensor(Sampler().choose(logits.expand(20_000, -1), states)).bincount(minlength=5)
    expected = 20_000 * logits[0].softmax(0)
    assert drawn[2] == 0
    kept = expected > 0
    chi_squared = ((drawn - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_squared < 16.3  # 3 degrees of freedom: 0.1% of honest draws exceed it


@pytest.mark.parametrize("vocab", [4, 5000])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9}], ids=str)
def test_a_token_of_no_probability_is_not_drawn_even_at_the_ends(options, vocab):
    logits = torch.full((1000, vocab), -math.inf)
    logits[:, 1] = 0
    points = torch.linspace(0, 1 - 2**-53, 1000, dtype=torch.float64)[:, None]  # both ends too
    asked = [Sampling(temperature=1.0, **options)] * 1000
    cuts = Cuts.of(asked, vocab, logits.device)
    assert draw(logits, cuts, points, find_head(asked[0], vocab)).eq(1).all()


def test_half_precision_logits_are_edited_in_float32():
    rng = random.Random(8)
    logits = torch.randn(16, 700, dtype=torch.bfloat16)
    states = [some_state(rng, 700) for _ in range(16)]
    assert torch.equal(Sampler().find_shares(logits, states), Sampler().find_shares(logits.float(), states))


def test_greedy_takes_the_likeliest_token_and_minds_the_penalty():
    logits = torch.tensor([[1.0, 3.0, 2.9], [-1.0, -3.0, -1.1]])
    assert Sampler().choose(logits, [DrawState(Sampling(), [token]) for token in (1, 0)]) == [1, 0]
    penalised = [DrawState(Sampling(repetition_penalty=1.2), [token]) for token in (1, 0)]
    assert Sampler().choose(logits, penalised) == [2, 2]


def test_a_row_chooses_what_it_would_choose_alone():
    rng = random.Random(3)
    for vocab in (700, 5000):
        logits = 2 * torch.randn(32, vocab)
        states = [some_state(rng, vocab) for _ in range(28)]
        states += [some_state(rng, vocab, {"temperature": 0.0, "repetition_penalty": 1.5}) for _ in range(4)]
        sampler = Sampler()
        together = sampler.choose(logits, states)
        assert [sampler.choose(logits[row : row + 1], states[row : row + 1])[0] for row in range(32)] == together
        order = rng.sample(range(32), 20)
        assert sampler.choose(logits[order], [states[row] for row in order]) == [together[row] for row in order]


def test_a_seed_draws_by_inverting_the_distribution_at_numbers_that_torchs_generator_gives():
    """Texts of a seed must stay the same over versions: here by what the numbers are, below by the numbers."""
    rng = random.Random(4)
    prompts = [[5, 6], [7], [5, 6], [5, 6], [8, 9, 10]]
    copies = [0, 0, 1, 2, 0]
    for options in ({}, {"top_k": 5}, {"top_p": 0.9}, {"top_p": 0.999, "min_p": 0.01}, {"repetition_penalty": 1.3}):
        sampling = Sampling(temperature=0.9, seed=rng.randrange(100), **options)
        states = [DrawState(sampling, prompt, copy) for prompt, copy in zip(prompts, copies, strict=True)]
        points = [uniform_numbers(sampling.seed, *each, 60) for each in zip(prompts, copies, strict=True)]
        sampler = Sampler()
        for step in range(60):
            logits = 3 * torch.randn(5, 700)
            tokens = sampler.choose(logits, states)
            for row, (state, token) in enumerate(zip(states, tokens, strict=True)):
                assert state.point() == points[row][step]
                cumulative = reference(logits[row], state).cumsum(-1)
                assert token == torch.searchsorted(cumulative, points[row][step] * cumulative[-1], right=True)
                state.advance(token)


def uniform_numbers(seed, prompt, copy, count):
    generator = make_generator(seed, tuple(prompt), copy)
    return torch.rand(count, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("count", [1, 7, 15, 16, 17, 64, 65, 130])  # torch fills 16 numbers and more by another loop
def test_the_number_of_steps_does_not_change_what_a_seed_draws(count):
    points = UniformPoints(make_generator(7, (5,), 0))
    assert [points[index] for index in range(count)] == uniform_numbers(7, [5], 0, count).tolist()


def test_other_seeds_prompts_and_copies_draw_other_numbers():
    firsts = {
        (seed, prompt, copy): DrawState(Sampling(seed=seed), prompt, copy).point()
        for seed in (7, 8)
        for prompt in ((5,), (6,), (5, 6))
        for copy in (0, 1)
    }
    assert len(set(firsts.values())) == len(firsts)


def test_seeds_draw_what_they_drew_in_november_2026():
    """Texts of a seed must stay the same over versions."""
    drawn = {  # the first two numbers of a prompt's copy
        ((5, 6), 0): ["0x1.67afbb2fd3640p-4", "0x1.2401ac8c11368p-1"],
        ((5, 6), 1): ["0x1.cf366a51b4647p-1", "0x1.57f8881e92fa0p-4"],
        ((9,), 0): ["0x1.d96e31f65ea1ep-2", "0x1.bf8e6cc3911c0p-4"],
    }
    for (prompt, copy), expected in drawn.items():
        state, found = DrawState(Sampling(temperature=1.0, seed=7), prompt, copy), []
        for _ in range(2):
            found.append(state.point().hex())
            state.advance(0)
        assert found == expected


def test_further_streams_of_random_numbers_are_independent_of_the_first():
    state = DrawState(Sampling(temperature=1.0, seed=1), [5])
    found = {stream: [] for stream in ("", "draft", "accept")}
    for _ in range(2000):
        for stream, points in found.items():
            points.append(state.point(stream))
        state.advance(0)
    pairs = torch.corrcoef(torch.tensor(list(found.values())))
    assert (pairs - torch.eye(3)).abs().max() < 0.08


def test_without_a_seed_a_state_takes_one_from_torchs_generator_and_keeps_it():
    torch.manual_seed(3)
    one = DrawState(Sampling(temperature=1.0), [5])
    other = DrawState(Sampling(temperature=1.0), [5])
    torch.manual_seed(3)
    again = DrawState(Sampling(temperature=1.0), [5])
    assert one.point() == again.point() != other.point()


@pytest.mark.parametrize("vocab", [1, 50, 256, 300, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_likeliest_token_is_the_first_of_the_largest(vocab, dtype):
    for logits in (torch.randn(9, vocab), torch.randint(-2, 3, (9, vocab)).float(), torch.full((9, vocab), -math.inf)):
        values, tokens = find_likeliest(logits.to(dtype))
        assert torch.equal(values, logits.to(dtype).amax(-1))
        assert tokens.tolist() == [row.index(max(row)) for row in logits.to(dtype).tolist()]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5}, {"min_tokens": 2}])
@pytest.mark.parametrize("vocab", [7, 3000])
def test_a_row_without_a_number_to_choose_by_has_no_token_and_the_others_do(options, vocab):
    logits = torch.zeros(5, vocab)
    logits[0, 3], logits[1], logits[2], logits[3, 1], logits[4, 2] = math.nan, math.nan, -math.inf, math.inf, 50
    states = [DrawState(Sampling(**options, seed=0), [row], stop_ids=[0]) for row in range(5)]
    assert Sampler().choose(logits, states) == [-1, -1, -1, 1, 2]
    shares = Sampler().find_shares(logits, states)
    assert shares.isnan().all(-1).tolist() == [True, True, True, False, False]


def test_infinite_logits_share_all_the_probability():
    logits = torch.tensor([[math.inf, 0.0, math.inf, -math.inf]])
    for options in ({}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9}):
        shares = Sampler().find_shares(logits, [DrawState(Sampling(temperature=0.5, **options), [0])])
        assert shares.tolist() == [[0.5, 0.0, 0.5, 0.0]]
    assert Sampler().choose(torch.tensor([[0.0, math.inf, 1.0]]), [DrawState(Sampling(), [0])]) == [1]


def test_options_that_bar_every_token_leave_none():
    state = DrawState(Sampling(logit_bias={0: -math.inf}, bad_words=((1,),), min_tokens=1), [0], stop_ids=[2])
    assert Sampler().choose(torch.zeros(1, 3), [state]) == [-1]
    state.advance(2)  # min_tokens is met
    assert Sampler().choose(torch.zeros(1, 3), [state]) == [2]


def test_min_tokens_counts_generated_tokens_alone():
    state = DrawState(Sampling(min_tokens=3), [0] * 10, stop_ids=[1])
    logits, found = torch.tensor([[0.0, 9.0, 1.0]]), []
    for _ in range(5):
        found += Sampler().choose(logits, [state])
        state.advance(found[-1])
    assert found == [2, 2, 2, 1, 1]


def test_a_bad_word_may_begin_in_the_prompt_and_its_beginning_may_be_written():
    words = ((4, 5, 6), (6, 6))
    state = DrawState(Sampling(bad_words=words), [9, 4])
    logits, found = torch.arange(7.0)[None], []
    for forced in (5, None, None):
        state.advance(*([] if forced is None else [forced]))
        found += Sampler().choose(logits, [state])
        state.advance(found[-1])
    assert found == [5, 6, 5]  # 6 would end 4 5 6; then 6 may come; then 6 6 is barred


def test_a_process_of_the_callers_sees_the_ids_and_its_logits_are_used():
    seen = []

    def only_the_third(ids, logits):
        seen.append(list(ids))
        return torch.where(torch.arange(len(logits)) == 2, logits, -math.inf)

    states = [DrawState(Sampling(process=only_the_third), [4]), DrawState(Sampling(), [4])]
    states[0].advance(1)
    logits = torch.tensor([[5.0, 4.0, 3.0]] * 2)
    assert Sampler().choose(logits, states) == [2, 0]
    assert seen == [[4, 1]]
    wrong = DrawState(Sampling(process=lambda ids, logits: logits[:2]), [4])
    with pytest.raises(ConfigError, match=r"process: gave shape \[2\], not logits of shape \[3\]"):
        Sampler().choose(logits[:1], [wrong])


def test_the_callers_logits_stay_as_they_are():
    rng = random.Random(5)
    logits = torch.randn(16, 700)
    before = logits.clone()
    Sampler().choose(logits, [some_state(rng, 700) for _ in range(16)])
    assert torch.equal(logits, before)


def test_what_options_say_is_laid_out_once_while_the_batch_stays_the_same():
    rng, sampler = random.Random(6), Sampler()
    options = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "logit_bias": {5: 1.0}}
    states = [some_state(rng, 700, options) for _ in range(32)]
    logits = torch.randn(32, 700)
    first = calls_of(lambda: sampler.choose(logits, states))
    again = calls_of(lambda: sampler.choose(logits, states))
    assert again < first / 2
    greedy = [DrawState(Sampling(), [0]) for _ in range(32)]
    sampler.choose(logits, greedy)
    assert calls_of(lambda: sampler.choose(logits, greedy)) < 50  # whatever the number of rows


def test_logprobs_are_of_the_logits_before_any_option():
    logits = 3 * torch.randn(4, 300)
    logits[1, 7] = -math.inf
    found = find_logprobs(logits, [5, 7, 9, 11], [2, 0, None, 500])
    expected = logits.double().log_softmax(-1)
    assert found[2] is None
    for row, token, count in ((0, 5, 2), (3, 11, 300)):
        assert found[row].value == pytest.approx(float(expected[row, token]), abs=1e-5)
        assert [token for token, _ in found[row].top] == expected[row].topk(count).indices.tolist()
        assert [value for _, value in found[row].top] == pytest.approx(
            expected[row].topk(count).values.tolist(), abs=1e-5
        )
    assert (found[1].value, found[1].top) == (-math.inf, ())


# ---------------------------------------------------------------- options


def test_every_option_that_will_not_do_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Sampling.checked(temperature=-1, top_k=0, top_p=0, min_p=1.5, repetition_penalty=-0.5, seed=-1)
    names = [fault.split(":")[0] for fault in caught.value.faults]
    assert names == ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"]
    assert "top_p: is 0.0, not above 0 and at most 1" in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"temperature": math.nan}, {"temperature": 1e-9}, {"top_p": math.nan}, {"top_k": 2.5}]
)
def test_numbers_that_would_overflow_or_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError):
        Sampling.checked(**options)


def test_every_further_option_that_will_not_do_is_named_at_once():
    wrong = {
        "typical_p": 0,
        "presence_penalty": math.nan,
        "frequency_penalty": math.inf,
        "logit_bias": {3: math.inf},
        "bad_words": [[]],
        "min_tokens": -1,
        "process": 3,
    }
    with pytest.raises(ConfigError) as caught:
        Sampling.checked(**wrong)
    assert [fault.split(":")[0] for fault in caught.value.faults] == list(wrong)
    assert "min_tokens: is -1, not 0 or more" in caught.value.faults


@pytest.mark.parametrize(
    "options", [{"logit_bias": {-1: 1.0}}, {"logit_bias": {3: math.nan}}, {"bad_words": [[1, -2]]}, {"top_q": 1}]
)
def test_tokens_and_names_that_do_not_exist_are_refused(options):
    with pytest.raises(ConfigError):
        Sampling.checked(**options)


def test_tokens_outside_the_vocabulary_are_refused():
    sampling = Sampling(logit_bias={10: 1.0, 3: 1.0}, bad_words=((1, 12),))
    sampling.check_vocabulary(13)
    with pytest.raises(ConfigError) as caught:
        sampling.check_vocabulary(10)
    assert caught.value.faults == [
        "logit_bias: names token 10, the model's vocabulary is 0 to 9",
        "bad_words: names token 12, the model's vocabulary is 0 to 9",
    ]


def test_options_are_read_from_text_and_plain_data():
    assert parse_logit_bias(["42=-1.5", "7=2"]) == {42: -1.5, 7: 2.0}
    with pytest.raises(ConfigError, match="logit_bias: is '42:1', not a token id and a number"):
        parse_logit_bias(["42:1"])
    found = Options.checked({"logit_bias": {"42": -1}, "bad_words": [[1]]})
    assert found.sampling == Sampling(logit_bias={42: -1.0}, bad_words=((1,),))
    with pytest.raises(ConfigError, match="process: no such option"):
        Options.checked({"process": print})


def test_bad_words_of_text_are_barred_at_the_start_and_after_a_space():
    from zoo.data.tokenizer import make_byte_tokenizer

    assert encode_words(make_byte_tokenizer(), ["ab"]) == ((97, 98), (32, 97, 98))
    with pytest.raises(ConfigError, match="bad_words: an empty word"):
        encode_words(make_byte_tokenizer(), [""])
