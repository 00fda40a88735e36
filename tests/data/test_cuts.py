"""Rows that lose a part: how many, which share, and which length would hold them; in training and in evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import processors

import zoo.cli
from support.published_folders import byte_level
from zoo.data.cut_rows import describe_cuts, name_length
from zoo.data.rowcode import RowEncoder
from zoo.data.tokenizer import Tokenizer, make_byte_tokenizer

SMALL = (
    *("model.n_layers=1", "model.vocab_size=300", "data.tokenizer.kind=byte", "data=jsonl", "data.path=rows.jsonl"),
    *("steps=1", "batch_size=2", "seq_len=16", "eval_batches=1", "sample=null", "hydra.run.dir=ours"),
)


def seq_len(size: int) -> str:
    return f"seq_len={size}"


@pytest.mark.parametrize(
    ("sizes", "limit", "line"),
    [
        ([5, 8, 90], 90, None),
        ([5, 8, 90], 7, "2 of 3 rows are cut (66.7%), at 7 tokens (seq_len=90 holds all)"),
        (
            range(1, 101),
            50,
            "50 of 100 rows are cut (50.0%), at 50 tokens (seq_len=95 holds 95%, seq_len=100 holds all)",
        ),
        (range(1, 101), 97, "3 of 100 rows are cut (3.0%), at 97 tokens (seq_len=100 holds all)"),
    ],
)
def test_the_line_names_the_share_and_lengths_that_hold_rows(sizes, limit, line):
    assert describe_cuts(np.array(sizes), limit, "rows are cut", seq_len) == line
    if line and "95%" in line:
        assert np.mean(np.array(sizes) <= 95) >= 0.95


def test_a_length_beyond_the_models_is_told():
    line = describe_cuts(np.array([5, 8, 90]), 7, "rows are cut", name_length("seq_len=", 64))
    assert line == (
        "2 of 3 rows are cut (66.7%), at 7 tokens (seq_len=90, beyond the model's max_seq_len=64, holds all)"
    )


def templated() -> Tokenizer:
    backend = byte_level(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return Tokenizer(backend, "</s>")


@pytest.mark.parametrize("make", [templated, make_byte_tokenizer])
@pytest.mark.parametrize("opens", [True, False])
def test_the_length_before_truncation_is_that_of_a_row_with_room(make, opens):
    rows = [("the cat " * n, *(["sat on the mat " * k] if k else [])) for n in (1, 3, 9) for k in (0, 1, 4)]
    words = [["the", "café", *["cat"] * n] for n in (1, 5, 20)]
    cut, whole = RowEncoder(make(), 20, opens), RowEncoder(make(), 10_000, opens)
    for encode, given in (("encode", rows), ("encode_words", words)):
        found = [*zip(getattr(cut, encode)(given), getattr(whole, encode)(given), strict=True)]
        assert all(short.whole == len(long.ids) == long.whole and len(short.ids) <= 20 for short, long in found)
        assert all(short.cut == (len(long.ids) > 20) for short, long in found) and not any(
            long.cut for _, long in found
        )
        assert any(short.cut for short, _ in found)


def test_pairs_that_lose_a_part_are_told_when_a_run_starts_and_in_eval(here, capsys):
    pairs = [{"q": "a" * n + f"{n:02}", "a": "b" * (n % 5 + 6)} for n in range(1, 41)]
    (here / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs))
    own = ["objective=seq2seq", "data.source=q", "data.target=a", "data.validation_fraction=0.25"]
    assert zoo.cli.run(["train", *SMALL, *own]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if " lose their " in line]
    assert len(said) == 2  # a row of 16: nine tokens of a source, eight of an answer
    assert " sources lose their beginning (" in said[0] and ", at 9 tokens (seq_len=" in said[0]
    assert " answers lose their end (" in said[1] and said[1].endswith(
        ", at 8 tokens (objective.answer_len=11 holds all)"
    )
    assert zoo.cli.run(["train", "--resume", "ours", "steps=2"]) == 0
    assert said == [line for line in capsys.readouterr().err.splitlines() if " lose their " in line]
    (here / "rows.jsonl").rename(here / "others.jsonl")
    assert zoo.cli.run(["eval", "ours", "data=jsonl", "data.path=others.jsonl", *own[1:3]]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if " lose their " in line]
    assert told[0].endswith(
        "33 of 40 sources lose their beginning (82.5%), at 9 tokens (--context 47 holds 95%, --context 49 holds all)"
    )


@pytest.mark.parametrize("whole", [False, True])
def test_records_that_lose_a_part_are_told_when_a_run_starts_and_in_eval(whole, here, capsys):
    rows = [{"text": "a" * n + f"{n:02}", "label": "xy"[n % 2]} for n in range(1, 41)]
    (here / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    own = ["objective=classify", "data.validation=rows.jsonl"]
    assert zoo.cli.run(["train", *SMALL, *own]) == 0
    line = "of 40 texts ({}) lose a part (65.0%), at 16 tokens (seq_len=40 holds 95%, seq_len=42 holds all)"
    said = capsys.readouterr().err
    assert all(f"data: 26 {line.format(part)}" in said for part in ("train", "validation"))
    (here / "others.jsonl").write_text((here / "rows.jsonl").read_text())
    given = ["data=jsonl", "data.path=others.jsonl"] if whole else []
    assert zoo.cli.run(["eval", "ours", *given]) == 0
    said = capsys.readouterr().err
    assert f"26 {line.format('validation')}" in said and (f"26 {line.format('train')}" in said) is not whole
