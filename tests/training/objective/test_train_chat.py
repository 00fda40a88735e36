"""Train on conversations: answers are learned, the template stays with the model, and the verbs that follow."""

from __future__ import annotations

import io
import json
import re
import shutil
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from support.corpora import faults_of
from support.tiny_runs import SMALL, read_metrics
from zoo.cli import run
from zoo.data.chat.template import CHATML
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.jobs.plan import plan_launch, task_config
from zoo.jobs.train import resume_run, start_run
from zoo.training.evaluate import evaluate
from zoo.training.planning import plan_training

SPLIT = "data.tokenizer.split_special_tokens: is true, and transformers would split the special tokens of the chat"
SIZES = ["model.vocab_size=259", "model.max_seq_len=64", "seq_len=64", "steps=20", "eval_every=20", "optim.lr=1e-2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tokenizer = make_byte_tokenizer()
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.split = False  # as in published folders
    tokenizer.save(tmp_path / "words")
    (tmp_path / "words" / "chat_template.jinja").write_text(CHATML)
    with open("chat.jsonl", "w") as file:
        for number in range(60):
            said = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "yes"}]
            file.write(json.dumps({"messages": said * (1 + number % 2)}) + "\n")
    return tmp_path


def compose(*overrides: str):
    own = [each for each in SMALL if not each.startswith(("data", *(size.split("=")[0] for size in SIZES)))]
    data = ["data=jsonl", "data.path=chat.jsonl", "data.form=messages"]
    words = ["data.tokenizer.kind=file", "data.tokenizer.path=words"]
    with plan_launch([*own, *SIZES, *data, *words, *overrides], check=False) as plan:
        return task_config(plan.jobs[0])


