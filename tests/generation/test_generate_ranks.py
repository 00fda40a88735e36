"""`zoo generate --tp`: ranks that compute a part of a model each write what one process writes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import zoo
from support.forked_processes import run_zoo
from support.parallel_runs import BASE, MODELS, here  # noqa: F401  (a fixture)
from zoo import cli
from zoo.checkpoint.stored import StoredModel, StoredTensors
from zoo.costs.rank_model import shard_model
from zoo.distributed.sharded_tensors import Division, Shares
from zoo.distributed.world import World
from zoo.errors import ConfigError
from zoo.run.builder import build, load_spec
from zoo.run.rank import find_ranks
from zoo.spec.cuts import find_cuts
from zoo.text import loading

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


def test_a_rank_reads_the_slices_of_its_part_and_no_whole_model(monkeypatch):
    """One of two ranks, whose group is this process alone: what is read are half of the products, whole norms."""
    spec = load_spec("llama-tiny", ["n_layers=2"])
    whole, asked = build(spec, device="cpu").state_dict(), {}

    def find_slices(name):
        def read(slices):
            asked[name] = whole[name][slices]
            return asked[name]

        return read

    forms = {name: each.to("meta") for name, each in whole.items()}
    stored = StoredModel(spec, StoredTensors(forms, lambda name: pytest.fail(f"{name} whole"), find_slices=find_slices))
    part = build(shard_model(spec, 2), device="meta")
    part.whole = spec
    group = SimpleNamespace(rank=1, size=2)
    part.shares = Shares(tensor=Division(find_cuts(spec, part.spec, 2), group))
    monkeypatch.setattr(loading, "build_part", lambda *_: part)
    read = loading.read_part(stored, World(1, 2), torch.device("cpu"))
    assert {name: each.shape for name, each in asked.items()} == {n: e.shape for n, e in read.state_dict().items()}
    assert asked["blocks.0.attention.q.weight"].shape[0] * 2 == whole["blocks.0.attention.q.weight"].shape[0]
    assert all(torch.equal(each, read.state_dict()[name]) for name, each in asked.items())


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
