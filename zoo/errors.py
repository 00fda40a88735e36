"""Define the exceptions. Exit code 2 means that the user's input is wrong, exit code 1 that the work itself failed."""

import difflib
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any


class ZooError(Exception):
    """The work failed."""

    exit_code = 1


class Diverged(ZooError):
    """A loss, a gradient or a weight is no longer finite. In an experiment this is an outcome."""

    status = "diverged"


class LostProcess(ZooError):
    """Another process of the distributed run has ended. That process or the launcher prints the cause."""


class Terminated(KeyboardInterrupt):
    """A run saved a checkpoint and ended on SIGTERM, which a scheduler sends. Nothing failed (exit code 0)."""


class Pruned(KeyboardInterrupt):
    """A run of a hyperparameter search was ended early for its high loss. Nothing failed."""

    status = "pruned"


class ConfigError(ZooError):
    """The user's input is wrong. `faults` has a line for each fault: `path: what is wrong, what was found (a cure)`."""

    exit_code = 2

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


def collect_faults(faults: list[str], read: Callable[[], Any], key: str = "") -> Any:
    """Return the result of `read`, or None after adding its faults to the list. Faults get the prefix `key`: `norm.eps`
    becomes `model.norm.eps`; a fault that names the key already (`model: …`) stays."""
    try:
        return read()
    except ConfigError as error:
        faults += [f"{key}.{fault}" if key and not fault.startswith(f"{key}:") else fault for fault in error.faults]
        return None


def refuse(faults: Iterable[str]) -> None:
    """Raise ConfigError if there are faults."""
    if found := list(faults):
        raise ConfigError(*found)


class FinishedRun(ConfigError):
    """The run to resume has no steps left."""


class KernelError(ConfigError):
    """The named kernel cannot compute this architecture's attention."""


class FitsNoFamily(ConfigError):
    """No published family describes this architecture."""


class CheckpointError(ConfigError):
    """A checkpoint, or another untrusted file, is missing, broken, too large, or of another architecture."""


class FitError(ConfigError):
    """The model does not fit into the memory of its device."""


COMPARED, LONGEST_WORD = 2_000, 200
"""Maximum number of options with which a word is compared (10 µs each), and maximum characters of that word."""


def did_you_mean(word: str, options: Iterable[str], n: int = 1) -> str:
    """Return ` (did you mean 'x'?)` for the `n` closest options, or "" if none is close. Options that begin with the
    word, if it has three characters or more, come first, the shortest before the others. At most COMPARED options of
    similar length are compared."""
    if len(word) > LONGEST_WORD:
        return ""
    similar = (each for each in options if len(each) <= 3 * len(word) and len(word) <= 3 * len(each))
    alike = [*islice(similar, COMPARED)]  # no other is close
    begun = sorted((each for each in alike if len(word) > 2 and each.startswith(word)), key=len)
    found = dict.fromkeys([*begun, *difflib.get_close_matches(word, alike, n=n)])
    close = [f"'{each}'" for each in [*found][:n]]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def name_options(word: str, options: Iterable[str]) -> str:
    """Return the closest option as `did_you_mean` does or, if none is close, all options: ` (one of: a, b)`."""
    known = list(options)
    return did_you_mean(word, known) or f" (one of: {', '.join(known)})"


WORDS = {
    "EOFError": "an end too early",
    "MemoryError": "too little memory",
    "RecursionError": "data nested too deeply",
    "UnicodeDecodeError": "bytes that are no UTF-8",
    "UnpicklingError": "other than tensors, or a damaged file",
}
"""Descriptions of errors whose own text is empty or only useful to programmers, by class name."""


def short(error: BaseException) -> str:
    """Describe another library's error on one line: the first 200 characters of its text. Without a useful text, it is
    described by WORDS, or else by its Python class."""
    name = type(error).__name__
    text = f"no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or str(error)
    if not text or name in ("UnicodeDecodeError", "UnpicklingError"):
        text = WORDS.get(name, name)
    return " ".join(text.split())[:200]
