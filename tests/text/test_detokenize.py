"""Tokens to text as they come: whole characters, whatever the prompt ends in, and stop strings however they are cut."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from support.call_counts import calls_of
from support.tiny_tokenizers import LETTERS, SAMPLE, byte_fallback, byte_level, unigram
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.text.detokenize import Detokenizer, StopStrings, TextStream


def pieces(ids: list[int], tokenizer: Tokenizer, prompt: list[int] | tuple[()] = ()) -> list[str]:
    """What comes out for tokens that follow a prompt, without what is empty."""
    detokenizer = Detokenizer(tokenizer, prompt)
    return [piece for piece in (*map(detokenizer.push, ids), detokenizer.finish()) if piece]


def before(tokenizer: Tokenizer, ids: list[int], cut: int) -> str:
    """The text that the first `cut` tokens have for good: a character that they only begin comes with what follows."""
    whole = tokenizer.decode(ids)
    return max((os.path.commonprefix([tokenizer.decode(ids[:end]), whole]) for end in range(cut + 1)), key=len)  # noqa: RUF071


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["byte_level", "byte_fallback"])
def test_pieces_join_to_the_whole_text_and_end_between_characters(tokenizer):
    ids = tokenizer.encode(SAMPLE).ids
    assert tokenizer.decode(ids) == SAMPLE
    for cut in range(20):
        start = before(tokenizer, ids, cut)
        parts = pieces(ids[cut:], tokenizer, ids[:cut])
        assert start + "".join(parts) == SAMPLE
        assert not any("\ufffd" in part for part in parts)
        assert len(parts) > 20


def test_bytes_that_are_no_character_come_out_as_the_whole_decode_has_them():
    tokenizer = byte_level()
    for seed in range(200):
        ids = torch.randint(270, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
        assert "".join(pieces(ids, tokenizer)) == tokenizer.decode(ids)


def test_bytes_that_spoil_the_character_before_them_do_not_end_the_text():
    """Byte fallback decodes a run of bytes as a whole: one bad byte turns the good ones before it into U+FFFD too."""
    tokenizer = byte_fallback()
    number = {token: tokenizer.token_to_id(token) for token in ("<0x56>", "<0xC9>", "r", "d", "<0xC3>", "<0xA9>")}
    ids = [number[token] for token in ("<0x56>", "<0xC9>", "r", "d", "<0xC3>", "<0xA9>", "d", "<0xC3>")]
    assert tokenizer.decode(ids) == "\ufffd\ufffdrdéd\ufffd"
    assert pieces(ids, tokenizer) == ["V", "\ufffdr", "d", "é", "d", "\ufffd"]


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["byte_level", "byte_fallback"])
def test_a_prompt_that_ends_in_the_replacement_character_is_not_repeated(tokenizer):
    prompt, ids = tokenizer.encode("def \ufffd").ids, tokenizer.encode("f(x)").ids
    assert tokenizer.decode(prompt).endswith("\ufffd")
    assert "".join(pieces(ids, tokenizer, prompt)) == tokenizer.decode(prompt + ids).removeprefix("def \ufffd")


def cut(parts: list[str], stop: list[str]) -> list[str]:
    """What comes out for each part, and at the end."""
    strings = StopStrings(stop)
    return [*(strings.push(part) for part in parts), strings.finish()]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (["END"], "one aaab two EN three\n "),
        (["four", "END"], "one aaab two EN three\n "),
        (["ENDS", "ND", "END"], "one aaab two EN three\n "),
        (["three\n E", "hr"], "one aaab two EN t"),
        (["aab"], "one a"),
        (["one"], ""),
        (["absent", "EN!"], "one aaab two EN three\n END four EN"),
        ([], "one aaab two EN three\n END four EN"),
    ],
)
def test_text_ends_before_the_stop_string_that_is_complete_first_however_it_is_cut(size, stop, left):
    text = "one aaab two EN three\n END four EN"
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(cut(parts, stop)) == left


def test_text_is_held_back_only_while_a_stop_string_may_be_coming():
    assert cut(["ab", "cE", "Nx", "E"], ["END"]) == ["ab", "c", "ENx", "", "E"]


# ---------------------------------------------------------------- random texts, and every way to cut them


def tokenizers() -> dict[str, Tokenizer]:
    """Four tokenizers of different manners; and those of the folders in ZOO_TOKENIZERS, for a longer look."""
    made = {"bytes": make_byte_tokenizer().backend, "byte_level": byte_level()}
    made |= {"byte_fallback": byte_fallback(), "unigram": unigram()}
    given = [Path(each) for each in os.environ.get("ZOO_TOKENIZERS", "").split(":") if each]
    return made | {str(each.parent): Tokenizer.from_file(str(each)) for each in given}


TOKENIZERS = tokenizers()
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def texts(count: int, seed: int) -> list[str]:
    """Random texts of a few letters, among them the Llama tokenizer's "▁" no more than in real texts: never."""
    dice = random.Random(seed)
    return ["".join(dice.choices(LETTERS, k=dice.randint(1, 40))) for _ in range(count)]


