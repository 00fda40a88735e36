"""`zoo stats --verify`: the checks themselves, on models of every shape and at full size, and that they can fail."""

import pytest

import zoo.cli
import zoo.verify
from support.packaged_specs import load
from support.tiny_models import needs, spec_of
from zoo.costs import Setup
from zoo.verify import verify

SMALL = ["llama-tiny"]
FULL = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("gpt-tiny", "mixtral-tiny", "bert-base", "t5-small", "longformer-base-4096")
]


@pytest.mark.parametrize("name", [*SMALL, *FULL])
def test_every_check_of_a_packaged_model_is_equal(name):
    rows = verify(load(name), Setup(context=96))
    assert [row["name"] for row in rows if not row["equal"]] == []
    assert all(row["found"] > 0 for row in rows)
    writes = name not in ("bert-base", "longformer-base-4096")
    assert len(rows) == (8 if writes else 6)


@pytest.mark.slow
def test_every_check_of_a_model_with_windows_is_equal():
    rows = verify(load("gemma2-2b", ["n_layers=2", "window=50"]), Setup(context=96))
    assert [row["name"] for row in rows if not row["equal"]] == [] and len(rows) == 8


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["dsa", "msa", "dsa_pooled", "csa", "hca", "qsa"])
def test_every_check_of_a_model_that_chooses_keys_is_equal(attention):
    rows = verify(spec_of([f"attention={attention}", *needs(f"attention={attention}")]), Setup(context=60))
    assert [row["name"] for row in rows if not row["equal"]] == [] and len(rows) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "mamba2-130m", "deepseek-v2-lite", "gpt-oss-20b"])
def test_every_check_of_a_large_model_is_equal(name):
    assert [row["name"] for row in verify(load(name)) if not row["equal"]] == []


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        ("adamw", "fp32"),
        *(
            pytest.param(optimizer, dtype, marks=pytest.mark.slow)
            for optimizer in ("adamw", "sgd", "adafactor", "muon")
            for dtype in ("fp32", "bf16")
            if (optimizer, dtype) != ("adamw", "fp32")
        ),
    ],
)
def test_the_set_up_decides_what_is_checked(optimizer, dtype):
    rows = {row["name"]: row for row in verify(load("llama-tiny"), Setup(optimizer=optimizer, dtype=dtype, batch=3))}
    held = {name: row["equal"] for name, row in rows.items()}
    assert held.pop("optimizer states, bytes") is (None if optimizer == "adafactor" else True)
    assert all(held.values())
    assert optimizer in rows["optimizer states, bytes"]["note"]
    assert "3 × 512 tokens" in rows["KV cache, bytes"]["note"]


def test_a_wrong_count_is_told_and_exits_with_one(monkeypatch, capsys):
    monkeypatch.setattr(zoo.verify, "product_flops", lambda *args, **options: 1)
    assert zoo.cli.run(("stats", "llama-tiny", "--verify")) == 1
    said = capsys.readouterr().out
    assert "DIFFERS: FLOPs, forward" in said and "equal: parameters" in said
