"""Read the published formats of chat and instruction data as conversations: messages, ShareGPT, Alpaca, preferences.

An error names the file and line of its record.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.chat.renderer import BrokenTemplate
from zoo.data.chat.template import REASONING, ChatTemplate, list_faults
from zoo.data.chat.turns import ANSWERS, split_turns
from zoo.data.corpus import Document
from zoo.data.records import Faults, RecordSource, has_fields, is_text
from zoo.errors import ConfigError
from zoo.untrusted.printable import quote

if TYPE_CHECKING:
    from zoo.data.chat.template import Message

SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), ANSWERS),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Maps the values of ShareGPT's `from` to roles."""

SAYING = ("content", "tool_calls", *REASONING)
"""The keys of a message that hold its text, tool calls or reasoning."""

ALPACA = """\
Below is an instruction that describes a task{}. Write a response that appropriately completes the request.

### Instruction:
{}

{}### Response:"""
"""The prompt of Stanford Alpaca (Taori et al., 2023)."""


class Dialogue(NamedTuple):
    """The messages and the tools of a record. Only answers from message number `first` on get a loss."""

    messages: list[Message]
    tools: list[Any] | None = None
    first: int = 0


Pair = tuple[str, str]
"""A prompt and its completion, both plain text: no template renders them."""


class JudgedAnswers(NamedTuple):
    """A better and a worse answer to a prompt, each a conversation that ends with the answer. A record that judges a
    single answer has None for the other."""

    chosen: Dialogue | Pair | None
    rejected: Dialogue | Pair | None


Report = Callable[[str], object]
"""Called with the message on a faulty record."""


@dataclass(frozen=True)
class Form:
    """A format of records: its required fields `columns`, and its `optional` fields. `named` lists the settings that
    rename the first columns. `read` makes a conversation of a record's values, or reports a fault and returns None."""

    columns: tuple[str, ...]
    read: Callable[[list[Any], Mapping[str, Any], Report], Dialogue | Pair | JudgedAnswers | None]
    named: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    content: str = "conversations"
    """The kind of content (`zoo.data.settings.DataSettings.content`)."""


def read_messages(values: list[Any], record: Mapping[str, Any], report: Report) -> Dialogue | None:
    """Read `messages` (each with role and content) and `tools` (a list, or its JSON text)."""
    if faults := list_faults(values[0]):
        report(faults[0])
        return None
    tools = record.get("tools") or None
    if isinstance(tools, str):
        with suppress(ValueError):
            tools = json.loads(tools)
    if tools is not None and not isinstance(tools, list):
        report(f"tools: is {quote(tools)} (a list, or its JSON text)")
        return None
    return Dialogue(values[0], tools or None)


def read_prompt_completion(values: list[Any], record: Mapping[str, Any], report: Report) -> Dialogue | Pair | None:
    """Read a prompt and its completion: two texts, or two lists of messages."""
    prompt, completion = values
    return continue_prompt(prompt, completion, "completion", record, report)


def continue_prompt(
    prompt: Any, answer: Any, name: str, record: Mapping[str, Any], report: Report
) -> Dialogue | Pair | None:
    """Make a conversation of a prompt and its answer, the value of the field `name`: two texts, or two lists of
    messages."""
    if isinstance(prompt, str) and isinstance(answer, str):
        return (prompt, answer)
    if not (isinstance(prompt, list) and isinstance(answer, list)):
        found = f"found {quote(prompt)} and {quote(answer)}"
        report(f"prompt and {name} are not of one kind, {found} (two texts, or two lists of messages)")
        return None
    read = read_messages([prompt + answer], record, report)
    return None if read is None else read._replace(first=len(prompt))


def read_preference(values: list[Any], record: Mapping[str, Any], report: Report) -> JudgedAnswers | None:
    """Read a `prompt` with a `chosen` and a `rejected` answer: texts, or lists of messages. Without a prompt, the
    common beginning of both answers is the prompt (TRL's implicit prompt)."""
    prompt, (chosen, rejected) = record.get("prompt") or None, values
    if chosen == rejected:
        report(f"chosen and rejected are the same, found {quote(chosen)} (two answers)")
        return None
    if prompt is None and any(isinstance(chosen, kind) and isinstance(rejected, kind) for kind in (str, list)):
        pairs = zip(chosen, rejected, strict=False)
        same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
        same -= chosen[same - 1 : same] == " "  # words begin with their space
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    better = answer_prompt(prompt, "chosen", chosen, record, report)
    worse = None if better is None else answer_prompt(prompt, "rejected", rejected, record, report)
    return None if worse is None else JudgedAnswers(better, worse)


