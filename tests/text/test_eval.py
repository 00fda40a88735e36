"""`zoo eval`: likelihoods token by token as transformers gives them, a run's own validation loss, refusals."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

import zoo
from support.command_lines import TINY
from support.tiny_models import model_of
from zoo.cli import run
from zoo.data.tokenizer import EOS, Tokenizer, make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.run.linear.base import describe_processor
from zoo.run.linear.ways import list_able
from zoo.text import score as scoring
from zoo.text.score import find_start, list_windows

TEXT = "Every token of this text is scored once, é and ∑ too.\r\nHow many windows there are does not matter.\n" * 2
SIZE = {"vocab_size": 300, "bos_token_id": 256, "eos_token_id": 256}
LLAMA = transformers.LlamaConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    **SIZE,
)
GPT2 = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=48, **SIZE)


def save(folder: Path, config: transformers.PretrainedConfig, kind: str = "AutoModelForCausalLM") -> Path:
    """A random model as transformers saves it, with a tokenizer of bytes."""
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.eval().save_pretrained(folder)
    make_byte_tokenizer().save(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("llama"), LLAMA)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("gpt2"), GPT2)


def loss_by_transformers(folder: Path, text: str, context: int, stride: int) -> float:
    """The mean negative log-likelihood of a text's bytes, each from a forward pass of its own: over the tokens before
    it from the start of the first window on that reaches it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids, losses = torch.tensor([256, *text.encode()]), []
    with torch.inference_mode():
        for place in range(1, len(ids)):
            start = max(0, math.ceil((place - context) / stride)) * stride
            logits = model(ids[None, start:place]).logits[0, -1]
            losses.append(F.cross_entropy(logits, ids[place]).double())
    return float(torch.stack(losses).mean())


# ---------------------------------------------------------------- right


@pytest.mark.parametrize(("context", "stride"), [(None, None), (32, 32), (30, 7), (1, 1)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_loss_is_that_of_transformers_token_by_token(request, name, context, stride):
    folder = request.getfixturevalue(name)
    found = zoo.evaluate(folder, [TEXT], context=context, stride=stride)
    long = context or {"llama": 64, "gpt2": 48}[name]
    step = stride or long // 2
    assert (found["context"], found["stride"]) == (long, step)
    assert found["tokens"] == found["bytes"] == len(TEXT.encode())
    (row,) = found["results"]
    assert row["loss"] == pytest.approx(loss_by_transformers(folder, TEXT, long, step), rel=2e-6)
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2))  # a token is a byte here


def test_texts_are_scored_each_by_itself_and_short_ones_too(llama):
    texts = [TEXT, "short", TEXT[:70]]
    found = zoo.evaluate(llama, texts, context=32, stride=8)
    alone = [zoo.evaluate(llama, [text], context=32, stride=8) for text in texts]
    total = sum(each["results"][0]["loss"] * each["tokens"] for each in alone)
    assert found["tokens"] == sum(each["tokens"] for each in alone)
    assert found["results"][0]["loss"] == pytest.approx(total / found["tokens"], rel=1e-6)
    assert alone[1]["results"][0]["loss"] == pytest.approx(loss_by_transformers(llama, "short", 32, 8), rel=2e-6)


@pytest.mark.parametrize("tokens", [1, 2, 9, 10, 11, 31])
@pytest.mark.parametrize(("context", "stride"), [(4, 2), (4, 4), (7, 1), (40, 20)])
@pytest.mark.parametrize("given", [1, 2, 6])
def test_each_token_is_scored_once_with_enough_before_it(tokens, context, stride, given):
    scored = []
    for start, length, count in list_windows(tokens + given, context, stride, given):
        assert length <= context
        assert start + length < tokens + given
        for place in range(start + length - count + 1, start + length + 1):
            assert place - start >= min(place, context - stride + 1)
            scored.append(place)
    assert scored == list(range(given, tokens + given))


def test_logits_are_there_in_chunks_of_the_tokens_that_are_scored(llama, monkeypatch):
    model, rows = zoo.load(llama), []
    whole = zoo.evaluate(model, [TEXT], tokenizer=llama, context=32, stride=4)
    head = model.head_logits
    monkeypatch.setattr(scoring, "CHUNK", 3 * 300 * 4)
    monkeypatch.setattr(model, "head_logits", lambda hidden: (rows.append(len(hidden)), head(hidden))[1])
    found = zoo.evaluate(model, [TEXT], tokenizer=llama, context=32, stride=4)
    assert found["results"][0]["loss"] == pytest.approx(whole["results"][0]["loss"], rel=1e-6)
    assert max(rows) == 3
    assert sum(rows) == found["tokens"]


