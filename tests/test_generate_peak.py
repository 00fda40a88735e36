"""Memory at the peak of reading prompts and of decoding, told without torch, against the tensors of a real run."""

import pytest
import torch
from tiny import MIXED, spec_of
from tracked import StorageTracker

from zoo.costs.transient import Generation, measure_peaks
from zoo.generation.cache import Cache
from zoo.run.builder import build

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
    print(found, told(spec, BATCH, CONTEXT, dtype))
    assert told(spec, BATCH, CONTEXT, dtype) == pytest.approx(found, rel=0.03)
