"""Engines that replay their layers' calls, and such as run them."""

import collections

import zoo
from zoo.run.recording_plan import Recordings


class Running(Recordings):
    """Layers that are run, never recorded."""

    def run(self, number, layer, x, step):
        return layer(x, step)


def serve(model, recordings=None, **options):
    """Tokens and log-probabilities of prompts of three lengths, the second of which ends early; and the recordings."""
    engine = zoo.Engine(model, rows=4, **options)
    engine.passes.recordings = recordings or engine.passes.recordings
    for number, new in enumerate((12, 6, 12)):
        engine.add(zoo.Request(ids=tuple(range(3, 7 + number)), max_new_tokens=new, logprobs=2))
    found = collections.defaultdict(list)
    for event in engine.run():
        found[event.request].append((event.token, event.logprob))
    return found, engine.passes.recordings
