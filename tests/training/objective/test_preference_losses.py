"""Losses of preferences: TRL's figures, the published formulas, and gradients of the chunked head."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from support.flop_counts import counted
from support.preference_cases import FIGURES, RECORDS, REWARD, UNPAIRED, make_model, save_tokenizer
from zoo.data import DataSettings, prepare
from zoo.data.chat.preference_rows import collate_answers, collate_judged, collate_rated
from zoo.model.loss import IGNORED
from zoo.training.gradient import accumulate_gradient
from zoo.training.objective import DPO, IPO, KTO, ORPO, Reward
from zoo.training.objective.kto import OneAnswerKTO, note_divergence
from zoo.training.run_flops import TrainingFlops

TRL = json.loads(FIGURES.read_text())


def read_rows(folder, records, form: str):
    """Read records as rows, in their order in the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        (folder / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
        words = {"kind": "file", "path": str(save_tokenizer(folder / "words"))}
        node = {"kind": "jsonl", "path": str(folder / "records.jsonl"), "form": form, "tokenizer": words}
        file = prepare(DataSettings.read(node), whole=True).validation
        return [file.read_row(number, 64) for number in range(len(records))]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The four records as rows."""
    return read_rows(tmp_path_factory.mktemp("preferences"), RECORDS, "preference")


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A batch of four judged answers, with the log-probabilities that the starting model gives its rows."""
    rows = read_rows(tmp_path_factory.mktemp("judged"), UNPAIRED, "unpaired")
    with torch.no_grad():
        known = KTO().measure(make_model(0), judge_rows(rows)).view(-1, 4).numpy()
    return judge_rows([row._replace(reference=each) for row, each in zip(rows, known, strict=True)])


def judge_rows(rows):
    return collate_judged(rows, [], pad_id=256, seq_len=64, one_shape=False)


def batch_of(rows, reference: torch.Tensor | None = None):
    if reference is not None:
        values = reference.view(-1, 2).numpy().astype(np.float32)
        rows = [row._replace(reference=each) for row, each in zip(rows, values, strict=True)]
    return collate_answers(rows, [], pad_id=256, seq_len=64, one_shape=False)


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


def test_ipo_is_that_of_trl(referenced):
    found = IPO().loss(make_model(1), referenced, weight=1 / 4)
    assert found.total.item() == pytest.approx(TRL["ipo"]["loss"], rel=1e-6)
    for theirs, ours in {"rewards/chosen": "reward_chosen", "rewards/margins": "reward_margin"}.items():
        assert float(found.terms[ours]) == pytest.approx(TRL["ipo"][theirs], abs=1e-5)


@pytest.mark.parametrize("row", range(4))
def test_orpo_of_a_record_is_that_of_trl(rows, row):
    found, theirs = ORPO().loss(make_model(1), batch_of(rows[row : row + 1])), TRL[f"orpo {row}"]
    assert found.total.item() == pytest.approx(theirs["loss"], abs=1e-5)
    names = {"nll": "nll_loss", "reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected"}
    for ours, name in names.items():
        assert float(found.terms[ours]) == pytest.approx(theirs[name], abs=1e-5)


def test_orpo_is_a_mean_over_records_and_its_formula(rows):
    model, batch = make_model(1).double(), batch_of(rows)
    found = ORPO(beta=0.25).loss(model, batch, weight=1 / 4)
    found.total.backward()
    theirs = make_model(1).double()
    log_p = theirs(batch.input_ids).logits.log_softmax(-1)
    losses = []
    for chosen, rejected in zip(range(0, 8, 2), range(1, 8, 2), strict=True):  # Hong et al., 2024, equations 3 to 7
        odds = []
        for row in (chosen, rejected):
            learned = batch.targets[row] != IGNORED
            mean = log_p[row, learned].gather(1, batch.targets[row, learned][:, None]).mean()
            odds.append(mean - torch.log(1 - mean.exp()))
        last = int((batch.targets[chosen] != IGNORED).nonzero().max())
        following = torch.cat([batch.input_ids[chosen, 1 : last + 1], batch.targets[chosen, last : last + 1]])
        nll = -log_p[chosen, : last + 1].gather(1, following[:, None]).mean()
        losses.append(nll - 0.25 * logsigmoid(odds[0] - odds[1]))
    loss = torch.stack(losses).mean()
    loss.backward()
    assert found.total.item() == pytest.approx(loss.item(), rel=1e-6)
    for (name, ours), other in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.allclose(ours.grad, other[1].grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize(("name", "centre"), [("reward", 0.0), ("reward centred", 0.01)])
def test_the_reward_model_is_that_of_trl(rows, name, centre):
    model = make_model(1, *REWARD)
    batch = collate_rated(rows, [], pad_id=256, seq_len=64, one_shape=False)
    found = Reward(centre_coef=centre).loss(model, batch, weight=1 / 4)
    assert found.total.item() == pytest.approx(TRL[name]["loss"], abs=1e-5)
    chosen, rejected = torch.tensor(TRL[name]["rewards"]).view(2, 4)
    with torch.no_grad():
        ours = model(batch.input_ids, attention_mask=batch.attention_mask).logits.view(4, 2)
    assert torch.allclose(ours, torch.stack([chosen, rejected], 1), atol=1e-5)
    assert float(found.terms["reward_margin"]) == pytest.approx(float((chosen - rejected).mean()), abs=1e-5)
    assert float(found.terms["reward_accuracy"]) == float((chosen > rejected).float().mean())
    by_hand = -logsigmoid(chosen - rejected).mean() + centre * (chosen + rejected).square().mean()
    assert found.total.item() == pytest.approx(float(by_hand), abs=1e-5)


WEIGHED = OneAnswerKTO(desirable_weight=1.5, undesirable_weight=0.5)


def estimate_divergence(objective, model, batch) -> torch.Tensor:
    """The mean divergence of a batch's mismatched answers, which can be negative."""
    mismatched = objective.split_passes(batch)[1]._replace(reference=batch.reference[objective.find_learned(batch) + 2])
    with torch.no_grad():
        return objective.sum_divergence(model, mismatched) / objective.targets(batch)


def test_kto_is_that_of_trl(judged):
    model = make_model(1)
    divergence = estimate_divergence(WEIGHED, model, judged)
    assert float(divergence) == pytest.approx(TRL["kto"]["kl"], abs=1e-5)
    found = WEIGHED.loss(model, note_divergence(judged, divergence), weight=1 / 4)
    assert found.total.item() == pytest.approx(TRL["kto"]["loss"], abs=1e-5) and found.targets == 4
    assert float(found.terms["kl"]) == pytest.approx(TRL["kto"]["kl"], abs=1e-5)
    for name in ("chosen", "rejected"):  # two answers each, as means over four
        assert float(found.terms[f"reward_{name}"]) * 2 == pytest.approx(TRL["kto"][f"rewards/{name}"], abs=1e-5)


@pytest.mark.parametrize("form", ["unpaired", "preference"])
def test_kto_costs_what_torch_counts_of_its_passes(judged, rows, form):
    """Mismatched answers are read by a forward pass alone, and the rows that a record lacks are not read."""
    objective, batch = (OneAnswerKTO(), judged) if form == "unpaired" else (KTO(), judge_rows(rows))
    batch = batch._replace(reference=torch.zeros(len(batch.input_ids)))
    model = make_model(1)
    with counted(model) as measured:
        divergence = estimate_divergence(objective, model, batch)
    with counted(model) as trained, torch.no_grad():
        objective.loss(model, note_divergence(batch, divergence))
    flops = TrainingFlops(model.spec, objective).count(batch)
    assert flops == 3 * trained.visible + measured.visible


@pytest.mark.parametrize("shift", [-5.0, 0.0, 2.0])
def test_kto_is_its_formula_and_so_is_its_gradient(judged, shift):
    model, theirs = make_model(1).double(), make_model(1).double()
    batch = judged._replace(reference=judged.reference - shift)  # a divergence below 0 is cut off
    divergence = estimate_divergence(WEIGHED, model, batch)
    found = WEIGHED.loss(model, note_divergence(batch, divergence), weight=1 / 4)
    found.total.backward()
    ratios = (sum_log_probs(theirs, batch) - batch.reference).view(4, 4)
    mismatched = torch.cat([ratios[[0, 3], 2], ratios[[1, 2], 3]])  # of records 0 and 3 the answer is good
    kl = max(mismatched.mean().item(), 0)
    gains = torch.cat([ratios[[0, 3], 0] - kl, kl - ratios[[1, 2], 1]])
    weights = torch.tensor([1.5, 1.5, 0.5, 0.5])
    loss = (weights * (1 - (0.1 * gains).sigmoid())).mean()  # Ethayarajh et al., 2024, equation 8
    loss.backward()
    assert found.total.item() == pytest.approx(loss.item(), rel=1e-6)
    for (name, ours), other in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.allclose(ours.grad, other[1].grad, rtol=1e-4, atol=1e-7), name


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


@pytest.mark.parametrize("objective", [DPO(), IPO(), ORPO()])
@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_have_the_loss_and_gradient_of_the_batch(referenced, objective, parts):
    whole, split = make_model(1), make_model(1)
    one = accumulate_gradient(whole, objective, referenced, 1, nullcontext)
    other = accumulate_gradient(split, objective, referenced, parts, nullcontext)
    assert one.targets == other.targets == 4
    for name, value in one.terms.items():
        assert float(other.terms[name]) == pytest.approx(float(value), abs=1e-6)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_a_mixtures_own_losses_are_added_once(referenced, judged):
    experts = ["ffn=moe", "n_experts=4", "router=softmax_topk", "router.balance_coef=0.1"]
    model = make_model(1, *experts).train()
    for objective, batch in ((DPO(), referenced), (ORPO(), referenced), (OneAnswerKTO(), judged)):
        if objective.kind == "kto":
            batch = note_divergence(batch, estimate_divergence(objective, model, batch))
        found = objective.loss(model, batch, weight=1 / 4)
        assert float(found.terms["balance"]) > 0
        assert found.total.item() == pytest.approx(float(found.terms["loss"] + found.terms["balance"]), abs=1e-6)
        alone = objective.loss(make_model(1, *experts).eval(), batch, weight=1 / 4)
        assert alone.total.item() == pytest.approx(float(found.terms["loss"]), abs=1e-5)


def test_the_starting_weights_have_a_loss_of_log_2(rows, referenced):
    assert DPO().loss(make_model(0), referenced, weight=1 / 4).total.item() == pytest.approx(math.log(2), abs=1e-6)
