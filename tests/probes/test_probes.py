"""Probes: each answer is solved again here, by the definition, from the tokens before it alone."""

from functools import partial
from itertools import permutations

import numpy as np
import pytest

from zoo.errors import ConfigError
from zoo.probes.all_probes import EVERY, make_probe
from zoo.probes.base import IGNORED, STREAMS
from zoo.probes.copying import LETTERS
from zoo.probes.outcome_store import read_cards
from zoo.probes.training import count_answers

NAMES = [each.name for each in EVERY]


def last_value(row, at, half):
    """The value after the last earlier place of the key at `at`; values are the second half of the vocabulary."""
    earlier = [place for place in range(0, at, 2) if row[place] == row[at] and row[place + 1] >= half]
    return row[earlier[-1] + 1]


def value_of_both(row, at):
    """The value after the last earlier place of both tokens; values are 20 and more."""
    earlier = [place for place in range(0, at - 1) if row[place : place + 2] == row[at - 1 :] and row[place + 2] >= 20]
    return row[earlier[-1] + 2]


def calculated(row, at):
    """The value of an expression in prefix notation, modulo 23; 26 pads."""
    stack = []
    for token in reversed([token for token in row if token < 26]):
        if token < 23:
            stack.append(token)
            continue
        a, b = stack.pop(), stack.pop()
        stack.append((a + b, a - b, a * b)[token - 23] % 23)
    (value,) = stack
    return value


def value_of_parts(row, at):
    """The next part of the value that the last key had before; parts of values are 8 and more."""
    pairs, place = [], 0
    while place <= at:
        if row[place] == 0:
            place += 1
            continue
        ends = next((end for end in range(place, at + 1) if row[end] >= 8), at + 1)
        stop = next((end for end in range(ends, at + 1) if row[end] < 8), at + 1)
        pairs.append((row[place:ends], row[ends:stop]))
        place = stop
    *earlier, (key, begun) = pairs
    return next(value for known, value in earlier if known == key)[len(begun)]


def letters_of(row, at):
    """The letters before the go token, in order: the one that comes next."""
    go = list(row).index(1)
    return [token for token in row[:go] if token > 1][at - go]


def copied(row, at):
    bar = list(row).index(LETTERS + 1)
    text = [*row[1:bar], LETTERS + 2]
    return text[at - bar]


def after_marker(row, at):
    return row[list(row).index(16) + 1]


def parity_of(row, at):
    return sum(row[: at + 1]) % 2


def sum_modulo_6(row, at):
    return sum(row[: at + 1]) % 6


def permuted(size):
    elements = list(permutations(range(size)))

    def solve(row, at):
        things = list(range(size))
        for element in row[: at + 1]:
            things = [elements[element][thing] for thing in things]
        return elements.index(tuple(things))

    return solve


def walked(row, at):
    """Follow edges from the node of a query, as many as the token before it says."""
    pairs = [(row[place], row[place + 1]) for place in range(0, at, 2)]
    follows = {x: y for x, y in pairs if 0 < x <= 8 and 0 < y <= 8}
    node = row[at]
    for _ in range(row[at - 1] - 8):
        node = follows[node]
    return node


SOLVERS = {
    **{
        "mqar": partial(last_value, half=20),
        "overwrite": partial(last_value, half=16),
        "needle": partial(last_value, half=16),
        "bind": value_of_both,
        "mano": calculated,
        "noisy": partial(last_value, half=8),
        "fuzzy": value_of_parts,
        "select": letters_of,
        "copy": copied,
    },
    **{"induction": after_marker, "parity": parity_of, "word_z6": sum_modulo_6, "word_s3": permuted(3)},
    **{"word_s5": permuted(5), "word_s5_swaps": permuted(5), "hops": walked, "compress": lambda row, at: row[at]},
}


@pytest.mark.parametrize("name", SOLVERS)
def test_answers_follow_from_the_tokens_up_to_them(name):
    probe, solve = make_probe(name), SOLVERS[name]
    for level in (None, *probe.levels):
        tokens, labels = probe.examples(5, "report", 0, 4, level)
        assert (labels != IGNORED).any(1).all()
        assert tokens.min() >= 0 and tokens.max() < probe.vocab_size > labels.max()
        for row, column in zip(*np.nonzero(labels != IGNORED), strict=True):
            seen = tokens[row, : column + 1].tolist()  # nothing of what comes later
            assert labels[row, column] == solve(seen, column), (level, row, column)


