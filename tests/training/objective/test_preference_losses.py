"""Losses of preferences: TRL's figures, the published formulas, and gradients of the chunked head."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from support.preference_cases import FIGURES, RECORDS, make_model, save_tokenizer
from zoo.data import DataSettings, prepare
from zoo.data.chat.preference_rows import collate_answers
from zoo.model.loss import IGNORED
from zoo.training.gradient import accumulate_gradient
from zoo.training.objective import DPO

TRL = json.loads(FIGURES.read_text())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The four records as rows, in their order in the file."""
    folder = tmp_path_factory.mktemp("preferences")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        (folder / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in RECORDS))
        words = {"kind": "file", "path": str(save_tokenizer(folder / "words"))}
        node = {"kind": "jsonl", "path": str(folder / "records.jsonl"), "form": "preference", "tokenizer": words}
        file = prepare(DataSettings.read(node), whole=True).validation
        return [file.read_row(number, 64) for number in range(4)]


def batch_of(rows, reference: torch.Tensor | None = None):
    if reference is not None:
        values = reference.view(-1, 2).numpy().astype(np.float32)
        rows = [row._replace(reference=each) for row, each in zip(rows, values, strict=True)]
    return collate_answers(rows, [], eos_id=256, seq_len=64, one_shape=False)


def sum_log_probs(model, batch) -> torch.Tensor:
    """Log-probabilities of answers [2B], written out: whole logits, softmax, gather, sum."""
    log_p = model(batch.input_ids).logits.float().log_softmax(-1)
    own = log_p.gather(2, batch.targets.clamp(min=0)[..., None])[..., 0]
    return (own * (batch.targets != IGNORED)).sum(1)


@pytest.fixture(scope="module")
def referenced(rows):
    """A batch with the log-probabilities that the starting model gives its answers."""
    with torch.no_grad():
        return batch_of(rows, DPO().measure(make_model(0), batch_of(rows)))


def test_log_probabilities_of_rows_are_those_of_whole_logits(rows):
    model, batch = make_model(1), batch_of(rows)
    with torch.no_grad():
        assert torch.allclose(DPO(chunk_mib=1).measure(model, batch), sum_log_probs(model, batch), atol=1e-4)


def test_dpo_is_that_of_trl(referenced):
    found = DPO().loss(make_model(1), referenced)
    names = {"rewards/chosen": "reward_chosen", "rewards/rejected": "reward_rejected", "loss": "loss"}
    names |= {"rewards/accuracies": "reward_accuracy", "rewards/margins": "reward_margin"}
    for theirs, ours in names.items():
        assert float(found.terms[ours]) / 4 == pytest.approx(TRL["dpo"][theirs], abs=1e-5)
    assert found.total.item() == found.terms["loss"].item()


def test_label_smoothing_mixes_the_loss_with_that_of_swapped_answers(referenced):
    smoothed = DPO(label_smoothing=0.2).loss(make_model(1), referenced, weight=1 / 4).total
    assert smoothed.item() == pytest.approx(0.8 * TRL["dpo"]["loss"] + 0.2 * TRL["dpo swapped"]["loss"], abs=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_is_its_formula_and_so_is_its_gradient(referenced, beta):
    model, theirs = make_model(1).double(), make_model(1).double()
    found = DPO(beta=beta).loss(model, referenced, weight=1 / 4)
    found.total.backward()
    ratios = (sum_log_probs(theirs, referenced) - referenced.reference).view(4, 2)
    loss = -logsigmoid(beta * (ratios[:, 0] - ratios[:, 1])).mean()  # Rafailov et al., 2023, equation 7
    loss.backward()
    assert found.total.item() == pytest.approx(loss.item(), rel=1e-6)
    for (name, ours), other in zip(model.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours.grad, other.grad, rtol=1e-4, atol=1e-7), name


def test_chunks_of_the_head_change_nothing(referenced, monkeypatch):
    def gradients():
        model = make_model(1)
        DPO().loss(model, referenced, weight=1 / 4).total.backward()
        return [each.grad for each in model.parameters()]

    whole = gradients()
    monkeypatch.setattr(
        "zoo.model.loss.split_evenly", lambda count, most: (slice(n, n + 3) for n in range(0, count, 3))
    )
    for one, other in zip(whole, gradients(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_have_the_loss_and_gradient_of_the_batch(referenced, parts):
    whole, split = make_model(1), make_model(1)
    from contextlib import nullcontext

    one = accumulate_gradient(whole, DPO(), referenced, 1, nullcontext)
    other = accumulate_gradient(split, DPO(), referenced, parts, nullcontext)
    assert one.targets == other.targets == 4
    for name, value in one.terms.items():
        assert float(other.terms[name]) == pytest.approx(float(value), abs=1e-6)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_the_starting_weights_have_a_loss_of_log_2(rows, referenced):
    assert DPO().loss(make_model(0), referenced, weight=1 / 4).total.item() == pytest.approx(math.log(2), abs=1e-6)
