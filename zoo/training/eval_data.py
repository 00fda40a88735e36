"""Choose the data and the objective of an evaluation: those of the model's run, or those that overrides name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from zoo import runs
from zoo.compose.composing import Composition
from zoo.compose.hydra_engine import Override, open_repository
from zoo.compose.overrides import parse_overrides
from zoo.data import DataSettings, make_paths_absolute
from zoo.data.settings import parse_node
from zoo.errors import ConfigError, refuse
from zoo.training.objective import Distil, Objective, RecordObjective
from zoo.training.objective.labelled import TaskObjective
from zoo.training.planning import (
    CONFIG,
    TrainingPlan,
    describe_other_data,
    find_misfits_of_records,
    plan_resumption,
    resolve_settings,
)

if TYPE_CHECKING:
    from zoo.model.tower import Topology

DEFAULTS = {"data": "stdlib", "objective": "auto"}
"""The nodes that overrides may change, each with the packaged choice that is used without a run."""

ELSEWHERE = {
    "seq_len": "--context has the tokens of a row",
    "batch_size": "rows are read together as many as are fast",
    "eval_batches": "all rows are read; data.max_bytes takes a sample of a text",
}
"""Training settings that an evaluation refuses, each with what to use instead or what happens instead."""

SPLIT = ("validation_fraction", "max_bytes")
"""Settings that decide which text is the validation split."""

BATCHES = ("tokenizer", "documents")
"""Settings that change how text becomes batches, but not the text."""


@dataclass(frozen=True)
class EvaluationPlan:
    """The data that a model is evaluated on: the validation split of its `run`, or with `whole` all of the data.
    `seq_len` is the run's number of tokens in a row, `batch_size` the run's number of rows in a step. `seed` seeds
    random draws such as masks. `start` is the folder of the run's starting weights, if any."""

    data: DataSettings
    objective: Objective
    whole: bool
    run: Path | None = None
    seq_len: int | None = None
    seed: int = 0
    batch_size: int = 64
    start: str | None = None

    def describe(self) -> str:
        """Name the data in a sentence."""
        if not self.whole:
            return "the run's validation split"
        names = ", ".join(name for name in self.data.sources if name)
        place = names or getattr(self.data, "path", None)
        return f"all of data={self.data.kind}" + (f" ({place})" if place else "")


def plan_evaluation(
    spec: Topology, run: Path | None, tokenizer: str | Path, overrides: Sequence[str], name: str
) -> EvaluationPlan:
    """Plan an evaluation of a model on the data of its `run`, or on data that overrides name (`data=…`, `objective=…`).

    The run's own data is scored on its validation split. Other data is scored whole, encoded with the model's
    `tokenizer`. `name` names the model in messages. Raises ConfigError if there is no data, or if data, objective and
    model do not go together.
    """
    typed = list_typed(overrides)
    own = None if run is None else plan_resumption(run, ())
    if own is None and "data" not in {key.split(".")[0] for key in typed}:
        raise ConfigError(f"file: {name} is no run, so it has no validation split (--file TEXT, or data=text …)")
    node = compose_evaluation(None if own is None else own.config, overrides)
    data = None if own is None else read_own_data(own, node["data"], typed)
    whole = data is None
    objective = choose_objective(own, node["objective"], typed, spec)
    if data is None:
        apart = own is not None and own.data.apart
        if isinstance(objective, RecordObjective) and "validation" in node["data"]:
            records = node["data"]  # all that `validation` names
            validating = (records.get("split") or "train") if records.get("kind") == "hf" else records.get("path")
            node["data"] = {**records, "validation": validating}
        data = read_other_data(node["data"], tokenizer, typed, apart)
    objective = objective.settle(spec, data)
    objective = objective if run is None else objective.reopen(run / runs.TOKENIZER)
    refuse_misfits(objective, data, spec)
    if own is None:
        return EvaluationPlan(data, objective, whole)
    settings = own.settings
    how = {"seq_len": settings.seq_len, "seed": settings.row_seed, "batch_size": settings.batch_size}
    return EvaluationPlan(data, objective, whole, run, **how, start=settings.weights)


# ---------------------------------------------------------------- overrides


def list_typed(overrides: Sequence[str]) -> set[str]:
    """List the dotted keys that overrides set. Raises ConfigError for keys that an evaluation does not accept."""
    faults: list[str] = []
    typed: set[str] = set()
    for override in parse_overrides(overrides, faults):
        key = override.key_or_group
        if key.split(".")[0] not in DEFAULTS:
            instead = ELSEWHERE.get(key, "these change: data=…, objective=…")
            faults.append(f"{key}: an evaluation takes no such override ({instead})")
        elif override.is_delete():
            faults.append(f"{override.input_line}: nothing can be deleted (name another: {key}=…)")
        typed |= set(_flatten(key, override))
    refuse(faults)
    return typed


def _flatten(key: str, override: Override) -> Iterator[str]:
    """Yield the key of an override, and the keys within its value if that is a mapping."""
    nodes = [(key, override.value())]
    while nodes:
        path, value = nodes.pop()
        yield path
        if isinstance(value, Mapping):
            nodes += [(f"{path}.{name}", inner) for name, inner in value.items()]


