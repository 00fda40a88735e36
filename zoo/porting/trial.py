"""Read a reference's config.json and tensors by a draft, and compare the two models stage by stage."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from zoo.checkpoint.conversion import Entry
from zoo.checkpoint.hf.opening import compose_spec, read_presence
from zoo.checkpoint.mapping import find_entries, matches
from zoo.errors import ConfigError, short
from zoo.porting.draft import Draft
from zoo.porting.reference_model import Reference
from zoo.spec import Buffer, tensors

CLOSE = 5e-5
"""Largest difference explained by float32 rounding in a tiny model, relative to the largest value if that is above
1."""


GUESSES = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError, AssertionError)
"""Errors that a family's expressions and rows may raise on a config of another type."""


@dataclass
class TrialOutcome:
    """The result of trying a draft on a reference. `faults` say why the draft cannot read the reference. `lost` are the
    model's tensors without a row. `missing` and `misshapen` are tensors that the draft requires, but that the reference
    lacks or has in another shape; `strange` are tensors of the reference that the draft does not know. If there are
    none of these, both models were run, and `gaps` has the largest difference at each stage."""

    body: Any = None  # a Body, once the config is read
    spec: Any = None
    faults: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    misshapen: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    gaps: dict[str, float] = field(default_factory=dict)
    model: Any = None

    @property
    def unplaced(self) -> int:
        """The number of tensors of draft and reference that are not placed."""
        return len(self.lost) + len(self.missing) + len(self.misshapen) + len(self.strange)

    @property
    def is_equal(self) -> bool:
        """Whether the logits are equal."""
        return bool(self.gaps) and not self.gaps["logits"] > CLOSE

    @property
    def departure(self) -> str | None:
        """The first stage whose outputs differ; None if there is none."""
        return next((stage for stage, gap in self.gaps.items() if not gap <= CLOSE), None)

    @property
    def rank(self) -> tuple[float, ...]:
        """The draft's distance from its reference: unplaced tensors, how early the first stage differs, by how much."""
        if self.spec is None:
            return (math.inf, 0.0, 0.0)
        if not self.gaps:
            return (float(self.unplaced), 0.0, math.inf)
        if self.is_equal:
            return (0.0, -math.inf, 0.0)
        first = self.departure or "logits"
        return (0.0, -float(list(self.gaps).index(first)), self.gaps[first] + self.gaps["logits"])

    def is_better(self, other: TrialOutcome) -> bool:
        """Whether this outcome is nearer to the reference than another. If both first differ at the same stage, its
        difference must be below 0.7 of the other's."""
        mine, theirs = self.rank, other.rank
        if mine[:2] != theirs[:2]:
            return mine < theirs
        return mine[2] < 0.7 * theirs[2]


def try_draft(draft: Draft, reference: Reference) -> TrialOutcome:
    """Read a reference's config and tensors by a draft. If all tensors are placed, both models are run."""
    outcome = TrialOutcome()
    try:
        family = draft.to_family()
        stated = read_presence(family, reference.config, reference.shapes)
        outcome.body = family.body({**reference.config, **stated}, "config.json", _find_tying(draft, reference))
        outcome.spec = compose_spec(outcome.body)
    except ConfigError as error:
        outcome.faults = [fault.removeprefix("config.json: ") for fault in error.faults]
        return outcome
    except GUESSES as error:
        outcome.faults = [short(error)]
        return outcome
    return try_spec(outcome, reference)


def try_spec(outcome: TrialOutcome, reference: Reference) -> TrialOutcome:
    """Compare a draft's Spec with the reference: the tensors and, if all are placed, the outputs."""
    try:
        entries, outcome.lost = find_entries(outcome.spec, outcome.body)
        _compare_names(outcome, entries, reference)
        if not outcome.unplaced:
            _run(outcome, entries, reference)
    except (*GUESSES, RuntimeError) as error:
        outcome.faults, outcome.spec, outcome.gaps = [short(error)], None, {}
    return outcome


def _find_tying(draft: Draft, reference: Reference) -> dict[str, Any] | None:
    """Return the patch that ties the head if the file lacks a weight for it, and else unties it. None without a head of
    kind `lm`, and if the name of the head's weight is unknown."""
    kind = (draft.to_family().template(reference.architecture).get("head") or {}).get("kind")
    if kind != "lm" or draft.head is None:
        return None
    return {"head": {"tied": draft.head not in reference.tensors}}


def _compare_names(outcome: TrialOutcome, entries: list[Entry], reference: Reference) -> None:
    """Compare the tensors that the draft requires with the reference's."""
    body, shapes = outcome.body, reference.shapes
    family = body.family
    wanted: dict[str, Entry] = {}
    for entry in entries:
        for name, shape in entry.shapes_of_theirs():
            wanted[name] = entry
            if name not in shapes:
                if not matches(name, [body.full_name(each) for each in family.optional]):
                    outcome.missing[name] = entry.ours
            elif shapes[name] != shape:
                outcome.misshapen.append(name)
    left = [body.full_name(each) for each in (*family.same, *family.unread, *family.ignore, *family.dropped)]
    outcome.strange = [name for name in shapes if name not in wanted and not matches(name, left)]


def _run(outcome: TrialOutcome, entries: list[Entry], reference: Reference) -> None:
    """Build Zoo's model with the reference's weights, run it, and measure the gaps stage by stage."""
    from zoo.run.layer import Model

    found, model = reference.tensors, Model(outcome.spec).eval()
    made: dict[str, torch.Tensor] = {}
    for entry in entries:
        if all(name in found for name in entry.theirs):
            ours = entry.to_ours([found[name] for name in entry.theirs])
            made |= dict(zip(entry.ours, ours, strict=True))
    for name, part, _ in tensors(outcome.spec, outcome.spec.d_model):
        if name not in made and isinstance(part, Buffer):
            made[name] = torch.zeros(part.shape)
    model.load_state_dict(made)
    outcome.model = model
    theirs, ours = reference.stages, run_ours_in_stages(model, reference.draw_ids())
    outcome.gaps = {name: measure_gap(ours[name], each) for name, each in theirs.items() if name in ours}


def run_ours_in_stages(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run a model of Zoo and record the outputs of the stages in `Reference.stages`."""
    found: dict[str, torch.Tensor] = {}
    hooks = []

    def note(stage: str, module: Any, before: bool = False) -> None:
        def see(module: Any, args: Any, out: Any = None) -> None:
            found[stage] = args[0] if before else out

        hooks.append(module.register_forward_pre_hook(see) if before else module.register_forward_hook(see))

    for index, block in enumerate(model.blocks):
        if index == 0:
            note("embedding", block, before=True)
        note(f"layer {index}", block)
        for stage, name in (("attention", "attention"), ("feed-forward", "ffn")):
            if hasattr(block, name):
                note(f"layer {index} {stage}", getattr(block, name))
    try:
        with torch.no_grad():
            out = model(ids, None)
    finally:
        for hook in hooks:
            hook.remove()
    return {**found, "norm": out.hidden, "logits": out.logits}


def measure_gap(ours: Any, theirs: torch.Tensor) -> float:
    """Measure the largest difference of two tensors, relative to the largest value if that is above 1. Infinite if
    shapes differ."""
    if not isinstance(ours, torch.Tensor) or ours.shape != theirs.shape:
        return math.inf
    gap = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
    return gap if math.isfinite(gap) else math.inf
