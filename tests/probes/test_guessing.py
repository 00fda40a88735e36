"""Informed guesses: each rule is applied here to rows of a probe, from their tokens; the formula gives how often it is
right."""

import math
import operator
from collections import Counter, defaultdict
from itertools import accumulate, permutations, product

import numpy as np
import pytest

from zoo.probes.all_probes import EVERY, make_probe
from zoo.probes.base import IGNORED
from zoo.probes.copying import LETTERS
from zoo.probes.guessing import expect_most
from zoo.probes.outcome import ENOUGH

TWO_TOKENS_A_KEY = 20  # the first value of `bind`


def values_of_the_row(row, at, probe):
    return list({token for token in row[:at] if token >= probe.vocab // 2})


def values_that_share_a_part(row, at, probe):
    triples = [row[place : place + 3] for place in range(0, at - 1)]
    return [value for _, second, value in triples if second == row[at] and value >= TWO_TOKENS_A_KEY]


def values_so_far(row, at, probe):
    return list({token for token in row[:at] if probe.vocab // 2 <= token < probe.vocab})


def most_frequent(tokens):
    """All tokens that are the most frequent: which of them came first is no part of what a guess knows."""
    counts = Counter(tokens)
    return [token for token, count in counts.items() if count == max(counts.values())]


def letters_left(row, at, probe):
    go = row.index(1)
    return most_frequent((Counter(token for token in row[:go] if token > 1) - Counter(row[go + 1 : at + 1])).elements())


def most_frequent_token(row, at, probe):
    return most_frequent([token for token in row if token != probe.symbols])


def most_frequent_letter(row, at, probe):
    return most_frequent([token for token in row if token > 1])


def other_nodes(row, at, probe):
    first_query = next(place for place, token in enumerate(row) if token > probe.nodes)
    nodes = set(row[:first_query])
    return [row[at]] if (row[at - 1] - probe.nodes) % len(nodes) == 0 else list(nodes - {row[at]})


def next_parts_of_known_values(row, at, probe):
    """Parts that the values so far, each of a different key, have after the beginning of the one that is asked."""
    groups, half = [], probe.vocab // 2
    for token in (token for token in row[: at + 1] if token):
        if groups and (groups[-1][-1] >= half) == (token >= half):
            groups[-1].append(token)
        else:
            groups.append([token])
    begun = groups.pop() if len(groups) % 2 == 0 else []
    known = {tuple(key): value for key, value in zip(groups[:-1:2], groups[1::2], strict=True)}
    fitting = [
        value[len(begun)] for value in known.values() if value[: len(begun)] == begun and len(value) > len(begun)
    ]
    return most_frequent(fitting)


RULES = {
    **{"mqar": values_of_the_row, "needle": values_of_the_row, "bind": values_that_share_a_part},
    **{"noisy": values_so_far, "fuzzy": next_parts_of_known_values, "select": letters_left},
    **{"induction": most_frequent_token, "compress": most_frequent_letter, "hops": other_nodes},
}


@pytest.mark.parametrize("name", RULES)
def test_a_guess_among_what_a_row_makes_possible_is_right_as_often_as_the_baseline_says(name):
    probe, rule = make_probe(name), RULES[name]
    for level in (probe.levels[0], probe.levels[-1] if name != "induction" else 2):
        tokens, labels = probe.examples(5, "report", 0, 256, level)
        right: list[float] = []
        for row, column in zip(*np.nonzero(labels != IGNORED), strict=True):
            guesses = rule(tokens[row].tolist(), int(column), probe)
            right.append(guesses.count(labels[row, column]) / len(guesses))
        error = np.std(right) / len(right) ** 0.5
        assert np.mean(right) == pytest.approx(probe.baseline(level), abs=4 * error + 0.01), level


def test_a_guess_at_values_of_any_keys_is_right_as_often_as_the_baseline_says():
    probe = make_probe("fuzzy", "paper")
    tokens, labels = probe.examples(5, "report", 0, 512, 3)
    right = []
    for row, column in zip(*np.nonzero(labels != IGNORED), strict=True):
        guesses = next_parts_of_known_values(tokens[row].tolist(), int(column), probe)
        right.append(guesses.count(labels[row, column]) / len(guesses))
    assert np.mean(right) == pytest.approx(probe.baseline(3), abs=0.05)


def test_a_new_value_of_an_overwritten_key_is_right_as_often_as_the_baseline_says():
    probe = make_probe("overwrite")
    tokens, labels = probe.examples(5, "report", 0, 512, 2)
    new = tokens[:, 2 * probe.keys + 1 : 2 * probe.keys + 4 : 2]  # two keys have one
    asked = [(row, answer) for row, answers in zip(new, labels, strict=True) for answer in answers[answers != IGNORED]]
    assert np.mean([answer == row[0] for row, answer in asked]) == pytest.approx(probe.baseline(2), abs=0.03)


def test_the_value_that_most_keys_have_is_right_as_often_as_the_baseline_says():
    probe = make_probe("memorise", "small")
    answers = [
        labels[labels != IGNORED] for _, labels in (probe.examples(seed, "report", 0, 512) for seed in range(40))
    ]
    most = [Counter(each.tolist()).most_common(1)[0][1] / len(each) for each in answers]
    assert np.mean(most) == pytest.approx(probe.baseline(63), rel=0.1)


def test_letters_in_a_random_order_are_the_string_as_often_as_the_baseline_says():
    orders = [
        math.factorial(3) // math.prod(map(math.factorial, Counter(text).values()))
        for text in product(range(26), repeat=3)
    ]
    assert np.mean([1 / count for count in orders]) == pytest.approx(make_probe("copy").baseline(3))
    assert len(orders) == LETTERS**3


def follow(first, then):
    """The permutation that exchanges things by the first, and then by the other."""
    return tuple(then[place] for place in first)


FIVE = [*permutations(range(5))]
GROUPS = {
    "word_z6": (range(6), lambda a, b: (a + b) % 6, 4),
    "word_s3": ([*permutations(range(3))], follow, 4),
    "word_s5": (FIVE, follow, 2),
    "word_s5_swaps": ([each for each in FIVE if sum(i != j for i, j in enumerate(each)) == 2], follow, 4),
}
"""The tokens of each word problem, the product of two, and a length of which all rows can be listed."""


@pytest.mark.parametrize("name", GROUPS)
def test_a_guess_at_the_states_of_a_word_knows_the_first_one(name):
    tokens, multiply, length = GROUPS[name]
    states: dict[object, Counter[tuple]] = defaultdict(Counter)
    for word in product(tokens, repeat=length):
        states[word[0]][tuple(accumulate(word, multiply))] += 1
    right = sum(max(each.values()) for each in states.values()) / len(tokens) ** length
    assert make_probe(name).baseline(length) == pytest.approx(right)
    blind = max(count for each in states.values() for count in each.values()) / len(tokens) ** length
    assert make_probe(name).chance(length) == pytest.approx(blind)


def test_the_likeliest_value_of_an_expression_is_that_of_all_expressions():
    probe, operations = make_probe("mano", "small"), (operator.add, operator.sub, operator.mul)
    values = {0: Counter(range(7))}
    for level in (1, 2):
        values[level] = Counter()
        for left in range(level):  # all splits of the other operations are equally likely, and have equally many
            for (a, n), (b, m) in product(values[left].items(), values[level - 1 - left].items()):
                for operation in operations:
                    values[level][operation(a, b) % 7] += n * m
        assert probe.baseline(level) == pytest.approx(max(values[level].values()) / values[level].total())


@pytest.mark.parametrize("name", [each.name for each in EVERY])
def test_without_token_mixing_no_answer_is_better_than_an_informed_guess(name):
    """The negative control sees one token (`compress`: one that all rows share). The best answer to each is counted in
    some rows, and given in others."""
    probe = make_probe(name)
    for level in (probe.levels[0], probe.levels[-1]):
        counted, asked = (probe.examples(5, stream, 0, 256, level) for stream in ("train", "report"))
        counts = np.zeros((probe.vocab_size, probe.vocab_size), int)
        seen = [np.zeros_like(each.tokens) if probe.name == "compress" else each.tokens for each in (counted, asked)]
        known, there = (each.labels != IGNORED for each in (counted, asked))
        np.add.at(counts, (seen[0][known], counted.labels[known]), 1)
        right = (counts.argmax(1)[seen[1]] == asked.labels) & there
        share = (right == there).all(1) if probe.exact else right.sum(1) / there.sum(1).clip(1)
        assert share.mean() <= probe.baseline(level) + 4 * share.std() / len(share) ** 0.5, level
        assert probe.baseline(level) < ENOUGH, "no level is reached by guessing"


def test_in_training_the_first_answer_of_parity_is_read_off_and_others_are_guessed():
    probe = make_probe("parity")
    tokens, labels = probe.examples(5, "train", 0, 4096)
    asked = labels != IGNORED
    first = asked & (asked.cumsum(1) == 1)
    assert (tokens[first] == labels[first]).all()
    assert probe.mixed_baseline() == pytest.approx((first.sum() + (asked & ~first).sum() / 2) / asked.sum(), abs=2e-3)


def test_no_informed_guess_is_worse_than_a_blind_one():
    for probe in (make_probe(each.name) for each in EVERY):
        assert all(probe.chance(level) <= probe.baseline(level) < 1 for level in probe.levels), probe.name


@pytest.mark.parametrize("draws, kinds", [(1, 3), (4, 3), (7, 2), (5, 5)])
def test_the_count_of_the_most_frequent_kind_is_that_over_all_outcomes(draws, kinds):
    counts = [max(Counter(each).values()) for each in product(range(kinds), repeat=draws)]
    assert expect_most(draws, kinds) == pytest.approx(np.mean(counts))


def test_the_count_of_the_most_frequent_kind_is_right_for_thousands_of_draws():
    drawn = np.random.default_rng(0).multinomial(16_382, [1 / 16] * 16, 20_000).max(1)
    assert expect_most(16_382, 16) == pytest.approx(drawn.mean(), rel=1e-3)
