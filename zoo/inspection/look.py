# B rows, T tokens
"""Inspect a model on some sequences of text: heads, activations, routing and gradient noise as plain data, and maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.held_out_rows import hold_out
from zoo.data.tokens import Batch, map_tensors, move_batch
from zoo.errors import ConfigError
from zoo.inspection.flow import watch_flow
from zoo.inspection.heads import list_mapless, watch_heads
from zoo.inspection.noise import measure_noise
from zoo.lazy import Tensor, torch
from zoo.model.loss import IGNORED
from zoo.text.reader import longest_text
from zoo.training.eval_parts import check_ids, check_rows
from zoo.training.evaluate import Progress, Subject
from zoo.training.objective import Context, Objective
from zoo.training.objective.base import list_inputs

if TYPE_CHECKING:
    from zoo.run.layer import Model

USUAL_CONTEXT = 256
"""Maximum tokens of a sequence, unless a context is given."""


@dataclass(frozen=True)
class Inspected:
    """The results of an inspection: figures as plain data, and the mean map [H, T, S] of each attention, by its name in
    the figures (`map`)."""

    figures: dict[str, Any]
    maps: dict[str, Tensor]


def inspect_model(
    place: str | Path,
    overrides: Sequence[str] = (),
    *,
    rows: int = 8,
    noise_rows: int = 32,
    context: int | None = None,
    device: str = "cpu",
    note: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> Inspected:
    """Inspect the model of a run, a checkpoint or a Hugging Face folder, in float32.

    The `rows` sequences of `context` tokens are spread evenly over the run's validation split, or over the data in the
    overrides (`data=text data.path=…`), and prepared by the run's objective. `noise_rows` of them are used for the
    gradient noise scale; 0 leaves it out. Raises ConfigError if the data is empty or does not suit the model.
    """
    tell = note or (lambda line: None)
    subject = Subject(place, None, dtype="fp32", device=device, note=tell)
    read, objective, about = read_rows(
        subject, overrides, max(rows, noise_rows), context, progress or (lambda what, done, total: None)
    )
    model = subject.load()
    figures, maps = look(model, read[:rows])
    figures["rows"] = min(rows, len(read))
    noise = measure_noise(model, objective, read[:noise_rows]).describe() if noise_rows else None
    return Inspected({**about, **figures, "noise": noise}, maps)


def read_rows(
    subject: Subject, overrides: Sequence[str], count: int, context: int | None, progress: Progress
) -> tuple[list[Batch], Objective, dict[str, Any]]:
    """Read sequences of a model's evaluation data, each as a batch of one without padding. Return them with the
    objective and a description. Raises ConfigError for data that does not suit the model."""
    plan, data = subject.open_data(list(overrides), context, progress)
    objective, spec = plan.objective, subject.spec
    length = context or min(plan.seq_len or longest_text(spec), USUAL_CONTEXT)
    collate = None
    if not objective.every_token:
        objective.extend(data.tokenizer, length)
        collate = objective.collator(Context(spec, data.tokenizer, length, plan.seed, plan.data.documents))
    check_rows(objective, spec, length, plan.data.documents)
    check_ids(data, spec, added=0)
    held = hold_out(data.held_out, count, length, wanted=count, documents=plan.data.documents, collate=collate)
    rows = [trim(row) for each in held for batch in each.batches for row in split(batch)]
    about = {"model": str(subject.folder), "data": plan.describe(), "objective": objective.kind, "context": length}
    return rows, objective, about


def split(batch: Batch) -> list[Batch]:
    """Split a batch into batches of one."""
    return [map_tensors(batch, lambda each, at=at: each[at : at + 1]) for at in range(len(batch.input_ids))]


def trim(row: Batch) -> Batch:
    """Cut off the padding after the last real token. In a decoder's input, cut after the last target."""
    if row.attention_mask is not None:
        real = int(row.attention_mask.sum())
        width = row.input_ids.shape[1]
        cut = {
            name: value[:, :real]
            for name, value in row._asdict().items()
            if value is not None and value.dim() == 2 and value.shape[1] == width and not name.startswith("decoder")
        }
        if row.decoder_input_ids is not None:
            cut.pop("targets", None)
        row = row._replace(**cut)._replace(attention_mask=None)
    if row.decoder_input_ids is not None:
        last = int((row.targets != IGNORED).nonzero()[-1, 1]) + 1
        row = row._replace(targets=row.targets[:, :last], decoder_input_ids=row.decoder_input_ids[:, :last])
        if row.decoder_documents is not None:
            row = row._replace(decoder_documents=row.decoder_documents[:, :last])
    return row


def look(model: Model, rows: Sequence[Batch]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run batches of one through a model. Return a description of its heads, activations and routings, and the mean
    maps. Raises ConfigError without batches."""
    if not rows:
        raise ConfigError("rows: there are none in the data (more text, or a shorter --context)")
    device = next(model.parameters()).device
    with torch.no_grad(), watch_heads(model) as watcher, watch_flow(model) as flow:
        for row in rows:
            watcher.places.clear()
            flow.places.clear()
            model(**list_inputs(move_batch(row, device)))
    maps, attentions = {}, []
    for at, ((path, call), heads) in enumerate(watcher.calls.items()):
        name = f"attention-{at:03}"
        maps[name] = heads.mean_maps().cpu()
        attentions.append({"map": name, "path": path, "kind": heads.kind, "call": call, "heads": heads.describe()})
    figures = {
        "attentions": attentions,
        "without_maps": list_mapless(model, watcher),
        "activations": [{**each.describe(), "call": call} for (_, call), each in flow.activations.items()],
        "routers": [{**each.describe(), "call": call} for (_, call), each in flow.routings.items()],
    }
    return figures, maps
