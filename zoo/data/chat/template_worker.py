"""Render chat templates in a separate process. A template is a program by the checkpoint's author, and Zoo's own
process cannot limit its time: Python cannot interrupt a call into C.

Run as a script by `zoo.data.chat.renderer`: each line of standard input is one job, each line of standard output its
answer. A job that takes too much time ends this process; a job that takes too much memory ends in an error.
"""

from __future__ import annotations

import json
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2 import ext, nodes, parser, runtime, sandbox, utils

SECONDS = 0.5  # of processor time for one text; real templates take a few milliseconds
MEMORY = 2**29  # bytes of this process
LENGTH = 2**24  # characters of a text


class GenerationTag(ext.Extension):
    """Jinja2 extension for `{% generation %}…{% endgeneration %}`, which marks the assistant's text. Like transformers'
    tag, it records the span of the text in characters, counted from the pieces written before it (`blocks`). Inside a
    macro the span is unknown."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)
    blocks: ClassVar[list[str]] = []
    spans: ClassVar[list[tuple[int, int]]] = []

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_give"), [], [], body).set_lineno(line)

    def _give(self, caller: runtime.Macro) -> str:
        text, start = caller(), sum(map(len, self.blocks))
        self.spans.append((start, start + len(text)))
        return text


class TemplateNamespace(utils.Namespace):
    """A `namespace` that refuses private attribute names, which would lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportSelfClsParameterName]
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_public(name)
        utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        utils.Namespace.__setitem__(self, name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace keeps nothing under the private name {name!r}")


class Dict:
    """The `dict` of templates: it makes dicts, and has no attribute but `fromkeys`."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def raise_exception(message: Any) -> NoReturn:
    raise jinja2.exceptions.TemplateError(str(message))


def to_json(
    value: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Dump as plain JSON; jinja2's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(form: str) -> str:
    """Format the job's fixed day, which makes training data repeatable, or else the present time."""
    return (datetime.fromisoformat(Today.day) if Today.day else datetime.now()).strftime(form)


class Today:
    """The date that templates see, in ISO form; "" is the present date."""

    day: ClassVar[str] = ""


def make_environment() -> sandbox.ImmutableSandboxedEnvironment:
    """Make the jinja2 environment of transformers, which published templates are written for."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": Dict(),
        "namespace": TemplateNamespace,
    }
    return environment


ENVIRONMENT = make_environment()
compiled = lru_cache(ENVIRONMENT.from_string)


def render_view(job: dict[str, Any], upto: int | None, prompt: bool) -> dict[str, Any]:
    """Render the first `upto` messages of a job (None: all). Returns the text, and the spans that the template
    marks."""
    GenerationTag.blocks, GenerationTag.spans, length = [], [], 0
    values = {**job["values"], "add_generation_prompt": prompt}
    if upto is not None:
        values["messages"] = values["messages"][:upto]
    for block in compiled(job["template"]).generate(**values):
        GenerationTag.blocks.append(block)
        if (length := length + len(block)) > LENGTH:
            raise jinja2.exceptions.TemplateError(f"it wrote {length} characters (at most {LENGTH})")
    return {"text": "".join(GenerationTag.blocks), "spans": GenerationTag.spans}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Render the views of one job, each given as (number of messages, add_generation_prompt). Returns their texts and
    spans, or the template's error."""
    try:
        Today.day = job["day"]
        return {"views": [render_view(job, upto, prompt) for upto, prompt in job["views"]]}
    except MemoryError:
        return {"error": f"it took more than {MEMORY >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "its macros call each other without end"}
    except jinja2.exceptions.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}", "broken": True}
    except jinja2.exceptions.TemplateError as error:
        return {"error": f"{error.message or error}"}
    except Exception as error:  # a template can raise any error of Python
        return {"error": str(error) or type(error).__name__}


def limit_memory() -> None:
    """Limit this process's memory, if the system can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass


def main() -> None:
    """Answer jobs until standard input ends, at the latest when the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which may go on
    limit_memory()
    timer = getattr(signal, "setitimer", None)  # absent on Windows, where only the parent's limit holds
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if timer is not None:
            timer(signal.ITIMER_PROF, SECONDS)  # its signal ends this process at once
        text = json.dumps(answer(json.loads(line)))
        if timer is not None:
            timer(signal.ITIMER_PROF, 0)
        print(text, flush=True)


if __name__ == "__main__":
    main()
