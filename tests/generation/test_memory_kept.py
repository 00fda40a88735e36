"""Freed memory that a process keeps: what it does, that the verbs alone ask for it, and that the peak stays."""

from __future__ import annotations

import io
import platform
import sys
from pathlib import Path

import pytest
import torch
from test_engine_memory import measure

import zoo
from support.tiny_models import model_of
from zoo.checkpoint import store
from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer

glibc = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's setting, and Linux' count of pages"
)

FAULTS = """
    import resource, sys
    from zoo.run.machine_memory import keep_memory
    {call}
    for turn in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 << 20).add_(1)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@glibc
def test_the_pages_of_a_freed_tensor_are_there_for_the_next_one():
    """64 MiB, which glibc by itself gives back each time: 16,384 pages of 4 KiB, or 32 of 2 MiB."""
    _, *plain = measure(FAULTS.format(call=""))
    _, *kept = measure(FAULTS.format(call="keep_memory()"))
    assert min(plain) >= 32
    assert max(kept) < min(plain) / 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = model_of(["vocab_size=300", "max_seq_len=64"])
    return store.save_model(model, tmp_path / "model", make_byte_tokenizer())


def test_verbs_that_compute_on_a_cpu_keep_memory_and_functions_do_not(folder, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("zoo.run.machine_memory.keep_memory", lambda: calls.append(1))
    text = tmp_path / "text.txt"
    text.write_text("some words")
    (plain := tmp_path / "plain.jinja").write_text("{{ messages[0].content }}")
    zoo.evaluate(folder, ["some words"])
    zoo.embed(folder, ["some words"])
    zoo.generate(zoo.load(folder), torch.tensor([[1, 2]]), 2)
    assert not calls
    verbs = {
        "eval": [str(folder), "--file", str(text)],
        "embed": [str(folder), "some words"],
        "generate": ["--checkpoint", str(folder), "--max-new-tokens", "2"],
        "chat": ["--checkpoint", str(folder), "--template", str(plain), "--max-new-tokens", "2"],
        "fill": ["some [MASK]", "--checkpoint", str(folder)],
    }
    monkeypatch.setattr(sys, "stdin", io.StringIO("some words"))
    for number, (verb, args) in enumerate(verbs.items(), 1):
        assert run([verb, *args, "--device", "cpu"]) == (2 if verb == "fill" else 0)  # a decoder fills no masks
        assert len(calls) == number


@glibc
@pytest.mark.slow
def test_resident_memory_is_what_is_planned_where_memory_is_kept():
    """As `test_engine_memory` measures it: a cache of 256 MiB that is filled to the last page."""
    before, planned, peak = measure("""
        from zoo.run.machine_memory import keep_memory
        keep_memory()
        size = ["n_layers=2", "d_model=64", "n_heads=32", "n_kv_heads=32", "head_dim=64", "d_ff=64", "vocab_size=97"]
        model = zoo.build(compose.load("llama-tiny", [*size, "max_seq_len=1024"]), device="cpu").eval()
        list(Engine(model, rows=1, tokens=32).run([Request(ids=[1] * 8, max_new_tokens=8)]))
        print(resident())
        engine = Engine(model, rows=8, tokens=1024, budget=64, reuse=False)
        print(engine.store.nbytes / 2**20)
        list(engine.run([Request(ids=[n] * 1000, max_new_tokens=24) for n in range(8)]))
        print(most())
    """)
    assert planned == 256
    assert abs(peak - before - planned) <= max(0.05 * planned, 64)
