"""Search the learning rate of a ladder at two sizes, and interpolate it for the others.

As for an experiment's arms, the searches have a separate seed and the half of the validation set that the ladder does
not report. Their runs end at the first point of the size, so the rate is the best for the shortest run. At other sizes
log lr is linear in log N, also beyond the two: the optimum follows a power law (DeepSeek LLM, 2024, for compute).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from zoo.disk import write_text
from zoo.errors import Diverged, ZooError
from zoo.jobs.rates import SEED, RateSearch
from zoo.ladder.ladder_plan import Ladder, Rung, set_keys
from zoo.report.history import RunRecord

RATES = "rates.json"

Train = Callable[[Rung], RunRecord]
"""Function that trains a run, unless it is done, and returns its record."""


def tune_rates(ladder: Ladder, folder: Path, train: Train) -> Ladder:
    """Search the learning rate at two sizes of a ladder and write `rates.json`. Return the ladder with a rate for each
    size.

    Raises ZooError if every rate of a size diverged.
    """
    found = {each.params: _search_rate(each, train) for each in ladder.list_searched()}
    if not found:
        return ladder
    results = {str(params): search.to_dict() for params, search in found.items()}
    write_text(folder / RATES, json.dumps(results, indent=1) + "\n")
    rates = {params: float(search.choose()) for params, search in found.items()}
    return replace(ladder, rungs=tuple(_set_rate(each, interpolate_rate(rates, each.params)) for each in ladder.rungs))


def interpolate_rate(rates: dict[int, float], params: int) -> float:
    """Interpolate a size's learning rate from the rates of two sizes. log lr is linear in log N."""
    (low, first), (high, second) = rates.items()
    exponent = math.log(second / first) / math.log(high / low)
    return float(f"{first * (params / low) ** exponent:.3g}")


def find_error_growth(searched: Sequence[int], params: int) -> float:
    """Find the ratio of log lr's standard error at a size to that at the two searched sizes, if these have equal and
    independent errors: below 1 between the two."""
    low, high = searched
    weight = math.log(params / low) / math.log(high / low)
    return math.hypot(1 - weight, weight)


def _search_rate(rung: Rung, train: Train) -> RateSearch:
    short = _end_at_first_point(rung)
    search = RateSearch(rung.rate)
    while not search.finished:
        for place in search.ask():
            rate = search.rate(place)
            one = replace(_set_rate(short, float(rate)), name=f"rates/{rung.params}-{rate}")
            try:
                loss = train(one).result.get("val_loss")
            except Diverged:
                loss = None
            search.tell(place, loss)
    if search.best is None:
        tried = " to ".join(search.rate(end(search.losses)) for end in (min, max))
        raise ZooError(f"{rung.name}: diverged at every learning rate from {tried} (a lower optim.lr)")
    return search


def _end_at_first_point(rung: Rung) -> Rung:
    """Shorten a run to its first point, with the seed and the validation data of a search."""
    steps = rung.lengths.ends[0]
    lengths = replace(rung.lengths, ends=(steps,), trained=rung.lengths.trained[:1])
    short = set_keys(rung, {"steps": steps, "schedule.points": "[]", "seed": SEED, "eval_part": "tuning"})
    return replace(short, lengths=lengths, flops=round(rung.flops * steps / rung.lengths.updates))


def _set_rate(rung: Rung, rate: float) -> Rung:
    return replace(set_keys(rung, {"optim.lr": f"{rate:g}"}), rate=rate)
