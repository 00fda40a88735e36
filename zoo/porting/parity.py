"""Compare a draft with its reference: logits, padded rows, cached generation, export to config.json, and the effect of
each field of the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from zoo.checkpoint.inverse import try_family
from zoo.checkpoint.likeness import list_spec_differences
from zoo.porting.draft import Draft
from zoo.porting.field_effects import Effect, find_effects, list_fields
from zoo.porting.moves import list_borrowed, list_placements
from zoo.porting.nearest import list_others
from zoo.porting.reference_model import Illegal, Maker, Reference
from zoo.porting.trial import CLOSE, TrialOutcome, measure_gap, try_draft

if TYPE_CHECKING:
    from zoo.run.layer import Model

NEW_TOKENS = 14


@dataclass
class ParityReport:
    """The result of comparing a draft with its reference. `checks` has for each comparison whether it holds, and a
    line; `fields` has a verdict for each field of the config: read, harmless, refused or WRONG."""

    checks: dict[str, tuple[bool, str]] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return all(holds for holds, _ in self.checks.values())


def check_parity(draft: Draft, maker: Maker, reference: Reference, outcome: TrialOutcome) -> ParityReport:
    """Compare the draft with its reference, except for the effect of each field (`place_fields`). If the logits differ,
    nothing else is compared."""
    found = ParityReport()
    gap = outcome.gaps.get("logits")
    said = f"largest difference {gap:.0e}" if gap is not None else "were not computed"
    found.checks["logits"] = (
        outcome.is_equal,
        said if outcome.is_equal else f"{said}; first apart at {outcome.departure}",
    )
    if not outcome.is_equal:
        return found
    model = outcome.model
    found.checks["padded rows"] = _compare_padded(model, reference)
    if model.spec.kind == "decoder":
        found.checks["cached generation"] = _compare_generation(model, reference)
    found.checks["config.json written back"] = _write_back(draft, reference, outcome)
    found.checks["config.json with sizes alone"] = _try_brief(draft, maker)
    return found


def _compare_padded(model: Model, reference: Reference) -> tuple[bool, str]:
    """Compare the model's logits of padded rows with the reference's without padding."""
    ids = reference.draw_ids(2, seed=1)
    mask = torch.ones_like(ids)
    mask[0, -7:], mask[1, :5] = 0, 0
    with torch.no_grad():
        whole = model(torch.where(mask.bool(), ids, 0), mask).logits
        alone = [reference.model(input_ids=ids[row : row + 1, mask[row].bool()]).logits[0] for row in range(2)]
    gap = max(measure_gap(whole[row][mask[row].bool()], alone[row]) for row in range(2))
    return gap <= CLOSE, f"largest difference {gap:.0e}"


def _compare_generation(model: Model, reference: Reference) -> tuple[bool, str]:
    """Compare greedy continuations of both models, each with its own cache."""
    from zoo.generation.generate import generate

    ids = reference.draw_ids(2, 10)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    try:
        with torch.no_grad():
            theirs = reference.model.generate(ids, attention_mask=torch.ones_like(ids), **options).tolist()
    except Exception as error:  # transformers' code may raise anything
        return False, f"the reference's own fails ({type(error).__name__})"
    ours = generate(model, ids, NEW_TOKENS).tolist()
    if ours == theirs:
        return True, f"{NEW_TOKENS} greedy tokens are equal"
    at = min(
        next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), 99)
        for a, b in zip(ours, theirs, strict=True)
    )
    return False, f"greedy tokens differ from token {at - ids.shape[1] + 1} on"


def _write_back(draft: Draft, reference: Reference, outcome: TrialOutcome) -> tuple[bool, str]:
    """Find a config.json from the Spec alone, and check that it describes the same model."""
    _, body, faults = try_family(draft.to_family(), reference.architecture, outcome.spec)
    holds = body is not None and not faults
    return holds, "describes the same model" if holds else f"{faults[0] if faults else 'is not found'}"


def _try_brief(draft: Draft, maker: Maker) -> tuple[bool, str]:
    """Compare draft and reference on a config.json with sizes alone, which tests the defaults of all other fields."""
    named = {"model_type": maker.model_type, "architectures": [maker.model_class.__name__]}
    try:
        brief = maker.make({**maker.sizes, **named})
        outcome = try_draft(draft, brief)
        brief.stages  # noqa: B018  (runs it)
    except Illegal as error:
        return True, f"is refused by the reference ({error})"
    if outcome.is_equal:
        return True, f"largest difference {outcome.gaps['logits']:.0e}"
    full = try_draft(draft, maker.make_first())
    differences = list_spec_differences(outcome.spec, full.spec) if outcome.spec is not None else outcome.faults
    return False, f"is read otherwise: {'; '.join(differences[:2])}"


# ---------------------------------------------------------------- fields


def place_fields(
    draft: Draft, maker: Maker, reference: Reference, near: list[str], say: Callable[[str], None]
) -> tuple[Draft, dict[str, str]]:
    """Set each field of the config to other values, and find a place for fields whose values the draft misreads.

    A field that cannot be placed is added to `requires` with the tiny model's value, unless that is a list or a
    mapping; other values are then refused. Returns the draft and a verdict for each field.
    """
    said: dict[str, str] = {}
    for name, tried in find_effects(maker, reference, list_fields(reference)).items():
        verdict = "not tried: the reference takes no other value" if tried is None else _judge(draft, name, tried)
        if tried is not None and verdict.startswith(("WRONG", "unread", UNPLACED)):
            placed = _place(draft, reference, name, tried, near)
            if placed is not None:
                draft, text = placed
                say(f"  {text}")
                verdict = "read"
        said[name] = verdict
    family = draft.to_family()
    own = family.reads | {*family.aliases, *draft.parent.harmless}
    harmless = [name for name, verdict in said.items() if verdict == "harmless" and name not in own]
    lost = [name for name, verdict in said.items() if verdict not in ("read", "harmless") and name not in own]
    requires = {name: reference.config[name] for name in lost if not isinstance(reference.config[name], list | dict)}
    return replace(draft, harmless=tuple(harmless), requires={**draft.requires, **requires}, assumed=()), said


def _judge(draft: Draft, name: str, tried: Effect) -> str:
    """Return the verdict on a field, from how the draft reads the reference in which the field has another value."""
    if not tried.changes:
        return "harmless"
    outcome = try_draft(draft, tried.reference)
    if outcome.spec is None:
        return f"refused ({outcome.faults[0]})"
    if outcome.unplaced:
        return f"{UNPLACED} ({[*outcome.strange, *outcome.missing, *outcome.misshapen, *outcome.lost][0]})"
    if outcome.is_equal:
        return "read"
    family = draft.to_family()
    is_read = family.aliases.get(name, name) in family.reads
    return f"WRONG for {tried.value!r}" if is_read else "unread, and it changes what the reference computes"


def _place(draft: Draft, reference: Reference, name: str, tried: Effect, near: list[str]) -> tuple[Draft, str] | None:
    """Find a change with which the draft reads the original and the tried value of a field as the reference does. Of
    changes of one field, only those that leave the tiny model's Spec unchanged are tried."""
    now = try_draft(draft, reference)
    if not now.is_equal:
        return None
    others = [*near, *(each for each in list_others(draft.model_type) if each not in near)]
    moves = [
        *list_placements(draft, now, name, reference.config[name]),
        *list_borrowed(draft, reference.config, others, {name})[:BORROWED],
    ]
    for move in moves:
        if move.spot is not None and move.edit(now) != now.spec:
            continue
        made = move.apply(draft)
        if all(try_draft(made, each).is_equal for each in (reference, tried.reference)):
            return made, move.text
    return None


UNPLACED = "refused for tensors without a place"
"""The verdict on a field if another value gives the reference tensors that the draft does not know."""

BORROWED = 12
"""Maximum number of other families' uses of a field that are tried."""


def count_fields(fields: Mapping[str, str]) -> dict[str, list[str]]:
    """Group the fields by verdict."""
    found: dict[str, list[str]] = {}
    for name, verdict in fields.items():
        label = next((word for word in ("WRONG", "unread") if verdict.startswith(word)), verdict)
        found.setdefault(label.partition(" (")[0].partition(":")[0], []).append(name)
    return found
