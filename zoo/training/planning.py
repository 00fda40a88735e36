"""Plan a training run: check its config as far as possible without data or torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo import grammar, runs
from zoo.costs.again import mark_layers
from zoo.data import BPE_SIZE, DataSettings, make_paths_absolute
from zoo.data.settings import SPLIT_TEMPLATE, RecordSettings, parse_node
from zoo.errors import CheckpointError, ConfigError, collect_faults, did_you_mean, name_options, refuse
from zoo.grammar.interpolation import MissingName
from zoo.grammar.saved import read_config
from zoo.kernels import KERNELS
from zoo.model_hub import is_hub_name
from zoo.run import fp8
from zoo.training import settings as S
from zoo.training.mesh_settings import find_parallel_faults, find_world
from zoo.training.objective import Objective, RecordObjective
from zoo.training.objective.labelled import TaskObjective, find_reading_tower
from zoo.training.packaged import read_packaged
from zoo.training.routing import has_selection_bias
from zoo.training.start.begin import StartSettings
from zoo.training.start.lora import complete_lora
from zoo.untrusted.printable import quote, shorten

if TYPE_CHECKING:
    from zoo.model.tower import Topology

CONFIG, MODEL, TEMPLATE = runs.CONFIG, runs.MODEL, runs.TEMPLATE

MAY_CHANGE = (
    *("steps", "batch_size", "accumulate", "log_every", "eval_every", "eval_batches", "eval_weights", "save_every"),
    "checkpoint",
    *("keep", "keep_best", "skip_nonfinite", "lawa", "sample"),
    *("compile", "recompute", "offload", "device", "kernel", "parallel", "launcher", "nproc", "nodes", "restarts"),
    "logger",
)
"""The keys that may change when a run is resumed. A change of any other key would make another run."""

STARTERS = ("launcher", "nproc", "nodes", "restarts")
"""The keys that set the launcher, and how many processes it starts."""

TYPED = (*STARTERS, "logger")
"""Keys that a resumed run takes from the command line only, because they start programs or use a network, and the
run's folder may come from a stranger."""

FETCHED = "*_hub"
"""Pattern of the names of kernels whose code is downloaded."""


@dataclass(frozen=True)
class TrainingPlan:
    """A training config, checked as far as possible without data or torch."""

    name: str
    settings: S.Training
    data: DataSettings
    spec: Any
    config: Mapping[str, Any]
    """The config as plain data. Interpolations are resolved, except the grammar's own in the model's node."""
    notes: tuple[str, ...] = ()
    """A line for each setting that was dropped from a resumed run's folder (`drop_asked`)."""

    def learn(self, data: Any) -> TrainingPlan:
        """Complete the objective, the model's task head and the config from the data, for example with the classes of a
        labelled set. Resuming and `zoo score` then know the classes without the data."""
        if not isinstance(self.settings.objective, TaskObjective):
            return self
        learned = self.settings.objective.learn(data)
        objective = replace(self.settings.objective, **learned)  # type: ignore[type-var]
        plain = {name: list(each) if isinstance(each, tuple) else each for name, each in learned.items()}
        settings = replace(self.settings, objective=objective)  # type: ignore[type-var]
        spec = objective.adapt(self.spec)
        tower = find_reading_tower(spec)
        own = self.config["model"] if tower is spec else self.config["model"].get("decoder") or {}
        own = {**own, "head": grammar.to_dict(tower.head)}
        own |= {"pooler": None} if tower.pooler is None and "pooler" in own else {}
        model = own if tower is spec else {**self.config["model"], "decoder": own}
        config = {**self.config, "model": model, "objective": {**self.config["objective"], **plain}}
        return replace(self, settings=settings, spec=spec, config=config)


