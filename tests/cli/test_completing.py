"""What a shell is offered for a word that is begun."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from support.command_lines import ROOT, zoo_process
from zoo.cli import completing
from zoo.paths import conf_dir

COMPLETE = """
eval "$(zoo --show-completion bash)"
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMPREPLY=()
_zoo_completion zoo
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def path_with_zoo(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bin")
    (folder / "zoo").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m zoo "$@"\n')
    (folder / "zoo").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


COMPLETED = [
    *(("zoo stats llama3-8b attention = mq", ["mqa"]), ("zoo st", ["stats"])),
    *(("zoo build llama-", ["llama-tiny"]), ("zoo train model = mixtral-t", ["mixtral-tiny"])),
    ("zoo stats llama3-8b position = alibi n_la", ["n_layers=", "n_layers=32"]),
    ("zoo stats llama3-8b position = ro", sorted(p.stem for p in (conf_dir() / "position").glob("ro*.yaml"))),
    *(("zoo train optim.l", ["optim.lr=", "optim.lr=0.002"]), ("zoo stats --js", ["--json"])),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "answers"),
    [pytest.param(*each, marks=pytest.mark.slow if at % 4 else ()) for at, each in enumerate(COMPLETED)],
)
def test_bash_completes_although_it_splits_words_at_equals(words: str, answers: list[str], path_with_zoo: str) -> None:
    script = COMPLETE.format(words=words)
    environment = {**os.environ, "PATH": path_with_zoo}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == answers


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("zoo stats llama3-8b attention=mq", ["attention=mqa"]),
        ("zoo train model=llama-t", ["model=llama-tiny"]),
        ("zoo train optim.l", ["optim.lr=", "optim.lr=0.002"]),
    ],
)
def test_zsh_is_given_whole_words(line: str, answers: list[str]) -> None:
    done = zoo_process(env={"_ZOO_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line})
    assert re.findall(r'"([^"]*)"', done.stdout) == answers


def test_bashs_pieces_are_joined_to_words() -> None:
    pieces = ["zoo", "train", "model", "=", "a,b", "attention", "@", "model.attention", "=", "m", "x"]
    assert completing.join_pieces(pieces) == ["zoo", "train", "model=a,b", "attention@model.attention=m", "x"]
