"""The gradient of a step on a device whose values cannot be read: no work of the host depends on one.

The device is torch's meta device. It has shapes and no values, so that whatever a GPU's host would wait for raises:
`item`, `tolist`, `nonzero`, a mask as an index, a copy to the CPU.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_objectives import KEYS, NODES, context_for, objective_of, rows_of, spec_for

from support.packaged_specs import load, one_in
from support.tiny_models import every_choice, spec_of
from zoo import lazy
from zoo.costs.layer_cut import cut_layers
from zoo.data.tokens import Batch, move_batch
from zoo.distributed.world import ALONE
from zoo.model.loss import IGNORED
from zoo.model.stage import take_chunks
from zoo.run.builder import build
from zoo.training.averages import EMA, MovingAverage
from zoo.training.gradient import WholeModel, accumulate_gradient
from zoo.training.objective import DPO, KTO, Chat, Classify, Contrastive, Distil, Objective, Regress, Seq2Seq, Tag
from zoo.training.objective.base import list_inputs
from zoo.training.objective.distil import TEACHERS
from zoo.training.objective.kto import OneAnswerKTO
from zoo.training.optim import Optim
from zoo.training.pipeline import ChunkModule
from zoo.training.schedule import Schedule
from zoo.training.update import update

META = torch.device("meta")
ROWS, LENGTH = 8, 16
LABELS = {"labels": ("a", "b"), "pooling": "last"}
OTHERS = [Chat(), Seq2Seq(), *(Objective.parse({"kind": each}) for each in ("dpo", "ipo", "orpo", "reward"))]
OTHERS += [
    KTO(),
    OneAnswerKTO(),
    Contrastive(symmetric=True, skip_copies=True, pooling="mean"),
    Distil(teacher="other"),
]
OTHERS += [Classify(**LABELS), Tag(labels=("a", "b")), Regress(n_outputs=2, pooling="last")]


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    """Autocast knows no meta device. Zoo's torch keeps what was once looked up in it, so that both are told."""
    for module in (torch, lazy.torch):
        monkeypatch.setattr(module, "autocast", lambda *_, **__: nullcontext())
        monkeypatch.setattr(module, "is_autocast_enabled", lambda *_: False)
        monkeypatch.setattr(module, "get_autocast_dtype", lambda *_: torch.float32)


def take_gradient(spec, objective, batch):
    """Compute the gradient of a batch, which lies on the CPU, in two microbatches by a model on the meta device."""
    model = build(spec, device="meta").train()
    computing = SimpleNamespace(autocast=nullcontext)
    layout, settings = SimpleNamespace(rows=ALONE), SimpleNamespace(accumulate=2)
    run = SimpleNamespace(device=META, model=model, settings=settings, computing=computing, layout=layout)
    found = accumulate_gradient(model, objective, objective.finish_batch(run, batch), 2, nullcontext)
    assert any(each.grad is not None for each in model.parameters())  # indexers have none
    assert {each.device for each in found.terms.values()} == {META}


@pytest.mark.parametrize("packed", one_in(2, [False, True]), ids=["rows", "packed"])
@pytest.mark.parametrize("name", NODES)
def test_objectives_of_text_read_nothing(name, packed):
    objective = objective_of(name)
    take_gradient(spec_for(name), objective, objective.collator(context_for(name, documents=packed))(rows_of(), KEYS))


