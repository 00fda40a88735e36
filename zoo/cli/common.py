"""Define the arguments that several verbs share, and compose the model that they name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zoo.cli.completing import complete_evaluation, complete_override, complete_target
from zoo.cli.options import option, options
from zoo.errors import ConfigError, Terminated

if TYPE_CHECKING:
    from zoo.compose.composing import Composed

ConfigPart = Literal["job", "plain"]
"""The form in which `--cfg` prints a model: as composed, or as a person would write it."""

Fp8 = Literal["tensorwise", "rowwise", "weight_only"]
"""Float8 recipes (`zoo.run.fp8`): operands scaled by tensor or by row, or only weights in float8."""

WeightStorage = Literal["fp16", "bf16", "int8", "int4"]
"""Storage of linear layers' weights (`zoo.run.linear`)."""

Pooling = Literal["mean", "cls", "last", "max", "mean_sqrt_len", "weighted"]
"""How a text's token vectors become one vector."""

TEMPERATURE = 0.8
"""The sampling temperature if neither the command line nor the checkpoint states one."""

Target = Annotated[
    str,
    typer.Argument(
        help="A packaged model from `zoo list`, a YAML, config.json or GGUF file, a folder with a model or a run, or "
        "ORG/NAME on the Hugging Face hub.",
        autocompletion=complete_target,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Hydra overrides: key=value, +key=value, ~key.", autocompletion=complete_override),
]
Evaluated = Annotated[
    Path | None, typer.Argument(help="A checkpoint, a run, or a Hugging Face folder. [default: the last run]")
]
Data = Annotated[
    list[str] | None,
    typer.Argument(
        help="Data overrides, as for `zoo train`: data=jsonl data.path=FILE. [default: the run's validation split]",
        autocompletion=complete_evaluation,
    ),
]
Checkpoint = Annotated[Path | None, typer.Option(help="A checkpoint or run folder. [default: the last run]")]
Device = Annotated[str, typer.Option(help="auto, cuda or cpu.")]
Dtype = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16. [default: as in the checkpoint]")]
Kernel = Annotated[
    str | None, typer.Option(help="The attention kernel (`zoo doctor`). [default: the first that can run]")
]


@options()
class Sampled:
    """Sampling options that all generating verbs share."""

    temperature: float | None = option(
        f"Sampling temperature; 0 is greedy decoding. [default: the checkpoint's, else {TEMPERATURE}]"
    )
    top_k: int | None = option("Sample from the k most likely tokens.")
    top_p: float | None = option("Nucleus sampling: smallest set of top tokens whose total probability reaches p.")
    min_p: float | None = option("Sample from tokens with at least this probability relative to the most likely one.")
    seed: int | None = option("Random seed: the same seed gives the same text. [default: a new one each time]")


def say(line: object) -> None:
    """Print a line to standard error: standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def print_note(line: str) -> None:
    """Print a note on standard error. A note is not an error."""
    say(f"zoo: note: {line}")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Exit with 0 if a SIGTERM ended the run after a checkpoint, so that a scheduler does not count it as failed."""
    try:
        yield
    except Terminated:
        raise typer.Exit(0) from None


def read_arms(texts: Sequence[str]) -> dict[str, str]:
    """Read arms written as `NAME=OVERRIDES`. Raises ConfigError for an arm without a name, and for a name given
    twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, overrides = (part.strip() for part in text.partition("="))
        if not sign or not name:
            raise ConfigError(f"arm: is NAME=OVERRIDES, found {text!r} (--arm 'plain=' is an arm without overrides)")
        if "." in name and overrides and "=" not in overrides:
            raise ConfigError(f"arm: {text!r} has no name (--arm NAME={text})")
        if name in found:
            raise ConfigError(f"arm: {name} is given twice (once, with all of its overrides: --arm '{name}=A=1 B=2')")
        found[name] = overrides
    return found


def keep_memory_on(device: str) -> None:
    """Let the allocator keep freed memory in this process if `device` is a CPU (`zoo.run.machine_memory`)."""
    from zoo.run.builder import pick_device
    from zoo.run.machine_memory import keep_memory

    if pick_device(device).type == "cpu":
        keep_memory()


def read_folder_options(folder: Path, given: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Read the generation options in a checkpoint's folder, and print those that apply in addition to the `given` ones.

    Returns a function that completes a request's options with the folder's, and with a temperature.
    """
    from zoo.text.defaults import read_defaults

    defaults = read_defaults(folder)

    def complete(asked: Mapping[str, Any]) -> dict[str, Any]:
        asked = {name: value for name, value in asked.items() if value is not None}
        whole = {**defaults.beside(asked).options, **asked}
        return {"temperature": TEMPERATURE if whole.get("n_beams", 1) == 1 else 0, **whole}

    stated = {name: value for name, value in given.items() if value is not None}
    if (line := defaults.beside(stated).describe()) is not None:
        print_note(line)
    return complete


def compose_target(target: str, overrides: Sequence[str] | None) -> Composed:
    """Compose the model. Its notes, such as those on legal settings that may be mistakes, are printed to stderr."""
    from zoo.compose.targets import compose_model

    found = compose_model(target, overrides or ())
    for note in found.notes:
        print_note(note)
    return found


def show_config(config: Composed, resolve: bool, part: ConfigPart | None = None) -> None:
    """Print a composed config as YAML. Raises ConfigError for faulty overrides and unresolvable interpolations."""
    from zoo.compose.targets import spec_of_composed, to_plain_yaml, to_yaml

    config.refuse_faults()
    plain = part == "plain"
    if plain:
        spec_of_composed(config)  # raises for an invalid model, which has no plain form
    print(to_plain_yaml(config.cfg, config.inherited) if plain else to_yaml(config.cfg, resolve=resolve), end="")
