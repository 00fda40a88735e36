"""In which dtype a saved model generates: the GPU decides for itself, and the host's processor never for it.

The device is meta, described as a GPU: weights are read and cast, and nothing is computed."""

import pytest
import torch

import zoo
from zoo.checkpoint import store
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.distributed.world import World
from zoo.kernels.base import Machine
from zoo.text import loading

HOPPER, TURING = (9, 0), (7, 5)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Load a checkpoint of this dtype on a GPU of this capability; returns the model's dtype, and what was said."""

    def load(saved, capability=HOPPER, ranks=1, **options):
        small = ["n_layers=1", "d_model=32", "n_heads=2", "n_kv_heads=2", "d_ff=48"]
        model = zoo.build("llama-tiny", small, device="cpu", dtype=saved)
        folder, said = store.save_model(model, tmp_path / saved, make_byte_tokenizer()), []
        machine = Machine("cuda", capability, frozenset())
        monkeypatch.setattr(loading, "pick_rank_device", lambda *_: torch.device("meta"))
        monkeypatch.setattr(loading, "machine_of", lambda device: machine)
        monkeypatch.setattr(loading, "settle_cpu", lambda *_, **__: pytest.fail("the host was asked"))
        monkeypatch.setattr(loading, "read_part", lambda stored, *_: stored.build("meta"))
        found = loading.load(folder, world=World(0, ranks), note=said.append, **options).model
        (dtype,) = {each.dtype for each in found.parameters()}
        return str(dtype).removeprefix("torch."), said

    return load


@pytest.mark.parametrize("ranks", [1, 2], ids=["one process", "tp"])
def test_float32_weights_generate_in_bfloat16_on_a_gpu_that_has_it_and_a_line_says_so(read, ranks):
    dtype, said = read("fp32", ranks=ranks)
    assert dtype == "bfloat16"
    assert said == [
        "computes in bfloat16, which has tensor cores and flash kernels, not the weights' float32 (--dtype fp32)"
    ]


@pytest.mark.parametrize(
    ("saved", "options", "found"),
    [
        ("fp32", {"dtype": "fp32"}, "float32"),
        ("fp32", {"capability": TURING}, "float32"),
        ("bf16", {}, "bfloat16"),
        ("bf16", {"capability": TURING}, "bfloat16"),
    ],
    ids=["a dtype that was named", "a GPU without bfloat16", "bfloat16 weights", "bfloat16 weights on that GPU"],
)
def test_other_weights_keep_their_dtype_without_a_word(read, saved, options, found):
    assert read(saved, **options) == (found, [])
