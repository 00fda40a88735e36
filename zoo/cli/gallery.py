"""`zoo gallery`: write a static site of models, axes and findings."""

from __future__ import annotations

from pathlib import Path

from zoo.cli.completing import complete_target
from zoo.cli.options import argument


def run(
    out: Path = argument("The folder to write: a new one, or one that this command wrote.", default=...),
    models: list[str] | None = argument(
        "Models to add to the packaged ones: files or folders.", metavar="[MODEL]...", autocompletion=complete_target
    ),
) -> None:
    """Write a static site: a page for each packaged model and each axis, to search, sort and compare.

    Pages load nothing from a network and need no server: open OUT/index.html.
    """
    from zoo.gallery.site import write_site

    count = write_site(out, models or ())
    print(f"written: {out / 'index.html'}, {count} files")
