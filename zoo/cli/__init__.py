"""Run the command line. A verb's module is imported when the verb runs; the module calls one function and prints its
result."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

from zoo.errors import ConfigError, LostProcess, ZooError, name_options
from zoo.untrusted.printable import quote

MOST_FAULTS, LONGEST_FAULT = 50, 1900
"""Maximum number of faults printed, and of characters per fault: an untrusted file may have a fault on every line."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `zoo` and exit: 0 done, 1 the work failed, 2 the user's input is wrong, 130 interrupted."""
    args = sys.argv[1:] if args is None else args
    is_brief = args[:1] in (["stats"], ["list"], ["draw"])  # ends before anything needs collecting
    if is_brief:
        gc.disable()  # saves 20 of 350 ms, and of a drawing 80 of 750
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # a search of all installed packages, 25 of 600 ms
    from zoo.cli.output import print_own_warnings, settle_output

    settle_output()
    print_own_warnings()
    code = run(args)
    if is_brief:
        gc.freeze()  # Python's last collection, which nothing disables, then finds nothing: saves 180 of 790 ms
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code. Faults go to stderr, one line each; `--debug` adds the trace.

    Without a verb, a terminal shows the next steps for the files in the working folder; a pipe gets the help.
    `--no-verify` reads checkpoints without comparing their checksums. This is the only place that catches every
    exception: an unexpected exception is a bug of Zoo, printed as one line that names the trace file to report.
    """
    if not args and sys.stdout.isatty() and _show_next_steps():
        return 0
    import typer

    from zoo.cli.app import make_command

    args, debug = _without(list(args) or ["--help"], "--debug")
    if faults := _find_unreadable(args):
        return _refuse(faults, ConfigError.exit_code, debug)
    rest, hasty = _without(args, "--no-verify")
    args = args if args[:1] == ["convert"] else rest  # `convert` has a --no-verify of its own
    usage_error: Any = typer.BadParameter.__bases__[0].__bases__[0]  # click's UsageError, which Typer keeps private
    try:
        with _unverified(hasty):
            return make_command().main(args, prog_name="zoo", standalone_mode=False, obj=args) or 0
    except (KeyboardInterrupt, typer.Abort) as stopped:
        if isinstance(stopped.__cause__, EOFError):  # of a file that ends early: click takes it for Ctrl-D
            return _report_bug(stopped.__cause__, args, debug)
        return 130
    except BrokenPipeError:  # `zoo list | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ZooError as error:
        faults = error.faults if isinstance(error, ConfigError) else [str(error)]
        return _refuse(faults, error.exit_code, debug)
    except usage_error as error:
        return _refuse([_describe_usage_error(error, args)], error.exit_code, debug)
    except OSError as error:
        from zoo.cli.failing import choose_exit_code, describe_os_error

        return _refuse([describe_os_error(error)], choose_exit_code(error), debug)
    except Exception as error:
        return _report_bug(error, args, debug)


def _report_bug(error: BaseException, args: Sequence[str], debug: bool) -> int:
    from zoo.cli.failing import describe_bug

    fault, code = describe_bug(error, args)
    return _refuse([fault], code, debug)


def _show_next_steps() -> bool:
    """Print the next steps for the files in the working folder. Returns False if there are none."""
    from zoo.cli.welcome import list_next_steps

    steps = list_next_steps()
    print("\n".join(steps), end="\n" if steps else "")
    return bool(steps)


def _describe_usage_error(error: Any, args: Sequence[str]) -> str:
    """Return click's message or, for a missing argument or option value, the parameter's name and help."""
    from zoo.cli.app import make_command

    parameter, what = getattr(error, "param", None) if type(error).__name__ == "MissingParameter" else None, ""
    if error.message.endswith("requires an argument."):  # click names the option, and not its command
        verb = make_command().get_command(None, args[0]) if args else None
        parameter = next((each for each in getattr(verb, "params", ()) if error.option_name in each.opts), None)
        what = f"{getattr(parameter, 'metavar', None) or 'a value'} "
    if parameter is None:
        return _describe_value(error) or error.format_message()
    takes = getattr(parameter, "help", None) or "see --help"
    return f"{parameter.name}: {what}is missing ({takes[0].lower()}{takes[1:].rstrip('.')})"


LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _describe_value(error: Any) -> str:
    """Describe an option's value that Typer refuses, and the values allowed; "" for any other fault."""
    name = error.param.opts[-1] if getattr(error, "param", None) is not None else ""
    if fixed := re.search(r"(['\"])(.*)\1 is not one of (.*)\.$", error.message):
        found, known = fixed[2], re.findall("'(.*?)'", fixed[3])
        return f"{name}: there is no {quote(found)}{name_options(found, known)}"
    if not hasattr(error.__cause__, "errors"):
        return ""
    (fault,) = error.__cause__.errors()  # pydantic's, which reads the values of options
    if wanted := re.match(r"Input should be a valid (\w+)", fault["msg"]):
        would = {"integer": "a whole number"}.get(wanted[1], f"a {wanted[1]}")
    else:
        would = " and ".join(f"{word} {fault['ctx'][key]:,}" for key, word in LIMITS.items() if key in fault["ctx"])
    return f"{name}: is {quote(fault['input'])} ({would})" if would else ""


def _without(args: list[str], option: str) -> tuple[list[str], bool]:
    """Remove an option that every verb takes. Returns the other arguments, and whether the option was given."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != option] + args[end:]
    return kept, len(kept) < len(args)


def _find_unreadable(args: Sequence[str]) -> list[str]:
    """List a fault for each argument that has a NUL, or that is not UTF-8 and names no existing file. Python decodes
    bytes that are not UTF-8 as lone surrogates."""
    faults = []
    for number, arg in enumerate(args, 1):
        if "\0" in arg:
            faults.append(f"argument {number}: holds a NUL character, found {arg[:60]!r} (leave it out)")
        elif any("\ud800" <= each <= "\udfff" for each in arg) and not os.path.lexists(arg):
            faults.append(f"argument {number}: is not UTF-8 text, found {arg[:60]!r} (UTF-8, or a file that is there)")
    return faults


def _unverified(hasty: bool) -> AbstractContextManager[None]:
    if not hasty:
        return nullcontext()
    from zoo.checkpoint.manifest import unverified

    return unverified()


def _refuse(faults: Sequence[str], code: int, debug: bool) -> int:
    from zoo.distributed.world import read_world

    if debug:
        import traceback

        traceback.print_exc()
    world = read_world()
    if not world.main:  # the main process reports the same faulty input and the same lost connection
        if code == ConfigError.exit_code or isinstance(sys.exc_info()[1], LostProcess):
            return code
        faults = [f"rank {world.rank}: {fault}" for fault in faults]
    if len(faults) > MOST_FAULTS:
        faults = [*faults[:MOST_FAULTS], f"{len(faults) - MOST_FAULTS:,} more faults like these"]
    for fault in faults:
        line = " ".join(fault[: 2 * LONGEST_FAULT].split())
        line = f"''{line}" if line.startswith(":") else line  # the name at fault is empty
        print(f"zoo: error: {line if len(line) <= LONGEST_FAULT else line[:LONGEST_FAULT] + '…'}", file=sys.stderr)
    return code