def make_batch(objective) -> Batch:
    """Rows whose first tokens are prompts. Of answers alone, the second record's is the worse one, and the first's is
    the better."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 60, (ROWS, LENGTH), generator=generator)
    targets = ids.roll(-1, 1).masked_fill(torch.arange(LENGTH) < 5, IGNORED)
    real, kind = torch.ones_like(ids), type(objective)
    if kind is OneAnswerKTO:
        targets[[1, 3, 4, 6]] = IGNORED
    if kind is Contrastive:
        return Batch(ids.view(4, 2, LENGTH), torch.arange(8).view(4, 2), attention_mask=real.view(4, 2, LENGTH))
    if kind in (Classify, Regress) or objective.kind == "reward":
        targets = torch.zeros(ROWS, 1, 2) if kind is Regress else torch.zeros(ROWS, 1, dtype=torch.long)
    if kind is Tag:
        targets = targets.clamp(max=1)
    masked = kind in (Classify, Regress, Tag) or objective.kind == "reward"
    return Batch(ids, targets, attention_mask=real if masked else None, reference=torch.zeros(ROWS))


@pytest.mark.parametrize("objective", OTHERS, ids=lambda each: type(each).__name__)
def test_objectives_of_records_read_nothing(objective, monkeypatch):
    spec = load("bert-tiny", []) if isinstance(objective, Contrastive | Tag) else spec_of()
    monkeypatch.setitem(TEACHERS, ("other", META), build(spec, device="meta"))
    take_gradient(objective.adapt(spec), objective, make_batch(objective))


@pytest.mark.parametrize("choice", one_in(66, every_choice()), ids=" ".join)
def test_no_part_of_a_model_reads_anything_in_training(choice):
    objective = objective_of("next_token")
    batch = objective.collator(context_for("next_token", documents=True))(rows_of(2, 17), KEYS[:2])
    take_gradient(spec_of(["vocab_size=300", *choice]), objective, batch)


def test_chunks_of_a_pipeline_read_nothing():
    spec, objective = spec_of(["ffn=moe"]), Chat()
    model, batch = build(take_chunks(spec, cut_layers(spec, LENGTH, 2)), device="meta").train(), make_batch(objective)
    first, last = (ChunkModule(model, chunk, objective, nullcontext) for chunk in (0, 1))
    moved = move_batch(batch, META)
    fields = {**list_inputs(moved), "targets": moved.targets}
    for chunk in (first, last):
        chunk.start(1.0, [objective.targets(batch)])
    last(first(moved.input_ids, **fields), **fields).backward()
    assert {each.device for each in last.terms.values()} == {META} and len(last.terms) > 1


class Repeated:
    """One batch again and again, not read ahead."""

    consumed, ahead = 0, None

    def __init__(self, batch):
        self.batch = batch

    def __next__(self):
        return self.batch


@pytest.mark.parametrize("optim", one_in(4, ["adafactor", "lion", "schedule_free", "sgd"]))  # AdamW's is torch's, fused
def test_two_whole_steps_read_nothing(optim):
    spec, objective = spec_of(["ffn=moe", "router=sigmoid_topk"]), KTO()
    model = build(spec, device="meta").train()
    computing, layout = WholeModel(model, objective, 2, nullcontext), SimpleNamespace(rows=ALONE, tokens=ALONE)
    settings = {
        "objective": objective,
        "schedule": Schedule.parse({"kind": "cosine", "warmup": 2}),
        "optim": Optim.parse({"kind": optim}),
        "clip": 1.0,
    }
    settings |= {"accumulate": 2, "steps": 9, "skip_nonfinite": 10, "seq_len": LENGTH, "router_bias_rate": None}
    run = SimpleNamespace(settings=SimpleNamespace(**settings), model=model, computing=computing, layout=layout)
    run.optimizer, run.batches, run.device = run.settings.optim.build(model), Repeated(make_batch(objective)), META
    run.step, run.tokens, run.flops, run.counter, run.counted_ahead, run.uncounted = 0, 0, None, None, None, []
    run.ema = MovingAverage(EMA(decay=0.9), model)
    for _ in range(2):
        found = update(run)
    assert {"loss", "kl", "grad_norm", "load_max"} <= found.keys() and run.step == len(run.uncounted) == 2


def test_every_objective_is_walked_over():
    assert {*NODES, *(each.kind for each in OTHERS)} == Objective.kinds.keys() - {"auto"}


def test_a_count_that_is_not_known_is_read():
    """Without it the test above would see nothing."""
    with pytest.raises(NotImplementedError, match="nonzero"):
        DPO().loss(build(spec_of(), device="meta"), move_batch(make_batch(DPO()), META))
