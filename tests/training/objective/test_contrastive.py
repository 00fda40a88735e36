"""Contrastive learning beside sentence-transformers' losses, the written formula and autograd through whole batches."""

import json
import math
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

import zoo
from support import sentence_losses
from support.minilm import MINILM, needs_minilm
from support.packaged_specs import load
from zoo.data.compared_texts import ComparedTask
from zoo.data.labelled_records import Example, LabelledRow
from zoo.data.rowcode import RowEncoder
from zoo.data.tokenizer import Tokenizer, make_byte_tokenizer
from zoo.data.tokens import Batch
from zoo.run.builder import build
from zoo.training.dropout import Dropout
from zoo.training.gradient import accumulate_gradient
from zoo.training.metrics import RankMetrics
from zoo.training.objective import Context, Contrastive
from zoo.training.objective.contrastive import drawing

ANIMALS = ("cat", "dog", "hen", "cow", "bee", "owl", "pig", "fox", "ape", "emu")


def objective_of(**fields) -> Contrastive:
    return Contrastive.parse({"kind": "contrastive", **fields})


def make_batch(objective, records, tokenizer, spec, seq_len=64) -> Batch:
    """A batch of records as a run makes it, with the rows' numbers."""
    task = ComparedTask(objective.texts)
    examples = [Example("", record, ()) for record in records]
    rows = [
        LabelledRow(torch.tensor(row.ids).numpy(), torch.tensor(row.types).numpy(), task.make_target(example, row, {}))
        for example, row in zip(examples, task.encode(examples, RowEncoder(tokenizer, seq_len, False)), strict=True)
    ]
    collate = objective.collator(Context(spec, tokenizer, seq_len, 0, False, one_shape=False))
    return collate(rows, [(0, 0)] * len(rows))._replace(row_numbers=torch.arange(len(rows)))


def tiny_batch(objective, n_records=6) -> tuple[torch.nn.Module, Batch]:
    """A small encoder that drops values, and records of as many texts as the objective reads."""
    spec = objective.adapt(load("bert-tiny", ["d_model=32", "n_heads=4", "head_dim=8", "d_ff=48", "n_layers=2"]))
    model = build(spec, seed=1)
    texts = [(f"the {name}", f"{name} number {n}", f"no {n}") for n, name in enumerate(ANIMALS)][:n_records]
    records = [each[: objective.n_texts] for each in texts]
    return model, make_batch(objective, records, make_byte_tokenizer(), spec)


def take_gradients(model) -> dict[str, torch.Tensor]:
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return found


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, atol=2e-6 * largest, rtol=1e-4)


# ---------------------------------------------------------------- the loss


@needs_minilm
@pytest.mark.parametrize("name", sentence_losses.CASES)
def test_loss_and_gradient_are_those_of_sentence_transformers(name):
    size, fields = sentence_losses.CASES[name]
    wanted = json.loads(sentence_losses.FILE.read_text())["cases"][name]
    objective = objective_of(**fields, negatives=["negative"][: size - 2], modules=str(MINILM))
    model = zoo.load(MINILM).eval()
    records = [record[:size] for record in sentence_losses.RECORDS]
    batch = make_batch(objective, records, Tokenizer.load(MINILM), model.spec)
    for parts in (1, 3):
        found = accumulate_gradient(model, objective, batch, parts, nullcontext)
        norm = sum(float(each.double().norm()) ** 2 for each in take_gradients(model).values()) ** 0.5
        assert float(found.terms["loss"]) == pytest.approx(wanted["loss"], abs=1e-5, rel=1e-5)
        assert norm == pytest.approx(wanted["gradient"], rel=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"negatives": ["a", "b"], "temperature": 0.2},
        {"negatives": ["a"], "symmetric": True},
        {"dims": [8, 3], "dim_weights": [0.5, 2.0], "symmetric": True},
        {"negatives": ["a"], "symmetric": True, "skip_copies": True},
    ],
)
def test_the_loss_is_the_written_formula(fields):
    objective, n = objective_of(**fields), 5
    vectors = torch.randn(n, objective.n_texts, 8, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(n * objective.n_texts).view(n, -1)
    keys[3, 0], keys[4, 1] = keys[0, 0], keys[1, 1]  # an anchor and a positive that are there twice
    keys[2, -1] = keys[0, 1]  # the last text of a record is the positive of another

    def copies(i, j, k):
        equal = keys[j, k] == keys[i, 1] or keys[j, 0] == keys[i, 0]
        return objective.skip_copies and i != j and bool(equal)

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm())) / objective.temperature

    def surprise(own, others):
        return math.log(sum(math.exp(each) for each in others)) - own

    total = 0.0
    for dim, weight in zip(objective.dims or [8], objective.dim_weights or [1.0], strict=True):
        cut = vectors[..., :dim]
        texts = [(j, k) for j in range(n) for k in range(1, objective.n_texts)]
        for i in range(n):
            own = cosine(cut[i, 0], cut[i, 1])
            loss = surprise(own, [cosine(cut[i, 0], cut[j, k]) for j, k in texts if not copies(i, j, k)])
            if objective.symmetric:
                back = [cosine(cut[j, 0], cut[i, 1]) for j in range(n) if not copies(i, j, 1)]
                loss = (loss + surprise(own, back)) / 2
            total += weight * loss
    assert float(objective.score(vectors, keys, slice(0, n))) == pytest.approx(total, rel=1e-5)


