"""Complete words of the command line for the shell's Tab key, through Typer.

bash splits words at `=` and `@`, so that `attention=m` arrives as three words, and expects completions of the last word
alone; zsh passes whole words.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer


def complete_target(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a packaged model."""
    from zoo.compose import completion

    return completion.complete_target(incomplete)


def complete_name(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of an axis, a choice, a field or a key of the model."""
    from zoo.analysis.grammar_names import list_names

    return [name for name in list_names(incomplete.rpartition(".")[0]) if name.startswith(incomplete)]


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete an override of the model named before it."""
    return _overrides(ctx.params.get("target") or "", incomplete)


def complete_training(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete an override of a training config."""
    return _overrides(None, incomplete)


def complete_evaluation(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete an override of `zoo eval`: of the data and the objective in a training config."""
    return [each for each in _overrides(None, incomplete) if each.startswith(("data", "objective")) or "=" not in each]


def _overrides(target: str | None, incomplete: str) -> list[str]:
    from zoo.compose import completion

    words, word, sent = _line(incomplete)
    typed = [each for each in words if "=" in each and not each.startswith("-")]
    return [each[len(word) - len(sent) :] for each in completion.complete_overrides(target, typed, word)]


def _line(incomplete: str) -> tuple[list[str], str, str]:
    """Read the line being completed: the words before, the word being typed, and its part that the shell completes."""
    if "COMP_WORDS" not in os.environ:
        return os.environ.get("_TYPER_COMPLETE_ARGS", "").split(), incomplete, incomplete
    pieces = os.environ["COMP_WORDS"].split("\n")[: int(os.environ["COMP_CWORD"]) + 1]
    *words, word = join_pieces(pieces) or [""]
    sent = pieces[-1] if pieces and pieces[-1] not in ("=", "@") else ""
    return words, word, sent


def join_pieces(pieces: Sequence[str]) -> list[str]:
    """Join the pieces of words that bash has split at `=` and `@`."""
    words: list[str] = []
    for index, piece in enumerate(pieces):
        glued = index > 1 and (piece in ("=", "@") or pieces[index - 1] in ("=", "@"))
        if glued and words:
            words[-1] += piece
        else:
            words.append(piece)
    return words
