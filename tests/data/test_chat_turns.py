"""Which tokens of a conversation are learned: those of transformers' masks, and of a plain difference of prefixes, by
published chat templates."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import support
from zoo.data.chat.template import CHATML, ChatTemplate
from zoo.data.chat.turns import find_fault, split_turns
from zoo.data.encode import encode_turns
from zoo.data.tokenizer import make_byte_tokenizer, train_bpe
from zoo.errors import ConfigError

TEMPLATES = json.loads(Path(*support.__path__, "published_templates.json").read_text("utf-8"))
NAMES = [name for name, each in TEMPLATES.items() if isinstance(each, dict)]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<start_of_turn>", "<end_of_turn>"]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
WORDS = ["two", "Ünïcode 🙂", "é", "<b>&", "line\nbreak", "7", "🙂", "end."]
AS_MARKED = {*NAMES} - {"deepseekv3", "glm4moe", "qwen2_5", "qwen3"}
"""Templates by which the prefixes of a conversation show what TRL has marked in its copies. DeepSeek-V3's generation
prompt opens a thought that an answer in the conversation has not; GLM-4.5 ends an answer by the next role's token;
Qwen2.5's marks take in the line end before an answer; Qwen3 drops earlier thoughts, which TRL's copy keeps."""


def make_tokenizers(kind: str):
    """The same tokenizer for us and for transformers."""
    made = make_byte_tokenizer() if kind == "bytes" else train_bpe([f"{word} assistant\n" for word in WORDS] * 9, 400)
    made.backend.add_special_tokens(SPECIAL)
    return made, PreTrainedTokenizerFast(tokenizer_object=made.backend, **TOKENS)


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizers(request):
    return make_tokenizers(request.param)


def talk(dice: random.Random, turns: int) -> list[dict]:
    def text() -> str:
        return " ".join(dice.choices(WORDS, k=dice.randint(1, 5)))

    return [{"role": role, "content": text()} for _ in range(turns) for role in ("user", "assistant")]


def ours(source: str, messages, tokenizer) -> tuple[list[int], list[int], int]:
    """The ids, the mask of learned ones, and how many answers are passed over."""
    turns = split_turns(ChatTemplate(source, special=TOKENS), messages)
    (document,) = encode_turns([("train", turns.texts)], tokenizer)
    runs = [run.ids for run in document.encodings]
    ids = [token for run in runs for token in run]
    return ids, [number % 2 for number, run in enumerate(runs) for _ in run], turns.passed


def theirs(tokenizer, messages, source: str) -> tuple[list[int], list[int]]:
    found = tokenizer.apply_chat_template(
        messages, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
    )
    return found["input_ids"], found["assistant_masks"]


@pytest.mark.parametrize("name", NAMES)
def test_marked_text_is_learned_as_transformers_masks_say(name, tokenizers):
    dice, source = random.Random(name), TEMPLATES[name]["marked"]
    for number in range(8):
        messages = talk(dice, 1 + number % 3) + talk(dice, 1)[: number % 2]
        assert (*theirs(tokenizers[1], messages, source), 0) == ours(source, messages, tokenizers[0])


@pytest.mark.parametrize("name", sorted(AS_MARKED))
def test_the_difference_of_prefixes_is_what_trl_has_marked(name, tokenizers):
    dice = random.Random(name)
    for number in range(8):
        messages = talk(dice, 1 + number % 3)
        expected = theirs(tokenizers[1], messages, TEMPLATES[name]["marked"])
        assert (*expected, 0) == ours(TEMPLATES[name]["published"], messages, tokenizers[0])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_is_what_trls_trainer_learns(name):
    """`learned` was written by SFTTrainer of trl 1.16.0, which marks a published template by its own copy of it."""
    tokenizer, reference = make_tokenizers("bytes")
    for messages, expected in zip(TEMPLATES["conversations"], TEMPLATES[name]["learned"], strict=True):
        for kind in ["marked", *["published"] * (name in AS_MARKED)]:
            ids, mask, _ = ours(TEMPLATES[name][kind], messages, tokenizer)
            assert reference.decode([token for token, each in zip(ids, mask, strict=True) if each]) == expected


@pytest.mark.parametrize("name", sorted({*NAMES} - {"deepseekv3", "qwen3", "phi3", "phi3_5"}))
def test_an_answer_is_what_follows_the_generation_prompt_of_its_messages(name):
    """In bytes no token reaches over the end of a prefix, so the prefixes' ids are prefixes of the ids."""
    (tokenizer, reference), dice, source = make_tokenizers("bytes"), random.Random(name), TEMPLATES[name]["published"]
    for turns in (1, 2, 4):
        messages = talk(dice, turns)
        whole = reference.apply_chat_template(messages, chat_template=source, return_dict=False)
        mask = [0] * len(whole)
        for number in range(1, len(messages), 2):
            how = {"chat_template": source, "return_dict": False}
            start = len(reference.apply_chat_template(messages[:number], add_generation_prompt=True, **how))
            end = len(reference.apply_chat_template(messages[: number + 1], **how))
            mask[start:end] = [1] * (end - start)
        assert ours(source, messages, tokenizer) == (whole, mask, 0)


