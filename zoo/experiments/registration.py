"""Register an experiment before its first run, and list what changes afterwards.

FOLDER/registration.json    {"when": "…", "hash": "…", "late": false, "parts": {"arms": "…", …}, "stated": {…},
                             "changes": [{"when": "…", "of": {"margin": "…"}, "stated": {…}}]}

A verdict is worth more if its arms, budget and expectations were written down before anything ran. Each part has its
own hash, so that a later change is listed by name with the verdict. `stated` has the parts as plain data. `models` are
the resolved configs of all arms, and `code` the sources of this package. A registration is `late` if its folder had
files already. The file is local. To prove to others that it came first, publish its hash, or commit the file, before
the first run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zoo
from zoo.disk import write_text
from zoo.experiments.experiment import Expectation, Experiment, make_experiment
from zoo.experiments.judging import ExperimentOutcome, describe_bounds, describe_pair
from zoo.untrusted.json_file import read_json

FILE = "registration.json"

PARTS: Mapping[str, tuple[str, ...]] = {
    "arms": ("shared", "arms", "baseline", "config"),
    "task": ("probe", "ladder"),
    "budget": ("match", "match_by", "matched"),
    "tuning": ("tune",),
    "seeds": ("seeds",),
    "metric": ("metric", "higher", "measure"),
    "margin": ("margin",),
    "expectations": ("expect",),
}
"""The fields of an experiment in each part of its registration. `task` exists only for a probe or a ladder."""

SHOWN = {"code": "Zoo's code", "models": "the arms' models"}
"""Words for the parts that have no fields."""

LOSS = "val_loss"
"""The metric by which runs are known to be the same ones. Accuracies of different runs may be equal."""

UNREGISTERED = "Not registered: registration began on 30 November 2026 (of probes and ladders: 1 December)"


def register(experiment: Experiment, folder: Path, models: Mapping[str, Any]) -> dict[str, Any]:
    """Register an experiment in its folder; in a registered folder, add what has changed. `models` has each arm's
    resolved model and settings, or their hash. Returns the registration. Raises CheckpointError for a faulty file."""
    stated = state_parts(experiment)
    parts = {name: _hash(part) for name, part in stated.items()}
    parts |= {"models": _hash(sorted(models.items())), "code": hash_code()}
    file = folder / FILE
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    if not file.is_file():
        late = folder.is_dir() and any(folder.iterdir())
        about = {"when": now, "hash": _hash(parts), "late": late}
        made: dict[str, Any] = {**about, "parts": parts, "stated": stated, "changes": []}
    else:
        made = read_json(file, dict[str, Any])
        latest = dict(made["parts"]) | {name: value for each in made["changes"] for name, value in each["of"].items()}
        changed = {name: value for name, value in parts.items() if latest.get(name) != value}
        if not changed:
            return made
        made["changes"].append({"when": now, "of": changed, "stated": {n: stated[n] for n in changed if n in stated}})
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(made, indent=1) + "\n")
    return made


def read_registered(folder: Path) -> Experiment | None:
    """Read the experiment from a folder's registration, with later changes. None without a registration. Raises
    CheckpointError or ConfigError for a faulty file."""
    if not (file := folder / FILE).is_file():
        return None
    made = read_json(file, dict[str, Any])
    stated: dict[str, Any] = {}
    for each in (made, *made["changes"]):
        for part in each["stated"].values():
            stated |= part
    return make_experiment(stated | {"config": None}, file)  # the runs have their config


def state_parts(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the parts of an experiment as plain data."""
    found = {name: experiment.model_dump(mode="json", include=set(fields)) for name, fields in PARTS.items()}
    return found if any(found["task"].values()) else {name: each for name, each in found.items() if name != "task"}


# ---------------------------------------------------------------- in words


