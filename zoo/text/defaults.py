"""Read the generation options of a Hugging Face folder's generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError
from zoo.text.prompts import Options

FILE = "generation_config.json"

NAMES = {
    **{name: name for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p")},
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "bad_words_ids": "bad_words",
    "num_beams": "n_beams",
    "length_penalty": "length_penalty",
}
"""transformers' name of an option → Zoo's."""

NEUTRAL = {"top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1, "repetition_penalty": 1, "min_new_tokens": 0}
NEUTRAL |= {"num_beams": 1, "length_penalty": 1}
"""For each option, the value that has no effect."""

DRAWS = ("top_k", "top_p", "min_p", "typical_p")
"""Options without effect in greedy decoding."""

SEARCHES = ("max_new_tokens", "n_beams", "length_penalty")
"""Options of beam search. transformers can also sample beams, which zoo cannot."""

PLAIN = ("max_new_tokens", "n", "n_beams", "length_penalty", "stop", "stop_ids", "ignore_eos", "seed")
"""Options that the user may combine with beam search."""

UNKNOWN = {
    **{"num_beam_groups": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0},
    **{"min_length": 0, "epsilon_cutoff": 0, "eta_cutoff": 0, "encoder_repetition_penalty": 1},
    **{"penalty_alpha": 0, "exponential_decay_length_penalty": None, "sequence_bias": None},
    **{"forced_bos_token_id": None, "forced_eos_token_id": None},
    **{"suppress_tokens": None, "begin_suppress_tokens": None},
}
"""Options of transformers that change the text and that zoo lacks, each with the value that has no effect."""


@dataclass(frozen=True)
class FolderDefaults:
    """Options that a folder states, by zoo's names, and the names of options that it states and zoo lacks."""

    options: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def beside(self, given: Mapping[str, Any]) -> FolderDefaults:
        """Drop the folder's options that the user's options `given` state too, or that conflict with them. The folder's
        greedy decoding is dropped if the user states any of DRAWS. The folder's beam search is dropped if the user
        states an option that beam search lacks (any outside PLAIN); then only `max_new_tokens` stays. If the user asks
        for beam search, only the folder's SEARCHES stay."""
        options = dict(self.options)
        asked = {name for name, value in given.items() if (name, value) not in (("temperature", 0), ("n_beams", 1))}
        if "n_beams" in asked or ("n_beams" in options and not asked <= {*PLAIN}):
            kept = SEARCHES if asked <= {*PLAIN} else ("max_new_tokens",)
            options = {name: value for name, value in options.items() if name in kept}
        if options.get("temperature") == 0 and asked & {*DRAWS}:
            del options["temperature"]
        return FolderDefaults({name: options[name] for name in options if name not in given}, self.missing)

    def describe(self) -> str | None:
        """Describe in one line the options taken, and the missing ones."""
        taken = [f"{name} {_show(value)}" for name, value in self.options.items()]
        parts = [f"takes {', '.join(taken)} (an option that is given goes before it)"] if taken else []
        parts += [f"cannot take {', '.join(self.missing)}"] if self.missing else []
        return f"{FILE}: {'; '.join(parts)}" if parts else None


def read_defaults(folder: Path) -> FolderDefaults:
    """Read the options of a Hugging Face folder; none for a checkpoint of Zoo, or without generation_config.json.

    `do_sample: false` becomes temperature 0, and so does beam search without sampling. Raises ConfigError for invalid
    values.
    """
    from zoo import runs
    from zoo.families.config_types import GenerationFile
    from zoo.families.described import read_json

    file = folder / FILE
    if (folder / runs.ARCHITECTURE).is_file() or not file.is_file():
        return FolderDefaults()
    stated = read_json(file, GenerationFile)
    found = {
        ours: stated[theirs]
        for theirs, ours in NAMES.items()
        if stated.get(theirs) is not None and stated[theirs] != NEUTRAL.get(theirs)
    }
    missing = [name for name, neutral in UNKNOWN.items() if stated.get(name) not in (None, neutral, [])]
    if "n_beams" in found and not stated.get("do_sample"):
        found, without = _take_search(found)
        missing += [*without, *(["early_stopping"] if stated.get("early_stopping") else [])]
    else:
        missing += ["num_beams"] if found.pop("n_beams", None) else []
        found.pop("length_penalty", None)
    if stated.get("do_sample") is False:
        found = {name: value for name, value in found.items() if name not in DRAWS} | {"temperature": 0}
    try:
        Options.checked(found)
    except ConfigError as error:
        raise ConfigError(*(f"{file}: {fault}" for fault in error.faults)) from None
    return FolderDefaults(found, tuple(missing))


def _take_search(found: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Keep the options that beam search has, at temperature 0, and list the names of the options that it lacks.
    Sampling options are dropped silently, as in transformers."""
    without = [name for name in found if name not in (*SEARCHES, *DRAWS, "temperature")]
    return {**{name: value for name, value in found.items() if name in SEARCHES}, "temperature": 0}, without


def _show(value: Any) -> str:
    return str(value) if isinstance(value, int | float) else f"({len(value)})"
