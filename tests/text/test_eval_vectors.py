"""`zoo eval --similarity` and `--retrieval`: figures by hand, and a trained encoder's vectors by transformers."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from test_embed import folder, reference  # noqa: F401 (fixtures)

import zoo
from support.minilm import needs_minilm
from zoo.cli import run
from zoo.errors import ConfigError
from zoo.text import similarity
from zoo.text.similarity import correlate, evaluate_retrieval, evaluate_similarity, rank

PAIRS = [
    ("A man is eating food.", "Someone is having a meal.", 4.5),
    ("A man is eating food.", "A man is eating pasta.", 4.0),
    ("A girl plays the guitar.", "The stock market fell sharply.", 0.0),
    ('It says "hello", twice.', "It greets two times.", 4.0),
    ("The cat sleeps.", "A dog barks at night.", 1.5),
    ("Prices rose again.", "It is more expensive than before.", 3.5),
    ("He reads a book.", "He reads a book.", 5.0),
]


def write(file: Path, pairs=PAIRS) -> Path:
    """Write pairs in the format of the file's suffix."""
    names = ("sentence1", "sentence2", "score")
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(dict(zip(names, pair, strict=True))) + "\n\n" for pair in pairs))
    elif file.suffix == ".csv":
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([("id", *names), *((n, *pair) for n, pair in enumerate(pairs))])
    else:
        file.write_text("\n".join("\t".join(map(str, line)) for line in (names, *pairs)))
    return file


# ---------------------------------------------------------------- figures


def test_equal_values_share_their_ranks():
    assert rank([3, 1, 3, 2]).tolist() == [3.5, 1, 3.5, 2]
    assert rank([7, 7, 7]).tolist() == [2, 2, 2]
    assert rank([0.5, -1]).tolist() == [2, 1]