def describe_registration(registered: Mapping[str, Any] | None, experiment: Experiment | None = None) -> str:
    """Say when an experiment was registered and what changed afterwards, in later runs and reports. With `experiment`,
    changes in its file are included."""
    if registered is None:
        return UNREGISTERED
    first = "after" if registered.get("late") else "before"
    said = f"Registered {_write_time(registered['when'])} as {registered['hash']}, {first} its first run"
    latest, changes = dict(registered["stated"]), []
    for each in registered["changes"]:
        changes.append(f"{_write_time(each['when'])} {', '.join(_list_parts(latest, each['stated'], each['of']))}")
        latest |= each["stated"]
    stated = {} if experiment is None else state_parts(experiment)
    later = _list_parts(
        latest, stated, [name for name, part in stated.items() if _list_changes(latest.get(name, {}), part)]
    )
    changes += [f"later, in its file, {', '.join(later)}"] if later else []
    return f"{said}; changed afterwards: {'; '.join(changes)}" if changes else f"{said}; unchanged"


def list_shared_runs(outcome: ExperimentOutcome, others: Collection[ExperimentOutcome]) -> list[str]:
    """Write a line on runs that may have been known when an experiment was registered: their loss equals, to the last
    digit, that of a run of an earlier experiment. Empty without a registration or such runs."""
    if outcome.registration is None:
        return []
    dated = {each.recipe: each.registration["when"] if each.registration else each.date for each in others}
    earlier = [each for each in others if dated[each.recipe] < outcome.registration["when"]]
    known: dict[tuple[str, float | None], str] = {}
    for each in sorted(earlier, key=lambda each: dated[each.recipe], reverse=True):  # the earliest is kept
        for own in each.values.get(LOSS, {}).values():
            known |= dict.fromkeys(own.items(), f"{each.recipe}, {_write_time(dated[each.recipe])}")
    found: dict[tuple[str, str], list[int]] = {}
    for arm, own in outcome.values.get(LOSS, {}).items():
        for seed, loss in own.items():
            if loss is not None and (seed, loss) in known:
                found.setdefault((arm, known[seed, loss]), []).append(int(seed))
    said = [f"{arm}, {_name_seeds(seeds)} ({source})" for (arm, source), seeds in found.items()]
    about = "Some of its runs may have been known by then, as recipes that came earlier have the same ones"
    return [f"{about}: {'; '.join(said)}"] if said else []


def _name_seeds(seeds: Sequence[int]) -> str:
    whole = len(seeds) > 2 and max(seeds) - min(seeds) + 1 == len(seeds)
    named = f"{min(seeds)} to {max(seeds)}" if whole else ", ".join(map(str, seeds))
    return f"seed{'s' if len(seeds) > 1 else ''} {named}"


def _write_time(stated: str) -> str:
    return stated.replace("T", " ")


def _list_parts(old: Mapping[str, Any], new: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """List the names of changed parts, each with its changed fields if they are stored."""
    found = {name: _list_changes(old.get(name, {}), new.get(name, {})) for name in names}
    shown = {name: SHOWN.get(name, name) for name in found}
    return [f"{shown[name]} ({', '.join(each)})" if each else shown[name] for name, each in found.items()]


def _list_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the changed fields of a part: short values as `margin none → 0.5`, others by name."""
    made = []
    for name, now in new.items():
        if name == "expect":
            made += _list_expected(old.get(name, []), now)
        elif (was := old.get(name)) != now:
            shown = _show_change(was, now)
            made.append(f"{name} {shown}" if len(shown) < 40 else name)
    return made


def _list_expected(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the expectations that were added or removed, and the changed fields of the others."""
    was, now = ({(each["arm"], each["against"], each["metric"], each["cost"]): each for each in e} for e in (old, new))
    made = [f"added {_name(each)}" for key, each in now.items() if key not in was]
    made += [f"left out {_name(each)}" for key, each in was.items() if key not in now]
    return made + [
        f"{_name(each)}: {field} {_show_change(was[key].get(field), value)}"
        for key, each in now.items()
        for field, value in each.items()
        if key in was and was[key].get(field) != value
    ]


def _show_change(was: Any, now: Any) -> str:
    values = ("none" if each is None else json.dumps(each, ensure_ascii=False) for each in (was, now))
    return " → ".join(re.sub(r"^-(?=\d)", "\N{MINUS SIGN}", each) for each in values)


def _name(expected: Mapping[str, Any]) -> str:
    each = Expectation.model_validate(expected)
    return f"{describe_pair(each)}: {each.verdict or describe_bounds(each)}"


@functools.cache
def hash_code() -> str:
    """Hash the source files of this package."""
    root = Path(zoo.__file__).parent
    made = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        made.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return made.hexdigest()[:12]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