def test_answers_are_learned_and_the_verbs_that_follow_know_the_template(here, capsys, monkeypatch):
    start_run(compose(), here / "run")
    losses = [line["val_loss"] for line in read_metrics(here / "run") if "val_loss" in line]
    first = next(line["loss"] for line in read_metrics(here / "run") if "loss" in line)
    assert losses[-1] < 0.3 * first
    err = capsys.readouterr().err
    assert "objective: chat" in err
    assert "data: 56 conversations train and 4 validate (a repeated one counts once)" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("7?\n"))
    assert run(["chat", "--checkpoint", "run", "--temperature", "0", "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out == "yes\n"
    assert run(["convert", "run", "out"]) == 0
    theirs = AutoTokenizer.from_pretrained(here / "out")
    assert theirs.chat_template == CHATML
    how = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    asked = theirs.apply_chat_template([{"role": "user", "content": "7?"}], **how)
    model = AutoModelForCausalLM.from_pretrained(here / "out")
    said = model.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert theirs.decode(said) == "yes<|im_end|>"  # transformers stops where the template ends an answer
    scored = evaluate(here / "run", device="cpu")
    assert scored["objective"] == "chat" and scored["results"][0]["loss"] == pytest.approx(losses[-1], abs=1e-5)
    found = evaluate(here / "run", ["data=jsonl", "data.path=chat.jsonl", "data.form=messages"], device="cpu")
    assert found["results"][0]["loss"] > 0


def test_a_run_goes_on_with_its_own_template_after_the_file_is_gone(here):
    (here / "mine.jinja").write_text(CHATML.replace("\\n", ""))
    start_run(compose("data.template=mine.jinja", "steps=4", "save_every=2", "eval_every=null"), here / "whole")
    shutil.copytree(here / "whole", here / "moved")
    (here / "moved/checkpoints/latest").write_text("step-000002\n")
    (here / "mine.jinja").unlink()
    shutil.rmtree(here / "words")
    resume_run(here / "moved")
    assert read_metrics(here / "moved") == read_metrics(here / "whole")
    for folder in (here / "moved/tokenizer", here / "moved/checkpoints/step-000004"):
        assert (folder / "chat_template.jinja").read_text() == CHATML.replace("\\n", "")


def test_shown_rows_have_every_token_and_the_answers_marked(here, capsys):
    words = ["data.tokenizer.kind=file", "data.tokenizer.path=words"]
    args = ["llama-tiny", "data=jsonl", "data.path=chat.jsonl", "data.form=messages", *words, "seq_len=96"]
    assert run(["train", *args, "--show-data"]) == 0
    shown = capsys.readouterr().out.split("row 1\n")[1].split("row 2\n")[0].rstrip("\n")
    one = "<|im_start|>user\n0?<|im_end|>\n<|im_start|>assistant\n⟦yes<|im_end|>\n⟧"
    conversations = shown.split("┃")
    assert len(conversations) > 1
    for each in conversations:
        turns = each.split("<|im_start|>user\n")
        assert turns[0] == "" and len(turns) in (2, 3)  # a conversation of one turn, or of two
        for turn in turns[1:]:
            asked, rest = turn.split("?", 1)
            assert f"<|im_start|>user\n{asked}?{rest}".rstrip("\n") == one.replace("0?", f"{asked}?").rstrip("\n")


def test_shown_rows_say_what_is_cut(here, capsys):
    """A turn has 26 or 27 tokens (its number has one digit or two), so that a row of 44 has one turn of two."""
    words = ["data.tokenizer.kind=file", "data.tokenizer.path=words", "data.packing=false"]
    args = ["llama-tiny", "data=jsonl", "data.path=chat.jsonl", "data.form=messages", *words, "seq_len=44"]
    assert run(["train", *args, "--show-data"]) == 0
    out, err = capsys.readouterr()
    rows = re.split(r"row \d\n", out)[1:]
    lost = [re.search(r"⟧… (\d+) tokens cut$", row.rstrip("\n")) for row in rows]
    assert {int(each[1]) for each in lost if each} <= {26, 27} and len(rows) == 3
    for row, each in zip(rows, lost, strict=True):
        number = int(re.search(r"(\d+)\?", row)[1])
        assert (each is not None) == (number % 2 == 1)
    assert "conversations lose what follows the last answer that fits (" in err


def read_samples(capsys) -> list[str]:
    """The samples that a run printed."""
    lines = capsys.readouterr().err.splitlines()
    return [after.strip() for line, after in pairwise(lines) if "validation loss" in line]


def test_a_sample_is_an_answer_to_a_users_turn(here, capsys):
    start_run(compose("sample={tokens: 8, temperature: 0, prompt: '7?'}"), here / "run")
    asked = "<|im_start|>user\n7?<|im_end|>\n<|im_start|>assistant\n"
    assert (here / "run/samples.txt").read_text() == f"──── step 20 ────\n{asked}yes\n\n"
    assert read_samples(capsys) == [" ".join(asked.split()) + " yes"]
    start_run(compose("sample={tokens: 8}", "steps=1"), here / "default")
    assert "<|im_start|>user\nHello!<|im_end|>\n" in (here / "default/samples.txt").read_text()


def test_pairs_of_plain_texts_are_sampled_without_a_template(here):
    with open("chat.jsonl", "w") as file:
        file.writelines(json.dumps({"prompt": f"{number}?", "completion": "yes"}) + "\n" for number in range(10, 70))
    start_run(
        compose("data.form=prompt_completion", "data.packing=false", "steps=1", "sample={tokens: 8}"), here / "run"
    )
    assert read_metrics(here / "run")[0]["tokens"] == 4 * len("10?yes")  # and no padding
    assert (here / "run/samples.txt").read_text().startswith("──── step 1 ────\ndef ")


def test_a_template_that_refuses_the_sample_is_told_before_training(here):
    (here / "words/chat_template.jinja").write_text(
        "{% if messages[0].content == 'Hello!' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    )
    faults = faults_of(lambda: start_run(compose("sample={tokens: 8}"), here / "run"))
    assert faults == ["sample.prompt: chat template: no (another, or sample=null)"]


def test_packed_and_single_rows_say_what_they_cut(here, capsys):
    start_run(compose("data.packing=false", "seq_len=44", "steps=1", "eval_every=null"), here / "run")
    out = capsys.readouterr().err
    assert "conversations lose what follows the last answer that fits (" in out and "%), at 44 tokens (seq_len=" in out


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["objective=next_token"], "objective: next_token reads text, found conversations in data=jsonl (objective="),
        (["objective=chat", "data.form=null"], "objective: chat reads conversations, found text in data=jsonl"),
        (["model=bert-tiny", "objective=chat"], "objective: chat is learned by a decoder, the model is an encoder"),
        (["data.tokenizer.split_special_tokens=true"], SPLIT),
        (["objective=classify"], "data.form: is 'messages', and objective.text and objective.label name the fields"),
    ],
)
def test_data_objective_and_model_that_do_not_go_together_are_told(here, overrides, fault):
    config = compose(*overrides)
    assert any(each.startswith(fault) for each in faults_of(lambda: plan_training(config)))


