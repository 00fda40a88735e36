"""A draft model: which one can guess, said before anything is loaded; and what is written with it."""

import pytest
import torch

import zoo
from support.packaged_specs import load, make_loud
from support.request_schedules import check_guesser
from support.tiny_decoders import TINY
from support.tiny_generators import make, make_draft
from zoo.checkpoint import store
from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.generation.engine import Engine, serving
from zoo.generation.request import Request

SMALL = ["d_model=32", "n_layers=1", "n_heads=2", "n_kv_heads=2", "head_dim=16", "d_ff=32", "max_seq_len=64"]
WOULD = "(a decoder of attention with the model's tokenizer)"


@pytest.mark.parametrize(
    ("draft", "line"),
    [
        (lambda: make("t5"), f"draft: is an encoder-decoder {WOULD}"),
        (lambda: make("prefix"), f"draft: reads its prompt both ways {WOULD}"),
        (lambda: make("mamba and gqa"), f"draft: has recurrent layers, whose states cannot be taken back {WOULD}"),
        (
            lambda: zoo.build(load(TINY, ["vocab_size=70"]), device="cpu"),
            f"draft: has a vocabulary of 70, the model 61 {WOULD}",
        ),
        (
            lambda: zoo.build(load(TINY, ["position=learned", "max_seq_len=40"]), device="cpu"),
            "draft: its positions end at 40, and 41 tokens may come (fewer, or another)",
        ),
        (lambda: make("ntk"), "draft: its positions end at 20, and 41 tokens may come (fewer, or another)"),
    ],
)
def test_a_model_that_cannot_guess_is_refused(draft, line):
    with pytest.raises(ConfigError) as refused:
        Engine(make("attention=gqa"), rows=1, tokens=41, draft=draft(), speculate=2)
    assert str(refused.value) == line


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of bytes, one like it that guesses, and others that cannot."""
    place, tokenizer = tmp_path_factory.mktemp("drafts"), make_byte_tokenizer()
    sizes = {"model": [], "small": [], "other": ["vocab_size=300"], "experts": ["ffn=moe"]}
    for name, overrides in sizes.items():
        model = make_loud(zoo.build("llama-tiny", ["vocab_size=257", *SMALL, *overrides], device="cpu"), (257,))
        if name == "small":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * parameter.abs().mean() * torch.randn(parameter.shape)
        store.save_model(model, place / name, tokenizer)
    return place


def generate(folders, *args, model="model"):
    return run(["generate", "--checkpoint", str(folders / model), "--device", "cpu", "--prompt", "abcab", *args])


@pytest.mark.parametrize(
    ("model", "args", "line"),
    [
        ("model", ["--draft", "other"], f"draft: has a vocabulary of 300, the model 257 {WOULD}"),
        ("model", ["--draft", "absent"], "absent: no such folder"),
        ("model", ["--draft", "small", "--ngram", "3"], "ngram: excludes --draft (one of the two)"),
        ("model", ["--ngram", "3", "--deterministic"], "speculate: a draft's tokens are computed together"),
        ("experts", ["--deterministic"], "deterministic: an expert's products differ in bits"),
    ],
)
def test_what_cannot_guess_is_refused_before_the_model_is_loaded(folders, model, args, line, monkeypatch, capsys):
    monkeypatch.setattr(store, "load", lambda *args: pytest.fail("a model was loaded"))
    given = [str(folders / each) if each in ("other", "small", "absent") else each for each in args]
    assert generate(folders, *given, model=model) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1


def test_a_draft_changes_no_greedy_text(folders, capsys, monkeypatch):
    said, rows = [], []
    count = Engine._propose

    def watched(engine, chunks):
        found = count(engine, chunks)
        rows.append(max((len(chunk.draft) for chunk in found), default=0))
        return found

    monkeypatch.setattr(Engine, "_propose", watched)
    for args in ([], ["--draft", str(folders / "small"), "--draft-tokens", "3"]):
        assert generate(folders, "--temperature", "0", "--max-new-tokens", "40", *args) == 0
        said.append((capsys.readouterr().out, len(rows)))
    assert said[0][0] == said[1][0]
    assert said[1][1] - said[0][1] < 0.8 * said[0][1]  # fewer steps: some guesses held
    assert max(rows) == 3


def test_the_drafts_of_the_schedules_are_partly_right():
    """Else what is taken back, and what is kept, would not both be tried."""
    model, draft = make("attention=gqa"), make_draft("attention=gqa")
    ids = torch.randint(61, (1, 80), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        agree = (model(ids).logits.argmax(-1) == draft(ids).logits.argmax(-1)).float().mean()
    assert 0.3 < agree < 0.99


@pytest.mark.parametrize("undone", [3, 0])
def test_a_draft_model_keeps_of_its_window_what_it_may_come_back_to(undone):
    """Of a window of a page and a token, three tokens at once. The inverse: a store that does not expect it."""
    model, faults = make("window beyond a page"), []
    for first in range(8):
        engine = Engine(model, rows=1, tokens=92, draft=make_draft("window beyond a page"), speculate=3)
        assert engine.proposer.store.undone == 3
        engine.proposer.store.undone = undone
        engine.add(Request(ids=[first, 1, 2], max_new_tokens=89))
        with serving(model):
            while engine.busy:
                engine.step()
                faults += check_guesser(engine)
    assert bool(faults) == (undone == 0)
