"""Run zoo through its public names, and write the weights that every contender starts from."""

import json
import sys
from typing import Any

import harness
import torch
from safetensors.torch import save_file

import zoo
from zoo.data import Batch
from zoo.training.gradient import accumulate_gradient
from zoo.training.objective import NextToken
from zoo.training.optim import AdamW
from zoo.training.speed import keep_memory

# Our names -> those of Hugging Face's Llama, the format that every peer has a reader for.
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


def rename_tensor(name: str) -> str:
    """Rename a tensor of our Llama to Hugging Face's."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, *part, leaf = name.split(".")
    return f"model.layers.{layer}.{PARTS['.'.join(part)]}.{leaf}"


def build_model(job: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    overrides = [f"{name}={value}" for name, value in job["shape"].items()]
    return zoo.build("llama3-8b", overrides, device="cpu", dtype=dtype, seed=job["seed"])


def load_model(job: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    model = build_model(job, dtype)
    ours = {rename_tensor(name): name for name in model.state_dict()}
    return harness.fill_model(model, job["weights"], lambda name: (ours[name], 0))


def export_weights(job: dict[str, Any]) -> dict[str, Any]:
    """Write the seeded weights to the job's path, under Hugging Face's names."""
    state = build_model(job, torch.float32).state_dict()
    save_file({rename_tensor(name): tensor.contiguous() for name, tensor in state.items()}, job["weights"])
    return {"written": len(state)}


def generate(model: torch.nn.Module, ids: torch.Tensor, new: int) -> torch.Tensor:
    return zoo.generate(model, ids, max_new_tokens=new, temperature=0)[:, ids.shape[1] :]


def backward(model: torch.nn.Module, ids: torch.Tensor, targets: torch.Tensor, autocast: harness.Autocast) -> float:
    return float(accumulate_gradient(model, NextToken(), Batch(ids, targets, None), 1, autocast)["loss"])


CONTENDER = harness.Contender(
    version=zoo.__version__,
    load=load_model,
    logits=lambda model, ids: model(ids).logits,
    generate=generate,
    backward=backward,
    optimizer=AdamW(**harness.ADAMW).build,
)

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if job["workload"] == "export":
        print(json.dumps(export_weights(job)))
    else:
        if job["workload"] == "train":
            keep_memory()  # as `zoo train` does
        harness.run_job(CONTENDER)
