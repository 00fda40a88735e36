"""Distinguish tasks in YAML files from named ones: a task's YAML file can run code."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import ConfigError


def is_task_file(name: str) -> bool:
    """Whether a task is given as a file: the name ends in .yaml or .yml, or has a slash."""
    return name.endswith((".yaml", ".yml")) or "/" in name


def refuse_files(names: Sequence[str], trust: bool) -> None:
    """Raise ConfigError for YAML files without `trust`: the harness imports what `!function` names in them, and its
    templates have no sandbox."""
    if files := [] if trust else [name for name in names if is_task_file(name)]:
        raise ConfigError(
            *(f"tasks: {name}: a task's YAML may run any program (--trust says it may)" for name in files)
        )
