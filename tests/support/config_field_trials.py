"""Set each field of a family's config.json to other legal values, and say what becomes of it: it changes nothing in the
reference either, it is read as the reference reads it, or it is refused. Used by test_config_fields.py."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import zoo
from support.reference_models import Case
from zoo.errors import ConfigError
from zoo.families.family import HARMLESS, by_model_type, read_family
from zoo.porting.field_effects import list_other_values

STYLES = ("full", "brief")
"""A config.json with every field stated, as transformers writes one, and one with the sizes alone."""

NOT_THE_MODELS = {
    *("architectures", "model_type", "transformers_version", "auto_map", "dtype", "torch_dtype", "torchscript"),
    *("quantization_config", "use_return_dict", "base_config_key", "sub_configs", "attribute_map"),
}
"""Fields that name the class or its files (a file's dtype is what it holds), and attributes that no config.json has."""

CLOSE = 5e-5
"""How far apart equal models may be, as a share of the largest number: further where `noise_of` says so."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """Fields of a case's config.json set to other values: one field, or several that are called harmless."""

    case: Case
    style: str
    changes: Mapping[str, Any]

    def __str__(self) -> str:
        said = ", ".join(f"{name}={json.dumps(value)}" for name, value in self.changes.items())
        return f"{self.case.name} ({self.style}): {said}"

    def halves(self) -> list[Trial]:
        """Divide the fields among two trials."""
        names = list(self.changes)
        parts = names[: len(names) // 2], names[len(names) // 2 :]
        return [Trial(self.case, self.style, {name: self.changes[name] for name in part}) for part in parts]


# ---------------------------------------------------------------- fields and their other values


@functools.cache
def starting_config(case: Case, style: str) -> dict[str, Any]:
    """The config.json of a case before a field is changed."""
    config = getattr(transformers, case.config)
    sizes = json.loads(json.dumps(copy.deepcopy(dict(case.sizes))))
    named = {"model_type": config.model_type, "architectures": [case.model]}
    if style == "brief":
        return {**sizes, **named}
    return {**json.loads(config(**sizes).to_json_string(use_diff=False), object_hook=_read_infinity), **named}


def _read_infinity(node: dict[str, Any]) -> Any:
    return float(node["__float__"]) if set(node) == {"__float__"} else node


@functools.cache
def field_names(case: Case) -> list[str]:
    """Every field that the config class states, that its files read, or that is called harmless here."""
    config, model = getattr(transformers, case.config), getattr(transformers, case.model)
    sources = [inspect.getsource(sys.modules[each.__module__]) for each in (config, model)]
    read = [
        *re.findall(r"kwargs\.(?:get|pop)\(\s*\"(\w+)\"", sources[0]),
        *re.findall(r"\bconfig\.([a-z]\w*)\b(?!\()", sources[1]),
        *re.findall(r"getattr\([\w.]*config, \"(\w+)\"", sources[1]),
    ]
    stated = [*_types(case), *config.attribute_map, *starting_config(case, "full")]
    names = {*stated, *read, *HARMLESS, "rope_theta", "rope_scaling", "partial_rotary_factor"}
    methods = {name for name in names if callable(getattr(transformers.PreTrainedConfig, name, None))}
    return sorted(name for name in names - NOT_THE_MODELS - methods if not name.startswith("_"))


def _types(case: Case) -> dict[str, str]:
    """The type of each field that the config class states."""
    return {each.name: str(each.type) for each in dataclasses.fields(getattr(transformers, case.config))}


def called_harmless(case: Case) -> frozenset[str]:
    """The fields of which the family says that they change no number."""
    family = read_family(by_model_type()[getattr(transformers, case.config).model_type])
    return (HARMLESS | set(family.harmless)) - family.reads - set(family.requires) - {"tie_word_embeddings"}


def trials(case: Case) -> Iterator[Trial]:
    """List the trials of a case: those fields together that are called harmless, and each other field by itself with a
    few other values."""
    types, defaults, harmless = _types(case), starting_config(case, "full"), called_harmless(case)
    for style in STYLES:
        start, together = starting_config(case, style), {}
        for name in field_names(case):
            others = list_other_values(name, start.get(name, defaults.get(name)), types.get(name, ""))
            values = [value for value in others if name not in start or not _is_same(start[name], value)]
            if name in harmless:
                together |= dict.fromkeys([name] if values else [], next(iter(values), None))
            else:
                kept = values if style == "full" else values[:1]
                yield from (Trial(case, style, {name: value}) for value in kept)
        yield Trial(case, style, together)


def _is_same(a: Any, b: Any) -> bool:
    return a == b and type(a) is type(b)


# ---------------------------------------------------------------- what becomes of a trial


class Illegal(Exception):
    """The reference itself refuses a config, or cannot compute what it describes."""


def inputs(case: Case) -> dict[str, Any]:
    """Token ids, some of them special, and what else the case gives."""
    ids = torch.randint(0, 40, (2, case.tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, **case.inputs(ids)}


def build_reference(case: Case, config: dict[str, Any]) -> Any:
    """Build the reference model that a config.json describes. Equal names and shapes get equal values in all models.
    Raises Illegal."""
    try:
        read = getattr(transformers, case.config).from_dict(copy.deepcopy(config))
        read._attn_implementation = case.attention
        torch.manual_seed(0)
        model = getattr(transformers, case.model)(read).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point() and not any(part in name for part in case.unbind):
                    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                    drawn = torch.randn(tensor.shape, generator=generator) * 0.15
                    tensor.copy_(drawn + 1 if tensor.ndim == 1 and name.endswith("weight") else drawn)
    except Exception as error:  # whatever a reference ends in
        raise Illegal(f"{type(error).__name__}: {error}") from error
    return model


def save_reference(model: Any, folder: Path) -> None:
    """Save the reference. Raises Illegal."""
    try:
        model.save_pretrained(folder)
    except Exception as error:  # a config that is checked only now
        raise Illegal(f"{type(error).__name__}: {error}") from error


GUESSED = (
    "else (input_ids != self.config.pad_token_id)",
    "make_default_2d_attention_mask",
    "(input_ids != self.pad_index).sum",
)
"""What stands in the files of references that take pad tokens for padding."""


def _say_plainly(case: Case, model: Any) -> dict[str, Any]:
    """What our models take for granted, for references that guess it: no cache (FSMT makes no causal mask where its
    config has `use_cache`), and no padding (DPR, T5Gemma and XLM hide pad tokens where they are given no mask)."""
    plain: dict[str, Any] = {}
    if "use_cache" in inspect.signature(model.forward).parameters:
        plain["use_cache"] = False
    source = inspect.getsource(sys.modules[type(model).__module__])
    if any(text in source for text in GUESSED):
        read = {name: given for name, given in inputs(case).items() if name.endswith("input_ids")}
        masks = {name.replace("input_ids", "attention_mask"): torch.ones_like(given) for name, given in read.items()}
        plain |= masks
    return plain


def run_reference(case: Case, model: Any) -> dict[str, Any]:
    """Run the reference. Raises Illegal."""
    try:
        with torch.no_grad():
            found = model(**inputs(case), **_say_plainly(case, model), output_hidden_states=True, return_dict=True)
    except Exception as error:  # a pass of a config that the reference cannot run
        raise Illegal(f"{type(error).__name__}: {error}") from error
    if isinstance(found, tuple):
        raise Illegal("gives a tuple, whose parts have no names")
    states = found.get("decoder_hidden_states") or found.get("hidden_states")
    states = None if case.streams else states  # which end before the final norm there
    made = {"hidden": states[-1] if states else None, "logits": found.get("prediction_logits", found.get("logits"))}
    names = ("seq_relationship_logits", "sop_logits", "pooler_output")
    made["pooled"] = next((found[name] for name in names if found.get(name) is not None), None)
    made = {name: tensor for name, tensor in made.items() if tensor is not None}
    if not all(tensor.isfinite().all() for tensor in made.values()):
        raise Illegal("gives numbers that are not finite")
    return made


@functools.cache
def starting_outcome(case: Case, style: str) -> dict[str, Any]:
    """What the reference gives before a field is changed."""
    return run_reference(case, build_reference(case, starting_config(case, style)))


def run_ours(case: Case, folder: Path) -> dict[str, Any]:
    """Load the folder here, and run the model. Raises ConfigError."""
    model = zoo.load(folder)
    given = inputs(case)
    with torch.no_grad():
        found = model(given.pop("input_ids"), None, **given)
    return {"hidden": found.hidden, "logits": found.logits, "pooled": found.pooled}


def find_gap(ours: Mapping[str, Any], theirs: Mapping[str, Any], bound: float) -> str:
    """Say how far apart two outcomes are, as a share of the largest number where that is above 1; "" where they are no
    further than `bound`."""
    for name, tensor in theirs.items():
        mine = ours.get(name)
        if mine is None or mine.shape != tensor.shape:
            return f"{name} of shape {list(tensor.shape)} is {None if mine is None else list(mine.shape)}"
        gap = float((mine - tensor).abs().max()) / max(1.0, float(tensor.abs().max()))
        if gap > bound:
            return f"{name} apart by {gap:.1g}"
    return ""


def noise_of(case: Case, reference: Any, given: Mapping[str, Any]) -> float:
    """What rounding may do to a model: many times what the reference's own outcome, `given`, changes by when each of
    its weights is moved by a part in 10⁷."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn_like(parameter))
    moved = run_reference(case, reference)
    gaps = (float((moved[name] - each).abs().max()) / max(1.0, float(each.abs().max())) for name, each in given.items())
    return min(max(CLOSE, 30 * max(gaps)), 1e-3)


def verdicts(trial: Trial, folder: Path) -> Iterator[tuple[Trial, str]]:
    """Say what becomes of a trial, and of each field of one that has several and is not harmless as a whole."""
    found = verdict(trial, folder)
    if found == "harmless" or len(trial.changes) <= 1:
        yield trial, found
        return
    for half in trial.halves():
        yield from verdicts(half, folder)


def verdict(trial: Trial, folder: Path) -> str:
    """Say what becomes of a trial: 'read', 'harmless', 'refused: …', 'illegal: …' or 'WRONG: …'."""
    case = trial.case
    config = {**starting_config(case, trial.style), **trial.changes}
    try:
        reference = build_reference(case, config)
        theirs = run_reference(case, reference)
        save_reference(reference, folder)
    except Illegal as error:
        return f"illegal: {str(error).splitlines()[0][:100]}"
    (folder / "config.json").write_text(json.dumps(config))
    try:
        ours = run_ours(case, folder)
    except ConfigError as error:
        return f"refused: {error.faults[0]}"
    if find_gap(ours, theirs, CLOSE) and (gap := find_gap(ours, theirs, noise_of(case, reference, theirs))):
        return f"WRONG: {gap}"
    return "read" if find_gap(theirs, starting_outcome(case, trial.style), 1e-6) else "harmless"