def plan_training(cfg: DictConfig, touched: Iterable[str] = ()) -> TrainingPlan:
    """Check a composed config, without torch. Raises ConfigError with the faults of all its parts.

    `touched` are keys of the model that the user set (see `grammar.to_spec`).
    """
    faults: list[str] = []
    if not isinstance(model := cfg.get("model"), DictConfig):
        raise ConfigError(f"model: is {quote(model)}, not a mapping (model=NAME, or a model's keys below it)")
    config = resolve_config(cfg)
    if not isinstance(about := config["model"].get("about") or {}, dict):
        faults.append(f"model.about: is {quote(about)}, not a mapping (title, source, …)")
    rest = {key: value for key, value in config.items() if key not in ("model", "data")}
    settings = collect_faults(faults, lambda: parse_node(S.Training, rest))
    data = collect_faults(faults, lambda: DataSettings.read(config.get("data") or {}))
    spec = collect_faults(faults, lambda: grammar.to_spec(cfg.model, touched), "model")
    if settings and spec:
        settings = replace(settings, objective=settings.objective.settle(spec, data))
    if settings and data and spec:
        faults += find_mismatches(settings, data, spec)
    refuse(faults)
    config["model"] = grammar.call_resolvers(config["model"])  # now: a config in a run's folder may call none
    title = (config["model"].get("about") or {}).get("title")
    title = title or f"{spec.kind}, {spec.n_layers} layers of width {spec.d_model}"
    spec = settings.objective.adapt(settings.parametrisation.adapt(spec))
    return TrainingPlan(title, settings, data, spec, config)


