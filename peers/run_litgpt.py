"""Run LitGPT's GPT as its own scripts do: `generate_fn`, and the chunked cross-entropy of its pretraining.

With compile, the function that generates the next token is compiled, as by `litgpt generate --compile`.
"""

import sys
from functools import cache
from importlib.metadata import version
from typing import Any

try:
    from litgpt.config import Config
    from litgpt.generate import base
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy
except ImportError as error:
    sys.exit(f"missing: {error}")
import harness
import torch

PARTS = {
    "self_attn.o_proj": "attn.proj",
    "mlp.gate_proj": "mlp.fc_1",
    "mlp.up_proj": "mlp.fc_2",
    "mlp.down_proj": "mlp.proj",
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
}
OUTSIDE = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "lm_head.weight": "lm_head.weight",
}


def make_config(shape: dict[str, Any]) -> Config:
    return Config(
        name="bench",
        n_embd=shape["d_model"],
        n_layer=shape["n_layers"],
        n_head=shape["n_heads"],
        n_query_groups=shape["n_kv_heads"],
        head_size=shape["head_dim"],
        intermediate_size=shape["d_ff"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        block_size=shape["max_seq_len"],
        rope_base=shape["rope_theta"],
        norm_eps=shape["norm_eps"],
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )


def rename_tensor(name: str, shape: dict[str, Any]) -> tuple[str, int]:
    """Rename a tensor of Hugging Face's Llama to LitGPT's, and find its first row: LitGPT stacks q, k and v."""
    if name in OUTSIDE:
        return OUTSIDE[name], 0
    _, _, layer, *part, leaf = name.split(".")
    part = ".".join(part)
    q, kv = shape["n_heads"] * shape["head_dim"], shape["n_kv_heads"] * shape["head_dim"]
    rows = {"self_attn.q_proj": 0, "self_attn.k_proj": q, "self_attn.v_proj": q + kv}
    return f"transformer.h.{layer}.{PARTS.get(part, 'attn.qkv')}.{leaf}", rows.get(part, 0)


def generate(model: GPT, ids: torch.Tensor, new: int, job: dict[str, Any]) -> torch.Tensor:
    if job["compile"]:
        compile_steps()
    length = ids.shape[1] + new
    model.clear_kv_cache()
    model.max_seq_length = length
    model.set_kv_cache(batch_size=len(ids), dtype=model.lm_head.weight.dtype)
    if len(ids) == 1:
        made = base.generate_fn(model, ids[0], length, temperature=0, include_prompt=False, include_eos=True)
        return torch.cat(list(made)).view(1, -1)
    greedy = {"temperature": 0}
    made = base.batched_generate_fn(model, ids, length, sample_args=greedy, include_prompt=False, include_eos=True)
    return torch.stack([torch.cat(row) for row in made], dim=1)


@cache
def compile_steps() -> None:
    """Compile the functions that generate the next token, once per process, with the settings of LitGPT's script."""
    torch._dynamo.config.automatic_dynamic_shapes = True
    torch._inductor.config.coordinate_descent_tuning = True
    base.next_token = torch.compile(base.next_token, mode="reduce-overhead")
    base.batched_next_token = torch.compile(base.batched_next_token, mode="reduce-overhead")


CONTENDER = harness.make_peer(
    version=version("litgpt"),
    build=lambda shape: GPT(make_config(shape)),
    rename=rename_tensor,
    logits=lambda model, ids: model(ids),
    generate=generate,
    loss=lambda model, ids, targets: chunked_cross_entropy(model(ids), targets),
)

if __name__ == "__main__":
    harness.run_job(CONTENDER)
