"""Metrics of labelled rows, beside numpy's and closed forms worked by hand."""

import numpy as np
import pytest
import torch

from zoo.training.metrics import ClassMetrics, NumberMetrics, TagMetrics, list_entities, rank


def logits_for(found, n_classes) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(found), n_classes).float()


def test_accuracy_and_macro_f1_are_those_worked_by_hand():
    metrics = ClassMetrics(["a", "b", "c", "d"])
    true, found = [0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 0, 2, 2, 2]
    for part in (slice(0, 3), slice(3, 8)):
        metrics.add(logits_for(found[part], 4), torch.tensor(true[part])[:, None])
    # a: tp 2, fp 1, fn 1; b: tp 1, fp 1, fn 1; c: tp 3; d is neither there nor taken for one
    assert metrics.compute() == {"accuracy": 6 / 8, "f1": pytest.approx((4 / 6 + 2 / 4 + 1) / 3)}
    told = metrics.describe()
    assert told["confusion"] == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]]
    assert told["by_class"]["a"] == {"precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3), "count": 3}
    assert told["by_class"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0}


def test_the_entities_of_tags_are_those_that_they_were_written_from():
    drawn = np.random.default_rng(0)
    for _ in range(200):
        tags, wanted = [], []
        while len(tags) < 12:
            kind, length = drawn.choice(["PER", "LOC", "O"]), int(drawn.integers(1, 4))
            if kind == "O":
                tags += ["O"] * length
                continue
            wanted.append((kind, len(tags), len(tags) + length - 1))
            single = length == 1 and drawn.random() < 0.5
            ends = length > 1 and drawn.random() < 0.5
            tags += [f"S-{kind}"] if single else [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
            if ends:
                tags[-1] = f"E-{kind}"
        assert [tuple(entity) for entity in list_entities(tags)] == wanted, tags


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("B-PER I-PER O I-LOC B-LOC", [("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4)]),
        ("I-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("O O", []),
        ("B-A E-A E-A", [("A", 0, 1), ("A", 2, 2)]),
    ],
)
def test_broken_tags_are_read_as_conlleval_reads_them(tags, entities):
    assert [tuple(each) for each in list_entities(tags.split())] == entities


def add_tags(metrics, true, found):
    number = {label: at for at, label in enumerate(metrics.labels)}
    width = max(map(len, true))
    targets = torch.full((len(true), width), -100)
    logits = torch.zeros(len(true), width, len(number))
    for row, (a, b) in enumerate(zip(true, found, strict=True)):
        for at, (wanted, given) in enumerate(zip(a, b, strict=True)):
            targets[row, at], logits[row, at, number[given]] = number[wanted], 1.0
    metrics.add(logits, targets)


def test_f1_is_of_whole_entities_where_tags_name_some_and_else_of_words():
    metrics = TagMetrics(["O", "B-PER", "I-PER", "B-LOC"])
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER"]]
    found = [["B-PER", "I-PER", "O", "O"], ["O", "B-LOC"]]
    add_tags(metrics, true, found)
    # right: the first PER; true: PER, LOC, PER; found: PER, LOC
    assert metrics.compute() == {"accuracy": 4 / 6, "f1": pytest.approx(2 / 5)}
    assert metrics.describe()["by_class"]["PER"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "count": 2,
    }
    plain = TagMetrics(["O", "noun", "verb"])
    add_tags(plain, [["noun", "verb", "O", "noun"]], [["noun", "noun", "verb", "noun"]])
    assert plain.compute() == {"accuracy": 2 / 4, "f1": pytest.approx(2 * 2 / (3 + 4))}


def test_correlations_are_numpys_and_equal_numbers_share_a_rank():
    drawn = np.random.default_rng(0)
    found, true = drawn.normal(size=(40, 2)), drawn.normal(size=(40, 2))
    true[:, 0] += found[:, 0]
    metrics = NumberMetrics()
    for part in (slice(0, 7), slice(7, 40)):
        metrics.add(torch.tensor(found[part]), torch.tensor(true[part])[:, None])
    ranks = [each.argsort(0).argsort(0) for each in (found, true)]
    pearson, spearman = (
        np.mean([np.corrcoef(a[:, at], b[:, at])[0, 1] for at in range(2)]) for a, b in ((found, true), ranks)
    )
    assert metrics.compute() == {"pearson": pytest.approx(pearson), "spearman": pytest.approx(spearman)}
    assert rank(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    still = NumberMetrics()
    still.add(torch.ones(3, 1), torch.tensor([[[1.0]], [[2.0]], [[3.0]]]))
    assert still.compute() == {}
