"""The tokens that a run learns to end a text with stand in its generation_config.json."""

from __future__ import annotations

import json

import pytest

from zoo.data.chat.template import CHATML, ChatTemplate
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import CheckpointError
from zoo.jobs.train import keep_ends

END, ANSWER = 256, 258


def kept(folder, stated, *, answers):
    """The ends that stand in the file afterwards; None if there is no file."""
    tokenizer = make_byte_tokenizer()
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    file = folder / "generation_config.json"
    if stated is not None:
        file.write_text(json.dumps(stated))
    before = file.read_bytes() if file.is_file() else None
    keep_ends(tokenizer, folder, ChatTemplate(CHATML) if answers else None)
    if not file.is_file():
        return None
    return "as it was" if file.read_bytes() == before else json.loads(file.read_text())


@pytest.mark.parametrize(
    ("stated", "answers", "found"),
    [
        (None, False, None),
        (None, True, {"eos_token_id": [ANSWER, END]}),
        ({"eos_token_id": END}, False, "as it was"),
        ({"eos_token_id": [END, ANSWER], "top_k": 3}, True, "as it was"),
        ({"eos_token_id": END, "top_k": 3}, True, {"eos_token_id": [END, ANSWER], "top_k": 3}),
        ({"eos_token_id": None}, False, {"eos_token_id": [END]}),
        ({"top_k": 3}, True, {"top_k": 3, "eos_token_id": [ANSWER, END]}),
    ],
)
def test_every_end_is_stated_and_a_file_that_has_them_all_is_left(tmp_path, stated, answers, found):
    assert kept(tmp_path, stated, answers=answers) == found


def test_an_end_that_is_no_number_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="eos_token_id"):
        kept(tmp_path, {"eos_token_id": "x"}, answers=False)
