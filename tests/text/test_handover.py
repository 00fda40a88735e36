"""What `zoo convert` says is verified: texts padded, truncated, with special tokens and by the template, ids and
logits, by transformers' tokenizer, model and pipeline in a fresh process; and that a difference is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import zoo
from support import published_folders
from support.reference_folders import edit, folder, run
from zoo.checkpoint.verify_folder import verify_folder
from zoo.errors import CheckpointError
from zoo.text.handover import choose_readings

TEXTS = "4 texts with special tokens padded to one length; a text truncated to 16 tokens"
PIPELINES = {
    ("bert", "BertForMaskedLM"): "; the pipeline fill-mask truncated to 32 tokens",
    ("llama", "LlamaForCausalLM"): (
        "; a message by the chat template; the pipeline text-generation truncated to 48 tokens"
    ),
    ("llama", "LlamaForSequenceClassification"): (
        "; a message by the chat template; the pipeline text-classification truncated to 48 tokens"
    ),
    ("bert", "BertForTokenClassification"): "; the pipeline token-classification truncated to 32 tokens",
    ("bert", "BertModel"): "; the pipeline feature-extraction truncated to 32 tokens",
    ("gpt2", None): "; the pipeline text-generation truncated to 48 tokens",
    ("xlnet", None): "; the pipeline feature-extraction truncated to 48 tokens",
    ("roberta", None): "; the pipeline fill-mask truncated to 32 tokens",
    ("t5", None): "",
}


@pytest.mark.parametrize(
    ("kind", "model", "more"),
    [
        pytest.param(*key, more, marks=[pytest.mark.slow] if number else [])
        for number, (key, more) in enumerate(PIPELINES.items())
    ],
)
def test_the_line_says_what_was_compared(kind, model, more, tmp_path, capsys):
    made = getattr(published_folders, kind)(tmp_path / "made", *([model] if model else []))
    code, said, error = run(capsys, "convert", made, tmp_path / "out")
    assert code == 0, error
    line = said.splitlines()[-1]
    assert line.startswith("verified: transformers gives the same logits, largest difference ")
    assert line.endswith(f": 17 random tokens; ids and logits of {TEXTS}{more}")


@pytest.mark.slow
def test_without_a_tokenizer_no_text_is_compared_and_that_is_said(tmp_path, capsys):
    code, said, _ = run(capsys, "convert", folder(tmp_path / "made"), tmp_path / "out")
    assert code == 0 and said.splitlines()[-1].endswith(": 17 random tokens; no text, as it has no tokenizer.json")


def spoil_template(out: Path) -> None:
    """No start token, in the file that `tokenizers` reads."""
    file = out / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))


def spoil_chat(out: Path) -> None:
    (out / "chat_template.jinja").write_text(published_folders.TEMPLATE.replace("assistant: ", "it: "))


def lose_padding(out: Path) -> None:
    """What an older export had: the end token alone."""
    (out / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (spoil_template, "transformers reads 4 texts with special tokens otherwise, as ["),
        (spoil_chat, "transformers reads a message by the chat template otherwise, as ["),
        (lose_padding, "transformers reads the pipeline text-generation truncated to 48 tokens otherwise, as ["),
        (lambda out: edit(out, rms_norm_eps=1e-2), "transformers' logits differ from the model's by"),
    ],
)
def test_a_difference_in_a_file_beside_the_weights_is_found(spoil, fault, tmp_path):
    made, out = published_folders.llama(tmp_path / "made"), tmp_path / "out"
    model = zoo.load(made)
    zoo.export(model, out, verify=False)
    spoil(out)
    with pytest.raises(CheckpointError) as refused:
        verify_folder(model, out, *choose_readings(made, out, 64))
    assert fault in str(refused.value)
