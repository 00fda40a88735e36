"""Read a folder's special tokens, and check a tokenizer.json before the package `tokenizers` reads it: its types, and
limits on run time and output size."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from zoo.checkpoint.backtracking import find_slow_part
from zoo.errors import CheckpointError
from zoo.families.described import read_json
from zoo.untrusted.json_file import JsonShape
from zoo.untrusted.printable import quote, shorten

LARGEST = 64 << 20
"""Maximum bytes of a tokenizer.json; the largest published one has 34 MB."""
GROWTH = 256
"""Maximum number of characters that a tokenizer may make of one character. T5's makes 33 of one ligature, the most of
any published tokenizer."""
STEPS = 1_000
"""Maximum number of steps in a part, such as normalisers in a row."""
LARGEST_ID = 2**24
LONGEST_TOKEN = 10_000
"""Maximum characters of a token."""
MOST_ADDED = 2**18
"""Maximum number of tokens added to a vocabulary; a published tokenizer adds 40,000, for images."""


class AddedToken(JsonShape):
    """A token that was added to a vocabulary."""

    id: int
    content: str


class TokenizerJson(JsonShape):
    """The keys of tokenizer.json that Zoo itself reads."""

    model: dict[str, Any]
    added_tokens: Annotated[list[AddedToken], Field(max_length=MOST_ADDED)] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class NamedToken(JsonShape):
    """A special token with its options."""

    content: str


class NamedTemplate(JsonShape):
    """One of several chat templates."""

    name: str
    template: str


class TokenizerConfig(JsonShape):
    """The keys of tokenizer_config.json that Zoo reads."""

    eos_token: str | NamedToken | None = None
    bos_token: str | NamedToken | None = None
    mask_token: str | NamedToken | None = None
    chat_template: str | list[NamedTemplate] | None = None
    split_special_tokens: bool | None = None


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Read the special tokens that a folder's files name, as text: {"eos_token": "</s>", …}."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        stated = read_json(folder / name) if (folder / name).is_file() else {}
        for key, value in stated.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def check_tokenizer(node: Mapping[str, Any], place: str) -> None:
    """Check a tokenizer.json that was validated as TokenizerJson: its ids, the number of its steps, and how much they
    lengthen a text. Raises CheckpointError with the key at fault."""
    _check_ids(node, place)
    growth = 1.0
    for part in PARTS:
        growth = 1.0 if part == "decoder" else growth  # a decoder starts from tokens again
        for number, (key, step) in enumerate(list_steps(node, part)):
            if number >= STEPS:
                raise CheckpointError(f"{place}: {part}: has more than {STEPS:,} steps (fewer)")
            growth *= _measure_growth(step, f"{place}: {key}")
            if growth > GROWTH:
                raise CheckpointError(f"{place}: {key}: makes more than {GROWTH} characters of one (fewer)")


PARTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""The parts of a tokenizer in order of application, and the key under which each part's Sequence lists its steps."""


def list_steps(node: Mapping[str, Any], part: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the steps of a part of a tokenizer.json in order, each with its key; a Sequence is flattened."""
    children = PARTS[part]
    waiting: list[tuple[str, Any]] = [(part, node.get(part))]
    while waiting:
        key, step = waiting.pop()
        inner = step.get(children) if isinstance(step, Mapping) else []
        if isinstance(inner, list):
            waiting += [(f"{key}.{children}[{number}]", each) for number, each in enumerate(inner)][::-1]
        else:
            yield key, step


def _measure_growth(step: Mapping[str, Any], place: str) -> float:
    """Bound the number of characters that a step makes of one character. Raises CheckpointError for a slow or empty
    pattern, and for a malformed table."""
    pattern = step.get("pattern")
    stated = pattern if isinstance(pattern, Mapping) else {}
    regex, plain = stated.get("Regex"), stated.get("String")
    if isinstance(regex, str) and (fault := find_slow_part(regex)):
        raise CheckpointError(f"{place}.pattern: {quote(regex)} may take very long, {fault} (a pattern without that)")
    if step.get("prepend") == "":
        raise CheckpointError(f"{place}.prepend: is an empty text, which `tokenizers` breaks down at (a text)")
    if (measure := MEASURES.get(str(step.get("type")))) is not None:
        try:
            return measure(step)
        except (ValueError, TypeError):  # not base64, not UTF-8
            raise CheckpointError(f"{place}: is no table of SentencePiece's (a whole file)") from None
    content = step.get("content")
    if not isinstance(content, str) or step.get("type") != "Replace":
        return 1.0
    if plain == "":
        raise CheckpointError(f"{place}.pattern: is an empty text, which `tokenizers` breaks down at (a text)")
    return max(1.0, len(content) / len(plain)) if plain else 1.0 + len(content)  # a regex may match empty text anywhere


def _measure_prefix(step: Mapping[str, Any]) -> float:
    return 1.0 + len(step["prepend"]) / 16 if isinstance(step.get("prepend"), str) else 1.0


def _measure_table(step: Mapping[str, Any]) -> float:
    """Find the maximum number of characters that SentencePiece's table puts in place of one. Raises ValueError for a
    malformed table."""
    whole = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
    start = 4 + int.from_bytes(whole[:4], "little") // 4 * 4
    if len(whole) < max(start, 4):
        raise ValueError("too short")
    texts = whole[start:].decode().split("\0")
    return max(1.0, float(max(map(len, texts))))


def _measure_template(step: Mapping[str, Any]) -> float:
    """Count how often a template repeats the text."""
    pieces = [each for each in step.get("single") or () if isinstance(each, Mapping) and "Sequence" in each]
    return max(1.0, float(len(pieces)))


MEASURES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "ByteLevel": lambda step: 2.0,
    "Metaspace": lambda step: 2.0,
    "Prepend": _measure_prefix,
    "Precompiled": _measure_table,
    "TemplateProcessing": _measure_template,
}
"""Upper bounds on how much a step lengthens a text, by the step's type; `Replace` is measured apart."""


def _check_ids(node: Mapping[str, Any], place: str) -> None:
    """Raise CheckpointError for a token's id outside 0 to LARGEST_ID - 1, and for a token longer than LONGEST_TOKEN."""
    vocabulary, added = node["model"].get("vocab"), node.get("added_tokens") or []
    ids = {each["content"]: each["id"] for each in added}
    ids = {**vocabulary, **ids} if isinstance(vocabulary, Mapping) else ids
    listed = vocabulary if isinstance(vocabulary, list) else []  # of pairs of a token and its score
    names = [*ids, *(each[0] for each in listed if isinstance(each, list) and each)]
    for name, number in ids.items():
        if not isinstance(number, int) or not 0 <= number < LARGEST_ID:
            would = f"a number from 0 to {LARGEST_ID - 1:,}"
            raise CheckpointError(f"{place}: the id of {shorten(name, 40)}: is {quote(number)} ({would})")
    long = next((name for name in names if isinstance(name, str) and len(name) > LONGEST_TOKEN), None)
    if long is not None:
        raise CheckpointError(f"{place}: has a token of {len(long):,} characters (at most {LONGEST_TOKEN:,})")
