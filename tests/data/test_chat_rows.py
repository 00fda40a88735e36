"""Rows of conversations: cut after an answer, packed and kept apart, and the same from shards of any size."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import zoo
from support.corpora import faults_of
from support.tiny_models import spec_of
from zoo.data import Batches
from zoo.data.chat.conversation_rows import TurnFile, collate_turns, pack_best_fit
from zoo.data.encode import open_tokens, write_tokens
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.model.loss import IGNORED

EOS = 256


def make_turns(count: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Conversations of 1 to 3 answers of a few letters each."""
    dice = random.Random(seed)

    def text(letters: str) -> str:
        return "".join(dice.choices(letters, k=dice.randint(1, 9)))

    return [(*(text(each) for _ in range(dice.randint(1, 3)) for each in ("abc", "XYZ")), "\n") for _ in range(count)]


@pytest.fixture
def write(tmp_path):
    def write(turns, packed: bool = True) -> TurnFile:
        write_tokens(
            tmp_path, [("train", each) for each in turns], make_byte_tokenizer(), lambda done: None, sequences=0
        )
        return open_tokens(tmp_path, ["train"], packed)["train"]  # type: ignore[return-value]

    return write


def fit(turns: tuple[str, ...], room: int) -> str:
    """The text of the answers that end within `room` characters, and of what stands before them."""
    whole = ["".join(turns[: 2 * number + 2]) for number in range(len(turns) // 2)]
    return max((text for text in whole if len(text) <= room), key=len, default="")


def batch_of(tokens: TurnFile, seq_len: int):
    rows = [tokens.read_row(number, seq_len) for number in range(tokens.count_rows(seq_len))]
    return collate_turns(rows, None, eos_id=EOS, seq_len=seq_len, packed=tokens.packed)


def decode(batch, row: int) -> list[tuple[str, str]]:
    """The text of each conversation of a row, and its learned characters in place."""
    documents = torch.zeros_like(batch.input_ids) if batch.documents is None else batch.documents
    found = []
    for number in range(int(documents[row].max()) + 1):
        ids = batch.input_ids[row][documents[row] == number].tolist()
        targets = batch.targets[row][documents[row] == number].tolist()
        if (learned := [target != IGNORED for target in targets]) and any(learned):
            last = max(place for place, each in enumerate(learned) if each)
            text = bytes([*ids[: last + 1], targets[last]]).decode()
            found.append((text, "".join(chr(t) if t != IGNORED else "." for t in targets[: last + 1])))
    return found


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seq_len", [8, 24, 100])
def test_every_row_has_whole_conversations_or_ones_cut_after_an_answer(write, packed, seq_len):
    turns = make_turns(60)
    tokens = write(turns, packed)
    batch = batch_of(tokens, seq_len)
    found = [each for row in range(len(batch.input_ids)) for each in decode(batch, row)]
    expected = [text for each in turns if (text := fit(each, seq_len + 1))]
    assert sorted(text for text, _ in found) == sorted(expected)
    for text, learned in found:
        assert learned == "".join(each if each in "XYZ" else "." for each in text[1:])
    if packed and seq_len > 8:
        assert len(batch.input_ids) <= 1.1 * -(-sum(len(text) - 1 for text in expected) // seq_len) + 1
    if not packed:
        assert len(batch.input_ids) == len(expected) and batch.documents is None


def test_what_is_cut_and_left_out_is_counted(write):
    tokens = write([("ab", "XY", "c" * 9, "Z", ""), ("a" * 30, "X", ""), ("a", "X", "")])
    assert list(tokens.describe_cuts("", 8)) == [
        "1 of 3 conversations lose what follows the last answer that fits (33.3%), at 8 tokens (seq_len=30 holds all)",
        "1 of 3 conversations are left out, as their first answer does not fit (33.3%), at 8 tokens "
        "(seq_len=30 holds all)",
    ]
    assert list(tokens.describe_cuts(" of a", 13, "--context {}".format)) == [
        "1 of 3 conversations of a are left out, as their first answer does not fit (33.3%), at 13 tokens "
        "(--context 30 holds all)",
    ]
    assert list(tokens.describe_cuts("", 30)) == [] and tokens.count_rows(13) == 2
    assert faults_of(lambda: write([("a" * 30, "X", ""), ("a" * 40, "X", "")]).count_rows(8)) == [
        "seq_len: is 8, and no conversation of the train split has its first answer within it (a larger one: with 40 "
        "all would be whole)"
    ]


def test_losses_of_packed_conversations_are_those_of_each_alone(write):
    turns = make_turns(12, seed=3)
    model = zoo.build(spec_of(["vocab_size=300", "max_seq_len=64"]), seed=0)
    batch = batch_of(write(turns), 40)
    with torch.no_grad():
        logits = model(batch.input_ids, documents=batch.documents).logits
        together = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        alone = 0.0
        for each in turns:
            text = "".join(each[:-1])
            ids = torch.tensor([[*text.encode()]])
            losses = torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits[0], ids[0, 1:], reduction="none")
            alone += float(losses[[letter in "XYZ" for letter in text[1:]]].sum())
    count = int((batch.targets != IGNORED).sum())
    assert batch.documents is not None and (batch.documents > 0).any()
    assert float(together) / count == pytest.approx(alone / count, abs=1e-5)


def test_a_plain_pair_has_the_start_token_and_an_end_of_text(write):
    tokens = write([("ask ", "tell")], packed=False)
    assert decode_ids(batch_of(tokens, 12)) == ([*b"ask tell"], [IGNORED] * 3 + [*b"tell", EOS])


def decode_ids(batch):
    length = int((batch.targets[0] != IGNORED).nonzero().max()) + 1
    return batch.input_ids[0, :length].tolist(), batch.targets[0, :length].tolist()


def test_shards_of_any_size_give_the_same_rows(write, monkeypatch):
    turns = make_turns(50, seed=1)
    whole = batch_of(write(turns), 32)
    monkeypatch.setattr("zoo.data.shards.SHARD", 100)
    for file in write(turns).path.parent.iterdir():  # type: ignore[union-attr]
        file.unlink()
    parts = write(turns)
    assert len(list(parts.path.parent.glob("*.bin"))) > 4  # type: ignore[union-attr]
    again = batch_of(parts, 32)
    for a, b in zip(whole[:3], again[:3], strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


def test_row_n_is_the_same_whatever_the_batch_size(write):
    tokens = write(make_turns(40, seed=2))

    def rows(size: int):
        how = {"eos_id": EOS, "seq_len": 32, "packed": True}
        batches = Batches(tokens, size, 32, seed=5, collate=lambda rows, keys: collate_turns(rows, keys, **how))
        return torch.cat([next(batches).input_ids for _ in range(24 // size)])

    assert torch.equal(rows(4), rows(6))


def test_packing_is_best_fit_and_leaves_out_nothing():
    dice = np.random.default_rng(0)
    sizes = dice.integers(1, 41, 500)
    rows = pack_best_fit(sizes, 100)
    assert sorted(each for row in rows for each in row) == list(range(500))
    assert all(sizes[row].sum() <= 100 for row in rows)
    assert len(rows) <= 1.02 * sizes.sum() / 100 + 1
    assert pack_best_fit(np.array([3, 5, 4, 6, 2]), 10) == [[3, 2], [1, 0, 4]]
