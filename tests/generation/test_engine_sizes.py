"""An engine's default sizes follow from the device and from the memory that is free there."""

import pytest
import torch

from support.tiny_models import model_of
from zoo.generation import engine_sizes
from zoo.generation.engine import Engine
from zoo.generation.engine_sizes import size_engine
from zoo.generation.request import Request
from zoo.text import follow
from zoo.text.jobs import TextJob

GPU = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """A GPU with so many bytes free, of which nothing but that number is read."""

    def make(free):
        monkeypatch.setattr(engine_sizes, "read_free_memory", lambda device: free)

    return make


def test_a_gpu_serves_more_rows_and_tokens_at_a_time_than_a_processor(card):
    card(80 << 30)
    assert size_engine(torch.device("cpu"), 50_000) == (32, 512, None)
    rows, budget, memory = size_engine(GPU, 128_256)
    assert (rows, budget) == (256, 8192)
    logits = 4 * 4 * 256 * 128_256  # float32: of recorded steps, as taken, as probabilities, and sorted
    assert memory == (80 << 30) - (80 << 30) // 10 - logits
    assert size_engine(GPU, 128_256, 5).memory == memory - 4 * logits  # 4 draft tokens and the one before them


def test_a_full_gpu_leaves_no_memory_to_a_cache_rather_than_less_than_none(card):
    card(1 << 20)
    assert size_engine(GPU, 128_256).memory == 0


def use_sizes_of_a_gpu(monkeypatch):
    """Let an engine on the CPU take the sizes that it would take on a GPU."""
    for module in ("zoo.generation.engine", "zoo.text.follow"):
        monkeypatch.setattr(f"{module}.size_engine", lambda device, *sizes: size_engine(GPU, *sizes))


def test_the_cache_of_default_rows_takes_what_is_free_and_no_more(card, monkeypatch):
    model = model_of([])
    whole = Engine(model, rows=256, tokens=64).store.nbytes
    spare = 4 * 4 * 256 * model.spec.output_vocab_size
    use_sizes_of_a_gpu(monkeypatch)
    for share in (1.0, 0.5, 0.1):
        card(int((whole * share + spare) / 0.9) + 1)
        engine = Engine(model, tokens=64)
        assert engine.store.nbytes <= whole * share
        assert engine.scheduler.rows == pytest.approx(256 * share, abs=1)


def test_rows_that_a_caller_states_are_kept_whatever_is_free(card, monkeypatch):
    model = model_of([])
    use_sizes_of_a_gpu(monkeypatch)
    card(1)
    assert Engine(model, rows=5, tokens=64).scheduler.rows == 5


def test_prompts_of_a_file_wait_for_one_another_where_memory_is_short(card, monkeypatch):
    model = model_of([])
    a_row = Engine(model, rows=8, tokens=32).store.nbytes // 8
    use_sizes_of_a_gpu(monkeypatch)
    jobs = [TextJob(Request(ids=[1, 2, 3], max_new_tokens=29), "here", before=(1, 2, 3)) for _ in range(8)]
    card(int((3 * a_row + 4 * 4 * 256 * model.spec.output_vocab_size) / 0.9) + 2)
    assert follow.make_engine(model, jobs).scheduler.rows in (2, 3)
