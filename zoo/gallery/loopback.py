"""Serve a gallery's folder to browsers on this machine: only on the loopback address, and only files in the folder."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, short

TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".gz": "application/octet-stream",  # unpacked by the page, so no encoding of the transfer
}
"""Content types by file suffix that browsers require. They take precedence over this machine's table of types."""


def open_server(folder: Path, port: int = 8000) -> ThreadingHTTPServer:
    """Open a server of the folder on 127.0.0.1. Port 0 takes a free port. Raises ConfigError for a folder without a
    front page, and for a port in use."""
    if not (folder / "index.html").is_file():
        raise ConfigError(f"serve: {folder} has no index.html (zoo gallery {folder} writes one)")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(FolderHandler, directory=str(folder.resolve())))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"serve: port {port} cannot be opened, {short(error)} (--port takes another)") from error


class FolderHandler(SimpleHTTPRequestHandler):
    """Answer GET and HEAD requests with files of one folder. The answer to links that lead out of it, and to folders
    without a page, is "not found"."""

    def guess_type(self, path: Any) -> str:
        return TYPES.get(Path(path).suffix) or super().guess_type(path)

    def send_head(self) -> Any:
        if not Path(self.translate_path(self.path)).resolve().is_relative_to(self.directory):
            return self.send_error(404)
        return super().send_head()

    def list_directory(self, path: object) -> None:
        self.send_error(404)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing, because a page causes dozens of requests."""
