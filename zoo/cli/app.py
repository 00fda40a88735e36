"""List the verbs of `zoo VERB` with one line each, so that `zoo --help` imports no verb's module."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from zoo.cli.options import read_options
from zoo.errors import name_options, refuse
from zoo.untrusted.printable import quote

LARGEST = 2**63
"""Whole numbers must be from -LARGEST to LARGEST - 1."""

VERBS = {
    "list": "List the packaged models, or those that match some words.",
    "stats": "Compute a model's cost without building it: parameters, FLOPs, cache, memory.",
    "draw": "Draw an architecture: as a figure, by cost, as a strip of layers, or two side by side.",
    "explain": "Explain a config key (model or training), a probe, or a term used in reports.",
    "solve": "Find what fits a GPU or a budget: batch, context, GPUs, a shape.",
    "diff": "Compare two models or two runs: what differs, then costs and results.",
    "gallery": "Write a static site of models, design axes and findings.",
    "new": "Write a model's YAML, complete and commented, to start from.",
    "schema": "Write the JSON Schema of a model's YAML, for editors.",
    "build": "Build a model; show its modules, kernels and memory.",
    "train": "Train a model, resume a run, or sweep over many (-m).",
    "runs": "List the runs in a folder.",
    "experiment": "Compare architectures: named arms, matched and tuned; plan, run, verdict.",
    "report": "Compare an experiment's arms: better, worse, equivalent, inconclusive.",
    "probe": "Measure what an architecture can do: recall, copying, state tracking.",
    "recipes": "List experiments with their verdicts, or run one again.",
    "ladder": "Train one architecture at several sizes, for a scaling law.",
    "fit": "Fit a scaling law to trained models.",
    "predict": "Predict the loss of a model from a scaling law.",
    "inspect": "Look into a trained model: attention, activations, routing, noise.",
    "plot": "Plot the curves of runs in one figure.",
    "generate": "Generate text with the last run, or with a checkpoint.",
    "chat": "Talk with a model that has a chat template.",
    "fill": "Predict the masked tokens of texts with a masked language model.",
    "embed": "Embed texts as vectors.",
    "score": "Label or score texts with a classifier, reranker or reward model.",
    "eval": "Evaluate a model on a text: loss, perplexity, bits per byte.",
    "convert": "Convert a checkpoint to a Hugging Face folder, or from one; to GGUF, ONNX.",
    "family": "Draft the YAML of a new family, and compare it with transformers.",
    "check": "Compare a checkpoint's tensor names and shapes with its architecture.",
    "bench": "Benchmark zoo against other implementations, or check the kernels.",
    "mcp": "Serve costs, drawings and verdicts to an assistant (Model Context Protocol).",
    "skills": "Print what an assistant should know to use these commands (SKILL.md).",
    "doctor": "Show versions, devices, and which kernels this machine can run.",
}

EPILOG = (
    "`zoo COMMAND --help` explains a command. Any command takes --debug, which shows an error's trace, and "
    "--no-verify, which reads checkpoints without comparing their checksums (with `zoo convert` it skips "
    "the comparison with transformers instead)."
)

ELSEWHERE = {
    "resume": " (zoo train --resume RUN)",
    "sweep": " (zoo train -m)",
    "serve": " (zoo convert, then vLLM, say)",
}
"""Hints for commands that other programs have."""

SETTINGS: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}
"""Typer's settings: plain help takes half the time of rich's; errors are printed by `zoo.cli.run`."""


class Verbs(TyperGroup):
    """Import a verb's module when the verb is called. A module has either an `app` (a Typer) or a function `run`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        if cmd_name not in self.commands:
            name = "listing" if cmd_name == "list" else cmd_name  # a module `list` would hide the builtin
            module = importlib.import_module(f"zoo.cli.{name}")
            self.commands[cmd_name] = typer.main.get_command(getattr(module, "app", None) or _single(module.run))
            _check_numbers_of(self.commands[cmd_name])
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            hint = ELSEWHERE.get(args[0]) or name_options(args[0], VERBS)
            raise typer.BadParameter(f"no such command{hint}", ctx=ctx, param_hint=repr(args[0]))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _check_numbers_of(command: Any) -> None:
    """Wrap a command and its subcommands so that they raise ConfigError for numbers that are not finite or exceed 64
    bits."""
    for each in getattr(command, "commands", {}).values():
        _check_numbers_of(each)
    run = command.callback
    if run is None:
        return

    @functools.wraps(run)
    def checked(*args: Any, **given: Any) -> Any:
        refuse(f"{name}: {fault}" for name, value in given.items() for fault in _find_number_faults(value))
        return run(*args, **given)

    command.callback = checked


def _find_number_faults(value: object) -> Iterator[str]:
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, float) and not math.isfinite(each):
            yield f"is {each} (a finite number)"
        elif isinstance(each, int) and not -LARGEST <= each < LARGEST:
            yield f"is {quote(each)} (a whole number of 64 bits)"


class Paneled(TyperCommand):
    """A command whose plain help groups options by panel (`rich_help_panel`), as Typer does only in rich's help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if param.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(param, "rich_help_panel", None) or kind, []).append(record)
        for name, records in panels.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def _single(function: Any) -> typer.Typer:
    app = typer.Typer(add_completion=False, **SETTINGS)
    app.command(cls=Paneled)(read_options(function))
    return app


def _version(wanted: bool) -> None:
    if wanted:
        import zoo

        typer.echo(f"zoo {zoo.__version__}")
        raise typer.Exit


def make_command() -> Any:
    """Build the whole command line as a click command."""
    app = typer.Typer(cls=Verbs, **SETTINGS)

    @app.callback(epilog=EPILOG)
    def zoo(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        """Describe a transformer in YAML, see what it costs, then build, train and run it.

        \b
        Three commands to try:
          zoo list llama --kind decoder      what is packaged
          zoo stats llama3-8b attention=mqa  its cost with another attention
          zoo train model=llama-tiny         some minutes on two CPU cores
        """

    return typer.main.get_command(app)
