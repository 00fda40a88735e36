"""Run the command line. A verb composes a config, calls one function and shows the result; its file is imported only
when it is called."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `zoo` and exit: 0 done, 1 the work failed, 2 the user's input is wrong, 130 interrupted."""
    args = sys.argv[1:] if args is None else args
    if args[:1] in (["stats"], ["list"]):
        gc.disable()  # over before there is anything to collect: 20 of 350 ms
    _settle_output()
    sys.exit(run(args))


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code. Faults go to stderr, one line each; `--debug` adds the trace.
    `--no-verify` reads checkpoints without comparing their checksums."""
    import typer

    from zoo.cli.app import make_command
    from zoo.errors import ConfigError, ZooError

    args, debug = _without(list(args) or ["--help"], "--debug")
    rest, hasty = _without(args, "--no-verify")
    args = args if args[:1] == ["convert"] else rest  # which has such an option too
    usage_error: Any = typer.BadParameter.__bases__[0].__bases__[0]  # click's own class, which Typer keeps in private
    try:
        with _unverified(hasty):
            return make_command().main(args, prog_name="zoo", standalone_mode=False, obj=args) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # `zoo list | head`: nobody is listening any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ZooError as error:
        faults = error.faults if isinstance(error, ConfigError) else [str(error)]
        return _refuse(faults, error.exit_code, debug)
    except OSError as error:  # a full disk, a file that may not be read: the system's fault, not the command's
        return _refuse([_describe_os_error(error)], ZooError.exit_code, debug)
    except usage_error as error:
        return _refuse([_describe_usage_error(error)], error.exit_code, debug)


def _describe_os_error(error: OSError) -> str:
    """Say which file could not be read or written, and why. Our own text, where zoo wrote the error, stays as it is."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.filename or 'file'}: cannot be read or written, found {error.strerror}"


def _settle_output() -> None:
    """Let any output be printed: escaped where the terminal's encoding lacks it (× in ASCII, √ on a Windows code page),
    and to nowhere where the stream was closed (`zoo list >&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for the process's life)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _describe_usage_error(error: Any) -> str:
    """Return click's message; for an argument that is missing, say what it takes."""
    parameter = getattr(error, "param", None)
    if type(error).__name__ != "MissingParameter" or parameter is None:
        return error.format_message()
    takes = getattr(parameter, "help", None) or "see --help"
    return f"{parameter.name}: is missing ({takes[0].lower()}{takes[1:].rstrip('.')})"


def _without(args: list[str], option: str) -> tuple[list[str], bool]:
    """Take an option of all verbs out of the arguments before the verbs see them: it may stand anywhere. Returns the
    others, and whether it was there."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != option] + args[end:]
    return kept, len(kept) < len(args)


def _unverified(hasty: bool) -> AbstractContextManager[None]:
    if not hasty:
        return nullcontext()
    from zoo.checkpoint.manifest import unverified

    return unverified()


def _refuse(faults: Sequence[str], code: int, debug: bool) -> int:
    from zoo.errors import ConfigError, LostProcess
    from zoo.ranks.world import read_world

    if debug:
        import traceback

        traceback.print_exc()
    world = read_world()
    if not world.main:  # the main process refuses the same input, and loses the same connection
        if code == ConfigError.exit_code or isinstance(sys.exc_info()[1], LostProcess):
            return code
        faults = [f"rank {world.rank}: {fault}" for fault in faults]
    for fault in faults:
        print("zoo: error:", " ".join(fault.split()), file=sys.stderr)
    return code