def resolve_config(cfg: DictConfig) -> dict[str, Any]:
    """Convert the config to plain data, with its interpolations resolved except in the model's node. Raises ConfigError
    if that fails."""
    try:
        rest = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "model"])
        stated: Any = OmegaConf.to_container(rest, resolve=False, throw_on_missing=True)
        model = OmegaConf.to_container(cfg.model, resolve=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error
    config = resolve_settings(stated)
    make_paths_absolute(config.get("data"))
    objective = config.get("objective")
    for node, key in ((objective, "teacher"), (objective, "modules"), (config, "weights")):
        if isinstance(node, dict) and isinstance(path := node.get(key), str) and not is_hub_name(path):
            node[key] = str(Path(path).expanduser().absolute())  # a run may be resumed from another working directory
    if "lora" in config:
        config["lora"] = complete_lora(config["lora"])
    return {"model": model, **{str(key): value for key, value in config.items()}}


def resolve_settings(body: dict[Any, Any]) -> dict[Any, Any]:
    """Resolve the interpolations of a config without its model. Raises ConfigError for a missing key."""
    try:
        return grammar.resolve(body)
    except MissingName as error:
        raise ConfigError(f"{error.key}: looks up {error.name}, which no key around it has (a value)") from None


def find_mismatches(settings: S.Training, data: DataSettings, spec: Topology) -> list[str]:
    """List conflicts between settings, data and model that the config alone shows."""
    refused = settings.objective.refuses(spec)
    faults = [f"objective: {refused}"] if refused else []
    trained = spec if refused else settings.objective.adapt(spec)
    faults += S.find_optimizer_mismatches(settings, trained)
    collect_faults(faults, lambda: mark_layers(trained, settings.recompute))
    faults += find_parallel_faults(settings, find_world(settings), trained)
    if settings.checkpoint in ("sharded", "async") and settings.lora is not None:
        faults.append(f"checkpoint: is {settings.checkpoint}, and adapters are saved whole (checkpoint=whole)")
    faults += [f"logger: {missing}"] if (missing := settings.logger.refuses()) else []
    if settings.kernel not in (names := ("auto", *KERNELS)):
        hint = name_options(settings.kernel, names)
        faults.append(f"kernel: there is no {settings.kernel!r}{hint}")
    faults += [] if refused else find_misfits_of_rows(settings, data, spec)
    if settings.router_bias_rate is not None and not has_selection_bias(spec):
        found = f"is {settings.router_bias_rate}, and no router of the model has a selection bias"
        faults.append(f"router_bias_rate: {found} (null; or router.selection_bias=true)")
    if settings.recipe and (idle := fp8.explain_no_effect(spec)):
        faults.append(f"precision: {settings.precision} {idle} (precision=bf16 would do)")
    faults += StartSettings.of(settings).find_faults(trained, fp8=settings.recipe is not None)
    if settings.dropout:
        faults += settings.dropout.find_faults(spec, settings.recipe is not None)
    faults += [f"model.mtp: {fault}" for fault in find_mtp_mismatches(settings, spec)]
    special = settings.objective.count_special(settings.seq_len)
    if data.tokenizer.kind == "bpe" and (size := special + (data.tokenizer.vocab_size or BPE_SIZE)) > (
        spec.output_vocab_size
    ):
        left = spec.output_vocab_size - special
        or_else = f", or data.tokenizer.vocab_size={left} beside it" if left > SMALLEST_BPE else ""
        faults.append(describe_vocabulary_fault(spec.output_vocab_size, size, or_else, special))
    return faults


def find_mtp_mismatches(settings: S.Training, spec: Topology) -> Iterator[str]:
    """Yield the settings that conflict with a model's modules for multi-token prediction (`mtp`)."""
    if spec.served is spec:
        return
    if not settings.objective.every_token:
        found = f"is of texts whose tokens are all predicted, found objective={settings.objective.kind}"
        yield f"{found} (next_token, or model.mtp=null)"
    for name in ("dropout", "lora", "freeze"):
        if getattr(settings, name):
            yield f"goes with no {name} yet (leave {name} out, or model.mtp=null)"


def find_misfits_of_rows(settings: S.Training, data: DataSettings, spec: Topology) -> Iterator[str]:
    """Yield conflicts between the data, the rows that the objective makes of it, and the model."""
    objective = settings.objective
    if objective.compares_rows and settings.batch_size == 1:
        yield f"batch_size: is 1, and {objective.kind} compares the records of a batch (2 at least; 64 is usual)"
    if isinstance(objective, RecordObjective):
        yield from find_misfits_of_records(objective, data)
    elif not objective.accepts(data.content):
        yield describe_other_data(objective, data)
    if data.tokenizer.split_special_tokens and data.needs_template:
        yield SPLIT_TEMPLATE
    if data.documents and (reason := objective.refuses_documents(spec)):
        yield f"data.documents: {reason}"
    for path, width in objective.widths(spec, settings.seq_len, data.apart).items():
        most, place = spec.towers()[path].max_seq_len, f"model.{path}.max_seq_len" if path else "model.max_seq_len"
        if width > most:
            found = f"is {settings.seq_len}, more than {place}={most}"
            if width != settings.seq_len:
                found = f"is {settings.seq_len}, which makes rows of {width} tokens, more than {place}={most}"
            yield f"seq_len: {found} (seq_len={most - max(width - settings.seq_len, 0)}, or {place}={width})"


LEARNS_FROM = {
    "text": "auto",
    "pairs": "seq2seq",
    "conversations": "chat",
    "preferences": "dpo",
    "judgements": "kto",
}
"""The objective to propose for each content of data."""
MADE_BY = {
    "text": "no data.form, data.source or data.target",
    "pairs": "data.source=NAME data.target=NAME",
    "conversations": "data.form=messages",
    "preferences": "data.form=preference",
    "judgements": "data.form=unpaired",
}
"""The settings that make data of each content."""


def describe_other_data(objective: Objective, data: DataSettings) -> str:
    """Describe the fault that an objective reads another content than the data has."""
    records = "" if hasattr(data, "form") or objective.reads == "text" else "data=jsonl "
    would = f"objective={LEARNS_FROM[data.content]}, or {records}{MADE_BY[objective.reads]}"
    return f"objective: {objective.kind} reads {objective.reads}, found {data.content} in data={data.kind} ({would})"


def find_misfits_of_records(objective: Any, data: DataSettings) -> Iterator[str]:
    """Yield conflicts between an objective that names the fields of its records and the data."""
    if not isinstance(data, RecordSettings):
        yield f"objective: {objective.kind} reads {objective.reads}, found data={data.kind} (data=jsonl data.path=FILE)"
        return
    for name in ("field", "source", "target", "form"):
        if (found := getattr(data, name)) is not None:
            yield f"data.{name}: is {found!r}, and {objective.named} name the fields (data.{name}=null)"
    if data.max_bytes is not None:
        yield f"data.max_bytes: is {data.max_bytes}, and {objective.reads} are read whole (data.max_bytes=null)"
    if data.documents:
        yield "data.documents: is true, and a row has one record (data.documents=false)"


SMALLEST_BPE = 256  # the bytes; a vocabulary has the end of text too


def describe_vocabulary_fault(vocabulary: int, needed: int, or_else: str = "", special: int = 0) -> str:
    """Describe the fault that a vocabulary has fewer than the `needed` tokens, which include the objective's `special`
    ones."""
    of_them = f" with {special} special tokens of the objective's" if special else ""
    found = f"is {vocabulary}, fewer than the tokenizer's {needed}{of_them}"
    return f"model.vocab_size: {found} (model.vocab_size={needed}{or_else})"


def plan_resumption(folder: Path, overrides: Sequence[str], typed: DictConfig | None = None) -> TrainingPlan:
    """Plan the resumption of a run with the user's overrides. Settings that start programs (`TYPED`, downloaded
    kernels) come from the overrides or from `typed`, a config that the user gave, never from the folder. Raises
    CheckpointError if the folder is not a run's, and ConfigError for overrides that are faulty or may not change."""
    try:
        cfg, notes = drop_asked(read_config(folder / CONFIG), folder / CONFIG, overrides)
    except FileNotFoundError:
        found = f"is no run, it has no {CONFIG}"
        raise CheckpointError(f"{folder}: {found} (the folder that zoo train wrote to)") from None
    if typed is not None:
        own = [name for name in (*TYPED, "kernel") if name in typed]
        cfg, notes = merge_nodes(cfg, OmegaConf.masked_copy(typed, own)), []
    merged, faults = cfg, []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            faults.append(f"{override}: not an override, there is no '=' (write key=value)")
        elif key.split(".")[0] not in MAY_CHANGE:
            hint = did_you_mean(key, MAY_CHANGE) or f" (these may change: {', '.join(MAY_CHANGE)})"
            faults.append(f"{key}: a run that goes on keeps it{hint}")
        else:
            merged = merge_change(merged, override, faults)
    refuse(faults)
    planned = use_own_files(plan_training(merged), folder / runs.TOKENIZER)
    return replace(planned, notes=tuple(notes))


def drop_asked(cfg: DictConfig, file: Path, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """Drop from a folder's config the keys that only the command line may set (TYPED), and a kernel to download.
    Returns the rest, and a line for each dropped setting that the user did not give."""
    stated = {override.partition("=")[0].split(".")[0] for override in overrides}
    body: Any = OmegaConf.to_container(cfg, resolve=False)
    asked = resolve_settings({key: value for key, value in body.items() if key != "model"})
    notes = []
    for name in ("launcher", "logger"):
        node = asked.get(name)
        kind = shorten(str(node.get("kind", "none") if isinstance(node, dict) else node or "none"), 20)
        if kind != "none" and name not in stated:
            found = {each: asked.get(each) for each in STARTERS[1:]}
            counts = [
                f"{each}={count}"
                for each, count in found.items()
                if isinstance(count, int) and count > (each == "nodes")
            ]
            would = " ".join([f"{name}={kind}", *(counts if name == "launcher" else [])])
            does = "starts" if name == "launcher" else "tracks"
            notes.append(f"{file}: asks for {name} {kind}, which is not taken from a folder ({would} {does} it so)")
    if fnmatchcase(str(asked.get("kernel")), FETCHED):
        if "kernel" not in stated:
            kernel = shorten(str(asked["kernel"]), 40)
            found = f"asks for kernel {kernel}, which is fetched and so is not taken from a folder"
            notes.append(f"{file}: {found} (kernel={kernel} fetches it)")
        cfg = merge_nodes(cfg, {"kernel": "auto"})
    return OmegaConf.masked_copy(cfg, [str(each) for each in cfg if each not in TYPED]), notes


def merge_change(cfg: DictConfig, override: str, faults: list[str]) -> DictConfig:
    """Merge an override into the config of a resumed run. The name of a packaged choice replaces the whole node, so
    that later overrides find its fields (`launcher=slurm launcher.partition=gpu`)."""
    change = OmegaConf.from_dotlist([override])
    for key in change.keys() & {"parallel", "launcher", "logger"}:
        if isinstance(name := change[key], str):
            try:
                change = OmegaConf.create({key: read_packaged(str(key), name)})
            except ValueError as error:
                faults.append(f"{key}: {error}")
                return cfg
            cfg = OmegaConf.masked_copy(cfg, [str(each) for each in cfg if each != key])
        elif isinstance(cfg.get(key), str):  # as older versions wrote it
            cfg = merge_nodes(cfg, {key: read_packaged(str(key), cfg[key])})
    return merge_nodes(cfg, change)


def merge_nodes(cfg: DictConfig, change: Any) -> DictConfig:
    """Merge a change into a config."""
    merged = OmegaConf.merge(cfg, change)
    assert isinstance(merged, DictConfig)
    return merged


def use_own_files(planned: TrainingPlan, folder: Path) -> TrainingPlan:
    """Let a run read the copies of its tokenizer and of its objective's files in its own folder, if there are any,
    because the originals may be gone."""
    if not folder.is_dir():
        return planned
    settings = replace(planned.settings, objective=planned.settings.objective.reopen(folder))  # type: ignore[type-var]
    planned = replace(planned, settings=settings)
    if (stated := planned.data.tokenizer).path is None:
        return planned
    data = replace(planned.data, tokenizer=replace(stated, path=str(folder.absolute())))
    if data.written and (own := folder / TEMPLATE).is_file():
        data = replace(data, template=str(own.absolute()))
    return replace(planned, data=data)
