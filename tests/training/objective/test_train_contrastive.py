"""Runs of contrastive learning: what they learn, leave behind, cost and refuse."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from test_contrastive import ANIMALS, make_batch, objective_of, tiny_batch
from torch.nn import functional as F

import zoo
from support.corpora import faults_of
from support.flop_counts import counted
from support.packaged_specs import load
from zoo.checkpoint import store
from zoo.checkpoint.sentence_files import write_modules
from zoo.cli import run
from zoo.data import DataSettings
from zoo.data.compared_texts import ComparedTask
from zoo.data.labelled_records import read_examples
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.jobs.plan import plan_launch, task_config
from zoo.jobs.train import resume_run
from zoo.training.decoded import decode_row, describe_row
from zoo.training.memory_fit import price_training
from zoo.training.objective import Context
from zoo.training.planning import plan_training
from zoo.training.run_flops import TrainingFlops

SMALL = [
    *("model.d_model=32", "model.n_heads=4", "model.head_dim=8", "model.d_ff=48", "model.vocab_size=300"),
    *("model.max_seq_len=64", "model.n_layers=1", "data=jsonl", "data.path=pairs.jsonl", "data.tokenizer.kind=byte"),
    *("steps=6", "batch_size=8", "seq_len=24", "eval_every=3", "eval_batches=null", "save_every=3", "optim.lr=1e-2"),
    *("schedule=constant", "schedule.warmup=0", "data.validation_fraction=0.2", "objective=contrastive"),
    "hydra.run.dir=run",
]


@pytest.fixture
def pairs(here):
    """Questions and answers about ten animals, and an answer about another animal."""
    made = []
    for number in range(80):
        name, other = ANIMALS[number % 10], ANIMALS[(number + 3) % 10]
        made.append(
            {"anchor": f"{name} {number}?", "positive": f"a {name}, {number * 7}", "no": f"a {other}, {number}"}
        )
    (here / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in made), encoding="utf-8")
    return made


def test_a_run_learns_and_its_vectors_are_those_that_zoo_and_transformers_give(pairs, here, capsys):
    own = ["objective.negatives=[no]", "steps=60", "eval_every=30", "accumulate=2", "optim.lr=3e-3", "log_every=1"]
    result = zoo.train("bert-tiny", [*SMALL, *own])
    lines = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] > 2 and sum(losses[-5:]) / 5 < 1.2 and result["val_mrr"] > 0.5
    said = capsys.readouterr().err
    assert "the first record has 3 texts" in said and "accuracy" in said and "MRR" in said
    scored = zoo.evaluate("run")["results"][0]
    assert scored["loss"] == pytest.approx(result["val_loss"], abs=1e-5)
    assert scored["measures"] == pytest.approx({name: result[f"val_{name}"] for name in ("accuracy", "mrr")}, abs=1e-6)
    assert run(["runs", "run"]) == 0 and f"MRR {result['val_mrr']:.4f}" in capsys.readouterr().out
    assert run(["convert", "run", "out", "--no-verify"]) == 0
    theirs = transformers.AutoModel.from_pretrained(here / "out").eval()
    texts = [pairs[0]["anchor"], pairs[1]["positive"]]
    tokenizer = make_byte_tokenizer()
    with torch.no_grad():
        states = [theirs(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].mean(0) for text in texts]
    wanted = F.normalize(torch.stack(states), dim=-1)
    for folder in ("run", "out"):
        torch.testing.assert_close(zoo.embed(here / folder, texts), wanted, atol=2e-6, rtol=1e-4)


def test_a_decoder_learns_by_its_last_token_and_says_so_to_those_who_read_it(pairs, here):
    own = ["objective.pooling=last", "model.n_kv_heads=2", "steps=3", "objective.dims=[32,8]"]
    zoo.train("llama-tiny", [*SMALL, *own])
    trained = zoo.load("run").eval()
    assert trained.spec.head.kind == "none"
    ids = make_byte_tokenizer().encode("a cat, 3")
    wanted = F.normalize(trained(torch.tensor([ids]), logits_to_keep=0).hidden[0, -1], dim=-1)
    torch.testing.assert_close(zoo.embed("run", ["a cat, 3", "longer than it"])[0], wanted.detach(), atol=2e-6, rtol=0)
    assert run(["convert", "run", "out", "--no-verify"]) == 0
    assert json.loads((here / "out" / "1_Pooling" / "config.json").read_text())["pooling_mode_lasttoken"] is True
    assert json.loads((here / "out" / "config.json").read_text())["architectures"] == ["LlamaModel"]
    measured = json.loads((here / "run" / "result.json").read_text())["val_loss"]
    for overrides in ([], ["objective=contrastive", "objective.dims=[32,8]"]):  # pooled as the run's modules say
        assert zoo.evaluate("run", overrides=overrides)["results"][0]["loss"] == pytest.approx(measured, abs=1e-5)


@pytest.mark.parametrize("model", ["bert-tiny"])
def test_a_run_resumes_to_the_bit_and_without_the_folder_that_it_started_from(model, pairs, here):
    zoo.train(model, [*SMALL, "steps=1", "objective.pooling=max", "hydra.run.dir=base"])
    (here / "base").rename(here / "other")
    more = ["weights=other", "data.validation_fraction=0.3"]
    small = [each for each in SMALL if not each.startswith(("model.", "data.tokenizer"))]
    zoo.train(None, [*small, *more, "hydra.run.dir=whole"])
    zoo.train(None, [*small, *more, "steps=3"])
    (here / "other").rename(here / "gone")
    resume_run("run", ["steps=6"])
    one, two = (store.load(zoo.runs.find(here / each)).state_dict() for each in ("run", "whole"))
    assert all(torch.equal(each, two[name]) for name, each in one.items())
    config = json.loads((here / "run" / "tokenizer" / "1_Pooling" / "config.json").read_text())
    assert config["pooling_mode_max_tokens"] is True


@pytest.mark.parametrize("model", [["llama-tiny", "model.head.tied=false", "objective.pooling=last"], ["bert-tiny"]])
def test_a_head_that_predicts_tokens_is_left_out_with_a_line(model, pairs, here, capsys):
    name, *own = model
    small = [each for each in SMALL if not each.startswith("objective")]
    head = [each for each in own if each.startswith("model.")]
    zoo.train(name, [*small, *head, "steps=1", "data.field=positive", "hydra.run.dir=lm"])
    kept = [each for each in SMALL if not each.startswith(("model.", "data.tokenizer"))]
    capsys.readouterr()
    zoo.train(None, [*kept, *(each for each in own if each not in head), "weights=lm", "steps=1"])
    assert "head: the weights' head of kind" in capsys.readouterr().err
    one, two = (store.load(zoo.runs.find(here / each)) for each in ("lm", "run"))
    assert any(each.startswith("head.") for each in one.state_dict())
    assert not any(each.startswith("head.") for each in two.state_dict())


def test_language_models_become_encoders_and_texts_are_cut_at_the_modules_length(pairs, here, capsys):
    small = [each for each in SMALL if not each.startswith("objective")]
    zoo.train("llama-tiny", [*small, "model.n_kv_heads=2", "steps=1", "data.field=positive", "hydra.run.dir=lm"])
    own = [each for each in SMALL if not each.startswith(("model.", "data.tokenizer"))]
    zoo.train(None, [*own, "weights=lm", "objective.pooling=last", "steps=1"])
    (here / "run" / "tokenizer" / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    capsys.readouterr()
    plan = plan_run([*own, "weights=lm", "objective.modules=run/tokenizer", "steps=1", "hydra.run.dir=cut"])
    data = plan.settings.objective.prepare(plan.data, 24, say=print, progress=lambda *of: None)
    assert max(len(row.ids) for row in data.sources[0].tokens.rows) == 10
    assert "lose a part" in capsys.readouterr().out


# ---------------------------------------------------------------- prices, pages and messages


def plan_run(overrides):
    with plan_launch(overrides, check=False) as launch:
        return plan_training(task_config(launch.jobs[0]))


def test_a_run_is_priced_by_all_of_its_texts(pairs):
    objective = objective_of(negatives=["no"])
    model, _ = tiny_batch(objective)
    records = [("a text", "b text", "c text"), ("another", "a fifth", "a sixth")]  # padded to 8 tokens
    batch = make_batch(objective, records, make_byte_tokenizer(), model.spec)
    batch = batch._replace(attention_mask=torch.ones_like(batch.attention_mask))
    with counted(model) as found, torch.no_grad():
        objective.embed(model.eval(), batch)
    counter = TrainingFlops(model.spec, objective)
    assert counter.count(batch) == 3 * found.visible
    three = plan_run(["model=bert-tiny", *SMALL, "objective.negatives=[no]", "batch_size=4"])
    two = plan_run(["model=bert-tiny", *SMALL, "batch_size=6"])
    assert price_training(three.settings, three.spec, 4) == price_training(two.settings, two.spec, 6)


def test_the_texts_of_a_record_are_shown_side_by_side():
    tokenizer = make_byte_tokenizer()
    objective = objective_of(negatives=["no"])
    spec = objective.adapt(load("bert-tiny", []))
    batch = make_batch(objective, [("who?", "me", "a longer text"), ("a", "b", "c")], tokenizer, spec)
    pieces = decode_row(batch, 0, tokenizer)
    assert [(each.text, each.learned) for each in pieces] == [
        ("who?", False),
        (" | me", True),
        (" | a longer text", False),
    ]
    assert describe_row(batch, 0, tokenizer) == "data: the first record has 3 texts, 'who? | me | a longer text'"


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"z_loss": 1e-4}, "z_loss: is of a vocabulary's softmax, found 0.0001 (0)"),
        ({"negatives": ["positive"]}, "two texts of a record have one field, found anchor, positive, positive"),
        ({"dims": [8], "dim_weights": [1, 2]}, "dim_weights: must be one for each of dims, found 2 for 1 dims"),
        ({"pooling": "first"}, "pooling: must be a pooling, found 'first' (one of: cls, max, mean"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_settings_that_do_not_fit_are_named(fields, fault, pairs, refused):
    given = [f"objective.{name}={json.dumps(value).replace(' ', '')}" for name, value in fields.items()]
    (line,) = refused("train", "bert-tiny", *SMALL, *given)
    assert fault in line


@pytest.mark.parametrize(
    ("model", "given", "fault"),
    [
        ("t5-tiny", [], "contrastive embeds texts with one tower, the model is an encoder-decoder"),
        ("llama-tiny", ["objective.pooling=cls", "model.n_kv_heads=2"], "in a decoder sees no other"),
        ("bert-tiny", ["objective.dims=[64]"], "objective.dims: has 64, the vectors have 32 numbers (1 to 32)"),
        (
            "bert-tiny",
            ["objective.positive=answer"],
            "has no field 'answer', found anchor, positive, no (objective.anchor",
        ),
        ("bert-tiny", ["objective.modules=none"], "none, which has no modules.json (a folder of sentence-transformers"),
        ("bert-tiny", ["data=text"], "contrastive reads records of texts, found data=text (data=jsonl data.path=FILE)"),
        ("bert-tiny", ["data.field=positive"], "objective.anchor and objective.positive name the fields"),
        ("bert-tiny", ["objective.negatives=[n]", "data.path=odd.jsonl"], "has no text in 'n', found 3"),
    ],
)
def test_models_and_records_that_do_not_fit_are_refused(model, given, fault, pairs, here, capsys):
    (here / "odd.jsonl").write_text('{"anchor": "a", "positive": "b", "n": 3}\n')
    small = [each for each in SMALL if model != "t5-tiny" or not each.startswith("model.")]
    assert run(["train", model, *small, *given]) == 2
    assert fault in capsys.readouterr().err.split("zoo: error: ")[1]


def test_modules_that_pool_otherwise_are_not_overruled(pairs, here, capsys):
    zoo.train("bert-tiny", [*SMALL, "steps=1"])
    own = [each for each in SMALL if not each.startswith(("model.", "data.tokenizer"))]
    capsys.readouterr()
    assert run(["train", *own, "weights=run", "objective.pooling=max", "hydra.run.dir=next"]) == 2
    assert "zoo: error: objective: pooling is max, found mean in the modules of " in capsys.readouterr().err
    objective = objective_of()
    fault = "objective.modules: the weights have modules, and not those that make the vectors"
    assert fault in faults_of(lambda: objective.keep_files(here / "run" / "tokenizer", None))[0]


def test_dense_layers_after_the_pooling_are_read_and_stay_as_they_are(pairs, here):
    (folder := here / "modules").mkdir()
    write_modules(folder, ("mean", "cls"), 32, 20)
    listed = json.loads((folder / "modules.json").read_text())
    listed.insert(2, {**listed[1], "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "3_Dense").mkdir()
    (folder / "3_Dense" / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.Tanh"}')
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    save_file({"linear.weight": weight}, folder / "3_Dense" / "model.safetensors")
    objective = objective_of(modules=str(folder), dims=[12, 4])
    model, batch = tiny_batch(objective)
    ids, real = batch.input_ids[0, 0], batch.attention_mask[0, 0].bool()
    x = model.eval()(ids[None, real], logits_to_keep=0).hidden[0]
    wanted = F.normalize(torch.tanh(weight @ torch.cat([x[0], x.mean(0)])), dim=-1)
    torch.testing.assert_close(objective.embed(model, batch)[0][0, 0], wanted, atol=1e-6, rtol=1e-4)
    zoo.train("bert-tiny", [*SMALL, "objective.modules=modules", "steps=1", "objective.dims=[12,4]"])
    states = zoo.load("run").eval()(torch.tensor([[*b"a cat"]]), logits_to_keep=0).hidden[0]
    wanted = F.normalize(torch.tanh(weight @ torch.cat([states[0], states.mean(0)])), dim=-1)
    torch.testing.assert_close(zoo.embed("run", ["a cat"])[0], wanted.detach(), atol=1e-6, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"objective.dims: has 16, the vectors have 12 numbers \(1 to 12\)"):
        objective_of(modules=str(folder), dims=[16]).collator(Context(model.spec, make_byte_tokenizer(), 8, 0, False))


def test_records_with_an_empty_text_are_left_out_and_counted(tmp_path):
    file, said = tmp_path / "pairs.jsonl", []
    records = [{"a": f"question {n}", "b": " " if n % 3 == 0 else f"answer {n}"} for n in range(10)]
    file.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    settings = DataSettings.read({"kind": "jsonl", "path": str(file)})
    found = read_examples(settings, ComparedTask(("a", "b")), False, lambda *_: None, said.append)
    assert [each.texts[0] for each in found] == [f"question {n}" for n in range(10) if n % 3]
    assert said == ["data: 4 of 10 records are left out, as one of their texts is empty"]
