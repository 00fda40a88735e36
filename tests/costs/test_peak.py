"""The peak of a training step, told without torch, against torch's MemTracker over a real one."""

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from support.packaged_specs import load, one_in
from support.tiny_models import spec_of
from zoo.costs import Setup, price
from zoo.costs.memory import training
from zoo.costs.train_peak import CHUNK
from zoo.model.loss import LARGE_BLOCK
from zoo.run.builder import build
from zoo.training.objective import NextToken

BATCH, CONTEXT = 2, 128

SIZES = ["d_model=64", "n_layers=4", "max_seq_len=512", "n_heads=8"]


class Again(torch.nn.Module):
    """A layer that keeps its input alone."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, step):
        return checkpoint(self.block, x, step, use_reentrant=False)


def tracked(spec, dtype, *, recompute=False):
    """Bytes at the peak of a second training step, by torch's count."""
    model = build(spec, device="cpu", dtype=dtype).train()
    if recompute:
        for index, block in enumerate(model.blocks):
            model.blocks[index] = Again(block)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    ids = torch.randint(0, spec.vocab_size, (BATCH, CONTEXT))

    def step():
        loss = losses(model, ids)
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()

    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        step()
        tracker.reset_mod_stats()
        step()
    peak = tracker.get_tracker_snapshot("peak")
    return next(iter(peak.values()))["Total"]


def losses(model, ids):
    """Cross-entropy in float32, and a router's losses; logits live no longer than it takes."""
    out = model(ids)
    loss = F.cross_entropy(out.logits.float().flatten(0, 1), ids.flatten())
    return sum(out.losses.values(), loss)


def told(spec, dtype, **fields):
    return training(
        spec, Setup(context=CONTEXT, batch=BATCH, dtype=dtype, precision="bf16_pure", **fields), fused=False
    )


MORE = [pytest.param(*each, marks=pytest.mark.slow) for each in ((67, "fp32"), (67, "bf16"), (4000, "fp32"))]
EACH_SIZE = pytest.mark.parametrize(("vocabulary", "dtype"), [(4000, "bf16"), *MORE])


@EACH_SIZE
@pytest.mark.parametrize(
    "overrides",
    one_in(
        2,
        [
            [],
            ["attention=mha", "norm=layernorm", "ffn=mlp", "activation=gelu"],
            ["ffn=moe"],
            ["ffn=moe", "shared_expert={kind: gated, d_ff: 96, activation: {kind: silu}}"],
            ["attention=mla"],
            ["block=parallel", "head.tied=false"],
            ["block=post"],
            ["block=sandwich", "attention.softcap=20"],
            ["position=t5"],
            ["attention=mamba2", "position=none"],
            [
                "position=relative_logits",
                "relative_extent=1024",
                "pattern=[near,layer]",
                "layers={near:{attention:{window:40}}}",
            ],
        ],
    ),
    ids=lambda overrides: ",".join(overrides[:1]) or "llama",
)
def test_the_peak_of_a_step_is_torch_s_to_a_percent_and_a_half(overrides, vocabulary, dtype):
    spec = spec_of([*overrides, f"vocab_size={vocabulary}", "d_ff=192", *SIZES])
    assert told(spec, dtype)["train_peak"] == pytest.approx(tracked(spec, dtype), rel=0.015)


@EACH_SIZE
@pytest.mark.parametrize(
    "overrides",
    one_in(3, [["ffn=moe"], [], ["attention=mla"], ["block=sandwich"], ["position=t5"]]),
    ids=lambda overrides: ",".join(overrides) or "llama",
)
def test_the_peak_with_recomputation_is_torch_s_to_a_percent_and_a_half(overrides, vocabulary, dtype):
    spec = spec_of([*overrides, f"vocab_size={vocabulary}", "d_ff=192", *SIZES])
    found = told(spec, dtype, recompute="full")
    assert found["train_peak"] == pytest.approx(tracked(spec, dtype, recompute=True), rel=0.015)


@pytest.mark.parametrize("overrides", [["head.tied=true", "vocab_size=9500"], ["head.tied=false", "vocab_size=9000"]])
def test_a_table_whose_two_gradients_meet_is_there_three_times(overrides):
    """Tied, and most of the model: the peak is where its gradients are summed up."""
    spec = spec_of([*overrides, "d_ff=64", *SIZES, "n_layers=1", "d_model=512"])
    found = told(spec, "fp32")
    assert found["train_peak"] == pytest.approx(tracked(spec, "fp32"), rel=0.005)
    assert (found["peak_at"] == "embedding") == ("vocab_size=9500" in overrides)


def test_the_loss_takes_twelve_bytes_a_token_and_word():
    held = price(load("llama3-8b", []), context=8192)["memory"]
    assert held["loss_head"] == 12 * 128_256 * 8192 and held["peak_at"] == "loss"


def test_a_chunked_loss_has_no_whole_logits():
    assert CHUNK == NextToken().chunk_mib << 20 == LARGE_BLOCK
    spec = load("llama3-8b", [])
    whole, chunked = (price(spec, context=8192, chunked_loss=each)["memory"] for each in (False, True))
    assert chunked["loss_head"] == 2 * CHUNK and chunked["train_peak"] < whole["train_peak"]


def test_a_batch_adds_its_activations_and_no_states():
    one, two = (price(load("gpt2", []), context=1024, batch=batch)["memory"] for batch in (1, 2))
    assert two["activations_by_layer"]["layer"] == 2 * one["activations_by_layer"]["layer"]
    assert two["optimizer"] == one["optimizer"]
    assert two["train_peak"] > one["train_peak"]


def test_gradients_of_the_pieces_are_those_of_the_model():
    from zoo.costs.activations import PassShape, list_sections

    for name in ("llama3-8b", "mixtral-8x7b", "gpt2", "deepseek-v2-lite"):
        spec = load(name, [])
        found = list_sections(spec, PassShape(context=64))
        left = sum(found[f"layer:{kind}"].gradients for kind in spec.pattern)
        left += found["loss"].gradients + found["embedding"].gradients
        left -= 2 * spec.vocab_size * spec.d_model if spec.head.tied else 0
        assert left == price(spec, context=64, precision="bf16_pure")["memory"]["gradients"]


@pytest.mark.parametrize("fields", [{"tp": 2}, {"pp": 2}, {"dp": 8, "zero": 3}, {"cp": 2}, {"tp": 2, "pp": 4, "dp": 2}])
def test_ranks_hold_less_each(fields):
    spec = load("llama3-8b", [])
    alone, shared = price(spec, context=8192)["memory"], price(spec, context=8192, **fields)["memory"]
    assert shared["train_peak"] < alone["train_peak"]