def test_of_a_template_that_rewrites_earlier_turns_the_last_answer_alone_is_learned(tokenizers):
    messages, source = talk(random.Random(3), 3), TEMPLATES["qwen3"]["published"]
    ids, mask, passed = ours(source, messages, tokenizers[0])
    assert ids == tokenizers[1].apply_chat_template(messages, chat_template=source, return_dict=False)
    learned = tokenizers[1].decode([token for token, each in zip(ids, mask, strict=True) if each])
    assert learned == f"<think>\n\n</think>\n\n{messages[-1]['content']}<|im_end|>\n"
    assert passed == 2


def test_messages_after_the_last_answer_change_nothing():
    tokenizer, messages = make_tokenizers("bytes")[0], talk(random.Random(4), 2)
    asked = [*messages, {"role": "user", "content": "and?"}]
    for name in ("llama3", "qwen3"):
        source = TEMPLATES[name]["published"]
        assert ours(source, asked, tokenizer) == ours(source, messages, tokenizer)


def test_answers_before_the_first_learned_message_are_read_alone():
    messages = talk(random.Random(5), 3)
    for source in (TEMPLATES["llama3"]["published"], TEMPLATES["llama3"]["marked"]):
        template = ChatTemplate(source, special=TOKENS)
        whole, late = split_turns(template, messages).texts, split_turns(template, messages, first=4).texts
        assert late == ("".join(whole[:5]), *whole[5:])


def test_a_template_that_writes_the_date_writes_the_same_one_tomorrow():
    source = "{{ strftime_now('%d %b %Y') }} " + CHATML
    turns = split_turns(ChatTemplate(source), talk(random.Random(6), 1))
    assert turns.texts[0].startswith("26 Jul 2024 <|im_start|>user")


FAULTS = {
    "deepseekv3": "no answer begins where the model would begin to write it (a template with {% generation %} around",
    "glm4moe": "writes nothing after an answer, so that its end cannot be learned (a template with {% generation %}",
    **dict.fromkeys(("idefics3", "smolvlm"), "leaves out what an answer says (a template for contents that are texts)"),
    "unknown token": "writes <|weird|>, which is no token of the vocabulary (a tokenizer that has it, or the",
    "no mark": "marks no text of the assistant's that could be learned (another template)",
}
OTHERS = {
    "unknown token": CHATML + "<|weird|>",
    "no mark": CHATML + "{% generation %}{% endgeneration %}",
    "refuses the example": "{{ raise_exception('no') }}",
    "chatml": CHATML,
}


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_a_template_that_cannot_teach_is_told_before_any_record(name):
    tokenizer = make_tokenizers("bytes")[0]
    source = OTHERS[name] if name in OTHERS else TEMPLATES[name]["published"]
    spelled = re.findall(r"<[|\uff5c][^<>\s|\uff5c]+[|\uff5c]>", source.replace("<|weird|>", ""))
    tokenizer.backend.add_special_tokens([*dict.fromkeys(spelled)])
    found = find_fault(ChatTemplate(source, special=TOKENS), tokenizer)
    assert found is None if name not in FAULTS else (found or "").startswith(FAULTS[name])


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "messages: have no answer to learn (one of role assistant)"),
        ([{"role": "user", "content": "a"}], "messages: have no answer to learn (one of role assistant)"),
        ([{"role": "assistant"}], "messages[0]: has no content (a text)"),
    ],
)
def test_messages_without_an_answer_are_refused(messages, fault):
    with pytest.raises(ConfigError) as caught:
        split_turns(ChatTemplate(CHATML), messages)
    assert caught.value.faults == [fault]
