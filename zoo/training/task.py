"""A training run from its composed config: checked, prepared, built and trained; and runs that go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo import grammar, runs
from zoo.checkpoint import store
from zoo.data import BPE_SIZE, Batches, DataSettings, Prepared, prepare
from zoo.disk import replacing
from zoo.errors import CheckpointError, ConfigError, ZooError, did_you_mean
from zoo.generation.engine import check_length
from zoo.grammar.saved import read_spec
from zoo.kernels import KERNELS, machine_of, select
from zoo.lazy import torch
from zoo.run import fp8
from zoo.run.builder import build, pick_device
from zoo.run.dtypes import slow_note
from zoo.run.threads import ThreadWatch
from zoo.training import settings as S
from zoo.training.log import METRICS, PICTURE, SAMPLES, Records
from zoo.training.loop import Run, fit
from zoo.training.show import Show
from zoo.training.speed import find_peak, keep_memory

CONFIG, MODEL = "config.yaml", "model.yaml"

MAY_CHANGE = (
    *("steps", "log_every", "eval_every", "eval_batches", "save_every", "keep", "sample"),
    *("compile", "device", "kernel"),
)
"""What a run that goes on may do otherwise than before; all else would make another run of it."""


@dataclass(frozen=True)
class Plan:
    """A training config, checked as far as it can be before any work."""

    name: str
    settings: S.Training
    data: DataSettings
    spec: Any
    config: Mapping[str, Any]
    """The config as plain data: resolved, but for the model's node, whose interpolations are the grammar's."""


def task(cfg: DictConfig, folder: str | Path | None = None) -> dict[str, Any]:
    """Runs a composed training config in Hydra's output folder or in another one; gives what result.json says.

    Raises ConfigError, before anything is written, with every fault found; ZooError when the training fails.
    """
    planned = check(cfg)
    where = Path(folder) if folder is not None else output_folder()
    if (where / runs.CHECKPOINTS / runs.LATEST).exists():
        raise ConfigError(f"{where}: has a run in it (`zoo train --resume {where}` goes on with it, or name another)")
    show = Show(planned.settings.steps)
    device, data = prepared(planned, show)
    where.mkdir(parents=True, exist_ok=True)
    run = begin(planned, where, device, data, show)
    write_yaml(where / CONFIG, planned.config)
    write_yaml(where / MODEL, grammar.to_dict(planned.spec))
    return finish(run)


def resume(folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Goes on from a run's newest checkpoint to what would have come of it unstopped: on a CPU, to the last bit.

    That holds while the number of threads stays: a run goes on with its checkpoint's, and says when it takes another
    (`zoo.run.threads`); OMP_NUM_THREADS holds it.

    Raises ConfigError when there is nothing left to do, or when its data is not what it was.
    """
    folder = Path(folder).expanduser()
    planned = replan(folder, overrides)
    checkpoint = runs.find(folder)
    counters = store.read_counters(checkpoint)
    if read_spec(checkpoint) != planned.spec:
        raise ConfigError(f"{folder / CONFIG}: model: is not the one of {checkpoint} (as it was when the run began)")
    if counters["step"] >= planned.settings.steps:
        more = f"steps={2 * counters['step']} goes on with it, or any above {counters['step']}"
        raise ConfigError(f"{folder}: is finished, found a checkpoint of step {counters['step']} ({more})")
    show = Show(planned.settings.steps)
    device, data = prepared(planned, show)
    if data.key != counters["data"]["key"]:
        raise ConfigError(f"{folder}: its data is not what it was, found {data.key} (was {counters['data']['key']})")
    run = begin(planned, folder, device, data, show, counters)
    restore(run, checkpoint)
    write_yaml(folder / CONFIG, planned.config)
    show.say(f"goes on after step {run.step}")
    return finish(run)


# ---------------------------------------------------------------- checks


def check(cfg: DictConfig, touched: Iterable[str] = ()) -> Plan:
    """Checks a composed config without torch. Raises ConfigError with the faults of all its parts.

    `touched` are keys of the model that the user set (see `grammar.to_spec`).
    """
    grammar.register_resolvers()
    faults: list[str] = []
    config = resolved(cfg)
    rest = {key: value for key, value in config.items() if key not in ("model", "data")}
    settings = attempt(faults, lambda: S.read(rest))
    data = attempt(faults, lambda: DataSettings.read(config.get("data") or {}))
    spec = attempt(faults, lambda: grammar.to_spec(cfg.model, touched), "model.")
    if settings and data and spec:
        faults += mismatches(settings, data, spec)
    if faults:
        raise ConfigError(*faults)
    return Plan(title(config["model"], spec), settings, data, spec, config)


