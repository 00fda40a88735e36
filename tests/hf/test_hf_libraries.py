"""Libraries above transformers, and the page that shows them."""

import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import zoo
import zoo.hf
from zoo.checkpoint.store import save_model
from zoo.hf import ZooConfig

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
WORDS = ["<pad>", "<eos>", "<unk>", *["the", "cat", "sat", "on", "a", "mat", "and", "my", "dog", "ran"]]


@pytest.fixture
def tokenizer():
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A saved hybrid of ours, with its tokenizer."""
    config = ZooConfig.of("qwen3-next-tiny", ["n_layers=4", f"vocab_size={len(WORDS)}"], pad_token_id=0, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "made")
    tokenizer.save_pretrained(tmp_path / "made")
    return tmp_path / "made"


def test_the_first_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(zoo.build("llama-tiny", device="cpu"), "RUN")
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(example[1], names := {})  # type: ignore[index]
    assert isinstance(names["model"], zoo.hf.ZooForCausalLM)


def test_the_table_of_the_page_names_every_class():
    named = set(re.findall(r"^\| `(Zoo\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert named == {name for name in vars(zoo.hf) if name.startswith("Zoo")} - {"ZooConfig", "ZooCache"}


def test_a_pipeline_generates(folder):
    from transformers import pipeline

    writer = pipeline("text-generation", model=str(folder), device="cpu")
    (one,), (two,) = writer(
        ["the cat sat", "my dog"], max_new_tokens=4, min_new_tokens=4, do_sample=False, batch_size=2
    )
    (alone,) = writer("my dog", max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert one["generated_text"].startswith("the cat sat") and two == alone


TRL = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True, "save_strategy": "no"}
TRL |= {"bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "dataloader_pin_memory": False}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ({}, {"packing": True, "max_length": 16}, {"gradient_checkpointing": True}))
def test_trl_tunes_on_text(folder, tokenizer, how, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    rows = Dataset.from_list([{"text": "the cat sat on a mat"}, {"text": "my dog ran"}] * 6)
    model = AutoModelForCausalLM.from_pretrained(folder)
    arguments = trl.SFTConfig(str(tmp_path / "out"), **{**TRL, **how}, learning_rate=1e-2)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    trainer = trl.SFTTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    assert trainer.train().training_loss == pytest.approx(torch.tensor(float(len(WORDS))).log().item(), abs=0.8)
    changed = [name for name, each in model.state_dict().items() if not torch.equal(each, before[name])]
    assert len(changed) > len(before) / 2


@pytest.mark.filterwarnings("ignore")
def test_trl_tunes_a_prompt_of_peft(folder, tokenizer, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from peft import PromptTuningConfig

    rows = Dataset.from_list([{"text": "the cat sat on a mat"}, {"text": "my dog ran"}] * 6)
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        args=trl.SFTConfig(str(tmp_path / "out"), **TRL, learning_rate=1e-2),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    )
    before = {name: each.clone() for name, each in trainer.model.named_parameters()}
    trainer.train()
    changed = [name for name, each in trainer.model.named_parameters() if not torch.equal(each, before[name])]
    assert len(changed) == 1 and changed[0].startswith("prompt_encoder.")


@pytest.mark.filterwarnings("ignore")
def test_trl_prefers_and_rewards(folder, tokenizer, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    pairs = Dataset.from_list([{"prompt": "the cat", "chosen": " sat on", "rejected": " ran"}] * 6)
    model = AutoModelForCausalLM.from_pretrained(folder)
    arguments = trl.DPOConfig(str(tmp_path / "dpo"), **TRL)
    trainer = trl.DPOTrainer(model, args=arguments, train_dataset=pairs, processing_class=tokenizer)
    assert trainer.train().training_loss == pytest.approx(0.693, abs=0.05)  # ln 2, where both are as likely as before
    arguments = trl.GRPOConfig(str(tmp_path / "grpo"), **TRL, num_generations=4, max_completion_length=6)
    trainer = trl.GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=lambda completions, **_: [float(each.count("cat")) for each in completions],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "the cat"}, {"prompt": "my dog ran"}] * 6),
        processing_class=tokenizer,
    )
    assert trainer.train().global_step == 2


@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers_pools_an_encoder_of_ours(tokenizer, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = zoo.hf.ZooModel(ZooConfig.of("bert-tiny", [f"vocab_size={len(WORDS)}"])).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["the cat sat", "my dog ran on a mat"]
    found = torch.tensor(sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(texts))
    for text, vector in zip(texts, found, strict=True):
        alone = model(tokenizer(text, return_tensors="pt").input_ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, alone, atol=2e-5, rtol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_evaluation_harness_scores_a_continuation(folder, tokenizer):
    pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=str(folder), device="cpu", dtype="float32")
    ((found, greedy),) = harness.loglikelihood([Instance("loglikelihood", {}, ("the cat", " sat on"), 0)])
    ids = tokenizer("the cat sat on", return_tensors="pt").input_ids
    logs = zoo.load(folder)(ids).logits.log_softmax(-1)[0]
    assert found == pytest.approx(float(logs[1, ids[0, 2]] + logs[2, ids[0, 3]]), abs=1e-4) and not greedy
