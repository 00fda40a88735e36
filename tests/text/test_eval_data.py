"""`zoo eval` on any data: every document as transformers scores it, each objective as its training does, refusals."""

from __future__ import annotations

import json
import math
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers
from test_eval import LLAMA, save
from torch.nn import functional as F

import zoo
from support.corpora import faults_of
from support.objective_runs import SIZES, SMALL
from support.packaged_specs import one_in
from zoo.cli import run
from zoo.training.objective import MLM

EOS = 256
TEXTS = [
    "The first document, é.\n",
    "A second one; it is longer than a window of sixteen tokens.\n",
    "The first document, é.\n",
]
OTHER = ["def f():\n    return 1\n", "∑ of nothing is 0.\n"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("llama"), LLAMA)


@pytest.fixture(scope="module")
def reference(llama):
    return transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()


def write(file: Path, records: list) -> str:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def read(file: Path, *more: str) -> list[str]:
    return ["data=jsonl", f"data.path={file}", *more]


def sum_by_transformers(model, ids: list[int], context: int) -> float:
    """The negative log-likelihood of all tokens but the first, in windows that do not overlap."""
    total = 0.0
    for start in range(0, len(ids) - 1, context):
        piece = torch.tensor(ids[start : start + context + 1])
        with torch.no_grad():
            total += float(F.cross_entropy(model(piece[None, :-1]).logits[0], piece[1:], reduction="sum"))
    return total


def join(texts: list[str]) -> list[int]:
    """The ids of texts one after the other: the end of text first, and after each."""
    return [EOS, *(token for text in texts for token in (*text.encode(), EOS))]


# ---------------------------------------------------------------- data of a decoder


