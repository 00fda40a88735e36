"""convert, check and stats on Hugging Face folders: what they say, what they refuse, and that nothing is
half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
import zoo.cli
from support.packaged_specs import load, one_in
from support.reference_folders import SIZES, edit, folder, run
from zoo.checkpoint import parallel_checkpoint, store, verify_folder
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.sharded import save_shards
from zoo.errors import ConfigError


@pytest.mark.slow
def test_a_converted_folder_is_verified_by_transformers_in_a_fresh_process(tmp_path, capsys):
    made = folder(tmp_path / "there")
    (made / "tokenizer.json").write_text("{}")
    code, said, _ = run(capsys, "convert", made, tmp_path / "out")
    assert code == 0 and "as LlamaForCausalLM" in said and "verified: transformers gives the same logits" in said
    before, after = load_file(made / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in before.items()} == {n: t.tolist() for n, t in after.items()}
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_a_difference_is_found_and_said(tmp_path):
    model = zoo.load(folder(tmp_path / "there"))
    zoo.export(model, tmp_path / "out", verify=False)
    file = tmp_path / "out" / "model.safetensors"
    spoiled = load_file(file)
    spoiled["model.norm.weight"] = spoiled["model.norm.weight"] + 0.1
    save_file(spoiled, file, {"format": "pt"})
    with pytest.raises(zoo.CheckpointError, match="transformers' logits differ from the model's by"):
        verify_folder.verify_folder(model, tmp_path / "out")


def test_an_export_that_differs_does_not_appear(tmp_path, capsys, monkeypatch):
    def refuse(draft, *asked):
        assert (draft / "model.safetensors").is_file()
        raise zoo.CheckpointError(f"{draft}: transformers cannot read it")

    monkeypatch.setattr(verify_folder, "_run_transformers", refuse)
    made, out = folder(tmp_path / "there"), tmp_path / "out"
    code, _, said = run(capsys, "convert", made, out)
    assert code == 2 and f"{out}: transformers cannot read it" in said
    with pytest.raises(zoo.CheckpointError, match=f"^{out}: transformers cannot"):
        zoo.export(zoo.load(made), out)
    assert [each.name for each in tmp_path.iterdir()] == ["there"]


def swapped(tensors):
    """Two of a layer's matrices in each other's place."""
    k, v = (f"model.layers.0.self_attn.{each}_proj.weight" for each in "kv")
    return tensors | {k: tensors[v], v: tensors[k]}


def rebased(config):
    """Rotary positions of another base, where the class of this transformers keeps it."""
    return config | {"rope_parameters": config["rope_parameters"] | {"rope_theta": 9000.0}}


@pytest.mark.parametrize(
    ("spoil", "change"),
    [
        pytest.param(lambda tensors: tensors, rebased, id="a rope base of 9000, not 10000", marks=pytest.mark.slow),
        pytest.param(dict, lambda config: config | {"rms_norm_eps": 1e-3}, id="another eps", marks=pytest.mark.slow),
        pytest.param(swapped, dict, id="two matrices swapped", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_found_in_16_bits_as_in_32(spoil, change, tmp_path):
    model, out = zoo.load(folder(tmp_path / "there"), dtype="bf16"), tmp_path / "out"
    for parameter in model.parameters():
        parameter.data *= 10 if parameter.ndim > 1 else 1  # so that scores tell positions apart
    zoo.export(model, out, verify=False)
    assert verify_folder.verify_folder(model, out).largest < 1e-4
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    save_file(spoil(load_file(out / "model.safetensors")), out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(change(json.loads((out / "config.json").read_text()))))
    with pytest.raises(zoo.CheckpointError, match="transformers' logits differ from the model's by"):
        verify_folder.verify_folder(model, out)


@pytest.mark.parametrize("dtype", one_in(2, [torch.bfloat16, torch.float64]))
def test_a_model_is_after_its_export_what_it_was_before_and_can_be_trained(dtype, tmp_path):
    model = zoo.load(folder(tmp_path / "there")).to(dtype)
    for parameter in model.parameters():
        parameter.data += torch.rand(parameter.shape, dtype=torch.float64).to(dtype) * 1e-2  # no float32 value
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zoo.export(model, tmp_path / "out")
    after = model.state_dict()
    assert all(after[name].dtype is dtype and torch.equal(after[name], each) for name, each in before.items())
    model(torch.arange(8)[None]).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_there_and_back_through_our_own_checkpoint(tmp_path, capsys):
    made = folder(tmp_path / "there", attention_bias=True)
    assert run(capsys, "convert", made, tmp_path / "ours", "--to", "zoo")[0] == 0
    assert run(capsys, "check", tmp_path / "ours")[0] == 0
    code, said, _ = run(capsys, "convert", tmp_path / "ours", tmp_path / "again", "--no-verify")
    assert code == 0 and "not verified" in said
    ids = torch.randint(5, 97, (1, 9))
    with torch.no_grad():
        first, last = zoo.load(made)(ids).logits, zoo.load(tmp_path / "again")(ids).logits
    assert torch.equal(first, last)


def test_a_model_trained_here_is_written_as_the_best_known_family_that_says_it(tmp_path):
    model = zoo.build("llama-tiny", ["n_layers=2", "d_model=48", "vocab_size=99"], device="cpu")
    zoo.export(model, tmp_path / "out", verify=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(99, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, reference(ids).logits, atol=5e-5, rtol=0)


def test_an_architecture_of_no_family_is_refused_with_the_fields_in_the_way(tmp_path):
    model = zoo.build("llama-tiny", ["n_layers=2", "attention.softcap=7.0", "block=post_inside"], device="cpu")
    with pytest.raises(ConfigError, match=r"softcap: is 7\.0, would be None") as caught:
        zoo.export(model, tmp_path / "out", verify=False)
    assert "the nearest family, cannot describe this" in caught.value.faults[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "families"),
    [
        pytest.param(["attention=rwkv7"], {"rwkv7"}, marks=pytest.mark.slow),
        (
            ["layers={delta: {attention: gated_delta}, full: {}}", "pattern=[delta*3, full]"],
            {"olmo_hybrid", "qwen3_next", "qwen3_5_text"},
        ),
    ],
    ids=["RWKV-7", "gated delta rule"],
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:attention=")
def test_the_family_named_as_the_nearest_has_the_models_mixers(overrides, families):
    with pytest.raises(ConfigError, match="the nearest family") as caught:
        find_config(load("llama-tiny", overrides))
    (named,) = {fault.rpartition("; ")[2].partition(",")[0] for fault in caught.value.faults}
    assert named in families


def test_weights_are_sharded_above_a_size_and_read_back(tmp_path):
    made = folder(tmp_path / "there")
    model = zoo.load(made)
    zoo.export(model, tmp_path / "out", verify=False, shard=20_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(load_file(made / "model.safetensors"))
    again = zoo.load(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reference.lm_head.weight, model.state_dict()["head.out.weight"])


def test_torchs_own_files_are_read_as_tensors_alone(tmp_path):
    made = folder(tmp_path / "there")
    expected = zoo.load(made).state_dict()
    state = load_file(made / "model.safetensors")
    (made / "model.safetensors").unlink()
    torch.save(state, made / "pytorch_model.bin")
    assert all(torch.equal(expected[name], tensor) for name, tensor in zoo.load(made).state_dict().items())
    torch.save({**state, "evil": Path("here")}, made / "pytorch_model.bin")
    with pytest.raises(zoo.CheckpointError, match=r"pytorch_model\.bin: cannot be read with weights_only"):
        zoo.load(made)


def test_a_head_is_tied_as_the_file_has_it_whatever_the_flag_says(tmp_path):
    made = edit(folder(tmp_path / "untied"), tie_word_embeddings=True)
    assert not zoo.load(made).spec.head.tied
    made = edit(folder(tmp_path / "tied", tie_word_embeddings=True), tie_word_embeddings=False)
    assert zoo.load(made).spec.head.tied


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_type": "lama"}, "model_type: 'lama' is no family here (did you mean 'llama' or 'zamba' or 'jamba'?)"),
        ({"hidden_size": None}, "hidden_size: is missing (a config.json of this kind states it)"),
        ({"hidden_act": "geluu"}, "activation: 'geluu' is not supported (did you mean 'gelu'?)"),
        ({"moon_phase": 3}, "moon_phase: is 3, a field that llama does not have"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.quant_method: null is not read (one of: fp8,"),
        ({"architectures": ["LlamaForRewards"]}, "'LlamaForRewards' is not read (one of:"),
        ({"rope_parameters": {"rope_type": "bent", "rope_theta": 1.0}}, "rope_type: 'bent' is not supported"),
        ({"intermediate_size": 64}, "mlp.gate_proj.weight has shape [48, 32], the model's is [64, 32]"),
        ({"num_attention_heads": 3}, "n_heads"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_config_says_and_nothing_here_is_costs_one_line_and_exit_two(tmp_path, capsys, changes, fault):
    made = edit(folder(tmp_path / "there"), **changes)
    code, said, error = run(capsys, "convert", made, tmp_path / "out")
    assert code == 2 and said == "" and fault in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_broken_folders_are_told_apart(tmp_path, capsys):
    made = folder(tmp_path / "there")
    weights = (made / "model.safetensors").read_bytes()
    (made / "model.safetensors").write_bytes(weights[:4])
    assert "cannot be read" in run(capsys, "check", made)[2]
    (made / "model.safetensors").unlink()
    assert "no weights (model.safetensors" in run(capsys, "check", made)[2]
    (made / "config.json").write_text("{")
    assert "config.json: cannot be read as JSON" in run(capsys, "check", made)[2]
    assert "no checkpoint in it" in run(capsys, "check", tmp_path)[2]


def test_check_lists_what_is_missing_and_what_is_strange(tmp_path, capsys):
    made = folder(tmp_path / "there")
    state = load_file(made / "model.safetensors")
    state["model.layers.0.self_attn.q_norm.weight"] = state.pop("model.norm.weight")
    save_file(state, made / "model.safetensors")
    code, _, error = run(capsys, "check", made)
    assert code == 2
    assert "model.norm.weight is missing, of shape [32]" in error
    assert "model.layers.0.self_attn.q_norm.weight has no row in the map of llama" in error


def test_stats_of_a_config_needs_neither_torch_nor_transformers(tmp_path):
    made = folder(tmp_path / "there")
    code = (
        "import sys, zoo; print(zoo.stats(sys.argv[1])['params']['total']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made / "config.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held = transformers.AutoModelForCausalLM.from_pretrained(made)
    assert int(done.stdout) == sum(parameter.numel() for parameter in held.parameters())


def test_axes_of_a_published_config_are_swapped_like_any_others(tmp_path, capsys):
    made = folder(tmp_path / "there")
    code, said, _ = run(capsys, "stats", made, "attention=mqa", "n_layers=1", "--json")
    assert code == 0
    swapped = json.loads(said)["params"]["by_component"]
    assert swapped["attention"] == 32 * 32 * 2 + 2 * 32 * 8


def test_a_quantised_model_is_priced_as_it_runs_and_not_loaded_without_its_scales(tmp_path, capsys):
    made = folder(tmp_path / "there")
    total = zoo.stats(made)["params"]["total"]
    edit(made, quantization_config={"quant_method": "fp8"})
    code, said, error = run(capsys, "stats", made / "config.json", "--json")
    assert code == 0 and json.loads(said)["params"]["total"] == total
    assert "zoo: note: " in error and "its weights are quantised (fp8); it runs dequantised" in error
    with pytest.warns(UserWarning, match="it runs dequantised"):
        assert zoo.stats(made)["params"]["total"] == total
    state = load_file(made / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**state, name: state[name].to(torch.float8_e4m3fn)}, made / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"{name}: is F8_E4M3 without a scale"):
        zoo.load(made)


def test_of_a_model_of_text_and_images_the_text_model_is_priced(tmp_path, capsys):
    file = tmp_path / "config.json"
    text = {"model_type": "gemma3_text", **SIZES, "head_dim": 8}
    file.write_text(json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}))
    config = transformers.Gemma3TextConfig(**{**SIZES, "head_dim": 8})
    alone = transformers.Gemma3ForCausalLM(config)
    code, said, error = run(capsys, "stats", file, "--json")
    assert code == 0 and json.loads(said)["params"]["total"] == sum(p.numel() for p in alone.parameters())
    assert "gemma3: its text model alone (text_config), without vision_config" in error


def test_a_head_that_no_class_here_has_is_left_out_of_a_price_and_said(tmp_path, capsys):
    config = transformers.XLMRobertaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=97)
    made = transformers.XLMRobertaForSequenceClassification(config)
    made.config.architectures = ["XLMRobertaForRewards"]
    made.config.save_pretrained(tmp_path)
    code, said, error = run(capsys, "stats", tmp_path / "config.json", "--json")
    inside = sum(p.numel() for name, p in made.named_parameters() if not name.startswith("classifier"))
    priced = json.loads(said)["params"]["total"]
    assert code == 0 and priced in (inside, inside + 32 * 32 + 32)  # the bare class has a pooler
    assert "XLMRobertaForRewards: without its head, as XLMRobertaModel" in error


def test_without_transformers_nothing_is_written_before_it_is_said(tmp_path, capsys, monkeypatch):
    made = folder(tmp_path / "there")
    monkeypatch.setattr("zoo.checkpoint.verify_folder.find_spec", lambda name: None)
    code, _, said = run(capsys, "convert", made, tmp_path / "out")
    assert code == 2 and "zoo: error: verify: transformers is not installed" in said
    assert not (tmp_path / "out").exists()
    assert run(capsys, "convert", made, tmp_path / "out", "--no-verify")[0] == 0


def test_a_folder_here_needs_no_slash_and_its_shape_trains_like_any_other(tmp_path, capsys, monkeypatch):
    made = folder(tmp_path / "there", vocab_size=300)
    monkeypatch.chdir(tmp_path)
    few = (
        "steps=1",
        "batch_size=1",
        "seq_len=32",
        "data.max_bytes=20000",
        "data.tokenizer.vocab_size=300",
        "hydra.run.dir=run",
    )
    assert run(capsys, "train", "model=there", *few)[0] == 0
    total = zoo.stats("there")["params"]["total"]
    assert total == sum(parameter.numel() for parameter in zoo.build(made / "config.json").parameters())
    assert zoo.stats("run")["params"]["total"] == total  # a run is a model too
    assert zoo.stats("run", ["attention=mqa"]) == zoo.stats("there", ["attention=mqa"])
    bare = tmp_path / "run/checkpoints/step-000001"
    assert zoo.stats(bare, ["n_layers=1"])["params"]["total"] < zoo.stats(bare)["params"]["total"] == total


def test_a_folder_without_a_model_is_no_target(tmp_path, capsys, monkeypatch):
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path)
    code, _, said = run(capsys, "stats", "bare")
    assert code == 2 and said.startswith("zoo: error: bare: no checkpoint in it")


@pytest.mark.slow
def test_opening_a_large_folder_maps_it_into_memory(tmp_path):
    """200 MB of weights cost next to nothing until they are used."""
    made = folder(tmp_path / "there", hidden_size=1024, intermediate_size=8192, num_hidden_layers=2)
    size = sum(file.stat().st_size for file in made.glob("*.safetensors"))
    code = (
        "import resource, sys, torch, zoo; import zoo.run.layer, safetensors.torch;"
        "zoo.build('llama-tiny', ['n_layers=1', 'd_model=16'], device='cpu');"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "model = zoo.load(sys.argv[1]);"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, check=True)
    assert size > 200e6
    assert int(done.stdout) < 0.3 * size


def test_a_file_without_the_head_of_its_class_is_read_as_the_class_without_one(tmp_path, capsys):
    made = folder(tmp_path / "there")
    state = load_file(made / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, made / "model.safetensors", {"format": "pt"})
    code, said, _ = run(capsys, "check", edit(made, tie_word_embeddings=None))
    assert code == 0 and "LlamaForCausalLM" in said  # a head that is not there is the tied one
    made = edit(folder(tmp_path / "masked", "BertConfig", "BertForMaskedLM"), num_key_value_heads=None)
    state = {name: t for name, t in load_file(made / "model.safetensors").items() if not name.startswith("cls.")}
    state |= {
        f"bert.pooler.dense.{leaf}": torch.randn(shape) for leaf, shape in (("weight", (32, 32)), ("bias", (32,)))
    }
    save_file(state, made / "model.safetensors", {"format": "pt"})
    code, said, _ = run(capsys, "check", made)
    assert code == 0 and "BertModel" in said
    assert zoo.load(made)(torch.randint(5, 97, (1, 4))).logits is None


MEASURE = """
import re, sys
from pathlib import Path
from zoo.cli import run

