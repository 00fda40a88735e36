"""Quantised folders: each layout against its numbers unpacked one by one, and models against transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
from support import quantised_storage
from support.cases.depth_2026 import LOOP
from support.cases.streams import V4
from support.logit_bounds import assert_close
from support.reference_folders import edit, folder, run
from zoo.checkpoint.quantised import base, unpack_headers
from zoo.checkpoint.tensor_files import TensorReader, read_header

QUANTISED = re.compile(r"\.(wq_a|wq_b|wkv|wo_a|wo_b|w1|w2|w3)\.weight$")  # of DeepSeek-V4's matrices

SIZES = {"hidden_size": 64, "intermediate_size": 96}
GROUPS = {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}}


def compressed(form: str, bits: int = 4, **weights) -> dict:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, **weights}}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
BITNET = {"quant_method": "bitnet", "quantization_mode": "offline"}
METHODS = {
    "fp8 in blocks": (
        {"quant_method": "fp8", "weight_block_size": [24, 32]},
        lambda s: quantised_storage.float8(s, (24, 32)),
    ),
    "fp8 and exponents beside": (
        {"quant_method": "fp8", "weight_block_size": [24, 32], "scale_fmt": "ue8m0"},
        lambda s: quantised_storage.beside(quantised_storage.float8(s, (24, 32), exponents=True)),
    ),
    "mxfp4 and exponents beside": (
        {"quant_method": "fp8", "scale_fmt": "ue8m0"},
        lambda s: quantised_storage.beside(quantised_storage.float4(s, 32)),
    ),
    "fp8 of a tensor": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        lambda s: quantised_storage.float8(s, None),
    ),
    "fp8 of a row": ({"quant_method": "fbgemm_fp8"}, lambda s: quantised_storage.float8(s, (1, s[1]), ".weight_scale")),
    "float-quantized": (
        compressed("float-quantized", 8),
        lambda s: quantised_storage.float8(s, (1, s[1]), ".weight_scale"),
    ),
    "int-quantized": (compressed("int-quantized", 8), quantised_storage.int8),
    "pack-quantized": (compressed("pack-quantized"), lambda s: quantised_storage.packed(s, 4)),
    "pack-quantized, symmetric": (
        compressed("pack-quantized"),
        lambda s: quantised_storage.packed(s, 4, symmetric=True),
    ),
    "pack-quantized, 3 bits": (compressed("pack-quantized", 3), lambda s: quantised_storage.packed(s, 3)),
    "nvfp4": (
        compressed("nvfp4-pack-quantized"),
        lambda s: quantised_storage.float4(s, 16, whole=".weight_global_scale"),
    ),
    "mxfp4": (compressed("mxfp4-pack-quantized"), lambda s: quantised_storage.float4(s, 32)),
    "nvfp4 of modelopt": (
        {"quant_method": "modelopt"},
        lambda s: quantised_storage.float4(s, 16, whole=".weight_scale_2"),
    ),
    "gptq, 4 bits": (GPTQ, lambda s: quantised_storage.gptq(s, 4)),
    "gptq, 3 bits": ({**GPTQ, "bits": 3}, lambda s: quantised_storage.gptq(s, 3)),
    "gptq, 2 bits": ({**GPTQ, "bits": 2}, lambda s: quantised_storage.gptq(s, 2)),
    "gptq, 8 bits": ({**GPTQ, "bits": 8}, lambda s: quantised_storage.gptq(s, 8)),
    "gptq, version 2": ({**GPTQ, "checkpoint_format": "gptq_v2"}, lambda s: quantised_storage.gptq(s, 4, version=2)),
    "gptq, act-order": ({**GPTQ, "desc_act": True}, lambda s: quantised_storage.gptq(s, 4, ordered=True)),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, quantised_storage.awq),
    "nf4": (BNB, quantised_storage.four_bit),
    "fp4": (BNB, lambda s: quantised_storage.four_bit(s, "fp4")),
    "nf4, doubly quantised": (BNB, lambda s: quantised_storage.four_bit(s, nested=True)),
    "ternary": ({**BITNET, "linear_class": "autobitlinear"}, lambda s: quantised_storage.ternary(s, True)),
    "ternary, divided": (BITNET, lambda s: quantised_storage.ternary(s, False)),
    "LLM.int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, lambda s: quantised_storage.int8(s, ".SCB")),
}


def read(path: Path, tensors: dict, settings: dict, dtype="float32", metadata=None) -> dict[str, torch.Tensor]:
    """What a folder of these tensors holds once it is read."""
    save_file({name: each.contiguous() for name, each in tensors.items()}, path / "model.safetensors", metadata)
    config = {"quantization_config": settings, "dtype": dtype}
    found = unpack_headers(path, config, read_header(path / "model.safetensors"))
    reader = TensorReader(path, found)
    return {name: reader[name] for name in found}


@pytest.mark.parametrize("method", METHODS)
def test_each_layout_has_the_numbers_that_its_bits_mean(tmp_path, method, monkeypatch):
    settings, quantise = METHODS[method]
    torch.manual_seed(0)
    tensors, weight = quantise((96, 64))
    bias = torch.randn(96)
    found = read(tmp_path, {**{f"a{name}": each for name, each in tensors.items()}, "a.bias": bias}, settings)
    assert set(found) == {"a.weight", "a.bias"} and torch.equal(found["a.bias"], bias)
    assert found["a.weight"].shape == weight.shape
    assert_close(found["a.weight"], weight)
    monkeypatch.setattr(base, "ROOM", 8 * 64)  # a few rows at a time, as of a large weight
    assert torch.equal(
        read(tmp_path, {f"a{name}": each for name, each in tensors.items()}, settings)["a.weight"], found["a.weight"]
    )


@pytest.mark.parametrize(
    "method", ["fp8 in blocks", "pack-quantized", "gptq, 4 bits", "awq", "nf4, doubly quantised", "ternary"]
)
def test_a_quantised_folder_is_the_model_of_its_dequantised_weights(tmp_path, method):
    settings, quantise = METHODS[method]
    made = folder(tmp_path / "there", **SIZES)
    state, stored = load_file(made / "model.safetensors"), {}
    for name, each in state.items():
        if "_proj" in name:
            tensors, state[name] = quantise(tuple(each.shape))
            stored |= {name.removesuffix(".weight") + end: tensor.contiguous() for end, tensor in tensors.items()}
        else:
            stored[name] = each
    reference = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    reference.load_state_dict(state)
    save_file(stored, made / "model.safetensors")
    edit(made, quantization_config=settings)
    ids = torch.arange(9).unsqueeze(0)
    with torch.inference_mode():
        assert_close(zoo.load(made, dtype="fp32")(ids).logits, reference(ids).logits)


def test_gpt_oss_experts_in_mxfp4_are_those_that_transformers_unpacks(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    sizes = {**SIZES, "vocab_size": 97, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.GptOssConfig(**sizes, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    reference = transformers.GptOssForCausalLM(config).eval()
    reference.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, height = stored.pop(name).shape
        blocks = torch.randint(0, 256, (experts, height, width // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 122, (experts, height, width // 32), dtype=torch.uint8)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        reference.get_parameter(name).data = values
    save_file(stored, tmp_path / "model.safetensors")
    edit(
        tmp_path, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    )
    ids = torch.arange(9).unsqueeze(0)
    with torch.inference_mode():
        assert_close(zoo.load(tmp_path, dtype="fp32")(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("stated", [False, True], ids=["unstated", "as fp8"])
def test_inkling_2_as_it_is_published_is_what_transformers_dequantises(tmp_path, stated):
    """Stacked experts in NVFP4, a factor for each of them beside, and in MXFP8; a config.json that need not say so."""
    config = transformers.Inkling2LoopTextConfig(**{**LOOP, "moe_intermediate_size": 32})
    transformers.Inkling2LoopForCausalLM(config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name, each in list(stored.items()):
        if name.endswith("w13_weight"):
            codes = torch.randint(0, 256, (*each.shape[:2], each.shape[2] // 2), dtype=torch.uint8)
            scale = (torch.rand(*each.shape[:2], each.shape[2] // 16) + 0.5).to(torch.float8_e4m3fn)
            own = {"": codes, "_scale": scale, "_amax": torch.rand(len(each)) + 1}
            stored |= {name + end: tensor for end, tensor in own.items()}
            stored[f"{name}_outer_scale_denominator"] = torch.tensor(40.0)
        elif name.endswith("w2_weight"):
            stored[name] = torch.randn(each.shape).to(torch.float8_e4m3fn)
            stored[f"{name}_scale"] = torch.randint(122, 126, (*each.shape[:2], 1), dtype=torch.uint8)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.Inkling2LoopForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    if stated:
        edit(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [1, 32]})
    ids = torch.arange(5, 22).unsqueeze(0)
    with torch.inference_mode():
        given = theirs(ids).logits
        assert given.std() > 0.1
        assert_close(zoo.load(tmp_path, dtype="fp32")(ids).logits, given)


@pytest.mark.slow
def test_deepseek_v4_as_it_is_published_is_what_transformers_dequantises(tmp_path):
    """Names without a prefix, float8 in blocks, experts in float4, exponents of two, and a layer that is not read."""
    sizes = {**V4, "hidden_size": 64, "moe_intermediate_size": 32, "q_lora_rank": 32, "o_lora_rank": 16}
    sizes |= {"n_routed_experts": 4}
    torch.manual_seed(0)
    names = {"expert_dtype": "fp4", "num_nextn_predict_layers": 1, "n_shared_experts": 1, "norm_topk_prob": True}
    reference = transformers.DeepseekV4ForCausalLM(transformers.DeepseekV4Config(**sizes, **names)).eval()
    reference.save_pretrained(tmp_path)
    published = {"model.embed_tokens": "embed", "model.hc_head.hc_": "hc_head_", "model.": ""}
    stored = {}
    for name, each in load_file(tmp_path / "model.safetensors").items():
        start = next((start for start in published if name.startswith(start)), "")
        own = published.get(start, "") + name.removeprefix(start)
        own = re.sub(r"(\d\.attn)\.norm\.", r"\1.kv_norm.", own)
        if not name.startswith("model.layers") or each.ndim != 2 or "hc_" in name or not QUANTISED.search(own):
            stored[own] = each if each.ndim < 2 or not each.is_floating_point() else 0.3 * torch.randn(each.shape)
            continue
        shape = (each.shape[0], each.shape[1])
        make = (
            quantised_storage.float4(shape, 32)
            if ".experts." in own
            else quantised_storage.float8(shape, (8, 8), exponents=True)
        )
        made, _ = quantised_storage.beside(make)
        stored |= {own.removesuffix(".weight") + end: tensor.contiguous() for end, tensor in made.items()}
    stored |= {"mtp.0.e_proj.weight": torch.ones(64, 64), "mtp.0.enorm.weight": torch.ones(64)}
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [8, 8]}
    edit(tmp_path, quantization_config={**fp8, "activation_scheme": "dynamic"})
    theirs = transformers.DeepseekV4ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(5, 22).unsqueeze(0)
    ours = zoo.load(tmp_path, dtype="fp32")
    with torch.inference_mode():
        given = theirs(ids).logits
        assert given.std() > 0.1
        assert_close(ours(ids).logits, given)
    zoo.export(ours, tmp_path / "out", verify=False)
    written = transformers.DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert [name for name, each in theirs.state_dict().items() if not torch.equal(each, written[name])] == []


def test_torchaos_int8_is_what_torchao_itself_makes_of_it(tmp_path):
    pytest.importorskip("torchao", reason="needs torchao (the extra fp8)")
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    linear = torch.nn.Sequential(torch.nn.Linear(64, 96, bias=False))
    quantize_(linear, Int8WeightOnlyConfig())
    tensors, metadata = flatten_tensor_state_dict({"a.weight": linear[0].weight.data})
    found = read(tmp_path, tensors, {"quant_method": "torchao"}, metadata=metadata)
    assert_close(found["a.weight"], linear[0].weight.dequantize())
    metadata["a.weight"] = json.dumps({"_type": "Int4TilePackedTo4dTensor"})
    with pytest.raises(zoo.CheckpointError, match="is of torchao's class Int4TilePackedTo4dTensor, which is not read"):
        read(tmp_path, tensors, {"quant_method": "torchao"}, metadata=metadata)


def test_weights_get_the_dtype_that_the_config_states_and_are_rounded_once(tmp_path):
    tensors, weight = quantised_storage.packed((96, 64), 4)
    found = read(tmp_path, {f"a{name}": each for name, each in tensors.items()}, compressed("pack-quantized"), None)
    assert torch.equal(found["a.weight"], weight.bfloat16())


def test_scales_of_activations_and_caches_are_left_out(tmp_path):
    tensors, weight = quantised_storage.float8((96, 64), None)
    beside = {f"a.{name}": torch.ones(1) for name in ("input_scale", "k_scale", "v_scale")}
    found = read(tmp_path, {**{f"a{name}": each for name, each in tensors.items()}, **beside}, {"quant_method": "fp8"})
    assert set(found) == {"a.weight"}
    assert_close(found["a.weight"], weight)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"quant_method": "hqq"}, "quantization_config.quant_method: 'hqq' is not read (one of: fp8,"),
        ({"quant_method": "gptqq"}, "is not read (did you mean 'gptq'?)"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format: is 'marlin', which is not read (one of: gptq,"),
        ({"quant_method": "awq", "version": "gemv"}, "version: is 'gemv', which is not read (one of: gemm"),
        (
            {**BITNET, "quantization_mode": "online"},
            "quantization_mode: is 'online', which is not read (one of: offline)",
        ),
        (
            {**compressed("pack-quantized"), "transform_config": {"a": 1}},
            "transform_config: is a mapping of 1",
        ),
    ],
    ids=["unknown", "misspelt", "marlin", "gemv", "masters", "rotated"],
)
def test_what_is_not_read_is_refused_in_one_line(tmp_path, capsys, settings, fault):
    made = edit(folder(tmp_path / "there"), quantization_config=settings)
    code, said, error = run(capsys, "convert", made, tmp_path / "out")
    assert code == 2 and said == "" and fault in error and "Traceback" not in error


def test_a_weight_without_its_scale_and_one_of_another_shape_are_refused(tmp_path):
    tensors, _ = quantised_storage.float8((96, 64), (32, 32))
    fp8 = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    with pytest.raises(zoo.CheckpointError, match=r"a\.weight: is F8_E4M3 without a scale"):
        read(tmp_path, {"a.weight": tensors[".weight"]}, fp8)
    with pytest.raises(zoo.CheckpointError, match=r"scales no weight of shape \[96, 64\]"):
        read(tmp_path, {"a.weight": tensors[".weight"], "a.weight_scale_inv": torch.ones(97, 3)}, fp8)
