"""Attention by a function of transformers' attention interface, and by the kernel that `attn_implementation` names."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import zoo
import zoo.hf
from support.interface_server import InterfaceServer
from support.tiny_models import LOOPED, MIXED, every_choice, model_of
from zoo.errors import ConfigError, KernelError
from zoo.hf import ZooConfig, vllm_plugin
from zoo.kernels import KERNELS
from zoo.kernels.dispatch import replace_kernel

SIZE = ("n_layers=2", "d_model=32", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48", "vocab_size=67")
PROMPTS = [[3, 5, 7, 9, 11, 2, 50, 60], [33, 4], [33, 34, 35, 36, 37]]
OWN = (*SIZE, *MIXED, "attention.gate={}", "layers.near.block=parallel", "layers.near.attention.scale=0.4")
SERVED = {
    "llama": ("llama-tiny", SIZE),
    "windows": ("llama-tiny", OWN),
    "experts": ("mixtral-tiny", SIZE),
    "soft caps": ("gemma2-2b", (*SIZE, "n_layers=4", "window=3")),
    "latents": ("deepseek-tiny", ("n_layers=2", "d_model=64", "vocab_size=67")),
    "looped": ("llama-tiny", (*SIZE, *LOOPED)),
    "learned positions": ("gpt-tiny", ("n_layers=2", "d_model=32", "n_heads=4", "vocab_size=67")),
}
NEAR = ["sliding_attention"] * 2
REFUSED = {
    "gated_delta is no softmax": ("qwen3-next-tiny", ("n_layers=4", "d_model=48", "vocab_size=67")),
    "gqa has a state": ("llama-tiny", (*SIZE, "+attention.short_conv={width: 3}")),
    "bias of position alibi": ("llama-tiny", (*SIZE, "position=alibi")),
    "sinks": ("llama-tiny", (*SIZE, "attention.sinks=true")),
    "other keys than those of a window": ("llama-tiny", (*SIZE, "attention.window=4", "attention.window_kind=chunked")),
    "windows of several sizes": (
        "llama-tiny",
        (*SIZE, "layers={a:{attention:{window:4}},b:{attention:{window:5}}}", "pattern=[a,b]"),
    ),
    "heads of several sizes": (
        "llama-tiny",
        (*SIZE, "layers={a:{attention:{n_kv_heads:4}},b:{}}", "pattern=[a,b]"),
    ),
    "reads another layer's keys": (
        "llama-tiny",
        (*SIZE, "layers={a:{},b:{attention:{kv_from:a}}}", "pattern=[a,b]"),
    ),
    "a second attention of the layer": ("llama-tiny", (*SIZE, "block=shortcut")),
    "is not a decoder": ("bert-tiny", ("n_layers=1", "vocab_size=67")),
}


def make(name, overrides, kind=AutoModelForCausalLM):
    """Make a random model whose greedy tokens vary."""
    torch.manual_seed(1)
    model = kind.from_config(ZooConfig.of(name, list(overrides))).eval()
    for path, weight in model.named_parameters():
        if weight.ndim > 1 and "embedding" not in path:
            weight.data.mul_(5)
    return model


@pytest.mark.parametrize("case", SERVED)
def test_requests_in_one_row_get_the_tokens_that_each_gets_alone(case):
    model = make(*SERVED[case])
    twin = zoo.build(model.spec)
    twin.load_state_dict(model.state_dict())
    wanted = [
        model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
        for prompt in PROMPTS
    ]
    served = InterfaceServer(model)
    assert served.generate(PROMPTS, 6) == [row[0, -6:].tolist() for row in wanted]
    whole = twin.eval()(torch.tensor([PROMPTS[0]])).logits[0]
    again = InterfaceServer(model).run({0: list(enumerate(PROMPTS[0]))})
    torch.testing.assert_close(again, whole, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
def test_every_choice_of_every_axis_is_served_or_refused():
    """Beside zoo's own pass of the whole text, read in three parts."""
    ids, refused, served = torch.randint(3, 67, (1, 20)), 0, 0
    for overrides in every_choice():
        model = model_of(overrides)
        if model.spec.kind == "decoder":
            wrapped = zoo.hf.wrap(model)
            try:
                server = InterfaceServer(wrapped)
            except ConfigError:
                refused += 1
                continue
            served += 1
            parts = [server.run({0: [(at, int(ids[0, at])) for at in part]}) for part in (range(9), [9], range(10, 20))]
            torch.testing.assert_close(torch.cat(parts), model(ids).logits[0], atol=1e-3, rtol=1e-3, msg=str(overrides))
    assert served > 60 and refused > 30


@pytest.mark.parametrize("fault", REFUSED)
def test_what_the_interface_cannot_do_is_refused_by_name(fault):
    name, overrides = REFUSED[fault]
    model = AutoModel.from_config(ZooConfig.of(name, list(overrides)))
    with pytest.raises(ConfigError, match=fault):
        InterfaceServer(model)


def test_padding_and_a_cache_are_refused_with_the_interface():
    model = make("llama-tiny", SIZE)
    InterfaceServer(model)
    ids = torch.tensor([[0, 3, 4]])
    with pytest.raises(ConfigError, match="attention_mask"):
        model(ids, attention_mask=(ids > 0).long())
    with pytest.raises(ConfigError, match="use_cache"):
        model(ids, use_cache=True)