def read_unpaired(values: list[Any], record: Mapping[str, Any], report: Report) -> JudgedAnswers | None:
    """Read a prompt, its completion and a `label`: whether the completion is a good one (Ethayarajh et al., 2024)."""
    prompt, completion, label = values
    if not isinstance(label, bool):
        report(f"label: is {quote(label)} (true or false)")
        return None
    read = answer_prompt(prompt, "completion", completion, record, report)
    return None if read is None else JudgedAnswers(read, None) if label else JudgedAnswers(None, read)


def answer_prompt(
    prompt: Any, name: str, answer: Any, record: Mapping[str, Any], report: Report
) -> Dialogue | Pair | None:
    """Make a conversation of a prompt and an answer, the value of the field `name`. An empty answer is a fault."""
    said = [each for each in (answer if isinstance(answer, list) else [{"content": answer}]) if each]
    if all(
        isinstance(each, Mapping) and not (str(each.get("content") or "").strip() or "tool_calls" in each)
        for each in said
    ):
        report(f"{name}: says nothing after the prompt, found {quote(answer)} (an answer)")
        return None
    return continue_prompt(prompt, answer, name, record, report)


def read_sharegpt(values: list[Any], record: Mapping[str, Any], report: Report) -> Dialogue | None:
    """Read ShareGPT's `conversations` (each with `from` and `value`). A field `system` becomes the first message."""
    messages: list[Message] = []
    if isinstance(system := record.get("system"), str) and system:
        messages.append({"role": "system", "content": system})
    for number, each in enumerate(values[0] if isinstance(values[0], list) else []):
        said = each.get("from") if isinstance(each, Mapping) else None
        if said not in SHAREGPT:
            report(f"conversations[{number}].from: is {quote(said)} (one of: {', '.join(SHAREGPT)})")
            return None
        messages.append({"role": SHAREGPT[said], "content": each.get("value")})
    return read_messages([messages], record, report)


def read_alpaca(values: list[Any], record: Mapping[str, Any], report: Report) -> Dialogue | None:
    """Read Alpaca's `instruction`, optional `input` and `output`: a user message in Alpaca's prompt, and its answer."""
    instruction, output = values
    given = record.get("input") or ""
    for name, text in (("instruction", instruction), ("input", given), ("output", output)):
        if not isinstance(text, str):
            report(f"{name}: is {quote(text)} (a text)")
            return None
    more = ", paired with an input that provides further context" if given else ""
    prompt = ALPACA.format(more, instruction, f"### Input:\n{given}\n\n" if given else "")
    return Dialogue([{"role": "user", "content": prompt}, {"role": ANSWERS, "content": output}])


FORMS = {
    "messages": Form(("messages",), read_messages, ("field",), ("tools",)),
    "prompt_completion": Form(("prompt", "completion"), read_prompt_completion, ("source", "target"), ("tools",)),
    "sharegpt": Form(("conversations",), read_sharegpt, ("field",), ("system", "tools")),
    "alpaca": Form(("instruction", "output"), read_alpaca, (), ("input",)),
    "preference": Form(("chosen", "rejected"), read_preference, (), ("prompt", "tools"), "preferences"),
    "unpaired": Form(("prompt", "completion", "label"), read_unpaired, (), ("tools",), "judgements"),
}


