"""Conversations as token ids: those of transformers, one start token, and templates that mean harm."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from support.chat_templates import SPECIAL, TEMPLATES
from support.packaged_specs import one_in
from zoo.data.chat import template as chat
from zoo.data.chat.renderer import Renderer
from zoo.data.chat.template import ChatTemplate
from zoo.data.tokenizer import Tokenizer, make_byte_tokenizer, train_bpe
from zoo.errors import ConfigError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def make_backend() -> Backend:
    """A tokenizer of bytes that knows the special tokens of all templates, and puts <s> before what it is given."""
    backend = make_byte_tokenizer().backend
    backend.add_special_tokens(SPECIAL)
    start = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", start)])
    return backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    make_backend().save(str(made / "tokenizer.json"))
    return made


def with_template(folder: Path, template) -> Path:
    """Write the folder's tokenizer_config.json with this template, as published folders have it."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


WORDS = ["", " ", "hello", "Ünïcode 🙂", "<b>&amp;</b>", "'quoted' \"twice\"", "line\nbreak ", "{{ messages }}", "{% x"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Say what the <weather> is like & so on",
            "parameters": {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]},
        },
    }
]


def conversation(dice: random.Random, *, system: bool, calls: bool) -> list[dict]:
    """A random conversation: user and assistant in turn, perhaps with a system message and a tool's call."""

    def text() -> str:
        return " ".join(dice.choices(WORDS, k=dice.randint(0, 4)))

    messages = [{"role": "system", "content": text()}] if system else []
    for _ in range(dice.randint(0, 3)):
        messages += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        if dice.random() < 0.3:
            messages[-1][dice.choice(["reasoning_content", "thinking", "reasoning"])] = text()
    if calls:
        arguments = {"where": text(), "n": dice.random()}
        call = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        messages += [
            {"role": "user", "content": text()},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": text()},
        ]
        messages[-2][dice.choice(["reasoning_content", "thinking", "reasoning"])] = text()  # why it calls
        return [*messages, {"role": "assistant", "content": text()}] if dice.random() < 0.5 else messages
    return [*messages, {"role": "user", "content": text()}]


def compare(folder: Path, dice: random.Random, start: str | None) -> int:
    """Compare 60 random conversations with transformers; return how many the template has no objection to. Each of
    their texts has the `start` token once."""
    ours, tokenizer, equal = chat.load(folder), Tokenizer.load(folder), 0
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for _ in range(60):
        messages = conversation(dice, system=dice.random() < 0.4, calls=dice.random() < 0.3)
        options = {"tools": dice.choice([None, TOOLS]), "add_generation_prompt": dice.random() < 0.5}
        if dice.random() < 0.3:
            options |= dice.choice([{"enable_thinking": False}, {"tools_in_user_message": False}])
        try:
            expected = theirs.apply_chat_template(messages, return_dict=False, **options)
        except (jinja2.exceptions.TemplateError, TypeError):
            with pytest.raises(ConfigError, match="chat template: "):
                ours.encode(tokenizer, messages, **options)
            continue
        tokenizer.encode("text, in which no special token is spelled")  # what was encoded before makes no difference
        ids = ours.encode(tokenizer, messages, **options)
        assert ids == expected
        assert start is None or ids.count(tokenizer.backend.token_to_id(start)) == 1
        equal += 1
    return equal


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_of_random_conversations_are_those_of_transformers(folder, name):
    with_template(folder, TEMPLATES[name])
    assert compare(folder, random.Random(name), "<s>" if "bos_token" in TEMPLATES[name] else None) >= 15


@pytest.mark.skipif("ZOO_TEMPLATES" not in os.environ, reason="ZOO_TEMPLATES names folders of published tokenizers")
def test_ids_by_published_templates_are_those_of_transformers():
    for place in os.environ["ZOO_TEMPLATES"].split(":"):
        assert compare(Path(place), random.Random(place), None) >= 15


