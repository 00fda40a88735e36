"""The text model of a multimodal folder: read, equal to the whole model on text alone, and written back in place."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import save_file

import zoo
from support.logit_bounds import assert_close
from support.multimodal_models import WHOLE, Whole, pair
from support.reference_models import CLOSE, tensors
from zoo.checkpoint import hf, store
from zoo.checkpoint.verify_folder import verify_folder
from zoo.cli import run
from zoo.errors import CheckpointError
from zoo.families.multimodal import read_catalogue

EVERY = pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(case.name)) for case in WHOLE]
)
HALF = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.xdist_group(case.name), *[pytest.mark.slow] * (at % 2)])
        for at, case in enumerate(WHOLE)
    ],
)
GEMMA, MOLMO, QWEN = (next(case for case in WHOLE if case.name == name) for name in ("gemma3", "molmo2", "qwen2_5_vl"))


def ids_of(case: Whole, rows: int = 2, length: int = 24) -> torch.Tensor:
    """Token ids, none of them special."""
    return torch.randint(5, 89, (rows, length), generator=torch.Generator().manual_seed(3))


@HALF
def test_logits_equal_the_whole_models_on_text(case):
    two = pair(case)
    ids = ids_of(case)
    with torch.no_grad():
        ours, theirs = two.ours(ids), two.reference(input_ids=ids)[0]
    torch.testing.assert_close(ours.hidden if ours.logits is None else ours.logits, theirs, **CLOSE)


@HALF
def test_padded_rows_equal_the_whole_models_rows_alone_on_either_side(case):
    two = pair(case)
    ids, mask = ids_of(case, 3), torch.ones(3, 24, dtype=torch.long)
    mask[0, 17:], mask[1, :5] = 0, 0
    ids = torch.where(mask.bool(), ids, torch.zeros_like(ids))
    with torch.no_grad():
        ours = two.ours(ids, mask)
        for row in range(3):
            real = mask[row].bool()
            theirs = two.reference(input_ids=ids[row : row + 1, real])[0][0]
            given = ours.hidden if ours.logits is None else ours.logits
            torch.testing.assert_close(given[row][real], theirs, **CLOSE)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(each, id=each.name, marks=[pytest.mark.xdist_group(each.name), *[pytest.mark.slow] * (at % 2)])
        for at, each in enumerate(each for each in WHOLE if each.writes)
    ],
)
def test_greedy_continuation_equals_the_whole_models(case):
    two = pair(case)
    ids = ids_of(case, 2, 10)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        theirs = two.reference.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    assert zoo.generate(two.ours, ids, 12).tolist() == theirs.tolist()


@HALF
def test_written_back_all_is_as_it_was(case, tmp_path):
    two = pair(case)
    zoo.export(two.ours, tmp_path / "out", verify=False)
    before, after = tensors(two.folder), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert (two.folder / "config.json").read_bytes() == (tmp_path / "out" / "config.json").read_bytes()


@EVERY
def test_what_is_not_read_is_said_with_its_parameters(case):
    two = pair(case)
    said = hf.describe_unread(two.ours)
    total = sum(tensor.numel() for tensor in tensors(two.folder).values())
    read = sum(p.numel() for p in two.ours.parameters()) + sum(b.numel() for b in two.ours.buffers())
    left = [int(word.strip("(").replace(",", "")) for word in said.split() if word.startswith("(")]
    assert sum(left) == total - read > 0
    assert said.endswith("not read") and "text model alone" in said


def test_every_model_of_the_catalogue_is_compared_here():
    kinds = {getattr(transformers, case.config).model_type for case in WHOLE}
    assert sorted(kinds) == sorted(read_catalogue().models)


def test_a_changed_text_model_is_written_into_its_folder_and_the_rest_is_kept(tmp_path):
    two = pair(GEMMA)
    model = zoo.load(two.folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    zoo.export(model, tmp_path / "out", verify=False)
    before, after = tensors(two.folder), tensors(tmp_path / "out")
    rest = [name for name in before if not name.startswith("language_model.")]
    assert rest and all(torch.equal(before[name], after[name]) for name in rest)
    again = transformers.Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "out", attn_implementation="eager")
    ids = ids_of(GEMMA)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, again.eval()(input_ids=ids).logits, **CLOSE)


@pytest.mark.slow
def test_transformers_gives_the_logits_of_a_written_folder(tmp_path):
    model = zoo.load(pair(QWEN).folder)
    zoo.export(model, tmp_path / "out", verify=False)
    assert verify_folder(model, tmp_path / "out").largest < 5e-5


def test_a_checkpoint_of_ours_is_converted_into_a_multimodal_folder(tmp_path, capsys):
    folder = pair(QWEN).folder
    assert run(["convert", str(folder), str(tmp_path / "ours"), "--to", "zoo"]) == 0
    said = capsys.readouterr().out
    assert "qwen2_5_vl: its text model alone; visual (" in said and "parameters) not read" in said
    code = run(["convert", str(tmp_path / "ours"), str(tmp_path / "out"), "--into", str(folder), "--no-verify"])
    assert code == 0 and "as Qwen2_5_VLForConditionalGeneration" in capsys.readouterr().out
    before, after = tensors(folder), tensors(tmp_path / "out")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_without_its_folder_a_text_model_is_written_as_the_family_that_is_alike(tmp_path, capsys):
    run(["convert", str(pair(QWEN).folder), str(tmp_path / "ours"), "--to", "zoo"])
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "out"), "--no-verify"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


def test_into_a_folder_of_text_alone_is_refused(tmp_path, capsys):
    run(["convert", str(pair(QWEN).folder), str(tmp_path / "ours"), "--to", "zoo"])
    run(["convert", str(tmp_path / "ours"), str(tmp_path / "text"), "--no-verify"])
    asked = ["convert", str(tmp_path / "ours"), str(tmp_path / "out"), "--into", str(tmp_path / "text"), "--no-verify"]
    assert run(asked) != 0
    assert "is no multimodal folder" in capsys.readouterr().err


def test_a_head_that_is_no_longer_tied_comes_into_the_folder_and_its_config(tmp_path):
    folder = pair(GEMMA).folder
    spec = store.load_spec(folder)
    model = zoo.build(dataclasses.replace(spec, head=dataclasses.replace(spec.head, tied=False)), device="cpu").eval()
    zoo.export(model, tmp_path / "out", verify=False, into=folder)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    assert config["vision_config"] == json.loads((folder / "config.json").read_text())["vision_config"]
    assert tensors(tmp_path / "out").keys() - tensors(folder).keys() == {"language_model.lm_head.weight"}
    again = transformers.Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "out", attn_implementation="eager")
    ids = ids_of(GEMMA)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, again.eval()(input_ids=ids).logits, **CLOSE)


def test_a_folder_of_several_files_keeps_its_files_and_its_index(tmp_path):
    two = pair(GEMMA)
    two.reference.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    parts = sorted(file.name for file in (tmp_path / "parts").glob("*.safetensors"))
    zoo.export(zoo.load(tmp_path / "parts"), tmp_path / "out", verify=False)
    assert sorted(file.name for file in (tmp_path / "out").glob("*.safetensors")) == parts and len(parts) > 1
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (tmp_path / "parts" / index).read_bytes()


def test_other_files_of_the_folder_go_with_it_and_other_weights_do_not(tmp_path):
    shutil.copytree(pair(GEMMA).folder, tmp_path / "in")
    (tmp_path / "in" / "preprocessor_config.json").write_text("{}")
    (tmp_path / "in" / "consolidated.pth").write_bytes(b"weights")
    zoo.export(zoo.load(tmp_path / "in"), tmp_path / "out", verify=False)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "preprocessor_config.json" in names and "consolidated.pth" not in names


def test_dots3_note_with_the_fields_of_its_sliding_layers_beside_all_others_is_read_as_published(tmp_path):
    case = next(each for each in WHOLE if each.name == "dots3_note")
    types = ["indexed_attention", "sliding_attention"] * 2 + ["indexed_attention"]
    two = pair(dataclasses.replace(case, text={**case.text, "layer_types": types}))
    shutil.copytree(two.folder, tmp_path / "in")
    config = json.loads((two.folder / "config.json").read_text())
    text = config.pop("text_config")
    rope, sizes = text.pop("rope_parameters"), text.pop("per_layer_config")["1"]
    stated = {name: text[name] for name in ("num_attention_heads", "q_lora_rank", "kv_lora_rank", "v_head_dim")}
    text |= {f"swa_{name}": value for name, value in {**stated, **sizes}.items()}
    text |= {"rope_theta": rope["indexed_attention"]["rope_theta"], "use_dsa": True}
    text |= {"swa_rope_theta": rope["sliding_attention"]["rope_theta"], "sliding_window_size": text["sliding_window"]}
    text |= {"layer_types": [each.replace("indexed", "full") for each in types], "sliding_window": None}
    file = tmp_path / "in" / "config.json"
    file.write_text(json.dumps({**text, **config}))
    model, ids = zoo.load(tmp_path / "in"), ids_of(case)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, two.reference(input_ids=ids).logits, **CLOSE)
    zoo.export(model, tmp_path / "out", verify=False)
    assert (tmp_path / "out" / "config.json").read_bytes() == file.read_bytes()


def test_fields_of_text_beside_all_others_are_read_as_in_text_config(tmp_path):
    """As Qwen2-VL and Qwen2.5-VL are published."""
    shutil.copytree(pair(QWEN).folder, tmp_path / "in")
    file = tmp_path / "in" / "config.json"
    config = json.loads(file.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    file.write_text(json.dumps({**text, **old, **config, "vision_token_id": 94}))
    model = zoo.load(tmp_path / "in")
    ids = ids_of(QWEN)
    with torch.no_grad():
        assert_close(model(ids).logits, pair(QWEN).reference(input_ids=ids).logits)


def test_experts_in_one_tensor_are_read_as_those_one_by_one(tmp_path):
    """Qwen3.5 is published so; transformers writes its experts one by one."""
    two = pair(next(case for case in WHOLE if case.name == "qwen3_5_moe"))
    shutil.copytree(two.folder, tmp_path / "in")
    held = tensors(two.folder)
    whole = {name: tensor for name, tensor in held.items() if ".experts." not in name}
    for layer in range(two.ours.spec.n_layers):
        stem = f"model.language_model.layers.{layer}.mlp.experts"
        part = {leaf: [held[f"{stem}.{i}.{leaf}.weight"] for i in range(6)] for leaf in ("gate_proj", "up_proj")}
        both = [torch.cat(each) for each in zip(*part.values(), strict=True)]
        whole[f"{stem}.gate_up_proj"] = torch.stack(both)
        whole[f"{stem}.down_proj"] = torch.stack([held[f"{stem}.{i}.down_proj.weight"] for i in range(6)])
    save_file(whole, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    model = zoo.load(tmp_path / "in")
    ids = ids_of(two.case)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, two.ours(ids).logits)
    zoo.export(model, tmp_path / "out", verify=False)
    assert tensors(tmp_path / "out").keys() == whole.keys()


def test_experts_as_published_are_the_turned_ones(tmp_path):
    """Qwen3-VL MoE is published with [in, out] experts; transformers reads both and writes [out, in]."""
    two = pair(next(case for case in WHOLE if case.name == "qwen3_vl_moe"))
    shutil.copytree(two.folder, tmp_path / "in")
    held = {n: t.mT.contiguous() if ".experts." in n else t for n, t in tensors(two.folder).items()}
    save_file(held, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    model = zoo.load(tmp_path / "in")
    ids = ids_of(two.case)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, two.ours(ids).logits)
    zoo.export(model, tmp_path / "out", verify=False)
    after = tensors(tmp_path / "out")
    assert all(torch.equal(held[name], after[name]) for name in held)


def test_a_multimodal_model_that_was_not_compared_is_priced_and_not_loaded(tmp_path):
    shutil.copytree(pair(GEMMA).folder, tmp_path / "in")
    file = tmp_path / "in" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "stranger"}))
    with pytest.raises(CheckpointError, match="the text model inside 'stranger' is not loaded"):
        zoo.load(tmp_path / "in")
    with pytest.warns(UserWarning, match="its text model alone"):
        assert zoo.stats(tmp_path / "in")["params"]["total"] > 0


def test_tensors_under_names_that_are_not_known_are_refused(tmp_path):
    shutil.copytree(pair(GEMMA).folder, tmp_path / "in")
    held = {name.replace("language_model", "reader"): each for name, each in tensors(tmp_path / "in").items()}
    save_file(held, tmp_path / "in" / "model.safetensors")
    with pytest.raises(CheckpointError, match="the tensors of its text model were not found"):
        zoo.load(tmp_path / "in")


def test_a_missing_tensor_of_the_text_model_is_named(tmp_path):
    shutil.copytree(pair(GEMMA).folder, tmp_path / "in")
    held = tensors(tmp_path / "in")
    del held["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(held, tmp_path / "in" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        zoo.load(tmp_path / "in")


def test_two_tables_of_one_vocabulary_are_read_as_published_and_as_transformers_halves_them(tmp_path):
    two = pair(MOLMO)
    base, added = (f"model.transformer.wte.{name}" for name in ("embedding", "new_embedding"))
    files = tensors(two.folder)
    table = torch.cat([files[base], files[added]])
    published = {**files, base: table[:97].clone(), added: table[97:].clone()}
    assert [len(files[base]), len(files[added]), len(published[added])] == [53, 53, 9]
    shutil.copytree(two.folder, tmp_path / "in")
    save_file(published, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    model, ids = zoo.load(tmp_path / "in"), torch.arange(90, 106)[None]  # the last nine are of the second table
    with torch.no_grad():
        assert torch.equal(model(ids).logits, two.ours(ids).logits)
        assert_close(model(ids).logits, two.reference(input_ids=ids).logits)
    zoo.export(model, tmp_path / "out", verify=False)
    after = tensors(tmp_path / "out")
    assert after.keys() == published.keys() and all(torch.equal(after[name], published[name]) for name in after)