def test_correlations_are_those_worked_by_hand():
    # deviations -2 -1 0 1 2 and -2 0 -1 2 1: products 4 0 0 2 2, squares 10 and 10
    assert correlate([1, 2, 3, 4, 5], [1, 3, 2, 5, 4]) == pytest.approx(0.8)
    # ranks 1 2.5 2.5 4 and 1 2 3 4: deviations -1.5 0 0 1.5 and -1.5 -0.5 0.5 1.5; squares 4.5 and 5
    assert correlate(rank([1, 8, 8, 9]), rank([1, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def place_on_a_circle(monkeypatch, angles: dict[str, float]) -> None:
    """Let texts be unit vectors in a plane, by their angle in degrees."""

    def embed(model, texts, *, normalize):
        radians = torch.tensor([math.radians(angles[text]) for text in texts], dtype=torch.float64)
        return torch.stack([radians.cos(), radians.sin()], 1)

    monkeypatch.setattr(similarity, "embed", embed)


def test_documents_are_found_where_they_lie(monkeypatch, tmp_path):
    angles = {"q": 0, "r": 90, "x": 165, "near": 10, "mid": 30, "far": 80, "wide": 50, "twin": -30, "off": 175}
    lines = [("q", "mid"), ("q", "far"), ("r", "far"), ("r", "near"), ("x", "wide"), ("x", "twin"), ("x", "off")]
    place_on_a_circle(monkeypatch, angles)
    file = tmp_path / "sought.jsonl"
    file.write_text("".join(json.dumps({"query": q, "positive": p}) + "\n" for q, p in lines))
    found = evaluate_retrieval(None, file)
    # q: near, twin, mid, wide, far, off: twin has mid's cosine, and counts against it; mid is 3rd, far 5th
    # r: far, wide, mid, near, off, twin: far is 1st, near 4th
    # x: off, far, wide, mid, near, twin: off is 1st, wide 3rd, twin 6th
    assert found["recall@1"] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert found["recall@5"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert found["recall@10"] == 1
    assert found["mrr@10"] == pytest.approx((1 / 3 + 1 + 1) / 3)
    gain = [1 / math.log2(1 + place) for place in range(1, 7)]
    best = gain[0] + gain[1]
    each = [(gain[2] + gain[4]) / best, (gain[0] + gain[3]) / best, (gain[0] + gain[2] + gain[5]) / (best + gain[2])]
    assert found["ndcg@10"] == pytest.approx(sum(each) / 3)
    assert (found["queries"], found["documents"]) == (3, 6)


# ---------------------------------------------------------------- a trained encoder


def test_pairs_are_the_same_from_every_format(tmp_path):
    read = [similarity.read_pairs(write(tmp_path / f"pairs{suffix}")) for suffix in (".jsonl", ".csv", ".tsv")]
    assert read == [PAIRS] * 3


@needs_minilm
def test_a_trained_encoder_judges_as_its_vectors_by_transformers_do(folder, reference, tmp_path, capsys):  # noqa: F811
    file = write(tmp_path / "pairs.csv")
    found = zoo.evaluate(folder, similarity=file)
    cosines = [float(reference(a) @ reference(b)) for a, b, _ in PAIRS]
    scores = [score for _, _, score in PAIRS]
    order = sorted(range(len(PAIRS)), key=cosines.__getitem__)
    ranks = [order.index(n) + 1 for n in range(len(PAIRS))]
    true = [1 + sum(other < s for other in scores) + (scores.count(s) - 1) / 2 for s in scores]
    assert found["spearman"] == pytest.approx(torch.corrcoef(torch.tensor([ranks, true]))[0, 1].item(), abs=1e-6)
    assert found["pearson"] == pytest.approx(torch.corrcoef(torch.tensor([cosines, scores]))[0, 1].item(), abs=1e-5)
    assert found["pairs"] == len(PAIRS) and found["spearman"] > 0.8
    assert run(["eval", str(folder), "--similarity", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"spearman  {found['spearman']:.4f}" in out and "7 pairs" in out


@needs_minilm
def test_a_trained_encoder_finds_paraphrases(folder, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "sought.tsv"
    file.write_text("query\tpositive\n" + "".join(f"{a}\t{b}\n" for a, b, score in PAIRS if score >= 3.5))
    assert run(["eval", str(folder), "--retrieval", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recall@5"] == 1 and found["mrr@10"] > 0.8
    assert (found["queries"], found["documents"]) == (4, 5)


# ---------------------------------------------------------------- what will not do


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.txt", "", "similarity: a.txt ends in .txt (one of: .jsonl, .ndjson, .csv, .tsv)"),
        ("none.csv", None, "similarity: cannot read none.csv, found No such file or directory"),
        ("a.jsonl", "", "similarity: a.jsonl has no pairs in it"),
        ("a.jsonl", "{}", "similarity: a.jsonl, line 1: has no text 'sentence1', found there are none"),
        ("a.jsonl", "\n{", "similarity: a.jsonl, line 2 is not JSON"),
        ("a.jsonl", "[1]", "similarity: a.jsonl, line 1 is no record, found a list of 1"),
        (
            "a.csv",
            "sentence1,sentence2,score\na,b,much",
            "similarity: a.csv, line 2: has no number 'score', found 'much'",
        ),
        (
            "a.tsv",
            "sentence1\tsentence2\tscore\na\tb\tnan",
            "similarity: a.tsv, line 2: has no number 'score', found 'nan'",
        ),
        (
            "a.tsv",
            "sentence1\tscore\na\t1",
            "similarity: a.tsv, line 2: has no text 'sentence2', found there are sentence1, score",
        ),
        ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d,1", "similarity: a.csv has one score for all, found 2 pairs"),
    ],
)
def test_a_file_at_fault_costs_a_line_with_its_place(tmp_path, monkeypatch, name, text, fault):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(ConfigError) as found:
        evaluate_similarity("a model", Path(name))
    (line,) = found.value.faults
    assert line.startswith(fault)


def test_what_has_no_effect_beside_a_file_of_pairs_is_refused(refused):
    (line,) = refused("eval", "somewhere", "--similarity", "a.csv", "--stride", "3")
    assert line == "stride: has no effect beside --similarity (leave it out)"
    (line,) = refused("eval", "somewhere", "data=text", "--retrieval", "a.csv")
    assert line == "data=text: has no effect beside --retrieval (leave it out)"
    (line,) = refused("eval", "somewhere", "--similarity", "a.csv", "--retrieval", "b.csv")
    assert line == "retrieval: was requested together with --similarity (one of the two)"