def attempt(faults: list[str], read: Callable[[], Any], prefix: str = "") -> Any:
    """What `read` gives, or None and its faults on the list."""
    try:
        return read()
    except ConfigError as error:
        faults += [prefix + fault for fault in error.faults]
        return None


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain data, all but the model's node resolved. Raises ConfigError."""
    try:
        rest = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "model"])
        config = OmegaConf.to_container(rest, resolve=True, throw_on_missing=True)
        model = OmegaConf.to_container(cfg.model, resolve=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, dict)
    for node in (config.get("data"), (config.get("data") or {}).get("tokenizer")):
        if isinstance(node, dict) and isinstance(path := node.get("path"), str):
            node["path"] = str(Path(path).expanduser().absolute())  # a run may go on from another folder
    return {"model": model, **{str(key): value for key, value in config.items()}}


def mismatches(settings: S.Training, data: DataSettings, spec: Any) -> list[str]:
    """What does not go together, as far as the config alone tells."""
    refused = settings.objective.refuses(spec)
    faults = [f"objective: {refused}"] if refused else []
    if settings.kernel not in (names := ("auto", *KERNELS)):
        hint = did_you_mean(settings.kernel, names)
        faults.append(f"kernel: there is no {settings.kernel!r}{hint} (there are {', '.join(names)})")
    if settings.seq_len > spec.max_seq_len:
        would = f"seq_len={spec.max_seq_len}, or model.max_seq_len={settings.seq_len}"
        faults.append(f"seq_len: is {settings.seq_len}, more than model.max_seq_len={spec.max_seq_len} ({would})")
    if settings.recipe and (idle := fp8.idle(spec)):
        faults.append(f"precision: {settings.precision} {idle} (precision=bf16 would do)")
    if data.tokenizer.kind == "bpe" and (size := data.tokenizer.vocab_size or BPE_SIZE) > spec.vocab_size:
        faults.append(too_small(spec.vocab_size, size, f", or data.tokenizer.vocab_size={spec.vocab_size}"))
    return faults


def too_small(vocabulary: int, needed: int, or_else: str = "") -> str:
    found = f"is {vocabulary}, fewer than the tokenizer's {needed}"
    return f"model.vocab_size: {found} (model.vocab_size={needed}{or_else})"


def prepared(planned: Plan, show: Show) -> tuple[Any, Prepared]:
    """The device and the data, and whether the model goes with them. Raises ConfigError."""
    device = pick_device(planned.settings.device)
    if recipe := planned.settings.recipe:
        fp8.require(recipe, device, f"precision: {planned.settings.precision}", "precision=bf16")
    check_kernel(planned, device)
    data = prepare(planned.data, show.preparing)
    faults = []
    if data.tokenizer.vocab_size > planned.spec.vocab_size:
        faults.append(too_small(planned.spec.vocab_size, data.tokenizer.vocab_size))
    if isinstance(sample := planned.settings.sample, S.TextSample):
        ids = data.tokenizer.encode(sample.prompt) or [data.tokenizer.eos_id]
        attempt(faults, lambda: check_length(planned.spec, len(ids), sample.tokens), "sample.")
    if faults:
        raise ConfigError(*faults)
    return device, data


def check_kernel(planned: Plan, device: Any) -> None:
    """Raises KernelError when the kernel that the user named cannot train each kind of layer there."""
    machine, dtype = machine_of(device), {"fp32": "float32", "bf16": "bfloat16"}[planned.settings.arithmetic]
    for block in planned.spec.blocks.values():
        packed = planned.data.documents or block.attention.visible_chunk is not None
        seen = {"window": block.attention.visible_window, "documents": packed}
        ask = block.attention.ask(dtype, needs_grad=True, **seen)
        if ask is not None:
            select(ask, machine, planned.settings.kernel)


def title(node: Mapping[str, Any], spec: Any) -> str:
    """What to call the model."""
    stated = (node.get("about") or {}).get("title")
    return stated or f"{spec.kind}, {spec.n_layers} layers of width {spec.d_model}"


# ---------------------------------------------------------------- from a plan to a result


