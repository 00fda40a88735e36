"""Refuse a loss, a gradient or a weight that is not finite, and count the updates skipped because of a non-finite
one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoo.distributed.sharded_tensors import own_part
from zoo.errors import Diverged
from zoo.lazy import torch
from zoo.run.late_values import LateValues
from zoo.training.log import NONFINITE
from zoo.training.run import Run, UncountedStep

LOOKED_AT = {"loss": "loss", "grad_norm": "gradient's norm"}


def refuse_nonfinite(run: Run, terms: Mapping[str, Any]) -> None:
    """With `skip_nonfinite` 0, raise Diverged if the loss or the gradient's norm is not finite."""
    for name, what in LOOKED_AT.items() if run.settings.skip_nonfinite == 0 else ():
        if not math.isfinite(value := float(terms[name])):
            raise Diverged(f"step {run.step}: the {what} is {value}; {describe_what_stays(run)}")


def count_skipped(run: Run) -> None:
    """Count the updates skipped since the last count, note their rows, and print a line for each. Waits for the device
    once. Raises Diverged after `skip_nonfinite` skipped updates in a row.

    All processes of a run must call this after the same steps, because it may end the run.
    """
    send_uncounted(run)()


def send_uncounted(run: Run) -> Callable[[], None]:
    """Copy to the host the values needed to count the updates skipped since the last count. Returns the function that
    counts them, as `count_skipped` does; it waits for these steps, but not for later ones."""
    steps, run.uncounted = run.uncounted, []
    found = LateValues(torch.stack([each.found for each in steps])) if steps else None
    return lambda: _count(run, steps, found.read() if found else [])


def _count(run: Run, steps: Sequence[UncountedStep], values: Sequence[Sequence[float]]) -> None:
    for step, both in zip(steps, values, strict=True):
        found = dict(zip(LOOKED_AT, both, strict=True))
        if all(map(math.isfinite, both)):
            run.skipped_in_row = 0
            continue
        run.skipped += 1
        run.skipped_in_row += 1
        note_batch(run, step, found)
        name = next(name for name, value in found.items() if not math.isfinite(value))
        what, most = f"step {step.number}: the {LOOKED_AT[name]} is {found[name]}", run.settings.skip_nonfinite
        if run.skipped_in_row >= most:
            rows = f"their rows are in {run.folder / NONFINITE}"
            raise Diverged(f"{what}, and {most} updates in a row were skipped; {rows}; {describe_what_stays(run)}")
        run.show.say(f"{what}, its update is skipped ({run.skipped_in_row} in a row; {most} end the run)")


def note_batch(run: Run, step: UncountedStep, found: Mapping[str, float]) -> None:
    """Append a line about a skipped step: the values found, and the source, window and epoch of each row."""
    batches, sources = run.batches, run.batches.sources
    first = step.consumed - batches.batch_size
    places = [batches.place(row) for row in range(first, step.consumed)]
    rows = [{"source": sources[p.source].name, "window": int(p.window), "epoch": int(p.epoch)} for p in places]
    line = {
        "step": step.number,
        **{name: str(value) for name, value in found.items()},
        "first_row": first,
        "rows": rows,
    }
    run.records.write_nonfinite(json.dumps(line))


def refuse_nonfinite_weights(run: Run) -> None:
    """Raise Diverged if a tensor to be saved is not finite, and name the first one. Waits for the device once."""
    state = {name: each for name, each in run.model.state_dict().items() if each.is_floating_point()}
    parts = {name: own_part(each) for name, each in state.items() if each.numel()}
    nothing = torch.zeros(2, device=next(iter(parts.values())).device)  # no values on this rank
    extremes = [torch.stack(torch.aminmax(each)).float() if each.numel() else nothing for each in parts.values()]
    broken = (~torch.stack(extremes).isfinite().all(1)).long()  # aminmax of a NaN is NaN
    if not run.world.sum(int(broken.any()))[0]:
        return
    here = [name for name, is_broken in zip(parts, broken.tolist(), strict=True) if is_broken]
    found = run.world.all_gather({name: (int((~parts[name].isfinite()).sum()), state[name].numel()) for name in here})
    name = next(name for each in found for name in each)
    bad, (_, size) = sum(each[name][0] for each in found if name in each), next(e[name] for e in found if name in e)
    what = f"{name} is not finite, found {bad:,} of its {size:,} values"
    raise Diverged(f"step {run.step}: {what}; {describe_what_stays(run)}")


def describe_what_stays(run: Run) -> str:
    """Name the checkpoint that a diverged run still has, and settings that may prevent divergence."""
    kept = f"the checkpoint of step {run.saves.step} is whole" if run.saves.step else "no checkpoint was written"
    return f"{kept} (a lower optim.lr, or a longer schedule.warmup)"