def test_a_template_of_the_folder_whose_tokens_would_be_split_is_told(here):
    with open("pairs.jsonl", "w") as file:
        for number in range(60):
            said = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "yes"}]
            file.write(json.dumps({"prompt": said[:1], "completion": said[1:]}) + "\n")
    data = ["data.path=pairs.jsonl", "data.form=prompt_completion", "data.tokenizer.split_special_tokens=true"]
    (fault,) = faults_of(lambda: start_run(compose(*data), here / "run"))
    assert fault.startswith(SPLIT) and not (here / "run").exists()
    texts = '{"prompt": "2+3=", "completion": "5"}\n{"prompt": "2+4=", "completion": "6"}\n'
    (here / "pairs.jsonl").write_text(texts)  # which no template writes
    start_run(compose(*data, "steps=1", "data.validation_fraction=0.5"), here / "run")
    resume_run(here / "run", ["steps=2"])


def test_an_answer_that_ends_as_a_text_does_is_stated_for_transformers_too(here):
    file = here / "words/tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "<|im_end|>"}))
    start_run(compose("steps=1"), here / "run")
    assert run(["convert", "run", "out", "--no-verify"]) == 0
    assert GenerationConfig.from_pretrained(here / "out").eos_token_id == [258]

    def end_after_five(ids, scores):
        return scores.fill_(-torch.inf).index_fill_(1, torch.tensor(258 if ids.shape[1] == 5 else 65), 0.0)

    model = AutoModelForCausalLM.from_pretrained(here / "out")
    said = model.generate(torch.tensor([[65]]), max_new_tokens=20, do_sample=False, logits_processor=[end_after_five])
    assert said.tolist() == [[65] * 5 + [258]]


def test_plain_pairs_end_as_the_tokenizer_ends_a_text(here):
    """The folder has a template, which writes messages and no plain texts: its end of an answer is not learned."""
    pairs = [json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1)}) + "\n" for n in range(60)]
    (here / "pairs.jsonl").write_text("".join(pairs))
    start_run(compose("data.path=pairs.jsonl", "data.form=prompt_completion", "steps=1"), here / "run")
    assert not (here / "run/tokenizer/generation_config.json").exists()
    start_run(compose("steps=1"), here / "chat")
    stated = json.loads((here / "chat/tokenizer/generation_config.json").read_text())
    assert stated == {"eos_token_id": [258, 256]}


def test_chatml_on_a_vocabulary_without_its_tokens_is_one_line(here):
    make_byte_tokenizer().save(here / "plain")
    plain = ["data.tokenizer.path=plain", "data.template=chatml"]
    fault = (
        "data.template: writes <|im_start|>, which is no token of the vocabulary (a tokenizer that has it, or the "
        "template plain)"
    )
    assert faults_of(lambda: start_run(compose(*plain), here / "run")) == [fault]
    assert not (here / "run").exists()


OWN_TEMPLATE = (
    "{% for m in messages %}{{ '<|endoftext|>' + m.role + ': ' + m.content }}{% endfor %}<|endoftext|>"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("kind", [pytest.param("byte", marks=pytest.mark.slow), "file"])
def test_an_export_reads_what_the_template_writes_as_training_did(here, capsys, kind):
    """Zoo's own tokenizers split special tokens spelled in a text, and say so in tokenizer_config.json, which
    transformers would obey for rendered texts too."""
    (here / "own.jinja").write_text(OWN_TEMPLATE)
    make_byte_tokenizer().save(here / "split")
    assert json.loads((here / "split/tokenizer_config.json").read_text())["split_special_tokens"]
    words = {"byte": ["data.tokenizer={kind: byte, path: null}"], "file": ["data.tokenizer.path=split"]}[kind]
    start_run(compose("data.template=own.jinja", *words, "steps=1", "model.max_seq_len=128"), here / "run")
    assert run(["convert", "run", "out"]) == 0
    assert "a message by the chat template" in capsys.readouterr().out
    theirs = AutoTokenizer.from_pretrained(here / "out")
    said = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(said)["input_ids"] == [256, *b"user: hi", 256]


def test_a_teacher_is_followed_on_the_tokens_of_answers(here):
    start_run(compose("steps=2"), here / "taught")
    how = ["objective=distil", "objective.teacher=taught", "steps=1", "eval_every=1"]
    start_run(compose(*how), here / "fresh")
    start_run(compose(*how, "objective.base=chat", "weights=taught"), here / "same")
    fresh, same = (read_metrics(here / name) for name in ("fresh", "same"))
    assert fresh[0]["distil"] > 1e-3 and abs(same[0]["distil"]) < 1e-5  # a model does not diverge from itself
    assert evaluate(here / "same", device="cpu")["objective"] == "chat"
    config = compose(*how, "objective.base=next_token")
    assert faults_of(lambda: plan_training(config))[0].startswith("objective: distil reads text, found conversations")
