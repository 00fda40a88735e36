"""`zoo stats --kernels` and `zoo build --kernel`: what is asked of a kernel is what a real pass asks, and what is shown
for a GPU that is not at hand is what `auto` would take there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import zoo
from support import tiny_models
from support.packaged_specs import load
from zoo.cache.cache import Cache
from zoo.cli import run
from zoo.costs.hardware import hardware, list_gpus
from zoo.costs.kernels import asks, kernels
from zoo.costs.setup import Setup
from zoo.errors import ConfigError, KernelError
from zoo.kernels import KERNELS, dispatch
from zoo.paths import conf_dir

ROOT = Path(__file__).parents[2]
TOKENS = 12


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]):
    """What a command prints; it must end with 0."""

    def get(*args: str) -> str:
        assert run(args) == 0
        return capsys.readouterr().out

    return get


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """The one line of a command that must end with 2 and say nothing else."""

    def get(*args: str) -> str:
        assert run(args) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return line.removeprefix("zoo: error: ")

    return get


# ---------------------------------------------------------------- what is asked

SMALL_T5 = ("n_layers=2", "d_model=32", "n_heads=4", "head_dim=8", "d_ff=48", "vocab_size=67", "encoder.n_layers=1")

FEWER = {"csa": ["index_top_k=1"]}  # than there are entries: else a query that chooses sees all of them
SHAPES = [
    *(
        [f"attention={name}", *FEWER.get(name, tiny_models.needs(f"attention={name}"))]
        for name in tiny_models.choices("attention")
    ),
    *([f"position={name}", *tiny_models.needs(f"position={name}")] for name in ("alibi", "t5", "t5_layerwise", "none")),
    ["position=alibi", "attention=sliding"],
    ["position=t5", "attention=sliding"],
    ["attention.softcap=30", "attention.sinks=true"],
    ["attention={window:5,window_kind:chunked}"],
    ["attention={window:5,window_kind:chunked}", "position=alibi"],
    ["attention=sliding", "kind=encoder"],
    tiny_models.MIXED,
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    """Every ask that attention makes from here on."""
    found = []
    true_ask = dispatch._ask
    monkeypatch.setattr(dispatch, "_ask", lambda *args: found.append(true_ask(*args)) or found[-1])
    return found


def expected(tower, use: str, memory: int | None = None, **setup):
    """What the layers of a tower ask in one pass, in order, by the count; with a cache, the first of each kind."""
    plan = Setup(dtype="fp32", context=TOKENS, **setup)
    kinds = dict.fromkeys(tower.pattern) if use in ("prefill", "decode") else tower.pattern
    found = []
    for kind in kinds:
        maps = 2 if tower.blocks[kind].attention.kind == "differential" and use == "train" else 1  # alike, asked apart
        found += [
            each for each in asks(tower, kind, use, plan, memory).values() if each is not None for _ in range(maps)
        ]
    return found


@pytest.mark.parametrize("overrides", SHAPES, ids=tiny_models.name)
def test_what_is_asked_is_what_a_real_pass_asks(overrides, asked):
    model = tiny_models.model_of(overrides)
    spec = model.spec
    ids = torch.randint(1, spec.vocab_size, (2, TOKENS + 1))
    model(ids[:, :TOKENS])
    assert asked == expected(spec, "train")
    asked.clear()
    with torch.no_grad():
        if not spec.causal:
            model(ids[:, :TOKENS])
            assert asked == expected(spec, "encode")
            return
        cache = Cache.allocate(model, 2, TOKENS + 1)
        model(ids[:, :TOKENS], cache=cache)
        assert asked == expected(spec, "prefill")
        asked.clear()
        model(ids[:, TOKENS:], cache=cache)
        assert asked == expected(spec, "decode")


@pytest.mark.parametrize("overrides", [["attention=gqa"], ["attention=sliding"], ["position=t5"]], ids=tiny_models.name)
def test_packed_documents_are_asked_for_in_training_alone(overrides, asked):
    model = tiny_models.model_of(overrides)
    ids = torch.randint(1, model.spec.vocab_size, (2, TOKENS))
    model(ids, documents=torch.arange(TOKENS)[None].expand(2, -1) // 5)
    assert asked == expected(model.spec, "train", document=5)
    assert all(ask.documents for ask in asked)
    assert not any(ask.documents for ask in expected(model.spec, "prefill", document=5))


def test_cross_attention_and_both_towers_are_asked_for(asked):
    model = zoo.build("t5-small", list(SMALL_T5), device="cpu", dtype="fp32").eval()
    towers = model.spec.towers()
    ids = torch.randint(1, 67, (2, TOKENS + 1))
    model(ids[:, :TOKENS], decoder_input_ids=ids[:, :TOKENS])
    assert asked == expected(towers["encoder"], "train") + expected(towers["decoder"], "train", TOKENS)
    asked.clear()
    with torch.no_grad():
        memory = model.encoder(ids[:, :TOKENS]).hidden
        assert asked == expected(towers["encoder"], "encode")
        cache = Cache.allocate(model, 2, TOKENS + 1, source=TOKENS)
        asked.clear()
        model.decoder(ids[:, :TOKENS], memory=memory, cache=cache)
        assert asked == expected(towers["decoder"], "prefill", TOKENS)
        asked.clear()
        model.decoder(ids[:, TOKENS:], memory=memory, cache=cache)
        assert asked == expected(towers["decoder"], "decode", TOKENS)


# ---------------------------------------------------------------- what is taken


def taken(model: str, installed: str, gpu: str | None = "h100", **setup) -> dict[str, str]:
    """The kernel by the layer and its use."""
    lines = kernels(load(model), Setup(gpu=gpu, **setup))["layers"]
    return {
        " ".join(filter(None, (line["tower"], line["kind"], line["part"][:5], line["use"]))): line[installed]["kernel"]
        for line in lines
        if line["use"]
    }


@pytest.mark.parametrize("name", list_gpus())
def test_the_newest_flash_attn_that_a_gpu_runs_is_taken_on_it(name):
    device = hardware(name)
    by_capability = {
        (7, 0): "sdpa",
        (7, 5): "sdpa",
        (9, 0): "flash3",
        (10, 0): "flash4",
        (10, 3): "flash4",
        None: "sdpa",
    }
    found = taken("llama3-8b", "everything", name, dtype="bf16" if "bf16" in device.tflops else "fp16")
    assert set(found) == {"layer atten train", "layer atten prefill", "layer atten decode"}
    assert set(found.values()) == {by_capability.get(device.capability, "flash2")}
    alone = taken("llama3-8b", "torch", name, dtype="bf16" if "bf16" in device.tflops else "fp16")
    in_pages = "triton" if (device.capability or (0, 0)) >= (8, 0) else "sdpa"
    assert alone == {**dict.fromkeys(found, "sdpa"), "layer atten decode": in_pages}


def test_a_softcap_takes_flex_of_torch_alone_and_flash_attn_3_on_a_hopper():
    assert set(taken("gemma2-9b", "torch").values()) == {"flex", "triton"}
    assert set(taken("gemma2-9b", "everything").values()) == {"flash3"}
    assert set(taken("gemma2-9b", "everything", None).values()) == {"eager"}


def test_expanded_latents_are_for_flash_attn_and_absorbed_ones_for_zoos_own_kernel():
    found = taken("deepseek-v3", "everything")
    assert {use: found[f"sparse atten {use}"] for use in ("train", "prefill")} == {
        "train": "flash3",
        "prefill": "flash3",
    }
    assert found["sparse atten decode"] == "triton"
    decode = next(line for line in kernels(load("deepseek-v3"))["layers"] if line["use"] == "decode")
    widths = ("head_dim", "v_head_dim", "n_heads", "n_kv_heads")
    assert [decode["ask"][each] for each in widths] == [576, 512, 128, 1]


def test_alibi_takes_flash_attn_2_and_with_torch_alone_a_mask():
    assert set(taken("bloom-560m", "everything").values()) == {"flash2"}
    assert set(taken("bloom-560m", "torch").values()) == {"sdpa", "triton"}


def test_a_learned_bias_keeps_flash_attn_to_cross_attention():
    found = taken("t5-small", "everything")
    flash = {place for place, kernel in found.items() if kernel.startswith("flash")}
    assert flash == {f"decoder layer cross {use}" for use in ("train", "prefill", "decode")}
    assert {"encoder layer atten train", "encoder layer atten encode"} <= set(found)


def test_sinks_are_for_flash_attn_4_or_flex():
    assert set(taken("gpt-oss-20b", "everything").values()) == {"flash4"}
    assert set(taken("gpt-oss-20b", "torch").values()) == {"flex", "triton"}


def test_a_recurrent_mixer_takes_none(printed):
    (line,) = kernels(load("mamba2-130m"))["layers"]
    assert (line["use"], line["mixer"], line["layers"]) == (None, "mamba2", 24)
    assert "  layer × 24: mamba2, no attention kernel" in printed("stats", "mamba2-130m", "--kernels").splitlines()


def test_float32_is_for_torchs_kernels():
    found = kernels(load("llama3-8b"), Setup(gpu="h100", dtype="fp32"))["layers"]
    assert {line["use"]: line["everything"]["kernel"] for line in found} == {
        **{"train": "sdpa", "prefill": "sdpa"},
        "decode": "triton",
    }
    assert all("float16 and bfloat16, not float32" in line["refusals"]["flash3"] for line in found)
    assert {line["ask"]["dtype"] for line in kernels(load("gpt2"), Setup(precision="fp32"))["layers"]} == {
        "float32",
        "bfloat16",
    }


def test_no_reason_shown_is_that_a_package_is_missing():
    for model in ("gemma2-9b", "gpt-oss-20b", "bloom-560m", "t5-small", "deepseek-v3"):
        for line in kernels(load(model), Setup(gpu="a100-80g"))["layers"]:
            assert not any("installed" in reason for reason in line["refusals"].values())
            assert line["everything"]["kernel"] not in line["refusals"]
            assert line["torch"]["kernel"] not in line["refusals"]


def test_another_makers_gpu_is_no_cuda_device():
    for line in kernels(load("llama3-8b"), Setup(gpu="mi300x"))["layers"]:
        assert {line["refusals"][name] for name in ("flash2", "flash3", "flash4")} == {
            "it runs on CUDA devices, this is AMD Instinct MI300X"
        }


# ---------------------------------------------------------------- the compute capability of a GPU


@pytest.mark.parametrize("name", list_gpus())
def test_every_cuda_device_and_no_other_has_a_compute_capability(name):
    device = hardware(name)
    assert (device.capability is not None) == device.title.startswith("NVIDIA")


def test_capabilities_are_those_of_the_architectures():
    architectures = {
        **{"v100": (7, 0), "t4": (7, 5), "a100-80g": (8, 0), "rtx-3090": (8, 6), "l40s": (8, 9), "h100": (9, 0)},
        **{"h20": (9, 0), "b200": (10, 0), "b300": (10, 3), "rtx-5090": (12, 0), "mi300x": None},
    }
    assert {name: hardware(name).capability for name in architectures} == architectures


@pytest.mark.parametrize("value", [9, [9], [9, 0, 0], [9.0, 0], "9.0", [-1, 0], [True, 0]])
def test_a_capability_is_two_whole_numbers(value, tmp_path):
    import yaml

    body = yaml.safe_load((conf_dir() / "hardware" / "h100.yaml").read_text(encoding="utf-8"))
    body["capability"]["value"] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"capability\.value: must be major and minor \[9, 0\], found"):
        hardware(str(path))


# ---------------------------------------------------------------- as it is shown


def test_stats_show_the_calls_on_a_gpu(printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = printed("stats", "llama3-8b", "--kernels", "--gpu", "h100")
    assert out.splitlines() == [
        "llama3-8b: attention kernels on NVIDIA H100 SXM, compute capability 9.0",
        "bf16, 8,192 tokens, without padding",
        "",
        "With torch alone",
        "  layer × 32",
        "    train, prefill: sdpa: scaled_dot_product_attention(is_causal=True)",
        "    decode: triton: attend_part(sides=(None, 0))",
        "",
        "With flash-attn 2, 3 and 4",
        "  layer × 32",
        "    train, prefill: flash3: flash_attn_func(causal=True, window_size=(-1, -1))",
        "    decode: flash3: flash_attn_with_kvcache(causal=True, window_size=(-1, -1))",
    ]


def test_places_that_are_served_alike_stand_together_and_reasons_say_what_they_are_for(printed):
    out = printed("stats", "deepseek-v3", "--kernels", "--gpu", "h100")
    assert out.count("  dense × 3, sparse × 58\n") == 2
    passed = " ".join(out.split("Refused, even with all packages")[1].split())
    assert re.match(r"flash3, flash4, flash2, for decode: .*found 576", passed)
    out = " ".join(printed("stats", "t5-small", "--kernels", "--gpu", "h100").split())
    assert "flash kernels have no learned bias" in out


@pytest.mark.parametrize(
    "model", ["gemma2-9b", "bloom-560m", "gpt-oss-20b", "longformer-base-4096", "qwen3-next-80b-a3b"]
)
def test_every_call_and_every_reason_is_told_within_80_columns(model, printed):
    out = printed("stats", model, "--kernels", "--gpu", "h100")
    assert max(map(len, out.splitlines()[1:])) <= 80
    flat = " ".join(out.split())
    for line in kernels(load(model), Setup(gpu="h100"))["layers"]:
        for installed in ("torch", "everything") if line["use"] else ():
            arguments = ", ".join(f"{name}={value}" for name, value in line[installed]["arguments"].items())
            assert f"{line[installed]['kernel']}: {line[installed]['call']}" in flat
            assert arguments in flat
        assert all(" ".join(reason.split()) in flat for reason in line.get("refusals", {}).values())


def test_without_a_gpu_it_is_a_cpu_and_is_told_once(printed):
    out = printed("stats", "gemma2-2b", "--kernels")
    assert out.startswith("gemma2-2b: attention kernels on a CPU\n")
    assert "With torch alone" not in out
    assert "sdpa: scaled_dot_product_attention has no softcap" in out


def test_several_models_are_shown_one_after_the_other(printed):
    out = printed("stats", "gpt2", "llama3-8b", "n_layers=2", "--kernels")
    assert [line for line in out.splitlines() if "attention kernels on" in line] == [
        "gpt2 n_layers=2: attention kernels on a CPU",
        "llama3-8b n_layers=2: attention kernels on a CPU",
    ]


def test_json_has_the_kernels_beside_the_figures(printed):
    found = json.loads(printed("stats", "mistral-7b-v0.1", "--kernels", "--gpu", "h100", "--json"))
    told = found.pop("kernels")
    assert found == zoo.stats("mistral-7b-v0.1", gpu="h100")
    assert told == json.loads(json.dumps(kernels(load("mistral-7b-v0.1"), Setup(gpu="h100"))))


def test_what_cannot_be_shown_is_refused(refused):
    for option in ("--csv", "--md", "--explain", "--verify"):
        assert refused("stats", "gpt2", "--kernels", option).startswith("kernels: are printed as text")
    assert refused("stats", "gpt2", "n_layers=1,2", "-m", "--kernels").startswith("multirun: takes no ")
    assert refused("stats", "gpt2", "--kernels", "--gpu", "h1000").startswith(
        "gpu: unknown 'h1000' (did you mean 'h100'?)"
    )
    assert refused("stats", "gpt2", "--kernels", "--gpu", "t4") == (
        "dtype: NVIDIA T4 does not multiply bf16 (fp32, fp16 would do)"
    )


# ---------------------------------------------------------------- zoo build --kernel


def kernel_lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(("kernel", "  not "))]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU does")
def test_build_shows_each_layers_call_and_why_others_were_passed_over(printed):
    found = kernel_lines(printed("build", "llama-tiny", "n_layers=1"))
    assert found == [
        "kernel: sdpa on cpu, scaled_dot_product_attention(is_causal=True)",
        "  not flash3, flash4, flash2: it runs on CUDA devices, this is cpu",
    ]
    found = kernel_lines(printed("build", "t5-small", *SMALL_T5, "--device", "meta"))
    assert [line.partition(":")[0] for line in found if line.startswith("kernel")] == [
        "kernel of the encoder's layers",
        "kernel of the decoder's layers",
        "kernel of the decoder's layers (cross-attention)",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU does")
def test_a_kernel_is_forced_or_refused_in_one_line(printed, refused):
    (line,) = kernel_lines(printed("build", "gpt-tiny", "n_layers=1", "--kernel", "eager"))
    assert line.startswith("kernel: eager on cpu, ")
    assert refused("build", "gpt-tiny", "--kernel", "flash3").startswith(
        "kernel: flash3 was asked for, but it runs on CUDA devices, this is cpu (kernel=auto or kernel=sdpa"
    )
    line = refused("build", "gpt-tiny", "--kernel", "falsh2")
    assert line.startswith("kernel: there is no 'falsh2' (did you mean 'flash2'?)")
    line = refused("build", "gpt-tiny", "--kernel", "zzz")
    assert line.startswith("kernel: there is no 'zzz' (one of: auto, ") and all(name in line for name in KERNELS)


def test_a_model_without_attention_has_no_kernel_to_force(printed, refused):
    assert kernel_lines(printed("build", "mamba-130m", "n_layers=1", "--device", "meta")) == []
    for kernel in ("eager", "falsh2"):
        assert refused("build", "mamba-130m", "n_layers=1", "--device", "meta", "--kernel", kernel) == (
            f"kernel: {kernel} was asked for, but no layer has attention for it (kernel=auto would do)"
        )


def test_a_forced_kernel_is_refused_by_the_layer_that_it_cannot_do():
    from zoo.cli.build import describe_kernels as lines

    with pytest.raises(KernelError, match=r"^kernel: sdpa was asked for, but .* no softcap"):
        lines(load("gemma2-2b"), torch.device("cpu"), "bf16", "sdpa")
