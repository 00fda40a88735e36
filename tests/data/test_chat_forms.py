"""Forms of chat and instruction data: each as the same conversation, and faults by file, line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.corpora import faults_of
from zoo.data import DataSettings, prepare
from zoo.data.chat.forms import FORMS, Conversations
from zoo.data.chat.template import CHATML, ChatTemplate
from zoo.data.records import SIGNS
from zoo.data.settings import make_paths_absolute
from zoo.errors import ConfigError

SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+3?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "é?"},
    {"role": "assistant", "content": "è"},
]
TEXTS = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n",
    "5<|im_end|>\n",
    "<|im_start|>user\né?<|im_end|>\n<|im_start|>assistant\n",
    "è<|im_end|>\n",
    "",
)
SHAREGPT = [{"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "5"}]
SHAREGPT += [{"from": "human", "value": "é?"}, {"from": "gpt", "value": "è"}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hf"])
@pytest.mark.parametrize(
    ("form", "record", "settings"),
    [
        ("messages", {"messages": SAID}, {}),
        ("messages", {"messages": SAID, "tools": "[]"}, {}),
        ("messages", {"said": SAID}, {"field": "said"}),
        ("sharegpt", {"conversations": SHAREGPT, "system": "Be brief."}, {}),
        ("sharegpt", {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]}, {}),
    ],
)
def test_each_form_is_the_same_conversation(read, kind, form, record, settings):
    assert read(form, record, kind=kind, **settings) == [TEXTS]


def test_a_completion_of_messages_is_learned_and_its_prompt_is_not(read):
    record = {"prompt": SAID[:4], "completion": SAID[4:]}
    assert read("prompt_completion", record) == [("".join(TEXTS[:3]), *TEXTS[3:])]


def test_texts_need_no_template(read):
    named = {"source": "q", "target": "a"}
    assert read("prompt_completion", {"prompt": "2+3=", "completion": "5"}, template=None) == [("2+3=", "5")]
    assert read("prompt_completion", {"q": "2+3=", "a": "5"}, {"q": "x", "a": " "}, **named) == [("2+3=", "5")]
    assert read("prompt_completion", {"prompt": "2+3=", "completion": "5"}, refused="no") == [("2+3=", "5")]
    assert faults_of(lambda: read("messages", {"messages": SAID}, refused="no")) == ["data.template: no"]
    fault = "data.template: messages need one, and the tokenizer has none (plain, chatml, or a file)"
    assert faults_of(lambda: read("messages", {"messages": SAID}, template=None)) == [fault]


def test_alpaca_is_its_published_prompt_and_the_output(read):
    """The prompts of tatsu-lab/stanford_alpaca, train.py."""
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 and 3\n\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nGreet.\n\n### Response:"
    )
    records = [{"instruction": "Add.", "input": "2 and 3", "output": "5"}, {"instruction": "Greet.", "output": "Hi"}]
    asked = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in (with_input, without)]
    expected = [(asked[0], "5<|im_end|>\n", ""), (asked[1], "Hi<|im_end|>\n", "")]
    assert read("alpaca", *records) == expected
    assert read("alpaca", {**records[0]}, {"instruction": "Greet.", "input": None, "output": "Hi"}) == expected


def test_tools_are_a_list_or_its_json_text(read):
    template = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + CHATML
    for tools in (TOOLS, json.dumps(TOOLS)):
        (texts,) = read("messages", {"messages": SAID, "tools": tools}, template=template)
        assert texts[0].startswith("add<|im_start|>")


@pytest.mark.parametrize(
    ("form", "record", "fault"),
    [
        ("messages", {"text": "a"}, " has no field 'messages', found text (data.field=NAME, or a record that has it)"),
        (
            "messages",
            {"messages": "a"},
            ": messages: not a list of messages (one at least, each with role and",
        ),
        ("messages", {"messages": [{"content": "a"}]}, ": messages[0]: has no role (system, user or assistant, say)"),
        ("messages", {"messages": SAID[:2]}, ": messages: have no answer to learn (one of role assistant)"),
        (
            "messages",
            {"messages": SAID, "tools": "{"},
            ': tools: is "{" (a list, or its JSON text)',
        ),
        (
            "prompt_completion",
            {"prompt": "a", "completion": SAID},
            ": prompt and completion are not of one kind, found 'a' and ",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "me", "value": "a"}]},
            ": conversations[0].from: is 'me' (one of:",
        ),
        ("sharegpt", {"conversations": [{"from": "gpt"}]}, ": messages[0]: has no content (a text)"),
        (
            "messages",
            {"messages": [*SAID, {"role": "asistant", "content": "a"}]},
            ": messages[5].role: is 'asistant' (did you mean 'assistant'?)",
        ),
        (
            "prompt_completion",
            {"prompt": [{"role": "me", "content": "a"}], "completion": SAID[2:3]},
            ": messages[0].role: is 'me' (one of: system, developer, user, assistant, tool, function, ipython)",
        ),
        ("alpaca", {"instruction": "a", "output": 3}, ": output: is 3 (a text)"),
        (
            "alpaca",
            {"instruction": "a"},
            " has no field 'output', found instruction (another data.form,",
        ),
        ("messages", {"messages": [*SAID[:1], SAID[0], SAID[2]]}, ": chat template: two of them"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_by_its_line(read, tmp_path, form, record, fault):
    template = (
        "{% if messages|length > 1 and messages[1].role == 'system' %}{{ raise_exception('two of them') }}{% endif %}"
        + CHATML
    )
    good = {"messages": SAID, "conversations": SHAREGPT, "instruction": "a", "output": "b"}
    good |= {"prompt": "a", "completion": "b"}
    (found,) = faults_of(lambda: read(form, good, record, template=template))
    start = f"data.path: {tmp_path / 'records.jsonl'}, line 2{fault}"
    assert found.replace("'", '"').startswith(start.replace("'", '"'))


def test_a_role_that_the_template_names_is_no_fault(read):
    said = [{"role": "critic", "content": "a"}, SAID[2]]
    assert len(faults_of(lambda: read("messages", {"messages": said}))) == 1
    named = CHATML + "{% if messages[0].role == 'critic' %}{% endif %}"
    ((asked, *_),) = read("messages", {"messages": said}, template=named)
    assert asked == "<|im_start|>critic\na<|im_end|>\n<|im_start|>assistant\n"


def test_a_syntax_error_of_the_template_is_told_once_and_not_for_each_record(read):
    bad = "{% for m in messages %}{{ m.content }{% endfor %}"
    records = [{"messages": SAID}] * 12
    assert faults_of(lambda: read("messages", *records, template=bad)) == ["data.template: line 1: unexpected '}'"]
    refusing = "{{ raise_exception('no') }}"  # which may be one record's fault
    assert len(faults_of(lambda: read("messages", *records, template=refusing))) > 2


@pytest.mark.parametrize(
    ("form", "empty", "full"),
    [
        ("messages", {"messages": [SAID[1], {"role": "assistant", "content": " "}]}, {"messages": SAID}),
        (
            "prompt_completion",
            {"prompt": SAID[:4], "completion": [{"role": "assistant", "content": ""}]},
            {"prompt": SAID[:4], "completion": SAID[4:]},
        ),
        ("prompt_completion", {"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "b"}),
        ("alpaca", {"instruction": "a", "output": ""}, {"instruction": "a", "output": "b"}),
    ],
)
def test_conversations_with_empty_answers_are_left_out_and_counted(tmp_path, form, empty, full):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in [full, empty, full, empty, full]))
    found = DataSettings.read({"kind": "jsonl", "path": str(file), "form": form}).open(ChatTemplate(CHATML))
    for _ in range(2):  # counted anew by each reading
        assert len(list(found)) == 3
        assert isinstance(found, Conversations)
        (line,) = found.describe_passed()
        assert line == "data: 2 of 5 conversations are left out, as their answers are empty and teach nothing"


@pytest.mark.parametrize(("after", "told"), [("\\n", 1), ("{{ eos_token }}\\n", 0)])
def test_a_template_with_white_space_alone_after_an_answer_is_told(tmp_path, after, told):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": SAID}) + "\n")
    written = "{% for m in messages %}{{ m.role + ': ' + m.content }}" + after + "{% endfor %}"
    template = ChatTemplate(written.replace("\\n", "{{ '\\n' }}"), special={"eos_token": "</s>"})
    found = DataSettings.read({"kind": "jsonl", "path": str(file), "form": "messages"}).open(template)
    assert len(list(found)) == 1
    assert isinstance(found, Conversations)
    assert len([line for line in found.describe_passed() if "at which generation does not stop" in line]) == told


@pytest.mark.parametrize("label", [True, False])
def test_answers_of_one_label_alone_are_told(tmp_path, label):
    file = tmp_path / "a.jsonl"
    judged = [{"prompt": "a", "completion": each, "label": label} for each in "bcd"]
    for records, count in ((judged, 1), ([*judged, {**judged[0], "label": not label}], 0)):
        file.write_text("".join(json.dumps(each) + "\n" for each in records))
        found = DataSettings.read({"kind": "jsonl", "path": str(file), "form": "unpaired"}).open(ChatTemplate(CHATML))
        assert len(list(found)) == len(records)
        lines = list(found.describe_passed())
        assert len(lines) == count
        given, lacking = str(label).lower(), str(not label).lower()
        told = f"data: all 3 answers have label {given}, and nothing says what is worse or better (records with label "
        assert lines in ([], [f"{told}{lacking} too)"])


def test_a_misspelt_role_beside_empty_answers_is_a_fault(read):
    said = [SAID[1], {"role": "asistant", "content": "5"}, SAID[1], {"role": "assistant", "content": ""}]
    (fault,) = faults_of(lambda: read("messages", {"messages": SAID}, {"messages": said}))
    assert fault.endswith("records.jsonl, line 2: messages[1].role: is 'asistant' (did you mean 'assistant'?)")


def test_a_call_of_a_tool_is_an_answer_without_content(read):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    assert len(read("messages", {"messages": [SAID[1], call]})) == 1


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        (
            {"form": "ShareGPT"},
            "data.form: must be 'messages', 'prompt_completion', 'sharegpt', 'alpaca', 'preference' or 'unpaired', "
            "found 'ShareGPT' (did you mean 'sharegpt'?)",
        ),
        (
            {"form": "chat"},
            "data.form: must be 'messages', 'prompt_completion', 'sharegpt', 'alpaca', 'preference' or 'unpaired', "
            "found 'chat'",
        ),
        (
            {"form": "alpaca", "field": "text"},
            "data.form: alpaca has no such field to name, found field: text (field: null)",
        ),
        (
            {"form": "messages", "documents": True},
            "data.form: conversations are kept apart always, found documents: true (documents: false)",
        ),
        (
            {"template": "chatml"},
            "data.template: is of conversations, and the records have no data.form, found 'chatml' (null, or "
            "data.form=messages)",
        ),
        (
            {"packing": False},
            "data.packing: is of conversations, and the records have no data.form, found False (null, or "
            "data.form=messages)",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_told(node, fault):
    (found,) = faults_of(lambda: DataSettings.read({"kind": "jsonl", "path": "a.jsonl", **node}))
    assert found.startswith(fault)


def test_the_sources_of_a_mix_all_have_a_form_and_one_template():
    source = {"kind": "jsonl", "path": "a.jsonl", "weight": 1}
    chat = {**source, "form": "messages"}
    mixed = {"kind": "mix", "of": {"a": chat, "b": {**chat, "form": "alpaca"}}, "template": "chatml", "packing": False}
    data = DataSettings.read(mixed)
    assert data.content == "conversations" and not data.apart and data.template == "chatml"  # type: ignore[attr-defined]
    faults = faults_of(lambda: DataSettings.read({"kind": "mix", "of": {"a": chat, "b": source}}))
    assert faults == ["data.of: sources give one thing, found conversations in a, text in b (one thing for all)"]
    faults = faults_of(lambda: DataSettings.read({"kind": "mix", "of": {"a": {**chat, "template": "chatml"}}}))
    assert faults == ["data.of.a.template: a mix has one for all of its sources, found one here (data.template)"]


def test_a_template_is_a_name_or_a_path_that_becomes_absolute():
    named, path = {"template": "chatml"}, {"template": "x.jinja"}
    make_paths_absolute(named)
    make_paths_absolute(path)
    assert (named, path) == ({"template": "chatml"}, {"template": str(Path("x.jinja").absolute())})


def test_a_mix_that_lacks_a_template_is_told_where_it_has_one(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": SAID}) + "\n")
    source = {"kind": "jsonl", "path": str(tmp_path / "a.jsonl"), "weight": 1, "form": "messages"}
    data = DataSettings.read({"kind": "mix", "of": {"a": source}, "tokenizer": {"kind": "byte"}})
    fault = "data.template: messages need one, and the tokenizer has none (plain, chatml, or a file)"
    assert faults_of(lambda: prepare(data)) == [fault]


def test_records_of_a_form_that_is_not_named_are_told_its_name(tmp_path):
    for form in (each for each in FORMS if each != "unpaired"):  # a label is a sign of a class as well
        sign = next(name for name, named in SIGNS.items() if named == form)
        (tmp_path / "a.jsonl").write_text(json.dumps({sign: "x"}) + "\n")
        node = {"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}
        with pytest.raises(
            ConfigError, match=f"has no field 'text', found {sign} \\(data.form={form}, data.field=NAME"
        ):
            list(DataSettings.read(node).open())
