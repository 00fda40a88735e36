"""Memory at the peak of reading prompts and of decoding, told without torch, against the tensors of a real run."""

import pytest
import torch
from tiny import MIXED, spec_of
from tracked import StorageTracker

from zoo.compose import load
from zoo.costs.transient import Generation, measure_peaks
from zoo.generation.cache import Cache
from zoo.run.builder import build
from zoo.verify import _fake as fake_model

BATCH, CONTEXT = 2, 48

KINDS = {
    "mha": ["attention=mha"],
    "gqa": [],
    "mqa": ["attention=mqa"],
    "mla": ["attention=mla"],
    "sliding": ["attention=sliding"],
    "mixed": MIXED,
    "softcap": ["attention.softcap=20"],
    "sinks": ["attention.sinks=true"],
    "alibi": ["position=alibi"],
    "t5": ["position=t5"],
    "learned": ["position=learned"],
    "qk norm": ["attention.qk_norm={kind: rmsnorm}"],
    "gate": ["attention.output_gate=true"],
    "layernorm": ["norm=layernorm"],
    "sandwich": ["block=sandwich"],
    "parallel": ["block=parallel"],
    "mlp": ["ffn=mlp", "activation=gelu"],
    "moe": ["ffn=moe"],
    "large vocabulary": ["vocab_size=5000"],
    "mamba": ["attention=mamba", "position=none"],
    "mamba2": ["attention=mamba2", "position=none"],
    "delta": ["attention=gated_delta", "position=none"],
}


def measured(model, spec, batch, context):
    """Bytes of tensors at once, beside weights and cache, in a prefill and in a decode step."""
    cache = Cache.allocate(model, batch, context)
    found = []
    with torch.no_grad():
        for new in (context - 1, 1):
            tracker = StorageTracker()
            tracker.know((*model.parameters(), *model.buffers(), *held_by(cache)))
            with tracker:
                ids = torch.zeros(batch, new, dtype=torch.long)
                columns = torch.empty(context, dtype=torch.long)  # which are allocated with the cache
                model(ids, cache=cache, logits_to_keep=1)
                del columns
            found.append(tracker.most)
    return found


def held_by(cache):
    yield from (tensor for layer in cache.layers for tensor in layer.held())
    yield from (layer.columns for layer in cache.layers)


def told(spec, batch, context, dtype):
    run = Generation(context, batch, dtype, fused=False)
    return [measure_peaks(spec, run._replace(context=context - 1)).prefill, measure_peaks(spec, run).decode]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_decode_take_what_a_real_run_takes(kind, dtype):
    spec = spec_of(KINDS[kind])
    model = build(spec, device="cpu", dtype=dtype).eval()
    found = measured(model, spec, BATCH, CONTEXT)
    assert told(spec, BATCH, CONTEXT, dtype) == pytest.approx(found, rel=0.03)


# ---------------------------------------------------------------- encoder-decoders


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["t5-small", "bart-base"])
def test_an_encoder_decoder_takes_what_a_real_run_takes(model, dtype):
    spec = load(model, ["d_model=64", "n_layers=2", "n_heads=4", "vocab_size=67", "d_ff=96"])
    built = build(spec, device="cpu", dtype=dtype).eval()
    cache, found, memory = Cache.allocate(built, BATCH, CONTEXT), [], None
    with torch.no_grad():
        for new in (CONTEXT, 1):
            tracker = StorageTracker()
            tracker.know((*built.parameters(), *built.buffers(), *held_by(cache)))
            with tracker:
                if memory is None:
                    memory = built.encoder(torch.zeros(BATCH, new, dtype=torch.long)).hidden
                else:
                    memory = memory.clone()
                ids = torch.zeros(BATCH, 1, dtype=torch.long)
                built.decoder(ids, memory=memory, cache=cache, logits_to_keep=1)
            made = sum(each.nbytes for layer in cache.layers for each in layer.cross.held()) if new > 1 else 0
            found.append(tracker.most - made)  # what the cache keeps of the memory is the cache's
            cache.length = CONTEXT - 1
    peaks = measure_peaks(spec, Generation(CONTEXT, BATCH, dtype, fused=False))
    assert [peaks.prefill, peaks.decode] == pytest.approx(found, rel=0.03)


# ---------------------------------------------------------------- published shapes, without their memory


@pytest.mark.parametrize(
    "model",
    ["llama3-8b", "gemma2-2b", "mixtral-8x7b", "deepseek-v2-lite", "gpt2", "qwen3-0.6b", "gpt-oss-20b", "bloom-560m"],
)
def test_a_published_model_takes_what_a_run_on_fake_tensors_takes(model):
    """bfloat16 on a CPU: shapes and lifetimes are those of a real run, values there are none."""
    spec = load(model, [])
    context = min(512, spec.max_seq_len)
    with fake_model(spec, "bf16") as built:
        found = measured(built, spec, 1, context)
    assert told(spec, 1, context, "bf16") == pytest.approx(found, rel=0.03)
