"""Heads for a task: their logits and losses beside transformers', what a row's vector is, and what they cost."""

from contextlib import nullcontext

import pytest
import torch
import transformers
from torch.nn import functional as F

import zoo
from support.packaged_specs import load, make_loud, one_in
from zoo.checkpoint import store
from zoo.costs import Setup
from zoo.data import Batch
from zoo.errors import ConfigError
from zoo.model.task_head import pool
from zoo.run.builder import build
from zoo.training.gradient import accumulate_gradient
from zoo.training.objective import Objective
from zoo.training.start.transfer import transfer
from zoo.verify import verify

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
BERT = transformers.BertConfig(**SIZES, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LLAMA = transformers.LlamaConfig(**SIZES, num_labels=3, pad_token_id=0)
NUMBERS = transformers.BertConfig(**{**BERT.to_dict(), "num_labels": 2, "problem_type": "regression"})
TINY = ["n_layers=1", "d_model=32", "n_heads=4", "head_dim=8", "d_ff=48", "vocab_size=60", "max_seq_len=64"]


def objective_of(kind, **fields) -> Objective:
    return Objective.parse({"kind": kind, **fields})


CASES = {  # transformers' class, its config, the objective, and where its last product is
    "classify": (transformers.BertForSequenceClassification, BERT, {"labels": 3}, "classifier"),
    "classify_decoder": (transformers.LlamaForSequenceClassification, LLAMA, {"labels": 3}, "score"),
    "tag": (transformers.BertForTokenClassification, BERT, {"labels": 3}, "classifier"),
    "regress": (transformers.BertForSequenceClassification, NUMBERS, {"n_outputs": 2}, "classifier"),
}


def pair(name, folder):
    """A random model of transformers', ours with its weights, and the objective."""
    kind, config, fields, last = CASES[name]
    torch.manual_seed(0)
    theirs = make_loud(kind(config), tables=(60, 512, 2)).eval()
    whole = type(theirs.base_model)(config)  # a tagger's has no pooler
    whole.load_state_dict(theirs.base_model.state_dict(), strict=False)
    whole.save_pretrained(folder)
    source = store.load(folder)
    objective = objective_of(name.split("_")[0], **fields).settle(source.spec)
    ours = build(objective.adapt(source.spec), device="cpu")
    made = transfer(source.spec, ours.spec, source.state_dict())
    ours.load_state_dict({**ours.state_dict(), **made.held})
    with torch.no_grad():
        ours.head.out.weight.copy_(theirs.get_submodule(last).weight)
        if ours.head.out.bias is not None:
            bias = getattr(theirs.get_submodule(last), "bias", None)
            ours.head.out.bias.copy_(torch.zeros_like(ours.head.out.bias) if bias is None else bias)
    return theirs, ours.eval(), objective, made


def batch_for(name) -> Batch:
    """Padded rows, typed where the model knows types, with targets."""
    drawn = torch.Generator().manual_seed(1)
    ids, mask = torch.randint(1, 60, (4, 9), generator=drawn), torch.ones(4, 9, dtype=torch.long)
    for row, length in enumerate((9, 4, 1, 6)):
        mask[row, length:] = 0
    ids *= mask
    types = None if name == "classify_decoder" else torch.randint(2, (4, 9), generator=drawn) * mask
    targets = torch.randint(3, (4, 1), generator=drawn)
    if name == "tag":
        targets = torch.randint(3, (4, 9), generator=drawn).masked_fill(mask == 0, -100)
        targets[0, 2] = -100  # not the first piece of its word
    if name == "regress":
        targets = torch.randn(4, 1, 2, generator=drawn)
    return Batch(ids, targets, attention_mask=mask, token_type_ids=types)


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients_are_those_of_transformers(name, tmp_path):
    theirs, ours, objective, _ = pair(name, tmp_path)
    batch = batch_for(name)
    inputs = {"attention_mask": batch.attention_mask}
    inputs |= {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
    labels = batch.targets if name == "tag" else batch.targets[:, 0]
    wanted = theirs(batch.input_ids, **inputs, labels=labels)
    wanted.loss.backward()
    with torch.no_grad():
        found = ours(batch.input_ids, **inputs).logits
        metrics = objective_of("classify", labels=3).open_metrics() if name != "regress" else objective.open_metrics()
        count = objective.targets(batch)
        judged = objective.judge(ours, batch, count, metrics) / count
    real = batch.attention_mask.bool() if name == "tag" else ...
    torch.testing.assert_close(found[real], wanted.logits[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(judged, wanted.loss.detach(), rtol=1e-5, atol=1e-5)
    terms, *_ = accumulate_gradient(ours, objective, batch, 2, nullcontext)
    torch.testing.assert_close(terms["loss"], wanted.loss.detach(), rtol=1e-5, atol=1e-5)
    last = theirs.get_submodule(CASES[name][3]).weight.grad
    torch.testing.assert_close(ours.head.out.weight.grad, last, rtol=1e-3, atol=1e-4)
    table = theirs.base_model.get_input_embeddings().weight.grad
    torch.testing.assert_close(ours.embedding.tokens.weight.grad, table, rtol=1e-3, atol=1e-4)


def test_a_pooler_becomes_the_first_product_of_the_head_and_all_else_is_said(tmp_path):
    theirs, _, _, made = pair("classify", tmp_path)
    line = "head: drawn anew, for classes 0, 1, 2, its first product begins as the pooler's"
    assert made.lines == [line] and made.fresh == {"head.out.weight", "head.out.bias"}
    assert torch.equal(made.held["head.transform.weight"], theirs.bert.pooler.dense.weight)
    spec = load("bert-tiny", [])
    other = objective_of("classify", labels=["b", "a"], pooling="mean").adapt(spec)
    tensors = zoo.build(spec, device="meta").state_dict()
    made = transfer(spec, other, tensors)
    assert made.lines == ["head: drawn anew, for classes b, a; the weights' head of kind 'mlm' is left out"]
    again = objective_of("classify").settle(other)
    assert again.labels == ("b", "a") and again.adapt(other) == other  # goes on with the classes that it has
    assert transfer(other, again.adapt(other), zoo.build(other, device="meta").state_dict()).lines == []
    swapped = objective_of("classify", labels=["a", "b"]).settle(other).adapt(other)
    made = transfer(other, swapped, zoo.build(other, device="meta").state_dict())
    assert made.fresh == {"head.out.weight", "head.out.bias"}  # the same size, and other classes


def test_a_padded_row_is_pooled_as_it_is_alone_on_either_side():
    hidden = torch.randn(3, 7, 5)
    alone = {"cls": lambda row: row[0], "mean": lambda row: row.mean(0), "last": lambda row: row[-1]}
    for first, end in ((0, 7), (0, 3), (4, 7), (2, 3)):
        real = torch.zeros(3, 7, dtype=torch.bool)
        real[:, first:end] = True
        for pooling, of in alone.items():
            wanted = torch.stack([of(row[first:end]) for row in hidden])
            torch.testing.assert_close(pool(hidden, real, pooling), wanted)
            if end - first == 7:
                torch.testing.assert_close(pool(hidden, None, pooling), wanted)


HEADS = {
    "sequence": "{kind: sequence, labels: 5, activation: {kind: tanh}}",
    "token": "{kind: token, labels: [a, b]}",
    "regression": "{kind: regression, n_outputs: 3, pooling: mean}",
    "question_span": "{kind: question_span, question_id: 7, activation: {kind: gelu}, norm: {kind: layernorm}}",
}


@pytest.mark.parametrize("kind", one_in(2, HEADS))
def test_a_head_is_priced_as_it_is_built_and_run(kind):
    spec = load("bert-tiny", [*TINY, "~head", f"+head={HEADS[kind]}"])
    rows = verify(spec, Setup(context=64))
    assert [row["name"] for row in rows if not row["equal"]] == [] and len(rows) == 6
    found = zoo.stats(spec)["params"]
    spans = 4 * 32 * 33 + 2 * 32 * 32
    wanted = {"sequence": 32 * 33 + 33 * 5, "token": 33 * 2, "regression": 33 * 3, "question_span": spans}[kind]
    assert found["by_component"]["head"] == wanted and found["total"] == rows[0]["found"]
    free = zoo.stats(load("bert-tiny", [*TINY, "~head", "+head={kind: none}"]), context=64)["flops"]["prefill"]
    products = {"sequence": 2 * 32 * (32 + 5), "token": 64 * 2 * 32 * 2, "regression": 2 * 32 * 3}
    products["question_span"] = (64 * 2 + 4) * 2 * 32 * 32  # two products of each token, four of the question
    assert zoo.stats(spec, context=64)["flops"]["prefill"] == free + products[kind]


@pytest.mark.slow
def test_a_decoder_with_a_head_for_rows_is_priced_too():
    spec = load("llama-tiny", [*TINY, "n_kv_heads=2", "~head", "+head={kind: sequence, labels: 5, pooling: last}"])
    rows = verify(spec, Setup(context=64))
    assert [row["name"] for row in rows if not row["equal"]] == [] and len(rows) == 8


@pytest.mark.parametrize(
    ("model", "head", "line"),
    [
        ("bert-tiny", "{kind: sequence, labels: [a]}", "head.labels: must be two classes at least, found 1"),
        ("bert-tiny", "{kind: token, labels: [a, b, a]}", "head.labels: must be names that differ, found 'a'"),
        ("bert-tiny", "{kind: sequence}", "head.labels: is missing"),
        ("llama-tiny", "{kind: sequence, labels: 2}", "head.pooling: is cls, the first token, and in a decoder that"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused_in_one_line(model, head, line):
    with pytest.raises(ConfigError) as caught:
        load(model, ["~head", f"+head={head}"])
    assert [fault[: len(line)] for fault in caught.value.faults] == [line]


@torch.no_grad()
def test_a_head_for_rows_refuses_what_is_not_one_whole_text():
    spec = load("llama-tiny", [*TINY, "n_kv_heads=2", "~head", "+head={kind: sequence, labels: 2, pooling: last}"])
    model, ids = build(spec, device="cpu"), torch.ones(2, 4, dtype=torch.long)
    assert model(ids).logits.shape == (2, 2) and model(ids, logits_to_keep=0).logits is None
    for inputs, line in (
        ({"documents": torch.zeros_like(ids)}, "documents: the head reads a row as one text"),
        ({"logits_to_keep": 1}, "logits_to_keep: is 1, and the head gives one result for a row"),
    ):
        with pytest.raises(ConfigError, match=line):
            model(ids, **inputs)
    with pytest.raises(ConfigError, match="head is of kind 'sequence', which predicts no token"):
        zoo.generate(model, ids, max_new_tokens=1)


def test_the_squared_loss_is_torchs_in_any_chunks():
    spec = objective_of("regress", n_outputs=2, pooling="mean").adapt(load("bert-tiny", TINY))
    model = build(spec, device="cpu")
    ids, targets = torch.randint(60, (5, 6)), torch.randn(5, 1, 2)
    found = {}
    for chunk in (256, 1 << 20):
        model.zero_grad()
        objective = objective_of("regress", n_outputs=2, pooling="mean")
        loss = objective.weigh({}, 1 / 5, 5)
        object.__setattr__(loss, "chunk", chunk // 16)
        model(ids, targets=targets, loss=loss).loss.backward()
        found[chunk] = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    model.zero_grad()
    F.mse_loss(model(ids).logits, targets[:, 0]).backward()
    for each in found.values():
        wanted = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch.testing.assert_close(each, wanted, rtol=1e-4, atol=1e-6)