def test_a_memorised_fact_is_the_same_in_every_row_and_another_for_another_seed():
    probe = make_probe("memorise")
    maps = []
    for seed in (0, 1):
        facts = {}
        for number in range(3):
            tokens, labels = probe.examples(seed, "train", number, 32)
            assert (tokens[:, 1::2] == 0).all() and (labels[:, ::2] == IGNORED).all()
            for key, value in zip(tokens[:, ::2].ravel(), labels[:, 1::2].ravel(), strict=True):
                assert facts.setdefault(key, value) == value
        held, answers = probe.examples(seed, "report", 0, 8)
        known = [
            facts[key] == value
            for key, value in zip(held[:, ::2].ravel(), answers[:, 1::2].ravel(), strict=True)
            if key in facts
        ]
        assert len(known) > 50 and all(known)
        maps.append(facts)
    shared = maps[0].keys() & maps[1].keys()
    assert sum(maps[0][key] == maps[1][key] for key in shared) < 0.05 * len(shared)


@pytest.mark.parametrize("name", NAMES)
def test_examples_repeat_by_seed_stream_and_number_and_never_by_anything_else(name):
    probe = make_probe(name)
    first = probe.examples(1, "train", 0, 8)
    state = np.random.get_state()[1].copy()
    again = probe.examples(1, "train", 0, 8)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (np.random.get_state()[1] == state).all()  # the global generator is left alone
    others = [probe.examples(2, "train", 0, 8), probe.examples(1, "train", 1, 8)]
    others += [probe.examples(1, stream, 0, 8) for stream in STREAMS[1:3]]
    assert all(other.tokens.shape != first.tokens.shape or (other.tokens != first.tokens).any() for other in others)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("copy", "word_s3", "word_z6", "word_s5", "word_s5_swaps")]
)
def test_chance_is_what_one_guess_for_all_scores(name):
    probe = make_probe(name)
    level = probe.levels[0]
    labels = probe.examples(0, "report", 0, 3000, level).labels
    counts = np.bincount(labels[labels != IGNORED])
    chance, asked = probe.chance(level), counts.sum()
    assert counts.max() / asked == pytest.approx(chance, abs=5 * (chance / asked) ** 0.5 + 0.02)


