"""`zoo convert --to onnx` and `--to export`: the program gives the model's logits, with a cache and without zoo."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from support.packaged_specs import make_loud
from support.reference_folders import run
from support.shrunk_models import shrunk
from support.tiny_decoders import tiny
from support.tiny_models import needs
from zoo.checkpoint import exported, onnx_export, sentence_files, store
from zoo.checkpoint.stored import StoredModel
from zoo.compose import load
from zoo.errors import CheckpointError, ConfigError
from zoo.model.task_head import RegressionHead
from zoo.run.builder import build
from zoo.run.traced import TracedModel
from zoo.run.traced_pair import FILES, trace_pair
from zoo.text.sentence import read_pipeline

DECODERS = {
    "gpt2": [
        "attention=mha",
        "position=learned",
        "block=pre",
        "norm=layernorm",
        "ffn=mlp",
        "activation=gelu",
        "bias=true",
    ],
    "experts": ["ffn=moe", "router.top_k=2"],
    "window": ["attention=sliding", "window=5"],
    "latents": ["attention=mla"],
    "states": ["pattern=[linear,layer]", "+layers={linear:{attention:{kind:gated_delta}}}"],
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The plainest model and its written folder, for the tests that read alone."""
    model, out = tiny(), tmp_path_factory.mktemp("llama") / "out"
    save(model, out)
    return model, out


def save(model, out: Path, form: str = "onnx", **options) -> str:
    return exported.save(StoredModel.of(model), out, out.parent, form, **options)


def test_a_folder_with_a_card_of_its_own_model_is_written_again(tmp_path):
    model, out = tiny(), tmp_path / "out"
    save(model, out, "export", verify=False)
    (out / "README.md").write_text("# Mine")
    save(model, out, "export", verify=False)
    assert (out / "README.md").read_text() == "# Mine"


def open_onnx(folder: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(folder / "model.onnx")


def make_past(session, batch: int) -> dict[str, np.ndarray]:
    """Empty entries and zero states, from the shapes that the file states."""
    numbers = {"batch_size": batch, "past_sequence_length": 0}
    held = [each for each in session.get_inputs() if each.name.startswith("past_")]
    return {each.name: np.zeros([numbers.get(size, size) for size in each.shape], np.float32) for each in held}


def generate(session, ids: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """Generate greedily by the names alone, as a program in another language would."""
    outputs = [each.name for each in session.get_outputs()]
    past, start = make_past(session, len(ids)), 0
    for _ in range(count):
        stops = [ids.shape[1]] if session.get_inputs()[0].shape[1] != 1 else range(start + 1, ids.shape[1] + 1)
        for stop in stops:
            given = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop], **past}
            found = dict(zip(outputs, session.run(None, given), strict=True))
            after = {name: name.replace("past_key_values", "present").replace("past_", "present_") for name in past}
            past, start = {name: found[after[name]] for name in past}, stop
        new = found["logits"][:, -1].argmax(-1, keepdims=True)
        ids, mask = np.hstack((ids, new)), np.hstack((mask, np.ones_like(new)))
    return ids


FEW = ("llama",)


@pytest.mark.parametrize(
    "name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in DECODERS if name not in FEW)]
)
def test_onnxruntime_generates_what_the_model_generates_from_each_row_alone(name, llama, tmp_path):
    model, out = llama if name == "llama" else (tiny(*DECODERS[name]), tmp_path / "out")
    assert out.exists() or save(model, out).startswith("onnxruntime gives the model's values")
    prompts = [[7, 3, 9, 4, 11, 2], [5, 8]]
    ids = np.array([[0] * (6 - len(each)) + each for each in prompts])
    mask = np.array([[0] * (6 - len(each)) + [1] * len(each) for each in prompts])
    found = generate(open_onnx(out), ids, mask, 8)
    for row, prompt in zip(found, prompts, strict=True):
        alone = torch.tensor([prompt])
        for _ in range(8):
            alone = torch.cat((alone, model(alone).logits[:, -1:].argmax(-1)), 1)
        assert row[-len(prompt) - 8 :].tolist() == alone[0].tolist()


