"""`zoo family`: draft the YAML of a family that is not in conf/family/ yet."""

from __future__ import annotations

from pathlib import Path

import typer

from zoo.cli.app import SETTINGS
from zoo.cli.common import say
from zoo.cli.options import argument, flag, option, read_options
from zoo.errors import ConfigError
from zoo.untrusted.printable import quote

app = typer.Typer(add_completion=False, no_args_is_help=True, **SETTINGS)


@app.callback()
def family() -> None:
    """Work on families: mappings from transformers' model types to Zoo's YAML."""


@app.command("new", short_help="Draft a family's YAML, and compare its outputs with those of transformers.")
@read_options
def new(
    model_type: str = argument("The model_type of a config.json, such as llama.", default=..., metavar="MODEL_TYPE"),
    changes: list[str] | None = argument(
        "Fields of the tiny reference config: num_hidden_layers=6.", metavar="[NAME=VALUE]..."
    ),
    out: Path | None = option("The file to write. [default: conf/family/MODEL_TYPE.yaml]", metavar="FILE"),
    force: bool = flag("Overwrite an existing file."),
) -> None:
    """Draft a family's YAML, and compare the outputs of a tiny random model with those of transformers.

    The draft starts from the closest known family (`like`), and adds the changes that bring its outputs closest to
    transformers'. Unmapped fields and tensors are printed. Exits with 1 if the two models differ; the first stage that
    differs says where to look.

    \b
    Examples:
      zoo family new arcee --out arcee.yaml
      zoo family new cohere2_moe num_hidden_layers=6
    """
    from zoo.families.family import family_folder
    from zoo.porting import port

    file = out or family_folder() / f"{model_type}.yaml"
    if file.exists() and not force:
        raise ConfigError(f"{file}: is there already (--out names another file, --force replaces it)")
    found = port.draft_family(model_type, _read_changes(changes or []), say=say)
    file.write_text(found.draft.to_yaml(), encoding="utf-8")
    print("\n".join([*port.describe(found), f"written: {file}"]))
    if not found.parity.holds:
        raise typer.Exit(1)


def _read_changes(texts: list[str]) -> dict[str, object]:
    """Read NAME=VALUE texts, each value as YAML. Raises ConfigError for a text without `=` or a value that is no
    YAML."""
    import yaml

    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"{text}: is no field of a config (NAME=VALUE would do)")
        try:
            found[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a number of thousands of digits, or a date
            raise ConfigError(f"{name}: {quote(value)} is no YAML value") from None
    return found