@pytest.mark.parametrize("documents", ["true", "false"])
def test_a_runs_validation_loss_is_what_its_training_said(here, capsys, documents):
    whole = ("eval_batches=null", f"data.documents={documents}", "hydra.run.dir=run", "steps=3", "precision=fp32")
    assert run(["train", *TINY, *whole]) == 0
    said = json.loads(Path("run/result.json").read_text())
    capsys.readouterr()
    for folder in ("run", "run/checkpoints", said["checkpoint"], None):
        place = [] if folder is None else [folder]
        assert run(["eval", *place, "--context", "16", "--stride", "16", "--device", "cpu", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["results"]
        assert row["loss"] == pytest.approx(said["val_loss"], rel=1e-6)
        assert row["bits_per_byte"] == pytest.approx(said["bits_per_byte"], rel=1e-6)
    with Path("text.txt").open("a") as file:
        file.write("more")
    assert run(["eval", "run", "--device", "cpu"]) == 2
    assert "its data is not what it was" in capsys.readouterr().err


def test_a_text_opens_with_the_tokens_that_its_tokenizer_puts_before_one(tmp_path):
    from tokenizers.processors import TemplateProcessing

    backend = make_byte_tokenizer().backend
    backend.add_special_tokens(["<s>", "</s>"])
    Tokenizer(backend).save(tmp_path)
    assert find_start(Tokenizer.load(tmp_path), tmp_path) == [256]
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": EOS}))
    assert find_start(Tokenizer.load(tmp_path), tmp_path) == [257]
    backend.post_processor = TemplateProcessing(
        single=f"{EOS} <s> $A </s>", special_tokens=[(EOS, 256), ("<s>", 257), ("</s>", 258)]
    )
    Tokenizer(backend).save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert find_start(tokenizer, tmp_path) == [256, 257]
    stream = scoring.encode("é</s>", tokenizer, "text", [256, 257])
    assert stream.ids.tolist() == [256, 257, *"é".encode(), 258]  # as transformers reads it
    assert (stream.n_scored, stream.n_bytes) == (3, 6)
    tokenizer.split = True
    assert scoring.encode("é</s>", tokenizer, "text", [256, 257]).ids.tolist() == [256, 257, *"é</s>".encode()]


# ---------------------------------------------------------------- what a precision costs

HALF = list_able("fp16", (512, 512), "float32", describe_processor())


@pytest.mark.skipif(not HALF, reason="no way with weights in float16 runs here")
def test_the_second_row_is_the_loss_of_the_rounded_weights(llama, tmp_path):
    """Weights in float16, inputs and sums in float32: as a model whose products have rounded weights."""
    rounded = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(3).copy_(module.weight.half().float())
    rounded.save_pretrained(tmp_path)
    before = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        for module in before.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(3)
    before.save_pretrained(tmp_path / "before")
    make_byte_tokenizer().save(tmp_path)
    make_byte_tokenizer().save(tmp_path / "before")
    lines: list[str] = []
    found = zoo.evaluate(tmp_path / "before", [TEXT], context=32, stride=16, weights="fp16", note=lines.append)
    exact, lower = found["results"]
    assert exact["loss"] == pytest.approx(loss_by_transformers(tmp_path / "before", TEXT, 32, 16), rel=2e-6)
    assert lower["loss"] == pytest.approx(loss_by_transformers(tmp_path, TEXT, 32, 16), rel=2e-6)
    assert abs(lower["loss"] - exact["loss"]) > 1e-5  # the rounding shows, beyond that of float32
    assert lower["loss_difference"] == pytest.approx(lower["loss"] - exact["loss"])
    assert lower["made"].startswith("weights fp16: ")


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_text_that_is_read_at_once_meets_the_rounding_of_a_token_that_is_decoded(llama, weights):
    """A product of many rows rounds as one of a row does."""
    model = model_of(["d_model=64", "d_ff=64"])
    with zoo.prepare(model, weights) as prepared:
        lower = [product for product in prepared.products if product.way.precision == weights]
        assert lower
        with torch.inference_mode():
            x = torch.randn(40, lower[0].columns)
            one_by_one = torch.cat([lower[0].compute(row[None]) for row in x])
            torch.testing.assert_close(lower[0].compute(x), one_by_one, rtol=1e-3, atol=1e-3)
    found = zoo.evaluate(llama, [TEXT], weights=weights)
    with zoo.prepare(zoo.load(llama), weights) as prepared:
        decoding = {product.way.name for product in prepared.products}
    assert set(re.findall(r"× (\w+)", found["results"][1]["made"])) == decoding


def test_a_model_that_is_given_is_afterwards_what_it_was(llama):
    model = zoo.load(llama).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (zoo.evaluate(model, [TEXT], tokenizer=llama, context=32, weights=w) for w in ("bf16", None))
    assert first["results"][0] == second["results"][0]
    assert first["results"][1]["weights"] == "bf16"
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---------------------------------------------------------------- the verb


def test_the_verb_prints_a_row_for_each_precision_and_says_how_it_read(llama, tmp_path, capsys, monkeypatch):
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    assert run(["eval", str(llama), "--file", str(tmp_path / "a.txt"), "--weights", "bf16", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    expected = zoo.evaluate(llama, [TEXT])
    assert f"{expected['tokens']:,} tokens, {len(TEXT.encode()):,} bytes" in out
    assert "windows of 64 tokens, one every 32: each token is predicted from the 33 to 64 tokens before it" in out
    assert f"{expected['results'][0]['loss']:.4f}" in out
    assert "weights bf16: " in out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + TEXT.encode())))
    assert run(["eval", str(llama), "--file", "-", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["loss"] == pytest.approx(expected["results"][0]["loss"])


@pytest.mark.parametrize(
    ("content", "args", "fault"),
    [
        (b"", (), "file: text.txt: is empty, so there is nothing to score (a text)"),
        (b"fine \xff", (), "file: text.txt is not UTF-8, found byte 0xff at 5 (convert it)"),
        (None, (), "file: cannot read text.txt, found No such file or directory (a UTF-8 file)"),
        (b"fine", ("--stride", "9", "--context", "8"), "stride: is 9, not a whole number from 1 to context=8"),
        (b"fine", ("--stride", "0"), "stride: is 0, not a whole number from 1 to context=48"),
        (
            b"fine",
            ("--context", "49"),
            "context: is 49, not a whole number from 1 to 48, where the model's positions end",
        ),
        (
            b"fine",
            ("--weights", "int8", "--fp8", "weight_only"),
            "weights: int8 was requested together with fp8: weight_only",
        ),
    ],
)
def test_what_is_wrong_costs_one_line(gpt2, tmp_path, monkeypatch, refused, content, args, fault):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("text.txt").write_bytes(content)
    (line,) = refused("eval", str(gpt2), "--file", "text.txt", "--device", "cpu", *args)
    assert line.startswith(fault)


def test_folders_that_cannot_be_evaluated_say_why(gpt2, tmp_path, refused, capsys):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = transformers.BertConfig(vocab_size=300, **size)
    t5 = transformers.T5Config(vocab_size=300, d_model=32, d_kv=16, num_heads=2, d_ff=32, num_layers=1)
    save(tmp_path / "bare", GPT2)
    save(tmp_path / "small", transformers.GPT2Config(**{**GPT2.to_dict(), "vocab_size": 120}))
    save(tmp_path / "bert", bert, "AutoModelForMaskedLM")
    save(tmp_path / "t5", t5, "AutoModelForSeq2SeqLM")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    (tmp_path / "text.txt").write_text("text")
    starts = {
        "bare": "tokenizer.path: no such file",
        "small": "tokenizer: gives token 256, the model's vocabulary is 0 to 119 (",
        "bert": "eval: an encoder predicts no next token (data=text data.path=FILE scores masked ones)",
        "t5": "eval: the model is an encoder-decoder",
    }
    capsys.readouterr()  # transformers shows how it writes
    for name, start in starts.items():
        (line,) = refused("eval", str(tmp_path / name), "--file", str(tmp_path / "text.txt"), "--device", "cpu")
        assert line.startswith(start)
    (line,) = refused("eval", str(gpt2), "--device", "cpu")
    assert line.endswith("is no run, so it has no validation split (--file TEXT, or data=text …)")


def test_what_python_gives_is_checked_too(llama):
    model = zoo.load(llama)
    with pytest.raises(ConfigError, match="a model alone does not read text"):
        zoo.evaluate(model, ["text"])
    with pytest.raises(ConfigError, match="has no validation split of its own"):
        zoo.evaluate(model, tokenizer=llama)
    with pytest.raises(ConfigError, match="texts: there are none"):
        zoo.evaluate(llama, [])
    with pytest.raises(ConfigError, match="fp8: the model is given"):
        zoo.evaluate(model, ["text"], tokenizer=llama, fp8="weight_only")
    with pytest.raises(ConfigError) as found:
        zoo.evaluate(llama, ["", "text", ""])
    assert [fault[:26] for fault in found.value.faults] == ["texts: number 1: is empty,", "texts: number 3: is empty,"]


def test_a_loss_that_is_no_number_is_an_error(llama):
    model = zoo.load(llama)
    with torch.no_grad():
        model.get_parameter("norm.weight").fill_(float("nan"))
    with pytest.raises(zoo.ZooError, match="eval: the loss is nan"):
        zoo.evaluate(model, ["text"], tokenizer=llama)
