"""The command line's edge: mistakes of Zoo's, strangers' texts, numbers no figure holds, and what exit codes say."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pty
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.command_lines import ROOT, zoo_process
from zoo.cli import failing, run
from zoo.cli.failing import choose_exit_code
from zoo.cli.output import SafeStream, print_own_warnings
from zoo.compose import load
from zoo.costs.repeats import find_repeats
from zoo.report.svg import Curve, draw_panel

EVIL = "\x1b]0;title\x07$\\frac$[/red]\x9b31m"

# ---------------------------------------------------------------- the last net


def test_a_mistake_in_a_component_names_its_line(monkeypatch, capsys) -> None:
    def fail(*args: object, **options: object) -> None:
        exec(compile("\n\n1 / 0", str(failing.MODEL / "mine.py"), "exec"))

    monkeypatch.setattr("zoo.costs.price", fail)
    assert run(["stats", "gpt2"]) == 1
    assert "found ZeroDivisionError in zoo/model/mine.py, line 3: division by zero (" in capsys.readouterr().err


@pytest.mark.parametrize(
    "mistake", [ZeroDivisionError("by zero"), RecursionError("deep"), KeyError("x"), EOFError("end")]
)
def test_a_mistake_of_zoos_is_one_line_that_names_the_file_with_its_trace(mistake, monkeypatch, capsys) -> None:
    def fail(*args: object, **options: object) -> None:
        raise mistake

    monkeypatch.setattr("zoo.costs.price", fail)
    assert run(["stats", "gpt2"]) == 1
    (line,) = filter(None, capsys.readouterr().err.splitlines())  # click says an empty one for an EOFError
    assert line.startswith(f"zoo: error: bug: this is a mistake of Zoo's, not yours, found {type(mistake).__name__}")
    trace = Path(line.rpartition(" ")[2].rstrip(")")).read_text()
    assert trace.startswith("zoo stats gpt2\n") and "in fail" in trace and type(mistake).__name__ in trace
    assert run(["stats", "gpt2", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_trace_that_can_be_written_nowhere_is_no_second_mistake(monkeypatch, capsys, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("zoo.paths.find_cache_folder", lambda: tmp_path / "file" / "cache")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    monkeypatch.setattr("zoo.costs.price", lambda *args, **options: 1 / 0)
    assert run(["stats", "gpt2"]) == 1
    assert capsys.readouterr().err.endswith("(--debug shows its trace: report it)\n")


def test_too_little_memory_is_no_mistake_of_zoos(monkeypatch, capsys) -> None:
    def fail(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("zoo.costs.price", fail)
    assert run(["stats", "gpt2"]) == 1
    assert (
        capsys.readouterr().err == "zoo: error: memory: the command needs more than there is, found too little memory\n"
    )


# ---------------------------------------------------------------- what exit codes say


@pytest.mark.parametrize("name", ["ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "EINVAL", "ENXIO"])
def test_an_input_that_cannot_be_opened_is_the_users_to_mend(name: str) -> None:
    assert choose_exit_code(OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "some/file")) == 2


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EMFILE", "ENOMEM"])
def test_a_disk_that_fails_is_not(name: str) -> None:
    assert choose_exit_code(OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "some/file")) == 1
    assert choose_exit_code(ConnectionResetError(errno.ECONNRESET, "reset")) == 1


def test_a_refused_file_is_the_users_to_mend_unless_it_was_to_be_written(tmp_path, monkeypatch) -> None:
    (tmp_path / "there").write_text("")
    refused = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "there"))
    assert choose_exit_code(refused) == 1  # it may be read
    refused.filename = str(tmp_path / "new")
    assert choose_exit_code(refused) == 1  # its folder may be read
    monkeypatch.setattr("os.access", lambda *args: False)
    assert choose_exit_code(refused) == 2


@pytest.mark.parametrize(
    "args", [["stats", "loop"], ["plot", "loop"], ["train", "-c", "loop"], ["build", "loop/x.yaml"]]
)
def test_a_loop_of_links_is_an_input_that_cannot_be_read(args, here, refused) -> None:
    (here / "loop").symlink_to("loop")
    (line,) = refused(*args)
    assert "loop" in line and "bug:" not in line


@pytest.mark.parametrize("text", ["a\0b", "pr\udcffompt", "n_layers=\ud800"])
def test_an_argument_that_is_no_text_is_refused(text: str, refused) -> None:
    (line,) = refused("stats", "gpt2", text)
    assert line.startswith("argument 3: ") and ascii(text)[1:-1] in line


def test_a_file_whose_name_is_no_utf8_is_read(here: Path, capsys) -> None:
    (here / "m\udcff.yaml").write_text("defaults: [/model/gpt-tiny@_here_]\n")
    with contextlib.redirect_stdout(io.StringIO()) as out:  # which holds such a name; a terminal is sent escapes
        assert run(["stats", "m\udcff.yaml"]) == 0
    assert out.getvalue().startswith("m\udcff.yaml")


def test_a_name_that_is_empty_is_a_place_too(refused) -> None:
    assert refused("stats", "")[0].startswith("'': no packaged model")


# ---------------------------------------------------------------- numbers

D80 = "9" * 80
BEYOND = [
    ("predict FIT --flops 0", "flops: must be from 1 to 1e+30, found '0'"),
    ("predict FIT --flops 1e309", "flops: must be from 1 to 1e+30, found '1e309'"),
    ("predict FIT --params 0 --tokens 1e9", "params: must be from 1 to 1e+30, found '0'"),
    ("predict FIT --params 1e7 --loss nan", "--loss"),
    ("predict FIT --params 1e7 --loss inf", "loss: is inf (a finite number)"),
    ("solve batch gpt2 --memory 1e305GB", "memory: must be from 1 to 1e+30, found '1e305GB'"),
    ("solve shape --params 1e400", "budget: must be from 1 to 1e+30, found '1e400'"),
    (f"stats gpt2 --context {D80}", "context: is a number of 266 bits"),
    ("stats gpt2 --batch 9000000000000000000", "batch: is 9000000000000000000 (at most 1,000,000,000,000,000)"),
    ("stats gpt2 --document 1 --context 1000000000000", "document: 1 makes 1,000,000,000,000 of a sequence"),
    ("stats gpt2 --mfu nan", "mfu: is nan (a finite number)"),
    ("stats gpt2 --tokens 1e300", "tokens: must be from 1 to 1e+30"),
    ("fit POINTS --bootstrap 1000000000000", "--bootstrap: is '1000000000000' (at most 10,000)"),
    ("stats gpt2 n_layers=1e30", "n_layers: must be a whole number above 0, found 1e+30"),
    (f"stats gpt2 vocab_size={D80}", "vocab_size: is a number of 266 bits (at most 1,000,000,000,000,000)"),
    (f"stats gpt2 d_ff={D80}", "d_ff: is a number of 266 bits (at most 1,000,000,000,000,000)"),
]


@pytest.mark.parametrize(("command", "fault"), BEYOND, ids=lambda each: each[:40])
def test_a_number_that_no_figure_holds_is_refused(command: str, fault: str, here: Path, refused, capsys) -> None:
    if "FIT" in command or "POINTS" in command:
        grid = [(n, d) for n in (1e6, 1e7, 1e8) for d in (1e8, 1e9, 1e10)]
        rows = [f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}" for n, d in grid]
        (here / "POINTS.csv").write_text("\n".join(["params,tokens,loss", *rows]))
        assert run(["fit", "POINTS.csv", "--bootstrap", "0", "--out", "FIT"]) == 0
        capsys.readouterr()
    (line, *_) = refused(*command.split())
    assert fault in line


def test_the_value_of_an_option_is_refused_in_plain_words(refused) -> None:
    lines = {
        "build gpt2 --dtype bf61": "--dtype: there is no 'bf61' (did you mean 'bf16'?)",
        "embed DIR --dim 0": "--dim: is '0' (at least 1)",
        "fit POINTS --approach x": "--approach: is 'x' (a whole number)",
    }
    for command, line in lines.items():
        assert refused(*command.split()) == [line]


@pytest.mark.parametrize("change", ["d_model=1000000000000", "vocab_size=1000000000000", "n_layers=100000"])
def test_a_huge_model_is_priced_and_every_figure_is_finite(change: str, capsys) -> None:
    assert run(["stats", "llama3-8b", change, "--json", "--context", "1000000000"]) == 0
    assert not {"Infinity", "NaN", "inf", "nan"} & set(capsys.readouterr().out.replace(",", " ").split())


# ---------------------------------------------------------------- strangers' texts


def run_on_terminal(*args: str, cwd: Path) -> bytes:
    """Run a command with its output on a terminal of its own, and return what that is sent."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
        environment.pop("NO_COLOR", None)
        os.execve(sys.executable, [sys.executable, "-m", "zoo", *args], environment)
    sent = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # EIO: the command has ended
            piece = b""
        if not piece:
            break
        sent += piece
    os.waitpid(pid, 0)
    os.close(terminal)
    return sent


