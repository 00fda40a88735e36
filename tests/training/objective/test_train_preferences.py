"""Runs on preferences: the starting weights' log-probabilities are kept, and what follows from that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from support.corpora import faults_of
from support.preference_cases import VOCABULARY, save_tokenizer
from support.tiny_runs import SMALL, read_metrics
from zoo.checkpoint import hf, store
from zoo.checkpoint.stored import StoredModel
from zoo.cli import run
from zoo.errors import ConfigError
from zoo.jobs.forecast import time_steps
from zoo.jobs.plan import plan_launch, task_config
from zoo.jobs.train import resume_run, start_run
from zoo.training.evaluate import evaluate
from zoo.training.memory_fit import price_training
from zoo.training.objective.kept_reference import FILE
from zoo.training.objective.preference import DPO
from zoo.training.planning import plan_training

SIZES = [f"model.vocab_size={VOCABULARY}", "model.max_seq_len=64", "seq_len=64", "steps=4", "eval_every=2"]
SIZES += ["save_every=2", "optim.lr=3e-3", "schedule=constant", "schedule.warmup=0", "eval_batches=null"]

JUDGED = ["data.path=judged.jsonl", "data.form=unpaired"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_tokenizer(tmp_path / "words")
    with open("answers.jsonl", "w") as file, open("judged.jsonl", "w") as judged:
        for number in range(60):
            asked = [{"role": "user", "content": f"{number}?"}]
            answers = {"chosen": "yes" * (1 + number % 2), "rejected": "no" * (1 + number % 3)}
            said = {name: [{"role": "assistant", "content": each}] for name, each in answers.items()}
            file.write(json.dumps({"prompt": asked, **said}) + "\n")
            which = "rejected" if number % 3 else "chosen"
            judged.write(json.dumps({"prompt": asked, "completion": said[which], "label": which == "chosen"}) + "\n")
    return tmp_path


def compose(*overrides: str, objective: str = "dpo"):
    own = [each for each in SMALL if not each.startswith(("data", *(size.split("=")[0] for size in SIZES)))]
    data = ["data=jsonl", "data.path=answers.jsonl", "data.form=preference", f"objective={objective}"]
    words = ["data.tokenizer.kind=file", "data.tokenizer.path=words"]
    with plan_launch([*own, *SIZES, *data, *words, *overrides], check=False) as plan:
        return task_config(plan.jobs[0])


@pytest.fixture
def counted(monkeypatch):
    """The records of each pass that computes reference log-probabilities."""
    found: list[int] = []
    measure = DPO.measure

    def count(self, model, batch):
        found.append(len(batch.input_ids) // 2)
        return measure(self, model, batch)

    monkeypatch.setattr(DPO, "measure", count)
    return found


def go_back(folder: Path, name: str, step: int = 2) -> Path:
    """Copy a run as it was after a step."""
    shutil.copytree(folder, folder.parent / name)
    (folder.parent / name / "checkpoints/latest").write_text(f"step-{step:06}\n")
    return folder.parent / name


def test_a_model_learns_to_prefer_the_chosen_answers(here, capsys):
    start_run(compose("steps=30", "eval_every=30"), here / "run")
    said = capsys.readouterr().err
    assert "data: 57 preferences train and 3 validate (a repeated one counts once)" in said
    assert f"reference: the starting weights' log-probabilities of 60 records, kept in {FILE}" in said
    lines = read_metrics(here / "run")
    first, last = lines[0], lines[-2]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4) and first["reward_accuracy"] == 0
    assert last["loss"] < 0.1 and last["reward_accuracy"] == 1 and last["reward_margin"] > 2
    held = lines[-1]
    assert held["val_reward_accuracy"] == 1 and held["val_reward_margin"] > 2
    assert held["val_reward_margin"] == pytest.approx(held["val_reward_chosen"] - held["val_reward_rejected"], abs=1e-4)
    scored = evaluate(here / "run", device="cpu")["results"][0]
    assert scored["loss"] == pytest.approx(held["val_loss"], abs=1e-5)
    assert scored["measures"]["reward_margin"] == pytest.approx(held["val_reward_margin"], abs=1e-4)
    assert run(["eval", "run"]) == 0
    assert "loss per record of dpo, in rows of at most 64 tokens" in capsys.readouterr().out


def test_the_reference_is_that_of_the_starting_weights(here):
    start_run(compose(), here / "run")
    kept = load_file(here / "run" / FILE)
    assert {name: each.shape for name, each in kept.items()} == {"train/": (57, 2), "validation/": (3, 2)}
    read = ~torch.tensor(kept["train/"]).isnan().any(1)
    assert read.sum() == 16  # 4 steps of 4 records
    first = read_metrics(here / "run")[0]
    assert abs(first["reward_margin"]) < 1e-5 and first["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_a_rate_far_above_the_usual_one_from_trained_weights_is_told(here, capsys):
    start_run(compose("steps=1"), here / "start")
    said = capsys.readouterr().err
    assert "optim.lr" not in said and "1 steps of 512 tokens, adamw at 0.003; MFU of" in said
    for rate, objective in (("2e-3", "dpo"), ("1e-5", "dpo"), ("2e-5", "orpo"), ("2e-3", "reward")):
        start_run(compose("steps=1", "weights=start", f"optim.lr={rate}", objective=objective), here / rate / objective)
    told = [line for line in capsys.readouterr().err.splitlines() if "optim.lr" in line]
    usual = "AdamW's usual rate from trained weights for {} is {} (TRL's default; optim.lr={})"
    assert told == [
        "optim.lr: is 0.002; " + usual.format("dpo", "1e-06", "1e-06"),
        "optim.lr: is 2e-05; " + usual.format("orpo", "1e-06", "1e-06"),
        "optim.lr: is 0.002; " + usual.format("reward", "0.0001", "0.0001"),
    ]


def test_a_run_that_goes_on_has_equal_losses_and_computes_no_reference(here, counted):
    start_run(compose(), here / "whole")
    assert sum(counted) == 16 + 3
    moved = go_back(here / "whole", "moved")
    counted.clear()
    resume_run(moved)
    assert counted == [] and read_metrics(moved) == read_metrics(here / "whole")
    lost = go_back(here / "whole", "lost")
    (lost / FILE).unlink()
    resume_run(lost)  # the model with the starting weights is built again
    assert sum(counted) == 8 + 3 and read_metrics(lost) == read_metrics(here / "whole")


def test_a_run_that_goes_on_for_longer_computes_what_is_lacking(here, counted):
    start_run(compose("steps=6"), here / "whole")
    start_run(compose(), here / "part")
    counted.clear()
    resume_run(here / "part", ["steps=6"])
    assert sum(counted) == 8
    assert read_metrics(here / "part")[-1] == read_metrics(here / "whole")[-1]


def test_a_run_killed_before_its_first_step_takes_what_is_kept(here, counted):
    start_run(compose(), here / "run")
    shutil.rmtree(here / "run/checkpoints")
    counted.clear()
    resume_run(here / "run")
    assert counted == []
    start_run(compose("seed=1"), here / "other")
    shutil.copy(here / "run" / FILE, here / "other" / FILE)
    shutil.rmtree(here / "other/checkpoints")
    counted.clear()
    resume_run(here / "other")
    assert sum(counted) == 16 + 3  # another run's file is not taken


def test_adapters_have_the_reference_of_their_base(here):
    start_run(compose(objective="dpo"), here / "first")
    start_run(compose("weights=first"), here / "full")
    start_run(compose("weights=first", "lora={rank: 2, on: [attention]}"), here / "adapted")
    full, adapted = (load_file(here / name / FILE) for name in ("full", "adapted"))
    for name, each in full.items():
        assert torch.equal(torch.tensor(each).nan_to_num(), torch.tensor(adapted[name]).nan_to_num())
    assert abs(read_metrics(here / "adapted")[0]["reward_margin"]) < 1e-5


def test_other_starting_weights_are_not_mixed_in(here):
    start_run(compose(), here / "first")
    start_run(compose("weights=first"), here / "run")
    start_run(compose("seed=1"), here / "second")
    shutil.rmtree(here / "first")
    shutil.move(here / "second", here / "first")
    (fault,) = faults_of(lambda: resume_run(here / "run", ["steps=6"]))
    assert fault.startswith(f"{here / 'run' / FILE}: lacks rows that 6 steps read, and the starting weights are others")


@pytest.mark.parametrize("damage", [b"", b"\0" * 40])
def test_a_damaged_file_is_one_line(here, damage):
    start_run(compose(), here / "run")
    (here / "run" / FILE).write_bytes(damage)
    moved = go_back(here / "run", "moved")
    with pytest.raises(Exception, match=f"{FILE}: cannot be read, found .* \\(delete it: it is made again\\)"):
        resume_run(moved)


OTHERS = ["data=jsonl", "data.path=others.jsonl", "data.form=preference"]


def test_other_records_are_compared_with_the_starting_weights(here, counted):
    shutil.copy("answers.jsonl", "others.jsonl")
    start_run(compose(), here / "first")
    start_run(compose("weights=first"), here / "run")
    counted.clear()
    (found,) = evaluate(here / "run", overrides=OTHERS, device="cpu")["results"]
    assert sum(counted) == 60 and found["measures"]["reward_accuracy"] == 1
    evaluate(here / "run", overrides=["objective=ipo"], device="cpu")
    assert sum(counted) == 60  # the run's own validation split
    start_run(compose("weights=first", "steps=1", "optim.lr=1e-9", "lora={rank: 2, on: [attention]}"), here / "still")
    (same,) = evaluate(here / "still", overrides=OTHERS, device="cpu")["results"]
    assert same["loss"] == pytest.approx(0.6931, abs=1e-4) and found["loss"] < 0.65


def test_starting_weights_that_are_not_known_are_told(here):
    shutil.copy("answers.jsonl", "others.jsonl")
    start_run(compose(), here / "run")
    assert faults_of(lambda: evaluate(here / "run", overrides=OTHERS, device="cpu")) == [
        "objective: compares with the starting weights, which are not known for these records (a run with weights=DIR, "
        "or zoo eval RUN on its own validation split)"
    ]
    start_run(compose("weights=run", "model.n_layers=3"), here / "deeper")
    (fault,) = faults_of(lambda: evaluate(here / "deeper", overrides=OTHERS, device="cpu"))
    assert fault.startswith("weights: the run changed the model of ")


def test_accumulation_and_microbatches_have_equal_losses(here):
    start_run(compose(), here / "one")
    start_run(compose("accumulate=2"), here / "two")
    for a, b in zip(read_metrics(here / "one"), read_metrics(here / "two"), strict=True):
        for name in ("loss", "val_loss", "reward_margin", "val_reward_margin"):
            assert b.get(name) == pytest.approx(a.get(name), abs=1e-5)


def test_shown_rows_are_both_answers_with_what_is_learned_of_each(here, capsys):
    words = ["data.tokenizer.kind=file", "data.tokenizer.path=words"]
    args = ["llama-tiny", "data=jsonl", "data.path=answers.jsonl", "data.form=preference", *words, "seq_len=64"]
    assert run(["train", *args, "--show-data"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("⟦yes") == shown.count("⟦no") == 3
    first = shown.split("row 1\n")[1].split("row 2\n")[0]
    assert first.startswith("<|im_start|>user\n") and "<|im_start|>assistant\n⟦yes" in first


def test_the_price_counts_both_answers(here):
    dpo = plan_training(compose())
    chat = plan_training(compose("data.form=messages", "batch_size=8", objective="chat"))
    two, four = (price_training(chat.settings, chat.spec, rows)["peak"] for rows in (2, 4))
    assert price_training(dpo.settings, dpo.spec, 2)["peak"] == four > two  # both in two microbatches
    kto, judged = (plan_training(compose(*data, objective="kto")) for data in ([], JUDGED))
    assert price_training(kto.settings, kto.spec, 2)["peak"] == four
    assert price_training(judged.settings, judged.spec, 2)["peak"] == two  # of one answer each


def test_a_forecast_computes_what_its_steps_need(here, counted):
    timing = time_steps(plan_training(compose("steps=1000")))
    assert timing.step > 0 and 0 < sum(counted) <= 60


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            ["objective=chat"],
            "objective: chat reads conversations, found preferences in data=jsonl (objective=dpo, or ",
        ),
        (
            ["data.form=messages"],
            "objective: dpo reads preferences, found conversations in data=jsonl (objective=chat, ",
        ),
        (JUDGED, "objective: dpo reads preferences, found judgements in data=jsonl (objective=kto, or data.form=pref"),
        (["objective=kto", "data.form=messages"], "objective: kto reads judgements, found conversations in data=jsonl"),
        (
            ["objective=reward", "model=t5-tiny"],
            "objective: reward is learned by a decoder, the model is an encoder-dec",
        ),
        (["model=bert-tiny"], "objective: dpo is learned by a decoder, the model is an encoder (a decoder)"),
        (
            ["objective.z_loss=1e-4"],
            "objective: z_loss: is of a mean over tokens, and dpo's is over records, found 0.0001",
        ),
        (["objective.label_smoothing=0.5"], "objective.label_smoothing: must be less than 0.5, found 0.5"),
        (["parallel={cp: 2}", "launcher=torchrun", "nproc=2"], "objective: is dpo, and cp=2 cuts rows of text"),
        (["parallel={pp: 2}", "launcher=torchrun", "nproc=2"], "objective: is dpo, and a pipeline takes rows of text"),
    ],
)
def test_what_does_not_go_together_is_told(here, overrides, fault):
    with pytest.raises(ConfigError) as caught:
        plan_training(compose(*overrides))
    assert any(each.startswith(fault) for each in caught.value.faults), caught.value.faults


@pytest.mark.slow
def test_an_exported_model_is_the_trained_one(here):
    start_run(compose(), here / "run")
    model = store.load(here / "run")
    assert run(["convert", "run", "out"]) == 0
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[65, 66, 67]])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(here / "out")(ids).logits
        assert torch.allclose(model(ids).logits, theirs, atol=1e-5)


def test_a_mix_of_sources_and_half_precision_start_at_even_odds(here):
    lines = Path("answers.jsonl").read_text().splitlines(keepends=True)
    Path("more.jsonl").write_text("".join(lines[::2]))
    sources = {
        name: f"{{kind: jsonl, path: {name}.jsonl, form: preference, weight: 1}}" for name in ("answers", "more")
    }
    of = ", ".join(f"{name}: {node}" for name, node in sources.items())
    words = ["data.tokenizer.kind=file", "data.tokenizer.path=words"]
    own = [each for each in SMALL if not each.startswith(("data", *(size.split("=")[0] for size in SIZES)))]
    mixed = ["data=mix", f"data.of={{{of}}}", *words, "precision=bf16", "objective=dpo"]
    with plan_launch([*own, *SIZES, *mixed], check=False) as plan:
        start_run(task_config(plan.jobs[0]), here / "run")
    assert set(load_file(here / "run" / FILE)) == {
        f"{part}/{name}" for part in ("train", "validation") for name in sources
    }
    lines = read_metrics(here / "run")
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=5e-3) and lines[-1]["val_loss/more"] < 0.69


@pytest.mark.parametrize("objective", ["ipo", "orpo"])
def test_other_objectives_learn_to_prefer_the_chosen_answers(here, objective):
    start_run(compose("steps=30", "eval_every=30", objective=objective), here / "run")
    lines = read_metrics(here / "run")
    assert lines[-2]["loss"] < 0.7 * lines[0]["loss"] and lines[-1]["val_reward_accuracy"] == 1
    assert (here / "run" / FILE).exists() == (objective == "ipo")
    assert evaluate(here / "run", device="cpu")["results"][0]["loss"] == pytest.approx(lines[-1]["val_loss"], abs=1e-5)


@pytest.mark.parametrize("data", [JUDGED, []], ids=["judged", "pairs"])
def test_kto_learns_which_answers_are_good(here, data):
    start_run(compose(*data, "steps=30", "eval_every=30", objective="kto"), here / "run")
    lines = read_metrics(here / "run")
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-5) and lines[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert lines[-2]["loss"] < 0.42 and lines[-1]["val_reward_margin"] > 0.5
    held = lines[-1]
    assert held["val_reward_margin"] == pytest.approx(held["val_reward_chosen"] - held["val_reward_rejected"], abs=1e-5)
    scored = evaluate(here / "run", device="cpu")["results"][0]
    assert scored["loss"] == pytest.approx(lines[-1]["val_loss"], abs=1e-5)


def test_kto_in_microbatches_and_gone_on_with_has_equal_losses(here):
    longer = ["steps=8", "keep=9"]
    start_run(compose(*longer, objective="kto"), here / "one")
    start_run(compose(*longer, "accumulate=4", "eval_every=null", objective="kto"), here / "four")
    one, four = ([line for line in read_metrics(here / name) if "loss" in line] for name in ("one", "four"))
    assert max(line["kl"] for line in one) > 0
    for a, b in zip(one, four, strict=True):
        assert (b["loss"], b["kl"]) == pytest.approx((a["loss"], a["kl"]), abs=1e-5)
    moved = go_back(here / "one", "moved")
    resume_run(moved)
    assert read_metrics(moved) == read_metrics(here / "one")


def test_judged_answers_are_shown_and_counted(here, capsys):
    words = ["data.tokenizer.kind=file", "data.tokenizer.path=words"]
    args = ["llama-tiny", "data=jsonl", *JUDGED, *words, "seq_len=64"]
    assert run(["train", *args, "--show-data"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("⟦yes") + shown.count("⟦no") == shown.count("row ") == 3


def test_a_reward_model_tells_answers_apart_and_is_transformers_own(here, capsys):
    start_run(compose("steps=4"), here / "chat")
    settings = ["weights=chat", "steps=30", "eval_every=30", "objective.centre_coef=0.01", "keep_best=1"]
    start_run(compose(*settings, objective="reward"), here / "run")
    lines = read_metrics(here / "run")
    assert lines[0]["loss"] > 0.5 and lines[-2]["loss"] < 0.3 and lines[-1]["val_reward_accuracy"] == 1
    scored = evaluate(here / "run", device="cpu")["results"][0]
    assert scored["loss"] == pytest.approx(lines[-1]["val_loss"], abs=1e-5)
    other = ["data=jsonl", "data.path=answers.jsonl", "data.form=preference"]
    assert evaluate(here / "run", overrides=other, device="cpu")["results"][0]["measures"]["reward_accuracy"] == 1
    moved = go_back(here / "run", "moved", 30)
    (moved / "checkpoints/latest").write_text("step-000028\n")
    resume_run(moved)
    assert read_metrics(moved) == read_metrics(here / "run")
    assert run(["convert", "run", "out"]) == 0
    assert store.load_spec(here / "run").head.skip_id == 256  # padding, which transformers skips
    theirs, words = (
        AutoModelForSequenceClassification.from_pretrained(here / "out"),
        AutoTokenizer.from_pretrained("out"),
    )
    asked = [{"role": "user", "content": "7?"}]
    rewards = []
    for said in ("yes", "no"):
        ids = words.apply_chat_template([*asked, {"role": "assistant", "content": said}], return_tensors="pt")[
            "input_ids"
        ]
        with torch.no_grad():
            logits = theirs(ids).logits
            assert torch.allclose(logits, store.load(here / "run")(ids).logits, atol=1e-5)
        rewards.append(float(logits))
    assert logits.shape == (1, 1) and rewards[0] > rewards[1] + 1
    new = [{"prompt": "7?", "response": "yes"}, {"messages": [*asked, {"role": "assistant", "content": "no"}]}]
    for record, reward in zip(new, rewards, strict=True):
        (here / "new.jsonl").write_text(json.dumps(record))
        capsys.readouterr()
        assert run(["score", "run", "--file", "new.jsonl"]) == 0
        assert json.loads(capsys.readouterr().out)["predicted"] == pytest.approx(reward, abs=1e-4)


def test_a_reward_model_skips_its_tokenizers_padding_and_reads_the_end_of_an_answer(here):
    file = here / "words/tokenizer_config.json"
    stated = {**json.loads(file.read_text()), "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    file.write_text(json.dumps(stated))
    start_run(compose("steps=2", "eval_every=2", "data.tokenizer.path=words", objective="reward"), here / "run")
    ours = store.load(here / "run")
    pad, end = (
        AutoTokenizer.from_pretrained("words").convert_tokens_to_ids(stated[f"{of}_token"]) for of in ("pad", "eos")
    )
    rows = torch.tensor([[90, pad], [90, end]])
    hf.save(StoredModel.of(ours), here / "out", beside=here / "run/tokenizer")
    assert json.loads((here / "out/config.json").read_text())["pad_token_id"] == pad != end
    theirs = AutoModelForSequenceClassification.from_pretrained("out")
    with torch.no_grad():
        expected = theirs(rows).logits
        assert torch.allclose(ours(rows).logits, expected, atol=1e-5) and abs(expected[0] - expected[1]) > 1e-3
        assert torch.allclose(ours(rows, attention_mask=(rows != pad).long()).logits, expected, atol=1e-5)
        assert torch.allclose(ours(rows[:1, :1]).logits, expected[:1], atol=1e-5)
