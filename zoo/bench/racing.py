"""Race libraries: compare their speed with the same weights and threads, each in fresh processes.

A machine's speed drifts, so each round runs every racer once. The rates of two racers are divided round by round, and
the median of these ratios is reported. First, the racers' float32 logits must be equal up to rounding, and so must the
logits or losses of the timed runs. Whether they generate the same tokens is only reported: near ties may be rounded
either way.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.bench import load_time
from zoo.bench.calling import MACHINE, MissingPeer, run_worker
from zoo.bench.race_plan import INSTALL, ISAS, OURS, Race, Racer, list_racers, list_strangers, name_isa
from zoo.bench.race_report import make_report
from zoo.errors import ConfigError, ZooError

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest difference between racers that counts as rounding, as a fraction of the largest value, by dtype."""

Tell = Callable[[str], None]
Answer = dict[str, Any]


def measure_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Divide the largest absolute difference by the largest absolute value of `theirs`; infinite if a value is NaN."""
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return math.inf if any(map(math.isnan, gaps)) else max(gaps) / max(map(abs, theirs))


def require_equal(what: str, values: Mapping[str, Sequence[float]], tolerance: float) -> dict[str, float]:
    """Measure each racer's difference from the first. Raises ZooError for a difference above `tolerance`."""
    (_, ours), *others = values.items()
    gaps = {name: measure_difference(ours, theirs) for name, theirs in others}
    for name, gap in gaps.items():
        if gap > tolerance:
            found = f"differ from ours by {gap:.2g} of the largest"
            raise ZooError(f"{name}: its {what} {found}, at most {tolerance:g} is rounding; nothing is compared")
    return gaps


class Field:
    """The racers that are still in the race. A racer that is missing, fails or cannot do a job leaves the race, with a
    line that says why."""

    def __init__(self, plan: Race, racers: Sequence[Racer], folder: str, tell: Tell) -> None:
        self.plan, self.folder, self.tell = plan, folder, tell
        self.racers = list(racers)
        self.absent: dict[str, str] = {}
        self._missing: dict[str, MissingPeer] = {}  # by worker, which may have several rows

    def ask(self, racer: Racer, **changes: Any) -> Answer | None:
        """Run a job with a racer. Returns None if the racer leaves the race. Raises ZooError if zoo itself fails, and
        ConfigError for a Python that cannot be run."""
        try:
            if racer.worker in self._missing:
                raise self._missing[racer.worker]
            if self.plan.workload == "load":
                answer = load_time.time_load(racer, self.plan.job(self.folder, **racer.changes))
            else:
                job = self.plan.job(self.folder, **racer.changes, **changes)
                answer = run_worker(racer.worker, racer.python, job)
        except ZooError as error:
            if racer.worker == OURS or (isinstance(error, ConfigError) and not isinstance(error, MissingPeer)):
                raise
            self._leave(racer, error)
            return None
        if reason := answer.get("absent"):
            self._leave(racer, reason)
            return None
        return answer

    def _leave(self, racer: Racer, reason: ZooError | str) -> None:
        """Take a racer out of the race. A missing package is reported once on the terminal, with the path of the Python
        that lacks it. The report omits the path, since reports are published."""
        self.racers.remove(racer)
        missing = isinstance(reason, MissingPeer)
        self.absent[racer.name] = f"not installed ({INSTALL[racer.worker]})" if missing else str(reason)
        if not missing:
            self.tell(f"{racer.name}: {reason}")
        elif racer.worker not in self._missing:
            self.tell(str(reason))
            self._missing[racer.worker] = reason

    def require_peers(self) -> None:
        """Raise ConfigError if peers were requested and all of them have left."""
        gone = {name: reason for name, reason in self.absent.items() if not name.startswith(OURS)}
        if gone and all(racer.worker == OURS for racer in self.racers):
            missing = [fault for error in self._missing.values() for fault in error.faults]
            others = [f"--against {name}: {why}" for name, why in gone.items() if name not in self._missing]
            raise ConfigError(*missing, *others)


def run_race(plan: Race, pythons: Mapping[str, str], tell: Tell = lambda line: None) -> Answer:
    """Run the whole race and return its report as plain data. `tell` is called with lines of progress. Raises
    ConfigError if no requested peer can race, and ZooError if the results of two racers differ."""
    plan, processor = settle_machine(plan, pythons[OURS], tell)
    strangers = list_strangers(plan, [name for name in pythons if name != OURS])
    for name, reason in strangers.items():
        tell(f"{name}: {reason}")
    racing = {name: python for name, python in pythons.items() if name not in strangers}
    if strangers and list(racing) == [OURS]:
        raise ConfigError(*(f"--against {name}: {reason}" for name, reason in strangers.items()))
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as place:
        folder = str(Path(place) / "model")
        if plan.workload == "load":
            load_time.require_room(plan, place)
        exported = plan.dtype if plan.workload == "load" else "fp32"  # each contender casts when it loads
        run_worker(OURS, pythons[OURS], plan.job(folder, workload="export", dtype=exported))
        load_time.write_tokenizer(Path(folder))
        field = Field(plan, list_racers(plan, racing), folder, tell)
        field.absent |= strangers
        gaps = _check_logits(field)
        runs, machine = _run_rounds(field, pythons[OURS])
    gaps |= _compare_results(plan, field.racers, runs)
    return make_report(plan, field.racers, runs, machine) | {
        "processor": processor,
        "absent": field.absent,
        "differences": gaps,
    }


