"""Folding a pattern loses nothing, and says once what repeats."""

import random

from zoo.drawing.folding import fold_pattern, name_places


def unfold(folds):
    return [kind for fold in folds for _ in range(fold.times) for kind, count in fold.runs for _ in range(count)]


def test_unfolding_gives_the_pattern():
    drawn = random.Random(1)
    for _ in range(200):
        part = drawn.choices("abc", k=drawn.randint(1, 6))
        pattern = drawn.choices("ab", k=drawn.randint(0, 4)) + part * drawn.randint(1, 6) + drawn.choices("ab", k=3)
        assert unfold(fold_pattern(pattern)) == pattern


def test_what_repeats_is_said_once():
    assert fold_pattern("aabaabaabc") == [((("a", 2), ("b", 1)), 3), ((("c", 1),), 1)]
    assert fold_pattern("a" * 32) == [((("a", 32),), 1)]


def test_layers_are_named_by_runs():
    assert name_places("aab" * 2, "a") == "0\N{EN DASH}1, 3\N{EN DASH}4"
    assert name_places("ab" * 8, "b") == "1, 3, 5 …"
