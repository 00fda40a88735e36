"""Conversations: what the model is asked, what ends an answer, and the verb in a terminal and through a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import zoo
from support.watched_engine import WatchedEngine
from zoo.checkpoint import store
from zoo.cli import run
from zoo.data.chat import template as chat
from zoo.data.chat.template import ChatTemplate
from zoo.data.tokenizer import Tokenizer, make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.generation.generate import generate
from zoo.text.conversation import Conversation
from zoo.text.jobs import JobMaker
from zoo.text.prompts import Options

ROOT = Path(__file__).parents[2]
SMALL = ["vocab_size=260", "d_model=32", "n_layers=1", "n_heads=2", "n_kv_heads=2", "head_dim=16", "d_ff=32"]
TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'refuse' %}{{ raise_exception('not that') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}it: {% endif %}"
)
PROGRAM = f"""
import sys
if sys.stdin.isatty():
    import fcntl, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # this terminal's Ctrl-C is for this program
sys.path.insert(0, {str(ROOT)!r})
from zoo.cli import main
main()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random model of bytes whose weights are large enough for its answers to depend on what is said."""
    folder = tmp_path_factory.mktemp("made") / "talker"
    torch.manual_seed(7)
    model = zoo.build("llama-tiny", [*SMALL, "max_seq_len=512"], device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    store.save_model(model, folder, make_byte_tokenizer())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def talk(checkpoint: Path, *, limit: int = 512, **options) -> Conversation:
    model, tokenizer = store.load(checkpoint), Tokenizer.load(checkpoint)
    encoder = JobMaker(model, tokenizer, (), chat.load(checkpoint))
    return Conversation(encoder, WatchedEngine(model, rows=1, tokens=limit), Options.checked(options), limit)


def expected(checkpoint: Path, asked: str, count: int) -> str:
    """The answer to the text of a conversation, by the model alone."""
    ids = list(asked.encode())
    written = generate(store.load(checkpoint), torch.tensor([ids]), count, stop_ids=[256])[0, len(ids) :].tolist()
    return make_byte_tokenizer().decode(written).split("<e>")[0]


def test_each_answer_is_what_the_model_writes_after_all_that_was_said(checkpoint):
    conversation = talk(checkpoint, max_new_tokens=7)
    conversation.system = "be brief"
    text = "system: be brief<e>"
    for said in ("hello", "and?", "naïve 🙂"):
        text += f"user: {said}<e>it: "
        answer = expected(checkpoint, text, 7)
        assert "".join(conversation.answer(said)) == answer
        text = text.removesuffix("it: ") + f"assistant: {answer}<e>"
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["system", *["user", "assistant"] * 3]
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "be brief"}]
    conversation.system = None
    assert conversation.messages == []


def test_an_answer_ends_where_the_template_ends_one(checkpoint):
    """`<e>` is no token of this model's: it is looked for in the text, and not part of the answer."""
    conversation = talk(checkpoint, max_new_tokens=3)
    assert "".join(conversation.answer("x")) == expected(checkpoint, "user: x<e>it: ", 3)
    assert conversation.encoder.make_job({"messages": conversation.messages}, Options(), "").stop == ("<e>",)
    tokenizer = make_byte_tokenizer()
    tokenizer.backend.add_special_tokens(["<e>"])
    encoder = JobMaker(conversation.engine.model, tokenizer, (), ChatTemplate(TEMPLATE))
    job = encoder.make_job({"messages": conversation.messages}, Options(), "")
    assert (job.stop, job.request.stop_ids) == ((), {256, 257})
    assert encoder.make_job({"prompt": "x"}, Options(), "").request.stop_ids == {256}


def test_what_the_template_refuses_leaves_the_conversation_as_it_was(checkpoint):
    conversation = talk(checkpoint, max_new_tokens=3)
    list(conversation.answer("one"))
    before = list(conversation.messages)
    with pytest.raises(ConfigError, match="chat template: not that"):
        conversation.answer("refuse")
    assert conversation.messages == before


def test_a_conversation_fills_the_model_and_then_says_so(checkpoint):
    conversation = talk(checkpoint, limit=40, max_new_tokens=20)
    list(conversation.answer("x" * 20))  # 33 bytes with the template's
    assert conversation.engine.seen[0].max_new_tokens == 7
    with pytest.raises(ConfigError, match=r"the model is made for 40 \(/reset begins anew\)"):
        conversation.answer("y")


def test_an_answer_that_is_interrupted_is_kept_as_far_as_it_came(checkpoint):
    conversation = talk(checkpoint, max_new_tokens=50, ignore_eos=True)
    came = []
    for piece in conversation.answer("x"):
        came.append(piece)
        conversation.interrupted = len(came) == 5
    assert len(came) == 5
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(came)}
    assert not conversation.engine.busy


# ---------------------------------------------------------------- the verb


def command(checkpoint: Path, *args: str) -> list[str]:
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--temperature", "0", *args]
    return [sys.executable, "-c", PROGRAM, "chat", *options]


@pytest.fixture
def piped(monkeypatch, tmp_path, capsys):
    """Run `zoo chat` with these lines as standard input; what it prints."""
    monkeypatch.chdir(tmp_path)

    def say(folder: Path, lines: str, *args: str):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        capsys.readouterr()
        assert run(["chat", "--checkpoint", str(folder), "--device", "cpu", "--temperature", "0", *args]) == 0
        return capsys.readouterr()

    return say