@pytest.mark.parametrize("name", ["mqar", "overwrite", "needle"])
def test_fillers_and_queries_are_no_pairs(name):
    probe = make_probe(name)
    for level in probe.levels:
        tokens, labels = probe.examples(3, "report", 0, 64, level)
        keys = level if name == "mqar" else probe.keys
        asked = labels != IGNORED
        assert (asked.sum(1) == keys).all()
        assert len({tuple(sorted(row[mark])) for row, mark in zip(tokens, asked, strict=True)}) > 32
        later = tokens[:, 2 * keys + (2 * level if name == "overwrite" else 0) :]
        assert (later < probe.vocab // 2).all()  # no value among queries and filler
        assert (np.sort(tokens[asked].reshape(64, keys), 1) == np.sort(tokens[:, : 2 * keys : 2], 1)).all()


def test_every_key_that_was_there_before_is_asked_for_and_noise_never():
    probe = make_probe("noisy", settings={"levels": (50,)})
    tokens, labels = probe.examples(1, "report", 0, 64, 50)
    keys, asked = tokens[:, ::2], labels[:, ::2] != IGNORED
    assert (labels[:, 1::2] == IGNORED).all() and (keys >= 16).mean() == pytest.approx(0.5, abs=0.05)
    for row, marks in zip(keys, asked, strict=True):
        seen = [key < 8 and key in row[:at] for at, key in enumerate(row)]
        assert marks.tolist() == seen


def test_gaps_before_a_query_follow_the_power_law():
    probe = make_probe("mqar", settings={"levels": (1,), "context": 34})
    labels = probe.examples(0, "report", 0, 40_000, 1).labels
    gaps = (np.nonzero(labels != IGNORED)[1] - 2) // 2 + 1
    weights = np.arange(1, 17) ** (0.01 - 1)
    found = np.bincount(gaps, minlength=17)[1:] / len(gaps)
    assert found == pytest.approx(weights / weights.sum(), abs=0.01)


def test_blanks_of_selective_copying_come_first_and_last_too():
    probe = make_probe("select")
    tokens = probe.examples(0, "train", 0, 500).tokens
    before_go = [row[list(row).index(1) - 1] for row in tokens]
    assert any(token == 0 for token in before_go) and any(token > 1 for token in before_go)
    assert (tokens[:, 0] == 0).any() and (tokens[:, 0] > 1).any()


def test_a_cycle_of_hops_goes_through_all_of_its_nodes():
    probe = make_probe("hops")
    tokens, labels = probe.examples(0, "train", 0, 50)
    sizes = set()
    for row, asked in zip(tokens.tolist(), labels != IGNORED, strict=True):
        end = int(np.nonzero(asked)[0][0]) - 1
        follows = dict(zip(row[:end:2], row[1:end:2], strict=True))
        node, seen = row[0], set()
        while node not in seen:
            seen.add(node)
            node = follows[node]
        assert len(seen) == end // 2 == len(follows)
        sizes.add(end // 2)
    assert sizes == set(range(3, 9))


@pytest.mark.parametrize("name, size", [("Z60", 60), ("A5", 60), ("A4xZ5", 60), ("S5", 120), ("S3", 6)])
def test_groups_are_groups_and_only_some_commute(name, size):
    from zoo.probes.tracking import make_group

    group = make_group(name)
    table = group.table
    assert len(group) == size
    assert all(sorted(row) == list(range(size)) for row in (*table, *table.T))
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, size, (3, 500))
    assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    assert (table == table.T).all() == (name == "Z60")
    assert len(group.swaps) == {"S5": 10, "S3": 3}.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_has_the_sizes_of_its_source_and_says_what_others_change(name):
    paper, card, small = (make_probe(name, size) for size in ("paper", "card", "small"))
    assert paper.list_changes() == []
    assert all(any(change.startswith("steps ") for change in each.list_changes()) for each in (card, small))
    tokens, labels = paper.examples(0, "train", 0, 4)
    assert tokens.shape == (4, paper.seq_len) and (labels != IGNORED).any(1).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_is_extended_by_harder_levels_until_its_rows_are_too_large(name):
    probe, levels = make_probe(name, "small"), []
    while probe is not None:
        levels.append(max(probe.levels))
        tokens, labels = probe.examples(0, "report", 0, 16, max(probe.levels))
        assert (labels != IGNORED).any() and tokens.shape[1] <= 2048 and tokens.max() < probe.vocab_size <= 8192
        probe = probe.extend()
    assert len(levels) > 2 and levels == sorted(set(levels)) and len(levels) < 12


def test_the_sizes_of_sources_are_theirs():
    mqar, select, parity, word = (make_probe(name, "paper") for name in ("mqar", "select", "parity", "word_s5"))
    assert (mqar.vocab_size, max(mqar.levels), mqar.seq_len) == (8192, 64, 256)
    assert (select.levels, select.seq_len, select.d_model, select.steps, select.rows) == ((16,), 256, 128, 20_000, 128)
    assert (parity.seq_len, max(parity.levels), parity.steps * parity.rows) == (40, 256, 5_120_000)
    assert (word.vocab_size, word.seq_len, max(word.levels)) == (120, 32, 512)
    assert "vocab 40 (8,192)" in make_probe("mqar").list_changes()


def test_fuzzy_recall_of_its_source_has_any_keys_of_three_tokens_and_asks_in_every_row():
    tokens, labels = make_probe("fuzzy", "paper").examples(0, "report", 0, 64, 3)
    for row, answers in zip(tokens.tolist(), labels, strict=True):
        starts = [at for at in range(2, 128) if 0 < row[at] < 8 <= row[at + 1 if at < 127 else at]]
        keys = {tuple(row[at - 2 : at + 1]) for at in starts}
        assert len(keys) > 6 and all(0 < token < 8 for key in keys for token in key)
        for at in np.nonzero(answers != IGNORED)[0]:
            assert answers[at] == value_of_parts(row[: at + 1], at)
        assert (answers != IGNORED).any()


@pytest.mark.parametrize(
    "settings, fault",
    [
        ({"levels": (32,)}, "32 keys take 128 tokens"),
        ({"keys": 2}, "no such setting"),
        ({"vocab": 16}, "more than the 7 of a vocabulary of 16"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, fault):
    with pytest.raises(ConfigError, match=fault):
        make_probe("mqar", settings=settings)


def test_a_name_that_is_no_probe_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'mqar'"):
        make_probe("mqra")


def test_kept_accuracies_are_shares_of_the_answers_that_are_counted():
    kept = [each for own in read_cards().values() for each in own]
    assert len(kept) >= 130
    for each in kept:
        probe = make_probe(each.probe, each.size, each.settings)
        for level in each.chances:
            right = [seed.levels[level]["accuracy"] * count_answers(probe, level) for seed in each.seeds]
            assert right == pytest.approx(np.round(right), abs=1e-6)
    assert count_answers(make_probe("mqar"), 16) == 16 * 1024, "each key of a row is asked for"
    assert count_answers(make_probe("word_s3"), 64) == 128, "a row is right as a whole"