def begin(
    planned: Plan, folder: Path, device: Any, data: Prepared, show: Show, counters: Mapping[str, Any] | None = None
) -> Run:
    """A run at its first step. Everything random is drawn from the seed. `counters` are those of the checkpoint that a
    run goes on from."""
    settings = planned.settings
    watch = choose_computing(settings, device, show, counters)
    batches = Batches(data.train, settings.batch_size, settings.seq_len, settings.seed, planned.data.documents)
    torch.manual_seed(settings.seed)
    if device.type == "cpu":
        keep_memory()
    model = build(planned.spec, device=str(device), kernel=settings.kernel, seed=settings.seed)
    if settings.recipe:
        products = fp8.convert(model, settings.recipe)
        slow = "" if settings.compile else "; nothing is gained without compile=true"
        show.say(f"{settings.precision}: {fp8.summary(products)}{slow}")
    return Run(
        name=planned.name,
        folder=folder,
        settings=settings,
        data=data,
        batches=batches,
        model=model,
        optimizer=settings.optim.build(model),
        records=Records(folder, (counters or {}).get("lengths")),
        show=show,
        peak=find_peak(device, settings.arithmetic),
        watch=watch,
    )


def choose_computing(
    settings: S.Training, device: Any, show: Show, counters: Mapping[str, Any] | None = None
) -> ThreadWatch:
    """Settles the number of threads, before anything is timed, and says where the precision asked for is slow.

    A run that goes on has the threads of its checkpoint, as another number adds floats up in another order.
    """
    watch = ThreadWatch(device)
    if counters:
        watch.restore(counters.get("threads", {}))
    elif choice := watch.begin():
        show.say(f"computes with {choice}")
    if settings.arithmetic == "bf16":
        note = slow_note(torch.bfloat16, device, f"precision: {settings.precision}", training=True)
        if note:
            show.say(f"{note} (precision=fp32 would do)")
    return watch


def restore(run: Run, checkpoint: Path) -> None:
    """Puts a run where a checkpoint was."""
    counters = store.load_run(checkpoint, run.model, run.optimizer)
    run.batches.restore(counters["data"])
    run.step = run.saved = counters["step"]
    run.tokens, run.last = counters["tokens"], counters["last"]
    run.clock.seconds = counters["seconds"]


def finish(run: Run) -> dict[str, Any]:
    """Trains to the end and writes the result, whichever it is."""
    settings = run.settings
    params = sum(parameter.numel() for parameter in run.model.parameters())
    what = f"{params:,} parameters on {run.device} in {settings.precision}"
    size = f"{settings.steps:,} steps of {settings.batch_size * settings.seq_len:,} tokens"
    run.show.say(f"{run.name}: {what}, {size}; MFU of {run.peak}")
    try:
        result = fit(run)
    except (ZooError, KeyboardInterrupt) as error:
        status = "failed" if isinstance(error, ZooError) else "stopped"
        write_result(run.folder, {"status": status, "error": str(error), "run": str(run.folder), "steps": run.step})
        raise
    finally:
        run.records.close()
        run.watch.end()
    write_result(run.folder, {"error": None, **result})
    run.show.say(f"{run.folder}: checkpoints, {PICTURE}, {METRICS}, {SAMPLES}")
    return result


# ---------------------------------------------------------------- a run's own files


def replan(folder: Path, overrides: Sequence[str]) -> Plan:
    """The plan of a run that is there, with what the user wants otherwise. Raises ConfigError."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: is no run, it has no {CONFIG} (the folder that zoo train wrote to)")
    try:
        cfg = OmegaConf.load(folder / CONFIG)
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{folder / CONFIG}: cannot be read, found {type(error).__name__}") from error
    assert isinstance(cfg, DictConfig)
    changes, faults = OmegaConf.create(), []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            faults.append(f"{override}: not an override, there is no '=' (write key=value)")
        elif key.split(".")[0] not in MAY_CHANGE:
            hint = did_you_mean(key, MAY_CHANGE) or f" (these may change: {', '.join(MAY_CHANGE)})"
            faults.append(f"{key}: a run that goes on keeps it{hint}")
        else:
            changes = OmegaConf.merge(changes, OmegaConf.from_dotlist([override]))
    if faults:
        raise ConfigError(*faults)
    merged = OmegaConf.merge(cfg, changes)
    assert isinstance(merged, DictConfig)
    return check(merged)


def output_folder() -> Path:
    """Hydra's output folder of this job; without Hydra, one named by the time."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        return Path(HydraConfig.get().runtime.output_dir)
    return Path("outputs") / time.strftime("%Y-%m-%d_%H-%M-%S")


def write_yaml(file: Path, node: Any) -> None:
    """Writes plain data, short nodes on one line."""
    with replacing(file) as draft:
        draft.write_text(yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120), encoding="utf-8")


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Lays a result over the one that is there, which may say more: the overrides that the run was started with."""
    file = folder / runs.RESULT
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    merged = {key: value for key, value in {**before, **result}.items() if value is not None}
    with replacing(file) as draft:
        draft.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
