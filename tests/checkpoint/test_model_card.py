"""The card of an export: what the hub reads of it, and counts that are the model's."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import transformers

from support.reference_folders import folder, run
from zoo.checkpoint import store
from zoo.checkpoint.model_card import find_task


def read_card(out: Path) -> huggingface_hub.ModelCard:
    return huggingface_hub.ModelCard.load(out / "README.md")


def count(out: Path) -> int:
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    return sum(each.numel() for each in model.parameters())


def test_the_hub_reads_the_card_and_its_counts_are_those_of_transformers(tmp_path, capsys):
    start = folder(tmp_path / "there")
    code, _, error = run(capsys, "convert", start, tmp_path / "out", "--no-verify")
    assert code == 0, error
    card = read_card(tmp_path / "out")
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["transformer-zoo", "decoder"]}
    assert card.data.to_dict() == head
    assert f"| Parameters | {count(tmp_path / 'out'):,} |" in card.text
    assert f"| Without embeddings | {count(tmp_path / 'out') - 2 * 97 * 32:,} |" in card.text
    assert "2 of gqa attention; width 32" in card.text and "## Training" not in card.text


def test_a_runs_card_says_how_it_was_trained(tmp_path, capsys):
    start = folder(tmp_path / "there")
    step = tmp_path / "run" / "checkpoints" / "step-000004"
    store.save_stored(store.open_model(start, None, mapped=False), step, start)
    data = {"kind": "text", "path": "/home/someone/letters"}
    settings = {"data": data, "weights": "sentence-transformers/a-model"}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(settings))
    (step.parent / "latest").write_text("step-000004\n")
    result = {"steps": 4, "tokens": 8192, "val_loss": 2.34567}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    assert run(capsys, "convert", tmp_path / "run", tmp_path / "out", "--no-verify")[0] == 0
    card = read_card(tmp_path / "out")
    assert card.data.to_dict()["base_model"] == "sentence-transformers/a-model"
    training = card.text.split("## Training")[1].split("## Use")[0].split("\n")
    assert [line for line in training if line] == [
        "- Data: text, letters",
        "- Steps: 4",
        "- Tokens: 8,192",
        "- Validation loss: 2.3457",
    ]
    (tmp_path / "run" / "result.json").write_text(json.dumps({**result, "steps": 8}))  # the losses of another step
    assert run(capsys, "convert", tmp_path / "run", tmp_path / "out", "--no-verify")[0] == 0
    assert "Validation loss" not in read_card(tmp_path / "out").text


def test_the_task_of_a_class_is_the_one_that_the_hub_gives_it():
    tasks = {"GPT2LMHeadModel": "text-generation", "BertModel": "feature-extraction", "BertForMultipleChoice": None}
    assert {name: find_task(name) for name in tasks} == tasks


def test_a_card_that_someone_wrote_is_kept(tmp_path, capsys):
    start, out = folder(tmp_path / "there"), tmp_path / "out"
    for _ in range(2):  # the second time it replaces its own
        assert run(capsys, "convert", start, out, "--no-verify")[0] == 0
    (out / "README.md").write_text("# A model of mine\n")
    assert run(capsys, "convert", start, out, "--no-verify")[0] == 0
    assert (out / "README.md").read_text() == "# A model of mine\n"


def test_a_model_for_zoos_own_classes_has_a_card_too(tmp_path, capsys):
    from zoo.compose import load
    from zoo.run.builder import build

    spec = load("llama-tiny", ["attention=differential", "vocab_size=97", "d_model=48", "head_dim=8", "d_ff=64"])
    store.save_model(build(spec), tmp_path / "own")
    code, said, error = run(capsys, "convert", tmp_path / "own", tmp_path / "out", "--no-verify")
    assert code == 0, error
    card = read_card(tmp_path / "out")
    assert "import zoo.hf" in card.text and "differential attention" in card.text and "zoo.hf" in said
    assert run(capsys, "check", tmp_path / "out")[0] == 0
