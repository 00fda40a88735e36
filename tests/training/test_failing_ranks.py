"""A rank whose evaluation fails never leaves the others in the middle of a pass with other weights than theirs."""

import atexit
import time

import pytest
from torch import distributed

import zoo
from support.forked_processes import make_environment, run_forked
from support.parallel_runs import BASE, MODELS, here, lines_of  # noqa: F401  (a fixture)
from zoo import cli
from zoo.checkpoint.store import save_model
from zoo.distributed.meeting import join_processes
from zoo.distributed.world import World, leave_group
from zoo.errors import ZooError
from zoo.training.failures import failures_in_one_line


@pytest.fixture
def train(here):  # noqa: F811
    """Train in two processes, of which these ranks fail in a `work` of validation. Returns what each exited with, and
    what each said."""

    def run(work, error, ranks):
        model, own = MODELS["dense"]
        options = [*BASE, *own, "batch_size=8", "steps=4", "eval_every=2", "save_every=null", "parallel=fsdp"]
        words = ["train", f"model={model}", *options, "hydra.run.dir=run"]
        store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environments = [make_environment(rank, 2, store.port) for rank in range(2)]
        program = "support.failing_evaluations:main"
        return run_forked([(program, [work, error, ranks, words], each) for each in environments], timeout=120)

    return run


def test_memory_that_one_rank_lacks_ends_the_run_at_once(train):
    began = time.monotonic()
    ended = train("evaluate", "memory", [1])
    assert time.monotonic() - began < 60  # gloo waits ten minutes for a rank that does not come
    code, said = ended[1]
    assert code == 1 and "rank 1: memory: ran out, found CUDA out of memory" in said
    assert "training goes on" not in said + ended[0][1]
    assert max(line["step"] for line in lines_of("run")) == 2


@pytest.mark.slow
def test_a_sample_without_a_next_token_has_none_in_any_rank_and_costs_the_sample_alone(train):
    ended = train("write_sample", "logits", [0, 1])
    assert [code for code, _ in ended] == [0, 0]
    assert "step 2: no sample, found token 2 has logits that are NaN (training goes on)" in ended[0][1]
    assert lines_of("run")[-1]["step"] == 4


@pytest.fixture
def at_exit(monkeypatch):
    """What a rank over NCCL calls at its exit: over NCCL, unlike gloo, destroying the group waits for collectives that
    this rank never joins."""
    calls = []
    monkeypatch.setattr(atexit, "register", calls.append)
    monkeypatch.setattr(atexit, "unregister", calls.remove)
    monkeypatch.setattr(distributed, "init_process_group", lambda *_, **__: None)
    join_processes(World(1, 2, 1), "cuda")
    assert calls == [leave_group]  # which waits for the others
    return calls


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(28, "No space left"), MemoryError()])
def test_after_an_error_the_exit_of_a_training_rank_waits_for_no_other(error, at_exit, tmp_path):
    with failures_in_one_line(tmp_path):
        pass
    assert at_exit  # of their own accord the ranks end together
    with pytest.raises((RuntimeError, ZooError)), failures_in_one_line(tmp_path):
        raise error
    assert at_exit == []


def test_after_an_error_the_exit_of_a_generating_rank_waits_for_no_other(at_exit, tmp_path, monkeypatch):
    def fail(*args, **given):
        raise ZooError("memory: ran out")

    save_model(zoo.build("llama-tiny", ["n_layers=1"]), tmp_path / "model")
    monkeypatch.setattr("zoo.text.loading.load", fail)
    assert cli.run(["generate", "--checkpoint", str(tmp_path / "model"), "--prompt", "a"]) == 1
    assert at_exit == []
