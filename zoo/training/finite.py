"""Refuse a loss, a gradient or a weight that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.distributed.sharded_tensors import own_part
from zoo.errors import ZooError
from zoo.lazy import torch
from zoo.training.run import Run

LOOKED_AT = {"loss": "loss", "grad_norm": "gradient's norm"}


def refuse_nonfinite(run: Run, terms: Mapping[str, Any]) -> None:
    """Raise ZooError when the loss or the gradient's norm is not finite, unless such updates are skipped."""
    for name, what in LOOKED_AT.items() if run.settings.skip_nonfinite == 0 else ():
        if not math.isfinite(value := float(terms[name])):
            raise ZooError(f"step {run.step}: the {what} is {value}; {describe_what_stays(run)}")


def refuse_nonfinite_weights(run: Run) -> None:
    """Raise ZooError if a tensor to be saved is not finite, and name the first one. Waits for the device once."""
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
    raise ZooError(f"step {run.step}: {what}; {describe_what_stays(run)}")


def describe_what_stays(run: Run) -> str:
    """Say which checkpoint a diverged run still has, and what may keep it from diverging."""
    kept = f"the checkpoint of step {run.saves.step} is whole" if run.saves.step else "no checkpoint was written"
    return f"{kept} (a lower optim.lr, or a longer schedule.warmup)"