@dataclass
class Conversations:
    """A source of records read as conversations. A document has the texts of a prompt and its completion, or those of
    `Turns`; a document of two answers to compare has two conversations (`join_answers`)."""

    source: RecordSource
    form: Form
    template: ChatTemplate | None
    """None if the tokenizer's folder has no template; pairs of plain texts need none."""
    keys: str
    counts: Counter[str] = field(default_factory=Counter)
    """Counts of the last pass: `records`; records with empty answers (`silent`); conversations `rendered` by the
    template; answers that could not be located (`passed`) and conversations with such answers (`have_passed`); `chosen`
    and `rejected` answers."""

    @property
    def n_bytes(self) -> int:
        return self.source.n_bytes

    def __iter__(self) -> Iterator[Document]:
        """Yield a document for each record. Raises ConfigError with a line for each bad record, or if no record is
        usable."""
        self.counts.clear()
        return self.source.list_documents(self.render)

    def render(self, record: Mapping[str, Any], where: str, faults: Faults) -> tuple[str, ...] | None:
        """Return the texts of a record, and count it; None if its answers are empty, or if it has a fault, which is
        added to `faults`. Raises ConfigError if the template cannot render any record."""
        columns = self.source.columns
        self.counts["records"] += 1
        if not has_fields(record, columns, self.keys, where, faults):
            return None
        report = partial(self.report, where, faults)
        read = self.form.read([record[column] for column in columns], record, report)
        if read is None:
            return None
        if not isinstance(read, JudgedAnswers):
            if self.says_nothing(read):
                self.counts["silent"] += 1
                return None
            return self.write(read, columns, where, faults)
        self.counts["chosen"] += read.chosen is not None
        self.counts["rejected"] += read.rejected is not None
        names = [("prompt", name) for name in columns[:2]] if read.chosen and read.rejected else [columns[:2]] * 2
        texts = [each and self.write(each, name, where, faults) for each, name in zip(read, names, strict=True)]
        lacks = any(each and not text for each, text in zip(read, texts, strict=True))
        return None if lacks else join_answers(texts[0] or (), texts[1] or ())

    def says_nothing(self, read: Dialogue | Pair) -> bool:
        """Whether all answers with a loss are empty: no content, tool call or reasoning. False for a record with an
        unknown role, which `write` reports."""
        if not isinstance(read, Dialogue):
            return not read[1].strip()
        answers = [each for each in read.messages[read.first :] if each["role"] == ANSWERS]
        if not answers or any(str(each.get(key) or "").strip() for each in answers for key in SAYING):
            return False
        return not (self.template and self.template.list_unknown_roles(read.messages, read.tools))

    def write(self, read: Dialogue | Pair, names: Sequence[str], where: str, faults: Faults) -> tuple[str, ...] | None:
        """Return the texts of a conversation that was read from the fields `names`; None if it has a fault. Raises
        ConfigError for a missing or broken template."""
        if not isinstance(read, Dialogue):
            return read if all(map(is_text, read, names, (where,) * 2, (faults,) * 2)) else None
        report = partial(self.report, where, faults)
        fault = "messages need one, and the tokenizer has none (plain, chatml, or a file)"
        if self.template is None or (fault := self.template.fault):
            raise ConfigError(f"data.template: {fault}")
        try:
            turns = split_turns(self.template, *read)
        except BrokenTemplate as error:
            raise ConfigError(f"data.template: {error.faults[0].removeprefix('chat template: ')}") from error
        except ConfigError as error:
            report(error.faults[0])
            return None
        self.counts["rendered"] += 1
        self.counts["passed"] += turns.passed
        self.counts["have_passed"] += turns.passed > 0
        return turns.texts if all(is_text(text, names[0], where, faults) for text in turns.texts) else None

    @staticmethod
    def report(where: str, faults: Faults, fault: str) -> None:
        """Add a fault of the record at `where`."""
        faults.add(f"{where}: {fault}")

    def describe_passed(self) -> Iterator[str]:
        """Yield a warning if all answers have the same label, if no text to stop at follows an answer, if answers are
        empty, and if answers get no loss."""
        good, bad = self.counts["chosen"], self.counts["rejected"]
        if bool(good) != bool(bad):
            stated, lacking = ("true", "false") if good else ("false", "true")
            found = f"all {good + bad:,} answers have label {stated}, and nothing says what is worse or better"
            yield f"data: {found} (records with label {lacking} too)"
        ending = self.template.find_ending() if self.template and self.counts["rendered"] else None
        if ending is not None and not ending.strip():
            found = "the template writes only white space after an answer, at which generation does not stop"
            yield f"data: {found} (data.template: one with {{{{ eos_token }}}} there)"
        if silent := self.counts["silent"]:
            found = f"{silent:,} of {self.counts['records']:,} conversations are left out"
            yield f"data: {found}, as their answers are empty and teach nothing"
        if passed := self.counts["passed"]:
            found = f"{passed:,} answers in {self.counts['have_passed']:,} conversations"
            why = "the template writes them otherwise once a message follows"
            yield f"data: {found} are read and not learned, as {why} (data.template: one with {{% generation %}})"


def join_answers(chosen: Sequence[str], rejected: Sequence[str]) -> tuple[str, ...]:
    """Join the texts of two conversations into one document, half each. Both halves are padded with empty texts to the
    same even length, so that texts without and with a loss still alternate."""
    half = max(len(chosen), len(rejected)) + 1 & ~1
    return tuple(text for each in (chosen, rejected) for text in (*each, *[""] * (half - len(each))))
