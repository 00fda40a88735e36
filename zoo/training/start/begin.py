"""Prepare a built model for training: read initial weights, attach adapters, and freeze other weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import store
from zoo.checkpoint.adapter_files import choose_base, load_adapter, read_plan, read_tensors
from zoo.checkpoint.base_identity import is_base
from zoo.checkpoint.finding import find
from zoo.checkpoint.held_base import hold_base, measure_held, open_base, refuse_quantised
from zoo.checkpoint.parallel_checkpoint import fill_pieces, locate
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.tuning import TunedSetup, Tuning
from zoo.distributed.sharded_tensors import own_part
from zoo.errors import CheckpointError, ConfigError, refuse
from zoo.lazy import torch
from zoo.model.init import initialise
from zoo.spec import Buffer, table, tensors
from zoo.training.precision import MASTER
from zoo.training.start.deferred_tensor import defer_tensors, store_deferred
from zoo.training.start.frozen import choose_trained, freeze_others
from zoo.training.start.lora import Lora, list_contradictions, read_adapter
from zoo.training.start.other_tokenizer import check_tokens
from zoo.training.start.transfer import transfer

if TYPE_CHECKING:
    from zoo.checkpoint.stored import StoredTensors
    from zoo.data import TokenizerSettings
    from zoo.model.tower import Topology
    from zoo.run.layer import Model


@dataclass(frozen=True)
class StartSettings:
    """The settings of a run's start. The fields are named as in a training config."""

    weights: str | None = None
    other_tokenizer: bool = False
    deepen: str = "stack"
    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    lora: Lora | None = None
    precision: str = "fp32"
    seed: int = 0

    @classmethod
    def of(cls, settings: Any) -> StartSettings:
        """Copy the fields from a run's settings."""
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})

    @property
    def partly(self) -> bool:
        """Whether some weights of the model may be frozen."""
        return bool(self.freeze or self.train or self.lora)

    @property
    def holds(self) -> bool:
        """Whether frozen weights are held as the base stores them. False in bf16_master, whose bfloat16 copies are made
        from float32 weights."""
        return self.lora is not None and self.precision != MASTER

    def find_faults(self, spec: Topology, fp8: bool) -> list[str]:
        """List conflicts between the settings, as far as the config shows them."""
        faults: list[str] = []
        checks: list[Callable[[], Any]] = [lambda: self.choose_trained(spec)]
        if self.lora is not None:
            checks.append(lambda: self.lora and self.lora.choose(spec))
            if self.weights is None:
                faults.append("lora: adapts weights, and there are none (weights=FOLDER)")
            if self.lora.quantise and not self.holds:
                found = f"is {self.lora.quantise}, and {MASTER} has bfloat16 copies of float32 weights"
                faults.append(f"lora.quantise: {found} (precision=bf16)")
            if fp8:
                faults.append("lora: its products are not taken in float8 (precision=bf16)")
        elif self.weights is None and self.deepen != "stack":
            faults.append(f"deepen: is {self.deepen}, and no weights are read (weights=FOLDER)")
        if self.weights is None and self.other_tokenizer:
            faults.append("other_tokenizer: is true, and no weights are read (weights=FOLDER)")
        for check in checks:
            try:
                check()
            except ConfigError as error:
                faults += error.faults
        return faults

    def choose_trained(self, spec: Topology) -> set[str]:
        """Return the names of the model's own weights that train. Raises ConfigError for faulty patterns."""
        return choose_trained(spec, self.freeze, self.train, self.lora is not None)

    def describe_tuning(self, spec: Topology, width: int | None = None) -> Tuning:
        """Return the Tuning that pricing needs: which weights train, which adapters are added, and how the frozen
        weights are held. Their storage is read from the base's files; without these, each value has `width` bytes.
        Raises ConfigError for faulty patterns."""
        trained = frozenset(self.choose_trained(spec)) if self.partly else None
        if self.lora is None:
            return Tuning(trained)
        stored: StoredTensors | int | None = width
        if self.weights is not None:
            with suppress(CheckpointError):  # gone, as a run's that goes on may be: float32 is the most that it takes
                stored = open_base(self.weights)
        held = {}
        if self.holds and stored is not None:
            held = measure_held(spec, trained or (), self.lora.quantise, stored)
        lora = self.lora
        return Tuning(trained, lora.choose(spec), lora.rank, lora.dropout > 0, held=held, dora=lora.dora)

    def tune(self, setup: Setup) -> Setup:
        """Return a set-up in which only these settings' trained weights train. Frozen weights are in the set-up's
        dtype."""
        tuning = partial(self.describe_tuning, width=DTYPES[setup.dtype])
        return TunedSetup(**vars(setup), tuning=tuning) if self.partly else setup

    def check(self, spec: Topology, tokenizer: TokenizerSettings, say: Callable[[str], object]) -> None:
        """Check the folder of weights, if any. Raises CheckpointError if the folder is unreadable, and ConfigError if
        it does not fit the model or has another tokenizer."""
        if self.weights is not None:
            check_weights(self.weights, spec, self.deepen)
            if self.lora is not None and self.lora.adapter is not None:
                check_adapter(self.lora, self.lora.adapter, spec)
                if line := describe_other_base(self.weights, self.lora.adapter):
                    say(line)
            elif self.lora is None and read_plan(find(self.weights)) is not None:
                found = "has adapters, which are merged into its base, and all weights train"
                say(f"weights: {self.weights} {found} (lora={{adapter: {self.weights}, …}} goes on with adapters)")
            if self.lora is not None and self.lora.quantise:
                refuse_quantised(open_base(self.weights), spec)
            check_tokens(self.weights, tokenizer, self.other_tokenizer, say)

    def read(self, model: Model, say: Callable[[str], object]) -> StartWeights | None:
        """Open the initial weights, report their origin, and fill a built model with them. A model on the meta device
        is filled later. Returns None without initial weights."""
        if self.weights is None:
            return None
        found = open_start(self.weights, model.whole, self.deepen, self.seed)
        for line in found.lines:
            say(line)
        if not next(model.parameters()).is_meta:
            found.fill(model)
        return found

    def complete(self, model: Model, found: StartWeights | None, device: torch.device) -> None:
        """Give a model all its initial weights: those of `found`, random values for all others, and the adapters. A
        process that holds a part of each weight gets its part."""
        initialise(model, self.seed, None if found is None else found.fresh)
        if found is not None:
            found.fill(model)
        if self.lora is not None:
            from zoo.run.adapters import draw_adapters

            draw_adapters(model, device, self.seed)

    def restrict(self, model: Model, equal: set[str] | None) -> str | None:
        """Attach adapters, and freeze the weights that do not train. `equal` names the weights that `read` copied
        unchanged (None for a resumed run, whose checkpoint has the names). Returns a line on the share that trains."""
        trained = self.choose_trained(model.spec)
        if self.lora is not None:
            from zoo.run.adapters import Adapters, attach_adapters

            lora, paths = self.lora, self.lora.choose(model.spec)
            plan = Adapters(lora.rank, lora.alpha, lora.dropout, paths, quantise=lora.quantise, dora=lora.dora)
            if equal is not None and self.weights is not None:
                fixed = {
                    name for name, part, _ in tensors(model.spec, model.spec.d_model) if not isinstance(part, Buffer)
                }
                beside = model.state_dict().keys() - (equal & fixed - trained)
                base, found = choose_base(self.weights)
                plan = replace(plan, trained=tuple(sorted(beside)), base=base, hash=found)
            attach_adapters(model, plan, self.seed)
        if not self.partly:
            return None
        count, whole = freeze_others(model, trained)
        return f"trains {count:,} of {whole:,} parameters ({count / whole:.2%})"

    def hold(self, model: Model, device: torch.device) -> None:
        """Hold the frozen weights as the adapters' base stores them, after all other weights are read. A model on the
        meta device gets all its weights."""
        if self.holds:
            hold_base(model, device, self.seed)

    def take_adapter(self, model: Model) -> None:
        """Load `lora.adapter` into a new model: its adapters, and the weights that were trained with them."""
        if self.lora is not None and self.lora.adapter is not None:
            load_adapter(model, find(self.lora.adapter))

    def streams(self, spec: Topology) -> bool:
        """Whether `hold` can read a model on the meta device tensor by tensor, so that the whole model is never in
        float32. The base must have the model's architecture."""
        return self.holds and self.weights is not None and store.load_spec(self.weights) == spec


