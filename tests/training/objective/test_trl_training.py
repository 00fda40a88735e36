"""Ten updates beside TRL's trainers: the same weights, records, order and settings give the same losses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import zoo
from support.preference_cases import REWARD, make_model, save_tokenizer
from support.tiny_runs import read_metrics
from zoo.data import Batches
from zoo.jobs.plan import plan_launch, task_config
from zoo.jobs.train import start_run

trl = pytest.importorskip("trl")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

OURS = [
    "data=jsonl",
    "data.path=records.jsonl",
    "weights=base",
    "seq_len=128",
    "batch_size=4",
    "steps=10",
    "device=cpu",
]
OURS += ["optim.lr=1e-3", "schedule=constant", "schedule.warmup=0", "eval_every=null", "sample=null"]
THEIRS = {"per_device_train_batch_size": 4, "max_steps": 10, "use_cpu": True, "bf16": False, "max_length": 128}
THEIRS |= {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "adam_beta2": 0.95, "weight_decay": 0.1}
THEIRS |= {"train_sampling_strategy": "sequential", "gradient_checkpointing": False, "logging_steps": 1}
THEIRS |= {"report_to": [], "save_strategy": "no", "disable_tqdm": True}
ENDED = ("chosen_input_ids", "chosen_attention_mask", "chosen_labels")
ENDED += ("rejected_input_ids", "rejected_attention_mask", "rejected_labels")
CASES = {
    "chat": ("SFT", "prompt_completion", ["data.packing=false"], {}),
    "dpo": ("DPO", "preference", [], {}),
    "kto": ("KTO", "unpaired", [], {}),
    "reward": ("Reward", "preference", [], {}),
    "orpo": ("ORPO", "preference", ["batch_size=1"], {"per_device_train_batch_size": 1}),  # ours is a mean over records
}
"""By objective: TRL's trainer, the form of the data, and settings of ours and of TRL's."""


def write_record(number: int, form: str) -> dict:
    """Write a sum that no other number has, with a good answer, and with a bad one unless for supervised tuning."""
    one, two = number % 8, number // 8
    texts = {"user": f"{one}+{two}?", "good": f"{one + two}" * (1 + number % 2), "bad": f"{one + two + 1}, or so"}
    roles = {"user": "user", "good": "assistant", "bad": "assistant"}
    asked, good, bad = ([{"role": roles[who], "content": text}] for who, text in texts.items())
    if form == "preference":
        return {"prompt": asked, "chosen": good, "rejected": bad}
    judged = {} if form == "prompt_completion" else {"label": number % 3 == 0}
    return {"prompt": asked, "completion": good if judged.get("label", True) else bad, **judged}


def read_number(row: list[int]) -> int | None:
    """Read the number of the record that a row of ids was made from: `5+3?` is 5 + 8·3. None for padding."""
    found = re.search(r"(\d)\+(\d)", bytes(each for each in row if each < 256).decode())
    return found and int(found[1]) + 8 * int(found[2])


def train_ours(monkeypatch, objective: str, form: str, *overrides: str) -> tuple[list[dict], list[int]]:
    """Train with Zoo. Returns each update's metrics, and the numbers of the records in the order of reading."""
    records = [json.dumps(write_record(number, form)) + "\n" for number in range(60)]
    Path("records.jsonl").write_text("".join(records))
    read, order = Batches.__next__, []

    def note(self):
        batch = read(self)
        order.extend(read_number(row) for row in batch.input_ids.tolist())
        return batch

    monkeypatch.setattr(Batches, "__next__", note)
    with plan_launch([*OURS, f"data.form={form}", f"objective={objective}", *overrides], check=False) as plan:
        start_run(task_config(plan.jobs[0]), Path("run"))
    lines = [line for line in read_metrics(Path("run")) if "loss" in line]
    return lines, list(dict.fromkeys(number for number in order if number is not None))


def train_theirs(name: str, form: str, order: list[int], **options) -> tuple[list[float], list[float]]:
    """Train with TRL on these records in this order. Returns each update's loss and norm of the gradient."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental import orpo

    places = {"ORPO": orpo}
    trainer_class, config_class = (getattr(places.get(name, trl), name + kind) for kind in ("Trainer", "Config"))
    model_class = AutoModelForSequenceClassification if name == "Reward" else AutoModelForCausalLM
    trainer = trainer_class(
        model_class.from_pretrained("base"),
        args=config_class("theirs", **{**THEIRS, **options}),
        train_dataset=Dataset.from_list([write_record(number, form) for number in order]),
        processing_class=AutoTokenizer.from_pretrained("base", pad_token="<|endoftext|>"),
    )
    if name == "ORPO":  # it ends each answer with an end of text, which the template does not have
        cut = {"fn_kwargs": {"names": ENDED}, "load_from_cache_file": False}
        trainer.train_dataset = trainer.train_dataset.map(
            lambda row, names: {each: row[each][:-1] for each in names}, **cut
        )
    compute, losses = trainer.compute_loss, []

    def note(*args, **kwargs):  # what is logged has four digits
        found = compute(*args, **kwargs)
        losses.append(float(found[0] if isinstance(found, tuple) else found))
        return found

    trainer.compute_loss = note
    trainer.train()
    return losses, [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]


@pytest.mark.parametrize("objective", CASES)
def test_ten_updates_have_the_losses_of_trl(objective, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    name, form, overrides, options = CASES[objective]
    zoo.export(make_model(0, "max_seq_len=128", *(REWARD if objective == "reward" else ())), "base", verify=False)
    save_tokenizer(Path("base"))
    ours, order = train_ours(monkeypatch, objective, form, *overrides)
    losses, norms = train_theirs(name, form, order, **options)
    assert len(ours) == len(losses) == 10 and len(order) == 10 * options.get("per_device_train_batch_size", 4)
    assert [line["loss"] for line in ours] == pytest.approx(losses, abs=3e-6)
    assert [line["grad_norm"] for line in ours] == pytest.approx(norms, rel=3e-5)
    assert abs(losses[-1] - losses[0]) > 0.05  # they learned
