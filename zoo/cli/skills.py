"""`zoo skills`: print a skill for coding assistants, written from the help of the commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

from zoo.cli.app import EPILOG, VERBS, make_command

DESCRIPTION = (
    "Use for questions on the parameters, FLOPs, KV cache or memory of a transformer, on what an architecture changes "
    "and whether it is better, and to build, train, evaluate or convert one."
)


def run() -> None:
    """Print a skill for coding assistants: SKILL.md with its front matter, made of the help of every command.

    \b
    Example:
      zoo skills > .claude/skills/zoo/SKILL.md
    """
    print("\n".join(write_skill()))


def write_skill() -> Iterator[str]:
    """Write the lines of SKILL.md."""
    import zoo.cli
    from zoo.grammar.vocabulary import list_axes
    from zoo.paths import list_conf

    whole = make_command()
    first, _, rest = _clean(whole.help).partition("\n")
    yield from ("---", "name: zoo", f"description: {first} {DESCRIPTION}", "---", "", "# zoo", "", first, rest)
    yield from ("", EPILOG, "", f"Exit codes: {(inspect.getdoc(zoo.cli.main) or '').partition('exit: ')[2]}")
    yield from ("Errors are one line each on standard error, with the key at fault and what would do.", "")
    yield from (
        "## Choices",
        "",
        "`AXIS=CHOICE` is an override of any model; `zoo explain AXIS.CHOICE` lists its fields.",
        "",
    )
    yield from (f"- {axis}: {', '.join(words)}" for axis in list_axes() if (words := list_conf(axis)))
    yield from ("", "## Commands", "")
    for name, short in VERBS.items():
        yield from _describe(whole.get_command(None, name), f"zoo {name}", short)


def _describe(command: Any, path: str, short: str) -> Iterator[str]:
    """Write a command's usage and help, and those of its subcommands."""
    usage = " ".join(command.collect_usage_pieces(typer.Context(command, info_name=path)))
    yield from (f"### {path}", "", f"`{path} {usage}`", "", _clean(command.help) or short, "")
    for name, each in getattr(command, "commands", {}).items():
        yield from _describe(each, f"{path} {name}", each.short_help or "")


def _clean(text: str | None) -> str:
    """Remove click's marks of verbatim paragraphs from a help text, and write these paragraphs' lines as code."""
    parts = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(_as_code(part) if part.startswith("\b") else part for part in parts).strip()


def _as_code(part: str) -> str:
    title, *lines = part.removeprefix("\b").strip("\n").split("\n")
    return "\n".join([title, "", *(f"    {re.sub('^  ', '', line)}" for line in lines)])
