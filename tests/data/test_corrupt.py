"""Rows of text corrupted for a model to restore: by statistics, and by putting the text together again."""

import itertools

import numpy as np
import pytest

from zoo.data import corrupt
from zoo.data.pieces import number_words, read_pieces
from zoo.data.tokenizer import make_byte_tokenizer

IGNORED = -100
ROWS = 400
SIZES = [(256, 0.15, 3.0), (256, 0.5, 3.0), (100, 0.15, 8.0), (64, 0.5, 64.0), (9, 0.15, 3.0), (2, 0.15, 3.0)]
EOS, SENTINELS = 7, list(range(1000, 1200))


def rng(number: int = 0):
    return np.random.default_rng([3, number])


def text(length: int, number: int = 0):
    return rng(number).integers(10, 900, length)


def t5_lengths(length: int, rate: float, mean: float) -> tuple[int, int]:
    """What the encoder and the decoder get, as T5's `random_spans_helper` counts them (Raffel et al., 2020)."""
    noise = round(length * rate)
    spans = round(noise / mean)
    return length - noise + spans + 1, noise + spans + 1


def unfold(inputs, targets):
    """The text that a T5 pair was made of: each sentinel of the inputs gives way to what follows it in the targets."""
    spans, spoken = {}, []
    for token in targets[:-1]:
        if token >= SENTINELS[0]:
            spoken = spans.setdefault(int(token), [])
        else:
            spoken.append(int(token))
    nested = [spans[int(token)] if token >= SENTINELS[0] else [int(token)] for token in inputs[:-1]]
    assert inputs[-1] == targets[-1] == EOS
    return list(itertools.chain.from_iterable(nested))


@pytest.mark.parametrize(("length", "rate", "mean"), SIZES)
def test_what_the_encoder_reads_and_the_decoder_writes_give_back_the_text(length, rate, mean):
    shapes = set()
    for number in range(ROWS // 4):
        ids = text(length, number)
        made = corrupt.fold(ids, corrupt.draw_spans(length, rate, mean, rng(number)), SENTINELS, EOS)
        assert unfold(*made) == ids.tolist()
        order = made.inputs[made.inputs >= SENTINELS[0]].tolist()
        assert order == SENTINELS[: len(order)] and made.inputs[0] == ids[0]
        shapes.add((len(made.inputs), len(made.targets)))
    assert len(shapes) == 1
    if length > 9 and mean < 64:
        assert shapes == {t5_lengths(length, rate, mean)}


def test_each_place_of_a_row_is_noise_as_often_and_spans_are_of_any_length():
    drawn = np.stack([corrupt.draw_spans(120, 0.25, 3.0, rng(number)) for number in range(4000)])
    assert (drawn.sum(1) == 30).all()
    assert np.abs(drawn[:, 20:100].mean(0) - 0.25).max() < 0.05  # 7 standard errors; the first token never is noise
    lengths = np.concatenate([np.diff(np.flatnonzero(np.diff(np.pad(row.astype(int), 1))))[::2] for row in drawn])
    assert lengths.mean() == 3.0 and set(range(1, 12)) <= set(lengths.tolist())
    # 30 tokens cut into 10 parts: a part has one token in C(28, 8) of C(29, 9) ways
    assert (lengths == 1).mean() == pytest.approx(9 / 29, abs=0.01)


def test_infilling_leaves_the_other_tokens_in_order_and_takes_a_poisson_number_for_each_mask():
    sizes = []
    for number in range(ROWS):
        ids = np.arange(100, 200)
        made = corrupt.infill(ids, 0.3, 3.0, 5, rng(number))
        left = made[made != 5]
        assert len(made) == 100 - 30 + 10 and (np.diff(left) > 0).all() and len(left) == 70
        marks = np.flatnonzero(np.concatenate(([True], made != 5, [True])))
        around = np.concatenate(([99], left, [200]))  # what stands before and behind each group of masks
        for place in range(len(marks) - 1):
            if marks[place + 1] - marks[place] == 2:  # a mask alone
                sizes.append(around[place + 1] - around[place] - 1)
    sizes = np.array(sizes)
    assert sizes.mean() == pytest.approx(3.0, abs=0.15) and sizes.var() == pytest.approx(2.7, abs=0.4)  # 30 · 0.1 · 0.9
    assert (sizes == 0).mean() == pytest.approx(0.9**30, abs=0.02)


def test_sentences_come_in_any_order_and_stay_whole():
    ends = np.zeros(50, bool)
    ends[9] = True
    ids = np.array([1, 2, 9, 3, 9, 4, 5, 6])
    seen = {tuple(corrupt.permute_sentences(ids, ends, rng(number)).tolist()) for number in range(100)}
    parts = [(1, 2, 9), (3, 9), (4, 5, 6)]
    assert seen == {sum(order, ()) for order in itertools.permutations(parts)}


def mask(ids, number, words=None, rates=(0.15, 0.8, 0.1)):
    return corrupt.mask_tokens(ids, np.arange(10, 900), words, rates, 5, rng(number))


def test_fifteen_in_a_hundred_tokens_are_asked_for_and_eight_in_ten_of_these_are_masked():
    kinds = np.zeros(3)
    for number in range(ROWS):
        ids = text(200, number)
        ids[::20] = EOS  # 10 of 200 are special
        made = mask(ids, number)
        asked = made.targets != IGNORED
        assert asked.sum() == round(0.15 * 190) and not asked[::20].any()
        assert (made.targets[asked] == ids[asked]).all() and (made.inputs[~asked] == ids[~asked]).all()
        masked, kept = made.inputs[asked] == 5, made.inputs[asked] == ids[asked]
        kinds += masked.sum(), (~masked & ~kept).sum(), kept.sum()
        assert (made.inputs[asked][~masked] >= 10).all()
    assert kinds / kinds.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.015)


def test_a_word_is_asked_for_whole_or_not_at_all():
    for number in range(50):
        ids, words = text(120, number), np.sort(rng(number).integers(0, 40, 120))
        made = mask(ids, number, words, (0.3, 1.0, 0.0))
        asked = made.targets != IGNORED
        assert all(len(set(asked[words == word].tolist())) == 1 for word in set(words.tolist()))
        assert 30 < asked.sum() <= 36


def test_a_row_without_an_ordinary_token_asks_for_nothing():
    made = mask(np.full(6, EOS), 0)
    assert (made.targets == IGNORED).all() and (made.inputs == EOS).all()


def test_words_and_sentences_are_read_off_a_vocabulary():
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special(["<mask>"])
    pieces = read_pieces(tokenizer)
    assert pieces.ordinary.tolist() == list(range(256))
    spelled = "def f_1(x): go.\n  and"
    ids = np.array(tokenizer.encode(spelled))
    words = number_words(ids, pieces)
    groups = itertools.groupby(range(len(ids)), words.__getitem__)
    assert ["".join(chr(ids[place]) for place in group) for _, group in groups] == [
        "def",
        " f_1",
        "(",
        "x",
        "):",
        " go",
        ".",
        "\n",
        " ",
        " and",
    ]
    assert [chr(each) for each in range(128) if pieces.ends[each]] == ["\n", "!", ".", "?"]
    assert pieces.ends[tokenizer.eos_id]