def test_all_documents_of_other_data_are_scored_repeated_ones_too(llama, reference, tmp_path):
    file = write(tmp_path / "a.jsonl", [{"body": text} for text in TEXTS])
    found = zoo.evaluate(llama, overrides=read(file, "data.field=body"), context=16, stride=16)
    nll, size = sum_by_transformers(reference, join(TEXTS), 16), sum(len(text.encode()) for text in TEXTS)
    (row,) = found["results"]
    assert (found["tokens"], found["bytes"]) == (len(join(TEXTS)) - 1, size)
    assert row["loss"] == pytest.approx(nll / found["tokens"], rel=2e-6)
    assert row["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=2e-6)
    assert found["data"] == f"all of data=jsonl ({file})"
    sample = zoo.evaluate(llama, overrides=read(file, "data.field=body", "data.max_bytes=50"))
    assert sample["bytes"] == 2 * len(TEXTS[0].encode())  # the long one does not fit
    apart = zoo.evaluate(llama, overrides=read(file, "data.field=body", "data.documents=true"), context=64, stride=64)
    # within a window of the packed text, each document sees itself alone; one that a window cuts begins anew there
    ids, alone = join(TEXTS), 0.0
    for start in range(0, len(ids) - 1, 64):
        window = ids[start : start + 65]
        opens = [0, *(place for place in range(1, len(window) - 1) if window[place] == EOS)]
        for first, last in zip(opens, [*opens[1:], len(window) - 1], strict=True):
            alone += sum_by_transformers(reference, window[first : last + 1], 64)
    assert apart["results"][0]["loss"] == pytest.approx(alone / found["tokens"], rel=2e-6)
    assert abs(apart["results"][0]["loss"] - zoo_loss(llama, file)) > 1e-4


def zoo_loss(folder: Path, file: str) -> float:
    found = zoo.evaluate(folder, overrides=read(Path(file), "data.field=body"), context=64, stride=64)
    return found["results"][0]["loss"]


def test_each_source_of_a_mix_has_figures_of_its_own_and_they_add_up(llama, tmp_path, capsys):
    files = {
        name: write(tmp_path / f"{name}.jsonl", [{"text": t} for t in of]) for name, of in (("a", TEXTS), ("b", OTHER))
    }
    of = ",".join(f"{name}:{{kind:jsonl,path:'{file}',weight:1}}" for name, file in files.items())
    mix = ["data=mix", f"data.of={{{of}}}"]
    found = zoo.evaluate(llama, overrides=mix)
    alone = {name: zoo.evaluate(llama, overrides=read(Path(file))) for name, file in files.items()}
    sources = found["results"][0]["sources"]
    for name, each in alone.items():
        assert sources[name]["loss"] == pytest.approx(each["results"][0]["loss"], rel=1e-6)
        assert sources[name]["bits_per_byte"] == pytest.approx(each["results"][0]["bits_per_byte"], rel=1e-6)
        assert (sources[name]["tokens"], sources[name]["bytes"]) == (each["tokens"], each["bytes"])
    nats = sum(each["loss"] * each["tokens"] for each in sources.values())
    assert found["results"][0]["loss"] == pytest.approx(nats / found["tokens"], rel=1e-9)
    assert found["results"][0]["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], rel=1e-9)
    assert run(["eval", str(llama), *mix, "--device", "cpu", "--weights", "bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"on all of data=mix (a, b): {found['tokens']:,} tokens, {found['bytes']:,} bytes")
    assert [line.split()[0] for line in lines[4:7]] == ["exact", "a", "b"]
    assert f"{sources['b']['loss']:.4f}" in lines[6]


# ---------------------------------------------------------------- the objectives of runs

PAIRS = [{"q": f"the number {n}", "a": f"is {n * n} and no other"} for n in range(60)]
RUNS = {
    "mlm": ("bert-tiny", []),
    "prefix_lm": ("llama-tiny", ["model.prefix_lm=true", "model.n_layers=1", "model.n_kv_heads=2"]),
    "seq2seq": ("t5-tiny", ["data=jsonl", "data.path=pairs.jsonl", "data.source=q", "data.target=a"]),
    "span_corruption": ("t5-tiny", ["data.documents=true"]),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a run of one step for an objective, once; gives its folder, in which it is `run`, and its result."""
    made = {}

    def train(name: str) -> tuple[Path, dict]:
        if name not in made:
            folder, (model, own) = tmp_path_factory.mktemp(name), RUNS[name]
            (folder / "text.txt").write_text("\n\n".join(f"words of line {n}, {n * n} in all" for n in range(300)))
            write(folder / "pairs.jsonl", PAIRS)
            sizes = [*SMALL, *SIZES.get(model, ())]
            if any(each.startswith("data=") for each in own):
                sizes = [each for each in sizes if not each.startswith(("data=", "data.path="))]
            more = ["steps=1", "eval_batches=null", "sample=null", "seed=3"]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                made[name] = folder, zoo.train(model, [*sizes, f"objective={name}", *own, *more])
        return made[name]

    return train


@pytest.mark.parametrize("name", one_in(4, RUNS))
def test_a_run_is_scored_by_its_objective_as_its_training_scored_it(name, trained, capsys, monkeypatch):
    folder, said = trained(name)
    monkeypatch.chdir(folder)
    found = zoo.evaluate("run")
    (row,) = found["results"]
    assert row["loss"] == pytest.approx(said["val_loss"], rel=2e-6)
    assert row["bits_per_byte"] is None and found["bytes"] is None and found["stride"] is None
    assert (found["data"], found["objective"]) == ("the run's validation split", name)
    capsys.readouterr()
    assert run(["eval", "run", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"loss per target of {name}, in rows of 32 tokens" in out and "no bits per byte" in out
    if name == "span_corruption":  # documents stay apart as in training, unless told otherwise
        other = ["data=jsonl", "data.path=pairs.jsonl", "data.field=a"]
        stated = [[], ["data.documents=true"], ["data.documents=false"]]
        kept, apart, joined = (zoo.evaluate("run", overrides=[*other, *more]) for more in stated)
        assert kept == apart != joined
    again = zoo.evaluate("run", overrides=["data=text", "data.path=text.txt", "objective=auto"], context=16)
    assert again["data"] == (f"all of data=text ({folder / 'text.txt'})" if name == "seq2seq" else found["data"])


@pytest.mark.slow
def test_a_run_of_a_mix_has_the_figures_of_each_source_that_its_training_said(here):
    of = "a:{kind:text,path:text.txt,weight:3},b:{kind:jsonl,path:b.jsonl,weight:1}"
    write(here / "b.jsonl", [{"text": f"record {n} of many, {n * 7} in all"} for n in range(200)])
    sizes = [each for each in SMALL if not each.startswith(("data=", "data.path="))]
    own = ["data=mix", f"data.of={{{of}}}", "model.n_layers=1", "model.n_kv_heads=2", "eval_batches=null"]
    zoo.train("llama-tiny", [*sizes, *own, "steps=1", "sample=null", "seq_len=32"])
    said = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()][-1]
    (row,) = zoo.evaluate("run", context=32, stride=32)["results"]
    assert row["loss"] == pytest.approx(said["val_loss"], rel=1e-6)
    for name, each in row["sources"].items():
        assert each["loss"] == pytest.approx(said[f"val_loss/{name}"], rel=1e-6)
        assert each["bits_per_byte"] == pytest.approx(said[f"bits_per_byte/{name}"], rel=1e-6)


def test_answers_are_scored_as_transformers_scores_them(tmp_path):
    size = {"vocab_size": 300, "d_model": 32, "d_kv": 16, "num_heads": 2, "d_ff": 32, "num_layers": 2}
    t5 = transformers.T5Config(**size, eos_token_id=EOS, decoder_start_token_id=7, pad_token_id=0)
    folder = save(tmp_path / "t5", t5, "AutoModelForSeq2SeqLM")
    file = write(tmp_path / "pairs.jsonl", PAIRS[:9])
    notes: list[str] = []
    how = read(Path(file), "data.source=q", "data.target=a", "objective=seq2seq")
    found = zoo.evaluate(folder, overrides=how, context=16, note=notes.append)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, targets = 0.0, 0
    for pair in PAIRS[:9]:
        asked, answer = torch.tensor([list(pair["q"].encode())]), [*pair["a"].encode(), EOS][:16]
        with torch.no_grad():
            logits = model(input_ids=asked, decoder_input_ids=torch.tensor([[7, *answer[:-1]]])).logits[0]
        total += float(F.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        targets += len(answer)
    assert found["tokens"] == targets
    assert found["results"][0]["loss"] == pytest.approx(total / targets, rel=2e-6)
    longest = max(len(pair["a"].encode()) + 1 for pair in PAIRS[:9])
    assert notes == [f"9 of 9 answers lose their end (100.0%), at 16 tokens (objective.answer_len={longest} holds all)"]


def test_a_published_encoder_is_asked_for_masked_tokens_the_same_each_time(tmp_path, monkeypatch):
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    folder = save(tmp_path / "bert", transformers.BertConfig(vocab_size=300, **size), "AutoModelForMaskedLM")
    (tmp_path / "text.txt").write_text("Words that are masked, again and again.\n" * 12)
    batches, loss = [], MLM.loss
    monkeypatch.setattr(
        MLM, "loss", lambda self, model, batch, **how: (batches.append(batch), loss(self, model, batch, **how))[1]
    )
    notes: list[str] = []
    how = {"overrides": ["data=text", f"data.path={tmp_path / 'text.txt'}"], "context": 32, "note": notes.append}
    first, second = (zoo.evaluate(folder, **how) for _ in range(2))
    assert first == second
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, targets = 0.0, 0
    for batch in batches[: len(batches) // 2]:
        with torch.no_grad():
            logits = model(batch.input_ids).logits
        total += float(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum"))
        targets += int((batch.targets != -100).sum())
    assert first["tokens"] == targets == pytest.approx(0.15 * 15 * 32, rel=0.1)
    assert first["results"][0]["loss"] == pytest.approx(total / targets, rel=2e-6)
    assert notes[0] == "1 of 481 tokens fill no row of 32, and are not scored"


# ---------------------------------------------------------------- what will not do


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (["n_layers=2"], "n_layers: an evaluation takes no such override (these change: data=…, objective=…)"),
        (
            ["data=text", "seq_len=8"],
            "seq_len: an evaluation takes no such override (--context has the tokens of a row)",
        ),
        (["~data"], "~data: nothing can be deleted (name another: data=…)"),
        (["data=txt"], "data: no option 'txt' (did you mean 'text'? "),
        (["data=text"], "data.path: data=text needs a text, found none (data.path=FILE_OR_FOLDER)"),
        (["objective=mlm"], "file: "),
        (
            ["data=text", "data.path=a.txt", "objective=mlm"],
            "objective: mlm is learned by an encoder, the model is a decoder",
        ),
        (
            ["data=text", "data.path=a.txt", "objective=seq2seq"],
            "objective: seq2seq reads pairs, found text in data=text (objective=auto, or data=jsonl data.source=NAME",
        ),
        (
            ["data=jsonl", "data.path=a.jsonl", "data.source=q", "data.target=a"],
            "objective: next_token reads text, found pairs in data=jsonl (objective=seq2seq, or no data.form",
        ),
        (
            ["data=text", "data.path=a.txt", "data.validation=b.txt"],
            "data.validation: the data that data.path names is scored (leave it out, or name it there)",
        ),
        (
            ["data=text", "data.path=a.txt", "data.tokenizer=byte"],
            "data.tokenizer: the model reads with its own tokenizer (leave it out)",
        ),
        (
            ["data=text", "data.path=a.txt", "data.tokenizer.kind=byte"],
            "data.tokenizer.kind: the model reads with its own tokenizer (leave it out)",
        ),
        (
            ["data=text", "data.path=a.txt", "data.validation_fraction=0.5"],
            "data.validation_fraction: all of this data",
        ),
        (["data=text", "data.path=a.txt", "data.max_bytes=1"], "data: there is nothing to score, found 1 documents"),
        (["data=text", "data.path=a.txt", "--file", "a.txt"], "file: texts were given beside data=text"),
    ],
)
def test_what_will_not_do_costs_one_line(llama, tmp_path, monkeypatch, refused, args, fault):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a text\n")
    write(tmp_path / "a.jsonl", [{"q": "a", "a": "b"}])
    (line,) = refused("eval", str(llama), *args, "--device", "cpu")
    assert line.startswith(fault)


def test_tasks_need_their_package(llama, refused, monkeypatch):
    for found, said in ((None, "none"), ("0.4.9", "0.4.9")):

        def version(name, found=found):
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(metadata, "version", version)
        (line,) = refused("eval", str(llama), "--tasks", "hellaswag", "--device", "cpu")
        assert line == f"tasks: need lm-eval 0.4.13 or newer, found {said} (pip install 'transformer-zoo[evals]')"


def test_a_runs_own_data_keeps_its_split(trained, refused, capsys, monkeypatch):
    folder, _ = trained("mlm")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    own = ["data=text", "data.path=text.txt", "--device", "cpu"]
    (line,) = refused("eval", "run", *own, "data.validation_fraction=0.5")
    assert line == "data.validation_fraction: the run's own data keeps its split (leave it out)"
    (line,) = refused("eval", "run", "data.max_bytes=100", "--device", "cpu")
    assert line == "data.max_bytes: the run's own data keeps its split (leave it out)"
    (line,) = refused("eval", "run", "--device", "cpu", "--stride", "3")
    assert line == "stride: is 3, and rows of mlm do not overlap (leave it out)"
    (line,) = refused("eval", "run", "--device", "cpu", "--context", "65")
    assert line == "context: is 65, and the model reads 64 (--context 64)"
    (line,) = refused("eval", "run/ema", "--device", "cpu")
    assert "no such average of weights" in line
    assert run(["eval", "data.documents=true", "--device", "cpu", "--json"]) == 0  # of the last run
    apart, packed = json.loads(capsys.readouterr().out), zoo.evaluate("run")
    assert apart["tokens"] == packed["tokens"]
    assert apart["data"] == packed["data"] == "the run's validation split"


LABELLED = {
    "classify": [{"text": f"the {word} number {n}", "label": word} for n in range(40) for word in ("cat", "dog")],
    "tag": [{"tokens": ["a", f"w{n}", "b"], "tags": ["O", "B-x" if n % 2 else "O", "O"]} for n in range(60)],
    "regress": [{"text": f"number {n % 17} of {n}", "label": n % 17} for n in range(60)],
}


@pytest.mark.parametrize("name", one_in(3, LABELLED))
def test_a_run_on_labels_is_judged_as_its_training_judged_it(name, here, capsys):
    write(here / "labelled.jsonl", LABELLED[name])
    write(here / "other.jsonl", LABELLED[name][:9])
    sizes = [each for each in (*SMALL, *SIZES["bert-tiny"]) if not each.startswith(("data=", "data.path="))]
    own = ["data=jsonl", "data.path=labelled.jsonl", f"objective={name}", "steps=1", "eval_batches=null", "sample=null"]
    said = zoo.train("bert-tiny", [*sizes, *own])
    found = zoo.evaluate("run")
    (row,) = found["results"]
    assert row["loss"] == pytest.approx(said["val_loss"], rel=1e-5)
    assert row["perplexity"] is None and row["bits_per_byte"] is None
    assert {f"val_{key}": value for key, value in row["measures"].items()} == pytest.approx(
        {key: said[key] for key in said if key in ("val_accuracy", "val_f1", "val_pearson", "val_spearman")}, abs=1e-6
    )
    other = zoo.evaluate("run", overrides=["data=jsonl", "data.path=other.jsonl"])
    assert other["tokens"] == (27 if name == "tag" else 9)
    assert other["data"].startswith("all of data=jsonl")
    capsys.readouterr()
    assert run(["eval", "run", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"loss per label of {name}" in out and "perplexity" not in out
    (fault,) = faults_of(lambda: zoo.evaluate("run", overrides=["data=text", "data.path=text.txt"]))
    assert "labelled records" in fault
