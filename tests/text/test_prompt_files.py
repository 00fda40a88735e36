"""Files of prompts: what is read, what is refused, what is written, and what is left when it is cut off."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import zoo
from support.watched_engine import WatchedEngine
from zoo.checkpoint import store
from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.generation.generate import generate
from zoo.text.follow import follow
from zoo.text.jobs import JobMaker
from zoo.text.prompts import Options, Prompt, option_names, read_jsonl, read_lines

SMALL = ["vocab_size=260", "d_model=32", "n_layers=1", "n_heads=2", "n_kv_heads=2", "head_dim=16", "d_ff=32"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of bytes with a little contrast in its weights, so that texts differ; and a chat template beside it."""
    folder = tmp_path_factory.mktemp("made") / "model"
    torch.manual_seed(5)
    model = zoo.build("llama-tiny", [*SMALL, "max_seq_len=96"], device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    store.save_model(model, folder, make_byte_tokenizer())
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}it: {% endif %}"
    )
    return folder


@pytest.fixture
def generating(checkpoint, tmp_path, monkeypatch, capsys):
    """Run `zoo generate` on the checkpoint in a folder of the test's; its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def command(*args: str, code: int = 0):
        assert run(["generate", "--checkpoint", str(checkpoint), "--device", "cpu", *args]) == code
        return capsys.readouterr()

    return command


def alone(checkpoint, ids: list[int], count: int, **options) -> list[int]:
    """The tokens that the model writes after these alone."""
    return generate(store.load(checkpoint), torch.tensor([ids]), count, **options)[0, len(ids) :].tolist()


def rows(file: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


# ---------------------------------------------------------------- what is read


def test_a_plain_file_has_a_prompt_a_line_and_nothing_else_ends_one():
    prompts = read_lines("one \u2028 still one\r\n\n  \n two\x0b\nthree", "f.txt", {"seed": 3})
    assert [prompt.given["prompt"] for prompt in prompts] == ["one \u2028 still one", " two\x0b", "three"]
    assert [(prompt.index, prompt.where) for prompt in prompts] == [(0, "f.txt:1"), (1, "f.txt:4"), (2, "f.txt:5")]
    assert all(prompt.options.sampling.seed == 3 for prompt in prompts)


def test_a_line_of_json_goes_before_the_command_line():
    lines = ['{"prompt": "a", "temperature": 0.5, "stop": "x", "id": "q7"}', '{"ids": [1, 2], "n": 3, "stop_ids": [4]}']
    first, second = read_jsonl("\n".join(lines), "f", {"temperature": 0.9, "max_new_tokens": 7, "stop": ["y"]})
    assert (first.options.sampling.temperature, first.options.stop, first.given["id"]) == (0.5, ("x",), "q7")
    assert (second.options.sampling.temperature, second.options.stop) == (0.9, ("y",))
    assert (second.options.n, second.options.stop_ids, second.options.max_new_tokens) == (3, (4,), 7)


def test_all_faults_of_a_file_are_said_with_their_lines():
    lines = [
        '{"prompt": "fine"}',
        '{"prompt": "a", "temprature": 1}',
        "{nothing",
        "[1, 2]",
        '{"prompt": "a", "ids": [1]}',
        '{"temperature": 1}',
        '{"prompt": 7, "top_p": 3, "n": 0}',
        '{"ids": []}',
        '{"ids": [1, true]}',
        '{"messages": [{"role": "user"}]}',
        '{"prompt": "a", "max_new_tokens": "many", "logprobs": 21, "stop": [""], "ignore_eos": 1}',
        '{"prompt": "half \\ud83d"}',
        '{"prompt": "a", "process": "x"}',
    ]
    with pytest.raises(ConfigError) as caught:
        read_jsonl("\n".join(lines), "f.jsonl", {})
    expected = [
        "f.jsonl:2: temprature: no such option (did you mean 'temperature'?)",
        "f.jsonl:3: is no JSON, found",
        "f.jsonl:4: is no object, found [1, 2]",
        "f.jsonl:5: has prompt and ids (one of: prompt, ids, messages)",
        "f.jsonl:6: has nothing to continue (one of: prompt, ids, messages)",
        "f.jsonl:7: prompt: is 7 (a text)",
        "f.jsonl:7: n: is 0, not a whole number from 1 to 128",
        "f.jsonl:7: top_p: is 3",
        "f.jsonl:8: ids: is [] (a list of token ids, one at least)",
        "f.jsonl:9: ids: is [1, True]",
        "f.jsonl:10: messages[0]: has no content",
        "f.jsonl:11: max_new_tokens: is 'many', not a whole number from 1",
        "f.jsonl:11: logprobs: is 21",
        "f.jsonl:11: stop: is ['']",
        "f.jsonl:11: ignore_eos: is 1, not true or false",
        "f.jsonl:12: has half of a surrogate pair",
        "f.jsonl:13: process: no such option",
    ]
    assert len(caught.value.faults) == len(expected)
    for fault, start in zip(caught.value.faults, expected, strict=True):
        assert fault.startswith(start)


# ---------------------------------------------------------------- what is written


def test_each_line_of_a_file_gets_what_it_gets_alone(generating, checkpoint):
    lines = [
        {"prompt": "def f(", "id": "first", "max_new_tokens": 20},
        {"ids": [65, 66, 67], "temperature": 1.0, "seed": 4, "max_new_tokens": 6},
        {"messages": [{"role": "user", "content": "hi"}], "max_new_tokens": 3},
    ]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = generating("--prompt-file", "p.jsonl", "--out", "o.jsonl", "--temperature", "0", "--ignore-eos")
    found = {row["index"]: row for row in rows("o.jsonl")}
    prompts = [list(b"def f("), [65, 66, 67], list(b"user: hi\nit: ")]
    options = [{}, {"temperature": 1.0, "seed": 4}, {}]
    for index, (ids, given) in enumerate(zip(prompts, options, strict=True)):
        row, line = found[index], lines[index]
        tokens = alone(checkpoint, ids, line["max_new_tokens"], **given)
        assert row["tokens"] == tokens
        assert row["text"] == make_byte_tokenizer().decode(tokens)
        assert (row["prompt_tokens"], row["new_tokens"], row["finish_reason"]) == (len(ids), len(tokens), "length")
        source = next(name for name in ("prompt", "ids", "messages") if name in line)
        assert row[source] == line[source]
    assert found[0]["id"] == "first"
    assert [row["index"] for row in rows("o.jsonl")] == [2, 1, 0]  # as they were done
    assert said.out == ""
    assert "3 of 3 texts, 29 tokens in" in said.err


def test_the_token_that_ends_a_text_is_one_of_its_tokens_and_no_part_of_the_text(generating, checkpoint):
    plain = alone(checkpoint, list(b"ab"), 12)
    last = next(token for token in plain[3:] if token not in plain[:3])
    args = ["--prompt", "ab", "--max-new-tokens", "12", "--temperature", "0", "--ignore-eos", "--stop-id", str(last)]
    generating(*args, "--out", "o.jsonl")
    (row,) = rows("o.jsonl")
    assert row["tokens"] == plain[: plain.index(last) + 1]
    assert row["text"] == make_byte_tokenizer().decode(row["tokens"][:-1])
    assert row["finish_reason"] == "stop"


def test_samples_of_one_prompt_are_lines_of_their_own(generating, checkpoint):
    args = ["--prompt", "ab", "--max-new-tokens", "5", "--temperature", "1", "--seed", "2", "--ignore-eos"]
    generating(*args, "--n", "3", "--out", "o.jsonl")
    both = generate(store.load(checkpoint), torch.tensor([[97, 98]] * 3), 5, 1.0, seed=2)[:, 2:].tolist()
    assert [(row["sample"], row["tokens"]) for row in rows("o.jsonl")] == list(enumerate(both))
    assert len({tuple(each) for each in both}) == 3
    printed = generating(*args, "--n", "3").out
    assert [line for line in printed.splitlines() if line.startswith("--- ")] == [
        f"--- 1 of 1, text {number} of 3: ab" for number in (1, 2, 3)
    ]


def test_logprobs_are_those_of_a_full_forward(generating, checkpoint):
    Path("p.jsonl").write_text('{"prompt": "xyz", "logprobs": 2, "prompt_logprobs": 0, "max_new_tokens": 4, "n": 2}')
    generating("--prompt-file", "p.jsonl", "--out", "o.jsonl", "--temperature", "0", "--ignore-eos")
    row, other = rows("o.jsonl")
    assert other["tokens"] == row["tokens"] and other["sample"] == 1  # greedy: the second text is the first
    ids = [*b"xyz", *row["tokens"]]
    with torch.inference_mode():
        values = store.load(checkpoint)(torch.tensor([ids])).logits[0].log_softmax(-1)
    for place, shown in enumerate(row["logprobs"], 3):
        assert shown["id"] == ids[place]
        assert shown["logprob"] == pytest.approx(values[place - 1, ids[place]].item(), abs=1e-4)
        assert [each["id"] for each in shown["top"]] == values[place - 1].topk(2).indices.tolist()
    assert row["prompt_logprobs"][0] is None
    assert row["prompt_logprobs"][2]["logprob"] == pytest.approx(values[1, ids[2]].item(), abs=1e-4)


def test_without_out_texts_come_in_the_order_of_their_prompts(generating, monkeypatch):
    lines = [{"prompt": f"prompt {i}", "max_new_tokens": count} for i, count in enumerate([9, 1, 5])]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(json.dumps, lines))))
    out = generating("--prompt-file", "-", "--prompt-format", "jsonl", "--temperature", "0").out
    heads = [line for line in out.splitlines() if line.startswith("--- ")]
    assert heads == [f"--- {i + 1} of 3: prompt {i}" for i in range(3)]


@pytest.mark.parametrize("cut", [3, 4, 5])
def test_a_stop_string_ends_a_text_of_the_batch_and_frees_its_place(checkpoint, cut):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    plain = tokenizer.decode(alone(checkpoint, list(b"qq"), 12))
    stop = plain[cut : cut + 2]
    engine = WatchedEngine(model, rows=4, tokens=96)
    options = Options.checked({"max_new_tokens": 12, "stop": stop})
    jobs = JobMaker(model, tokenizer).make_jobs([Prompt(0, "f:1", {"prompt": "qq"}, options)])
    done = [sample for sample, _ in follow(engine, jobs, tokenizer) if sample.reason]
    assert [sample.text for sample in done] == [plain[: plain.index(stop)]]
    assert done[0].reason == "stop"
    assert engine.aborted == [(0, 0)]
    assert not engine.busy


def test_a_sample_that_a_stop_string_ends_frees_its_place_while_the_others_go_on(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    asked = {"max_new_tokens": 12, "n": 3, "temperature": 1.0, "seed": 2, "ignore_eos": True}
    plain = completed(model, tokenizer, asked)
    stop = plain[1].text[3:5]
    assert not any(stop in each.text for each in (plain[0], plain[2]))
    engine = WatchedEngine(model, rows=4, tokens=96)
    done = completed(model, tokenizer, {**asked, "stop": stop}, engine)
    assert [each.text for each in done] == [plain[0].text, plain[1].text.split(stop)[0], plain[2].text]
    assert [each.reason for each in done] == ["length", "stop", "length"]
    assert engine.aborted == [(0, 1)]
    assert len(done[1].tokens) < 12


def completed(model, tokenizer, options, engine=None):
    """The samples of one prompt, by number."""
    jobs = JobMaker(model, tokenizer).make_jobs([Prompt(0, "f:1", {"prompt": "qq"}, Options.checked(options))])
    texts = follow(engine or WatchedEngine(model, rows=4, tokens=96), jobs, tokenizer)
    return sorted((sample for sample, _ in texts if sample.reason), key=lambda sample: sample.number)


def test_a_stop_string_that_spells_a_special_token_is_that_token(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    tokenizer.backend.add_special_tokens(["<|im_end|>"])
    options = Options.checked({"stop": ["<|im_end|>", "b"], "stop_ids": [9], "ignore_eos": True})
    job = JobMaker(model, tokenizer).make_job({"prompt": "x"}, options, "")
    assert job.request.stop_ids == {9, tokenizer.backend.token_to_id("<|im_end|>")}
    assert JobMaker(model, tokenizer, [3]).make_job({"prompt": "x"}, Options(), "").request.stop_ids == {256, 3}


def test_texts_not_done_are_dropped_when_nobody_asks_any_more(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    engine = WatchedEngine(model, rows=4, tokens=96)
    prompts = read_lines("a\nb\nc", "f", {"max_new_tokens": 50, "ignore_eos": True})
    texts = follow(engine, JobMaker(model, tokenizer).make_jobs(prompts), tokenizer)
    next(texts)
    texts.close()
    assert engine.aborted == [(0,), (1,), (2,)]


def test_prompts_of_an_encoder_decoder_are_its_sources(tmp_path, monkeypatch, capsys):
    model = zoo.build("t5-small", ["d_model=32", "n_layers=1", "n_heads=2", "head_dim=16", "d_ff=32"], device="cpu")
    tokenizer = make_byte_tokenizer()
    store.save_model(model, tmp_path / "t5", tokenizer)
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("one source\na longer source\n")
    args = ["--prompt-file", "p.txt", "--out", "o.jsonl", "--max-new-tokens", "4", "--temperature", "0"]
    assert run(["generate", "--checkpoint", "t5", "--device", "cpu", *args]) == 0
    assert JobMaker(model, tokenizer).make_job({"prompt": "one source"}, Options(), "").before == ()
    for row in rows("o.jsonl"):
        ids = tokenizer.encode(row["prompt"])
        expected = generate(store.load(tmp_path / "t5"), torch.tensor([ids]), 4, stop_ids=[256])[0, 1:].tolist()
        assert row["tokens"] == expected
        assert row["text"] == tokenizer.decode([token for token in expected if token < 256])


# ---------------------------------------------------------------- what is refused, and what is left


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (["--prompt-file", "p.txt", "--prompt", "x"], "prompt: --prompt-file has the prompts"),
        (["--prompt-file", "none.txt"], "prompt_file: cannot read none.txt, found No such file or directory"),
        (["--prompt-file", "empty.txt"], "prompt_file: empty.txt has no prompt"),
        (["--prompt-format", "jsonl"], "prompt_format: needs a file of prompts"),
        (["--resume"], "resume: there is no file"),
        (["--force"], "force: there is no file"),
        (["--force", "--resume", "--out", "x"], "resume: --force would replace"),
        (["--logprobs", "2"], "logprobs: are written with the texts (--out FILE)"),
        (["--n", "0"], "n: is 0, not a whole number from 1 to 128"),
        (["--stop", ""], "stop: is ['']"),
        (["--stop-id", "-1"], "stop_ids: is [-1]"),
        (["--template", "chatml"], "template: is for messages"),
        (["--prompt-file", "p.txt", "--template", "chatml"], "template: is for messages, and there are none"),
        (["--prompt", "x", "--out", "there.jsonl"], "out: there.jsonl is there already (--resume"),
        (["--prompt", "x", "--out", "there.jsonl", "--resume"], "out: there.jsonl:1 is no line of results"),
        (["--prompt-file", "far.jsonl", "--out", "o"], "far.jsonl:2: ids: tokens from 70 to 999"),
    ],
)
def test_what_cannot_be_done_costs_one_line_and_nothing_is_written(generating, args, fault):
    Path("p.txt").write_text("x\n")
    Path("empty.txt").write_text("\n \n")
    Path("there.jsonl").write_text("mine\n")
    Path("far.jsonl").write_text('{"prompt": "a"}\n{"ids": [70, 999]}\n')
    said = generating(*args, code=2)
    assert said.err.splitlines()[-1].startswith(f"zoo: error: {fault}")
    assert said.out == ""
    assert not Path("o").exists()
    assert Path("there.jsonl").read_text() == "mine\n"


def test_a_checkpoint_that_is_not_there_leaves_old_results_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("o.jsonl").write_text("old\n")
    assert run(["generate", "--prompt", "x", "--checkpoint", "gone", "--out", "o.jsonl", "--force"]) == 2
    assert Path("o.jsonl").read_text() == "old\n"


def test_resuming_does_what_is_missing_and_gives_what_one_go_gives(generating):
    Path("p.txt").write_text("".join(f"prompt {i}\n" for i in range(6)))
    args = ["--prompt-file", "p.txt", "--seed", "1", "--max-new-tokens", "4", "--n", "2"]
    generating(*args, "--out", "whole.jsonl")
    whole = Path("whole.jsonl").read_text().splitlines(keepends=True)
    # Two prompts are done; of a third there is one sample, and half a line of the other.
    Path("part.jsonl").write_text("".join(whole[:5]) + whole[5][:20])
    said = generating(*args, "--out", "part.jsonl", "--resume")
    assert "2 of 6 prompts are done already" in said.err
    assert sorted(Path("part.jsonl").read_text().splitlines(keepends=True)) == sorted(whole)
    again = generating(*args, "--out", "part.jsonl", "--resume")
    assert "6 of 6 prompts are done already" in again.err
    assert sorted(Path("part.jsonl").read_text().splitlines(keepends=True)) == sorted(whole)
    for other in (["--seed", "2"], ["--top-k", "3"], ["--n", "3"], ["--max-new-tokens", "5"]):
        said = generating(*args, *other, "--out", "part.jsonl", "--resume", code=2).err
        assert "part.jsonl:1 was written by another seed or other options (--force, or another file)" in said
    said = generating(*args, "--dtype", "bf16", "--out", "part.jsonl", "--resume", code=2).err
    assert "part.jsonl:1 was written by another model, or in another precision (--force, or another file)" in said
    Path("p.txt").write_text("another prompt\n" * 6)
    assert "part.jsonl:1 is of other prompts" in generating(*args, "--out", "part.jsonl", "--resume", code=2).err
    generating(*args, "--out", "part.jsonl", "--force")
    assert {row["prompt"] for row in rows("part.jsonl")} == {"another prompt"}


def test_resuming_with_another_model_is_refused_and_with_a_copy_of_the_model_is_not(checkpoint, tmp_path, capsys):
    args = ["--prompt", "ab", "--max-new-tokens", "2", "--temperature", "0", "--device", "cpu", "--out"]
    out, same = str(tmp_path / "o.jsonl"), shutil.copytree(checkpoint, tmp_path / "same")
    other = tmp_path / "other"
    model = store.load(checkpoint)
    model.get_parameter("norm.weight").data[0] += 1
    store.save_model(model, other, make_byte_tokenizer())
    assert run(["generate", "--checkpoint", str(checkpoint), *args, out]) == 0
    assert run(["generate", "--checkpoint", str(same), *args, out, "--resume"]) == 0
    capsys.readouterr()
    assert run(["generate", "--checkpoint", str(other), *args, out, "--resume"]) == 2
    assert f"zoo: error: out: {out}:1 was written by another model" in capsys.readouterr().err


PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from zoo.cli import main
main()
"""


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(checkpoint, tmp_path):
    lines = [{"prompt": "short", "max_new_tokens": 2}, {"prompt": "long", "max_new_tokens": 90, "n": 128}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    args = ["generate", "--checkpoint", str(checkpoint), "--device", "cpu", "--ignore-eos", "--prompt-file", "p.jsonl"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *args, "--out", "o.jsonl"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    out, deadline = tmp_path / "o.jsonl", time.monotonic() + 120
    while not (out.exists() and out.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [row["prompt"] for row in rows(out)] == ["short"]
    assert "Traceback" not in err
    assert "1 of 129 texts" in err


def test_every_option_of_a_request_is_read_from_a_file_and_nothing_that_is_no_data():
    assert {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"} <= set(option_names())
    assert "process" not in option_names()


def test_a_text_that_fails_is_told_with_its_line_and_the_reason_and_the_others_are_written(generating):
    barred = {"bad_words": [[token] for token in range(260)]}
    lines = [{"prompt": "a"}, {"prompt": "b", **barred}, {"prompt": "c", **barred}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    why = "token 1 is barred by its options (fewer bad_words, or another logit_bias or process)"
    given = ["--prompt-file", "p.jsonl", "--temperature", "0", "--max-new-tokens", "3"]
    said = generating(*given, "--out", "o.jsonl", code=1)
    assert f"zoo: error: generate: p.jsonl:2: {why} (and 1 more of 3 texts failed)\n" in said.err
    assert [row["index"] for row in rows("o.jsonl")] == [0]
    assert f"--- 2 of 3: b\n(no text: {why})\n" in generating(*given, code=1).out