def compose_evaluation(config: Mapping[str, Any] | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the nodes `data` and `objective`: those of a run's config, or the packaged defaults, with the overrides
    applied. Raises ConfigError with the faults of all overrides."""
    swapped = {key for key, _, value in (text.partition("=") for text in overrides) if value[:1] != "{"}
    given = {key: config[key] for key in DEFAULTS if config and key in config and key not in swapped}
    groups = [{key: option} for key, option in DEFAULTS.items() if key not in given]
    body = {"defaults": [*groups, "_self_"], **given}
    composed = Composition(open_repository(), body, CONFIG, root="model").compose(list(overrides))
    composed.refuse_faults()
    stated: Any = OmegaConf.to_container(composed.cfg, resolve=False)
    node = resolve_settings(stated)
    make_paths_absolute(node["data"])
    return {key: node[key] for key in DEFAULTS}


# ---------------------------------------------------------------- data


def read_own_data(own: TrainingPlan, node: Mapping[str, Any], typed: set[str]) -> DataSettings | None:
    """Read a `data` node that names the run's own data; None if it names other data.

    Raises ConfigError if the node splits the run's text in another way, because validation might then contain training
    text, and if an override changes the tokenizer.
    """
    template = {"template": own.data.template} if own.data.written else {}  # type: ignore[attr-defined]
    found = DataSettings.read({**node, "tokenizer": own.data.tokenizer, **template})
    if list_fields(found, SPLIT + BATCHES) != list_fields(own.data, SPLIT + BATCHES):
        return None
    changed = [name for name in SPLIT if getattr(found, name) != getattr(own.data, name)]
    faults = [f"data.{name}: the run's own data keeps its split (leave it out)" for name in changed]
    if any(key.startswith("data.tokenizer") for key in typed):
        faults.append("data.tokenizer: the run's own data keeps its tokenizer (leave it out)")
    refuse(faults)
    return found


def read_other_data(node: Mapping[str, Any], tokenizer: str | Path, typed: set[str], apart: bool) -> DataSettings:
    """Read the settings of data that is scored whole, without a split, and encoded with the model's tokenizer. `apart`
    is whether the run keeps documents apart: a text inherits it unless overrides set `data.documents`. Raises
    ConfigError for overrides of the tokenizer (except `eos`) or of the split."""
    named = {"data.tokenizer"} if isinstance(node.get("tokenizer"), str) else set()
    own = named | {key for key in typed if key.startswith("data.tokenizer.") and key != "data.tokenizer.eos"}
    faults = [f"{key}: the model reads with its own tokenizer (leave it out)" for key in sorted(own)]
    if "data.validation_fraction" in typed:
        faults.append("data.validation_fraction: all of this data is scored, as no run has it (leave it out)")
    if "data.validation" in typed:
        faults.append("data.validation: the data that data.path names is scored (leave it out, or name it there)")
    refuse(faults)
    eos = node.get("tokenizer", {}).get("eos") if "data.tokenizer.eos" in typed else None
    node = {**node, "tokenizer": {"kind": "file", "path": str(tokenizer), "eos": eos}}
    data = DataSettings.read(node)
    inherits = apart and "data.documents" not in typed and data.content == "text"
    return DataSettings.read({**node, "documents": True}) if inherits else data


def list_fields(data: DataSettings, without: Sequence[str]) -> dict[str, Any]:
    """List the kind and the fields of a source, except those in `without`."""
    fields = {field.name: getattr(data, field.name) for field in data.fields() if field.name not in without}
    return {"kind": data.kind, **fields}


# ---------------------------------------------------------------- the objective


def choose_objective(own: TrainingPlan | None, node: Mapping[str, Any], typed: set[str], spec: Topology) -> Objective:
    """Choose the objective to score: the run's, unless overrides name one. Of a distillation it is the base
    objective."""
    if own is not None and not any(key.split(".")[0] == "objective" for key in typed):
        objective = own.settings.objective
    else:
        objective = parse_node(Objective, node, "objective").settle(spec)
    while isinstance(objective, Distil):
        objective = objective.base
    return objective


def refuse_misfits(objective: Objective, data: DataSettings, spec: Topology) -> None:
    """Raise ConfigError if objective, data and model do not go together."""
    if reason := objective.refuses(spec):
        raise ConfigError(f"objective: {reason}")
    if isinstance(objective, RecordObjective) and (faults := list(find_misfits_of_records(objective, data))):
        raise ConfigError(*faults)
    if isinstance(objective, TaskObjective) and objective.adapt(spec) != spec:
        raise ConfigError(f"objective: {objective.kind} needs its own head, the model has another (a run of it)")
    if isinstance(objective, RecordObjective):
        return
    if data.documents and (reason := objective.refuses_documents(spec)):
        raise ConfigError(f"data.documents: {reason}")
    if not objective.accepts(data.content):
        raise ConfigError(describe_other_data(objective, data))
