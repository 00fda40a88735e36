"""`zoo check`: compare a checkpoint with its architecture, or run the coordinate check of a parametrisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo import report
from zoo.cli.options import argument, option
from zoo.errors import CheckpointError, ConfigError, ZooError, name_options
from zoo.untrusted.printable import quote

if TYPE_CHECKING:
    from zoo.training.coordinates import Coordinates
    from zoo.training.parametrisation import Parametrisation


def run(
    target: str = argument("A checkpoint, run or Hugging Face folder; with --coordinates a model.", default=...),
    overrides: list[str] | None = argument("With --coordinates: key=value, as for stats."),
    coordinates: str | None = option(
        "Coordinate check of a parametrisation (standard, mup, completep) at several widths.", metavar="KIND"
    ),
    widths: str | None = option(
        "With --coordinates: widths (d_model), the base first. [default: the model's × 1, 2, 4]"
    ),
) -> None:
    """Compare the names and shapes in a checkpoint's headers with those of its architecture. No weight is read.

    With --coordinates, train a model at several widths for a few updates, and measure how the changes of its
    components' outputs scale with width. A slope near 0 means that the best learning rate transfers; otherwise the
    command fails.

    \b
    Examples:
      zoo check runs/last
      zoo check llama-tiny n_layers=2 --coordinates mup
    """
    from pathlib import Path

    from zoo.checkpoint.tensor_check import compare_tensors

    if coordinates is not None:
        print_coordinates(target, overrides or [], coordinates, None if widths is None else read_widths(widths))
        return
    if overrides:
        raise ConfigError(f"{overrides[0]}: changes a model, and a checkpoint cannot be changed (--coordinates KIND)")
    found = compare_tensors(Path(target))
    if found.faults:
        raise CheckpointError(*found.faults)
    print(found)


def read_widths(text: str) -> list[int]:
    """Read widths, `64,128,256`. Raises ConfigError unless there are two or more different ones."""
    parts = [each.strip() for each in text.split(",")]
    if not all(each.isdecimal() and len(each) < 10 and int(each) for each in parts) or len(set(parts)) < 2:
        raise ConfigError(f"widths: needs two numbers or more, found {quote(text)} (64,128,256)")
    return [int(each) for each in parts]


def print_coordinates(model: str, overrides: list[str], kind: str, widths: list[int] | None) -> None:
    """Print the change of each component's output at each width, and its slope; for completep also at each depth.
    Raises ConfigError for an unknown `kind`, and ZooError if a slope is not near 0."""
    from zoo.training.coordinates import FLAT, check_coordinates, check_depths, list_sizes
    from zoo.training.parametrisation import Parametrisation

    known = list(Parametrisation.kinds)
    if kind not in known:
        raise ConfigError(f"coordinates: there is no {kind!r}{name_options(kind, known)}")
    widths = widths or list_sizes(model, overrides, "d_model")
    depths = list_sizes(model, overrides, "n_layers")
    base = {"base_width": widths[0], **({"base_depth": depths[0]} if kind == "completep" else {})}
    found = {"width": check_coordinates(model, overrides, _parse(kind, base), widths)}
    if kind == "completep":
        own = {**base, "base_width": list_sizes(model, overrides, "d_model")[0]}
        found["depth"] = check_depths(model, overrides, _parse(kind, own), depths)
    for name, each in found.items():
        print(_format(name, each))
    if steep := [name for name, each in found.items() if not each.flat]:
        raise ZooError(f"coordinates: changes depend on {' and '.join(steep)} under {kind}, a slope is beyond ±{FLAT}")
    print(f"changes do not depend on {' and '.join(found)}: every slope is within ±{FLAT}")


def _parse(kind: str, base: dict[str, int]) -> Parametrisation:
    from zoo.training.parametrisation import Parametrisation

    return Parametrisation.parse({"kind": kind, **({} if kind == "standard" else base)})


def _format(name: str, found: Coordinates) -> str:
    head = (f"change by {name}", *map(str, found.sizes), "slope")
    rows = [
        (part, *(f"{value:.2e}" for value in found.changes[part]), f"{slope:+.2f}")
        for part, slope in found.slopes.items()
    ]
    return report.align_columns([head, *rows], right=tuple(range(1, len(head))))
