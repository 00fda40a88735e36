"""Find the assistant's answers in the text of a conversation: by the marks of the chat template, or by rendering the
conversation's beginnings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.chat.template import EXAMPLE, MARK
from zoo.errors import ConfigError, refuse

if TYPE_CHECKING:
    from zoo.data.chat.template import ChatTemplate, Message
    from zoo.data.tokenizer import Tokenizer

Span = tuple[int, int]

ANSWERS = "assistant"
"""The role whose messages get a loss."""
WOULD = "a template with {% generation %} around the assistant's text"


class Turns(NamedTuple):
    """The text of a conversation, cut into parts without and with a loss in turn; the first and the last have no loss.
    `passed` counts the answers whose place in the text is unknown; they get no loss."""

    texts: tuple[str, ...]
    passed: int


def split_turns(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None = None, first: int = 0
) -> Turns:
    """Render a conversation as transformers' `apply_chat_template` does, and split its text at the assistant's answers.
    Answers before message `first` get no loss.

    A template with `{% generation %}` marks the answers (transformers' `return_assistant_tokens_mask`). With any other,
    an answer follows the generation prompt of the messages before it. Example with ChatML:

        hello → "<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n" | "hello<|im_end|>\\n" | ""

    Raises ConfigError if the template refuses the messages, for an unknown role, and if no answer can be located.
    """
    refuse(template.list_unknown_roles(messages, tools))
    answers = [number for number, each in enumerate(messages) if number >= first and each.get("role") == ANSWERS]
    if not answers:
        raise ConfigError(f"messages: have no answer to learn (one of role {ANSWERS})")
    if template.marks_answers(tools):
        text, spans = find_marked(template, messages, tools, first)
        return Turns(tuple(alternate(text, spans)), 0)
    text, spans = find_by_prefixes(template, messages, tools, answers)
    return Turns(tuple(alternate(text, spans)), len(answers) - len(spans))


def find_fault(template: ChatTemplate, tokenizer: Tokenizer) -> str | None:
    """Describe why a template's conversations cannot be trained on, judging from an example; None if they can.

    A model learns to end an answer from the text that the template writes after it.
    """
    written = template.render_example()
    if written is None:  # the conversations of the data will tell
        return None
    if MARK not in written:
        return "leaves out what an answer says (a template for contents that are texts)"
    if fault := template.find_missing_token(tokenizer):
        return fault
    try:
        learned = split_turns(template, EXAMPLE).texts[1::2]
    except ConfigError as error:
        return error.faults[0].removeprefix("chat template: ")
    if not template.marks_answers() and learned[-1].endswith(MARK):
        return f"writes nothing after an answer, so that its end cannot be learned ({WOULD})"
    return None


def find_marked(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None, first: int
) -> tuple[str, list[Span]]:
    """Render a conversation, and find the spans that the template marks in messages from `first` on. Raises ConfigError
    if it marks no text."""
    whole, *before = template.render_views(messages, [(None, False), *([(first, False)] if first else [])], tools)
    spans = whole.spans[sum(len(each.spans) for each in before) :]
    if not any(end > start for start, end in spans) or any(end > start for (_, end), (start, _) in pairwise(spans)):
        raise ConfigError("chat template: marks no text of the assistant's that could be learned (another template)")
    return whole.text, spans


def find_by_prefixes(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None, answers: Sequence[int]
) -> tuple[str, list[Span]]:
    """Render a conversation up to its last answer, and find the span of each answer. An answer begins after the text of
    the messages before it with the generation prompt, and ends with the text of the messages up to it. Answers that a
    template writes differently once a message follows (Qwen3 drops their reasoning) are left out."""
    views = [view for number in answers for view in ((number, True), (number + 1, False))]
    found = [each.text for each in template.render_views(messages, views, tools)]
    whole, spans = found[-1], []
    for number, before, after in zip(answers, found[::2], found[1::2], strict=True):
        start, end = len(before), find_end(before, after, whole, messages[number].get("content"))
        if after.startswith(before) and end is not None and start >= (spans[-1][1] if spans else 0):
            spans.append((start, end))
    if not spans:
        raise ConfigError(f"chat template: no answer begins where the model would begin to write it ({WOULD})")
    return whole, spans


def find_end(before: str, after: str, whole: str, content: object) -> int | None:
    """Find where an answer with this `content` ends in the `whole` text, in characters. `before` is the text before the
    answer, `after` the text that ends with it. `after` and `whole` may differ only after the answer's end of turn
    (Phi-3 ends a conversation with an end of text); None if they differ earlier."""
    if whole.startswith(after):
        return len(after)
    place = after.rfind(content.strip(), len(before)) if isinstance(content, str) else -1
    if place < 0:
        return None
    common = after[: next((at for at, pair in enumerate(zip(after, whole, strict=False)) if len({*pair}) > 1), None)]
    end = common.rfind("<") if common.rfind("<") > common.rfind(">") else len(common)  # not within a special token
    return end if end > place + len(str(content).strip()) else None


def alternate(text: str, spans: Iterable[Span]) -> Iterable[str]:
    """Cut a text at its spans. Yields the text before the first span, the first span, the text up to the second span,
    and so on."""
    at = 0
    for start, end in spans:
        yield text[at:start]
        yield text[start:end]
        at = end
    yield text[at:]
