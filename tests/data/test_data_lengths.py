"""The bytes of text that tokens stand for add up to the text's, for every kind of tokenizer and any text."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from support.corpora import POEM
from support.minilm import MINILM
from support.tiny_tokenizers import byte_fallback, byte_level, unigram
from zoo.data.encode import open_tokens, pack_ids, write_tokens
from zoo.data.held_out_rows import hold_out
from zoo.data.token_bytes import measure_by_offsets, measure_tokens
from zoo.data.tokenizer import (
    EOS,
    Tokenizer,
    make_byte_tokenizer,
    spell_bytes,
    train_bpe,
)
from zoo.data.tokens import Source


def ended(backend: Backend) -> Tokenizer:
    """A tokenizer that has an end of text."""
    backend.add_special_tokens([EOS])
    return Tokenizer(backend)


def word_pieces() -> Tokenizer:
    """BERT's manner: lower case, no accents, words without the spaces between, and what is unknown."""
    pieces = ["[UNK]", "[PAD]", *"abcdefghijklmnopqrstuvwxyz(),.0123456789", *(f"##{letter}" for letter in "abcdeinrt")]
    backend = Backend(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return ended(backend)


def normalised() -> Tokenizer:
    """A byte-level vocabulary behind a normaliser that changes the number of bytes."""
    backend = byte_level()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return ended(backend)


def with_added_words() -> Tokenizer:
    """Tokens added to a byte-level vocabulary, of which one swallows the spaces around it."""
    backend = byte_level()
    backend.add_tokens([AddedToken("naïve"), AddedToken("def", lstrip=True, rstrip=True)])
    return ended(backend)


KINDS = {
    "bytes": make_byte_tokenizer,
    "bpe": lambda: train_bpe(POEM, 400),
    "byte_level": lambda: ended(byte_level()),
    "byte_fallback": lambda: ended(byte_fallback()),
    "unigram": lambda: ended(unigram()),
    "word_pieces": word_pieces,
    "normalised": normalised,
    "added": with_added_words,
}
if MINILM.is_dir():
    KINDS["minilm"] = lambda: Tokenizer.load(MINILM)

WORDS = st.sampled_from(
    ["def", " main", "(", "Naïve", "漢字", "\n\n", "🦓", "  ", " 12", "\t", EOS, "ﬁ", "é", "İ", "\u200d", "▁"]
)
TEXTS = st.one_of(st.text(), st.lists(WORDS).map("".join))
FAST = settings(max_examples=80, deadline=None)


@pytest.fixture(scope="module", params=sorted(KINDS))
def tokenizer(request):
    return KINDS[request.param]()


def lengths_of(tokenizer: Tokenizer, text: str) -> np.ndarray:
    ids = np.array(tokenizer.encode(text), np.int64)
    found = measure_tokens(tokenizer, text, ids)
    assert len(found) == len(ids) + 1
    return found


@FAST
@given(text=TEXTS)
def test_the_bytes_of_tokens_add_up_to_the_text(tokenizer, text):
    found = lengths_of(tokenizer, text)
    assert found.min() >= 0
    assert found.sum() == len(text.encode())
    assert found[-1] == 0 or len(found) == 1  # of the end of text


@FAST
@given(text=TEXTS)
def test_a_token_of_bytes_has_as_many_as_it_spells(text):
    for tokenizer in (KINDS["bytes"](), KINDS["byte_level"]()):
        spelled = spell_bytes()
        for token, length in zip(tokenizer.encode(text), lengths_of(tokenizer, text), strict=False):
            assert length == sum(letter in spelled for letter in tokenizer.backend.id_to_token(token))


@FAST
@given(text=TEXTS)
def test_offsets_and_a_vocabulary_of_bytes_agree_where_characters_are_whole(text):
    tokenizer = KINDS["byte_level"]()
    ids = np.array(tokenizer.encode(text), np.int64)
    one, other = np.cumsum(lengths_of(tokenizer, text)), np.cumsum(measure_by_offsets(tokenizer, text, len(ids)))
    starts = {0, *np.cumsum([len(letter.encode()) for letter in text]).tolist()}
    assert [(a, b) for a, b in zip(one, other, strict=False) if a in starts and b in starts and a != b] == []


def test_a_word_has_the_bytes_from_its_start_to_the_next():
    tokenizer = word_pieces()
    text = "Ab,  é\n"
    assert [tokenizer.backend.id_to_token(token) for token in tokenizer.encode(text)] == ["a", "##b", ",", "e"]
    assert lengths_of(tokenizer, text).tolist() == [1, 1, 3, 3, 0]
    assert lengths_of(tokenizer, " \n").tolist() == [2]  # a text without tokens: its end has it


def test_no_token_has_fewer_than_no_bytes_where_offsets_go_back(monkeypatch):
    tokenizer = word_pieces()
    monkeypatch.setattr(tokenizer, "find_offsets", lambda text: [(1, 2), (4, 5), (2, 3), (5, 6)])
    assert measure_by_offsets(tokenizer, "abécdef", 4).tolist() == [5, 0, 1, 2, 0]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("wanted", [None, 1, 3, 7])
def test_the_bytes_of_held_out_rows_are_those_of_their_targets(tmp_path, kind, wanted):
    tokenizer = KINDS[kind]()
    rng = random.Random(0)  # no two rows are alike
    lines = ["".join(rng.choice("abé 漢,\n") for _ in range(rng.randrange(1, 90))) for _ in range(40)]
    texts = [("train" if n % 2 else "validation", (line,)) for n, line in enumerate(lines)]
    write_tokens(tmp_path, texts, tokenizer, lambda done: None)
    tokens = open_tokens(tmp_path)["validation"]
    assert tokens.lengths is not None and tokens.lengths[:].sum() == tokens.n_bytes
    assert tokens.n_bytes == sum(len(text.encode()) for part, (text,) in texts if part == "validation")
    (held,) = hold_out([Source("", Fraction(1), tokens)], 2, 16, wanted=wanted, documents=False)
    if wanted is None:
        assert held.n_bytes == tokens.n_bytes
        return
    stream = tokens.ids[:].astype(np.int64)
    at = [
        start
        for batch in held.batches
        for row in batch.input_ids.tolist()
        for start in range(0, len(stream) - 16, 16)
        if stream[start : start + 16].tolist() == row
    ]
    assert len(at) == wanted
    assert sum(int(tokens.lengths[start + 1 : start + 17].sum()) for start in at) == held.n_bytes


def test_ids_are_packed_as_they_are_with_the_end_behind():
    assert pack_ids([1, 65_535], 7, "uint16").tolist() == [1, 65_535, 7]
    assert pack_ids([1, 70_000], 7, "int32").tolist() == [1, 70_000, 7]
