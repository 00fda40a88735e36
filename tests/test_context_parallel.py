"""Context parallelism: ranks that have some of a row's tokens each give together the loss and gradients of whole rows,
whether keys and values are gathered or travel round a ring; and a ring computes nothing that the mask hides."""

import json
import os
import subprocess
import sys
from pathlib import Path

RANKS = Path(__file__).parent / "context_ranks.py"
FEATURES = {
    "plain": ["attention=mha"],
    "grouped": ["attention=gqa", "n_heads=6", "n_kv_heads=2"],
    "one_key_head": ["attention=mqa"],
    "window": ["attention=sliding", "attention.window=7"],
    "chunk": ["attention.chunk=5"],
    "softcap": ["attention.softcap=2.0", "attention.scale=0.7"],
    "sinks": ["attention.sinks=true", "attention.window=9"],
    "alibi": ["position=alibi"],
    "rounded_alibi": ["position=alibi", "position.rounded=true"],
    "buckets": ["position=t5"],
    "buckets_of_each_layer": ["position=t5_layerwise"],
    "normed": ["attention.qk_norm={kind: rmsnorm}", "attention.output_gate=true"],
    "latents": ["attention=mla"],
    "latents_with_buckets": ["attention=mla", "position=t5"],
}


def compare(processes, folder, cases, timeout=300):
    """Compare cases in so many processes; returns what each found, by case."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (folder / "cases.json").write_text(json.dumps(cases))
    run = [*command, str(RANKS), str(folder / "cases.json"), str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=timeout, env=environment)
    assert done.returncode == 0, done.stderr[-9000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def check(found, near=1e-6):
    for rank in found:
        for name, each in rank.items():
            assert each["loss"] < near and each["gradient"] < near, (name, each)
