"""Four preferences and tiny models to compare losses on, and the figures of TRL 1.16 for them.

    PYTHONPATH=.:tests python -m support.preference_cases

computes the figures by TRL's trainers on transformers' models, and writes them beside this file. TRL is no dependency:
the tests read the file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

import zoo
from support.tiny_models import spec_of
from zoo.data.chat.template import CHATML
from zoo.data.tokenizer import make_byte_tokenizer

FIGURES = Path(__file__).with_suffix(".json")
VOCABULARY = 259  # bytes, the end of text and ChatML's two tokens

ASKED = [("2+3?", "5", "6, or 7"), ("and?", "yes, indeed", "no"), ("hi", "hello", "go away"), ("q", "a", "bb")]
RECORDS = [
    {
        "prompt": [{"role": "user", "content": asked}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    for asked, chosen, rejected in ASKED
]
LABELS = [True, False, False, True]
UNPAIRED = [
    {"prompt": each["prompt"], "completion": each["chosen" if label else "rejected"], "label": label}
    for each, label in zip(RECORDS, LABELS, strict=True)
]


def save_tokenizer(folder: Path) -> Path:
    """Save a tokenizer of bytes with ChatML's tokens and template."""
    tokenizer = make_byte_tokenizer()
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.split = False  # as in published folders
    tokenizer.save(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def make_model(seed: int, *overrides: str) -> Any:
    """Build a tiny decoder whose weights are so large that its answers are not all equally likely."""
    model = zoo.build(spec_of([f"vocab_size={VOCABULARY}", "max_seq_len=64", *overrides]), seed=seed)
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(3 if each.ndim > 1 else 1)
    return model


REWARD = ["~head", "+head={kind: regression, n_outputs: 1, pooling: last, bias: false}"]
"""Overrides that make `make_model` a reward model."""


def compute_figures(folder: Path) -> dict[str, Any]:
    """Compute TRL's losses and rewards of the four records, for the models of seeds 1 (trained) and 0 (reference)."""
    from accelerate import Accelerator
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardTrainer
    from trl.experimental.orpo import ORPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(folder / "words"))
    for seed in (0, 1):
        zoo.export(make_model(seed), folder / f"model{seed}", verify=False)
    zoo.export(make_model(1, *REWARD), folder / "reward", verify=False)
    start, trained = (AutoModelForCausalLM.from_pretrained(folder / f"model{seed}") for seed in (0, 1))
    how = {"output_dir": str(folder / "out"), "use_cpu": True, "report_to": [], "bf16": False}
    how["per_device_train_batch_size"] = 4
    found: dict[str, Any] = {}

    def dpo(name: str, records: list[Any], **options: Any) -> dict[str, Any]:
        config = DPOConfig(**how, **options)
        trainer = DPOTrainer(
            trained, start, config, train_dataset=Dataset.from_list(records), processing_class=tokenizer
        )
        batch = trainer.data_collator([*trainer.train_dataset])
        trainer.model.eval()
        with torch.no_grad():
            loss = trainer._compute_loss(trainer.model, dict(batch), return_outputs=False)
        metrics = {key: each[-1] for key, each in trainer._metrics["eval"].items() if "rewards" in key}
        found[name] = {"loss": float(loss), **metrics}
        return batch

    batch = dpo("dpo", RECORDS)
    swapped = [{**each, "chosen": each["rejected"], "rejected": each["chosen"]} for each in RECORDS]
    dpo("dpo swapped", swapped)
    dpo("ipo", RECORDS, loss_type="ipo")
    found["ids"], found["mask"] = batch["input_ids"].tolist(), batch["completion_mask"].tolist()

    config = KTOConfig(**how, desirable_weight=1.5, undesirable_weight=0.5)
    kto = KTOTrainer(trained, start, config, train_dataset=Dataset.from_list(UNPAIRED), processing_class=tokenizer)
    kto.model.eval()
    with torch.no_grad():
        loss = kto._compute_loss(kto.model, dict(kto.data_collator([*kto.train_dataset])), return_outputs=False)
    kept = ("kl", "rewards/chosen", "rewards/rejected")
    found["kto"] = {"loss": float(loss), **{name: kto._metrics["eval"][name][-1] for name in kept}}

    orpo = object.__new__(ORPOTrainer)
    orpo.accelerator, orpo.is_encoder_decoder, orpo.aux_loss_enabled = Accelerator(cpu=True), False, False
    orpo.padding_value, orpo.beta = tokenizer.pad_token_id or tokenizer.eos_token_id, 0.1
    for name, rows in (("orpo", slice(None)), *((f"orpo {row}", slice(row, row + 1)) for row in range(4))):
        halves: dict[str, torch.Tensor] = {}
        for half, which in (("chosen", slice(0, 4)), ("rejected", slice(4, 8))):
            ids, mask, real = (batch[key][which][rows] for key in ("input_ids", "completion_mask", "attention_mask"))
            halves[f"{half}_input_ids"], halves[f"{half}_attention_mask"] = ids, real
            halves[f"{half}_labels"] = ids.masked_fill(mask == 0, -100)
        with torch.no_grad():
            loss, metrics = orpo.get_batch_loss_metrics(trained.eval(), halves)
        found[name] = {"loss": float(loss), **metrics}

    rewarding = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    rewarding.config.pad_token_id = tokenizer.eos_token_id
    for name, centre in (("reward", None), ("reward centred", 0.01)):
        reward = object.__new__(RewardTrainer)
        reward.model, reward.accelerator, reward._tp_size = rewarding.eval(), Accelerator(cpu=True), 1
        reward.args = type("Options", (), {"center_rewards_coefficient": centre})
        reward._metrics, reward._total_train_tokens = {"eval": defaultdict(list)}, 0
        with torch.no_grad():
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
            loss, outputs = reward.compute_loss(rewarding, inputs, return_outputs=True)
        found[name] = {"loss": float(loss), "rewards": outputs.logits[:, 0].tolist()}
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        figures = compute_figures(Path(place))
    lines = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in figures.items()]
    FIGURES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    sys.stdout.write(f"{FIGURES}\n")
