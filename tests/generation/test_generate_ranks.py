"""`zoo generate --tp`: ranks that compute a part of a model each write what one process writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from support.forked_processes import run_zoo
from support.parallel_runs import BASE, MODELS, here  # noqa: F401  (a fixture)
from zoo import cli
from zoo.errors import ConfigError
from zoo.run.rank import find_ranks

PROMPTS = ["the quick fox", "a dog runs over the lazy tree and", "it"]


def generate(*args):
    command = [sys.executable, "-m", "zoo", "generate", "--checkpoint", "run", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture
def train(here):  # noqa: F811
    def train(name):
        model, own = MODELS[name]
        steps = ["steps=2", "batch_size=8", "sample=null", "eval_batches=1", *BASE[:-1], *own]
        zoo.train(model, [*steps, "hydra.run.dir=run"])
        return here

    return train


CASES = {
    "dense": ["--temperature", "0.8", "--seed", "3", "--n", "2"],
    "hybrid": ["--temperature", "0"],
    "latents": ["--temperature", "0.9", "--seed", "1"],
    "encoder_decoder": ["--n-beams", "3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_ranks_write_together_what_one_process_writes(name, train):
    train(name)
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    written = []
    for ranks in (1, 2):
        asked = ("--prompt-file", "prompts.txt", "--max-new-tokens", "12", *CASES[name])
        done = generate(*asked, "--tp", str(ranks), "--out", f"{ranks}.jsonl")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in Path(f"{ranks}.jsonl").read_text().splitlines()]
        written.append([(line["index"], line["sample"], line["tokens"]) for line in lines])
    assert written[0] == written[1] and len(written[0]) >= 3


@pytest.mark.slow
def test_one_text_is_printed_once_by_ranks(train):
    train("dense")
    words = ["generate", "--checkpoint", "run", "--prompt", PROMPTS[0], "--max-new-tokens", "12", "--seed", "2"]
    ((code, alone),) = run_zoo(words)
    first, second = run_zoo([*words, "--tp", "2"], ranks=2)
    assert code == 0 and alone.strip()
    assert first == (0, alone) and second == (0, "")


@pytest.mark.slow
def test_graphs_that_ranks_cannot_record_are_refused(train):
    train("dense")
    words = [
        "generate",
        "--checkpoint",
        "run",
        "--prompt",
        PROMPTS[0],
        "--max-new-tokens",
        "2",
        "--tp",
        "2",
        "--graphs",
    ]
    assert [code for code, _ in run_zoo(words, ranks=2)] == [2, 2]


def test_what_ranks_cannot_do_is_refused_before_one_starts(train, capsys, monkeypatch):
    train("dense")
    for options, fault in (
        (["--prompt", "x", "--tp", "5"], "tp: 5 does not divide n_heads=6"),
        (["--prompt", "-", "--tp", "2"], "prompt: is on standard input, which tp=2 processes would share"),
        (["--prompt", "x", "--tp", "2", "--weights", "int8"], "weights: is for one process, found tp=2"),
    ):
        assert cli.run(["generate", "--checkpoint", "run", *options]) == 2
        assert fault in capsys.readouterr().err
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="2 ranks were asked for, torchrun has started 3"):
        find_ranks(2)
