"""`zoo chat`: talk with a model in the terminal, or through a pipe."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import disk
from zoo.cli.common import (
    Checkpoint,
    Device,
    Dtype,
    Kernel,
    Sampled,
    keep_memory_on,
    print_note,
    read_folder_options,
    say,
)
from zoo.cli.options import option, options
from zoo.cli.output import print_generated
from zoo.errors import ConfigError, ZooError, did_you_mean

if TYPE_CHECKING:
    from types import FrameType

    from zoo.text.conversation import Conversation

COMMANDS = {
    "/reset": "forget the conversation, except the system message",
    "/system TEXT": "set the system message; without TEXT, remove it",
    "/save FILE": "write the conversation to FILE, as JSON",
    "/exit": "end (so does Ctrl-D)",
}
LONGEST_ANSWER = 1024
"""Maximum tokens of an answer, unless the command line or the checkpoint states another number."""


@options()
class Talk:
    """Options for the model and its messages."""

    checkpoint: Checkpoint = None
    system: str | None = option("The system message: how the model is to answer.")
    template: str | None = option("Chat template: plain, chatml, or a file. [default: the checkpoint's]")
    max_new_tokens: int | None = option("Maximum number of tokens per answer. [default: the checkpoint's, else 1024]")


def run(talk: Talk, sampled: Sampled, kernel: Kernel = None, device: Device = "auto", dtype: Dtype = None) -> None:
    """Talk with a model. Ctrl-C stops an answer, /help lists the commands.

    Without a terminal each line of standard input is a message, and each answer ends with a newline. Options that are
    not given default to the checkpoint's generation_config.json, if it has one.
    """
    from zoo.data.chat import template as chat
    from zoo.generation.engine import Engine, serving
    from zoo.text.conversation import Conversation
    from zoo.text.jobs import JobMaker
    from zoo.text.loading import find_folder, load
    from zoo.text.prompts import Options

    given = {**vars(sampled), "max_new_tokens": talk.max_new_tokens}
    Options.checked(given)
    folder = find_folder(talk.checkpoint)
    options = Options.checked({"max_new_tokens": LONGEST_ANSWER, **read_folder_options(folder, given)(given)})
    loaded = load(folder, device=device, dtype=dtype, note=print_note)
    keep_memory_on(device)  # only now, so that the memory of weights dropped by packing has been freed
    template = chat.load(loaded.folder, talk.template, loaded.tokenizer)
    encoder = JobMaker(loaded.model, loaded.tokenizer, loaded.ends, template)
    limit = loaded.model.spec.max_seq_len
    engine = Engine(loaded.model, rows=1, tokens=limit, kernel=kernel)
    with serving(loaded.model, kernel):
        conversation = Conversation(encoder, engine, options, limit)
        conversation.system = talk.system
        if sys.stdin.isatty():
            _talk(conversation, loaded.folder.name)
        else:
            _pipe(conversation)


def _pipe(conversation: Conversation) -> None:
    for line in sys.stdin:
        text = line.removesuffix("\n").removesuffix("\r")
        if text.strip() and not _obey(conversation, text, say):
            break
        if text.strip() and not _is_command(text):
            _print_answer(conversation, text, lambda piece: print_generated(piece, ""))


def _talk(conversation: Conversation, name: str) -> None:
    """Read messages from the terminal until /exit or Ctrl-D. Errors are printed, and the conversation continues."""
    from zoo.report.console import make_console

    with suppress(ImportError):
        import readline  # noqa: F401  (arrow keys edit the line, and recall earlier ones)
    console = make_console()
    console.out(f"{name}: Ctrl-C stops an answer, /help lists the commands, /exit ends.", style="dim")
    while True:
        try:
            text = input("> ")
            if not _obey(conversation, text, lambda line: console.out(line, style="dim")):
                return
            if text.strip() and not _is_command(text):
                _print_answer(conversation, text, lambda piece: console.out(piece, end=""))
        except EOFError:
            console.out("")
            return
        except KeyboardInterrupt:
            console.out("\n(/exit or Ctrl-D ends)", style="dim")
        except (ZooError, OSError) as error:
            for fault in error.faults if isinstance(error, ConfigError) else [str(error)]:
                say(f"zoo: error: {fault}")


def _is_command(text: str) -> bool:
    return text.startswith("/") and not text.startswith("//")


def _obey(conversation: Conversation, text: str, tell: Callable[[str], object]) -> bool:
    """Run a command, if the text is one. Returns False for the command that ends the conversation."""
    if not _is_command(text):
        return True
    command, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    if command in ("/exit", "/quit"):
        return False
    if command == "/reset":
        conversation.reset()
        tell("(a new conversation)")
    elif command == "/system":
        conversation.system = rest or None
        tell("(the system message is set)" if rest else "(no system message)")
    elif command == "/save":
        _save(conversation, rest)
        tell(f"(written: {rest}, {len(conversation.messages)} messages)")
    elif command == "/help":
        tell("\n".join(f"{name:14}{meaning}" for name, meaning in COMMANDS.items()) + "\n//TEXT        say /TEXT")
    else:
        names = [name.split()[0] for name in COMMANDS]
        hint = did_you_mean(command, names) or f" (one of: {', '.join(names)}; // says it)"
        raise ConfigError(f"chat: there is no command {command}{hint}")
    return True


def _save(conversation: Conversation, name: str) -> None:
    if not name:
        raise ConfigError("save: needs a file (/save FILE)")
    if Path(name).exists():
        raise ConfigError(f"save: {name} is there already (another name)")
    disk.write_text(Path(name), json.dumps(conversation.messages, ensure_ascii=False, indent=1) + "\n")


def _print_answer(conversation: Conversation, text: str, show: Callable[[str], Any]) -> None:
    """Print an answer while it is generated, until its end or Ctrl-C."""
    with _interruptible(conversation):
        for piece in conversation.answer(text.removeprefix("/") if text.startswith("//") else text):
            show(piece)
            sys.stdout.flush()
    show("\n")


@contextmanager
def _interruptible(conversation: Conversation) -> Iterator[None]:
    """Let Ctrl-C end the answer between two tokens. A second Ctrl-C during the same answer ends the program, because
    the engine cannot continue after an interrupted step."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if conversation.interrupted:
            sys.exit(130)
        conversation.interrupted = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
