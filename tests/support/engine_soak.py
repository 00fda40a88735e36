"""Keep engines of several kinds busy for a while, and say what is left of it.

`-m support.engine_soak SECONDS` prints JSON: how much was done, and how memory, threads and open files went. Requests
join and leave, are aborted, fail, follow grammars, are searched for with beams; rows are taken away; models guess.
"""

import gc
import json
import os
import random
import sys
import threading
import time

import torch

from support.request_schedules import make_schedule
from support.tiny_generators import make, make_draft, make_guides
from zoo.errors import ConfigError
from zoo.generation import invariants
from zoo.generation.engine import Engine, serving
from zoo.generation.request import Request
from zoo.sampling.options import Sampling

KINDS = {
    "attention=gqa": {"speculate": 3, "draft": True},
    "gemma-like": {"speculate": 3},
    "gated_delta and sliding": {"speculate": 2},
    "attention=mla": {"deterministic": True, "budget": 64},
    "chunks and full": {"budget": 7},
    "prefix": {},
    "t5": {"overcommit": 1.0},
}
"""What is served, and how."""


def read_resident() -> float:
    """This process's resident memory in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def count_handles() -> tuple[int, int]:
    """Threads of Python and of the system, and open files."""
    return len(os.listdir("/proc/self/task")) + threading.active_count(), len(os.listdir("/proc/self/fd"))


def fail(ids, logits):
    """Leave a row without a token, after a few."""
    return logits * (float("nan") if len(ids) % 7 == 0 else 1)


class Served:
    """An engine under load, and what it did."""

    def __init__(self, kind: str, *, draft: bool = False, **options) -> None:
        self.model, self.kind, self.rng = make(kind), kind, random.Random(kind)
        self.vocab = min(tower.vocab_size for tower in self.model.spec.towers().values())
        options = {"rows": 4, "tokens": 92, "source": 64, "overcommit": 2.0, **options}
        self.engine = Engine(self.model, draft=make_draft(kind) if draft else None, **options)
        self.before = self._copy_store()
        self.counts = dict.fromkeys(("requests", "samples", "tokens", "aborted", "failed", "refused"), 0)

    def _copy_store(self) -> list:
        """The free pages, owners and names of each pool, and the free slots."""
        store = self.engine.store
        pools = [(sorted(pool._free), list(pool.owners), dict(pool._keys)) for pool in store.pools]
        return [*pools, sorted(store.free_slots)]

    def run_batch(self, seed: int) -> None:
        """Serve the requests of a schedule, some of which fail, while some are aborted and some lose their rows."""
        rng, engine = self.rng, self.engine
        batch = [
            each
            for step in make_schedule(seed, self.vocab, 12, make_guides(self.vocab)).joins.values()
            for each in step
        ]
        batch += [Request(ids=[1, 2, 3], max_new_tokens=20, sampling=Sampling(process=fail))] * rng.choice((0, 1))
        with serving(self.model):
            while batch or engine.busy:
                if batch and rng.random() < 0.4:
                    self._add(batch.pop())
                if rng.random() < 0.02 and engine.live:
                    self._take(engine.abort(rng.choice([*engine.live])))
                if rng.random() < 0.02 and engine.scheduler.running:
                    engine.scheduler.preempt(engine.scheduler.running[-1])
                self._take(engine.step())
        faults = invariants.check_drained(engine)
        assert not faults, f"{self.kind}, batch {seed}: {faults[0]}"

    def _add(self, request: Request) -> None:
        if self.engine.seq2seq and request.prompt_logprobs is not None:
            return
        try:
            self.engine.add(request)
            self.counts["requests"] += 1
        except ConfigError:
            self.counts["refused"] += 1

    def _take(self, events) -> None:
        for event in events:
            self.counts["tokens"] += event.token is not None
            self.counts["samples"] += event.finished is not None
            if event.finished in ("aborted", "failed"):
                self.counts[event.finished] += 1

    def finish(self) -> list[str]:
        """Forget what is kept; what the pools do not have again as they had it."""
        for kept in (self.engine.prefixes, self.engine.sources):
            if kept is not None:
                kept.forget()
        faults = invariants.check_initial(self.engine)
        if self._copy_store() != self.before:
            faults.append("a pool or the slots are not what they were")
        draft = getattr(self.engine.proposer, "store", None)
        if draft is not None and any(pool.available < pool.count or any(pool.owners) for pool in draft.pools):
            faults.append("the draft model holds pages")
        if draft is not None and len(draft.free_slots) < draft.slots:
            faults.append("the draft model holds slots")
        return [f"{self.kind}: {fault}" for fault in faults]


def find_slope(samples: list[tuple[float, float]]) -> float:
    """MiB a minute, by least squares over (seconds, MiB)."""
    times, sizes = zip(*samples, strict=True)
    middle, mean = sum(times) / len(times), sum(sizes) / len(sizes)
    over = sum((t - middle) * (s - mean) for t, s in samples)
    return 60 * over / sum((t - middle) ** 2 for t in times)


def soak(seconds: float) -> dict:
    """Serve for so long; figures about it. Memory is judged over the second half."""
    served = [Served(kind, **options) for kind, options in KINDS.items()]
    for number, each in enumerate(served):
        each.run_batch(number)  # what is made once is made now
    gc.collect()
    handles, begun, memory, seed = count_handles(), time.monotonic(), [], 100
    while (now := time.monotonic() - begun) < seconds:
        served[seed % len(served)].run_batch(seed)
        seed += 1
        if now > seconds / 2 and seed % len(served) == 0:
            gc.collect()
            memory.append((now, read_resident()))
    faults = [fault for each in served for fault in each.finish()]
    total = {name: sum(each.counts[name] for each in served) for name in served[0].counts}
    total["preemptions"] = sum(each.engine.scheduler.preemptions for each in served)
    total["fewest requests of a kind"] = min(each.counts["requests"] for each in served)
    figures = {"slope": find_slope(memory), "resident": memory[-1][1], "samples of memory": len(memory)}
    return {"faults": faults, **total, **figures, "handles": [handles, count_handles()]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(soak(float(sys.argv[1]))))
