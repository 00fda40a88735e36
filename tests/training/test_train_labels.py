"""Runs on labelled records: what they read, learn, measure and leave behind, and what they refuse."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

import zoo
from support.corpora import faults_of
from support.packaged_specs import load
from zoo.cli import run
from zoo.data import DataSettings
from zoo.data.labelled_records import ClassTask, NumberTask, TagTask, prepare_labelled
from zoo.data.rowcode import RowEncoder
from zoo.data.tokenizer import Tokenizer, make_byte_tokenizer
from zoo.jobs.train import resume_run
from zoo.model.loss import IGNORED
from zoo.training.objective import Objective
from zoo.training.planning import find_misfits_of_records

ANIMALS = {"cat": "purrs", "dog": "barks", "hen": "clucks"}
SMALL = [
    *("model.d_model=32", "model.n_heads=4", "model.head_dim=8", "model.d_ff=48", "model.vocab_size=300"),
    *("model.max_seq_len=64", "model.n_layers=1", "data=jsonl", "data.path=records.jsonl", "data.tokenizer.kind=byte"),
    *("steps=6", "batch_size=8", "seq_len=48", "eval_every=3", "eval_batches=null", "save_every=3", "optim.lr=1e-2"),
    *("schedule=constant", "schedule.warmup=0", "data.validation_fraction=0.2", "hydra.run.dir=run"),
]
MEASURED = ("tokens_per_second", "mfu", "memory")


def write_records(file: Path, records) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def records(here):
    """Sixty sentences: the kind of animal is the class, its words have tags, and its number is a target."""
    made = []
    for number in range(60):
        name = list(ANIMALS)[number % 3]
        words = ["it", ANIMALS[name], f"{number}", "times"]
        tags = ["O", f"B-{name}", f"I-{name}", "O"]
        pair = {"a": words[0], "b": " ".join(words[1:])}
        made.append({"text": " ".join(words), "label": name, "tokens": words, "tags": tags, "n": number / 60, **pair})
    write_records(here / "records.jsonl", made)
    return made


def lines_of(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: each for key, each in line.items() if key not in MEASURED} for line in lines]


def result_of(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


# ---------------------------------------------------------------- what is learned, and what is left behind


def test_a_classifier_learns_its_classes_and_labels_text_from_the_shell(records, here, capsys):
    result = zoo.train("bert-tiny", [*SMALL, "objective=classify", "steps=40", "eval_every=20", "keep_best=1"])
    assert result["val_accuracy"] == result["val_f1"] == 1.0 and result["bits_per_byte"] is None
    assert result["by_class"]["hen"]["f1"] == 1.0 and sum(map(sum, result["confusion"])) == 12
    said = capsys.readouterr().err
    assert re.search(r"step 40/40  validation loss 0\.\d+, accuracy 1\.0000, F1 1\.0000", said)
    config, spec = (here / "run" / "config.yaml").read_text(), zoo.load("run").spec
    assert "labels: [cat, dog, hen]" in config and spec.head.labels == ("cat", "dog", "hen")
    assert zoo.load("run").eval()(torch.ones(2, 5, dtype=torch.long)).logits.shape == (2, 3)
    assert run(["runs", "run"]) == 0 and "F1 1.0000" in capsys.readouterr().out
    page = (here / "run" / "index.html").read_text()
    assert "validation F1" in page and "<td>hen</td><td>1.000</td>" in page
    assert run(["score", "run", "it barks 7 times", "--probabilities"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["text"] == "it barks 7 times" and told["predicted"] == "dog" and told["probability"] > 0.5
    assert told["probabilities"]["dog"] == told["probability"] and sum(told["probabilities"].values()) == pytest.approx(
        1
    )
    assert run(["score", "run@best", "--file", "records.jsonl", "--out", "labelled.jsonl"]) == 0
    lines = [json.loads(line) for line in (here / "labelled.jsonl").read_text().splitlines()]
    assert [line["predicted"] for line in lines] == [each["label"] for each in records]
    assert {key: lines[5][key] for key in records[5]} == records[5]


@pytest.mark.parametrize("model", ["bart-tiny", pytest.param("t5-tiny", marks=pytest.mark.slow)])
def test_a_classifier_of_two_towers_reads_the_text_with_both_and_is_written_as_transformers_class(model, records, here):
    result = zoo.train(model, [*SMALL, "objective=classify", "steps=70", "eval_every=70"])
    trained = zoo.load("run").eval()
    head = trained.spec.decoder.head
    assert (head.kind, head.pooling, head.activation.kind, head.labels) == ("sequence", "last", "tanh", tuple(ANIMALS))
    assert result["val_accuracy"] == 1.0 and trained.spec.encoder.head.kind == "none"
    assert run(["score", "run", "it clucks 7 times", "--out", "found.jsonl"]) == 0
    assert json.loads((here / "found.jsonl").read_text())["predicted"] == "hen"
    zoo.export(trained, here / "out", verify=False)
    (name,) = json.loads((here / "out" / "config.json").read_text())["architectures"]
    assert name == {"b": "BartForSequenceClassification", "t": "T5ForSequenceClassification"}[model[0]]
    theirs = getattr(transformers, name).from_pretrained(here / "out", attn_implementation="eager").eval()
    ids = torch.randint(100, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = theirs.config.eos_token_id  # which is where they read a row
    with torch.no_grad():
        torch.testing.assert_close(trained(ids).logits, theirs(input_ids=ids).logits, atol=2e-5, rtol=1e-5)


def test_a_decoders_classifier_skips_padding_and_is_written_as_transformers_class(records, here):
    zoo.train("llama-tiny", [*SMALL, "objective=classify", "model.n_kv_heads=2", "steps=3", "eval_every=null"])
    trained = zoo.load("run").eval()
    zoo.export(trained, here / "out", verify=False)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(here / "out").eval()
    assert type(theirs) is transformers.LlamaForSequenceClassification
    ids = torch.randint(100, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[0, 7:] = ids[1, 10:] = theirs.config.pad_token_id
    with torch.no_grad():
        torch.testing.assert_close(trained(ids).logits, theirs(input_ids=ids).logits, atol=2e-5, rtol=1e-5)


OBJECTIVES = {
    "classify": ("bert-tiny", ["objective.pooling=mean"]),
    "tag": ("bert-tiny", ["accumulate=2"]),
    "regress": ("llama-tiny", ["objective.label=n", "model.n_kv_heads=2"]),
    "two towers": ("t5-tiny", ["objective=tag"]),
    "pairs": ("llama-tiny", ["objective=classify", "objective.text=a", "objective.second=b", "model.n_kv_heads=2"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_resumes_to_the_bit_and_evaluates_by_its_own_metrics(name, records, here):
    model, own = OBJECTIVES[name]
    own = own if name in ("pairs", "two towers") else [f"objective={name}", *own]
    whole = zoo.train(model, [*SMALL, *own, "hydra.run.dir=whole"])
    zoo.train(model, [*SMALL, *own, "steps=3"])
    resume_run("run", ["steps=6"])
    assert lines_of(here / "run") == lines_of(here / "whole")
    tensors = [load_file(zoo.runs.find(here / each) / "model.safetensors") for each in ("run", "whole")]
    assert all(torch.equal(each, tensors[1][key]) for key, each in tensors[0].items())
    measured = ("val_pearson", "val_spearman") if name == "regress" else ("val_accuracy", "val_f1")
    assert all(-1 <= whole[each] <= 1 for each in measured)
    last = [line for line in lines_of(here / "run") if "val_loss" in line][-1]
    assert {key: last[key] for key in measured} == {key: whole[key] for key in measured}
    header = (here / "run" / "metrics.csv").read_text().splitlines()[0]
    assert header.endswith(",".join(measured))


@pytest.mark.slow
def test_words_are_tagged_from_python_as_they_were_in_training(records, here):
    result = zoo.train("bert-tiny", [*SMALL, "objective=tag", "steps=60", "eval_every=null"])
    assert result["val_accuracy"] > 0.9 and set(result["by_class"]) == {"cat", "dog", "hen"}
    found = zoo.score("run", [each["tokens"] for each in records] + ["it purrs"])
    right = [
        a == b
        for each, told in zip(records, found, strict=False)
        for a, b in zip(each["tags"], told["predicted"], strict=True)
    ]
    assert sum(right) > 0.9 * len(right) and len(found[-1]["predicted"]) == 2


@pytest.mark.slow
def test_frozen_is_one_setting_and_the_head_of_new_classes_is_drawn_anew(records, here, capsys):
    zoo.train("bert-tiny", [*SMALL, "objective=classify", "hydra.run.dir=first"])
    before = load_file(zoo.runs.find("first") / "model.safetensors")
    own = [each for each in SMALL if not each.startswith(("model.", "data.tokenizer"))]
    write_records(here / "records.jsonl", [{"text": each["text"], "label": each["label"] == "dog"} for each in records])
    capsys.readouterr()
    lines = ["weights=first", "objective=classify", "freeze=['*']"]
    assert run(["train", *own, *lines, "hydra.run.dir=wrong"]) == 2  # the model's classes are others
    faults = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    found = [
        re.search(r", line \d+ has label '(.*)', which is none of the classes: cat, dog, hen \(labels=", line)
        for line in faults
    ]
    assert {each and each[1] for each in found} == {"false", "true"}
    zoo.train(None, [*own, *lines, "objective.labels=['true', 'false']"])
    said = capsys.readouterr().err
    assert "head: drawn anew, for classes true, false; the weights' head of kind 'sequence' is left out" in said
    after = load_file(zoo.runs.find("run") / "model.safetensors")
    assert after["head.out.weight"].shape == (2, 32)
    assert all(torch.equal(each, after[name]) for name, each in before.items() if not name.startswith("head."))
    trained = sum(each.numel() for name, each in after.items() if name.startswith("head."))
    assert result_of(here / "run")["trained"] == trained


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_largest_f1(records, here):
    result = zoo.train(
        "bert-tiny", [*SMALL, "objective=classify", "eval_every=1", "steps=8", "keep_best=1", "optim.lr=3e-3"]
    )
    scores = {line["step"]: line["val_f1"] for line in lines_of(here / "run") if "val_f1" in line}
    best = min(step for step, score in scores.items() if score == max(scores.values()))
    assert (here / "run" / "checkpoints" / "best").read_text().strip() == f"step-{best:06}"
    assert len(scores) == 8 and result["val_f1"] == scores[8]


# ---------------------------------------------------------------- what is read


def wordpiece() -> Tokenizer:
    vocab = {each: at for at, each in enumerate(["[UNK]", "[CLS]", "[SEP]", "new", "york", "##ers", "is", "big", ","])}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))  # pyright: ignore
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore
    pieces = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=pieces[0], pair=pieces[1], special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return Tokenizer(backend, "[SEP]")


def test_a_words_tag_stands_at_its_first_piece_and_words_cut_off_have_none():
    encoder = RowEncoder(wordpiece(), 7, opens=True)
    (row,) = encoder.encode_words([["new", "yorkers,", "is", "big"]])
    assert row.ids == [1, 3, 4, 5, 8, 6, 2] and row.places == [1, 2, 5, None] and row.cut
    (pair,) = encoder.encode([("new york", "big")])
    assert pair.ids == [1, 3, 4, 2, 7, 2] and pair.types == [0, 0, 0, 0, 1, 1] and not pair.cut
    assert encoder.tokenizer.backend.truncation is None


def test_a_tokenizer_without_special_tokens_opens_a_row_and_parts_a_pair_by_its_end_of_text():
    encoder = RowEncoder(make_byte_tokenizer(), 8, opens=True)
    (row, pair) = encoder.encode([("ab",), ("abcdef", "xy")])
    assert row.ids == [256, *b"ab"] and pair.ids == [256, *b"abcd", 256, *b"xy"] and pair.cut
    assert pair.types == [0, 0, 0, 0, 0, 1, 1, 1]
    (words,) = encoder.encode_words([["é", "bc"]])
    assert words.places == [1, 4] and words.ids[4] == ord("b")
    (plain,) = RowEncoder(make_byte_tokenizer(), 8, opens=False).encode([("abc",)])
    assert plain.ids == [*b"abc"]


@pytest.mark.slow
def test_copies_stay_on_one_side_and_a_file_may_name_what_validates(records, here, capsys):
    write_records(here / "records.jsonl", records * 2)
    result = zoo.train("bert-tiny", [*SMALL, "objective=classify", "steps=1"])
    assert sum(map(sum, result["confusion"])) == 24 and "have a text that trains too" not in capsys.readouterr().err
    write_records(here / "records.jsonl", records[:40])
    write_records(here / "held.jsonl", records[37:])
    own = ["objective=classify", "steps=1", "data.validation=held.jsonl", "hydra.run.dir=second", "eval_batches=1"]
    result = zoo.train("bert-tiny", [*SMALL, *own])
    said = capsys.readouterr().err
    assert "data: 3 of 23 records that validate have a text that trains too" in said
    assert "evaluates on 8 of 23 rows (eval_batches=null: on all)" in said and sum(map(sum, result["confusion"])) == 8


@pytest.mark.slow
def test_parquet_and_a_split_of_a_data_set_are_read_as_json_lines_are(records, here):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    parquet.write_table(pyarrow.Table.from_pylist(records[:45]), here / "a.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(records[45:]), here / "b.parquet")
    write_records(here / "a.jsonl", records[:45])
    write_records(here / "b.jsonl", records[45:])
    parts = {"train": records[:45], "test": records[45:]}
    datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()}).save_to_disk("set")
    made = {}
    for kind, path, validation in (
        ("jsonl", "a.jsonl", "b.jsonl"),
        ("parquet", "a.parquet", "b.parquet"),
        ("hf", "set", "test"),
    ):
        node = {"kind": kind, "path": path, "validation": validation, "tokenizer": {"kind": "byte"}}
        how = {"limit": 48, "opens": False, "say": print, "progress": lambda *each: None}
        made[kind] = prepare_labelled(DataSettings.read(node), TAGS, None, **how)
    assert made["jsonl"].validation.n_documents == 15
    assert len({(each.key, each.labels) for each in made.values()}) == 1


# ---------------------------------------------------------------- what is refused

GOOD = {"text": "a text", "label": "x", "tokens": ["a"], "tags": ["O"]}
TEXTS, TAGS, NUMBERS = ClassTask(("text",), "label"), TagTask(("tokens",), "tags"), NumberTask(("text",), "label")
UNEVEN = [{**GOOD, "text": f"t{number}", "label": [1, 2] if number == 4 else 1} for number in range(9)]
FAULTS = [  # records, how they are read, classes that are known, and how the one line begins
    ([GOOD, {"text": "b"}], TEXTS, None, r"line 2 has no field 'label', found text \(objective.text=NAME "),
    ([GOOD, {**GOOD, "label": None}], TEXTS, None, "line 2 has no class in 'label', found null"),
    ([{**GOOD, "label": 0.5}], TEXTS, None, r"line 1 has no class in 'label', found 0.5 \(a string or a whole number"),
    ([{**GOOD, "text": 3}], TEXTS, None, "line 1 has no text in 'text', found 3"),
    (
        [{**GOOD, "tags": ["O", "O"]}],
        TAGS,
        None,
        "line 1 has not a tag for each word, found 2 in 'tags' for 1 in 'tokens'",
    ),
    ([{**GOOD, "tokens": "a"}], TAGS, None, "line 1 has no words in 'tokens', found \"a\""),
    ([GOOD], NUMBERS, None, r'line 1 has no number in .label., found "x"'),
    (UNEVEN, NUMBERS, None, r"line \d has another count of numbers, found \d, where "),
    ([{**GOOD, "text": f"t{n}"} for n in range(9)], TEXTS, None, "one class alone, found 'x' in all"),
    (
        [GOOD, {**GOOD, "text": "b", "label": "y"}],
        TEXTS,
        ("x", "z"),
        r"line 2 has label 'y', which is none of the classes: x, z",
    ),
    ([], TEXTS, None, "nothing to read, found an empty file"),
]


def prepare_records(task, known=None, fraction=0.05):
    node = {"kind": "jsonl", "path": "records.jsonl", "tokenizer": {"kind": "byte"}, "validation_fraction": fraction}
    settings = DataSettings.read(node)
    how = {"limit": 48, "opens": False, "say": print, "progress": lambda *each: None}
    return prepare_labelled(settings, task, known, **how)


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case[3][:24])
def test_records_that_cannot_be_learned_from_are_one_line_with_file_and_line(case, here):
    made, task, known, line = case
    write_records(here / "records.jsonl", made)
    (fault,) = faults_of(lambda: prepare_records(task, known))
    assert re.match(r"(data.path|objective.(labels|n_outputs)): (records.jsonl(, |: ))?" + line, fault), fault


def test_a_class_that_validates_and_does_not_train_is_named_with_its_line(records, here):
    rare = [{**GOOD, "text": f"rare text {number}", "label": f"rare{number}"} for number in range(12)]
    write_records(here / "records.jsonl", [*records, *rare])
    faults = faults_of(lambda: prepare_records(TEXTS, fraction=0.4))
    assert faults and all(
        re.match(r"objective.labels: records.jsonl, line \d+ has label 'rare\d+', which no record that", each)
        for each in faults
    )


def test_what_does_not_go_together_is_refused_before_anything_is_read():
    def faults(kind, data=None, **fields):
        objective = Objective.parse({"kind": kind, **fields})
        return [*find_misfits_of_records(objective, DataSettings.read({"kind": "jsonl", "path": "x", **(data or {})}))]

    (line,) = faults("classify", {"kind": "text"})
    assert line == "objective: classify reads labelled records, found data=text (data=jsonl data.path=FILE)"
    (line,) = faults("tag", {"field": "a"})
    assert line == "data.field: is 'a', and objective.tokens and objective.tags name the fields (data.field=null)"
    lines = faults("regress", {"max_bytes": 9, "documents": True})
    assert [each.split(":")[0] for each in lines] == ["data.max_bytes", "data.documents"]
    first = Objective.parse({"kind": "classify", "pooling": "cls"})
    assert "which in a decoder sees no other (objective.pooling=last" in str(first.refuses(load("llama-tiny")))
    assert "which in a decoder sees no other (objective.pooling=last" in str(first.refuses(load("t5-tiny")))
    assert Objective.parse({"kind": "classify"}).settle(load("t5-tiny")).refuses(load("t5-tiny")) is None
    assert "objective=tag" not in str(Objective.parse({"kind": "tag"}).refuses(load("bert-tiny")))
    with pytest.raises(ValidationError, match="z_loss: is of a softmax"):
        Objective.parse({"kind": "regress", "z_loss": 1e-4})


def errors_of(capsys, *args) -> list[str]:
    assert run(args) == 2
    return [line.removeprefix("zoo: error: ") for line in capsys.readouterr().err.splitlines() if "error: " in line]


def test_a_refused_run_leaves_no_folder(here, capsys):
    write_records(here / "records.jsonl", [GOOD, {"text": "b"}])
    (line,) = errors_of(capsys, "train", "model=bert-tiny", *SMALL, "objective=classify")
    assert (
        line.startswith(f"data.path: {here}/records.jsonl, line 2 has no field 'label'") and not (here / "run").exists()
    )


@pytest.mark.slow
def test_a_model_without_the_head_for_it_is_refused(records, here, capsys):
    zoo.train("bert-tiny", [*SMALL, "objective=mlm", "data=text", "data.path=text.txt", "steps=1"])
    (line,) = errors_of(capsys, "score", "run", "a text")
    would = "(zoo train objective=classify, tag or regress)"
    assert line == f"score: needs a head for a task, found head 'mlm' of an encoder {would}"
    own = [each for each in SMALL if not each.startswith(("model.", "data"))]
    zoo.train("bert-tiny", [*SMALL, "objective=tag", "steps=1", "hydra.run.dir=tagger"])
    text = ["data=text", "data.path=text.txt", "hydra.run.dir=b"]
    (line,) = errors_of(capsys, "train", *own, "weights=tagger", *text, "objective=mlm")
    found = "the model's head is of kind 'token', which predicts no token (head.kind: mlm)"
    assert line == f"objective: mlm predicts tokens, and {found}"


def test_targets_beside_first_pieces_are_ignored(records, here):
    data = prepare_records(TAGS)
    assert data.labels[-1] == "O" and len(data.labels) == 7
    (source,) = data.sources
    row = source.tokens.read_row(0, 48)
    text = bytes(row.ids.tolist()).decode()
    at = [place for place, target in enumerate(row.target) if target != IGNORED]
    assert at == [0, *(place + 1 for place, letter in enumerate(text) if letter == " ")]