def check_weights(folder: str | Path, spec: Topology, added: str) -> None:
    """Check that a folder's weights can start this model, by running the transfer on the meta device. Raises
    CheckpointError if the folder cannot be read, and ConfigError if its weights do not fit."""
    source = store.load_spec(folder)
    shapes = table(source, source.d_model)
    transfer(source, spec, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, added)


def describe_other_base(weights: str, adapter: str) -> str | None:
    """Return a line that adapters were trained for other weights than `weights`; None if `weights` are the adapters'
    base, or if the adapters state no base."""
    plan = read_plan(find(adapter))
    if plan is None or plan.hash is None or is_base(weights, plan.hash):
        return None
    return (
        f"lora.adapter: {adapter} was trained over {plan.base}, and {weights} has other weights (weights={plan.base})"
    )


def check_adapter(lora: Lora, adapter: str, spec: Any) -> None:
    """Check that a folder's adapters are those that `lora` describes. Raises ConfigError, one line for each difference,
    and CheckpointError for a broken folder."""
    plan = read_adapter(adapter)
    faults = list(list_contradictions(vars(lora), plan, adapter))
    if odd := sorted({*lora.choose(spec)} ^ {*plan.paths}):
        faults.append(f"lora.on: {odd[0]} is adapted in one of the config and {adapter} alone, of {len(odd)} such")
    refuse(faults)
    read_tensors(plan, spec, find(adapter), "cpu")


