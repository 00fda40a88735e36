"""Look for a loss, a gradient or a weight that is no number: skip the update, note the batch, and never save it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError
from zoo.lazy import torch
from zoo.ranks.shards import own_part
from zoo.training.log import NONFINITE

if TYPE_CHECKING:
    from zoo.training.loop import Run

LOOKED_AT = {"loss": "loss", "grad_norm": "gradient's norm"}


def may_update(run: Run, terms: dict[str, Any]) -> bool:
    """Tell whether a step's gradient may change the weights. One that is not finite is counted, and its rows noted.

    Waits for the device, unless `skip_nonfinite` is 0: then nothing is skipped, a CPU looks at once and any other
    device when the metrics are written. Raises ZooError after `skip_nonfinite` such steps in a row.
    """
    most = run.settings.skip_nonfinite
    if most == 0:
        if run.device.type == "cpu":
            refuse_nonfinite(run, terms)
        return True
    found = dict(zip(LOOKED_AT, torch.stack([terms[name].float() for name in LOOKED_AT]).tolist(), strict=True))
    if all(map(math.isfinite, found.values())):
        run.skipped_in_row = 0
        return True
    run.skipped += 1
    run.skipped_in_row += 1
    note_batch(run, found)
    name = next(name for name, value in found.items() if not math.isfinite(value))
    what = f"step {run.step}: the {LOOKED_AT[name]} is {found[name]}"
    if run.skipped_in_row >= most:
        rows = f"their rows are in {run.folder / NONFINITE}"
        raise ZooError(f"{what}, and {most} updates in a row were skipped; {rows}; {describe_what_stays(run)}")
    run.show.say(f"{what}, its update is skipped ({run.skipped_in_row} in a row; {most} end the run)")
    return False


def note_batch(run: Run, found: Mapping[str, float]) -> None:
    """Append the step, what was found, and where each row of its batch lies: source, window and epoch."""
    batches, sources = run.batches, run.batches.sources
    places = [batches.place(row) for row in range(batches.consumed - batches.batch_size, batches.consumed)]
    rows = [{"source": sources[p.source].name, "window": int(p.window), "epoch": int(p.epoch)} for p in places]
    first = batches.consumed - batches.batch_size
    line = {"step": run.step, **{name: str(value) for name, value in found.items()}, "first_row": first, "rows": rows}
    run.records.write_nonfinite(json.dumps(line))


def refuse_nonfinite(run: Run, terms: Mapping[str, Any]) -> None:
    """Raise ZooError when the loss or the gradient's norm is not finite, unless such updates are skipped."""
    for name, what in LOOKED_AT.items() if run.settings.skip_nonfinite == 0 else ():
        if not math.isfinite(value := float(terms[name])):
            raise ZooError(f"step {run.step}: the {what} is {value}; {describe_what_stays(run)}")


def refuse_nonfinite_weights(run: Run) -> None:
    """Raise ZooError with the name of the first tensor to be saved that is not finite. Waits for the device once."""
    state = {name: each for name, each in run.model.state_dict().items() if each.is_floating_point()}
    parts = {name: own_part(each) for name, each in state.items() if each.numel()}
    nothing = torch.zeros(2, device=next(iter(parts.values())).device)  # of what other processes hold
    extremes = [torch.stack(torch.aminmax(each)).float() if each.numel() else nothing for each in parts.values()]
    broken = (~torch.stack(extremes).isfinite().all(1)).long()  # NaN gives NaN
    if not run.world.sum(int(broken.any()))[0]:
        return
    here = [name for name, is_broken in zip(parts, broken.tolist(), strict=True) if is_broken]
    found = run.world.share({name: (int((~parts[name].isfinite()).sum()), state[name].numel()) for name in here})
    name = next(name for each in found for name in each)
    bad, (_, size) = sum(each[name][0] for each in found if name in each), next(e[name] for e in found if name in e)
    what = f"{name} is not finite, found {bad:,} of its {size:,} values"
    raise ZooError(f"step {run.step}: {what}; {describe_what_stays(run)}")


def describe_what_stays(run: Run) -> str:
    """Say what a run that diverged still has, and what would keep it from diverging."""
    kept = f"the checkpoint of step {run.saved} is whole" if run.saved else "no checkpoint was written"
    return f"{kept} (a lower optim.lr, or a longer schedule.warmup)"
