"""`zoo mcp`: offer prices, comparisons, drawings and verdicts to an assistant, over the Model Context Protocol."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from typing import Any

from zoo.cli.agent_tools import READING, WRITING
from zoo.cli.options import flag
from zoo.errors import ConfigError, ZooError

ONE_AT_A_TIME = threading.Lock()
"""Lock held while a tool runs. What the tool prints is redirected, because standard output belongs to the protocol."""


def run(
    allow_write: bool = flag("Also offer run_experiment, which trains and writes into folders."),
) -> None:
    """Serve tools for an assistant on standard input and output (Model Context Protocol, stdio): list_models, explain,
    price, diff, solve, draw, plan_experiment, read_report. They only read, and write nothing but caches.

    Needs the package mcp (pip install 'transformer-zoo[mcp]'). The assistant starts this command itself.

    \b
    In an assistant's settings:
      {"mcpServers": {"zoo": {"command": "zoo", "args": ["mcp"]}}}
    """
    make_server(allow_write).run("stdio")


def make_server(allow_write: bool = False) -> Any:
    """Make the server with its tools. Raises ConfigError if the package mcp is missing, or older than its version 2."""
    import zoo

    try:
        from mcp.server import MCPServer  # pyright: ignore[reportMissingImports]
        from mcp_types import ToolAnnotations  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        found = f"needs mcp 2 or newer, which is not installed ({error.name})"
        raise ConfigError(f"mcp: {found} (pip install 'transformer-zoo[mcp]')") from error
    about = (
        "Exact prices of transformer architectures, comparisons, and verdicts on experiments. MODEL: a packaged name "
        "(list_models), a YAML, config.json or GGUF file, a folder, or ORG/NAME on the Hugging Face hub."
    )
    server = MCPServer("zoo", instructions=about, version=zoo.__version__, log_level="ERROR")
    for tools, reads in ((READING, True), (WRITING if allow_write else (), False)):
        for tool in tools:
            how = ToolAnnotations(read_only_hint=reads, destructive_hint=False)
            server.add_tool(_guard(tool), description=_describe(tool), annotations=how, structured_output=False)
    return server


def _describe(tool: Callable[..., Any]) -> str:
    """Return the tool's docstring, followed by the fields of its parameter `setup` if it has one."""
    import inspect

    from zoo.cli.setup import HELP

    text = inspect.getdoc(tool) or ""
    fields = "\n".join(f"- {name}: {each}" for name, each in HELP.items())
    return f"{text}\n\n`setup` may have:\n{fields}" if "setup" in inspect.signature(tool).parameters else text


def _guard(tool: Callable[..., Any]) -> Callable[..., str]:
    """Wrap a tool: refuse overrides that name code, turn ZooErrors into tool errors, send prints to standard error, and
    return the result as JSON (a text unchanged)."""
    from mcp.server.mcpserver.exceptions import ToolError  # pyright: ignore[reportMissingImports]

    from zoo.compose.gate import check_overrides
    from zoo.report import format_json

    @functools.wraps(tool)
    def called(**given: Any) -> str:
        with ONE_AT_A_TIME, redirect_stdout(sys.stderr):
            try:
                check_overrides(_list_overrides(given), "overrides")
                found = tool(**given)
            except ZooError as error:
                raise ToolError(str(error)) from None
        return found if isinstance(found, str) else format_json(found)

    called.__annotations__ = {**tool.__annotations__, "return": "str"}
    return called


def _list_overrides(given: dict[str, Any]) -> Iterable[str]:
    arms = given.get("arms") or {}
    stated = [given.get("shared") or "", *arms.values()]
    return [*(given.get("overrides") or ()), *(word for text in stated for word in text.split())]
