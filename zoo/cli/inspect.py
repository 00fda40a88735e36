"""`zoo inspect`: show the attention maps, activations, routing and gradient noise of a trained model."""

from __future__ import annotations

from pathlib import Path

from zoo import report, runs
from zoo.cli.common import Data, Device, Evaluated, print_note
from zoo.cli.options import option
from zoo.cli.showing import Json


def run(
    folder: Evaluated = None,
    overrides: Data = None,
    rows: int = option("Number of sequences on which heads, activations and routing are measured.", default=8, min=1),
    context: int | None = option("Tokens per sequence. [default: the run's or the model's, 256 at most]", min=2),
    noise_rows: int = option("Number of sequences for the gradient noise scale; 0 leaves it out.", default=32, min=0),
    out: Path | None = option("Output folder. [default: `inspect` in the run's folder, else here]", "--out", "-o"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Look into a trained model: attention maps, heads, activations, routing and gradient noise.

    Measures the mean attention map of each softmax attention over the sequences, and the entropy (relative to uniform
    attention) and effective rank of each head; the RMS of each layer's output; the load of each expert, and dead
    experts; and the gradient noise scale (McCandlish et al., 2018). Writes a page (index.html), pictures, inspect.json
    and maps.safetensors.
    """
    from zoo.cli import eval_options
    from zoo.inspection import inspect_model
    from zoo.inspection.inspection_page import format_lines, make_tables, write_inspection

    folder, overrides = eval_options.tell_apart(folder, overrides or [])
    place = runs.last_run() if folder is None else folder
    with eval_options.showing_progress() as progress:
        found = inspect_model(
            place,
            overrides,
            rows=rows,
            noise_rows=noise_rows,
            context=context,
            device=device,
            note=print_note,
            progress=progress,
        )
    where = out or (place if (place / runs.CONFIG).is_file() else Path()) / "inspect"
    files = write_inspection(found.figures, found.maps, where)
    if as_json:
        print(report.format_json(found.figures))
        return
    report.print_tables(*make_tables(found.figures))
    for line in format_lines(found.figures):
        print(line)
    print(f"written: {', '.join(map(str, files))}, and pictures")
