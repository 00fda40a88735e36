"""Exceptions, by who has to act: the user, whose input is wrong (exit code 2), or nobody, as the work itself failed
(1)."""

import difflib
from collections.abc import Iterable
from itertools import islice


class ZooError(Exception):
    """The work failed."""

    exit_code = 1


class LostProcess(ZooError):
    """Another process of the run is gone: it, or what started it, says why."""


class Terminated(KeyboardInterrupt):
    """A run ended after a checkpoint because SIGTERM asked it to, as a scheduler does: nothing failed (exit code 0)."""


class Pruned(KeyboardInterrupt):
    """A run of a search was ended early, as its loss was poor beside those of the others: nothing failed."""

    status = "pruned"


class ConfigError(ZooError):
    """The user's input is wrong. Holds every fault found, one line each: `path: what is wrong, what was found (what
    would do)`."""

    exit_code = 2

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


class FinishedRun(ConfigError):
    """No step is left of the run that was to go on."""


class KernelError(ConfigError):
    """A kernel was forced that cannot do what the architecture asks."""


class CheckpointError(ConfigError):
    """A checkpoint is missing, broken, or of another architecture."""


class FitError(ConfigError):
    """The model does not fit where it was to go."""


COMPARED, LONGEST_WORD = 2_000, 200
"""How many options a word is compared with, and the characters of the longest word: a comparison takes 10 µs."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest option, or nothing when none is close. Of very many options the first ones
    of nearly the same length are compared."""
    if len(word) > LONGEST_WORD:
        return ""
    alike = (each for each in options if len(each) <= 3 * len(word) and len(word) <= 3 * len(each))  # no other is close
    close = difflib.get_close_matches(word, islice(alike, COMPARED), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def short(error: BaseException) -> str:
    """A foreign error on one line: its type and the start of what it says."""
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
