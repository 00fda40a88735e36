"""Tell tasks that are YAML files from those that have a name: such a file is a program."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import ConfigError


def is_task_file(name: str) -> bool:
    """Tell whether a task is meant as a YAML file."""
    return name.endswith((".yaml", ".yml")) or "/" in name


def refuse_files(names: Sequence[str], trust: bool) -> None:
    """Raise ConfigError for YAML files that nobody trusts. The harness imports what `!function` names in them, and its
    templates have no sandbox."""
    if files := [] if trust else [name for name in names if is_task_file(name)]:
        raise ConfigError(
            *(f"tasks: {name}: a task's YAML may run any program (--trust says it may)" for name in files)
        )
