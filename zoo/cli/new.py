"""`zoo new`: write a model's YAML, complete and commented, to start from."""

from __future__ import annotations

from pathlib import Path

from zoo.cli.common import Overrides
from zoo.cli.completing import complete_target
from zoo.cli.options import argument, option
from zoo.disk import write_text
from zoo.errors import ConfigError


def run(
    file: Path | None = argument("The file to write: mine.yaml."),
    overrides: Overrides = None,
    like: str = option(
        "The model to start from.", default="llama-tiny", metavar="MODEL", autocompletion=complete_target
    ),
    parts: str | None = option("Components to use, from any axis: moe,mla.", "--with", metavar="CHOICES"),
    size: str | None = option("Approximate number of parameters: 10M, 1B.", metavar="NUMBER"),
    tour: Path | None = option("Write twelve models instead, from a Llama to a hybrid with experts.", metavar="FOLDER"),
) -> None:
    """Write a model's YAML file, complete and commented, as a starting point.

    \b
    Examples:
      zoo new mine.yaml
      zoo new small.yaml --like llama3-8b --size 50M
      zoo new mix.yaml --with moe,mla n_layers=6
      zoo new --tour tour
    """
    from zoo.analysis.model_file import TOUR, write_model
    from zoo.cli.setup import read_amount

    if tour is not None:
        if file is not None or overrides or parts or size:
            raise ConfigError("tour: writes models of its own (a folder, and no other option)")
        texts = {
            tour / f"{stop.name}.yaml": write_model(f"{stop.name}.yaml", stop.like, stop.overrides, about=stop.shows)
            for stop in TOUR
        }
    elif file is None:
        raise ConfigError("file: is missing (zoo new mine.yaml; or --tour FOLDER)")
    else:
        chosen = [each.strip() for each in parts.split(",")] if parts else []
        params = None if size is None else read_amount(size, "size")
        texts = {file: write_model(file.name, like, overrides or (), chosen, params)}
    if there := [each for each in texts if each.exists()]:
        raise ConfigError(f"{there[0]}: is there already (choose another name; nothing is replaced)")
    for each, text in texts.items():
        each.parent.mkdir(parents=True, exist_ok=True)
        write_text(each, text)
    for each, text in texts.items():
        about = text.splitlines()[2].partition("  # ")[2].replace(" when this file was written", "")
        print(f"written: {each}" + (f", {about}" if size is not None else ""))
