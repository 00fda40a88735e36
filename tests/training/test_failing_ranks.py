"""A rank whose evaluation fails never leaves the others in the middle of a pass with other weights than theirs."""

import time

import pytest
from torch import distributed

from support.forked_processes import make_environment, run_forked
from support.parallel_runs import BASE, MODELS, here, lines_of  # noqa: F401  (a fixture)


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
