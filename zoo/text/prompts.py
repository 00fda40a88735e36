"""Read and check the options of requests, and files with a prompt on each line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, get_args

from zoo.data.chat.template import list_faults
from zoo.errors import ConfigError, name_options, refuse
from zoo.sampling.guide import Kind
from zoo.sampling.options import Sampling
from zoo.untrusted.json_file import NESTED
from zoo.untrusted.printable import quote, shorten

SOURCES = ("prompt", "ids", "messages")
"""A request has exactly one of these keys. `messages` are a conversation, for models with a chat template."""

GUIDES: tuple[Kind, ...] = get_args(Kind)
"""Kinds of grammars: at most one constrains a request."""

FAULTS_SHOWN = 20
MOST_SAMPLES, MOST_LOGPROBS = 128, 20
MOST_TOKENS = 1 << 24
"""The largest `max_new_tokens`: room for all of them is reserved when a text begins."""
LARGEST = 1e30
"""Bound of numbers: far more than any option needs."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a request. `stop_ids` end a text in addition to the model's end-of-text tokens, which `ignore_eos`
    treats as ordinary tokens. `bad_words` are texts; `guide` is a grammar's kind and source. Texts and grammar are
    compiled to tokens later, with the tokenizer."""

    max_new_tokens: int = 256
    n: int = 1
    n_beams: int = 1
    length_penalty: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    bad_words: tuple[str, ...] = ()
    guide: tuple[Kind, Any] | None = None
    adapter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Options:
        """Make options from a user's values, keyed by names from `option_names`. Values that are None are left out.

        Raises ConfigError with one line for each invalid value.
        """
        given = {name: value for name, value in given.items() if value is not None}
        known = option_names()
        faults = [f"{name}: no such option{name_options(name, known)}" for name in given if name not in known]
        own = {name: value for name, value in given.items() if name in CHECKS}
        if not any(isinstance(word, str) for word in _as_tuple(own.get("bad_words", ()))):
            own.pop("bad_words", None)  # given as token ids: goes to `sampling`
        wrong = {name: value for name, value in own.items() if not CHECKS[name][0](value)}
        faults += [f"{name}: is {_show(value)}, not {CHECKS[name][1]}" for name, value in wrong.items()]
        sampling = Sampling()
        try:
            taken = [name for name in given if name in sampling_names() and name not in own]
            sampling = Sampling.checked(**{name: given[name] for name in taken})
        except ConfigError as error:
            faults += [shorten(fault, 300) for fault in error.faults]
        guides = {kind: own.pop(kind) for kind in GUIDES if kind in own}
        if len(guides) > 1:
            faults.append(f"{' and '.join(guides)}: a text follows one grammar (one of these)")
        if guides and own.get("ignore_eos"):
            faults.append("ignore_eos: a grammar's text ends with that token (without one of the two)")
        refuse(faults)
        lists = {name: _as_tuple(own[name]) for name in ("stop", "stop_ids", "bad_words") if name in own}
        return cls(**{**own, **lists, "sampling": sampling, "guide": next(iter(guides.items()), None)})


def _whole(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: type(value) is int and least <= value <= most), f"a whole number from {least} to {most:,}"


def _as_tuple(value: object) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": _whole(1, MOST_TOKENS),
    "n": _whole(1, MOST_SAMPLES),
    "n_beams": _whole(1, MOST_SAMPLES),
    "length_penalty": (lambda value: type(value) in (int, float) and abs(value) < LARGEST, "a finite number"),
    "logprobs": _whole(0, MOST_LOGPROBS),
    "prompt_logprobs": _whole(0, MOST_LOGPROBS),
    "stop": (lambda value: all(map(_is_text, _as_tuple(value))), "a text that is not empty, or a list of such"),
    "bad_words": (
        lambda value: all(map(_is_text, _as_tuple(value))),
        "all texts that are not empty, or all lists of token ids",
    ),
    "stop_ids": (
        lambda value: all(type(each) is int and 0 <= each < 2**31 for each in _as_tuple(value)),
        "a token id, or a list of such",
    ),
    "json_schema": (lambda value: isinstance(value, dict | bool) or _is_text(value), "a JSON schema"),
    "regex": (_is_text, "a regular expression"),
    "grammar": (_is_text, "a grammar of Lark"),
    "adapter": (_is_text, "the name of an adapter"),
    "ignore_eos": (lambda value: type(value) is bool, "true or false"),
}


def _show(value: object) -> str:
    return shorten(repr(value), 60) if isinstance(value, list) and len(value) < 9 else quote(value)


@cache
def sampling_names() -> tuple[str, ...]:
    """List the names of the sampling parameters that a file can state: all but the caller's functions."""
    return tuple(each.name for each in fields(Sampling) if each.name != "process")  # type: ignore[arg-type]


