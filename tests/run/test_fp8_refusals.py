"""float8 where it cannot be: refused by device, by package, by shape and by name, in one line."""

from __future__ import annotations

import re

import pytest

from support.tiny_models import spec_of
from zoo.cli import run
from zoo.errors import ConfigError
from zoo.kernels.base import Machine
from zoo.run import fp8
from zoo.run.builder import build


@pytest.mark.parametrize("recipe, device, capability, able", [
    ("tensorwise", "cuda", (8, 9), True),
    ("tensorwise", "cuda", (8, 6), False),
    ("tensorwise", "cuda", (12, 0), True),
    ("rowwise", "cuda", (9, 0), True),
    ("rowwise", "cuda", (8, 9), False),
    ("rowwise", "cuda", None, False),
    ("tensorwise", "cpu", None, False),
    ("weight_only", "cpu", None, True),
    ("weight_only", "cuda", (7, 5), True),
])  # fmt: skip
def test_a_recipe_is_refused_below_its_compute_capability(recipe, device, capability, able):
    reason = fp8.refuses(recipe, Machine(device, capability))
    assert (reason is None) == able
    if capability and not able:
        assert reason.endswith(f"found cuda of {capability[0]}.{capability[1]}")


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder that must stay so, end with 2 and say one line; gives the line."""
    monkeypatch.chdir(tmp_path)

    def refuse(*args: str) -> str:
        assert run(args) == 2
        assert not list(tmp_path.iterdir())
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refuse


@pytest.mark.parametrize("recipe, needed", [("tensorwise", "8.9"), ("rowwise", "9.0")])
def test_a_device_that_cannot_is_refused_in_one_line_before_anything_is_done(refused, recipe, needed):
    found = f"needs a CUDA device of compute capability {needed} or more, found cpu"
    expected = f"zoo: error: precision: fp8_{recipe} {found} (precision=bf16 would do)"
    assert refused("train", f"precision=fp8_{recipe}", "device=cpu") == expected
    expected = f"zoo: error: fp8: {recipe} {found} (weight_only would do)"
    assert refused("generate", "--fp8", recipe, "--device", "cpu", "--checkpoint", "nowhere") == expected


def test_a_missing_or_old_torchao_is_named_with_the_extra_that_brings_it(refused, monkeypatch):
    monkeypatch.setattr(fp8, "find_version", lambda _: "0.17.1+cu130")
    expected = "zoo: error: fp8: weight_only needs torchao 0.18 or later, found 0.17.1+cu130"
    command = ("generate", "--fp8", "weight_only", "--device", "cpu", "--checkpoint", "nowhere")
    assert refused(*command) == f"{expected} (pip install 'transformer-zoo[fp8]')"


def test_tokens_and_widths_that_float8_cannot_take_are_faults_of_the_config(refused):
    line = refused("train", "precision=fp8_rowwise", "batch_size=6", "accumulate=2", "seq_len=20")
    found = "takes tokens by multiples of 16, found 3 rows of 20 at a time (precision=bf16 would do)"
    assert line == f"zoo: error: precision: is fp8_rowwise, which {found}"
    narrow = ("model.d_model=40", "model.n_heads=2", "model.head_dim=20", "model.n_kv_heads=2", "model.d_ff=56")
    line = refused("train", "precision=fp8_rowwise", *narrow)
    assert re.search(r"precision: fp8_rowwise would take none of the model's products: \d+ \(no multiple of 16", line)


def test_recipes_that_are_none_are_refused_with_those_that_there_are():
    model = build(spec_of(), device="meta")
    with pytest.raises(ConfigError, match="would take none of the model's products: 21"):
        fp8.convert_to_fp8(
            build(spec_of(["d_model=40", "head_dim=12", "d_ff=56"]), device="meta"), "rowwise", emulate=True
        )
    with pytest.raises(ConfigError, match=r"there is no 'rowise' \(did you mean 'rowwise'\?\)"):
        fp8.quantize(model, "rowise")
    with pytest.raises(ConfigError, match=r"weight_only trains nothing \(one of: tensorwise, rowwise\)"):
        fp8.convert_to_fp8(model, "weight_only")
