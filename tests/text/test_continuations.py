"""Log-likelihoods of continuations: as transformers finds each alone, however they are put together."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from test_eval import GPT2, LLAMA, save
from torch.nn import functional as F

import zoo
from support.tiny_models import model_of
from zoo.errors import ConfigError, ZooError
from zoo.text import continuations
from zoo.text.continuations import Continuation, score_continuations


def draw(count: int, most: int) -> list[Continuation]:
    """Pairs of any length, some of which share their context or all but their last token."""
    chosen = random.Random(5)
    ids = [[chosen.randrange(256) for _ in range(chosen.randrange(2, most))] for _ in range(count)]
    pairs = [Continuation(row[:cut], row[cut:]) for row in ids for cut in {1, len(row) - 1}]
    pairs += [Continuation(row[:-1], [token]) for row in ids[:4] for token in (7, 8, 9)]
    pairs += [Continuation(ids[0], [token] * length) for token in (7, 8) for length in (1, 2, 5)]
    pairs += [Continuation(ids[1], tokens) for tokens in ([3, 4], [3, 5], [3, 4])]
    chosen.shuffle(pairs)
    return pairs


@pytest.mark.parametrize(("config", "limit"), [(LLAMA, 20), (GPT2, 48)], ids=["llama", "gpt2"])
@pytest.mark.parametrize(("together", "least"), [(1, 1), (64, 1), (4096, 32), (4096, 1), (64, 9999)])
def test_each_continuation_is_as_likely_as_alone_by_transformers(config, limit, together, least, tmp_path, monkeypatch):
    folder, told = save(tmp_path / "model", config), []
    monkeypatch.setattr(continuations, "LEAST", least)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    monkeypatch.setattr(continuations, "TOGETHER", {"cpu": together})
    asked = draw(6, limit)
    asked += [Continuation(list(range(40)), list(range(10))), Continuation([1], list(range(limit)))]  # loses some; fits
    found = score_continuations(zoo.load(folder), asked, limit, told.append)
    assert sum(told) == len(asked)
    for (context, tokens), (logprob, greedy) in zip(asked, found, strict=True):
        row = torch.tensor([[*context, *tokens][-(limit + 1) :]])
        with torch.no_grad():
            logits = theirs(row[:, :-1]).logits[0, -len(tokens) :]
        target = torch.tensor(tokens)
        assert logprob == pytest.approx(-float(F.cross_entropy(logits, target, reduction="sum")), abs=1e-4, rel=1e-5)
        assert greedy == bool((logits.argmax(-1) == target).all())


MIXED = ["pattern=[near,layer]", "layers={near:{attention:{window:4}}}"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["attention=mla"],
        ["position=alibi"],
        ["ffn=moe"],
        ["ffn=moe", "router.capacity=2"],
        ["attention=mamba2"],
        MIXED,
    ],
    ids=str,
)
def test_a_shared_context_is_read_once_where_that_changes_nothing(overrides, monkeypatch):
    model = model_of([*overrides, *(["position=none"] if overrides == ["attention=mamba2"] else [])])
    context = [random.Random(3).randrange(67) for _ in range(25)]
    asked = [Continuation(context, tokens) for tokens in ([1], [2, 3], [2, 4, 5], [9, 9, 9, 9], [2, 3])]
    read: list[int] = []
    seen = model.register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    together = score_continuations(model, asked, 64)
    seen.remove()
    monkeypatch.setattr(continuations, "LEAST", 9999)
    apart = score_continuations(model, asked, 64)
    assert [each.logprob for each in together] == pytest.approx([each.logprob for each in apart], abs=3e-5)
    shared = overrides not in (["attention=mla"], ["ffn=moe", "router.capacity=2"], ["attention=mamba2"], MIXED)
    assert (read == [25 + 1 + 2 + 3 + 1]) == shared


def test_a_short_row_has_the_positions_that_it_has_alone():
    model = model_of(["position=rope_dynamic", "original_max_seq_len=8"])  # whose rotation depends on a row's length
    asked = [Continuation(list(range(30)), [7]), Continuation([3, 9, 3], [4, 5]), Continuation(list(range(12)), [2])]
    together = score_continuations(model, asked, 64)
    alone = [score_continuations(model, [each], 64)[0] for each in asked]
    assert [each.logprob for each in together] == pytest.approx([each.logprob for each in alone], abs=3e-5)


def test_a_model_that_sees_a_prefix_whole_sees_a_context_so():
    model = model_of(["+prefix_lm=true"])
    context = [random.Random(3).randrange(67) for _ in range(40)]
    asked = [Continuation(context, [5, 6]), Continuation(context[:7], [8, 9, 1]), Continuation([*context, 5], [6])]
    found = score_continuations(model, asked, 64)
    for (before, tokens), (logprob, _) in zip(asked, found, strict=True):
        row = torch.tensor([[*before, *tokens[:-1]]])
        with torch.no_grad():
            logits = model(row, prefix=torch.tensor([len(before)])).logits[0, -len(tokens) :]
        assert logprob == pytest.approx(
            -float(F.cross_entropy(logits, torch.tensor(tokens), reduction="sum")), abs=1e-5
        )


def test_what_cannot_be_scored_is_refused():
    model = model_of([])
    with pytest.raises(ConfigError, match="has 9 tokens, the model reads 1 to 8"):
        score_continuations(model, [Continuation([1], list(range(9)))], 8)
    with pytest.raises(ConfigError, match="has 0 tokens"):
        score_continuations(model, [Continuation([1], [])], 8)
    with torch.no_grad():
        model.get_parameter("norm.weight").fill_(float("nan"))
    with pytest.raises(ZooError, match="a log-likelihood is nan"):
        score_continuations(model, [Continuation([1], [2])], 8)