def test_the_files_axes_and_tensors_have_the_names_that_other_readers_look_for(llama):
    session = open_onnx(llama[1])
    total = "past_sequence_length + sequence_length"
    assert {each.name: each.shape for each in session.get_inputs()} == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", total],
        **{
            f"past_key_values.{layer}.{name}": ["batch_size", 2, "past_sequence_length", 8]
            for layer in (0, 1)
            for name in ("key", "value")
        },
    }
    outputs = {each.name: each.shape for each in session.get_outputs()}
    assert outputs["logits"] == ["batch_size", "sequence_length", 61]
    assert outputs["present.1.value"] == ["batch_size", 2, total, 8]
    assert json.loads((llama[1] / "config.json").read_text())["model_type"] == "llama"


ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
ids, mask, past, wanted = torch.load(sys.argv[2])
found = program(input_ids=ids[:, :6], attention_mask=mask[:, :6], past=past)
past = {name: found[name.replace("past_key_values", "present")] for name in past}
more = program(input_ids=ids[:, 6:], attention_mask=mask, past=past)
torch.testing.assert_close(torch.cat((found["logits"], more["logits"]), 1)[:, 2:], wanted, rtol=1e-4, atol=1e-4)
assert "zoo" not in sys.modules
"""


@pytest.mark.slow
def test_torch_alone_runs_an_exported_program_with_its_cache(tmp_path):
    model = tiny("attention=sliding", "window=5")
    save(model, tmp_path / "out", "export")
    ids = torch.arange(27).view(3, 9)
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    past = {f"past_key_values.{layer}.{name}": torch.zeros(3, 2, 0, 8) for layer in (0, 1) for name in ("key", "value")}
    torch.save((ids, mask, past, model(ids[:, 2:]).logits.detach()), tmp_path / "asked.pt")
    file = tmp_path / "out/model.pt2"
    done = subprocess.run([sys.executable, "-c", ALONE, file, tmp_path / "asked.pt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["onnx", pytest.param("export", marks=pytest.mark.slow)])
def test_an_encoder_gives_hidden_states_logits_and_a_sentences_vector(form, tmp_path):
    torch.manual_seed(0)
    model = make_loud(zoo.build("bert-tiny", ["n_layers=2", "vocab_size=61"]).eval(), (61, 64))
    sentence_files.write_modules(tmp_path, "mean", 192, 64)
    embed = read_pipeline(tmp_path).apply
    save(model, tmp_path / "out", form, embed=lambda hidden, real: embed(hidden, real, 0, None))
    assert (tmp_path / "out/1_Pooling/config.json").is_file()
    ids, types = torch.arange(14).view(2, 7), torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    if form == "onnx":
        session = open_onnx(tmp_path / "out")
        names = [each.name for each in session.get_outputs()]
        found = dict(zip(names, session.run(None, {name: each.numpy() for name, each in given.items()}), strict=True))
    else:
        program = torch.export.load(tmp_path / "out/model.pt2").module()
        found = {name: each.detach().numpy() for name, each in program(**given).items()}
    short = model(ids[1:, :5], token_type_ids=types[1:, :5])
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(found["logits"][1, :5], short.logits[0].detach(), **close)
    np.testing.assert_allclose(found["last_hidden_state"][1, :5], short.hidden[0].detach(), **close)
    mean = short.hidden[0].detach().mean(0)
    np.testing.assert_allclose(found["sentence_embedding"][1], mean / mean.norm(), **close)


@pytest.mark.parametrize("form", ["export", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("skip_id", [pytest.param(None, marks=pytest.mark.slow), 60])
def test_a_decoder_whose_head_reads_a_rows_last_token_is_a_program(form, skip_id, tmp_path):
    torch.manual_seed(0)
    spec = load("llama-tiny", ["n_layers=2", "vocab_size=61"])
    spec = replace(spec, head=RegressionHead(n_outputs=1, pooling="last", skip_id=skip_id))
    model = make_loud(build(spec, device="cpu").eval(), (61, 64))
    assert "the model's values" in save(model, tmp_path / "out", form)  # of 1 and 3 rows, of two lengths, padded


def open_pair(folder: Path, form: str) -> dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]]:
    """The three programs of an encoder-decoder, by the names of their files."""

    def open_one(file: Path):
        if form == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(file)
            names = [each.name for each in session.get_outputs()]
            inputs = {each.name for each in session.get_inputs()}
            return lambda given: dict(
                zip(names, session.run(None, {name: given[name] for name in given if name in inputs}), strict=True)
            )
        program = torch.export.load(file).module()

        def call(given):
            tensors = {name: torch.from_numpy(each) for name, each in given.items()}
            past = {name: tensors.pop(name) for name in given if name.startswith("past_key_values")}
            found = program(**tensors, **({"past": past} if past else {}))
            return {name: each.detach().numpy() for name, each in found.items()}

        return call

    suffix = {"onnx": "onnx", "export": "pt2"}[form]
    return {name: open_one(folder / f"{name}.{suffix}") for name in FILES}


@pytest.mark.parametrize("name", ["bart-tiny", "t5-tiny"])
def test_the_three_programs_of_an_encoder_decoder_give_its_logits_before_they_are_recorded(name):
    model = quiet(name)
    programs = trace_pair(model, model.spec)
    run = [partial(call_eager, each) for each in programs]
    assert "rows of 1 × 9 → 9 and 3 × 17 → 17 tokens" in exported.compare_pair(model, programs, run)
    order = [f"past_key_values.0.{tower}.{each}" for tower in ("decoder", "encoder") for each in ("key", "value")]
    assert programs[2].inputs == ["input_ids", "encoder_attention_mask", *order]  # optimum passes them in this order


def quiet(name: str):
    """A tiny encoder-decoder whose every weight is drawn: T5's unscaled scores would amplify rounding of loud ones."""
    torch.manual_seed(0)
    model = zoo.build(name, ["n_layers=1", "vocab_size=61"]).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return model