def settle_machine(plan: Race, python: str, tell: Tell) -> tuple[Race, Answer]:
    """Describe the processor and set the number of threads: the given one, or the fastest by a probe. Raises
    ConfigError for an instruction set that the processor does not have."""
    found = run_worker(MACHINE, python, plan.job("", workload="threads"))
    processor = {key: found[key] for key in ("name", "cores", "memory_bytes", "isa")}
    if plan.isa and processor["isa"] != plan.isa:
        has = name_isa(processor["isa"])
        raise ConfigError(f"--isa {plan.isa}: {processor['name']} has {has}, and not {ISAS[plan.isa]} (without --isa)")
    held = f", held to {name_isa(plan.isa)}" if plan.isa else f", {name_isa(processor['isa'])}"
    tell(f"on {processor['name']}{held}")
    if plan.threads is not None:
        return plan, processor
    if found["why"]:
        tell(f"every contender computes with {found['why']}")
    return dataclasses.replace(plan, threads=found["threads"]), processor


def _check_logits(field: Field) -> Answer:
    """Compute float32 logits with every racer, and compare those of racers with exact weights. For `load`, only load
    once. This is the first job, so missing peers leave here."""
    if field.plan.workload == "load":
        for racer in list(field.racers):
            field.ask(racer)  # afterwards the files are in the page cache for all racers
        field.require_peers()
        return {}
    checks = {racer.name: field.ask(racer, workload="check") for racer in list(field.racers)}
    field.require_peers()
    exact = {racer.name: checks[racer.name] for racer in field.racers if racer.exact}
    gaps = require_equal("fp32 logits", _pick_values(exact, "logits"), TOLERANCE["fp32"])
    if gaps:
        found = ", ".join(f"{name} {gap:.1g}" for name, gap in gaps.items())
        field.tell(f"same function: fp32 logits differ by {found}")
    return {"fp32 logits": gaps}


def _pick_values(answers: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: answer[key] for name, answer in answers.items()}


def _compare_results(plan: Race, racers: Sequence[Racer], runs: Mapping[str, list[Answer]]) -> Answer:
    """Compare the results of the timed runs. For racers with weights of another precision the gap is only reported."""
    if plan.workload == "load":
        return {}
    computed = "losses" if plan.workload in ("train", "mlm") else "logits"
    first = _cut_to_shortest(_pick_values({racer.name: runs[racer.name][0] for racer in racers}, computed))
    exact = {racer.name: first[racer.name] for racer in racers if racer.exact}
    gaps = {f"{plan.dtype} {computed}": require_equal(f"{plan.dtype} {computed}", exact, TOLERANCE[plan.dtype])}
    ours = next(iter(exact.values()))
    others = {racer.name: measure_difference(ours, first[racer.name]) for racer in racers if not racer.exact}
    return gaps | ({f"{plan.weights} {computed}": others} if others else {})


def _cut_to_shortest(values: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Cut the racers' values to the shortest length, because a slow racer takes fewer steps in its time."""
    length = min(map(len, values.values()))
    return {name: each[:length] for name, each in values.items()}


def goes_on(plan: Race, rounds: Sequence[float]) -> bool:
    """Whether to begin another round, given the seconds of each earlier round. One always runs, then the requested
    number, or as many as end within `plan.seconds`."""
    if plan.rounds is not None:
        return len(rounds) < plan.rounds
    return not rounds or sum(rounds) + max(rounds) <= plan.seconds


def _run_rounds(field: Field, python: str) -> tuple[dict[str, list[Answer]], list[Answer]]:
    plan = field.plan
    runs: dict[str, list[Answer]] = {racer.name: [] for racer in field.racers}
    machine: list[Answer] = []
    rounds: list[float] = []
    while goes_on(plan, rounds):
        start = time.monotonic()
        if plan.workload != "load":
            machine.append(run_worker(MACHINE, python, plan.job(field.folder, workload="machine")))
        for racer in list(field.racers):
            if (answer := field.ask(racer)) is not None:
                runs[racer.name].append(answer)
        runs = {racer.name: runs[racer.name] for racer in field.racers}
        field.require_peers()
        rounds.append(time.monotonic() - start)
        key, unit = ("seconds", "s") if plan.workload == "load" else ("rate", "tok/s")
        rates = ", ".join(f"{name} {answers[-1][key]:,.1f}" for name, answers in runs.items())
        field.tell(f"round {len(rounds)}{f' of {plan.rounds}' if plan.rounds else ''}: {rates} {unit}")
    return runs, machine
