"""Render conversations with a checkpoint's chat template, to prompts and to training text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.checkpoint.tokenizer_file import TokenizerConfig, read_special_tokens
from zoo.data.chat.renderer import RENDERER, RenderedView
from zoo.data.tokenizer import EOS, Tokenizer
from zoo.errors import ConfigError, did_you_mean, refuse
from zoo.families.described import read_json
from zoo.runs import TEMPLATE
from zoo.untrusted.json_file import SETTINGS, read_bytes
from zoo.untrusted.printable import quote

Message = Mapping[str, Any]

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
PLAIN = """\
{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""
NAMED = {"chatml": CHATML, "plain": PLAIN}
"""Built-in templates, for models without one."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message's reasoning is passed: most templates read the first, some the second."""
MARK = "zoo-marks-an-answer"
EXAMPLE = ({"role": "user", "content": "?"}, {"role": "assistant", "content": MARK})
MARKS = re.compile(r"\{%-?\s*generation\b")
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""The roles of published templates."""
SPECIAL = re.compile(r"<[|\uff5c][^<>\s]+[|\uff5c]>|<(?:start|end)_of_turn>")
"""Matches the spelling of special tokens, which no ordinary text contains; DeepSeek's have fullwidth bars."""
DAY = "2024-07-26"
"""The present date that templates write in training data, fixed so that runs are repeatable: Llama 3.1's fallback."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template: messages → the text that the model continues.

    `tool_use` is the template for conversations with tools, if there is a separate one. `special` are the special
    tokens that templates refer to (`bos_token`, …). `fault` says why the template cannot write training text; None if
    it can.
    """

    default: str
    tool_use: str | None = None
    special: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **values: Any,
    ) -> str:
        """Render the text of a conversation, as transformers' `apply_chat_template` does. With `add_generation_prompt`
        the text ends where the answer begins. Further `values` go to the template (`enable_thinking=False`).

        Raises ConfigError for malformed messages, and if the template refuses them or takes too long.
        """
        refuse(list_faults(messages))
        given = {**self.special, **values, "messages": [_complete(message) for message in messages]}
        given |= {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
        return RENDERER.render(self.choose(tools), given)

    def render_views(
        self, messages: Sequence[Message], views: Sequence[tuple[int | None, bool]], tools: Sequence[Any] | None = None
    ) -> list[RenderedView]:
        """Render the beginnings of a conversation for training. Each of the `views` gives a number of leading messages
        (None: all) and add_generation_prompt. The template's present date is DAY. Raises ConfigError as `render`
        does."""
        refuse(list_faults(messages))
        given = {**self.special, "messages": [_complete(message) for message in messages], "tools": tools}
        return RENDERER.render_views(self.choose(tools), {**given, "documents": None}, views, DAY)

    def choose(self, tools: Sequence[Any] | None) -> str:
        """Choose the template for a conversation with these tools."""
        return self.tool_use if tools and self.tool_use is not None else self.default

    def marks_answers(self, tools: Sequence[Any] | None = None) -> bool:
        """Tell whether the template marks the assistant's text with `{% generation %}`."""
        return MARKS.search(self.choose(tools)) is not None

    def list_unknown_roles(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[str]:
        """List a message for each role that is neither in ROLES nor named in the template. Most templates write any
        role, so a misspelt `assistant` would be read as context."""
        source, known = self.choose(tools), f" (one of: {', '.join(ROLES)})"
        return [
            f"messages[{index}].role: is {quote(role)}{did_you_mean(role, ROLES) or known}"
            for index, role in enumerate(message["role"] for message in messages)
            if role not in ROLES and not re.search(rf"""(["']){re.escape(role)}\1""", source)
        ]

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
        """Encode a conversation to token ids; `options` are those of `render`. The tokenizer adds no start token,
        because the template spells it."""
        return tokenizer.encode_rendered(self.render(messages, **options))

    def render_example(self) -> str | None:
        """Render EXAMPLE; None if the template refuses it."""
        try:
            return self.render(EXAMPLE, add_generation_prompt=False)
        except ConfigError:
            return None

    def find_missing_token(self, tokenizer: Tokenizer) -> str | None:
        """Describe a special token that the template writes and the vocabulary lacks; None if there is none. Such a
        token would be read as plain characters."""
        for spelled in SPECIAL.findall(self.render_example() or ""):
            if tokenizer.backend.token_to_id(spelled) is None:
                would = "a tokenizer that has it, or the template plain"
                return f"writes {spelled}, which is no token of the vocabulary ({would})"
        return None

    def find_ending(self) -> str | None:
        """Find the text that the template writes after an answer; None if it refuses the example."""
        _, found, after = (self.render_example() or "").rpartition(MARK)
        return after if found else None

    def find_end(self, tokenizer: Tokenizer) -> tuple[list[int], list[str]]:
        """Find how the template ends an answer. Returns the id of a special token as ([id], []), or a stop string as
        ([], [string]). Both lists are empty if the template refuses the example or writes nothing after its answer;
        then the tokenizer's EOS ends an answer."""
        after = self.find_ending()
        if after is None:
            return [], []
        ids = tokenizer.encode_rendered(after.lstrip())
        if ids and tokenizer.backend.get_added_tokens_decoder().get(ids[0]) is not None:
            return [ids[0]], []
        return [], after.strip().splitlines()[:1]


def load(folder: Path, chosen: str | None = None, tokenizer: Tokenizer | None = None) -> ChatTemplate:
    """Load the template of a checkpoint, or the `chosen` one. Raises ConfigError as `find_chat_template` does, and if
    there is no template or the `tokenizer` lacks special tokens of the chosen one."""
    if (found := find_chat_template(folder, chosen)) is None:
        raise ConfigError(
            f"chat template: {folder} has none, so how a conversation is written for it is not known "
            f"(--template FILE, or --template {', '.join(NAMED)})"
        )
    if chosen is not None and tokenizer is not None and (fault := found.find_missing_token(tokenizer)):
        raise ConfigError(f"template: {fault}")
    return found


def find_chat_template(
    folder: Path | None, chosen: str | None = None, option: str = "--template "
) -> ChatTemplate | None:
    """Find the `chosen` template (a built-in name, or a file), else that of a checkpoint's folder; None if the folder
    has none. Messages name `option`, which chooses. Raises ConfigError for an unknown name or file, and for an
    unreadable template."""
    special = {"eos_token": EOS} if folder is None else read_special_tokens(folder)
    if chosen is not None:
        return ChatTemplate(_read_chosen(chosen, option), special=special)
    if folder is None:
        return None
    file, stated = folder / TEMPLATE, None
    if file.is_file():
        return ChatTemplate(_read_text(file), special=special)
    config = folder / "tokenizer_config.json"
    if config.is_file():
        stated = read_json(config, TokenizerConfig).get("chat_template")
    if stated is None:
        return None
    if isinstance(stated, str):
        return ChatTemplate(stated, special=special)
    named = {each["name"]: each["template"] for each in stated}
    if "default" not in named:
        raise ConfigError(f"{config}: chat_template is no template, found no 'default' (a text, or a list)")
    return ChatTemplate(named["default"], named.get("tool_use"), special)


def _read_chosen(chosen: str, option: str) -> str:
    if chosen in NAMED:
        return NAMED[chosen]
    if not Path(chosen).is_file():
        hint = did_you_mean(chosen, NAMED) or f" (a file, or one of: {', '.join(NAMED)})"
        raise ConfigError(f"{option.strip(' -=')}: there is no file {chosen}{hint}")
    return _read_text(Path(chosen))


def _read_text(file: Path) -> str:
    try:
        return read_bytes(file, SETTINGS).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 (a chat template)") from error


def list_faults(messages: object) -> list[str]:
    """List the faults in a conversation's structure, one line each."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return ["messages: not a list of messages (one at least, each with role and content)"]
    faults = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            faults.append(f"messages[{index}]: has no role (system, user or assistant, say)")
        elif not isinstance(message.get("content"), str | list | None):
            faults.append(f"messages[{index}].content: is {quote(message['content'])} (a text)")
        elif message.get("content") is None and not message.get("tool_calls"):
            faults.append(f"messages[{index}]: has no content (a text)")
    return faults


def _complete(message: Message) -> dict[str, Any]:
    """Copy a message without None values, with its reasoning under both `reasoning_content` and `thinking`."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[key] for key in REASONING if key in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
