"""Provide the commands of `zoo` as Python functions, which return plain data and raise ConfigError for faulty input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.lazy import nn

if TYPE_CHECKING:
    from zoo.costs.setup import Setup
    from zoo.run.layer import Model
    from zoo.spec import Spec
    from zoo.training.result import TrainingResult

    Named = str | Path | Mapping[str, Any] | Spec
    """A model: a packaged name, the path of a file or folder, the plain data of a YAML, or a Spec."""


def stats(
    config: Named,
    overrides: Iterable[str] = (),
    *,
    lora: Mapping[str, Any] | None = None,
    freeze: Sequence[str] = (),
    train: Sequence[str] = (),
    **setup: Any,
) -> dict[str, Any]:
    """Price a model and return the figures of `zoo stats --json`. Imports no torch.

    `config` is a packaged name, the path of a file or folder, the plain data of a YAML, or a Spec. `setup` are fields
    of `zoo.costs.Setup`: context, batch, dtype, optimizer, gpu and so on. `lora`, `freeze` and `train` are settings of
    a training config; with any of them, `trained` in the result has the figures of the trainable weights. Without these
    three and overrides, an adapter, or a run that trained part of its model, is priced as it was trained. For a folder
    with weights or a GGUF file, `stored` has the sizes of the stored tensors.
    """
    from zoo.costs import price
    from zoo.run.builder import load_spec

    overrides = list(overrides)
    spec = load_spec(config, overrides)
    tuned = tune_setup(make_setup(setup), lora, freeze, train)
    tuned = tuned if overrides else tune_as_trained(config, tuned)
    return add_stored(config, overrides, price(spec, tuned))


def tune_setup(setup: Setup, lora: Mapping[str, Any] | None, freeze: Sequence[str], train: Sequence[str]) -> Setup:
    """Return the set-up with the trainable weights that these training settings select. Raises ConfigError for a faulty
    field of `lora`."""
    if lora is None and not freeze and not train:
        return setup
    from zoo.data.settings import parse_node
    from zoo.training.start.begin import StartSettings
    from zoo.training.start.lora import Lora, complete_lora

    adapters = None if lora is None else parse_node(Lora, complete_lora(lora), "lora")
    return StartSettings(freeze=tuple(freeze), train=tuple(train), lora=adapters).tune(setup)


def tune_as_trained(config: Named, setup: Setup) -> Setup:
    """Return the set-up with the trainable weights of the run in the folder `config`. The set-up is unchanged if it
    already says which weights train, or if `config` is no folder of a run. Raises CheckpointError for faulty files."""
    from zoo.compose.targets import is_file

    if setup.tunes or not (isinstance(config, str | Path) and is_file(config)):
        return setup
    from zoo.families.described import is_config  # a packaged model needs no family
    from zoo.model_hub import locate

    path = locate(config)
    if path.is_file() or is_config(path):
        return setup
    from zoo.training.start.trained_part import find_trained_part

    part = find_trained_part(path)
    return tune_setup(setup, part.get("lora"), part.get("freeze", ()), part.get("train", ()))


def add_stored(config: Named, overrides: Sequence[str], priced: dict[str, Any]) -> dict[str, Any]:
    """Add the sizes of the stored tensors to the figures `priced`, if the model has weight files and no overrides."""
    from zoo.compose.targets import is_file

    if overrides or not (isinstance(config, str | Path) and is_file(config)):
        return priced
    from zoo.checkpoint.sizes import measure_stored  # slow, and of no use to a packaged model
    from zoo.model_hub import locate

    found = measure_stored(locate(config))
    if found is None:
        return priced
    found.setdefault("bits_per_parameter", round(found["bytes"] * 8 / priced["params"]["total"], 2))
    return {"params": priced["params"], "stored": found, **priced}


def diff(a: Named, b: Named, overrides: Iterable[str] = (), **setup: Any) -> dict[str, Any]:
    """Compare two models and return the data of `zoo diff --json`. `architecture` has the fields that differ, by dotted
    path; `figures` has each figure's values in `a` and `b`, their `delta` and the `relative` difference."""
    from zoo.analysis import compare
    from zoo.costs import price
    from zoo.run.builder import load_spec

    first, second = (load_spec(config, list(overrides)) for config in (a, b))
    priced = [price(spec, make_setup(setup)) for spec in (first, second)]
    return compare.compare_specs(first, second, compare.pair_figures(first, second, priced))


def make_setup(fields: Mapping[str, Any]) -> Setup:
    """Make a Setup from its fields. Raises ConfigError for an unknown field or a faulty value."""
    from zoo.costs.setup import NAMES, Setup
    from zoo.errors import ConfigError, did_you_mean

    if strange := [name for name in fields if name not in NAMES]:
        raise ConfigError(*(f"{name}: no field of a set-up{did_you_mean(name, NAMES)}" for name in strange))
    return Setup(**fields)