# ---------------------------------------------------------------- names of kernels


class Counted:
    """A kernel that counts its calls."""

    def __init__(self, kernel):
        self.kernel, self.calls = kernel, 0

    def __getattr__(self, name):
        return getattr(self.kernel, name)

    def __call__(self, *given):
        self.calls += 1
        return self.kernel(*given)


@pytest.mark.parametrize("name", ("llama-tiny", "t5-tiny"))
def test_attn_implementation_names_the_kernel(name, tmp_path):
    kind = AutoModel
    size = ("n_layers=2", "d_model=64", "d_ff=48", "vocab_size=67")
    kind.from_config(ZooConfig.of(name, size)).save_pretrained(tmp_path)
    model = kind.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.randint(3, 67, (2, 5))
    with replace_kernel("eager", Counted(KERNELS["eager"])), replace_kernel("sdpa", Counted(KERNELS["sdpa"])):
        eager = model(ids).last_hidden_state
        counts = KERNELS["eager"].calls, KERNELS["sdpa"].calls
        assert counts[0] and not counts[1]
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(model(ids).last_hidden_state, eager, atol=2e-5, rtol=2e-5)
        assert KERNELS["eager"].calls == counts[0] and KERNELS["sdpa"].calls
    built = zoo.build(model.spec)
    built.kernel = "eager"
    assert zoo.hf.wrap(built).kernel == "eager"
    assert zoo.hf.wrap(built, attn_implementation="sdpa").kernel == "sdpa"
    again = kind.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "zoo"
    assert again.kernel == "auto"


def test_a_kernel_that_cannot_serve_is_refused(tmp_path):
    AutoModel.from_config(ZooConfig.of("llama-tiny", SIZE)).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, attn_implementation="flex_attention")
    with pytest.raises(KernelError, match="no gradient on a CPU"):
        model(torch.tensor([[3, 4]]))
    with pytest.raises(ImportError, match="FlashAttention2"):
        AutoModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="not supported"):
        AutoModel.from_pretrained(tmp_path, attn_implementation="nonsense")


# ---------------------------------------------------------------- vLLM


@pytest.fixture
def plugin(monkeypatch):
    """The plugin, registered for one test."""
    monkeypatch.setattr(vllm_plugin, "register_checkpoint_conversion_mapping", lambda *given, **options: None)
    monkeypatch.setattr(vllm_plugin.transformers, "ZooForCausalLM", None, raising=False)
    vllm_plugin.register()
    yield
    AutoConfig.register("zoo", ZooConfig, exist_ok=True)


def test_vllm_reads_the_layers_attention_from_the_config(plugin, tmp_path):
    make("llama-tiny", OWN).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)
    assert config.layer_types == [*NEAR, "full_attention", *NEAR]
    assert config.sliding_window == 4 and config.attn_logit_softcapping is None
    assert vllm_plugin.transformers.ZooForCausalLM is zoo.hf.ZooForCausalLM


@pytest.mark.parametrize("more", ("bias=true", "offset=true", "spare_rows=5", "vocab_size=60"))
def test_a_head_that_vllm_would_compute_otherwise_is_refused(plugin, tmp_path, more):
    make("llama-tiny", (*SIZE, "head.tied=false", f"+head.{more}")).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=more.partition("=")[0]):
        AutoConfig.from_pretrained(tmp_path)


def test_vllm_finds_the_plugin_by_its_entry_point():
    project = tomllib.loads((Path(zoo.__file__).parents[1] / "pyproject.toml").read_text())
    stated = project["project"]["entry-points"]["vllm.general_plugins"]["zoo"]
    entry = importlib.metadata.EntryPoint("zoo", stated, "vllm.general_plugins")
    assert entry.load() is vllm_plugin.register


VLLM = os.environ.get("VLLM_PYTHON")
SERVE = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    folder, prompts = sys.argv[1], json.loads(sys.argv[2])
    how = dict(skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=4)
    model = LLM(folder, model_impl="transformers", kv_cache_memory_bytes=1 << 26, **how)
    greedy = SamplingParams(max_tokens=8, temperature=0, detokenize=False, ignore_eos=True)
    found = model.generate([{"prompt_token_ids": each} for each in prompts], greedy, use_tqdm=False)
    print("TOKENS", json.dumps([list(each.outputs[0].token_ids) for each in found]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not VLLM, reason="VLLM_PYTHON names no Python that has vLLM and zoo installed")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ("llama", "windows", "experts"))
def test_vllm_generates_the_tokens_of_generate(case, tmp_path):
    """Heads of 32 channels: vLLM's kernel for CPUs has none of fewer."""
    name, overrides = SERVED[case]
    model = make(name, (*overrides, "head_dim=32", "max_seq_len=64"))
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "serve.py").write_text(SERVE)
    words = [VLLM, tmp_path / "serve.py", tmp_path / "model", json.dumps(PROMPTS)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    said = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    assert said, done.stderr[-3000:]
    wanted = [
        model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
        for prompt in PROMPTS
    ]
    assert json.loads(said[0]) == [row[0, -8:].tolist() for row in wanted]
    assert sys.executable != VLLM
