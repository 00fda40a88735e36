"""Check a task's YAML before lm-evaluation-harness reads it: data that a stranger wrote, which must name no code.

The harness itself runs what such a file names: `!function` imports Python, a metric that it does not know is a program
of the hub or of a folder, and templates are Jinja's without a sandbox.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import CheckpointError
from zoo.untrusted import check_shape, find_inside, parse_yaml, quote, read_yaml_text, shorten

KNOWN = ("tag:yaml.org,2002:", "!")
"""Tags of plain data, and the one that says that a node has none."""

MOST_FILES = 64


def check_task_file(file: Path) -> None:
    """Check a task's YAML and those that it includes. Raises CheckpointError, with the line, for what names code and
    for a file outside its folder."""
    waiting, seen = [file], set[Path]()
    while waiting:
        if (each := waiting.pop()) in seen:
            continue
        seen.add(each)
        if len(seen) > MOST_FILES:
            raise CheckpointError(f"tasks: {file}: includes more than {MOST_FILES} files (fewer)")
        try:
            waiting += _check_file(each)
        except FileNotFoundError:
            raise CheckpointError(f"tasks: {each}: no such file (a task's YAML)") from None
        except CheckpointError as error:
            raise CheckpointError(*(f"tasks: {fault}" for fault in error.faults)) from error


def _check_file(file: Path) -> list[Path]:
    """Check one file, and list those that it includes."""
    for event in yaml.parse(read_yaml_text(file), yaml.SafeLoader):
        tag = getattr(event, "tag", None)
        if tag is not None and tag != KNOWN[1] and not tag.startswith(KNOWN[0]):
            named = f"{tag} {shorten(getattr(event, 'value', ''), 60)}".strip()
            would = "a task without it, or one of the harness' own by its name"
            raise CheckpointError(f"{file}:{event.start_mark.line + 1}: {named}: would run code ({would})")
    node = check_shape(parse_yaml(file), dict[str, Any], str(file))
    _check_metrics(node, str(file))
    stated = node.get("include") or []
    stated = stated if isinstance(stated, list) else [stated]
    return [find_inside(file.parent, each, f"{file}: include") for each in stated]


def _check_metrics(node: Any, place: str) -> None:
    """Raise CheckpointError for a metric that is none of the harness' own, wherever in a task or a group it stands."""
    below = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    listed = node.get("metric_list") if isinstance(node, dict) else None
    for metric in listed if isinstance(listed, list) else []:
        import lm_eval.api.metrics  # noqa: F401  # pyright: ignore[reportMissingImports]
        from lm_eval.api.registry import metric_registry  # pyright: ignore[reportMissingImports]

        stated = metric if isinstance(metric, dict) else {"metric": metric}
        name = stated.get("metric")
        if stated.get("hf_evaluate") or not isinstance(name, str) or name not in metric_registry:
            would = f"one of: {', '.join(sorted(metric_registry.keys())[:12])}, …"
            raise CheckpointError(f"{place}: metric_list: {quote(name)} is no metric of the harness ({would})")
    for each in below:
        _check_metrics(each, place)


@contextmanager
def sandboxed() -> Iterator[None]:
    """Have the harness render templates in Jinja's sandbox: one that reaches for Python's own is an error."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils  # pyright: ignore[reportMissingImports]

    before = utils.env
    utils.env = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    utils.env.filters |= before.filters
    try:
        yield
    finally:
        utils.env = before