@dataclass(frozen=True)
class StartWeights:
    """The weights that a model starts from, read lazily: the names of the `fresh` ones, which keep their random values;
    the names of weights copied unchanged from the folder (`equal`); and lines about the conversion."""

    tensors: StoredTensors
    fresh: set[str]
    equal: set[str]
    lines: list[str]

    def fill(self, model: Model) -> None:
        """Fill a built model, in place and tensor by tensor. A process that holds a part of each weight reads its
        part."""
        state = model.state_dict()
        held = {name: each for name, each in state.items() if name in self.tensors and name not in self.fresh}
        for each in held.values():
            own_part(each.detach()).zero_()  # the padding of the last part
        fill_pieces({name: locate(model.shares, name, each) for name, each in held.items()}, self.tensors)


def open_start(folder: str | Path, spec: Topology, added: str, seed: int) -> StartWeights:
    """Open a folder's weights, converted for a model with this Spec."""
    source = store.open_model(folder, torch.float32, mapped=False)
    held = defer_tensors(source.tensors)
    made = transfer(source.spec, spec, held, added, seed)
    assert table(spec, spec.d_model).keys() <= made.held.keys() | made.fresh
    notes = describe_dropout(getattr(source.source, "config", {}))
    count = sum(form.numel() for form in source.tensors.forms.values())
    equal = {name for name, each in made.held.items() if each is held.get(name)}
    lines = [f"weights: {len(held)} tensors, {count:,} values, of {find(folder)}", *made.lines, *notes]
    return StartWeights(store_deferred(made.held), made.fresh, equal, lines)


def describe_dropout(config: Mapping[str, Any]) -> list[str]:
    """Report dropout rates of a config.json. They are not adopted, because `dropout` is a setting of the run."""
    stated = {key: each for key, each in config.items() if "drop" in key and isinstance(each, float) and each > 0}
    fields = ", ".join(f"{key}={each}" for key, each in stated.items())
    return [f"dropout: as the run's settings say, not as config.json ({fields})"] if stated else []