def test_no_control_character_of_a_strangers_reaches_a_terminal(here: Path) -> None:
    title = EVIL.replace("\\", "\\\\").replace("\x1b", "\\e").replace("\x07", "\\a").replace("\x9b", "\\x9b")
    (here / "evil.yaml").write_text(f'defaults: [/model/gpt-tiny@_here_]\nabout: {{title: "{title}"}}\n')
    (here / EVIL.replace("/", "")).write_text("x")
    for args in (
        ["stats", "evil.yaml"],
        ["diff", "evil.yaml", "gpt-tiny", "n_layers=3"],
        ["stats", "x\x1b]0;t\x07"],
        ["list", EVIL],
    ):
        sent = run_on_terminal(*args, cwd=here)
        left = sent.replace(b"\x1b[1m", b"").replace(b"\x1b[0m", b"")
        assert len(left) > 30 and not {0x1B, 0x07, 0x00} & set(left) and b"\xc2\x9b" not in left, sent
        if args == ["stats", "x\x1b]0;t\x07"]:
            assert rb"x\x1b]0;t\x07" in sent
    assert b"\x1b[1m" in run_on_terminal("stats", "gpt-tiny", cwd=here)  # our own bold passes


def test_a_pipe_gets_escapes_too(here: Path) -> None:
    done = zoo_process("stats", "x\x1b]0;t\x07", cwd=here)
    assert done.returncode == 2 and r"x\x1b]0;t\x07: no packaged model" in done.stderr


