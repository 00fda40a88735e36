"""Options of a request from the command line and from files: each of them acts, and what cannot act is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch

import zoo
from zoo.checkpoint import store
from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.text.jobs import JobMaker
from zoo.text.prompts import Options, read_jsonl

SMALL = ["vocab_size=260", "d_model=32", "n_layers=1", "n_heads=2", "n_kv_heads=2", "head_dim=16", "d_ff=32"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    torch.manual_seed(11)
    model = zoo.build("llama-tiny", [*SMALL, "max_seq_len=256"], device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.25)
    store.save_model(model, folder, make_byte_tokenizer())
    return folder


@pytest.fixture
def tokens_of(checkpoint, tmp_path, monkeypatch, capsys):
    """The tokens that `zoo generate` writes with these options: greedy, from one prompt."""
    monkeypatch.chdir(tmp_path)

    def command(*args: str) -> list[int]:
        common = ["--prompt", "ab", "--temperature", "0", "--max-new-tokens", "24", "--device", "cpu", "--force"]
        assert run(["generate", "--checkpoint", str(checkpoint), *common, "--out", "o.jsonl", *args]) == 0
        capsys.readouterr()
        return json.loads(Path("o.jsonl").read_text())["tokens"]

    return command


def test_penalties_biases_and_barred_words_change_what_is_written(tokens_of):
    plain = tokens_of("--ignore-eos")
    seen = plain[0]
    assert seen not in tokens_of("--ignore-eos", "--logit-bias", f"{seen}=-1e9")
    assert set(tokens_of("--ignore-eos", "--logit-bias", "65=1e9")) == {65}
    once = tokens_of("--ignore-eos", "--presence-penalty", "1e9")
    assert len(set(once)) == len(once)
    assert len(set(plain)) < len(plain)
    assert tokens_of("--ignore-eos", "--frequency-penalty", "1e9") == once  # no token comes twice either way
    text = bytes(token for token in plain if token < 128).decode()
    barred = tokens_of("--ignore-eos", "--bad-words", text[0])
    assert ord(text[0]) in plain and ord(text[0]) not in barred
    ends = tokens_of("--stop-id", str(seen))
    assert ends == [seen]
    later = tokens_of("--stop-id", str(seen), "--min-tokens", "3")
    assert len(later) >= 3 and seen not in later[:3]


def test_typical_p_keeps_typical_tokens(tokens_of):
    drawn = tokens_of("--temperature", "1", "--seed", "1", "--ignore-eos")
    assert drawn != tokens_of("--temperature", "1", "--seed", "1", "--ignore-eos", "--typical-p", "0.05")


def test_a_text_follows_the_schema_that_the_command_line_or_a_file_names(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text(json.dumps(SCHEMA))
    for given in ("schema.json", json.dumps(SCHEMA)):
        for seed in range(3):
            args = ["--prompt", "x", "--json-schema", given, "--temperature", "1", "--seed", str(seed)]
            assert run(["generate", "--checkpoint", str(checkpoint), "--device", "cpu", *args]) == 0
            jsonschema.validate(json.loads(capsys.readouterr().out), SCHEMA)


def test_a_text_follows_a_regular_expression_and_a_grammar(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("g.lark").write_text('start: "yes" | "no" | "may" "be"')
    args = ["--checkpoint", str(checkpoint), "--device", "cpu", "--prompt", "x", "--temperature", "1", "--n", "3"]
    assert run(["generate", *args, "--regex", "[0-9]{4}-[a-f]{2}", "--out", "r.jsonl"]) == 0
    assert run(["generate", *args, "--grammar", "g.lark", "--out", "g.jsonl"]) == 0
    for line in Path("r.jsonl").read_text().splitlines():
        assert re.fullmatch("[0-9]{4}-[a-f]{2}", json.loads(line)["text"])
        assert json.loads(line)["finish_reason"] == "stop"
    for line in Path("g.jsonl").read_text().splitlines():
        assert json.loads(line)["text"] in ("yes", "no", "maybe")


def test_a_grammar_is_compiled_once_for_all_that_follow_it(checkpoint):
    lines = [{"prompt": "a", "regex": "a+"}, {"prompt": "b", "regex": "a+"}, {"prompt": "c", "regex": "b+"}]
    prompts = read_jsonl("\n".join(map(json.dumps, lines)), "f", {"json_schema": SCHEMA})
    jobs = JobMaker(store.load(checkpoint), make_byte_tokenizer()).make_jobs(prompts)
    first, second, third = (job.request.guide for job in jobs)
    assert first is second
    assert first is not third


def test_what_cannot_be_followed_is_refused_with_its_line(checkpoint):
    lines = [
        {"prompt": "a", "regex": "a", "grammar": "b"},
        {"prompt": "a", "regex": "a", "ignore_eos": True},
        {"prompt": "a", "json_schema": 3},
        {"prompt": "a", "bad_words": ["a", [1]]},
        {"prompt": "a", "bad_words": [""]},
    ]
    with pytest.raises(ConfigError) as caught:
        read_jsonl("\n".join(map(json.dumps, lines)), "f", {})
    starts = [
        "regex and grammar: a text follows one",
        "ignore_eos: a grammar's text",
        "json_schema: is 3",
        "bad_words: is",
    ]
    for number, (fault, start) in enumerate(zip(caught.value.faults, [*starts, "bad_words"], strict=True), 1):
        assert fault.startswith(f"f:{number}: {start}")
    encoder = JobMaker(store.load(checkpoint), make_byte_tokenizer())
    bad = [{"prompt": "a", "regex": "("}, {"prompt": "a", "logit_bias": {"999": 1}}, {"prompt": "fine"}]
    with pytest.raises(ConfigError) as caught:
        encoder.make_jobs(read_jsonl("\n".join(map(json.dumps, bad)), "f", {}))
    assert caught.value.faults[0].startswith("f:1: regex: cannot be compiled")
    assert caught.value.faults[1] == "f:2: logit_bias: names token 999, the model's vocabulary is 0 to 259"
    assert len(caught.value.faults) == 2


def test_words_as_text_and_as_tokens_bar_the_same(checkpoint):
    encoder = JobMaker(store.load(checkpoint), make_byte_tokenizer())
    as_text = encoder.make_job({"prompt": "x"}, Options.checked({"bad_words": ["no"]}), "")
    ids = [list(b"no"), list(b" no")]
    as_ids = encoder.make_job({"prompt": "x"}, Options.checked({"bad_words": ids}), "")
    assert as_text.request.sampling == as_ids.request.sampling
    assert as_text.request.sampling.bad_words == (tuple(b"no"), tuple(b" no"))


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (["--logit-bias", "x"], "logit_bias: is 'x', not a token id and a number"),
        (["--json-schema", "none.json"], "json_schema: cannot read none.json"),
        (["--grammar", "none.lark"], "grammar: cannot read none.lark"),
        (["--regex", "("], "regex: cannot be compiled"),
        (["--min-tokens", "-1"], "min_tokens: is -1"),
    ],
)
def test_a_faulty_option_of_the_command_line_costs_one_line(checkpoint, capsys, args, fault):
    assert run(["generate", "--checkpoint", str(checkpoint), "--device", "cpu", "--prompt", "x", *args]) == 2
    assert fault in capsys.readouterr().err.splitlines()[-1]