def train(
    config: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    recipe: str | Path | None = None,
    trust: bool = False,
    resume: str | Path | None = None,
    callbacks: Iterable[object] = (),
) -> TrainingResult:
    """Train one run, as `zoo train model=CONFIG OVERRIDES` does; return its outcome, history and model.

    `config` is a packaged model or the path of a YAML file, `recipe` a whole training config to start from (`-c`), and
    `resume` the folder of a run to continue, or RUN@STEP (`--resume`). With `trust` the recipe may set Hydra's own
    keys, and thus run any program. `callbacks` have methods of `zoo.Callback`.

    The calling program's state is left as it was: Hydra's globals, logging, signal handlers, torch's CPU random state
    and thread count, and the allocator's settings (`zoo train` itself keeps freed memory in the process).

    Raises ConfigError for faulty input, before anything is written, ZooError when the training or a callback fails, and
    KeyboardInterrupt at Ctrl-C, after saving a checkpoint.
    """
    from zoo.errors import ConfigError
    from zoo.lazy import torch
    from zoo.training.callbacks import hosted
    from zoo.training.result import TrainingResult

    chosen = [] if config is None else [f"model='{config}'"]
    with hosted(list(callbacks)) as host, torch.random.fork_rng(devices=[]):
        if resume is None:
            outcome = _launch([*chosen, *overrides], recipe, trust)
        elif config is None and recipe is None:
            outcome = _resume(Path(resume), list(overrides))
        else:
            raise ConfigError("resume: the run has its config, and goes on with it (leave out config and recipe)")
    run = host.runs[-1]
    return TrainingResult(outcome, run.records.lines, run.model.eval())


def _launch(overrides: list[str], recipe: str | Path | None, trust: bool) -> Mapping[str, Any]:
    from zoo.errors import ConfigError
    from zoo.jobs.plan import plan_launch

    logs = ("hydra/job_logging", "hydra/hydra_logging")
    quiet = [f"{key}=none" for key in logs if not any(each.startswith(f"{key}=") for each in overrides)]
    with plan_launch([*quiet, *overrides], config=None if recipe is None else Path(recipe), trust=trust) as plan:
        if plan.sweeps:
            raise ConfigError("hydra.mode: a sweep is for `zoo train -m` (one value each)")
        return plan.run()


def _resume(folder: Path, overrides: list[str]) -> Mapping[str, Any]:
    from zoo.jobs.train import resume_run
    from zoo.runs import remember, split_choice

    try:
        return resume_run(folder, overrides)
    finally:
        remember(split_choice(folder)[0])


def evaluate(
    model: str | Path | Model,
    texts: Sequence[Any] | None = None,
    *,
    tasks: Sequence[str | Path] | None = None,
    similarity: str | Path | None = None,
    retrieval: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a model and return the data of `zoo eval --json`. `model` is a folder, or a model with its `tokenizer`.

    - Loss, perplexity and bits per byte of `texts`, of the data that `overrides=["data=jsonl", "data.path=…"]` names,
      or by default of the run's own validation split. `zoo.training.evaluate.evaluate` describes further options, such
      as `context`, `stride`, `weights` and `fp8`.
    - `tasks`: lm-evaluation-harness tasks, by name or YAML file, with `limit` and `num_fewshot` (`zoo.text.tasks`).
    - `similarity`: a file of text pairs with scores; `retrieval`: a file of queries and their documents; both with
      `pooling` and `batch_size` (`zoo.text.similarity`).

    Raises ConfigError for faulty input, and if more than one of these is requested.
    """
    from zoo.errors import ConfigError

    asked = {"tasks": tasks, "similarity": similarity, "retrieval": retrieval}
    chosen = [name for name, value in {"texts": texts, **asked}.items() if value is not None]
    if len(chosen) > 1:
        raise ConfigError(f"{chosen[1]}: was requested together with {chosen[0]} (one of the two)")
    if tasks is not None:
        from zoo.text.tasks import evaluate_tasks

        return evaluate_tasks(model, tasks, **options)
    if similarity is not None:
        from zoo.text.similarity import evaluate_similarity

        return evaluate_similarity(model, similarity, **options)
    if retrieval is not None:
        from zoo.text.similarity import evaluate_retrieval

        return evaluate_retrieval(model, retrieval, **options)
    from zoo.training.evaluate import evaluate as evaluate_loss

    return evaluate_loss(model, texts, **options)


def export(
    model: nn.Module,
    path: str | Path,
    *,
    verify: bool = True,
    shard: int | None = None,
    into: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Write a model as a Hugging Face folder that transformers loads; return the folder.

    A model loaded from a multimodal folder is written as that folder with the text model's weights replaced. For a
    model from elsewhere, such as a run that started from its weights, `into` names the multimodal folder.

    With `verify` the folder appears only after transformers, in a fresh process, has computed the model's own ids and
    logits from it. Raises ConfigError for an architecture that fits no family, with the fields that prevent it, and
    CheckpointError when the logits differ. `shard` is the maximum bytes of a weight file; with `force` a model that zoo
    did not write is replaced too.
    """
    from zoo.checkpoint import hf
    from zoo.checkpoint.stored import StoredModel
    from zoo.checkpoint.verify_folder import require_transformers
    from zoo.text.handover import verify_draft

    folder, own, check = Path(path), getattr(getattr(model, "source", None), "folder", None), None
    if verify:
        require_transformers()
        check = lambda draft: verify_draft(model, own or draft, draft, folder)  # noqa: E731
    whole = None if into is None else Path(into)
    hf.save(StoredModel.of(model), folder, shard=shard or hf.SHARD, into=whole, force=force, check=check)
    return folder