@every_tokenizer
@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_the_pieces_of_a_random_text_join_to_its_decode_in_one(tokenizer, count):
    for text in texts(count, seed=count):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.decode(ids)
        parts = pieces(ids, tokenizer)
        assert "".join(parts) == whole
        if "\ufffd" not in whole:
            assert "\ufffd" not in "".join(parts)


@every_tokenizer
@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_after_any_prompt_comes_what_it_did_not_have_yet(tokenizer, count):
    """Prompts that end inside a character: nothing of them is repeated, and the character comes whole."""
    dice = random.Random(1)
    for text in texts(count, seed=count + 1):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cut = dice.randint(0, len(ids))
        came = "".join(pieces(ids[cut:], tokenizer, ids[:cut]))
        assert before(tokenizer, ids, cut) + came == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", [TOKENIZERS["bytes"], TOKENIZERS["byte_level"]], ids=["bytes", "byte_level"])
def test_stray_bytes_without_end_are_given_as_the_whole_decode_has_them(tokenizer):
    dice = random.Random(2)
    stray = tokenizer.encode("é東🙂").ids
    for _ in range(50):
        ids = [dice.choice(stray if dice.random() < 0.8 else [dice.randrange(256)]) for _ in range(150)]
        assert "".join(pieces(ids, tokenizer)) == tokenizer.decode(ids)


def test_a_model_that_repeats_one_stray_byte_costs_no_more_from_token_to_token():
    tokenizer = make_byte_tokenizer().backend
    detokenizer = Detokenizer(tokenizer)
    came = "".join(detokenizer.push(0xB4) for _ in range(2000))
    assert len(detokenizer._window) < 40
    assert came + detokenizer.finish() == "\ufffd" * 2000


def test_a_long_prompt_is_not_decoded_again_at_each_token():
    tokenizer = byte_level()
    ids = tokenizer.encode(SAMPLE * 100).ids
    assert len(Detokenizer(tokenizer, ids)._window) <= 32


def first_stop(text: str, stop: list[str]) -> str:
    """The text before the stop string that is complete first, found by reading letter after letter."""
    for end in range(len(text) + 1):
        found = [end - len(word) for word in stop if text[:end].endswith(word)]
        if found:
            return text[: min(found)]
    return text


def live(text: str, stop: list[str]) -> int:
    """How long the longest end of the text is that a stop string begins with."""
    return max((n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])), default=0)


@every_tokenizer
@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_stop_string_ends_the_text_wherever_tokens_cut_it_and_no_more_is_held_back_than_may_become_one(
    tokenizer, count
):
    dice = random.Random(3)
    for text in texts(count, seed=count + 2):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.decode(ids)
        places = [sorted(dice.sample(range(len(whole) + 1), 2)) for _ in range(3) if len(whole) > 1]
        stop = [whole[start : min(end, start + 6)] + dice.choice(["", "§", "§"]) for start, end in places]
        stop += [whole[-2:] + "§"]  # one that is being waited for when the text ends
        stream, plain, came, seen = TextStream(tokenizer, (), stop), Detokenizer(tokenizer), "", ""
        for token in ids:
            came, seen = came + stream.push(token), seen + plain.push(token)
            if stream.stopped:
                break
            assert len(seen) - len(came) == live(seen, stop)
        came += stream.finish()
        assert came == first_stop(whole, stop)
        assert not stream.stopped or stream.push(ids[0]) == stream.finish() == ""


def test_a_text_cut_at_every_byte_ends_before_its_stop_string():
    tokenizer, text = make_byte_tokenizer().backend, "né 🙂 東END京 b"
    data = text.encode()
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            stream = TextStream(tokenizer, (), [text[start:end]])
            came = "".join(map(stream.push, data)) + stream.finish()
            assert came == text[: text.index(text[start:end])]
            assert stream.stopped


def test_a_token_costs_the_same_however_long_the_text_is():
    tokenizer = byte_level()
    ids = tokenizer.encode(SAMPLE).ids

    def write(times: int) -> int:
        stream = TextStream(tokenizer, (), ["absent"])
        return calls_of(lambda: [stream.push(token) for token in ids * times])

    assert write(8) < 8.5 * write(1)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ConfigError, match="stop: an empty string"):
        TextStream(byte_level(), (), ["a", ""])
