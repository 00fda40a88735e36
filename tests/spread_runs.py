"""Runs the jobs of a JSON file, one after the other, in the processes that torchrun starts: `spread_runs.py JOBS OUT`.

Each is a model, overrides and perhaps the folder of a run that goes on. What each process holds of the last job's
model, gradients and states is written to OUT/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from sent import Sent

import zoo
from zoo.ranks.shards import own_part


class Watch:
    """Counts the bytes of a process while a run trains: of gradients before the update, of states at the end."""

    def __init__(self) -> None:
        self.states = 0
        self.weights = 0
        self.sent: dict[str, float] = {}  # in the second step
        self._mode: Sent | None = None

    def after_update(self, state: Any) -> None:
        if state.step == 1:
            self._mode = Sent()
            self._mode.__enter__()
        elif self._mode is not None:
            self._mode.__exit__(None, None, None)
            self.sent, self._mode = self._mode.bytes, None
        parameters = list(state.model.parameters())
        self.weights = sum(own_part(each).numel() for each in parameters)
        held = [each for of in state.optimizer.state.values() for each in of.values() if torch.is_tensor(each)]
        self.states = sum(own_part(each).numel() * each.element_size() for each in held if each.ndim)


def main(jobs: str, out: str) -> None:
    watch = Watch()
    for model, overrides, resume in json.loads(Path(jobs).read_text()):
        if resume:
            zoo.train(resume=resume, overrides=overrides, callbacks=[watch])
        else:
            zoo.train(model, overrides, callbacks=[watch])
    rank = os.environ.get("RANK", "0")
    told = {name: each for name, each in vars(watch).items() if name[0] != "_"}
    (Path(out) / f"{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