def read_status(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

for source in sys.argv[1:]:
    for to in ("hf", "zoo"):
        for size in ("small", "large"):  # the small one imports what is needed
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
            before = read_status("VmRSS")
            args = ["convert", f"{size}/{source}", f"{size}/{source}-{to}", "--to", to, "--no-verify"]
            assert run(args) == 0
        print(read_status("VmHWM") - before, file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads and resets the high-water mark in /proc")
@pytest.mark.parametrize(
    ("layers", "width"), [pytest.param(*each, marks=pytest.mark.slow) for each in ((6, 512), (14, 1024))]
)
def test_converting_takes_the_memory_of_a_few_tensors_whatever_the_model_is(layers, width, tmp_path):
    """45 tensors of 1 MB, or 101 of 4 MB. Mapped pages count as memory here."""
    tensor = width * width * 4
    for name, (count, wide) in {"small": (1, 16), "large": (layers, width)}.items():
        shape = ["d_model={0}", "d_ff={0}", "n_heads=1", "n_kv_heads=1", "head_dim={0}", "vocab_size={0}"]
        own = [each.format(wide) for each in shape]
        model = zoo.build("llama-tiny", [f"n_layers={count}", *own], device="cpu")
        save_three_ways(model, tmp_path / name)
    assert sum(each.nbytes for each in model.parameters()) > 43 * tensor
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "whole", "shards", "hf"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    growths = [int(line) for line in done.stderr.split()]
    assert len(growths) == 6 and all(each < 3 * tensor + 4e6 for each in growths), growths


def save_three_ways(model, folder):
    """A checkpoint in one file, one in shards, and a Hugging Face folder."""
    folder.mkdir()
    store.save_model(model, folder / "whole")
    zoo.export(model, folder / "hf", verify=False)
    (folder / "shards").mkdir()
    store.write_architecture(model.spec, folder / "shards")
    save_shards(parallel_checkpoint.hold_weights(model), folder / "shards" / parallel_checkpoint.SHARDS)


def test_a_checkpoint_in_shards_is_converted_as_a_whole_one_is(tmp_path, capsys):
    """Numbers (of the activation) are tensors of one place in shards, and none elsewhere."""
    own = ["ffn=mlp", "activation=xielu", "attention.qk_norm=${norm}", "n_layers=2", "d_model=64", "d_ff=96"]
    model = zoo.build("llama-tiny", [*own, "vocab_size=61"], device="cpu")
    model.blocks[1].ffn.activation.beta.fill_(0.25)
    save_three_ways(model, tmp_path / "from")
    for name in ("whole", "shards", "hf"):
        for to in ("hf", "zoo"):
            out = tmp_path / f"{name}-{to}"
            assert run(capsys, "convert", tmp_path / "from" / name, out, "--to", to, "--no-verify")[0] == 0
            found, expected = (load_file(each / "model.safetensors") for each in (out, tmp_path / f"whole-{to}"))
            assert found.keys() == expected.keys() and len(found) > 10
            for key, each in found.items():
                assert each.dtype is expected[key].dtype and torch.equal(each, expected[key])
    for key, each in zoo.load(tmp_path / "shards-zoo").state_dict().items():
        assert torch.equal(each, model.state_dict()[key])