def test_chunks_of_anchors_have_the_gradient_of_all_together():
    objective = objective_of(symmetric=True, skip_copies=True, chunk_mib=1)
    vectors = torch.randn(700, 2, 8, generator=torch.Generator().manual_seed(0))  # 1 MiB: 187 anchors
    leaf = vectors.clone().requires_grad_()
    keys = torch.arange(1400).view(700, 2) % 1000
    loss = objective.score(leaf, keys, slice(0, 700)) / 700
    loss.backward()
    found, gradient = objective.differentiate(vectors, keys, slice(0, 700), 1 / 700)
    torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(gradient, leaf.grad, atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"negatives": ["no"], "dims": [32, 8], "symmetric": True, "skip_copies": True}])
def test_microbatches_have_the_loss_and_the_gradient_of_the_whole_batch(fields):
    objective = objective_of(**fields)
    model, batch = tiny_batch(objective)
    Dropout(attention=0.1, residual=0.2, embedding=0.1, ffn=0.1, layers=0.2).apply(model.train())
    whole = accumulate_gradient(model, objective, batch, 1, nullcontext).terms["loss"]
    wanted = take_gradients(model)
    for parts in (2, 3, 6):
        torch.testing.assert_close(
            accumulate_gradient(model, objective, batch, parts, nullcontext).terms["loss"], whole
        )
        assert_same(take_gradients(model), wanted)


def test_the_second_pass_over_a_microbatch_drops_what_the_first_dropped():
    """With draws from torch's own generator, beside autograd through the vectors of all microbatches."""
    objective = objective_of()
    model, batch = tiny_batch(objective)
    for block in model.train().blocks:
        block.ffn.register_forward_hook(lambda module, args, out: F.dropout(out, 0.3))
    torch.manual_seed(0)
    seeds = torch.randint(1 << 62, (2,)).tolist()
    parts = [Batch(*(None if each is None else each[at : at + 3] for each in batch)) for at in (0, 3)]
    vectors = []
    for part, seed in zip(parts, seeds, strict=True):
        with drawing(seed, torch.device("cpu")):
            vectors.append(objective.embed(model, part)[0])
    loss = objective.score(torch.cat(vectors), batch.targets, slice(0, 6)) / 6
    loss.backward()
    wanted = take_gradients(model)
    torch.manual_seed(0)
    found = accumulate_gradient(model, objective, batch, 2, nullcontext).terms["loss"]
    torch.testing.assert_close(found, loss.detach())
    assert_same(take_gradients(model), wanted)


def test_a_mixtures_own_loss_counts_in_every_microbatch():
    objective = objective_of()
    spec = objective.adapt(load("mixtral-tiny", ["n_layers=1", "router.balance_coef=0.5"]))
    model = build(spec, seed=1)
    batch = make_batch(objective, [("a cat", "it purrs"), ("a dog", "it barks")], make_byte_tokenizer(), spec)
    found = accumulate_gradient(model, objective, batch, 2, nullcontext)
    parts = [Batch(*(None if each is None else each[at : at + 1] for each in batch)) for at in (0, 1)]
    own = [float(loss.detach()) / 2 for part in parts for loss in objective.embed(model, part)[1].losses.values()]
    name = next(name for name in found.terms if name != "loss")
    assert float(found.terms[name]) == pytest.approx(sum(own), rel=1e-5)
    assert sum(int(each.sum()) for each in found.loads) == 2 * int(batch.attention_mask.sum())  # two experts a token


def test_ranks_are_those_of_a_sorted_list_and_copies_of_the_positive_do_not_count():
    vectors = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    vectors[1, 1] = vectors[0, 1]  # a text twice
    keys = torch.arange(120).view(40, 3)
    keys[1, 1] = keys[0, 1]
    metrics = RankMetrics()
    for at in (0, 16, 32):
        metrics.add(vectors[at : at + 16], keys[at : at + 16])
    places = []
    for number in range(40):
        texts = {int(keys[n, k]): vectors[n, k] for n in range(40) for k in (1, 2)}
        order = sorted(texts, key=lambda key: -float(F.cosine_similarity(vectors[number, 0], texts[key], dim=0)))
        places.append(order.index(int(keys[number, 1])) + 1)
    found = metrics.compute()
    assert found["mrr"] == pytest.approx(sum(1 / place for place in places) / 40)
    assert found["accuracy"] == sum(place == 1 for place in places) / 40