def test_a_stream_escapes_and_lets_pass_what_is_ours() -> None:
    below = io.StringIO()
    stream = SafeStream(below)
    for text in ("plain\ttext\n", "\r 50 %|bar", "a\rb\x1b[2J\x9b", "\ufdd0bold\ufdd1\n"):
        stream.write(text)
    assert below.getvalue() == "plain\ttext\n\r 50 %|bara\\rb\\x1b[2J\\x9b\033[1mbold\033[0m\n"
    assert stream.unescaped is below and stream.isatty() is False


@pytest.mark.filterwarnings("always")
def test_a_warning_of_zoos_is_a_note_and_anothers_stays_as_it_is(monkeypatch, capsys) -> None:
    others: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *more, **named: others.append(str(message)))
    print_own_warnings()
    exec(compile("load('llama-tiny', ['attention=gated_delta'])", f"{ROOT}/zoo/run/builder.py", "exec"), {"load": load})
    warnings.warn("of a test", stacklevel=1)
    assert capsys.readouterr().err == (
        "zoo: note: attention=gated_delta: reads no positions, so position (rope) is left out\n"
    )
    assert others == ["of a test"]


def test_rich_tables_show_a_strangers_text_as_it_is(monkeypatch) -> None:
    from rich.text import Text

    from zoo.report.console import make_console

    below = io.StringIO()
    monkeypatch.setattr("sys.stdout", SafeStream(below))
    console = make_console(force_terminal=True, width=100, legacy_windows=False)
    console.print(EVIL, style="bold")
    console.print(Text(EVIL))
    shown = below.getvalue()
    assert shown.count(r"\x1b]0;title") == 2 and shown.count("[/red]") == 2 and "\x1b]" not in shown
    assert "\x1b[1m" in shown  # rich's own


def test_svg_and_pictures_hold_a_title_literally(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from zoo.report.price_plot import as_label, write_figure

    ElementTree.fromstring(draw_panel(EVIL, [Curve([1, 2], [1, 2], EVIL)], EVIL))
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([1, 2], [1, 1000], label=as_label(f"_{EVIL}"))
    axes.set(title=EVIL, xlabel="$", yscale="log")
    axes.set_xticks([1, 2], [EVIL, "b"])
    axes.legend()
    write_figure(figure, tmp_path / "x.svg")
    said = [each.text for each in ElementTree.parse(tmp_path / "x.svg").iter() if each.text and "frac" in each.text]
    assert len(said) == 3 and all(r"\x1b]0;title\x07$\frac$" in each for each in said)


def test_a_page_holds_no_control_character() -> None:
    from zoo.report.run_page import render_page

    made = render_page("<p>{{ title }}</p>{{ picture | safe }}", title=EVIL + "<b>", picture="<svg/>")
    assert "<p>\\x1b]0;title\\x07$\\frac$[/red]\\x9b31m&lt;b&gt;</p><svg/>" in made
    assert "<title>\\x1b]0;title" in made and not {*made} & {*map(chr, (*range(9), *range(11, 32), *range(127, 160)))}


# ---------------------------------------------------------------- depth


@pytest.mark.parametrize("text", ["abbcbbcbbcb", "aaaa", "a", "", "abcabcabcab", "dddabababab", "abcdefg", "aabaacaad"])
def test_blocks_put_together_again_are_the_sequence(text: str) -> None:
    blocks = find_repeats(text)
    assert "".join("".join(block) * times for block, times in blocks) == text


def test_a_long_pattern_is_a_few_blocks() -> None:
    assert find_repeats(("n",) * 3 + ("a", "a", "b") * 30_000 + ("a",)) == [
        *((("n",), 3), (("a", "a", "b"), 30_000), (("a",), 1)),
    ]


def test_a_pattern_of_too_many_entries_is_refused_before_it_is_read_out(here: Path, refused, monkeypatch) -> None:
    monkeypatch.setattr("zoo.grammar.pattern.MOST_NAMES", 100)
    text = f"defaults: [/model/gpt-tiny@_here_]\nn_layers: 3\npattern: [{','.join(['layer'] * 101)}]\n"
    (here / "long.yaml").write_text(text)
    (line,) = refused("stats", "long.yaml")
    assert line.endswith("pattern: has 101 entries (at most 100; name*3 stands for three)")
