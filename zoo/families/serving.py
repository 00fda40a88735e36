"""Look up which serving engines list an architecture: conf/serving.yaml, every list with its source."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo.paths import read_conf

WAYS = ("text", "transformers", "pooling")
"""Ways in which an engine runs an architecture. For each, an engine has a list of architectures; if several lists have
an architecture, the first counts."""

REMARKS = {"text": "", "transformers": " (through transformers)", "pooling": " (pooling)"}


@dataclass(frozen=True, kw_only=True)
class ServingEngine:
    """A serving engine at one version. `ways` maps each architecture that it lists to one of WAYS."""

    title: str
    version: str
    source: str
    checked: str
    ways: Mapping[str, str]


@functools.cache
def read_engines() -> tuple[ServingEngine, ...]:
    node = read_conf("serving")
    engines = []
    for body in node.values():
        ways = {name: way for way in reversed(WAYS) for name in body.pop(way)}
        engines.append(ServingEngine(**{key: str(value) for key, value in body.items()}, ways=ways))
    return tuple(engines)


def describe_serving(architecture: str) -> str:
    """Say which engines serve an architecture: "vLLM serves GPT2LMHeadModel; TensorRT-LLM does not list it"."""
    engines = read_engines()
    serving = [each.title + REMARKS[each.ways[architecture]] for each in engines if architecture in each.ways]
    others = [each.title for each in engines if architecture not in each.ways]
    if not serving:
        return f"{_join_names(others)} {_agree(others, 'does not', 'do not')} list {architecture}"
    served = f"{_join_names(serving)} {_agree(serving, 'serves', 'serve')} {architecture}"
    return f"{served}; {_join_names(others)} {_agree(others, 'does not', 'do not')} list it" if others else served


def _agree(names: Sequence[str], one: str, many: str) -> str:
    return one if len(names) == 1 else many


def _join_names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
