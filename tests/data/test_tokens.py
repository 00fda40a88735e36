"""Tokenizers, tokens on disk and batches, against slow and obvious ways to say the same."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from support.corpora import POEM, faults_of
from zoo.data import Batches, TokenFile, Tokenizer, read_evaluation_batches
from zoo.data.encode import open_tokens, write_tokens
from zoo.data.tokenizer import EOS, make_byte_tokenizer, train_bpe
from zoo.errors import ConfigError

WORDS = st.sampled_from(["def", " main", "(", "naïve", "漢字", "\n\n", "🦓", " 12", "\t", EOS])
TEXTS = st.one_of(st.text(), st.lists(WORDS).map("".join))
FAST = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(POEM, 400)


def write(path: Path, texts: list[tuple], tokenizer: Tokenizer | None = None) -> dict:
    path.mkdir(parents=True, exist_ok=True)
    documents = [(part, (text,)) for part, text in texts]
    write_tokens(path, documents, tokenizer or make_byte_tokenizer(), lambda done: None)
    return open_tokens(path)


def made_of(ids: list[int], eos_id: int = 0) -> TokenFile:
    return TokenFile(ids=np.array(ids, "<u2"), eos_id=eos_id, n_documents=1, n_bytes=1)


# Tokenizers


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request, bpe):
    return make_byte_tokenizer() if request.param == "bytes" else bpe


@FAST
@given(text=TEXTS)
def test_any_text_survives_the_round_trip_and_never_ends_a_document(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_id not in ids
    assert [each.ids for each in tokenizer.encode_many([text, "x", text])] == [ids, tokenizer.encode("x"), ids]
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_a_byte_is_its_own_id():
    tokenizer = make_byte_tokenizer()
    assert tokenizer.encode("né🦓") == list("né🦓".encode())
    assert tokenizer.decode(range(97, 101)) == "abcd"
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)


def test_a_special_token_spelled_in_a_text_is_plain_for_a_tokenizer_of_ours_unless_asked(tokenizer):
    assert tokenizer.split
    tokenizer.split = False
    assert tokenizer.encode(f"a{EOS}")[-1] == tokenizer.eos_id
    tokenizer.split = True
    assert tokenizer.decode([tokenizer.eos_id], special=True) == EOS
    assert tokenizer.decode(torch.tensor(tokenizer.encode(EOS))) == EOS


def test_bpe_has_the_size_asked_for_and_the_same_tokens_each_time(bpe):
    assert bpe.vocab_size == 400
    assert train_bpe(iter(POEM), 400).backend.to_str() == bpe.backend.to_str()
    assert len(bpe.encode(POEM[7])) < len(POEM[7].encode()) / 2
    assert train_bpe(["ab"], 4096).vocab_size == 257  # nothing comes twice, so nothing is merged


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.backend.to_str() == tokenizer.backend.to_str()
        assert (again.eos, again.eos_id, again.vocab_size) == (EOS, tokenizer.eos_id, tokenizer.vocab_size)
        assert again.encode(EOS) == tokenizer.encode(EOS)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": "1.0"}', '{"model": 3}', '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=r"^data\.tokenizer\.path: .*tokenizer\.json") as caught:
        Tokenizer.load(tmp_path, where="data.tokenizer")
    assert len(str(caught.value).splitlines()) == 1


def test_transformers_reads_a_saved_tokenizer(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == tokenizer.eos_id
    assert theirs.encode(POEM[3]) == tokenizer.encode(POEM[3])
    assert theirs.decode(theirs.encode(POEM[3])) == POEM[3]


def someones_tokenizer(path: Path, special: list[str], **about) -> Path:
    """A word-level tokenizer.json that cuts and pads, as those of embedding models do."""
    backend = Backend(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    if about:
        (path / "tokenizer_config.json").write_text(json.dumps(about), "utf-8")
    return path


def test_a_tokenizer_file_neither_cuts_nor_pads(tmp_path):
    loaded = Tokenizer.load(someones_tokenizer(tmp_path, ["</s>"]))
    assert loaded.encode("one two one") == loaded.encode_many(["one two one"])[0].ids == [0, 1, 0]


def test_the_end_of_a_text_is_found_in_this_order(tmp_path):
    path = someones_tokenizer(tmp_path, ["</s>", "<end>", "<stop>"], eos_token={"content": "<end>"})
    assert Tokenizer.load(path, "<stop>").eos == "<stop>"
    assert Tokenizer.load(path).eos == "<end>"
    (path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(path).eos == "</s>"


def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path):
    path = someones_tokenizer(tmp_path / "own", ["<end>"])
    assert "tokenizer.eos: which token ends a text is not known" in faults_of(lambda: Tokenizer.load(path))[0]
    assert "(did you mean '<end>'?)" in faults_of(lambda: Tokenizer.load(path, "<ende>"))[0]
    assert "tokenizer.path: no such file" in faults_of(lambda: Tokenizer.load(tmp_path / "none"))[0]
    for content in (b"{", b"[1]", b"{}", b"\xff"):
        (tmp_path / "bad.json").write_bytes(content)
        assert faults_of(lambda: Tokenizer.load(tmp_path / "bad.json"))[0].startswith("tokenizer.path: ")


# Tokens on disk


def test_tokens_are_the_documents_with_an_end_around_each(tmp_path):
    tokens = write(tmp_path, [("train", "ab"), ("validation", "é"), ("train", "c")])
    assert tokens["train"].ids[:].tolist() == [256, 97, 98, 256, 99, 256]
    assert tokens["validation"].ids[:].tolist() == [256, 0xC3, 0xA9, 256]
    assert (tokens["train"].n_documents, tokens["train"].n_bytes, len(tokens["train"])) == (2, 3, 6)
    assert tokens["train"].ids[:].dtype == np.uint16


def test_a_large_vocabulary_is_kept_whole(tmp_path):
    backend = Backend(models.WordLevel({f"w{n}": n for n in range(70_000)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = write(tmp_path, [("train", "w69999 w65536"), ("validation", "w1")], Tokenizer(backend, "w0"))
    assert tokens["train"].ids[:].tolist() == [0, 69_999, 65_536, 0]


def test_many_documents_are_encoded_in_groups_without_loss(tmp_path, monkeypatch, bpe):
    monkeypatch.setattr("zoo.data.encode.GROUP", 200)
    done = []
    write_tokens(
        tmp_path, (("train" if n % 9 else "validation", (line,)) for n, line in enumerate(POEM)), bpe, done.append
    )
    tokens = open_tokens(tmp_path)
    expected = "".join(line for n, line in enumerate(POEM) if n % 9)
    assert bpe.decode(tokens["train"].ids[:]) == expected
    assert (tokens["train"].ids[:] == bpe.eos_id).sum() == tokens["train"].n_documents + 1
    assert done == sorted(done) and done[-1] == len("".join(POEM).encode())


# Batches


def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one():
    tokens = made_of(list(range(1, 200)))
    whole = [next(batches) for batches in [Batches(tokens, 4, 8, seed=3)] for _ in range(30)]
    stopped = Batches(tokens, 4, 8, seed=3)
    for _ in range(13):
        next(stopped)
    state = json.loads(json.dumps(stopped.state()))
    resumed = Batches(tokens, 4, 8, seed=3)
    resumed.restore(state)
    for expected, found in zip(whole[13:], resumed, strict=False):
        assert torch.equal(expected.input_ids, found.input_ids) and torch.equal(expected.targets, found.targets)
    asked = Batches(tokens, 4, 8, seed=3)
    for step in random.sample(range(30), 30):
        assert torch.equal(asked.batch(step).input_ids, whole[step].input_ids)


def test_each_epoch_shows_every_window_once_in_an_order_of_its_own():
    tokens = made_of(list(range(1, 1 + 24 * 5 + 3)))  # 24 windows of 5, and a rest
    batches = Batches(tokens, 6, 5, seed=1)
    epochs = [torch.cat([next(batches).input_ids for _ in range(4)]) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch.flatten().tolist()) == list(range(1, 121))
        assert (epoch.diff(dim=1) == 1).all() and epoch[0, 0] % 5 == 1
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    assert not torch.equal(epochs[0], torch.cat([Batches(tokens, 6, 5, seed=2).batch(n).input_ids for n in range(4)]))


def test_targets_are_the_next_ids_and_all_is_int64():
    tokens = made_of(list(range(1, 99)))
    batch = Batches(tokens, 3, 7).batch(2)
    assert batch.input_ids.shape == batch.targets.shape == (3, 7)
    assert torch.equal(batch.targets, batch.input_ids + 1)
    assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
    assert batch.input_ids.is_contiguous() and batch.targets.is_contiguous()
    assert batch.documents is None


def test_a_batch_runs_on_into_the_next_epochs():
    batch = Batches(made_of([1, 2, 3, 4, 5]), 7, 2).batch(0)
    assert batch.input_ids.shape == (7, 2)
    counts = [sum(row.tolist() == window for row in batch.input_ids) for window in ([1, 2], [3, 4])]
    assert sorted(counts) == [3, 4]


@FAST
@given(st.lists(st.integers(0, 2), min_size=9, max_size=60), st.integers(1, 3), st.integers(1, 8))
def test_documents_are_numbered_as_one_would_by_hand(ids, batch_size, seq_len):
    tokens = made_of(ids)
    for batch in (
        Batches(tokens, batch_size, seq_len, documents=True).batch(1),
        *read_evaluation_batches(tokens, batch_size, seq_len, documents=True),
    ):
        assert batch.documents is not None and batch.documents.dtype == torch.int64
        for row, numbers in zip(batch.input_ids.tolist(), batch.documents.tolist(), strict=True):
            number, expected = 0, [0]
            for token in row[1:]:
                number += token == tokens.eos_id
                expected.append(number)
            assert numbers == expected


def test_to_resume_with_other_settings_is_refused_line_by_line():
    tokens = made_of(list(range(99)))
    state = Batches(tokens, 4, 8, seed=1).state()
    faults = faults_of(lambda: Batches(tokens, 4, 9, seed=5).restore(state))
    assert faults == [
        "data: to resume, seed must be as before, found 5 (was 1)",
        "data: to resume, seq_len must be as before, found 9 (was 8)",
    ]
    longer = made_of(list(range(100)))
    assert "n_tokens must be as before" in faults_of(lambda: Batches(longer, 4, 8, seed=1).restore(state))[0]


def test_too_short_a_text_for_one_row_is_one_line():
    tokens = made_of(list(range(8)))
    assert Batches(tokens, 1, 7).windows == [1]
    (fault,) = faults_of(lambda: Batches(tokens, 1, 8))
    assert fault.startswith("data: the training split must fill one row of 8 tokens and a target, found 8 (")


@FAST
@given(st.integers(2, 60), st.integers(1, 4), st.integers(1, 9))
def test_evaluation_asks_for_every_id_once_and_in_order(n, batch_size, seq_len):
    tokens = made_of(list(range(n)))
    batches = list(read_evaluation_batches(tokens, batch_size, seq_len))
    assert torch.cat([batch.targets.flatten() for batch in batches]).tolist() == list(range(1, n))
    assert all(torch.equal(batch.input_ids + 1, batch.targets) for batch in batches)
