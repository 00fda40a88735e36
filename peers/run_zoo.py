"""Run zoo through its public interface, and write the folder that every contender loads."""

import json
import sys
from typing import Any

import harness
import timing
import torch

import zoo
from zoo.bench.race_model import BertShape, RaceShape
from zoo.data import Batch
from zoo.run.linear import prepare
from zoo.run.linear.probe import BUCKETS
from zoo.run.machine_memory import keep_memory
from zoo.training.compiling import compile_model
from zoo.training.gradient import accumulate_gradient
from zoo.training.objective import MLM, NextToken
from zoo.training.optim import AdamW

# Our names -> those of Hugging Face's Llama, the format that every peer can read.
PARTS = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {
    "embedding.tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.out.weight": "lm_head.weight",
}


BERT = BertShape.model

WAYS: list[str] = []
"""Descriptions of how the model's products are computed, once it is ready."""


def rename_tensor(name: str) -> str:
    """Return Hugging Face's name of a tensor of our Llama."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, *part, leaf = name.split(".")
    return f"model.layers.{layer}.{PARTS['.'.join(part)]}.{leaf}"


def build_model(job: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    shape = (BertShape if job["model"] == BERT else RaceShape)(**job["shape"])
    return zoo.build(job["model"], shape.overrides(), device="cpu", dtype=dtype, seed=job["seed"])


def load_model(job: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    if job["model"] == BERT:
        return zoo.load(job["folder"], dtype=dtype, device="cpu")
    model = build_model(job, dtype)
    ours = {rename_tensor(name): name for name in model.state_dict()}
    harness.fill_model(model, job["folder"], lambda name: (ours[name], 0))
    return model if job["workload"] == "train" else make_ready(model, job)


def make_ready(model: torch.nn.Module, job: dict[str, Any]) -> torch.nn.Module:
    """Prepare a model to serve, as `zoo generate` does, with its weights in the job's precision. Append to WAYS a line
    on how the model multiplies."""
    rows = tuple(each for each in BUCKETS if each <= job["batch"])
    WAYS.append(str(prepare(model, job["weights"] or None, keep=False, rows=rows)))
    if job["compile"]:
        WAYS.append("not compiled: its decoding steps are replayed")
    keep_memory()
    return model


def export_folder(job: dict[str, Any]) -> dict[str, Any]:
    """Write the seeded weights to the job's folder, as `zoo convert` writes them for transformers."""
    zoo.export(build_model(job, harness.DTYPES[job["dtype"]]), job["folder"], verify=False)
    return {}


def generate(model: torch.nn.Module, ids: torch.Tensor, new: int, job: dict[str, Any]) -> torch.Tensor:
    return zoo.generate(model, ids, max_new_tokens=new, temperature=0)[:, ids.shape[1] :]  # type: ignore[arg-type]


def serve(model: torch.nn.Module, requests: list[timing.Request], job: dict[str, Any]) -> timing.Rows:
    """Serve the requests with the engine in a batch, or one after the other with `zoo.generate`."""
    if job["alone"]:
        return [generate(model, torch.tensor([ids]), new, job)[0].tolist() for ids, new in requests]
    return serve_together(model, requests, job)


def serve_together(model: torch.nn.Module, requests: list[timing.Request], job: dict[str, Any]) -> timing.Rows:
    """Add all requests to one engine, and step until all are finished."""
    from zoo.generation import engine
    from zoo.generation.request import Request

    running = engine.Engine(model)
    names = [running.add(Request(ids=ids, max_new_tokens=new)) for ids, new in requests]
    made: dict[int, list[int]] = {name: [] for name in names}
    while running.busy:
        for event in running.step():
            if event.token is not None:
                made[event.request].append(event.token)
    return [made[name] for name in names]


def backward(model: Any, ids: torch.Tensor, targets: torch.Tensor, autocast: harness.Autocast) -> float:
    objective = MLM() if model.spec.kind == "encoder" else NextToken()
    return float(accumulate_gradient(model, objective, Batch(ids, targets), 1, autocast).terms["loss"])


CONTENDER = harness.Contender(
    version=zoo.__version__,
    load=load_model,
    logits=lambda model, ids: model(ids).logits,
    generate=generate,
    backward=backward,
    optimizer=AdamW(**harness.ADAMW).build,
    serve=serve,
    describe=lambda: "; ".join(WAYS),
    compile=compile_model,
)

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if job["workload"] == "export":
        print(json.dumps(export_folder(job)))
    else:
        if job["workload"] in ("train", "mlm"):
            keep_memory()  # as `zoo train` does
        harness.run_job(CONTENDER)
