"""`zoo gallery`: write a static site of models, axes and findings, with a playground, or serve one."""

from __future__ import annotations

from pathlib import Path

from zoo.cli.common import print_note, say
from zoo.cli.completing import complete_target
from zoo.cli.options import argument, flag, option
from zoo.errors import ConfigError


def run(
    out: Path = argument("The folder to write: a new one, or one that this command wrote.", default=...),
    models: list[str] | None = argument(
        "Models to add to the packaged ones: files or folders.", metavar="[MODEL]...", autocompletion=complete_target
    ),
    playground: bool = flag("Include the interactive playground: 14 MB of Pyodide, fetched once with npm and pip."),
    pyodide: Path | None = option("A folder with Pyodide's files and its pydantic_core, in place of a download."),
    serve: bool = flag("Serve the existing folder, on this machine only, and write nothing."),
    port: int = option("The port to serve on.", default=8000),
) -> None:
    """Write a static site: a page for each packaged model and each design axis, to search, sort and compare.

    Pages load nothing from a network and need no server: open OUT/index.html. The playground alone needs one:
    `zoo gallery OUT --playground`, then `zoo gallery OUT --serve`.
    """
    if serve:
        if playground or pyodide or models:
            raise ConfigError("serve: writes nothing, found --playground, --pyodide or a model (write first)")
        return _serve(out, port)
    from zoo.gallery.site import write_site

    count = write_site(out, models or ())
    if playground or pyodide:
        from zoo.gallery.playground.assembling import write_parts

        if not write_parts(out, pyodide):
            print_note("without Node the playground's modules are not compiled: its first price takes twice as long")
    print(f"written: {out / 'index.html'}, {count} files")


def _serve(folder: Path, port: int) -> None:
    from zoo.gallery.loopback import open_server

    with open_server(folder, port) as server:
        host, found = server.server_address[:2]
        say(f"http://{host}:{found}/ (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")