def test_through_a_pipe_each_line_gets_its_answer_and_nothing_else_is_printed(checkpoint, piped):
    lines = "hello\n\n/system be brief\n//x\n/save kept.json\n/exit\nnever\n"
    said = piped(checkpoint, lines, "--max-new-tokens", "6")
    first = expected(checkpoint, "user: hello<e>it: ", 6)
    asked = f"system: be brief<e>user: hello<e>assistant: {first}<e>user: /x<e>it: "
    second = expected(checkpoint, asked, 6)
    kept = [("system", "be brief"), ("user", "hello"), ("assistant", first), ("user", "/x"), ("assistant", second)]
    assert said.out == f"{first}\n{second}\n"
    assert said.err.endswith("(the system message is set)\n(written: kept.json, 5 messages)\n")
    assert [(each["role"], each["content"]) for each in json.loads(Path("kept.json").read_text())] == kept


@pytest.mark.slow
def test_a_program_with_a_pipe_for_its_input_talks_as_well(checkpoint, tmp_path):
    args = command(checkpoint, "--max-new-tokens", "6", "--system", "be brief")
    done = subprocess.run(args, input="hello", capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == expected(checkpoint, "system: be brief<e>user: hello<e>it: ", 6) + "\n"


class Terminal:
    """A program in a terminal of its own: what is typed, and what is on the screen."""

    def __init__(self, args: list[str], folder: Path) -> None:
        self.screen = ""
        self.fd, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = subprocess.Popen(args, cwd=folder, env=environment, start_new_session=True, **ends)
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str, seconds: float = 90) -> str:
        """Read until the text is there; what was on the screen up to it."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < deadline, self.screen
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.screen += os.read(self.fd, 65536).decode(errors="replace").replace("\r\n", "\n")
                except OSError:  # Linux's way to say that the program has ended
                    break
        assert text in self.screen, self.screen
        before, _, self.screen = self.screen.partition(text)
        return before

    def end(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            os.close(self.fd)


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(checkpoint, tmp_path):
    whole = expected(checkpoint, "user: hello<e>it: ", 480)
    terminal = Terminal(command(checkpoint, "--max-new-tokens", "480"), tmp_path)
    assert "/help lists the commands" in terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("hello\n")
    terminal.wait_for(whole[1:4])  # it is writing
    terminal.type("\x03")
    terminal.wait_for("\n> ")
    terminal.type("/nonsense\n")
    terminal.wait_for("there is no command /nonsense (one of: /reset, /system, /save, /exit; // says it)")
    terminal.type("refuse\n")
    terminal.wait_for("zoo: error: chat template: not that")
    terminal.type("/save kept.json\n")
    terminal.wait_for("(written: kept.json, 2 messages)")
    terminal.type("/reset\n")
    terminal.wait_for("(a new conversation)")
    for key, told in (("\x03", "(/exit or Ctrl-D ends)"), ("\x04", "\n")):
        terminal.wait_for("> ")
        time.sleep(0.5)  # Python misses a signal between the prompt and its wait for a line, and readline a key
        terminal.type(key)
        terminal.wait_for(told)
    assert terminal.end() == 0
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [message["role"] for message in kept] == ["user", "assistant"]
    assert len(kept[1]["content"]) < len(whole)
    assert whole.startswith(kept[1]["content"].rstrip("\ufffd"))


def test_a_model_without_a_template_says_what_would_do(checkpoint, tmp_path, capsys):
    store.save_model(store.load(checkpoint), tmp_path / "plain", make_byte_tokenizer())
    assert run(["chat", "--checkpoint", str(tmp_path / "plain"), "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("zoo: error: chat template: ")
    assert "(--template FILE, or --template chatml, plain)" in err


def test_chatml_talks_with_a_model_that_has_no_template_of_its_own(checkpoint, tmp_path, piped):
    tokenizer = make_byte_tokenizer()
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])  # 257 and 258
    store.save_model(store.load(checkpoint), tmp_path / "plain", tokenizer)
    said = piped(tmp_path / "plain", "hi\n", "--max-new-tokens", "5", "--template", "chatml")
    ids = [257, *b"user\nhi", 258, *b"\n", 257, *b"assistant\n"]
    written = generate(store.load(checkpoint), torch.tensor([ids]), 5, stop_ids=[256, 258])[0, len(ids) :].tolist()
    assert said.out == tokenizer.decode(written) + "\n"


@pytest.mark.parametrize("verb", ["chat", "generate"])
def test_chatml_on_a_vocabulary_without_its_tokens_is_the_line_of_training(checkpoint, tmp_path, capsys, verb):
    (tmp_path / "asked.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    prompts = {"chat": [], "generate": ["--prompt-file", str(tmp_path / "asked.jsonl")]}[verb]
    assert run([verb, "--checkpoint", str(checkpoint), "--device", "cpu", "--template", "chatml", *prompts]) == 2
    fault = "writes <|im_start|>, which is no token of the vocabulary (a tokenizer that has it, or the template plain)"
    assert capsys.readouterr().err.splitlines()[-1] == f"zoo: error: template: {fault}"


@pytest.mark.parametrize("args", [["--temperature", "-1"], ["--max-new-tokens", "0"], ["--template", "nofile"]])
def test_an_option_that_will_not_do_is_refused_by_name(checkpoint, capsys, args):
    assert run(["chat", "--checkpoint", str(checkpoint), "--device", "cpu", *args]) == 2
    fault = capsys.readouterr().err.splitlines()[-1]
    assert fault.startswith(f"zoo: error: {args[0].removeprefix('--').replace('-', '_')}: ")


def test_a_second_ctrl_c_ends_the_program():
    from zoo.cli.chat import _interruptible

    conversation = type("Talk", (), {"interrupted": False})()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit), _interruptible(conversation):  # pyright: ignore
        signal.raise_signal(signal.SIGINT)
        assert conversation.interrupted
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