@cache
def option_names() -> tuple[str, ...]:
    return (*(name for name in CHECKS if name != "bad_words"), *sampling_names())


def parse_logit_bias(pairs: Sequence[str]) -> dict[int, float]:
    """Parse `TOKEN=BIAS` pairs of the command line. Raises ConfigError for a malformed pair."""
    bias: dict[int, float] = {}
    for pair in pairs:
        token, _, value = pair.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise ConfigError(f"logit_bias: is {pair!r}, not a token id and a number (42=-1.5)") from None
    return bias


@dataclass(frozen=True)
class Prompt:
    """One line of a file of prompts. `given` has its prompt, ids or messages, and any `id`; `where` names the line."""

    index: int
    where: str
    given: Mapping[str, Any]
    options: Options


Complete = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Adds defaults to the options that a request states."""


def read_lines(text: str, where: str, given: Mapping[str, Any], complete: Complete = dict) -> list[Prompt]:
    """Read prompts, one a line, without empty lines. All have the options `given`, plus defaults from `complete`."""
    options = Options.checked(complete(given))
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1)]
    kept = [(number, line) for number, line in lines if line.strip()]
    return [Prompt(index, f"{where}:{n}", {"prompt": line}, options) for index, (n, line) in enumerate(kept)]


def read_jsonl(text: str, where: str, given: Mapping[str, Any], complete: Complete = dict) -> list[Prompt]:
    """Read prompts from lines of JSON: `prompt`, `ids` or `messages` (with `tools`), an `id`, and any option, which
    overrides those `given`. `complete` adds defaults. Raises ConfigError with all of the file's faults."""
    Options.checked(complete(given))
    found: list[Prompt] = []
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{where}:{number}"
        try:
            found.append(_read_row(line, place, len(found), given, complete))
        except ConfigError as error:
            faults += [f"{place}: {fault}" for fault in error.faults]
        if len(faults) >= FAULTS_SHOWN:
            raise ConfigError(*faults, f"{where}: reading stopped here, there may be more")
    refuse(faults)
    return found


def _read_row(line: str, place: str, index: int, beside: Mapping[str, Any], complete: Complete) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is no JSON, found {shorten(str(error))}") from error
    if not isinstance(row, dict):
        raise ConfigError(f'is no object, found {shorten(line, 40)} ({{"prompt": "…"}}, say)')
    check_depth(row)
    whole = dict(row)
    given = {name: row.pop(name) for name in (*SOURCES, "tools", "id") if name in row}
    faults = check_source(given)
    try:
        json.dumps(whole, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        faults.append("has half of a surrogate pair in it (\\ud83d\\ude42, say, stands for one character)")
    try:
        before = {name: value for name, value in beside.items() if name not in GUIDES or not row.keys() & {*GUIDES}}
        options = Options.checked(complete({**before, **row}))
    except ConfigError as error:
        faults += error.faults
        options = Options()
    refuse(faults)
    return Prompt(index, place, given, options)


def check_depth(row: object) -> None:
    """Raise ConfigError for JSON nested too deep: templates and compilers of grammars recurse into it."""
    level, depth = [row], 0
    while level:
        depth += 1
        if depth > NESTED:
            raise ConfigError(f"is nested more than {NESTED} deep (flatter JSON)")
        level = [each for node in level if isinstance(node, dict | list)
                 for each in (node.values() if isinstance(node, dict) else node)]  # fmt: skip


def _is_id(value: object) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def check_source(given: Mapping[str, Any]) -> list[str]:
    """List the faults of a request's prompt, ids or messages, one line each."""
    stated = [name for name in SOURCES if name in given]
    if len(stated) != 1:
        return [f"has {' and '.join(stated) or 'nothing to continue'} (one of: {', '.join(SOURCES)})"]
    if "prompt" in given and not isinstance(given["prompt"], str):
        return [f"prompt: is {quote(given['prompt'])} (a text)"]
    if "messages" in given:
        return list_faults(given["messages"])
    if "tools" in given:
        return ["tools: are for a conversation (with messages)"]
    ids = given.get("ids")
    if "ids" in given and not (isinstance(ids, Sequence) and ids and all(_is_id(each) for each in ids)):
        return [f"ids: is {shorten(str(ids), 40)} (a list of token ids, one at least)"]
    return []
