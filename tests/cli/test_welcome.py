"""`zoo` alone, on a terminal: what is in the folder, and commands for it."""

import json
import os
import pty
import shlex
import subprocess
import sys

import pytest

from support.command_lines import ROOT
from zoo.cli import run
from zoo.cli.welcome import MOST, list_next_steps


@pytest.fixture
def used(tmp_path, monkeypatch):
    """A folder as it is after some work: a run, a model's YAML, a training config, and a Hugging Face folder."""
    monkeypatch.chdir(tmp_path)
    run_folder = tmp_path / "runs/2026-11-30/first"
    (run_folder / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs/last").write_text("runs/2026-11-30/first\n")
    (tmp_path / "mine.yaml").write_text("# a model\nd_model: 64\n")
    (tmp_path / "run.yaml").write_text("model: {d_model: 64}\nsteps: 3\n")
    (tmp_path / "notes.yaml").write_text("text: nothing of Zoo's\n")
    (tmp_path / "a model").mkdir()
    (tmp_path / "a model/config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path


def test_each_thing_has_the_commands_that_take_it(used):
    lines = list_next_steps()
    assert lines[1:3] == [
        "  runs/2026-11-30/first, the last run: zoo generate --prompt TEXT",
        "  runs/2026-11-30/first has no result yet: zoo train --resume runs/2026-11-30/first",
    ]
    assert set(lines[3:-1]) == {
        "  mine.yaml: zoo stats mine.yaml, zoo draw mine.yaml, zoo train mine.yaml steps=100",
        "  run.yaml: zoo train -c run.yaml",
        "  'a model': zoo stats 'a model'",
    }
    (used / "runs/2026-11-30/first/result.json").write_text("{}")
    assert not any("--resume" in line for line in list_next_steps())


def test_the_commands_are_those_that_zoo_has(used, capsys):
    for line in list_next_steps()[1:-1]:
        for command in line.rpartition(": ")[2].split(", "):
            zoo, verb, *rest = shlex.split(command)
            assert zoo == "zoo" and run([verb, "--help"]) == 0
            assert all(option in capsys.readouterr().out for option in rest if option.startswith("--"))


def test_there_are_never_more_than_ten_lines_and_none_for_an_empty_folder(used, tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text("d_model: 64\n")
    lines = list_next_steps()
    assert len(lines) == MOST + 2 == 10
    assert lines[-2] == f"  and {30 + 5 - (MOST - 1)} more like these"
    (tmp_path / "empty").mkdir()
    assert list_next_steps(tmp_path / "empty") == []


def test_a_name_that_would_move_the_cursor_is_printed_as_text(tmp_path):
    (tmp_path / "\x1b[2Jmine.yaml").write_text("d_model: 64\n")
    assert "\x1b" not in "".join(list_next_steps(tmp_path)) and "x1b" in "".join(list_next_steps(tmp_path))


def test_a_terminal_shows_them_and_a_pipe_shows_the_help_without_torch(used):
    code = "import sys; from zoo.cli import run; run([]); sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    mine, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment, cwd=used, check=False)
    assert done.returncode == 0
    assert os.read(mine, 4096).decode().startswith("What is here, and what can be done with it:")
    os.close(mine)
    os.close(theirs)
    piped = subprocess.run([sys.executable, "-m", "zoo"], capture_output=True, env=environment, cwd=used, check=False)
    assert piped.returncode == 0 and piped.stdout.decode().startswith("Usage: zoo")