def test_a_template_is_found_where_folders_keep_it(folder, tmp_path):
    asked = [{"role": "user", "content": "hi"}]
    with_template(tmp_path, [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}])
    found = chat.load(tmp_path)
    assert (found.render(asked), found.render(asked, tools=TOOLS)) == ("plain", "tools")
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }} of a file")
    assert chat.load(tmp_path).render(asked) == "<s> of a file"
    (tmp_path / "mine.jinja").write_text("mine {{ messages[0].content }}")
    assert chat.load(tmp_path, str(tmp_path / "mine.jinja")).render(asked) == "mine hi"
    assert chat.load(tmp_path, "chatml").render(asked) == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_a_token_that_is_an_object_in_the_folder_is_its_text_in_the_template(tmp_path):
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "pad_token": None, "chat_template": "{{ bos_token }}!"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat.load(tmp_path).render([{"role": "user", "content": ""}]) == "<s>!"


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (None, r"has none, .*\(--template FILE, or --template chatml, plain\)"),
        ([{"name": "rag", "template": "x"}], "chat_template is no template, found no 'default'"),
        (17, r"chat_template: is 17 \(a text or a list\)"),
    ],
)
def test_a_folder_without_a_template_says_what_would_do(folder, template, fault):
    with pytest.raises(ConfigError, match=fault):
        chat.load(with_template(folder, template))


def test_a_template_that_is_not_there_is_refused_by_name(folder):
    with pytest.raises(ConfigError, match=r"template: there is no file chatmI \(did you mean 'chatml'\?\)"):
        chat.load(folder, "chatmI")


def test_messages_that_are_none_are_refused_all_together():
    messages = [
        {"content": "x"},
        {"role": "user", "content": 3},
        {"role": "assistant"},
        {"role": "user", "content": ""},
    ]
    with pytest.raises(ConfigError) as caught:
        ChatTemplate("x").render(messages)
    assert caught.value.faults == [
        "messages[0]: has no role (system, user or assistant, say)",
        "messages[1].content: is 3 (a text)",
        "messages[2]: has no content (a text)",
    ]
    for none in ([], "hello", {"role": "user"}, None):
        with pytest.raises(ConfigError, match="not a list of messages"):
            ChatTemplate("x").render(none)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ raise_exception('System role not supported') }}", "chat template: System role not supported"),
        ("{% for x in %}", "chat template: line 1: Expected an expression"),
        ("{{ messages[0].content + 1 }}", "chat template: can only concatenate str"),
        ("{{ nothing.at.all }}", "chat template: 'nothing' is undefined"),
    ],
)
def test_an_error_of_the_template_is_one_line(template, fault):
    with pytest.raises(ConfigError) as caught:
        ChatTemplate(template).render([{"role": "user", "content": "x"}])
    assert caught.value.faults[0].startswith(fault)
    assert "\n" not in str(caught.value)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ (messages|map(attribute='__class__')|list)[0].__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set n = namespace() %}{% set n._x = 1 %}",
    "{{ messages.append(1) }}{{ messages }}",
    "{{ dict.__call__.__globals__ }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_walks_out_of_its_sandbox_gets_nothing(template):
    try:
        text = ChatTemplate(template).render([{"role": "user", "content": "x"}])
    except ConfigError:
        return
    assert text == ""  # an attribute of the kind is undefined, which is written as nothing