def call_eager(program, given):
    past = {name: each for name, each in given.items() if name.startswith("past_")}
    others = {name: each for name, each in given.items() if name not in past}
    return program(**others, **({"past": past} if past else {}))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [("bart-tiny", "export"), ("bart-tiny", "onnx"), ("t5-tiny", "onnx")])
def test_an_encoder_decoder_is_three_programs_that_generate_what_the_model_does(name, form, tmp_path):
    """Read by names alone: a padded batch's tokens are those of each source alone."""
    model = quiet(name)
    assert "then 3 cached steps each" in save(model, tmp_path / "out", form)
    run = open_pair(tmp_path / "out", form)
    sources = [[7, 3, 9, 4, 11, 2, 20], [5, 8, 33]]
    ids = np.array([each + [0] * (7 - len(each)) for each in sources])
    mask = np.array([[1] * len(each) + [0] * (7 - len(each)) for each in sources])
    hidden = run["encoder_model"]({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
    new = found = np.full((2, 1), model.spec.start_id)
    program, past = "decoder_model", {"encoder_hidden_states": hidden}
    for _ in range(8):
        made = run[program]({"input_ids": new, "encoder_attention_mask": mask, **past})
        kept = {key.replace("present", "past_key_values"): made[key] for key in made if key != "logits"}
        past = {key: each for key, each in {**past, **kept}.items() if key != "encoder_hidden_states"}
        program, new = "decoder_with_past_model", made["logits"][:, -1:].argmax(-1)
        found = np.hstack((found, new))
    for row, source in zip(found, sources, strict=True):
        alone = torch.full((1, 1), model.spec.start_id)
        for _ in range(8):
            logits = model(torch.tensor([source]), decoder_input_ids=alone).logits
            alone = torch.cat((alone, logits[:, -1:].argmax(-1)), 1)
        assert row.tolist() == alone[0].tolist()


RECORDED = [
    *("base", "bitnet-b1.58-2b-4t", "bloom-176b", "deepseek-tiny", "deepseek-v2-lite", "deepseek-v3", "gpt-oss-20b"),
    *(
        "llama3-8b",
        "gemma2-2b",
        "gemma3-1b",
        "gemma-3n-e2b",
        "lfm2-350m",
        "mamba2-130m",
        "rwkv7-0.1b",
        "falcon-h1-0.5b",
    ),
    *("qwen3-30b-a3b", "kimi-linear-48b-a3b", "longcat-flash", "mpt-7b", "falcon-7b", "granite-4.0-h-tiny", "olmo2-7b"),
    *("minimax-m2", "nanochat-d20", "opt-350m", "zamba-7b", "hrm-text-1b"),
    *("bert-base", "deberta-base", "deberta-v3-base", "modernbert-base", "roberta-base", "esm2-8m"),
    *("longformer-base-4096", "embeddinggemma-300m"),
]
"""Packaged models whose small copies are written: what docs/onnx.md counts."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_every_architecture_of_the_table_is_written_and_compared(name, tmp_path):
    torch.manual_seed(0)
    model = make_loud(zoo.build(shrunk(name), device="cpu").eval(), (67, 64))
    assert save(model, tmp_path / "out").startswith("onnxruntime gives the model's values")


@pytest.mark.slow
def test_weights_too_large_for_protobuf_stand_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "WHOLE", 1000)
    save(tiny(), tmp_path / "out")
    assert (tmp_path / "out/model.onnx.data").stat().st_size > 40_000


def test_a_program_with_other_values_is_not_written(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "write", lambda _, __, folder: shutil.copy(llama[1] / "model.onnx", folder))
    monkeypatch.setattr(TracedModel, "record", lambda self: None)
    with pytest.raises(CheckpointError, match=r"logits: of the program differs by .* in rows of 17 tokens"):
        save(tiny("attention=sliding", "window=12"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_program_is_refused_in_a_line_and_nothing_is_written(tmp_path, capsys):
    pair = load("bart-tiny", ["n_layers=1"])
    pair = replace(pair, decoder=replace(pair.decoder, head=RegressionHead(n_outputs=1, pooling="last")))
    refused = {
        "bart": (build(pair, device="cpu"), "decoder.head: the decoder's head is of kind 'regression'"),
        "entries": (
            tiny("attention=hca", *needs("attention=hca")),
            "layers.layer.attention: compressed caches one entry",
        ),
        "indexer": (
            tiny("attention=dsa", *needs("attention=dsa")),
            "layers.layer.attention: an indexer of mla chooses",
        ),
        "drift": (tiny("position=rope_dynamic", "original_max_seq_len=8"), "position: a cache drifts beyond 8 tokens"),
        "bf16": (tiny().to(torch.bfloat16), "--dtype: is bfloat16, which onnxruntime does not compute in"),
    }
    for name, (model, line) in refused.items():
        store.save_model(model, tmp_path / name)
        code, _, errors = run(capsys, "convert", tmp_path / name, tmp_path / "out", "--to", "onnx")
        assert (code, errors.count("\n")) == (2, 1) and line in errors
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["onnx", "onnx_ir"])
def test_without_a_package_one_line_says_what_to_install(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)  # so that its import fails
    with pytest.raises(ConfigError, match=rf"{missing} is not installed \(pip install 'transformer-zoo\[onnx\]'\)"):
        save(tiny(), tmp_path / "out")


@pytest.mark.slow
def test_the_command_says_what_was_compared(tmp_path, capsys):
    store.save_model(tiny(), tmp_path / "model")
    code, said, _ = run(capsys, "convert", tmp_path / "model", tmp_path / "out", "--to", "onnx")
    assert code == 0 and "verified: onnxruntime gives the model's values" in said
    code, said, _ = run(capsys, "convert", tmp_path / "model", tmp_path / "out", "--to", "export", "--no-verify")
    assert code == 0 and "not verified: the program was not run" in said
    assert not (tmp_path / "out/model.onnx").exists()
