"""Two models give transformers' outputs by tables of names written here, which share nothing with conf/family's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import zoo
from support.reference_models import CLOSE

VOCAB = 61
ENDS = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES = [f"vocab_size={VOCAB}", "n_layers=2", "d_model=48", "n_heads=4", "max_seq_len=64"]

GPT2 = """
    embedding.tokens.weight: transformer.wte.weight
    position.table.weight: transformer.wpe.weight
    .attention_norm: transformer.h.#.ln_1
    .attention.q .attention.k .attention.v: transformer.h.#.attn.c_attn
    .attention.o: transformer.h.#.attn.c_proj
    .ffn_norm: transformer.h.#.ln_2
    .ffn.up: transformer.h.#.mlp.c_fc
    .ffn.down: transformer.h.#.mlp.c_proj
    norm: transformer.ln_f"""

LLAMA = """
    embedding.tokens.weight: model.embed_tokens.weight
    .attention_norm: model.layers.#.input_layernorm
    .attention.q: model.layers.#.self_attn.q_proj
    .attention.k: model.layers.#.self_attn.k_proj
    .attention.v: model.layers.#.self_attn.v_proj
    .attention.o: model.layers.#.self_attn.o_proj
    .ffn_norm: model.layers.#.post_attention_layernorm
    .ffn.gate: model.layers.#.mlp.gate_proj
    .ffn.up: model.layers.#.mlp.up_proj
    .ffn.down: model.layers.#.mlp.down_proj
    norm: model.norm
    head.out: lm_head"""


def rename(table: str, reference: Any) -> dict[str, Tensor]:
    """The reference's parameters under our names. Every one of them must be taken, and each once."""
    left = {name: parameter.detach().clone() for name, parameter in reference.named_parameters()}
    ours: dict[str, Tensor] = {}
    for layer in range(2):
        for line in table.strip().splitlines():
            names, _, source = line.strip().partition(": ")
            for leaf in ("", ".weight", ".bias"):
                tensor = left.pop(source.replace("#", str(layer)) + leaf, None)
                if tensor is None:
                    continue
                if ".c_" in source:  # GPT-2's Conv1D stores [in, out]; a bias stays as it is
                    tensor = tensor.t()
                to = [f"blocks.{layer}{name}" if name[0] == "." else name for name in names.split()]
                ours |= {name + leaf: part for name, part in zip(to, tensor.chunk(len(to)), strict=True)}
    assert not left
    return ours


def both(name: str, trained: int | None = None) -> tuple[Any, Any]:
    """The reference and our model, with the same weights and none of them at a value that hides what was forgotten."""
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=64, **ENDS)
        table, overrides = GPT2, [*SIZES, "head_dim=12", "d_ff=192"]
    else:
        rope = {"rope_type": "default" if trained is None else "dynamic", "rope_theta": 1e4}
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        more = {"head_dim": 16, "intermediate_size": 56, "rms_norm_eps": 1e-5, "max_position_embeddings": trained or 64}
        rope |= {} if trained is None else {"factor": 3.0}
        config = transformers.LlamaConfig(**sizes, **more, **ENDS, rope_parameters=rope)
        table, overrides = LLAMA, [*SIZES, "n_kv_heads=2", "head_dim=16", "d_ff=56"]
        scaling = f"++position.scaling={{factor:3.0,original_max_seq_len:{trained}}}"
        overrides += [] if trained is None else ["position=rope_dynamic", scaling]
    torch.manual_seed(0)
    reference = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for each, parameter in reference.named_parameters():
            parameter.normal_(0.0, 0.2) if parameter.ndim > 1 or each.endswith("bias") else parameter.uniform_(0.5, 1.5)
    model = zoo.build("gpt2" if name == "gpt2" else "llama2-7b", overrides, device="cpu").eval()
    model.load_state_dict(rename(table, reference), strict=True)
    return reference, model


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_equal_the_references(name: str) -> None:
    reference, model = both(name)
    ids = torch.randint(VOCAB, (2, 24))
    with torch.no_grad():
        expected, found = reference(ids).logits, model(ids).logits
    assert expected.std() > 0.5  # a model that says nothing would agree with anything
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_row_padded_on_either_side_gives_what_the_reference_gives_for_it_alone(name: str, left: bool) -> None:
    reference, model = both(name)
    ids, mask = torch.randint(VOCAB, (3, 24)), torch.zeros(3, 24, dtype=torch.long)
    for row, length in enumerate((24, 17, 9)):
        mask[row, 24 - length if left else 0 : 24 if left else length] = 1
    with torch.no_grad():
        found = model(ids, mask).logits
        for row, real in enumerate(mask.bool()):
            torch.testing.assert_close(found[row, real], reference(ids[row, real][None]).logits[0], **CLOSE)


@pytest.mark.parametrize("length", [16, 17, 24])
def test_dynamic_scaling_past_the_trained_length_equals_the_references(length: int) -> None:
    reference, model = both("llama", trained=16)
    ids = torch.randint(VOCAB, (2, length))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, **CLOSE)
