"""`zoo train --show-data`: the first rows, and which tokens the loss is on."""

from __future__ import annotations

import json
import re

import pytest
import torch

from zoo.cli import run
from zoo.data import Batch
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.training.decoded import decode_row, describe_row

TEXT = "".join(f"{i} is a number, and its square is {i * i}.\n" for i in range(2000))


def read(text: str) -> list[int]:
    return make_byte_tokenizer().encode(text)


def shown(capsys, *args: object) -> list[str]:
    """The rows that the verb prints."""
    assert run(["train", *map(str, args), "--show-data"]) == 0
    return re.split(r"row \d\n", capsys.readouterr().out)[1:]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def test_rows_of_next_tokens_are_read_whole_and_learned_but_for_the_first_token(here, capsys):
    rows = shown(capsys, "llama-tiny", "data=text", "data.path=text.txt", "data.tokenizer.kind=byte", "seq_len=64")
    assert len(rows) == 3
    for row in rows:
        first, learned = re.fullmatch(r"(.)⟦(.{64})⟧", row.rstrip("\n"), re.S).groups()
        assert first + learned in TEXT
    assert not list(here.glob("runs/*"))


def test_masked_tokens_stand_after_the_mask_that_hides_them(here, capsys):
    rows = shown(capsys, "bert-tiny", "data=text", "data.path=text.txt", "data.tokenizer.kind=byte", "seq_len=64")
    whole = "".join(rows)
    assert len(re.findall(r"⟦", whole)) > 6
    plain = re.sub(r"(<mask>|\[MASK\]|.)⟦(.)⟧", r"\2", rows[0].rstrip("\n"), flags=re.S)
    assert plain in TEXT


def test_of_a_pair_the_answer_alone_is_learned(here, capsys):
    lines = [{"q": f"what is {i}?", "a": f"the number {i}"} for i in range(50)]
    (here / "pairs.jsonl").write_text("".join(map("{}\n".format, map(json.dumps, lines))))
    settings = ["data=jsonl", "data.path=pairs.jsonl", "data.source=q", "data.target=a", "data.tokenizer.kind=byte"]
    for row in shown(capsys, "llama-tiny", *settings, "objective=seq2seq", "seq_len=64"):
        asked, answer = re.fullmatch(r"(.*)⟦(.*)<\|endoftext\|>⟧", row.rstrip("\n")).groups()
        assert {"q": asked, "a": answer} in lines


def test_an_encoder_decoder_shows_the_source_then_what_the_decoder_writes():
    batch = Batch(
        torch.tensor([[*read("abc"), 256, 256]]),
        torch.tensor([[*read("xy"), 256, -100]]),
        decoder_input_ids=torch.tensor([[0, *read("xy"), 256]]),
        attention_mask=torch.tensor([[1, 1, 1, 0, 0]]),
    )
    assert decode_row(batch, 0, make_byte_tokenizer()) == [("abc", False), ("xy<|endoftext|>", True)]


def test_a_class_follows_its_row():
    batch = Batch(torch.tensor([read("abc")]), torch.tensor([[2]]), attention_mask=torch.tensor([[1, 1, 1]]))
    assert decode_row(batch, 0, make_byte_tokenizer()) == [("abc", False), (" → [2]", True)]
    assert describe_row(batch, 0, make_byte_tokenizer()) == "data: the first row begins 'abc', its target is [2]"


def test_packed_documents_show_their_own_last_target():
    """The target at a document's end is the end of text; the next document's first token is read and not learned."""
    ids, targets = read("abXY"), [read("b")[0], 256, *read("Y"), 256]
    batch = Batch(torch.tensor([ids]), torch.tensor([targets]), documents=torch.tensor([[0, 0, 1, 1]]))
    row = decode_row(batch, 0, make_byte_tokenizer())
    parts = [("a", False), ("b<|endoftext|>", True), ("┃", None), ("X", False), ("Y<|endoftext|>", True)]
    assert row == parts
    assert decode_row(batch, 0, make_byte_tokenizer(), [1200, 0]) == [
        *parts[:2],
        ("… 1,200 tokens cut", None),
        *parts[2:],
    ]
    assert describe_row(batch, 0, make_byte_tokenizer()).startswith(
        "data: the first row begins 'ab<|endoftext|>XY<|endoftext|>',"
    )


def test_padding_after_packed_documents_is_left_out():
    ids, targets = [*read("abX"), 256, 256], [*read("b"), 256, 256, -100, -100]
    batch = Batch(torch.tensor([ids]), torch.tensor([targets]), documents=torch.tensor([[0, 0, 1, 2, 2]]))
    row = decode_row(batch, 0, make_byte_tokenizer())
    assert [piece.text for piece in row] == ["a", "b<|endoftext|>", "┃", "X", "<|endoftext|>"]


def test_each_row_is_shown_once(here, capsys):
    """80 tokens of training text: two rows of 32."""
    (here / "small.jsonl").write_text("".join(f'{{"text": "{letter * 15}"}}\n' for letter in "abcdef"))
    args = ["data=jsonl", "data.path=small.jsonl", "data.tokenizer.kind=byte", "seq_len=32"]
    rows = shown(capsys, "llama-tiny", *args)
    assert len(rows) == len({*rows}) == 2


def test_a_run_says_how_its_first_row_begins():
    batch = Batch(torch.tensor([read("hello wor")]), torch.tensor([read("ello worl")]))
    line = describe_row(batch, 0, make_byte_tokenizer())
    assert line == "data: the first row begins 'hello worl', its loss is on 9 tokens"