ENDLESS = {
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "long number": "{{ (7 ** 4000000) | string | length }}",
    "long string": "{{ 'x' * 10 ** 10 }}",
    "doubling": "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "list": "{{ ([0] * 10 ** 9) | length }}",
    "padding": "{{ '%999999999d' | format(1) }}",
    "center": "{{ 'x' | center(10 ** 10) }}",
    "long text": "{% for a in range(99999) %}" + "x" * 999 + "{% endfor %}",
    "lorem": "{{ lipsum(n=100000000) }}",
    "macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion": "{% for m in [[[]]] recursive %}{{ loop([[m]]) }}{% endfor %}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("name", one_in(3, ENDLESS))
def test_a_template_without_end_is_stopped_within_a_second_and_the_next_one_is_served(name):
    def spent() -> float:
        return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

    renderer, before = Renderer(), spent()
    try:
        with pytest.raises(ConfigError, match="chat template: "):
            renderer.render(ENDLESS[name], {})
        assert renderer.render("{{ x }}", {"x": "next"}) == "next"
    finally:
        renderer.close()
    assert spent() - before < 2  # two processes: each its start, the first its half second


def test_a_template_that_takes_too_much_memory_is_told_so():
    with pytest.raises(ConfigError, match="chat template: it took more than 512 MiB of memory"):
        ChatTemplate("{{ ('x' * 600000000) | length }}").render([{"role": "user", "content": "x"}])


def test_the_clock_stops_what_takes_no_time_of_the_processor(monkeypatch):
    monkeypatch.setattr("zoo.data.chat.renderer.PATIENCE", 0.3)
    renderer = Renderer()
    renderer.render("x", {})
    process = renderer._process
    os.kill(process.pid, 19)  # SIGSTOP: it does nothing any more
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="was stopped"):
        renderer.render("x", {})
    assert time.monotonic() - begun < 5
    assert renderer.render("y", {}) == "y"
    assert process.poll() is not None
    renderer.close()


def test_many_threads_get_each_its_own_text():
    renderer, found = Renderer(), {}

    def ask(number: int) -> None:
        found[number] = [renderer.render("{{ n }}-{{ k }}", {"n": number, "k": k}) for k in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    renderer.close()
    assert found == {number: [f"{number}-{k}" for k in range(20)] for number in range(8)}


@pytest.mark.parametrize("end", ["pass", "import os; os.kill(os.getpid(), 9)", "raise SystemExit(3)"])
def test_no_process_is_left_however_the_program_ends(end):
    code = (
        "from zoo.data.chat.renderer import RENDERER\n"
        "assert RENDERER.render('x', {}) == 'x'\n"
        f"print(RENDERER._process.pid, flush=True)\n{end}"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(chat.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    child = Path("/proc") / done.stdout.split()[0]
    deadline = time.monotonic() + 20
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.exists() or "Z" in (child / "stat").read_text().split()[2]


def test_what_ends_an_answer_is_read_off_the_template(folder):
    tokenizer = Tokenizer.load(with_template(folder, ""))
    found = {name: ChatTemplate(TEMPLATES[name], special=TOKENS).find_end(tokenizer) for name in TEMPLATES}

    def ends_in(token: str) -> tuple[list[int], list[str]]:
        return [tokenizer.backend.token_to_id(token)], []

    assert found["chatml"] == found["qwen"] == ends_in("<|im_end|>")
    assert found["llama3"] == ends_in("<|eot_id|>")
    assert found["gemma"] == ends_in("<end_of_turn>")
    assert found["mistral"] == found["loops"] == ends_in("</s>")
    assert ChatTemplate(chat.CHATML).find_end(make_byte_tokenizer()) == ([], ["<|im_end|>"])


def test_the_plain_template_needs_no_token_of_its_own_and_ends_answers_as_texts_end(tmp_path):
    tokenizer = train_bpe(["user: what? assistant: that"] * 3, 300)
    tokenizer.save(tmp_path)
    found = chat.load(tmp_path, "plain", tokenizer)
    asked = [{"role": "user", "content": "what?"}]
    assert found.render(asked) == "user: what?\n\nassistant:"
    answered = found.render([*asked, {"role": "assistant", "content": "that"}], add_generation_prompt=False)
    assert answered == "user: what?\n\nassistant: that<|endoftext|>\n\n"
    assert found.find_end(tokenizer) == ([tokenizer.eos_id], [])
