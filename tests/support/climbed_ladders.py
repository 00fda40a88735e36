"""Ladders whose losses are those of laws, in place of training."""

import json
from dataclasses import replace

from zoo.analysis.scaling import Law, fit_law
from zoo.analysis.scaling.points import read_points
from zoo.report.scaling import compare_held

BASE = Law(E=0.9, A=12.0, B=60.0, alpha=0.3, beta=0.32)
LATE = replace(BASE, B=BASE.B * 2**-BASE.beta)
"""A law that needs half the tokens."""


def climb_laws(laws):
    """Make a function that climbs a ladder by the law of its folder's name, in place of `zoo.ladder.climb`. A law comes
    with the FLOPs that it takes for each token and parameter."""

    def climb(ladder, folder, say, bootstrap):
        law, cost = laws[folder.name]
        lines = [
            {"run": rung.name, "params": n, "tokens": d, "loss": law.loss(n, d), "flops": cost * n * d}
            for rung in ladder.rungs
            for n, d in ((rung.params, tokens) for tokens in rung.tokens)
        ]
        folder.mkdir(parents=True)
        (folder / "points.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        fit = fit_law(read_points(folder / "points.jsonl", {}), bootstrap)
        held = fit.points.select(lambda at: fit.points.params[at] == ladder.largest)
        runs = [
            {"run": each.name, "params": each.params, "flops": each.flops, "predicted_seconds": 2.0, "seconds": 1.0}
            | {"val_loss": law.loss(each.params, each.tokens[-1])}
            for each in ladder.rungs
        ]
        found = {"held_out": compare_held(fit, held), "doubt": None, "runs": runs, "fit": fit.to_dict()}
        return {"folder": str(folder), **found}

    return climb
